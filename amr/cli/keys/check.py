"""Checks a command line before torch is imported: its files, configurations, keys and classes."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from amr.cli.keys.schema import Key, Schema, read
from amr.utils.errors import UserError
from amr.utils.names.configs import RUN_FOLDERS, data_source, did_you_mean, find_config, shipped

_PLUMBING = ("class_path", "init_args", "dict_kwargs", "help")
_FLAGS = ("--print_config", "--trust")
_PREPARE: dict[str, Key] = {
    "scheduler": {"type": "str | null", "help": "A Dask scheduler's address or JSON file, whose workers decode."},
    "convert": {"type": "str | null", "help": "Fill the store from this one, with other frames or spectrograms."},
    "verify": {"type": "bool", "help": "Only reread the store and compare its checksums."},
}


def check(arguments: Sequence[str], *, command: str = "fit") -> list[str]:
    """Checks the arguments of `fit` and its like, or of `prepare` or `benchmark`, after the command's name.

    Args:
        arguments: As typed.
        command: The command, which decides what keys there are.

    Returns:
        The arguments with every `--config NAME` replaced by the file's path, and `--data CONFIG` by its section.

    Raises:
        UserError: An unknown key or class of amr, a configuration that is not there, or a file with an unknown key.
    """
    schema = read()
    keys = {**schema["keys"]}
    if command == "prepare":
        keys = {"data": keys["data"], **_PREPARE}
    resolved = with_files(arguments)
    contents: list[tuple[str, dict[str, Any]]] = []
    for option, value in _options(resolved):
        if option == "config" and value and not _written_out(value):
            contents.append((f"{value}: ", _content(Path(value))))
        elif option == "data" and value and _written_out(value):
            contents.append(("--", {"data": json.loads(value)}))
    foreign = _foreign(resolved, [content for _, content in contents])
    for where, content in contents:
        for key, given in _leaves(content):
            if command != "prepare" or key.partition(".")[0] == "data":  # a run's configuration has other sections, too
                _check_key(schema, keys, key, given, foreign, where)
    for option, value in _options(resolved):
        if option != "config":
            _check_key(schema, keys, option, value, foreign, "--")
    return resolved


def with_files(arguments: Sequence[str], folders: Collection[str] = RUN_FOLDERS) -> list[str]:
    """The arguments with every `--config NAME` replaced by the file's path, and `--data CONFIG` by its section.

    Args:
        arguments: As typed; a configuration that is written out stays.
        folders: Folders in which to look for a name that several configurations have.
    """
    resolved: list[str] = []
    previous = ""
    for argument in arguments:
        option, has_value, value = argument.partition("=")
        if previous in ("--config", "-c") and not _written_out(argument):
            resolved.append(str(find_config(argument, folders=folders)))
        elif option == "--config" and has_value and not _written_out(value):
            resolved.append(f"--config={find_config(value, folders=folders)}")
        elif (
            previous == "--data"
            and not _is_class(argument)
            and (section := data_argument(argument)) != f"--data={argument}"
        ):
            resolved[-1] = section
        elif option == "--data" and has_value and not _is_class(value):
            resolved.append(data_argument(value))
        else:
            resolved.append(argument)
        previous = argument
    return resolved


def data_argument(given: str | Path, where: str = "--data") -> str:
    """`--data` for a configuration's file or name, with the section that the file has, or for a class.

    Raises:
        UserError: It is none of them, or the file has no `data` section.
    """
    source = data_source(given, where)
    if isinstance(source, str):
        return f"--data={source}"
    content = _content(source)
    section = content if "class_path" in content else content.get("data")
    if not isinstance(section, dict):
        raise UserError(f"{where}={given}: must be a configuration with a `data` section")
    return f"--data={json.dumps(section, default=str)}"


def _is_class(value: str) -> bool:
    """Whether a value of `--data` is for the parser as it is: a class, whatever its name, null, or a mapping."""
    known = {path.rpartition(".")[2] for path in read()["keys"]["data"].get("classes", [])}
    return value in known or value == "null" or _written_out(value) or _is_unknown_class(value)


def _is_unknown_class(value: str) -> bool:
    """Whether a value can only be a class by its bare name; similar names are suggested later."""
    return value.isidentifier() and not any(full.partition("/")[2] == value for full in shipped())


def _written_out(value: str) -> bool:
    """Whether a configuration is the mapping itself and not a file, as W&B's agent gives it."""
    return value.lstrip().startswith("{")


def _options(arguments: list[str]) -> Iterator[tuple[str, str | None]]:
    """Each option's key, without dashes and a list's `+`, and its value, None if it has none."""
    for position, argument in enumerate(arguments):
        if argument == "-c":
            argument = "--config"
        if not re.match(r"--\w", argument) or argument.partition("=")[0] in _FLAGS:
            continue
        key, has_value, value = argument[2:].partition("=")
        following = arguments[position + 1] if position + 1 < len(arguments) else None
        if not has_value:
            yield key.removesuffix("+"), following if following is None or not re.match(r"--\w", following) else None
        else:
            yield key.removesuffix("+"), value


