"""`amr configs`: lists the shipped configurations, and copies one to edit."""

import argparse
from pathlib import Path

from amr.utils.errors import UserError
from amr.utils.files import write_bytes
from amr.utils.names.configs import config_folder, find_config, shipped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.add_argument("action", nargs="?", choices=("list", "copy"), default="list", help="what to do (list)")
    parser.add_argument("name", nargs="?", metavar="NAME", help="which to copy, such as methods/amr, or a short name")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the copy (the name, in the current folder)")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if options.action == "list":
        print(listing())
        return 0
    if options.name is None:
        raise UserError("configs copy: must have a NAME; amr configs lists them")
    source = find_config(options.name, "configs copy NAME")
    target: Path = options.out or Path(source.name)
    if target.exists():
        raise UserError(f"--out={target}: is there already; must be a new file")
    write_bytes(target, source.read_bytes())
    print(f"{target}: a copy of {options.name}; --config {target} uses it")
    return 0


def listing() -> str:
    """Every configuration by name, with the first line of its comment."""
    lines = [f"{config_folder()}:"]
    for name, path in shipped().items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        lines.append(f"  {name:<30}{first.removeprefix('#').strip() if first.startswith('#') else ''}".rstrip())
    return "\n".join(lines)
