"""Malformed files by seeded chance, and what must not come of them: a traceback, a signal, a hang."""

import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amr.utils.errors import UserError

SECONDS = 60  # after which a try is called a hang; each takes some milliseconds
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 10**30, 10**299, 1e308, -1e308, float("nan"), float("inf"), 2**31, 2**63),
    *("", "x", "\0", "\ud800", "../../x", "/etc/passwd", "x" * 300, "\u202e\n\r\x1b[31m", "1" * 5000, "NaN"),
    *([], {}, [[]], [None], {"": ""}, ["x", 1], [{"a": [1]}], {"a": {"b": {}}}),
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut off, taken out, doubled or put in."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not content:
            break
        start = rng.randrange(len(content))
        size = min(rng.choice((1, 2, 4, 8, 64, 1024)), len(content) - start)
        match rng.randrange(6):
            case 0:
                content[start] ^= 1 << rng.randrange(8)
            case 1:
                del content[start:]
            case 2:
                del content[start : start + size]
            case 3:
                content[start:start] = content[start : start + size]
            case 4:
                content[start : start + size] = rng.choice((b"\0", b"\xff", b"9", b"[", b"\x7f")) * size
            case _:
                content[start : start + size] = rng.randbytes(size)
    return bytes(content)


def altered(value: Any, rng: random.Random) -> Any:
    """A copy of nested dicts and lists, somewhere in which a value is odd, gone or doubled."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not places:
            return rng.choice(ODD)
        node, key = rng.choice(places)
        try:
            match rng.randrange(4):
                case 0:
                    del node[key]
                case 1 if isinstance(node, list):
                    node.append(node[key])
                case _:
                    node[key] = rng.choice(ODD)
        except (IndexError, KeyError):  # taken out before
            continue
    return value


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from _places(node[key])


def hammer(tries: int, spoil: Callable[[random.Random], Path | str], read: Callable[[], object], seed: int = 0) -> int:
    """Spoils and reads; each time it is read, or refused in one line.

    Args:
        tries: How often.
        spoil: Spoils a file and returns what an error must name: the file, or a folder above it; or nothing, as text.
        read: Reads it.
        seed: Of all that is drawn.

    Returns:
        How many were refused.
    """
    refused = 0
    for number in range(tries):
        rng = random.Random(f"{seed} {number}")
        where = spoil(rng)
        try:
            with _no_longer_than(SECONDS, f"try {number}"):
                read()
        except UserError as error:
            refused += 1
            if {"\n", "\0"} & set(str(error)) or str(where) not in str(error):
                raise AssertionError(f"try {number}: not a line that names {where}: {error}") from error
        except Exception as error:
            raise AssertionError(f"try {number}: {type(error).__name__}: {error}") from error
    return refused


@contextmanager
def _no_longer_than(seconds: int, what: str) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise AssertionError(f"{what}: still going after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
