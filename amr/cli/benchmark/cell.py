"""A cell's process: trains, tests and writes a record."""

import gc
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from amr.cli.outcome import exit_status
from amr.utils.files import locked, write_text
from amr.utils.names.version import __version__


def forkserver() -> ForkServerContext:
    """Forks processes from one that has imported what `fit` needs, and has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["amr.cli.benchmark.preload"])
    return context


def cell_process(
    task: Mapping[str, Any],
    log: Path,
    environment: Mapping[str, str],
    folder: Path,
    run: Callable[[Mapping[str, Any]], int] | None = None,
) -> None:
    """A forked process becomes what `python -m amr.cli.benchmark.cell TASK >> LOG` in the grid's folder would be."""
    os.setsid()  # so that it is stopped together with its loader processes
    with Path(os.devnull).open("rb") as nothing, log.open("ab") as file:
        for number, source in enumerate((nothing, file, file)):
            os.dup2(source.fileno(), number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    os.chdir(folder)
    if "OMP_NUM_THREADS" not in os.environ:  # torch has read it, if it was there
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"].split(",")[0]))
    os.environ.clear()
    os.environ.update(environment)
    # DDP starts this command for each further rank.
    sys.argv, sys.modules["__main__"] = [__file__, json.dumps(task)], sys.modules[__name__]
    sys.exit((run or run_cell)(task))


def run_cell(task: Mapping[str, Any]) -> int:
    """Trains and tests one cell and writes its record, in a process of its own.

    Args:
        task: As `Grid.task` makes it.
    """
    began = time.monotonic()
    follower = int(os.environ.get("LOCAL_RANK", "0")) > 0  # DDP starts the command again for each further rank
    _end_with_parent()
    folder = Path(task["folder"])
    # A killed grid's processes are about to end. Further ranks work in the first one's folder.
    with nullcontext() if follower else locked(folder, "choose another --out", wait=True):
        resumed = (folder / "checkpoints" / "last.ckpt").is_file()
        status = _command(task["fit"]) if task["fit"] else 0
        gc.collect()  # what training held, before testing takes its own
        status = status or _command(task["test"])
        if status == 0 and not follower:
            record = {
                **task["facts"],
                "resumed": resumed,
                "seconds": round(time.monotonic() - began, 1),
                "cpu_seconds": round(sum(os.times()[:4]), 1),  # loaders and further ranks that have ended, too
                "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "versions": {"amr": __version__, **{name: version(name) for name in ("torch", "pytorch-lightning")}},
            }
            write_text(Path(task["record"]), f"{json.dumps(record, indent=1)}\n")
    return status


def _command(arguments: list[str]) -> int:
    """Exit status of `amr fit`, `amr test` or `amr ensemble`."""

    def command() -> int:
        if arguments[0] == "ensemble":
            from amr.cli.benchmark import ensemble

            return ensemble.main(arguments[1:])
        from amr.cli.fit import run

        run(arguments)
        return 0

    return exit_status(command, arguments)


def _end_with_parent() -> None:
    """Kills this process and its loaders when the process that started it (the grid or the first rank) is gone."""
    starter, parent = multiprocessing.parent_process(), os.getppid()

    def watch() -> None:
        if starter is not None:
            starter.join()
        while starter is None and os.getppid() == parent:
            time.sleep(0.5)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(run_cell(json.loads(sys.argv[1])))
