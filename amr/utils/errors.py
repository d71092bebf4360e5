"""The exceptions that end a command in order: a user's mistake, and a signal."""

from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: a config key, a file, a clip, a checkpoint.

    The message is one line that names what is wrong and what is allowed. The command line prints it and exits with
    status 2; from Python it is an ordinary `ValueError`.
    """


class Stopped(Exception):  # noqa: N818 - it is no error
    """Training that ended in order, at a signal or because another rank's did; its state is saved.

    Args:
        message: One line for the user; empty on all ranks but the first, which speaks for them.
        signal: The signal's number, or 0.
    """

    def __init__(self, message: str = "", signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal

    @property
    def status(self) -> int:
        """Exit status: 128 plus the signal's number; 0 on the other ranks, otherwise the launcher would kill rank 0."""
        return 128 + self.signal if str(self) else 0


def listed(names: Iterable[str]) -> str:
    """Names in quotes, for a message; `none` if there are none."""
    return ", ".join(map(repr, names)) or "none"
