"""Columns of files, dictionaries and datasets, as arrays. Nothing in a file is imported, unpickled or executed."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from amr.utils.errors import UserError
from amr.utils.readers import bad, opened, parse_json, printable, reading, some_arrays, table_batches, text_bytes

if TYPE_CHECKING:
    import pyarrow as pa

Values = NDArray[Any] | list[Any]
"""A column: an array (N, ...) of numbers, booleans or text; or N entries of any length, None where there is none."""
FILE_BYTES = 16 << 30  # of a file's arrays; the columns that are used lie in memory
TEXT_BYTES = 1 << 30  # of a parquet file's texts, each as often as it is there
HEADER_BYTES = 100 << 20  # of a safetensors file: what its own library allows
SUFFIXES = (".npz", ".parquet", ".safetensors")
_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "|b1", "U8": "|u1", "I8": "|i1"},
    **{"I16": "<i2", "I32": "<i4", "I64": "<i8", "U16": "<u2", "U32": "<u4", "U64": "<u8"},
}


def read_columns(source: Any, names: Iterable[str], where: str) -> dict[str, Values]:
    """The named columns of a source.

    Args:
        source: A file (npz, parquet, safetensors); arrays by name; or a dataset of torch or Hugging Face, whose items
            are dictionaries, or tuples, whose columns are then called 0, 1, ...
        names: Names of the columns.
        where: Name of the source, for messages.

    Raises:
        UserError: It cannot be read, lacks a column, or its columns have different numbers of rows.
    """
    names = list(dict.fromkeys(names))
    there: Iterable[str]
    if isinstance(source, Path):
        columns, there = _file(source, names)
    elif isinstance(source, Mapping):
        columns, there = {name: source[name] for name in names if name in source}, map(str, source)
    elif isinstance(getattr(source, "column_names", None), list):
        there = source.column_names
        columns = {name: source[name] for name in names if name in there}
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, str | bytes):
        columns, there = _items(source, where)
    else:
        raise UserError(
            f"{where}: it is a {type(source).__name__}; must be a file, arrays by name, or a dataset with a length"
        )
    if lacking := [name for name in names if name not in columns]:
        raise UserError(f"{where}: no column {lacking[0]!r}; it has {', '.join(map(printable, there)) or 'none'}")
    found = {name: as_values(columns[name], f"{where}, column {name!r}") for name in names}
    counts = {name: len(values) for name, values in found.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"{where}: columns have {_counts(counts)} rows; must have as many each, one per clip")
    return found


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} ({name})" for name, n in counts.items())


def as_values(column: Any, where: str) -> Values:
    """A column as an array, or as a list where its entries are texts, differ in shape, or are missing.

    Raises:
        UserError: It is a single value, or of a type that is neither numbers nor text.
    """
    if isinstance(column, Tensor):
        column = column.detach().cpu()
        column = (column.float() if column.is_floating_point() else column).numpy()
    if not isinstance(column, np.ndarray):
        column = [_entry(entry, where) for entry in (column if isinstance(column, Iterable) else [])]
        shapes = {np.shape(entry) if entry is not None and not isinstance(entry, str) else None for entry in column}
        if len(shapes) == 1 and None not in shapes:
            column = np.asarray(column)
    if isinstance(column, list):
        return column
    assert isinstance(column, np.ndarray)
    if column.dtype.kind == "O":
        return as_values(column.tolist(), where)
    if column.ndim < 1 or column.dtype.kind not in "biufUS":
        raise UserError(f"{where}: it is of {column.dtype} and shape {column.shape}; must be numbers or text, (N, ...)")
    if column.dtype.kind == "S":
        return [_entry(entry, where) for entry in column.tolist()]
    return column


def _entry(entry: Any, where: str) -> Any:
    """One clip's value: None, a text, or an array."""
    if entry is None or isinstance(entry, str):
        return entry
    if isinstance(entry, bytes):
        try:
            return entry.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{where}: bytes that are not UTF-8; must be numbers or text") from None
    if isinstance(entry, Tensor):
        entry = entry.detach().cpu().numpy()
    if isinstance(entry, np.ndarray) and entry.dtype.kind == "O":
        entry = entry.tolist()
    if isinstance(entry, list | tuple) and entry and all(isinstance(part, str) for part in entry):
        return list(entry)
    try:
        array = np.asarray([_entry(part, where) for part in entry] if isinstance(entry, list | tuple) else entry)
    except (ValueError, TypeError):
        raise UserError(f"{where}: an entry's parts differ in size; must be numbers of one shape, or a text") from None
    if array.dtype.kind not in "biufU":
        raise UserError(f"{where}: an entry is a {type(entry).__name__}; must be numbers, a text, or nothing")
    return array


