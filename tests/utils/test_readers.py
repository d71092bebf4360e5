"""The readers of strangers' files: what they refuse, in one line, and how much memory that takes."""

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amr.utils import readers
from amr.utils.errors import UserError
from tests.conftest import REPOSITORY

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9))
MEBIBYTES = 1 << 20


def refused(read: Callable[[], Any], message: str, file: Path) -> None:
    with pytest.raises(UserError) as error:
        read()
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "1.2e+09 values with its aliases; must be at most 10,000"),
        (MERGED, "values with its aliases; must be at most 10,000"),
        ("a: &a [*a]", "an alias in a circle"),
        ("a: !!int ''", "'' is no number"),
        ("a: !!float '-'", "'-' is no number"),
        ("a: !!int '0x'", "not YAML"),
        ("a: 1:" + ":".join(["59"] * 3000), "is no number"),
        ("a: " + "9" * 5000, "is no number"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("[" * 20_000, "nested too deeply"),
        ("a: [", "not YAML"),
        ("? [a]\n: b", "unhashable key"),
        ("a: \0", "not YAML"),
        ("#" * (readers.YAML_BYTES + 1), "bytes; must be at most"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    refused(lambda: readers.read_yaml(tmp_path / "a.yaml"), message, tmp_path / "a.yaml")


def test_yaml_that_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    assert readers.read_yaml(file) is None
    file.write_text("a: &x {b: [1, 1.5, .inf, 10:20, 0x1f, -7]}\nc: *x\nd: !python/tuple [1]\ne: 2001-01-02\nf:\n")
    read = readers.read_yaml(file)
    assert read["a"] == read["c"] == {"b": [1, 1.5, float("inf"), 620, 31, -7]}
    assert (read["d"], str(read["e"]), read["f"]) == (None, "2001-01-02", None)
    file.write_text("")
    assert readers.read_yaml(file) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 101 + "]" * 101, "nested deeper than 100 levels"),
        ('{"a": ' + "9" * 5000 + "}", "a number of 5000 digits; must be at most 300"),
        ("{", "not JSON"),
        ("[]", "must be one JSON object"),
        ("\udcff", "not UTF-8 text"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(lambda: readers.read_object(tmp_path / "a.json"), message, tmp_path / "a.json")


def test_json_that_is_read(tmp_path: Path) -> None:
    value = {"a": [1, -(10**299), 1.5, None, True, "é"], "b": {"c": {}}}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert readers.read_object(tmp_path / "a.json") == value
    assert readers.parse_json("[" * 100 + "]" * 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch,x\n0," + "9" * 140_000, "not CSV (field larger than field limit"),
        ("epoch,x\n0,1,2\n", "line 2: more cells than the header"),
        ("step\n1\n", "no column 'epoch'"),
        ("epoch\n\udcff\n", "not UTF-8 text"),
    ],
)
def test_csv_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(lambda: list(readers.csv_rows(tmp_path / "a.csv", ["epoch"])), message, tmp_path / "a.csv")


def test_csv_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('epoch,"a, b",c\n0,"x\ny",\n\n1\n')
    assert list(readers.csv_rows(tmp_path / "a.csv", ["epoch"])) == [
        (3, {"epoch": "0", "a, b": "x\ny"}),
        (5, {"epoch": "1"}),
    ]


ARRAYS = {
    **{"a": np.arange(6).reshape(2, 3), "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "none": np.zeros((0, 3))},
    **{"text": np.array("höh"), "two": np.array(["a", "bbb"]), "empty": np.array(""), "yes": np.array([True])},
    **{"one": np.array(1.5), "half": np.ones(3, np.float16), "big": np.arange(3, dtype=">i4")},
}


def test_arrays_that_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", **ARRAYS)  # type: ignore[arg-type]
    read = readers.read_arrays(tmp_path / "a.npz")
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (read[name].shape, read[name].dtype) == (array.shape, array.dtype), name
        np.testing.assert_array_equal(read[name], array)
        assert read[name].flags.writeable, name


def npy(header: str, data: bytes = b"") -> bytes:
    text = f"{header}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}", b"12345678"), "in 8 bytes"),
        (npy("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,)}"), "in 0 bytes"),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}", b"12345678"), "in 8 bytes"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': ()}", b"12345678"), "an array of object"),
        (npy("{'descr': '<U1', 'fortran_order': False, 'shape': ()}", b"\xff" * 4), "not Unicode"),
        (npy("{'descr': " + "(" * 9000), "cannot be read"),
        (b"x", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_arrays_that_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", content)
    refused(lambda: readers.read_arrays(file), message, file)


def test_archives_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.npz"
    for content in (b"", b"no zip", zipped("a.npy", bytes(3000))[:-40]):
        file.write_bytes(content)
        refused(lambda: readers.read_arrays(file), "cannot be read", file)
    monkeypatch.setattr(readers, "ARRAY_BYTES", MEBIBYTES)
    file.write_bytes(zipped("a.npy", bytes(6 * MEBIBYTES)))
    assert file.stat().st_size < MEBIBYTES
    refused(lambda: readers.read_arrays(file), "1 arrays of 6,291,456 bytes; must be", file)


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def test_tables_that_are_read(tmp_path: Path) -> None:
    rows = [
        {"a": f"s{i % 3}", "b": i, "c": ["x", None, "yy"], "d": None, "e": {"f": "v", "g": [1.5]}, "h": True}
        for i in range(9000)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert readers.read_table(tmp_path / "a.parquet", "rows") == rows
    few = readers.read_table(tmp_path / "a.parquet", "rows", ("b",), ("b", "a", "z"))
    assert few == [{"a": row["a"], "b": row["b"]} for row in rows]
    pq.write_table(pa.table({name: pa.nulls(0) for name in "ab"}), tmp_path / "none.parquet")
    assert readers.read_table(tmp_path / "none.parquet", "rows") == []


def many_rows() -> pa.Table:
    return pa.table({"c": pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000_000, "i1")), pa.array(["x"]))})


