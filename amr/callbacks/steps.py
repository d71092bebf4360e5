"""Logs every few steps: loss, learning rate, gradient, speed, memory."""

import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.optim import Optimizer

from amr.classifier import FusionClassifier


class StepLog(pl.Callback):
    """Logs to W&B and to the user's loggers every `trainer.log_every_n_steps` optimizer steps.

    `step/loss` is the loss of the step's last batch; `step/lr` the main optimizer's first rate; `step/grad_norm` the L2
    norm of all gradients, averaged over ranks and before clipping; `step/clips_per_s` clips per second of this rank
    since the last time, validation included; `step/gpu_memory_mb` the highest number of MiB allocated, on a GPU;
    `step/epoch_s` the last epoch's seconds. The run's CSV file has epochs only.
    """

    def __init__(self) -> None:
        self._due = False
        self._values: dict[str, float] = {}
        self._clips = 0
        self._since = self._epoch = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._since, self._clips = time.monotonic(), 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the epoch's clock."""
        self._epoch = time.monotonic()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Records the gradients, which at this moment are unscaled and not yet clipped."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._due = every > 0 and (trainer.global_step + 1) % every == 0 and bool(_loggers(trainer))
        if not self._due:
            return
        groups = optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        self._values = {"step/lr": float(groups[0]["lr"]), "step/grad_norm": float(norm)}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs, right after the step."""
        assert isinstance(pl_module, FusionClassifier)
        self._clips += len(outputs["label"])
        if not self._due or trainer.fit_loop._should_accumulate():
            return
        self._due = False
        now = time.monotonic()
        values = {**self._values, "step/loss": float(outputs["loss"].detach())}
        values["step/clips_per_s"] = self._clips / max(now - self._since, 1e-9)
        if pl_module.device.type == "cuda":
            values["step/gpu_memory_mb"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**20
        self._since, self._clips = now, 0
        self._log(trainer, values)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the epoch's time."""
        self._log(trainer, {"step/epoch_s": time.monotonic() - self._epoch})

    def _log(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        for logger in _loggers(trainer) if trainer.is_global_zero else ():
            logger.log_metrics(values, step=trainer.global_step)


def _loggers(trainer: pl.Trainer) -> list[Any]:
    return [logger for logger in trainer.loggers if not isinstance(logger, CSVLogger)]
