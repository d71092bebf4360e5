"""Files with faults, read by another process: a signal or a hang is that process's, and its memory is counted."""

import contextlib
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from amr.utils.errors import UserError
from tests.processes import peak_memory, warm

PATIENCE = 120
"""Seconds after which a file that has not been read is a hang."""
GROWTH = 1024
"""MiB that reading all of them may add to the process."""


def outcomes(read: Callable[[Path], str], good: Path, files: Sequence[Path]) -> list[str]:
    """What becomes of each file: `value X`, `line X` for a `UserError` of one line, or `fault X` for anything else.

    Args:
        read: A function of a module, which another process can import.
        good: A sound file, read first, so that imports do not count as growth.
        files: The files. After a signal or a hang the rest is not read.
    """
    context = warm()
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_read_all, args=(read, good, list(files), theirs), daemon=True)
    child.start()
    theirs.close()
    found: list[str] = []
    try:
        while len(found) < len(files) + 1:
            if not ours.poll(PATIENCE):
                return [*found, "fault hang"]
            found.append(ours.recv())
    except EOFError:
        child.join()
        return [*found, f"fault exit {child.exitcode}"]
    finally:
        child.kill()
        child.join()
    return found


def _read_all(read: Callable[[Path], str], good: Path, files: Sequence[Path], pipe: Connection) -> None:
    read(good)
    before = peak_memory()
    for file in files:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # noqa: PTH123
            result = _outcome(read, file)
        pipe.send(result)
    grown = (peak_memory() - before) // 1024
    pipe.send(f"value {grown} MiB" if grown < GROWTH else f"fault {grown} MiB more memory")


def _outcome(read: Callable[[Path], str], file: Path) -> str:
    try:
        return f"value {read(file)}"
    except UserError as error:
        return f"line {error}" if "\n" not in str(error) and len(str(error)) < 2000 else f"fault lines: {error}"
    except BaseException as error:  # what it is, is what is asked
        return f"fault {type(error).__name__}: {error}"[:500]
