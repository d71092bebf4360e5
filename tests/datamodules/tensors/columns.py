"""Columns of a small data set of two vectors, and files of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

CLIPS = 23  # 13 train, 5 val, 5 test
VECTORS = {"a": {"kind": "vector", "standardize": False}, "b": "vector"}


def columns(clips: int = CLIPS) -> dict[str, NDArray[Any]]:
    draw = np.random.default_rng(0)
    return {
        "a": draw.normal(size=(clips, 4)).astype(np.float32),
        "b": draw.normal(3, 2, size=(clips, 3)).astype(np.float32),
        "y": np.arange(clips) % 2,
        "name": np.array([f"c{i:02d}" for i in range(clips)]),
        "split": np.array(["train" if i < 13 else "val" if i < 18 else "test" for i in range(clips)]),
    }


def options(**changed: Any) -> dict[str, Any]:
    return {"modalities": VECTORS, "label": "y", "split": "split", "id": "name", **changed}


def write_npz(path: Path, arrays: Mapping[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def write_parquet(path: Path, arrays: Mapping[str, Any]) -> Path:
    pq.write_table(pa.table({name: list(x) if np.ndim(x) > 1 else x for name, x in arrays.items()}), path)
    return path


def write_safetensors(path: Path, arrays: Mapping[str, NDArray[Any]], kinds: Mapping[str, str] | None = None) -> Path:
    """By the published format, as its own library would write it."""
    names = {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64", "uint8": "U8", "bool": "BOOL"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, x in arrays.items():
        kind = (kinds or {}).get(name) or names[str(x.dtype)]
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [len(data), len(data) + x.nbytes]}
        data += x.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path
