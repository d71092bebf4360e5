"""The process's standard streams, whatever they are connected to."""

import io
import os
import sys


def prepare_streams() -> None:
    """Connects a closed stream to /dev/null, and has characters that the encoding lacks written as escapes.

    The next file that is opened would take a closed stream's number, and child processes would write into that file.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def problem_of_stdout(after: OSError | None = None) -> str | None:
    """Why stdout cannot be written: its disk is full, or its reader is gone; None if it can.

    Args:
        after: What a write to an unknown file has raised. Then a line end is written, for the failed text is forgotten.
    """
    try:
        sys.stdout.flush()
        if after is not None and after.filename is None:
            os.write(1, b"\n")
    except OSError as error:
        return error.strerror or str(error)
    return None


def discard_stdout() -> None:
    """Connects stdout to /dev/null: the interpreter would complain once more as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
