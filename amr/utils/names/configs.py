"""The configurations that come with amr, found by name from any folder."""

import difflib
import re
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

from amr.utils.errors import UserError

SUFFIXES = (".yaml", ".yml")
RUN_FOLDERS = ("data", "model", "trainer", "methods")
"""Folders of the configurations that `amr fit` takes."""


def config_folder() -> Path:
    """Where the shipped configurations lie: inside an installed package, or beside it in a checkout.

    Raises:
        UserError: They are in neither place.
    """
    package = Path(__file__).parents[2]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "methods").is_dir():
            return folder
    raise UserError(f"{package / 'configs'}: the configurations of amr are not there; install amr again")


@cache
def shipped() -> dict[str, Path]:
    """Every shipped configuration by its full name, such as `methods/amr`."""
    folder = config_folder()
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.glob("*/*.yaml"))}


def find_config(given: str | Path, where: str = "--config", folders: Collection[str] = RUN_FOLDERS) -> Path:
    """The file that a user means by a path or a name.

    A file of that path comes first. A name is `methods/amr`, or `amr` where no other folder has one. The path of a file
    in the repository, such as `configs/methods/amr.yaml`, is a name, too, so that documented commands work anywhere.

    Args:
        given: Text that the user wrote.
        where: Beginning of a message.
        folders: Folders in which to look for a name that several configurations have.

    Raises:
        UserError: There is no such file and no such name, or several configurations have it.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path
    name = path.as_posix().removeprefix("./").removeprefix("configs/")
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    known = shipped()
    if name in known:
        return known[name]
    matches = [full for full in known if full.partition("/")[2] == name]
    matches = [full for full in matches if full.partition("/")[0] in folders] or matches
    if len(matches) == 1:
        return known[matches[0]]
    if matches:
        raise UserError(f"{where}={given}: must be one of {', '.join(matches)}; several configurations have this name")
    if path.is_dir():
        raise UserError(f"{where}={given}: must be a file, this is a folder")
    hint = did_you_mean(name, {*known, *(full.partition("/")[2] for full in known)})
    raise UserError(
        f"{where}={given}: no such file, and no configuration of amr has this name{hint}; amr configs lists them"
    )


def data_source(given: str | Path, where: str = "--data") -> Path | str:
    """Data that a user names: a configuration's file, or the import path of a class.

    Args:
        given: A configuration's file or name, such as `synthetic`, or a class's import path.
        where: Beginning of a message.

    Raises:
        UserError: It is none of them.
    """
    is_path = Path(given).expanduser().is_file() or str(given).endswith(SUFFIXES)
    if not is_path and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", str(given)):
        return str(given)
    try:
        return find_config(given, where, ("data",))
    except UserError as error:
        raise UserError(f"{error}; must be a class, or a configuration's file or name") from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Addition to a message if a known word is close: `; did you mean X?`, or nothing."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
