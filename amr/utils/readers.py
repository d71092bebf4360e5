"""Readers of files that others may have written: JSON, YAML, CSV, .npz and parquet, each bounded in time and memory.

Every reader of such a file goes through here. A file that is malformed, absurdly large when read, or not a regular file
is a `UserError` of one line that names it. Nothing in a file is executed.
"""

import csv
import io
import json
import math
import re
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amr.utils.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEXT_BYTES = 32 << 20  # of a JSON file: objects take some 25 times as much memory
YAML_BYTES = 512 << 10  # PyYAML reads about 0.1 MB a second
YAML_LEAVES = 10_000  # aliases counted as often as they are used
CSV_BYTES = 64 << 20
DEPTH = 100  # of JSON
DIGITS = 300  # of a whole number: more do not fit a float
SCALAR = 200  # characters of a number in YAML
ARCHIVE_BYTES = 128 << 20  # of an .npz file; a member that holds nothing costs memory, too
ARRAY_BYTES = 512 << 20  # of all arrays of an .npz file
MEMBERS = 10_000  # of an .npz file
ROWS, VALUES, STRING_BYTES = 1_000_000, 8_000_000, 256 << 20  # of a parquet file

_LIBRARIES = (  # what numpy, zipfile, zlib and pyarrow (whose errors are some of these) raise at damaged files
    *(OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, ArithmeticError, MemoryError),
    *(RecursionError, NotImplementedError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error),
    tokenize.TokenError,
)


def printable(text: str) -> str:
    """`text` on one line, without control characters or broken Unicode: it goes to terminals and pages."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def bad(file: Path, what: str) -> UserError:
    """The error that names a file and what is wrong with it."""
    return UserError(f"{printable(str(file))}: {printable(what)}")


@contextmanager
def reading(file: Path, allowed: str) -> Iterator[None]:
    """Turns what a file's content of a wrong shape raises into an error that names the file.

    Args:
        file: The file or folder whose content is looked at within the block.
        allowed: Expected content.

    Raises:
        UserError: The block met a missing key, a wrong type, a number out of range, or a damaged file.
    """
    try:
        yield
    except UserError:
        raise
    except _LIBRARIES as error:
        raise bad(file, f"cannot be read ({_brief(error)}); must be {allowed}") from error


def _brief(error: BaseException) -> str:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    return f"no {text}" if isinstance(error, KeyError) else text or type(error).__name__


@contextmanager
def opened(file: Path, most: int) -> Iterator[io.BufferedReader]:
    """A regular file of at most `most` bytes, open for reading: no pipe that waits, no device without end.

    Raises:
        UserError: It cannot be opened, is not a regular file, or is larger.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise bad(file, "not a regular file")
        stream = file.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise bad(file, f"cannot be read ({_brief(error)})") from None
    with stream:
        if (size := stream.seek(0, io.SEEK_END)) > most:
            raise bad(file, f"{size:,} bytes; must be at most {most:,}")
        stream.seek(0)
        yield stream


def read_text(file: Path, most: int = TEXT_BYTES) -> str:
    """A text file's content.

    Raises:
        UserError: It cannot be read, is not UTF-8, or has more than `most` bytes.
    """
    try:
        with opened(file, most) as stream:
            return stream.read(most).decode("utf-8").replace("\r\n", "\n")
    except OSError as error:
        raise bad(file, error.strerror or "cannot be read") from None
    except UnicodeDecodeError:
        raise bad(file, "not UTF-8 text") from None


# ---------------------------------------------------------------------------------------------------------------- JSON


def parse_json(text: str) -> Any:
    """JSON's value.

    Raises:
        ValueError: It is not JSON, is nested deeper than `DEPTH`, or has a whole number of more than `DIGITS` digits.
    """
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level: list[Any] = [value]
    for _ in range(DEPTH):
        level = [item for node in level if isinstance(node, dict | list) for item in _items(node)]
        if not level:
            return value
    raise ValueError(f"nested deeper than {DEPTH} levels")


def _items(node: dict[str, Any] | list[Any]) -> Iterator[Any]:
    return (item for item in (node.values() if isinstance(node, dict) else node) if isinstance(item, dict | list))


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits; must be at most {DIGITS}")
    return int(digits)


