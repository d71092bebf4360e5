"""The keys of `fit` and of the classes it builds, as data: what help, completion and early checks read without torch.

`python -m amr.cli.keys.schema` rewrites `schema.json` from the parser and the docstrings; a test compares the two.
"""

import json
import re
import sys
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, NotRequired, TypedDict

UNIONS = (typing.Union, types.UnionType)
FILE = Path(__file__).with_name("schema.json")
_OURS = {  # in place of Lightning's texts, which speak of what is not there
    "seed_everything": "Seed of every random choice of the run, data included.",
    "ckpt_path": "`fit`: `last` resumes the run of this name, a file resumes from it. Otherwise the checkpoint to use.",
    "weights_only": "Always true: amr's checkpoints hold tensors and plain values.",
    "data": "The data module: a class of amr.datamodules, or your own.",
}


class Key(TypedDict):
    """One key.

    Attributes:
        type: Its type, for people.
        default: Its default, as YAML would write it; absent where the key is required.
        help: One sentence or more.
        classes: Classes of amr that its value may be, by their public path.
        nested: `dict` or `list` where the value holds several such classes.
        choices: All its values, where they are few.
        foreign: Whether classes of other packages may be its value, too.
    """

    type: str
    help: str
    default: NotRequired[str]
    classes: NotRequired[list[str]]
    nested: NotRequired[str]
    choices: NotRequired[list[str]]
    foreign: NotRequired[bool]


class Built(TypedDict):
    """One class that a configuration can name."""

    help: str
    keys: dict[str, Key]


class Schema(TypedDict):
    """The whole schema: `fit`'s keys, such as `trainer.max_epochs`, and the classes by their public path."""

    keys: dict[str, Key]
    classes: dict[str, Built]


@cache
def read() -> Schema:
    """The schema that comes with this version."""
    schema: Schema = json.loads(FILE.read_text(encoding="utf-8"))
    return schema


def build() -> Schema:
    """The schema of the code as it is; imports everything."""
    from amr.cli.fit import parser_of

    classes: dict[str, Built] = {}
    keys = _keys(parser_of("fit"), "", classes)
    return {"keys": keys, "classes": dict(sorted(classes.items()))}


def _keys(parser: Any, prefix: str, classes: dict[str, Built]) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for action in parser._actions:
        name = action.dest.removeprefix(prefix)
        kind = type(action).__name__
        if kind in ("ActionTypeHint", "_ActionConfigLoad") and action.option_strings and action.dest.startswith(prefix):
            if kind == "_ActionConfigLoad":  # a group: its keys come by themselves
                continue
            keys[name] = _key(action, classes)
    return keys


def _key(action: Any, classes: dict[str, Built]) -> Key:
    hint = action._typehint
    key: Key = {"type": _type_name(hint), "help": _OURS.get(action.dest) or _one_line(action.help)}
    if action.required is not True and action.default != "==SUPPRESS==":
        key["default"] = _default(action.default)
    if choices := _choices(hint):
        key["choices"] = choices
    bases, nested = _bases(hint)
    if bases:
        found = sorted({path for base in bases for path in _subclasses(base)})
        if found:
            key["classes"] = found
        key["foreign"] = any(_is_open(base) for base in bases)
        if nested:
            key["nested"] = nested
        for path in found:
            _add_class(path, classes)
    return key


def _add_class(path: str, classes: dict[str, Built]) -> None:
    if path in classes:
        return
    from amr.utils.parser import OneLineParser

    kind = _resolve(path)
    classes[path] = {"help": _summary(kind), "keys": {}}  # first: a class may hold its like
    parser = OneLineParser()
    parser.add_class_arguments(kind, "x", skip=_given(kind))
    classes[path]["keys"] = _keys(parser, "x.", classes)


def _given(kind: type) -> set[str | int]:
    """Parameters that the model gives, not the configuration."""
    from amr.fusion import Fusion

    return {2} if issubclass(kind, Fusion) else set()


