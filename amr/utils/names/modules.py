"""Imports objects of a user's own module, by their name on the command line: `my_module:make`."""

import functools
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from amr.utils.errors import UserError
from amr.utils.names.configs import did_you_mean

MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
"""`package.module:name`."""


def is_module(given: Any) -> bool:
    """Whether a text names something of a module, and no file that is there."""
    return isinstance(given, str) and MODULE.fullmatch(given) is not None and not Path(given).exists()


def imported(given: str, option: str) -> Any:
    """Object that a name in a user's own module stands for; a function is called without arguments.

    The module is looked for in the current folder first. The user has named it himself, so it is imported; nothing that
    a checkpoint names is.

    Args:
        given: `my_module:name`.
        option: How messages call it.

    Raises:
        UserError: There is no such module or name, or the function needs arguments.
    """
    if MODULE.fullmatch(given) is None:
        raise UserError(f"{option}={given}: must be a module and a name in it, such as my_module:make")
    path, _, name = given.partition(":")
    with _current_folder():
        try:
            there = find_spec(path) is not None
        except ModuleNotFoundError:
            there = False
        if not there:
            raise UserError(f"{option}={given}: no module {path!r} in this folder or installed; name one that is there")
        try:
            module = import_module(path)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{option}={given}: importing {path!r} failed: {_said(error)}") from error
        if not hasattr(module, name):
            public = [other for other in vars(module) if not other.startswith("_")]
            hint = did_you_mean(name, public) or f"; it has {', '.join(public[:8]) or 'nothing'}"
            raise UserError(f"{option}={given}: the module {path!r} has no {name!r}{hint}")
        found = getattr(module, name)
        if not (inspect.isroutine(found) or inspect.isclass(found) or isinstance(found, functools.partial)):
            return found
        try:
            return found()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{option}={given}: {name}() failed: {_said(error)}") from error


@contextmanager
def _current_folder() -> Iterator[None]:
    """Makes imports look in the current folder first, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _said(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
