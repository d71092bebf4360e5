"""Numbers and text for a page that was opened from disk, which may load scripts but not fetch files.

A script holds one call, AMR.take(key, text), with base64 of a gzip stream of: the header's length in bytes (uint32,
little-endian), the header (JSON), zeros up to a multiple of 8, and the arrays. An array stands in the header as
{"$": [type, offset, shape]} or, as integers that are to be multiplied, {"$": [type, offset, shape, scale]}.
`static/core.js` reads it.
"""

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TYPES = {"uint8": "u1", "int8": "i1", "uint16": "u2", "int16": "i2", "int32": "i4", "float32": "f4"}
_STEPS = 32767  # either side of zero


def script(key: str, content: Mapping[str, Any]) -> bytes:
    """A script that hands the page what belongs to a key.

    Args:
        key: Key for which the page asks.
        content: Dictionaries, lists, text, numbers, None and arrays. Numbers that are not finite become null outside
            arrays.
    """
    text = base64.b64encode(gzip.compress(_binary(content), compresslevel=6, mtime=0)).decode()
    return f"AMR.take({_safe(key)},{json.dumps(text)})\n".encode()


def quantised(values: NDArray[Any]) -> Any:
    """Numbers as 16-bit integers and one factor, exact to 1/65,534 of the largest; as they are if one is not finite."""
    values = np.asarray(values, np.float32)
    top = float(np.abs(values).max()) if values.size else 0.0
    if not np.isfinite(top):
        return values
    scale = top / _STEPS or 1.0
    return _Scaled(np.round(values.astype(np.float64) / scale).astype(np.int16), scale)


class _Scaled:
    def __init__(self, steps: NDArray[np.int16], scale: float) -> None:
        self.steps, self.scale = steps, scale


def _binary(content: Mapping[str, Any]) -> bytes:
    blobs: list[bytes] = []
    size = 0

    def place(node: Any) -> Any:
        nonlocal size
        if isinstance(node, Mapping):
            return {str(key): place(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [place(value) for value in node]
        if isinstance(node, float | np.floating):
            return float(node) if np.isfinite(node) else None
        if isinstance(node, np.integer | np.bool_):
            return node.item()
        if not isinstance(node, np.ndarray | _Scaled):
            return node
        array, scale = (node.steps, [node.scale]) if isinstance(node, _Scaled) else (_storable(node), [])
        blob = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        blob += bytes(-len(blob) % 8)
        blobs.append(blob)
        size += len(blob)
        return {"$": [_TYPES[array.dtype.name], size - len(blob), list(array.shape), *scale]}

    head = _safe(place(content)).encode()
    return b"".join([len(head).to_bytes(4, "little"), head, bytes(-(4 + len(head)) % 8), *blobs])


def _storable(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in a type that a page has."""
    if array.dtype.name in _TYPES:
        return array
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind in "iu":
        small = not array.size or (array.min() >= 0 and array.max() < 2**16)
        return array.astype(np.uint16 if small else np.int32)
    return array.astype(np.float32)


def _safe(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
