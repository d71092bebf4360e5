"""The parser of every command that is not Lightning's, and the options that several have."""

import argparse
import re
from pathlib import Path
from typing import Any

from amr.utils.errors import UserError
from amr.utils.names.configs import did_you_mean
from amr.utils.names.places import checkpoint_of
from amr.utils.trust import TRUST


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
        raise UserError(f"{self._told(message)}{hint}; see {self.prog} --help")

    def _told(self, message: str) -> str:
        """Argparse's message in the form that all of amr's have."""
        if missing := re.fullmatch(r"the following arguments are required: (.*)", message):
            return f"{missing[1]}: must be given"
        if not (about := re.fullmatch(r"argument ([^:]*): (.*)", message, re.DOTALL)):
            return message
        name = about[1].split("/")[0]
        if choice := re.fullmatch(r"invalid choice: ('.*'|\S+) \(choose from (.*)\)", about[2]):
            given, choices = choice[1].strip("'"), choice[2].replace("'", "")
            return f"{name}={given}: must be one of {choices}{did_you_mean(given, choices.split(', '))}"
        if kind := re.fullmatch(r"invalid (\w+) value: '(.*)'", about[2]):
            return f"{name}={kind[2]}: must be of type {kind[1]}"
        return f"{name}: must have {about[2].removeprefix('expected ')}"


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds what names a checkpoint, and the data that goes with it."""
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="a run's folder, or a checkpoint of it")
    parser.add_argument("--ckpt", "--ckpt_path", type=Path, metavar="RUN", help="the same, as an option")
    about = "other data than the run's own: a configuration's file or name, or a class's import path"
    parser.add_argument("--data", metavar="CONFIG", help=about)
    parser.add_argument("--trust", action="append", default=[], metavar="PREFIX", help=TRUST)


def given_checkpoint(options: argparse.Namespace) -> Path:
    """The checkpoint that a command is given, by what `add_checkpoint` adds; its data are looked for, too.

    Raises:
        UserError: None or two are given, or it does not exist, or the data do not.
    """
    from amr.cli.keys.check import data_argument

    if (options.run is None) == (options.ckpt is None):
        problem = "is given twice" if options.run else "must be given"
        raise UserError(f"--ckpt: {problem}; name a run's folder or a checkpoint, such as runs/amr, once")
    if options.data is not None:
        data_argument(options.data)
    return checkpoint_of(options.run or options.ckpt, "--ckpt")
