"""What of a command line is wrong, told before torch is imported: files, configurations, keys and classes."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amr.cli.keys.schema import Key, Schema, read
from amr.utils.errors import UserError
from amr.utils.names.configs import did_you_mean, find_config

_PLUMBING = ("class_path", "init_args", "dict_kwargs", "help")
_FLAGS = ("--print_config", "--trust")


def check(arguments: list[str]) -> list[str]:
    """Checks the arguments of `fit` and its like, after the command's name.

    Args:
        arguments: As typed.

    Returns:
        The arguments with every `--config NAME` replaced by the file's path.

    Raises:
        UserError: An unknown key or class of amr, a configuration that is not there, or a file with an unknown key.
    """
    schema = read()
    keys = schema["keys"]
    resolved = with_files(arguments)
    files = [v for option, v in _options(resolved) if option == "config" and v and not _written_out(v)]
    contents = [_content(Path(file)) for file in files]
    foreign = _foreign(resolved, contents)
    for content, file in zip(contents, files, strict=True):
        for key, given in _leaves(content):
            _check_key(schema, keys, key, given, foreign, f"{file}: ")
    for option, value in _options(resolved):
        if option != "config":
            _check_key(schema, keys, option, value, foreign, "--")
    return resolved


def with_files(arguments: list[str]) -> list[str]:
    """The arguments with every `--config NAME` replaced by the file's path; one that is written out stays."""
    resolved: list[str] = []
    previous = ""
    for argument in arguments:
        option, has_value, value = argument.partition("=")
        if previous in ("--config", "-c") and not _written_out(argument):
            resolved.append(str(find_config(argument)))
        elif option == "--config" and has_value and not _written_out(value):
            resolved.append(f"--config={find_config(value)}")
        else:
            resolved.append(argument)
        previous = argument
    return resolved


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
        keys = {k: v for path in key["classes"] for k, v in schema["classes"][path]["keys"].items()}


def _longest(keys: Mapping[str, Key], words: list[str]) -> str | None:
    """The longest key that is the words' beginning."""
    for count in range(len(words), 0, -1):
        if (name := ".".join(words[:count])) in keys:
            return name
    return None


def _unknown(keys: Mapping[str, Key], taken: list[str], words: list[str], where: str) -> None:
    """Raises, with what is near and what is allowed at the place of the first wrong word."""
    right = 0
    while right < len(words) and any(k.startswith(".".join(words[: right + 1]) + ".") for k in keys):
        right += 1
    parent = ".".join(words[:right])
    below = [k.removeprefix(f"{parent}.") for k in keys if not parent or k.startswith(f"{parent}.")]
    siblings = sorted({k.split(".")[0] for k in below})
    full = ".".join([*taken, *words])
    hint = did_you_mean(words[min(right, len(words) - 1)], siblings)
    raise UserError(f"{where}{full}: unknown key{hint or '; must be one of ' + ', '.join(siblings)}")


def _check_class(key: Key, name: str, value: Any, where: str) -> None:
    """Raises where a value names a class that amr does not have."""
    if isinstance(value, Mapping):
        value = value.get("class_path")
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][\w.]*", value) or value in ("null", "true", "false"):
        return
    known = {path.rpartition(".")[2]: path for path in key["classes"]}
    if "." in value and not value.startswith("amr."):
        return
    short = value.rpartition(".")[2]
    if short not in known and not value.endswith((".yaml", ".yml")) and not Path(value).exists():
        hint = did_you_mean(short, known)
        raise UserError(f"{where}{name}={value}: no such class{hint}; must be one of {', '.join(known.values())}")
