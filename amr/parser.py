"""The configuration parser, with every mistake told in one line."""

import inspect
import re
from pydoc import locate
from typing import Any, NoReturn, cast

from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser

from amr.errors import UserError


class OneLineParser(LightningArgumentParser):
    """Reports a mistake as one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises `UserError`."""
        raise UserError(self._explain(message))

    def _explain(self, message: str) -> str:
        """The parser's message without the values it dumps, with the allowed keys where one is unknown."""
        unknown = re.search(r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'", message)
        if unknown:
            key = unknown[1] or unknown[2]
            parent = key.rpartition(".")[0]
            siblings = {action.dest for action in self._leaves() if action.dest.rpartition(".")[0] == parent}
            siblings -= {"model.num_classes"}  # linked to the data's
            return f"{key}: unknown key; allowed are {', '.join(sorted(siblings))}"
        where, _, _ = message.partition("Does not validate against")
        bullets = re.findall(
            r"^ *- (.*(?:\n(?! *- ).*)*)", message.partition("Errors:")[2].partition("Given value")[0], re.M
        )
        reasons = [bullet for bullet in bullets if "NoneType" not in bullet]
        text = _one_line(f"{where} {'; or '.join(reasons)}" if reasons else message)
        text = re.sub(r'^Parser key "([\w.]+)":', r"\1:", text)
        option = re.search(r"Option '(\w+)' is not accepted", text)
        if option and (classes := re.findall(r"<class '([\w.]+)'>", message.partition("Errors:")[0])):
            parameters = inspect.signature(cast(type, locate(classes[-1]))).parameters
            allowed = [name for name in parameters if "args" not in name]
            hint = f"allowed are {', '.join(allowed)}" if allowed else "see --data.help CLASS"
            text = text.replace(option[0], f"unknown key '{option[1]}', {hint}")
        return text

    def _leaves(self) -> list[Any]:
        """Actions of this parser and its subcommands."""
        subparsers = [p for a in self._actions if isinstance(a.choices, dict) for p in a.choices.values()]
        return [action for parser in (self, *subparsers) for action in parser._actions]

    def instantiate_classes(self, *args: Any, **kwargs: Any) -> Namespace:
        """As the parent's, but what a class refuses is told as one line."""
        try:
            return super().instantiate_classes(*args, **kwargs)
        except UserError:
            raise
        except ValueError as error:  # an optional argument's type is a union, whose own error wraps the members'
            if not str(error).startswith("Does not validate against"):
                raise
            raise UserError(self._explain(str(error))) from error


def _one_line(message: str) -> str:
    return re.sub(r"\s+", " ", message).strip()
