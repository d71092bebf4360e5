"""Tables and archives of arrays as files, whole or not at all, damaged ones removed; and file names for clips."""

import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amr.utils import readers
from amr.utils.errors import UserError
from amr.utils.files import write_bytes
from amr.utils.readers import read_arrays
from amr.utils.streams import note

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
    """A table's rows.

    Raises:
        UserError: It is not there, or cannot be read; a part that is missing is not an empty one.
    """
    return readers.read_table(path, "a table as amr analyze writes it")


def is_whole(path: Path) -> bool:
    """Whether a file of the analysis is there and can be read; a damaged one is named and removed, to be made again."""
    if not path.is_file():
        return False
    try:
        if path.suffix == ".npz":
            read_arrays(path)
        elif path.suffix == ".json":
            readers.read_object(path)
        elif path.suffix == ".parquet":
            _read_through(path)
    except UserError as error:
        note(f"{error}; made again")
        path.unlink()
        return False
    return True


def _read_through(path: Path) -> None:
    """Reads a table of any size, a piece at a time."""
    import pyarrow.parquet as pq

    with readers.reading(path, "a table as amr analyze writes it"), pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            batch.validate()


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """A zip archive that `numpy.load` reads without pickles."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
    write_bytes(path, buffer.getvalue())


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