def long_text() -> pa.Table:
    codes = pa.array(np.zeros(900_000, "i4"))
    return pa.table({"c": pa.DictionaryArray.from_arrays(codes, pa.array(["x" * 2 * MEBIBYTES]))})


def many_items() -> pa.Table:
    return pa.table({"c": pa.ListArray.from_arrays(pa.array([0, 20_000_000]), pa.array(np.zeros(20_000_000, "i1")))})


@pytest.mark.parametrize(
    ("table", "message"),
    [(many_rows, "20,000,000 rows"), (long_text, "8,589,934,592 bytes"), (many_items, "20,000,000 values")],
)
def test_small_tables_that_are_large_when_read(tmp_path: Path, table: Callable[[], pa.Table], message: str) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(table(), file, compression="zstd")
    assert file.stat().st_size < MEBIBYTES
    refused(lambda: readers.read_table(file, "rows"), message, file)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A pipe waits for ever, and a device has no end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        refused(lambda path=tmp_path / name: readers.read_text(path), "not a regular file", tmp_path / name)  # type: ignore[misc]
    refused(lambda: readers.read_text(tmp_path), "not a regular file", tmp_path)
    refused(lambda: readers.read_text(tmp_path / "no"), "cannot be read (No such file", tmp_path / "no")
    with pytest.raises(UserError, match="cannot be read"):
        readers.read_text(Path("a\0b"))


REFUSE = """
import sys
from pathlib import Path
from amr.utils import readers
from tests.processes import peak_memory

folder = Path(sys.argv[1])
reads = {"a.yaml": readers.read_yaml, "a.json": readers.read_object, "a.npz": readers.read_arrays}
reads |= dict.fromkeys(("a.parquet", "b.parquet"), lambda file: readers.read_table(file, "rows"))
before = peak_memory()
for name, read in reads.items():
    try:
        read(folder / name)
    except readers.UserError:
        continue
    sys.exit(name)
print(peak_memory() - before)
"""


def test_what_is_refused_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BOMB)
    (tmp_path / "a.json").write_text("[" + "[]," * MEBIBYTES + "[]]")
    (tmp_path / "a.npz").write_bytes(zipped("a.npy", bytes(64 * MEBIBYTES)))
    pq.write_table(many_rows(), tmp_path / "a.parquet")
    pq.write_table(long_text(), tmp_path / "b.parquet", compression="zstd")
    done = subprocess.run([sys.executable, "-c", REFUSE, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 512 << 10  # KiB: 512 MiB