def _resolve(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(__import__(module, fromlist=[name]), name)
    return found


def _choices(hint: Any) -> list[str]:
    """The values of a `Literal`, or of one that may be null; none of any other type."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return ["null" if value is None else str(value) for value in arguments]
    parts = [["null"] if part is type(None) else _choices(part) for part in arguments]
    return [value for part in parts for value in part] if typing.get_origin(hint) in UNIONS and all(parts) else []


def _bases(hint: Any) -> tuple[list[type], str]:
    """Classes within a type, and whether they lie in a dictionary or a list."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and not arguments:
        return ([hint] if hint.__module__.partition(".")[0] in ("amr", "torch", "pytorch_lightning") else []), ""
    if origin is dict or getattr(origin, "__name__", "") == "Mapping":
        return _bases(arguments[1])[0], "dict"
    if origin is list:
        return _bases(arguments[0])[0], "list"
    if getattr(origin, "__name__", "") == "Callable" and arguments:
        return _bases(arguments[-1])
    bases: list[type] = []
    nested = ""
    for argument in arguments:
        if not isinstance(argument, list):
            more, inside = _bases(argument)
            bases += more
            nested = nested or inside
    return bases, nested


def _subclasses(base: type) -> list[str]:
    """Public classes of amr that are a base or derive from it."""
    import pytorch_lightning

    from amr import callbacks, datamodules, encoders, fusion, regularizers

    if base is pytorch_lightning.LightningDataModule:
        return [
            f"amr.datamodules.{name}" for name in datamodules.__all__ if name not in ("ClipDataModule", "ListedClips")
        ]
    if base.__module__.startswith("amr.") and base not in _abstract():
        modules = [regularizers] if issubclass(base, regularizers.Regularizer) else []
    else:
        modules = [encoders, fusion, regularizers, callbacks]
    found = [
        f"{module.__name__}.{name}"
        for module in modules
        for name in module.__all__
        if isinstance(kind := getattr(module, name), type)
        and issubclass(kind, base)
        and kind not in (*_abstract(), encoders.WrappedEncoder)  # which holds a module that no configuration names
    ]
    return found or ([f"{base.__module__}.{base.__qualname__}"] if base.__module__.startswith("amr.") else [])


def _abstract() -> tuple[type, ...]:
    """Base classes that users derive their own from."""
    from amr.encoders import Encoder
    from amr.fusion import Fusion
    from amr.regularizers import Regularizer

    return Encoder, Fusion, Regularizer


def _is_open(base: type) -> bool:
    """Whether users may give a class of their own: wherever a base class, not a final one, is asked for."""
    return base in _abstract() or not base.__module__.startswith("amr.")


def _type_name(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in UNIONS:  # sorted: Python's cache gives back int | float where float | int came first
        names = {_type_name(each) for each in arguments if each is not type(None)}
        return " | ".join([*sorted(names), *["null"] * (type(None) in arguments)])
    text = hint.__name__ if isinstance(hint, type) and not arguments else str(hint)
    text = re.sub(r"\b(?:[A-Za-z_]\w*\.)+", "", text)
    text = re.sub(r"Literal\[([^\]]*)\]", lambda m: m[1].replace("'", "").replace(", ", " | "), text)
    return text.replace("NoneType", "null").replace("None", "null")


def _default(value: Any) -> str:
    if isinstance(value, dict) and set(value) <= {"class_path", "init_args"}:
        inner = ", ".join(f"{k}: {_default(v)}" for k, v in value.get("init_args", {}).items())
        return str(value["class_path"]) + (f" {{{inner}}}" if inner else "")
    if hasattr(value, "as_dict"):
        return _default(value.as_dict())
    if isinstance(value, Path):
        return str(value)
    return json.dumps(value, default=str) if not isinstance(value, str) else value


def _summary(kind: type) -> str:
    return _one_line((kind.__doc__ or "").strip().partition("\n\n")[0])


def _one_line(text: str | None) -> str:
    text = re.sub(r"\s+", " ", text or "").strip()
    return re.sub(r" ?\((?:type|required|default|known subclasses)[^)]*\)$", "", text).replace("``", "`")


if __name__ == "__main__":
    content = json.dumps(build(), indent=1, sort_keys=False, ensure_ascii=False) + "\n"
    FILE.write_text(content, encoding="utf-8")
    sys.stdout.write(f"{FILE}: {len(content)} bytes\n")
