"""`amr methods`: the table of all methods, or what is known of one; torch is not loaded."""

import argparse
import shutil
import textwrap
from collections.abc import Mapping

from amr.cli.keys import catalogue
from amr.cli.keys.catalogue import Method
from amr.cli.keys.schema import read as read_schema
from amr.utils.errors import UserError
from amr.utils.names.configs import did_you_mean, find_config

LABELS = ("measures", "acts on", "rows per clip", "needs", "excludes", "released code")
NARROW, WIDE = 60, 160  # columns of the terminal that are heeded


class Methods(dict[str, Method]):
    """Facts of each method by the name of its option; printed, it is the table."""

    def __str__(self) -> str:
        return table(self)


def methods() -> Methods:
    """All methods: what each measures and acts on, what a step costs, what it needs and excludes.

    Returns:
        A dictionary by the name of the method's option; `print(amr.methods())` shows it as a table.
    """
    return Methods(catalogue.read())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="one method, such as umt: its options, config, citation"
    )


def run(options: argparse.Namespace) -> int:
    """Prints the table, or one method."""
    print(table(methods()) if options.name is None else described(options.name))
    return 0


def table(known: Mapping[str, Method], width: int | None = None) -> str:
    """The methods as text, a block each; rows per clip as docs/methods/README.md explains them.

    Args:
        known: Methods by name.
        width: Columns; None for the terminal's.
    """
    lines = []
    for name, method in known.items():
        lines += [f"{name}: {method['title']}", *_facts(name, method, width or _columns())]
    legend = (
        "rows per clip: forward rows in a step with 2 modalities (with 3, where that differs); naive fusion has 1, 1"
    )
    return "\n".join(
        [*lines, "", *textwrap.wrap(legend, width or _columns()), "amr methods NAME: one method's options"]
    )


def described(name: str) -> str:
    """One method: its facts, its options with their defaults, its configuration and its citation.

    Raises:
        UserError: There is no such method.
    """
    known, width = catalogue.read(), _columns()
    if name not in known:
        raise UserError(f"{name}: no such method{did_you_mean(name, known)}; must be one of {', '.join(known)}")
    method = known[name]
    lines = [f"{name}: {method['title']}", *textwrap.wrap(method["about"], width), ""]
    lines += [*_facts(name, method, width), "", f"options, as --model.{name}.OPTION:"]
    for option, key in read_schema()["classes"][method["path"]]["keys"].items():
        default = f"= {key['default']}" if "default" in key else "(required)"
        lines.append(f"  {option} {default}  [{key['type']}]")
        lines += textwrap.wrap(key["help"], width, initial_indent="    ", subsequent_indent="    ")
        if option in method["ranges"]:
            lines.append(f"    amr benchmark --tune: {method['ranges'][option]}")
    config = find_config(f"methods/{name}")
    lines += ["", f"--config {name} ({config}):"]
    lines += [f"  {line}" for line in config.read_text(encoding="utf-8").splitlines()]
    lines += ["", *textwrap.wrap(method["citation"], width), f"More: docs/methods/{method['page']}"]
    return "\n".join(lines)


def _facts(name: str, method: Method, width: int) -> list[str]:
    _, measures, acts, head, encoders, passes, needs, excludes, released = catalogue.cells(name, method)
    rows = f"head {head}, each encoder {encoders}{f'; per epoch: {passes}' if passes else ''}"
    lines = []
    for label, text in zip(LABELS, (measures, acts, rows, needs, excludes, released), strict=True):
        if text:
            lines += textwrap.wrap(text, width, initial_indent=f"  {label + ':':<15}", subsequent_indent=" " * 17)
    return lines


def _columns() -> int:
    return max(NARROW, min(WIDE, shutil.get_terminal_size((120, 24)).columns))
