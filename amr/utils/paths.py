"""Paths in a run's configuration: kept so that commands find them from any folder, and when the run's folder has moved.

config.yaml has them absolute. run.json says where the folder was, and which store was used; what is not found where it
was is looked for where it lay relative to the run's folder.
"""

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from amr.utils.names.places import in_folder
from amr.utils.readers import read_object

SECTIONS = ("data", "model", "robustness", "trainer")


def made_absolute(config: Mapping[str, Any], data: type) -> dict[str, Any]:
    """A configuration with absolute paths.

    A path is what the data module's class annotates as one (a folder that is not there yet, too), and any other text
    that names a file or a run's folder which is there, such as a checkpoint or weights.

    Args:
        config: The resolved configuration; its paths are relative to the current folder.
        data: The data module's class.
    """
    annotated = {
        name
        for base in data.__mro__
        if "__init__" in vars(base)
        for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items()
        if "Path" in str(parameter.annotation)
    }

    def absolute(key: tuple[str, ...], text: str) -> str:
        path = Path(text)
        if path.is_absolute() or text.startswith("~") or key[-1] == "class_path":
            return text
        if key[:2] == ("data", "init_args") and len(key) == 3 and key[2] in annotated:
            # What is not there is to be made, or is sought below the root.
            return str(Path.cwd() / path) if path.exists() or key[2] in ("root", "store") else text
        return str(Path.cwd() / path) if ("/" in text or path.suffix) and (_is_file(path) or _is_run(path)) else text

    return {
        name: _mapped(section, absolute, (name,)) if name in SECTIONS else section for name, section in config.items()
    }


def found_again(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A run's configuration with paths that are valid now: those that moved with the run, and its store.

    Args:
        config: Contents of config.yaml.
        folder: Folder of the run.
    """
    file = folder / "run.json"
    facts = read_object(file) if file.is_file() else {}
    before = facts.get("folder")

    def moved(_: tuple[str, ...], text: str) -> str:
        if not isinstance(before, str) or not Path(text).is_absolute() or _exists(Path(text)):
            return text
        there = Path(os.path.normpath(folder.resolve() / os.path.relpath(text, before)))
        return str(there) if _exists(there) else text

    found = {
        name: _mapped(section, moved, (name,)) if name in SECTIONS else section for name, section in config.items()
    }
    arguments = found["data"].get("init_args") if isinstance(found.get("data"), dict) else None
    if isinstance(arguments, dict) and "store" in arguments and arguments["store"] is None:
        store = facts.get("store")
        if isinstance(store, str) and _exists(Path(store := moved((), store))):
            arguments["store"] = store
    return found


def differing(before: Mapping[str, Any], now: Mapping[str, Any], key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and new values of what differs between two configurations of one shape."""
    for name, value in now.items():
        if isinstance(value, Mapping):
            yield from differing(before[name], value, f"{key}{name}.")
        elif value != before[name]:
            yield f"{key}{name}", value


def _mapped(value: Any, change: Callable[[tuple[str, ...], str], str], key: tuple[str, ...]) -> Any:
    """A copy with every text changed."""
    if isinstance(value, Mapping):
        return {name: _mapped(item, change, (*key, str(name))) for name, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change, key) for item in value]
    return change(key, value) if isinstance(value, str) else value


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a text that can be no path
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _is_run(path: Path) -> bool:
    return _exists(path) and in_folder(path) is not None
