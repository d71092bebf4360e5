"""How an object was made, in the words of a configuration: class_path and init_args."""

import inspect
import math
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import PurePath
from typing import Any, Self

from amr.utils.errors import UserError

Description = dict[str, Any]
"""`{"class_path": str, "init_args": {name: value}}`; values are texts, numbers, booleans, None, lists, tuples,
mappings with keys of texts, and further descriptions."""


class Recorded:
    """Keeps how each object of a subclass was made.

    It is read when the object is made: what happens to the arguments or to the object later does not change it.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """The object, not initialised, with its description, or None for the latter if an argument is not plain."""
        new = super().__new__(cls)
        object.__setattr__(new, "_description", _describe(cls, args, kwargs))  # a module takes no attributes yet
        return new

    @property
    def description(self) -> Description | None:
        """The class and all arguments that were given; None if one of them has no place in a configuration."""
        found: Description | None = self.__dict__.get("_description")
        return found


def class_path(kind: type) -> str:
    """The import path of a class: from the package that offers it, where it does, else from the module.

    Raises:
        TypeError: It is declared in a function, so it has none.
    """
    if "<locals>" in kind.__qualname__:
        raise TypeError(f"{kind.__qualname__} can only be had from its function")
    package = kind.__module__.rpartition(".")[0]
    offered = getattr(sys.modules.get(package), kind.__qualname__, None) is kind
    return f"{package if offered else kind.__module__}.{kind.__qualname__}"


def recorded_class(description: Mapping[str, Any]) -> Any:
    """The class of a description, which has been checked by `amr.utils.trust`.

    Raises:
        UserError: It is none whose objects are recorded.
    """
    name = str(description["class_path"])
    module, _, attribute = name.rpartition(".")
    kind = getattr(import_module(module), attribute)
    if not (isinstance(kind, type) and issubclass(kind, Recorded) and isinstance(description.get("init_args"), dict)):
        raise UserError(f"checkpoint: {name[:200]} is no class that amr records")
    return kind


def _describe(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Description | None:
    try:
        bound = inspect.signature(cls.__init__).bind(None, *args, **kwargs)  # type: ignore[misc]
    except (TypeError, ValueError):  # the call itself says what is wrong
        return None
    kinds = {name: parameter.kind for name, parameter in bound.signature.parameters.items()}
    given = dict(list(bound.arguments.items())[1:])  # without self
    for name in [name for name in given if kinds[name] is inspect.Parameter.VAR_KEYWORD]:
        given |= given.pop(name)
    if any(kinds.get(name) in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY) for name in given):
        return None  # a configuration gives arguments by name
    try:
        return {"class_path": class_path(cls), "init_args": {name: _plain(value) for name, value in given.items()}}
    except (TypeError, RecursionError):
        return None


def _plain(value: Any) -> Any:
    """A copy of a value in a configuration's types.

    Raises:
        TypeError: It has none.
    """
    if isinstance(value, Recorded) and value.description is not None:
        return value.description
    if value is None or type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    if isinstance(value, Mapping) and all(type(key) is str and key != "class_path" for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise TypeError(type(value).__name__)