def read_json(file: Path) -> Any:
    """A JSON file's value.

    Raises:
        UserError: It cannot be read, or `parse_json` refuses it.
    """
    text = read_text(file)
    try:
        return parse_json(text)
    except ValueError as error:
        raise bad(file, f"not JSON ({error})") from None


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        UserError: It cannot be read, or holds anything else.
    """
    value = read_json(file)
    if not isinstance(value, dict):
        raise bad(file, "must be one JSON object")
    return value


# ---------------------------------------------------------------------------------------------------------------- YAML


def read_yaml(file: Path) -> Any:
    """A YAML file's content, None if it is not there; of a tag that only its writer can build, None.

    Raises:
        UserError: It is not YAML, has more than `YAML_LEAVES` values (an alias counts as often as it is used), or a
            number that is none.
    """
    return parse_yaml(file, read_text(file, YAML_BYTES)) if file.exists() else None


def parse_yaml(file: Path, text: str) -> Any:
    """Same as `read_yaml`, for text that is already read; an error names `file`."""
    import yaml

    # libyaml's parser is ten times as fast, but its recursion has no limit: it gets what cannot be nested deeply.
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader) if _is_shallow(text) else yaml.SafeLoader

    class Loader(base):  # type: ignore[misc]
        def construct_scalar(self, node: Any) -> Any:
            value = super().construct_scalar(node)
            number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
            if number and not 0 < len(value.strip("+-_ ")) <= SCALAR:
                raise ValueError(f"{node.value[:20]!r} is no number")
            return value

    Loader.add_multi_constructor("", lambda *_: None)
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if (leaves := _leaves(node, {})) > YAML_LEAVES:
            what = "an alias in a circle" if leaves == math.inf else f"{leaves:.2g} values with its aliases"
            raise ValueError(f"{what}; must be at most {YAML_LEAVES:,} values")
        return loader.construct_document(node)
    except (yaml.YAMLError, *_LIBRARIES) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:300]
        raise bad(file, f"not YAML ({what})") from None


def _is_shallow(text: str) -> bool:
    """Whether no value of a YAML text can lie deeper than a few hundred levels, whatever the text is.

    A level begins with a bracket, or farther to the right than the one around it by blanks, dashes or question marks (a
    list may be as far to the right as its key).
    """
    lines = re.findall(r"(?:^|[\r\x85\u2028\u2029])[ \t?-]*", text, re.MULTILINE)
    right = max(map(len, lines), default=0)
    return text.count("[") + text.count("{") + 2 * right <= 400


def _leaves(node: Any, known: dict[Hashable, float]) -> float:
    """Values under a YAML node, an alias's as often as it is used; it must not lie within itself."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return 1.0
    if (count := known.get(id(node))) is None:
        known[id(node)] = math.inf  # until it is known: only a node within itself meets it
        inside = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
        count = known[id(node)] = 1 + sum(_leaves(child, known) for child in inside)
    return count


# ----------------------------------------------------------------------------------------------------------------- CSV


def csv_rows(file: Path, needs: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, cells that are not empty) of a CSV with a header; an empty file has none.

    Raises:
        UserError: It cannot be read, lacks a column that it needs, or has a row longer than the header.
    """
    try:
        with opened(file, CSV_BYTES) as stream, io.TextIOWrapper(stream, encoding="utf-8", newline="") as lines:
            reader = csv.reader(lines)
            header = next(reader, [])
            if header and (absent := [column for column in needs if column not in header]):
                raise bad(file, f"no column {absent[0]!r}; must be a header with {', '.join(needs)}")
            for row in reader:
                if len(row) > len(header):
                    what = "more cells than the header has; must be one cell per column, commas inside quotes"
                    raise bad(file, f"line {reader.line_num}: {what}")
                if row:
                    yield reader.line_num, {key: cell for key, cell in zip(header, row, strict=False) if cell}
    except UnicodeDecodeError:
        raise bad(file, "not UTF-8 text") from None
    except (OSError, csv.Error) as error:
        raise bad(file, getattr(error, "strerror", None) or f"not CSV ({error})") from None


# -------------------------------------------------------------------------------------------------------------- arrays


def read_arrays(file: Path) -> "dict[str, NDArray[Any]]":
    """All arrays of an .npz archive that amr wrote; see `some_arrays`."""
    return some_arrays(file, None, ARCHIVE_BYTES, ARRAY_BYTES, "an .npz of plain arrays, as amr writes it")[0]


def some_arrays(
    file: Path, only: Sequence[str] | None, archive_bytes: int, array_bytes: int, allowed: str
) -> "tuple[dict[str, NDArray[Any]], list[str]]":
    """Arrays of an .npz archive, and the names of all that it has.

    Args:
        file: The archive.
        only: Names of the arrays to read, if it has them; None for all.
        archive_bytes: Largest size of the file.
        array_bytes: Largest size of the arrays that are read.
        allowed: Expected file, the end of an error's message.

    Raises:
        UserError: It cannot be read, is damaged, holds Python objects, or is larger.
    """
    with opened(file, archive_bytes) as stream, reading(file, allowed), zipfile.ZipFile(stream) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        wanted = {name: member for name, member in members.items() if only is None or name in only}
        size = sum(member.file_size for member in wanted.values())
        if len(archive.infolist()) > MEMBERS or size > array_bytes:
            what = f"{len(archive.infolist()):,} arrays of {size:,} bytes"
            raise bad(file, f"{what}; must be at most {MEMBERS:,} of {array_bytes:,}")
        return {name: _array(archive.read(member)) for name, member in wanted.items()}, [*members]


def _array(content: bytes) -> "NDArray[Any]":
    """An array in numpy's format, whose header must tell the truth of its size."""
    import numpy as np

    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of numpy's format")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read_header(stream)
    data = bytearray(content[stream.tell() :])  # an array of it can be written to, which torch wants
    if dtype.hasobject or dtype.kind not in "biufcUS":
        raise ValueError(f"an array of {dtype}")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(data) or count > max(len(data), 1):
        raise ValueError(f"shape {shape} of {dtype} in {len(data)} bytes")
    if dtype.kind == "U" and count and np.frombuffer(data, f"{dtype.byteorder}u4").max() > 0x10FFFF:
        raise ValueError("text that is not Unicode")
    flat = np.frombuffer(data, dtype) if data else np.zeros(count, dtype)
    return flat.reshape(shape, order="F" if columns_first else "C")


