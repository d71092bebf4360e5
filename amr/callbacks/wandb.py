"""Presents a run in W&B: its axes, summaries and identity."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from amr.callbacks.dominance import Dominance, class_rows
from amr.callbacks.tables import log_table, wandb_loggers


class WandbSetup(pl.Callback):
    """Defines the metrics' axes and summaries, and files what identifies the run, so that dashboards need no set-up.

    Every `train/`, `val/` and `test/` metric is drawn over epochs, and `step/` metrics over optimizer steps. The
    summary keeps the last values, the best validation accuracy and mAP, and the lowest loss. What validation finds by
    class in each epoch is one table, `per_class_epochs`, logged at the end of training; a resumed run's has all epochs.
    Without a W&B logger it does nothing.

    Args:
        facts: Flat facts for the run's config: `method`, `dataset`, `seed`, ...
        config: The resolved configuration, put into the run's config under its sections.
        file: The resolved configuration's file, saved in the run; None for none.
    """

    def __init__(self, facts: dict[str, Any], config: dict[str, Any], file: Path | None = None) -> None:
        self.facts, self.config, self.file = facts, config, file
        self._per_class: dict[int, Tensor] = {}  # Dominance's totals, by epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets the run up."""
        self._set_up(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets the run up, where validation is the command."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._set_up(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets the run up."""
        self._set_up(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps the epoch's numbers by class."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Dominance) and "val" in callback.totals:
                self._per_class[trainer.current_epoch] = callback.totals["val"].cpu()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the table."""
        labels = self.facts["labels"]
        rows = [
            [epoch, labels[label], clips, accuracy, *shares]
            for epoch, totals in sorted(self._per_class.items())
            for label, clips, accuracy, shares in class_rows(totals)
        ]
        if not trainer.is_global_zero or not rows:
            return
        columns = ["epoch", "class", "clips", "acc", *(f"dominance/{name}" for name in self.facts["modalities"])]
        for logger in wandb_loggers(trainer):
            log_table(logger, "per_class_epochs", columns, rows)

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far, for a resumed run."""
        return {"per_class": self._per_class}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        self._per_class = state_dict["per_class"]

    def _set_up(self, trainer: pl.Trainer) -> None:
        """Writes to each W&B run, from rank 0."""
        if not trainer.is_global_zero:
            return
        for logger in wandb_loggers(trainer):
            run = logger.experiment
            run.define_metric("epoch", hidden=True)
            for split in ("train", "val", "test"):
                run.define_metric(f"{split}/*", step_metric="epoch")
            for metric, summary in (("val/acc", "max"), ("val/mAP", "max"), ("val/loss", "min")):
                run.define_metric(metric, step_metric="epoch", summary=f"{summary},last")
            run.define_metric("step/*", step_metric="trainer/global_step")
            start = next((one.version for one in trainer.loggers if isinstance(one, CSVLogger)), None)
            facts = self.facts if start is None else {**self.facts, "start": start}  # clocks may be set back
            run.config.update({**self.config, **facts}, allow_val_change=True)
            if self.file is not None and self.file.is_file():
                run.save(str(self.file), base_path=str(self.file.parent), policy="now")
