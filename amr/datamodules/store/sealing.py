"""A file that carries the SHA-256 of itself near its beginning and again near its end, so that it can be copied alone.

The digest is taken with zeros in its place. Files are read a piece at a time, whatever their size.
"""

import hashlib
from pathlib import Path
from typing import BinaryIO

NO_DIGEST = b"0" * 64
_ENDS = 2**20  # bytes at either end of a file within which the digest lies
_PIECE = 2**20


def seal(file: BinaryIO) -> None:
    """Put the digest in the two places where the written file has `NO_DIGEST`.

    Args:
        file: Open for writing, by its name.
    """
    file.flush()
    with Path(file.name).open("rb") as content:
        places, digest = _places(content, NO_DIGEST), _digest(content, NO_DIGEST)
    for place in places:
        file.seek(place)
        file.write(digest)


def is_sealed(path: Path, digest: bytes) -> bool:
    """Whether a file is as it was sealed with this digest.

    Raises:
        OSError: It cannot be read.
        ValueError: It does not have the digest at both ends.
    """
    with path.open("rb") as file:
        return len(digest) == len(NO_DIGEST) and _digest(file, digest) == digest


def _places(file: BinaryIO, digest: bytes) -> tuple[int, int]:
    tail = max(file.seek(0, 2) - _ENDS, 0)
    file.seek(tail)
    last = tail + file.read().rindex(digest)
    file.seek(0)
    return file.read(_ENDS).index(digest), last


def _digest(file: BinaryIO, digest: bytes) -> bytes:
    summed, begin = hashlib.sha256(), 0
    for place in _places(file, digest):
        _add(summed, file, begin, place)
        summed.update(NO_DIGEST)
        begin = place + len(digest)
    _add(summed, file, begin, file.seek(0, 2))
    return summed.hexdigest().encode()


def _add(summed: "hashlib._Hash", file: BinaryIO, begin: int, end: int) -> None:
    file.seek(begin)
    while begin < end and (piece := file.read(min(_PIECE, end - begin))):
        summed.update(piece)
        begin += len(piece)
