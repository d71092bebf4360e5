"""Checks the Trainer's arguments: mistakes are reported in one line, before the first epoch if possible.

Lightning reports many of them only by an exception when training starts, or after an epoch.
"""

import errno
import linecache
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, LearningRateFinder

from amr.evaluation.runs import SHARES
from amr.utils.errors import UserError

LIGHTNING = ("pytorch_lightning.", "lightning_fabric.")
SECTIONS = {**dict.fromkeys(LIGHTNING, "trainer"), "torch.optim.lr_scheduler": "model.lr_scheduler"}
"""Sections of the configuration, by the module that reports a mistake in them."""
SHARED_MEMORY = (
    "/dev/shm: the loader's processes need more room there; "  # noqa: S108
    "--data.init_args.num_workers 0 needs none, and a container "
    "gets more by docker run --shm-size 2g"
)
MOST = 500  # characters of Lightning's message


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Refuses arguments of the Trainer with which a run is not possible.

    Args:
        trainer: The configuration's `trainer` section.

    Raises:
        UserError: One of them is given.
    """
    strategy = trainer.get("strategy")
    if isinstance(strategy, str) and strategy != "auto" and not strategy.startswith("ddp"):
        raise UserError(f"trainer.strategy={strategy}: must be auto (a single device), ddp or one of its variants")
    for key in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"):
        if (value := trainer.get(key)) is not None and not isinstance(value, str | dict) and value <= 0:
            raise UserError(f"trainer.{key}={value}: must be positive")
    if (clip := trainer.get("gradient_clip_val")) is not None and clip < 0:
        raise UserError(f"trainer.gradient_clip_val={clip:g}: must be positive, or null for none")
    if trainer.get("barebones"):
        raise UserError(
            "trainer.barebones=true: must be false, for a run is its metrics and checkpoints; "
            "--trainer.fast_dev_run 100 trains on 100 batches and writes neither"
        )
    if trainer.get("enable_checkpointing") is False:
        raise UserError(
            "trainer.enable_checkpointing=false: must be true or null, for best.ckpt and last.ckpt are what `test` and "
            "--ckpt_path last need; --trainer.fast_dev_run 100 trains on 100 batches and writes nothing"
        )


def check_monitors(
    callbacks: Sequence[Callback], scheduler: str | None, modalities: Iterable[str], logged: Sequence[str]
) -> None:
    """Refuses callbacks that watch a value that is not measured, or set one that this model does not have.

    Args:
        callbacks: The user's. Where one is of the user's own making, any metric may be logged by it.
        scheduler: The metric that the learning rate's schedule watches, if it watches one.
        modalities: The model's.
        logged: Metrics that it logs, without split.

    Raises:
        UserError: A metric is never logged.
    """
    names = ("loss", *logged, *(f"{kind}/{name}" for kind in SHARES for name in modalities))
    allowed = [f"{split}/{name}" for split in ("val", "train") for name in names]
    watched = [("trainer.callbacks", type(each).__name__, getattr(each, "monitor", None)) for each in callbacks]
    for key, watcher, metric in [*watched, ("model.lr_scheduler", "the schedule", scheduler)]:
        known = metric in allowed or str(metric).startswith("train/")  # where methods log more
        if metric is not None and not known and all(type(each).__module__.startswith(LIGHTNING) for each in callbacks):
            raise UserError(
                f"{key}: {watcher} has monitor={metric}, which is not logged; must be one of {', '.join(allowed)}"
            )
    if any(isinstance(each, LearningRateFinder) for each in callbacks):
        raise UserError(
            "trainer.callbacks: LearningRateFinder needs a model with a field `lr` or `learning_rate`, which this one "
            "does not have: its rate is model.optimizer.lr; take the callback out, and try a few rates"
        )


def lacks_shared_memory(error: BaseException | None) -> bool:
    """Whether loader processes failed because /dev/shm, through which they pass batches, is full.

    A process that is short of it raises as it allocates (torch's error, or its text within that of the loader's), is
    killed by a bus error as it writes, or cannot make a semaphore for its queue.
    """
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.ENOMEM) and error.filename is None and _made_a_semaphore(error)
    words = ("shared memory(shm)", "shared memory limit", "killed by signal: Bus error")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in words)


def _made_a_semaphore(error: OSError) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    loader: Any
    for loader in (frame.f_locals.get("self") for frame in frames):
        if type(loader).__name__ == "_MultiProcessingDataLoaderIter" and not hasattr(loader, "_shutdown"):
            loader._shutdown = True  # half made: its end would look for this, and print a traceback
    return any(frame.f_globals.get("__name__") == "multiprocessing.synchronize" for frame in frames)


def told_by_lightning(error: Exception) -> str | None:
    """Lightning's message about a mistake in the configuration, on one line; None for any other error.

    It says so in exceptions of many types, all raised by a statement of its own: an error that merely comes to light in
    its code is a bug.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    section = next((section for prefix, section in SECTIONS.items() if module.startswith(prefix)), None)
    if not isinstance(error, MisconfigurationException):
        if trace is None or section is None:
            return None
        if not linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno).strip().startswith("raise"):
            return None
    return f"{section or 'trainer'}: {' '.join(str(error).split())[:MOST]}"