def _content(path: Path) -> dict[str, Any]:
    from amr.utils.readers import read_yaml

    content = read_yaml(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of keys, such as `model:` and `data:`")
    return content


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a configuration, groups included; a class's arguments are checked as part of its key."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        yield name, value
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")


def _foreign(arguments: list[str], contents: list[dict[str, Any]]) -> set[str]:
    """Keys whose value is somewhere given as a class that is not amr's: what these take is not known here."""
    given = [(key.removesuffix(".class_path"), value) for key, value in _options(arguments)]
    for content in contents:
        given += [(k.removesuffix(".class_path"), v) for k, v in _leaves(content)]
    return {
        key.replace(".init_args", "")
        for key, value in given
        if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.]*\.\w+", value) and not value.startswith("amr.")
    }


def _check_key(schema: Schema, keys: Mapping[str, Key], option: str, value: Any, foreign: set[str], where: str) -> None:
    """Raises `UserError` unless an option's dotted key exists and its class, if it names one of amr's, does too."""
    words = option.split(".")
    taken: list[str] = []
    while True:
        name = _longest(keys, words)
        if name is None:
            if any(key.startswith(".".join(words) + ".") for key in keys):  # a group, such as `trainer`
                return
            _unknown(keys, taken, words, where)
            return
        taken += name.split(".")
        words = words[len(name.split(".")) :]
        key = keys[name]
        if not words:
            _check_choice(key, ".".join(taken), value, where)
        if not key.get("classes"):  # a plain value, or a class of another package: what is below is its own affair
            return
        if key.get("nested") == "dict" and words:  # a modality's name
            taken.append(words.pop(0))
        while words and words[0] in _PLUMBING:
            if words.pop(0) in ("help", "dict_kwargs"):
                return
            if not words:
                break
        if any(".".join(taken).startswith(f) for f in foreign):
            return
        if not words:
            _check_class(key, ".".join(taken), value, where)
            return
        keys = _keys_of([schema["classes"][path]["keys"] for path in key["classes"]])


def _keys_of(classes: Sequence[Mapping[str, Key]]) -> dict[str, Key]:
    """The keys that any of several classes has; where these differ in a key's choices, any value may be right."""
    keys: dict[str, Key] = {}
    for given in classes:
        for name, key in given.items():
            if name in keys and keys[name].get("choices") != key.get("choices"):
                key = {**key, "choices": []}
            keys[name] = key
    return keys


def _longest(keys: Mapping[str, Key], words: list[str]) -> str | None:
    """The longest key with which the words begin."""
    for count in range(len(words), 0, -1):
        if (name := ".".join(words[:count])) in keys:
            return name
    return None


def _unknown(keys: Mapping[str, Key], taken: list[str], words: list[str], where: str) -> None:
    """Raises an error with similar and allowed names at the place of the first wrong word."""
    right = 0
    while right < len(words) and any(k.startswith(".".join(words[: right + 1]) + ".") for k in keys):
        right += 1
    parent = ".".join(words[:right])
    below = [k.removeprefix(f"{parent}.") for k in keys if not parent or k.startswith(f"{parent}.")]
    siblings = sorted({k.split(".")[0] for k in below})
    full = ".".join([*taken, *words])
    hint = did_you_mean(words[min(right, len(words) - 1)], siblings)
    raise UserError(f"{where}{full}: unknown key{hint or '; must be one of ' + ', '.join(siblings)}")


def _check_choice(key: Key, name: str, value: Any, where: str) -> None:
    """Raises an error if a value is not among a key's choices."""
    choices = key.get("choices")
    if choices and isinstance(value, str) and value not in choices:
        raise UserError(f"{where}{name}={value}: must be one of {', '.join(choices)}{did_you_mean(value, choices)}")


def _check_class(key: Key, name: str, value: Any, where: str) -> None:
    """Raises an error if a value names a class that amr does not have."""
    if isinstance(value, Mapping):
        value = value.get("class_path")
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][\w.]*", value) or value in ("null", "true", "false"):
        return
    known = {path.rpartition(".")[2]: path for path in key["classes"]}
    if "." in value and not value.startswith("amr."):
        return
    short = value.rpartition(".")[2]
    if short not in known and not value.endswith((".yaml", ".yml")) and not Path(value).exists():
        configs = [full.partition("/")[2] for full in shipped() if full.startswith("data/")] if name == "data" else []
        hint = did_you_mean(short, [*known, *configs])
        raise UserError(f"{where}{name}={value}: no such class{hint}; must be one of {', '.join(known.values())}")
