"""Keeps two checkpoints: the best by validation, and the last, from which an interrupted run resumes."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from amr.utils.errors import UserError


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`: the weights of the first epoch with the best value of a validation metric.

    Unlike its parent it remembers that value when the run's folder has been moved or renamed, and forgets it where the
    folder has no `best.ckpt`, as when a run starts from another run's checkpoint.

    Args:
        dirpath: The run's `checkpoints` folder.
        monitor: The metric.
        mode: Whether more of it is better, or less.
    """

    def __init__(self, dirpath: str | None = None, monitor: str = "val/acc", mode: str = "max") -> None:
        super().__init__(dirpath, filename="best", monitor=monitor, mode=mode, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the best value so far for that of the file in this folder, if there is one."""
        if self.dirpath is not None and (best := Path(self.dirpath) / "best.ckpt").is_file():
            score = state_dict["best_model_score"]
            state_dict = {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": str(best),
                "kth_best_model_path": str(best),
                "best_k_models": {str(best): score},
            }
        else:
            state_dict = {**state_dict, "dirpath": None}
        super().load_state_dict(state_dict)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`: after every epoch and its validation and, if asked, within epochs.

    No checkpoint is written between a batch and the validation that follows it: a run that resumed there would skip
    the validation.

    Args:
        dirpath: The run's `checkpoints` folder.
        every_n_train_steps: Also after every so many optimizer steps; None for never.
        every_n_minutes: Also when so many minutes have passed since the last one; None for never.

    Raises:
        UserError: If an interval is not positive.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_train_steps: int | None = None,
        every_n_minutes: float | None = None,
    ) -> None:
        for key, value in (("every_n_train_steps", every_n_train_steps), ("every_n_minutes", every_n_minutes)):
            if value is not None and value <= 0:
                raise UserError(f"last.{key}={value}: must be a positive number, or null")
        self.dirpath = dirpath
        self.every_n_train_steps, self.every_n_minutes = every_n_train_steps, every_n_minutes
        self._saved_step, self._saved_at = 0, time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts both intervals."""
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves within an epoch, right after an optimizer's step."""
        if trainer.global_step == self._saved_step or not between_steps(trainer):
            return
        steps, minutes = self.every_n_train_steps, self.every_n_minutes
        due = steps is not None and trainer.global_step % steps == 0
        if minutes is not None:  # clocks differ between ranks, and saving is collective
            due |= trainer.strategy.broadcast(time.monotonic() - self._saved_at >= 60 * minutes)
        if due:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves after the epoch."""
        self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Saves now; every rank must call it."""
        if self.dirpath is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt", weights_only=False)


def between_steps(trainer: pl.Trainer) -> bool:
    """At a batch's end: whether an optimizer's step is just done and no validation follows."""
    loop = trainer.fit_loop.epoch_loop
    assert trainer.fit_loop._data_fetcher is not None
    return not (
        trainer.fit_loop._should_accumulate()
        or trainer.is_last_batch
        or loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
    )
