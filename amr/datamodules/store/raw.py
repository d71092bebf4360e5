"""A picture without compression, as a binary PPM file: 8 bits per channel, RGB."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER = re.compile(rb"P6\n(\d{1,9}) (\d{1,9})\n255\n")
_LONGEST = 64  # bytes within which the header ends


def is_raw(file: Any) -> bool:
    """Whether a buffer holds a PPM file, and not a JPEG file."""
    return bytes(memoryview(file)[:2]) == b"P6"


def packed(pixels: NDArray[np.uint8]) -> bytes:
    """A picture (height, width, 3) as a file."""
    height, width, _ = pixels.shape
    return b"P6\n%d %d\n255\n%b" % (width, height, pixels.tobytes())


def unpacked(file: Any) -> NDArray[np.uint8]:
    """The picture (height, width, 3) in a buffer with a file, which it shares its memory with.

    Raises:
        ValueError: It holds no such file, or only a part of it.
    """
    header = _HEADER.match(bytes(memoryview(file)[:_LONGEST]))
    if header is None:
        raise ValueError("not a PPM file")
    width, height = int(header[1]), int(header[2])
    values = np.frombuffer(file, np.uint8, offset=header.end())
    if not width or not height or values.size != height * width * 3:
        raise ValueError("a PPM file that is not whole")
    return values.reshape(height, width, 3)
