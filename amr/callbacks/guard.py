"""Ends training early: at a signal, or before a step that would destroy the model."""

import functools
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from amr.callbacks.checkpoint import LastCheckpoint, between_steps
from amr.classifier import FusionClassifier
from amr.utils.distributed import AgreedMaximum, gather_objects
from amr.utils.errors import Stopped, UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Guard(pl.Callback):
    """Ends training in order, with a checkpoint to resume from.

    At SIGTERM, SIGUSR1, SIGINT (Ctrl-C) or SIGHUP (a closed terminal) the optimizer's step that is under way is
    finished, `last.ckpt` is saved, and `Stopped` is raised; where validation is next or has begun, it and the epoch's
    end come first. A second SIGINT ends the process at once. Before a step on a loss that is not finite, the state
    after the step before goes to `last-good.ckpt`, and `UserError` names the batch.

    All ranks stop at the same step, whichever of them a signal or a bad loss has reached: in each step they take the
    maximum of two numbers. That, and the look at the loss, is asked for between the forward and the backward pass and
    read after the backward pass was queued, so a GPU never waits for it.

    Args:
        last: Knows where checkpoints go, and writes `last.ckpt`.
    """

    active: ClassVar[bool] = False
    """Whether one is in charge of this process's signals."""

    def __init__(self, last: LastCheckpoint) -> None:
        self.last = last
        self._signal = 0  # what this rank has received
        self._agreed = 0  # what any rank has, known to all
        self._asked: AgreedMaximum | None = None
        self._trained = False
        self._handlers: dict[signal.Signals, Any] = {}
        self._buffers: list[Tensor] = []  # as they were after the last step
        self._rewind = 0

    # ------------------------------------------------------------------------------------------------------ signals

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replaces the signal handlers, including Lightning's.

        On SIGTERM, Lightning would broadcast within the handler, which can deadlock, and leave without saving; under
        SLURM, it would write a checkpoint of its own and requeue the job. nohup has SIGHUP ignored, and so it
        stays.
        """
        connector: Any = trainer._signal_connector
        connector.register_signal_handlers = lambda: None
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = lambda: None  # would make the CPU wait for the GPU before every batch
        if threading.current_thread() is threading.main_thread():
            nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            heeded = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
            self._handlers = {number: signal.signal(number, self._note) for number in heeded}
            _shield_loaders()
            Guard.active = True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restores the signal handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        Guard.active = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restores the signal handlers."""
        self.teardown(trainer, pl_module, "fit")

    def _note(self, number: int, _: Any) -> None:
        self._signal = self._signal or number  # SLURM's SIGUSR1, which requeues, comes before its SIGTERM
        if number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun repeats the terminal's
            signal.signal(number, signal.SIG_DFL)  # which a second one reaches wherever the process hangs
            if sys.stderr.isatty():
                os.write(2, b"\nstopping after this step, to save last.ckpt; Ctrl-C again stops at once\n")

    # --------------------------------------------------------------------------------------------------------- steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the first copy of the buffers."""
        self._trained = False
        self._buffers = [buffer.clone() for buffer in pl_module.buffers()]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops after an epoch whose end has been saved and logged."""
        if not self._trained:  # nothing to save
            return
        (number,) = AgreedMaximum(torch.tensor([self._signal], device=pl_module.device)).read()
        if number:
            raise self._stopped(trainer, int(number))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Asks all ranks for signals and bad losses, once an optimizer's step."""
        if trainer.fit_loop._should_accumulate():
            return
        assert isinstance(pl_module, FusionClassifier)
        losses = torch.stack([loss.float() for loss, _ in pl_module.losses_of_step])
        bad = losses.isfinite().all().logical_not().float()
        self._asked = AgreedMaximum(torch.stack([bad, torch.full_like(bad, self._signal)]))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Reads the answer; until then only buffers have changed."""
        assert self._asked is not None
        assert isinstance(pl_module, FusionClassifier)
        bad, number = self._asked.read()
        self._agreed = int(number)
        if bad:
            self._refuse(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops after an optimizer's step."""
        if trainer.fit_loop._should_accumulate():
            return
        self._trained = True
        _copy(pl_module.buffers(), self._buffers)
        if self._agreed and between_steps(trainer):
            self.last.save(trainer)
            raise self._stopped(trainer, self._agreed)

    def _stopped(self, trainer: pl.Trainer, number: int) -> Stopped:
        if not trainer.is_global_zero:
            return Stopped()
        where = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
        return Stopped(f"stopped by {signal.Signals(number).name} at {where}; go on with --ckpt_path last", number)

    # ------------------------------------------------------------------------------------------------------ bad losses

    def _refuse(self, trainer: pl.Trainer, module: FusionClassifier) -> None:
        """Saves the state after the last good step, and raises."""
        own = [id for loss, ids in module.losses_of_step if not bool(loss.isfinite()) for id in ids]
        ids = [id for part in gather_objects(own) for id in part]
        self._rewind = len(module.losses_of_step)
        _copy(self._buffers, module.buffers())
        where = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
        rest = self._save_good(trainer, module)
        if not trainer.is_global_zero:
            raise Stopped()
        raise UserError(f"the loss is not finite at {where}, in the batch of {_some(ids)}; {rest}")

    def _save_good(self, trainer: pl.Trainer, module: FusionClassifier) -> str:
        """Saves; returns from where training can continue."""
        last = "--ckpt_path last goes on from the last regular checkpoint"
        if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
            return f"the weights were not finite before that, either, so a gradient was not; {last}"
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready == self._rewind:  # the epoch's first step
            return last
        if self.last.dirpath is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return "there is no folder for a checkpoint"
        path = Path(self.last.dirpath) / "last-good.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        return f"the step was not taken, and the state before it is in {path}; {last}"

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Resets progress by the batches of a step that was not taken, to the end of the batch before."""
        if not self._rewind:
            return
        loops = checkpoint["loops"]["fit_loop"]
        for counts in (loops["epoch_loop.batch_progress"][scope] for scope in ("total", "current")):
            done = counts["ready"] - self._rewind
            counts.update(ready=done, started=done, processed=done, completed=done - 1)
        loops["epoch_loop.batch_progress"]["is_last_batch"] = False
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
        for loader in loops["state_dict"].get("combined_loader", []):
            loader["batches"] -= self._rewind


@functools.cache
def _shield_loaders() -> None:
    """Makes loader processes survive a signal to the whole process group, as SLURM sends: the last step needs them.

    They are forked, from now on, with the signals blocked; torch's own handlers would end them, and with them the step.
    """
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_heed_parent)


def _block() -> None:
    if Guard.active:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _unblock() -> None:
    if Guard.active:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _heed_parent() -> None:
    """Ends a loader process at its parent's signal, as torch's handler does, and at no other."""

    def wait() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
            pass
        os._exit(0)

    if Guard.active:
        threading.Thread(target=wait, daemon=True).start()


def _copy(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    """Copies tensors into others, on a GPU in a few calls."""
    if target := list(target):
        torch._foreach_copy_(target, list(source))


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:8]) + (f" and {len(ids) - 8} more ({len(ids)} in all)" if len(ids) > 8 else "")
