"""Objects that know how they were made, so that a checkpoint can say how to make them again."""

import inspect
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Self


class NotPlainError(Exception):
    """An argument that a configuration cannot hold; the message names it."""


class Recorded:
    """Keeps the arguments that an object was made with, for `description`.

    It overrides `__new__`, not `__init__`, whose signature the configuration parser reads.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Notes the arguments."""
        instance = super().__new__(cls)
        object.__setattr__(instance, "_given", (args, kwargs))  # nn.Module's own needs its __init__ first
        return instance


def description(instance: Recorded, *, without: int = 0) -> dict[str, Any]:
    """What a configuration would say to make this object again.

    Args:
        instance: The object.
        without: Leading parameters to leave out, which whoever makes it again gives.

    Returns:
        `class_path`, and `init_args` with plain values only: numbers, strings, None, lists and dictionaries of them,
        and the descriptions of other recorded objects.

    Raises:
        NotPlainError: An argument is none of these, or the class is not a module's own.
    """
    kind = type(instance)
    if "<" in kind.__qualname__:
        raise NotPlainError(f"{kind.__name__} is defined inside a function")
    args, kwargs = instance._given  # type: ignore[attr-defined]
    signature = inspect.signature(kind.__init__)
    bound = signature.bind(instance, *args, **kwargs)
    parameters = list(bound.arguments)[1 + without :]
    init_args: dict[str, Any] = {}
    for name in parameters:
        value = bound.arguments[name]
        match signature.parameters[name].kind:
            case inspect.Parameter.VAR_KEYWORD:
                init_args |= {key: _plain(each, f"{kind.__name__}.{key}") for key, each in value.items()}
            case inspect.Parameter.VAR_POSITIONAL:
                raise NotPlainError(f"{kind.__name__} takes *{name}")
            case _:
                init_args[name] = _plain(value, f"{kind.__name__}.{name}")
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": init_args}


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Recorded):
        return description(value)
    if isinstance(value, list | tuple):
        return [_plain(each, f"{where}[{i}]") for i, each in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(each, f"{where}.{key}") for key, each in value.items()}
    raise NotPlainError(f"{where} is a {type(value).__name__}")
