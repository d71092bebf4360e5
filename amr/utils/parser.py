"""The configuration parser, which reports every mistake in one line."""

import copy
import inspect
import re
import sys
from enum import Enum
from typing import Any, NoReturn, cast

import yaml
from jsonargparse import Namespace, set_dumper, set_parsing_settings
from pytorch_lightning.cli import LightningArgumentParser

from amr.utils.errors import UserError

# jsonargparse refuses, and does not only warn about, import paths of its own list, such as `subprocess`; and what looks
# like a class in a value of any type stays a dict.
set_parsing_settings(import_path_denylist=[], instantiate_subclass_spec_in_any=False)


LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Reads YAML that amr itself has just written: ten times as fast as PyYAML's own parser."""


class _Dumper(yaml.SafeDumper):
    """Writes what YAML has no type for, such as an enumeration's member or a time span, as its value or its text."""


def _represent(dumper: yaml.SafeDumper, value: object) -> yaml.Node:
    return dumper.represent_data(value.value if isinstance(value, Enum) else str(value))


_Dumper.add_multi_representer(object, _represent)


def dump_yaml(data: Any, *, ascii_only: bool = False) -> str:
    """YAML of plain types, in the given order; other characters than ASCII's as escapes, if asked."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=not ascii_only)
    return text


set_dumper("yaml", dump_yaml)


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
            return f"{key}: unknown key; must be one of {', '.join(sorted(siblings))}"
        where, _, _ = message.partition("Does not validate against")
        bullets = re.findall(
            r"^ *- (.*(?:\n(?! *- ).*)*)", message.partition("Errors:")[2].partition("Given value")[0], re.M
        )
        reasons = [bullet for bullet in bullets if "NoneType" not in bullet]
        text = _one_line(f"{where} {'; or '.join(reasons)}" if reasons else message)
        text = re.sub(  # see `amr.utils.trust.only_trusted`
            r"denied by the '\*' entry .* to allow it\.?", "it is neither of amr nor under a --trust PREFIX", text
        )
        text = re.sub(r'^Parser key "([\w.]+)":', r"\1:", text)
        option = re.search(r"Option '(\w+)' is not accepted", text)
        names = re.findall(r"<class '([\w.]+)\.(\w+)'>", message.partition("Errors:")[0])
        # The message quotes values, too: nothing is imported for its sake.
        classes = [
            found for module, name in names if isinstance(found := getattr(sys.modules.get(module), name, 0), type)
        ]
        if option and classes:
            allowed = [name for name in inspect.signature(classes[-1]).parameters if "args" not in name]
            hint = f"must be one of {', '.join(allowed)}" if allowed else "see --data.help CLASS"
            text = text.replace(option[0], f"unknown key '{option[1]}', {hint}")
        return text

    def _leaves(self) -> list[Any]:
        """Actions of this parser and its subcommands."""
        subparsers = [p for a in self._actions if isinstance(a.choices, dict) for p in a.choices.values()]
        return [action for parser in (self, *subparsers) for action in parser._actions]

    def parse_object(self, obj: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Same as the parent's, but keeps the object; the parent replaces nested dictionaries by namespaces."""
        parsed: Namespace = super().parse_object(copy.deepcopy(obj), *args, **kwargs)
        return parsed

    def instantiate_classes(self, *args: Any, **kwargs: Any) -> Namespace:
        """Same as the parent's `instantiate`, but reports in one line what a class refuses.

        Lightning 2.6 calls it by this name, which jsonargparse 4.49 deprecates with a page of warnings.
        """
        try:
            return cast(Namespace, self.instantiate(*args, **kwargs))
        except UserError:
            raise
        except ValueError as error:  # an optional argument's type is a union, whose own error wraps the members'
            if not str(error).startswith("Does not validate against"):
                raise
            raise UserError(self._explain(str(error))) from error


def _one_line(message: str) -> str:
    return re.sub(r"\s+", " ", message).strip()
