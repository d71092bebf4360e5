"""One stored frame: a JPEG file, or a PPM file if frames are raw."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from amr.datamodules.store.raw import is_raw, packed, unpacked

Box = tuple[int, int, int, int]


def frame_size(file: Any) -> tuple[int, int]:
    """Height and width of a stored frame, from its header.

    Raises:
        ValueError: It has none.
    """
    if is_raw(file):
        height, width, _ = unpacked(file).shape
        return height, width
    return _jpeg_size(memoryview(file).cast("B"))


def cut(file: Any, box: Box) -> bytes:
    """The part of a raw frame in a box (top, left, height, width), as a raw frame."""
    top, left, height, width = box
    return packed(unpacked(file)[top : top + height, left : left + width])


def raw_pixels(file: Tensor, *, grayscale: bool) -> Tensor:
    """A raw frame (bytes,) as (channels, h, w) uint8, channels last in memory.

    Grey levels are (19595 R + 38470 G + 7471 B) / 65536, rounded; those of a JPEG file are its own luminance, which
    differs by a level or two at few pixels.

    Raises:
        ValueError: It is damaged.
    """
    pixels = unpacked(file.numpy())
    if grayscale:
        return torch.from_numpy(np.array(Image.fromarray(pixels).convert("L")))[None]
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    """Height and width that a JPEG file says it has.

    Raises:
        ValueError: It has none.
    """
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        if 0xC0 <= data[place + 1] <= 0xC2:  # the frame header of the baseline, extended or progressive process
            height, width = (int.from_bytes(data[place + i : place + i + 2], "big") for i in (5, 7))
            if height and width:
                return height, width
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    raise ValueError("not a JPEG file")