def _items(source: Any, where: str) -> tuple[dict[str, Any], list[str]]:
    columns: dict[str, list[Any]] = {}
    for number in range(len(source)):
        item = source[number]
        if isinstance(item, Sequence) and not isinstance(item, str | bytes):
            item = {str(place): part for place, part in enumerate(item)}
        if not isinstance(item, Mapping) or (columns and set(item) != set(columns)):
            raise UserError(f"{where}: item {number} is a {type(item).__name__} of other columns than item 0, or none; "
                            "must be a dictionary or a tuple of one value per column")  # fmt: skip
        for name, part in item.items():
            columns.setdefault(str(name), []).append(part)
    return dict(columns), list(columns)


# --------------------------------------------------------------------------------------------------------------- files


def _file(path: Path, names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The columns of a file among `names`, and the names of all that it has."""
    if path.suffix == ".npz":
        return some_arrays(path, names, FILE_BYTES, FILE_BYTES, "an .npz of plain arrays")
    if path.suffix == ".parquet":
        return _parquet(path, names)
    if path.suffix == ".safetensors":
        return _safetensors(path, names)
    raise bad(path, f"{path.suffix or 'a file without an ending'}: must be one of {', '.join(SUFFIXES)}")


def _parquet(path: Path, names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    import pyarrow as pa

    most = (1 << 40, FILE_BYTES // 4, FILE_BYTES)
    parts: dict[str, list[Any]] = {name: [] for name in names}
    text = 0
    with reading(path, "a parquet table"):
        for batch in table_batches(path, "a parquet table", names, names, most):
            text += sum(text_bytes(pa, column) for column in batch.columns)
            if text > TEXT_BYTES:
                raise bad(path, f"{text:,} bytes of text; must be at most {TEXT_BYTES:,}")
            for name in parts:
                parts[name].append(_arrow(path, name, batch.column(name)))
        columns = {
            name: [entry for part in several for entry in part]
            if any(isinstance(part, list) for part in several) or not several
            else np.concatenate(several)
            for name, several in parts.items()
        }
    return columns, list(names)


def _arrow(path: Path, name: str, column: "pa.Array") -> Values:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    inner = kind
    while pa.types.is_list(inner) or pa.types.is_large_list(inner) or pa.types.is_fixed_size_list(inner):
        inner = inner.value_type
    nested = inner is not kind
    if pa.types.is_dictionary(inner):  # as texts are read
        inner = inner.value_type
    text = pa.types.is_string(inner) or pa.types.is_large_string(inner)
    plain = pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner)
    if not text and not plain and not pa.types.is_null(inner):
        raise bad(path, f"column {name!r} is of {kind}; must be numbers, booleans, text, or lists of them")
    if plain and not nested:
        if column.null_count and pa.types.is_boolean(kind):
            column = column.cast(pa.float32())
        return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]  # nulls: NaN
    return column.to_pylist() if text or not nested else list(column.to_numpy(zero_copy_only=False))


def _safetensors(path: Path, names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """By the published format: 8 bytes of the header's length, JSON, and one buffer. It has no code to run."""
    with opened(path, FILE_BYTES) as stream, reading(path, "a safetensors file"):
        size = stream.seek(0, 2)
        stream.seek(0)
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(HEADER_BYTES, size - 8):
            raise ValueError(f"a header of {length:,} bytes in {size:,}")
        header = parse_json(stream.read(length).decode("utf-8"))
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        columns: dict[str, NDArray[Any]] = {}
        for name in [name for name in names if name in header and name != "__metadata__"]:
            kind, shape, (start, end) = header[name]["dtype"], header[name]["shape"], header[name]["data_offsets"]
            if kind not in _DTYPES:
                raise bad(path, f"tensor {name!r} is of {json.dumps(kind)[:40]}; must be one of {', '.join(_DTYPES)}")
            dtype = np.dtype(_DTYPES[kind])
            if min([0, *shape]) < 0 or not 0 <= start <= end <= size - 8 - length:
                raise ValueError(f"tensor {name!r} lies outside of the file")
            if math.prod(shape) * dtype.itemsize != end - start:
                raise ValueError(f"tensor {name!r} of shape {shape} in {end - start:,} bytes")
            stream.seek(8 + length + start)
            array = np.frombuffer(bytearray(stream.read(end - start)), dtype)
            if kind == "BF16":  # the upper half of a float32
                array = (array.astype("<u4") << 16).view("<f4")
            columns[name] = array.reshape(shape)
    return columns, [name for name in header if name != "__metadata__"]
