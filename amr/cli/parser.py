"""The parser of every command that is not Lightning's."""

import argparse
from typing import Any

from amr.utils.errors import UserError
from amr.utils.names.configs import did_you_mean


class Parser(argparse.ArgumentParser):
    """A command's parser: no abbreviations, and a mistake is one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raises the mistake; `amr.cli.outcome` prints it."""
        hint = ""
        if message.startswith("unrecognized arguments: --"):
            word = message.split()[2].partition("=")[0]
            hint = did_you_mean(word, self._option_string_actions)
        raise UserError(f"{message}{hint}; see {self.prog} --help")
