"""The process's standard streams, whatever they are connected to; and the reporter, by which library code speaks.

The reporter writes to stderr. `status` and `Progress` say how work is getting on; `AMR_PROGRESS=0` and
`amr.progress(False)` turn them off. `note` says what a result must be read with, such as clips that were skipped, and
is never turned off.
"""

import io
import os
import re
import sys
import time
import warnings
from pathlib import Path

_KEY = re.compile(r"(model|data|trainer|robustness)\.[a-z]")  # how a message begins that names a key
PROGRESS = "AMR_PROGRESS"
"""The environment variable that turns progress off with 0; worker processes inherit it."""


def progress(shown: bool) -> None:
    """Turns progress and status lines on or off, in this process and those that it starts.

    Args:
        shown: Whether they are written to stderr.
    """
    os.environ[PROGRESS] = "1" if shown else "0"


def progress_shown() -> bool:
    """Whether progress is written; it is unless AMR_PROGRESS is 0."""
    return os.environ.get(PROGRESS, "1") != "0"


def note(text: str) -> None:
    """Writes a line to stderr that the reader of a result needs, such as what was left out of it."""
    print(text, file=sys.stderr, flush=True)


def status(text: str) -> None:
    """Writes a line to stderr on how work is getting on, unless progress is off."""
    if progress_shown():
        print(text, file=sys.stderr, flush=True)


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


def plain_warnings() -> None:
    """Makes a warning of amr's one line, `amr: what`, without the place in the code that gave it.

    Its messages name the key that they are about; a place in the package says nothing to the user of a command.
    """
    usual, package = warnings.formatwarning, str(Path(__file__).parents[1])

    def one_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, UserWarning) and (filename.startswith(package) or _KEY.match(str(message))):
            return f"amr: {' '.join(str(message).split())}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = one_line


def problem_of_stdout(after: OSError | None = None) -> str | None:
    """Why stdout cannot be written: its disk is full, or its reader is gone; None if it can.

    Args:
        after: Error of a write to an unknown file. Then a line end is written, because the failed text is lost.
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


class Progress:
    """Done, rate and time left on stderr: one rewritten line on a terminal, else a line every half minute."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self.started = self.printed = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self.started

    def advance(self, count: int) -> None:
        """Add to what is done."""
        self.done += count
        last = self.done >= self.total
        rate = self.done / max(self.seconds, 1e-9)
        left = "" if last or not rate else f", {span((self.total - self.done) / rate)} left"
        self._show(f", {rate:.1f} {self.unit}/s{left}", last=last)

    def at(self, part: str) -> None:
        """Says which part of the next piece is under way, where a piece takes long."""
        self._show(f", at {part}", last=False)

    def _show(self, rest: str, *, last: bool) -> None:
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if now - self.printed < (0.2 if terminal else 30) and not last:
            return
        if not progress_shown():
            return
        self.printed = now
        line = f"{self.title}: {self.done}/{self.total} {self.unit}{rest}"
        print(f"\r\033[K{line}" if terminal else line, end="\n" if last or not terminal else "", file=sys.stderr)
        sys.stderr.flush()


def span(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
