"""Other processes: one that holds a folder, and one that is dead; and the memory that a process takes."""

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path

from tests.conftest import REPOSITORY

HOLD = """
import sys
from pathlib import Path
from amr.utils.files import locked

with locked(Path(sys.argv[1]), "", beside=sys.argv[2] == "True"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_process_holds(folder: Path, *, beside: bool = False) -> Iterator[int]:
    """Another process has the folder's lock, or the one beside it, until the block ends; its number."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(beside)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == b"held\n"
        yield process.pid
        process.stdin.close()


def dead_process() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def peak_memory() -> int:
    """Most memory that this process has held at once, in KiB.

    Linux's own count of the program that runs now. `ru_maxrss` would start at the peak of the process that started it.
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])


def warm() -> ForkServerContext:
    """Starts processes that are forked from one that has imported everything, and lives as long as this one.

    To import torch takes a process seconds. Variables of the environment are those of the first use.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preload"])
    return context