# ------------------------------------------------------------------------------------------------------------- parquet


def read_table(
    file: Path, allowed: str, needs: Sequence[str] = (), only: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """A parquet file's rows.

    Args:
        file: The file.
        allowed: Allowed values, the end of the error's message.
        needs: Columns that it must have.
        only: Columns to read, of those that it has; None for all.

    Raises:
        UserError: It cannot be read, lacks a column, or has more than `ROWS` rows, `VALUES` values or `STRING_BYTES` of
            text.
    """
    import pyarrow as pa

    rows, text = list[dict[str, Any]](), 0
    with reading(file, allowed):
        for batch in table_batches(file, allowed, needs, only, (ROWS, VALUES, STRING_BYTES)):
            text += sum(text_bytes(pa, column) for column in batch.columns)
            _bounded(file, (len(rows) + len(batch), 0, text), (ROWS, VALUES, STRING_BYTES))
            rows += batch.to_pylist()
    return rows


def table_batches(
    file: Path, allowed: str, needs: Sequence[str], only: Sequence[str] | None, most: tuple[int, int, int]
) -> Iterator[Any]:
    """A parquet file's rows, as pyarrow's record batches; texts are dictionaries.

    Args:
        file: The file.
        allowed: Allowed values, the end of the error's message.
        needs: Columns that it must have.
        only: Columns to read, of those that it has; None for all.
        most: Rows, values and bytes that the file may declare of these columns.

    Raises:
        UserError: It cannot be read, lacks a column, or declares more.
    """
    import pyarrow.parquet as pq

    with opened(file, 1 << 40) as stream, reading(file, allowed):
        metadata = pq.read_metadata(stream)
        columns = [metadata.schema.column(i) for i in range(metadata.num_columns)]
        there = metadata.schema.to_arrow_schema().names
        names = [name for name in there if only is None or name in only]
        if absent := [name for name in needs if name not in names]:
            raise bad(file, f"no column {absent[0]!r}; it has {', '.join(there)[:500]}; must be {allowed}")
        kept = [i for i, column in enumerate(columns) if column.path.split(".")[0] in names]
        groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
        counts = [group.column(i).num_values for group in groups for i in kept]
        size = sum(group.column(i).total_uncompressed_size for group in groups for i in kept)
        _bounded(file, (metadata.num_rows, max(sum(counts), metadata.num_rows * len(names)), size), most)
        if min(counts, default=0) < 0:
            raise ValueError("a negative number of values")
        texts = [columns[i].path for i in kept if columns[i].physical_type == "BYTE_ARRAY"]
        table = pq.ParquetFile(stream, read_dictionary=texts)  # each text once, however many rows have it
        yield from table.iter_batches(batch_size=4096, columns=names, use_threads=False)


def _bounded(file: Path, counts: tuple[int, int, int], most: tuple[int, int, int]) -> None:
    if any(not 0 <= count <= limit for count, limit in zip(counts, most, strict=True)):
        found, allowed = (f"{r:,} rows, {v:,} values and {b:,} bytes" for r, v, b in (counts, most))
        raise bad(file, f"{found}; must be at most {allowed}")


def text_bytes(pa: Any, column: Any) -> int:
    """Bytes of the text that a column's rows hold, each row's counted; lists and structures are looked into."""
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        lengths = pc.binary_length(column.dictionary.cast(pa.large_binary()))
        return int(pc.sum(lengths.take(column.indices)).as_py() or 0)
    if pa.types.is_nested(column.type):
        inside = column.flatten()
        return sum(text_bytes(pa, one) for one in (inside if isinstance(inside, list) else [inside]))
    return 0
