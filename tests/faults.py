"""What goes wrong, on purpose: callbacks that break a run, and processes that run many commands cheaply."""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from tests.conftest import REPOSITORY
from tests.processes import warm


class At(pl.Callback):
    """Does something in a hook, when it is called the n-th time.

    Args:
        hook: The hook.
        call: Which call of it, from 1.
        rank: On which rank; None for all.
    """

    def __init__(self, hook: str, call: int, rank: int | None = None) -> None:
        self.calls = 0

        def count(trainer: pl.Trainer, _: pl.LightningModule, *arguments: Any) -> None:
            self.calls += 1
            if self.calls == call and rank in (None, trainer.global_rank):
                self.act(trainer, *arguments)

        setattr(self, hook, count)

    def act(self, trainer: pl.Trainer, *arguments: Any) -> None:
        raise NotImplementedError


class Signal(At):
    """Sends this process a signal."""

    def __init__(self, hook: str, call: int, rank: int | None = None, number: int = 9) -> None:
        super().__init__(hook, call, rank)
        self.number = number

    def act(self, trainer: pl.Trainer, *arguments: Any) -> None:
        os.kill(os.getpid(), self.number)


class NotFinite(At):
    """Spoils a training batch."""

    def __init__(self, call: int, rank: int | None = None) -> None:
        super().__init__("on_train_batch_start", call, rank)

    def act(self, trainer: pl.Trainer, *arguments: Any) -> None:
        arguments[0]["inputs"]["audio"].fill_(torch.nan)


class HalfACheckpoint(pl.Callback):
    """Writes half of the n-th checkpoint, then ends by `kill`, or by an error as of a `full` disk."""

    def __init__(self, call: int, then: str = "kill") -> None:
        import io

        original, calls = torch.save, 0

        def save(content: Any, file: Any, *_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls != call:
                original(content, file)
                return
            whole = io.BytesIO()
            original(content, whole)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            if then == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            torch.save = original
            raise OSError(28, "No space left on device")

        torch.save = save  # type: ignore[assignment]


class KillAtPart(pl.Callback):
    """Ends the process, without a warning, as it is about to keep the n-th corruption of a sweep."""

    def __init__(self, call: int) -> None:
        import amr.evaluation.corruption

        corruption: Any = amr.evaluation.corruption
        original, calls = corruption.write_arrays, 0

        def write(path: Path, arrays: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            original(path, arrays)

        corruption.write_arrays = write


class FillDisk(At):
    """Fills the file system on which the run lies."""

    def __init__(self, call: int, folder: str) -> None:
        super().__init__("on_train_epoch_start", call)
        self.folder = folder

    def act(self, trainer: pl.Trainer, *arguments: Any) -> None:
        with (Path(self.folder) / "filler").open("wb", buffering=0) as file:
            size = 65536
            while size:
                try:
                    file.write(b"\0" * size)
                except OSError:
                    size //= 2


class Slow(pl.Callback):
    """Gives others time to send a signal; says when the first batch is done."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        print(f"pid {os.getpid()} rank {trainer.global_rank} step {trainer.global_step}", flush=True)
        time.sleep(0.2)


def callback(name: str, **arguments: Any) -> str:
    """A callback of this file as a value of --trainer.callbacks+."""
    return "--trainer.callbacks+=" + json.dumps({"class_path": f"tests.faults.{name}", "init_args": arguments})


def environment(**more: str) -> dict[str, str]:
    """For a process that finds this folder, and not the W&B service that an earlier test has started in this one."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return {**own, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **more}


def run_each(chains: Sequence[Sequence[Sequence[str]]], folder: Path, **more: str) -> Any:
    """Runs chains of commands, each command in a process of its own, forked from one that has run the first already.

    What the first run of a process takes longer, all others need not.

    Returns:
        A list a chain of (exit status, or minus the signal that ended it; what was written to stderr).
    """
    process = warm().Process(target=_run_each, args=(chains, folder, environment(**more)))
    process.start()
    process.join()
    assert process.exitcode == 0, (folder / "warm").read_text()[-3000:]
    return json.loads((folder / "outcomes.json").read_text())


def _run_each(chains: Sequence[Sequence[Sequence[str]]], folder: Path, variables: dict[str, str]) -> None:
    from amr.cli import main

    def outcome(arguments: Sequence[str]) -> tuple[int, str]:
        errors = folder / "stderr"
        if (child := os.fork()) == 0:
            os.dup2(os.open(errors, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
            status = 1
            try:
                status = main(arguments)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return status, errors.read_text()

    os.environ.clear()
    os.environ.update(variables)
    os.chdir(REPOSITORY)
    for stream in (1, 2):
        os.dup2(os.open(folder / "warm", os.O_CREAT | os.O_APPEND | os.O_WRONLY), stream)
    assert main([*chains[0][0], "--name", "warm", "--trainer.fast_dev_run", "true"]) == 0
    (folder / "outcomes.json").write_text(json.dumps([[outcome(command) for command in chain] for chain in chains]))
