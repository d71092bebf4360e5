"""The parser of every command that is not Lightning's."""

import argparse

from amr.utils.errors import UserError


class Parser(argparse.ArgumentParser):
    """Reports a mistake as one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raises the mistake; `amr.cli.outcome` prints it."""
        raise UserError(f"{message}; see {self.prog} --help")
