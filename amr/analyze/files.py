"""The files of an analysis: tables and archives of arrays, whole or not at all."""

import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amr.files import write_bytes

Row = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


def write_table(path: Path, rows: Any, columns: Iterable[str] = ()) -> None:
    """A parquet file of rows, or of a pyarrow table; `columns` are those of a table without rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    if not isinstance(rows, pa.Table):
        rows = pa.Table.from_pylist(rows) if rows else pa.table({name: pa.nulls(0) for name in columns})
    pq.write_table(rows, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def read_table(path: Path) -> list[Row]:
    """A parquet file's rows; none if it is not there."""
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist() if path.is_file() else []


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """A zip archive that `numpy.load` reads without pickles."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> Arrays:
    """All arrays of an archive."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def slug(id: str) -> str:
    """A file name for a clip; its digest keeps names apart that only differ in characters which files cannot have."""
    safe = "".join(c if (c.isascii() and c.isalnum()) or c in "-_" else "_" for c in id)
    return safe if safe == id and len(id) < 100 else f"{safe[:80]}-{hashlib.sha256(id.encode()).hexdigest()[:8]}"


def remove(parts: Iterable[Path]) -> None:
    """Removes parts whose whole is there, and folders that this leaves empty."""
    folders = set()
    for part in parts:
        part.unlink(missing_ok=True)
        folders.add(part.parent)
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
