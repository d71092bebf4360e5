"""How a run presents itself in W&B."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.trainer.states import TrainerFn


class WandbSetup(pl.Callback):
    """Defines the metrics' axes and summaries, and files what identifies the run, so that dashboards need no set-up.

    Every `train/`, `val/` and `test/` metric is drawn over epochs; the summary keeps the best validation accuracy and
    mAP and the lowest loss. Without a W&B logger it does nothing.

    Args:
        facts: Flat facts for the run's config: `method`, `dataset`, `seed`, ...
        config: The resolved configuration, put into the run's config under its sections.
        file: The resolved configuration's file, saved in the run; None for none.
    """

    def __init__(self, facts: dict[str, Any], config: dict[str, Any], file: Path | None = None) -> None:
        self.facts, self.config, self.file = facts, config, file

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

    def _set_up(self, trainer: pl.Trainer) -> None:
        """Writes to each W&B run, from rank 0."""
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if not isinstance(logger, WandbLogger):
                continue
            run = logger.experiment
            run.define_metric("epoch", hidden=True)
            for split in ("train", "val", "test"):
                run.define_metric(f"{split}/*", step_metric="epoch")
            for metric, summary in (("val/acc", "max"), ("val/mAP", "max"), ("val/loss", "min")):
                run.define_metric(metric, step_metric="epoch", summary=summary)
            run.config.update({**self.config, **self.facts}, allow_val_change=True)
            if self.file is not None and self.file.is_file():
                run.save(str(self.file), base_path=str(self.file.parent), policy="now")
