"""Every source gives the same columns, and a damaged file is one line."""

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from amr.datamodules import Tensors
from amr.datamodules.tensors import sources
from amr.datamodules.tensors.sources import read_columns
from amr.utils.errors import UserError
from tests.datamodules.tensors.columns import VECTORS, columns, options, write_npz, write_parquet, write_safetensors


class Items(torch.utils.data.Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Face:
    """What a Hugging Face data set has, whose columns are lists."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        self.column_names, self.arrays = list(arrays), arrays

    def __getitem__(self, name: str) -> Any:
        return self.arrays[name].tolist()


def items(arrays: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: x[i] for name, x in arrays.items()} for i in range(len(arrays["y"]))]


SOURCES: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "npz": lambda folder, x: write_npz(folder / "x.npz", x),
    "parquet": lambda folder, x: str(write_parquet(folder / "x.parquet", x)),
    "arrays": lambda _, x: x,
    "lists": lambda _, x: {name: column.tolist() for name, column in x.items()},
    "tensors": lambda _, x: {n: torch.from_numpy(c) if c.dtype.kind in "fi" else c for n, c in x.items()},
    "dictionaries": lambda _, x: Items(items(x)),
    "face": lambda _, x: Face(x),
}


@pytest.fixture(scope="module")
def reference() -> Tensors:
    return Tensors(columns(), **options())


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_clips(kind: str, tmp_path: Path, reference: Tensors) -> None:
    data = Tensors(SOURCES[kind](tmp_path, columns()), **options())
    assert [data.labels, data.clips, data.state_dict()] == [reference.labels, reference.clips, reference.state_dict()]
    for split in ("train", "val", "test"):
        for got, wanted in zip(data.clips_of(split), reference.clips_of(split), strict=True):  # type: ignore[call-overload]
            assert (got["id"], got["label"]) == (wanted["id"], wanted["label"])
            assert all(torch.equal(got["inputs"][m], wanted["inputs"][m]) for m in VECTORS)


def test_tuples_have_numbers_for_names() -> None:
    x = columns()
    data = torch.utils.data.TensorDataset(*(torch.from_numpy(x[name]) for name in ("a", "b", "y")))
    modalities: Any = {"a": {"kind": "vector", "columns": "0"}, "b": {"kind": "vector", "columns": "1"}}
    made = Tensors(data, modalities, label="2", split={"test": 0.2})
    assert len(made.usable("train")) + len(made.usable("test")) == len(x["y"])
    split = Tensors({"train": data, "test": data}, modalities, label="2", split={"val": 0.25})
    assert [len(split.usable(s)) for s in ("train", "val", "test")] == [17, 6, 23]


def test_safetensors_of_every_type(tmp_path: Path) -> None:
    x = torch.randn(5, 3)
    upper = (x.view(torch.int32) >> 16).to(torch.int16).numpy()
    arrays = {
        "f32": x.numpy(),
        "f16": x.half().numpy(),
        "b": (x > 0).numpy(),
        "u8": np.arange(5, dtype=np.uint8),
        "bf": upper,
    }
    path = write_safetensors(tmp_path / "x.safetensors", arrays, {"bf": "BF16"})
    found = read_columns(path, arrays, "x")
    for name in ("f32", "f16", "b", "u8"):
        np.testing.assert_array_equal(found[name], arrays[name])
    expected = torch.from_numpy(upper.copy()).view(torch.bfloat16).float()
    np.testing.assert_array_equal(found["bf"], expected)
    y = columns()["y"]
    made = Tensors(
        write_safetensors(tmp_path / "y.safetensors", {"x": x[:, None].numpy(), "y": y[:5]}),
        {"x": "series"},
        label="y",
        split={"val": 0.4},
    )
    assert made.clips_of("train")[0]["inputs"]["x"].shape == (1, 3)


def test_parquet_columns_of_every_type(tmp_path: Path) -> None:
    table = pa.table(
        {
            "null": pa.array([1, None, 3]),
            "yes": pa.array([True, False, None]),
            "text": pa.array(["ä", None, "b"]),
            "code": pa.array(["u", "v", "u"]).dictionary_encode(),
            "fixed": pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32(), 2)),
            "ragged": [[1], [2, 3], None],
            "deep": [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]], None],
            "names": [["a", "b"], [], None],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    found = read_columns(tmp_path / "x.parquet", table.column_names, "x")
    np.testing.assert_array_equal(found["null"], [1, np.nan, 3])
    np.testing.assert_array_equal(found["yes"], [1, 0, np.nan])
    assert (found["text"], found["code"]) == (["ä", None, "b"], found["code"])
    assert list(found["code"]) == ["u", "v", "u"]
    np.testing.assert_array_equal(found["fixed"], [[1, 2]] * 3)
    assert [None if e is None else e.tolist() for e in found["ragged"]] == [[1], [2, 3], None]
    assert [None if e is None else e.tolist() for e in found["deep"]] == [[[1, 2]], [[3, 4], [5, 6]], None]
    assert found["names"][0] == ["a", "b"]
    assert len(found["names"][1]) == 0
    assert found["names"][2] is None


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickled": (lambda f: write_npz(f / "x.npz", {"a": np.array([{"x": 1}], object)}), "an array of object"),
    "lacking": (lambda f: write_npz(f / "x.npz", {"c": np.ones(2)}), r"no column 'a'; it has c"),
    "lacking in parquet": (lambda f: write_parquet(f / "x.parquet", {"c": np.ones(2)}), r"no column 'a'; it has c"),
    "dates": (
        lambda f: write_parquet(f / "x.parquet", {"a": np.array(["2020-01-01"], "M8[D]"), "y": [1]}),
        r"column 'a' is of date32",
    ),
    "ending": (lambda f: f / "x.pt", r"\.pt: must be one of \.npz, \.parquet, \.safetensors"),
    "rows": (lambda _: {"a": np.ones(3), "y": np.ones(2)}, r"columns have 3 \(a\), 2 \(y\) rows"),
    "a number": (lambda _: 5, "it is a int; must be a file, arrays by name, or a dataset"),
    "a scalar": (lambda _: {"a": np.float32(1), "y": [0]}, r"must have as many|must be numbers or text"),
    "objects": (lambda _: {"a": [object()], "y": [0]}, "an entry is a object"),
    "uneven": (lambda _: {"a": [[[1], [1, 2]]], "y": [0]}, "an entry's parts differ in size"),
    "items": (lambda _: Items([{"a": 1, "y": 0}, 5]), "item 1 is a int"),
    "missing": (lambda f: f / "no.npz", "No such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_sources_that_are_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=REFUSED[case][1]) as error:
        read_columns(REFUSED[case][0](tmp_path), ["a", "y"], "data.source")
    assert "\n" not in str(error.value)


def test_long_texts_are_refused_before_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "x.parquet", {"a": ["x" * 1000] * 50})
    monkeypatch.setattr(sources, "TEXT_BYTES", 10_000)
    with pytest.raises(UserError, match=r"50,000 bytes of text; must be at most 10,000"):
        read_columns(tmp_path / "x.parquet", ["a"], "x")


SAFE_HEADERS = [
    '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 80000]}}',
    '{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
    '{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',
    '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}',
    '{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 8]}}',
    '{"a": {"dtype": "OBJ", "shape": [2], "data_offsets": [0, 8]}}',
    '{"a": {"dtype": "F32"}}',
    '{"a": 5}',
    "[]",
    "nonsense",
    "[" * 5000,
]


@pytest.mark.parametrize("header", SAFE_HEADERS)
def test_safetensors_headers_that_are_refused(header: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    with pytest.raises(UserError, match=r"x\.safetensors: ") as error:
        read_columns(path, ["a"], "x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["npz", "parquet", "safetensors"])
def test_damaged_files_are_one_line(suffix: str, tmp_path: Path) -> None:
    """Cut off, and with bytes changed: columns, or one line that names the file."""
    write = {"npz": write_npz, "parquet": write_parquet, "safetensors": write_safetensors}[suffix]
    names = ["a", "y"] if suffix == "safetensors" else ["a", "y", "name"]
    good = write(tmp_path / f"x.{suffix}", {name: columns()[name] for name in names}).read_bytes()
    draw, refused = random.Random(0), 0
    for attempt in range(120):
        content = bytearray(good[: draw.randrange(len(good))] if attempt % 3 == 0 else good)
        for _ in range(draw.randrange(1, 9)):
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
        (tmp_path / f"x.{suffix}").write_bytes(content)
        said = ""
        try:
            read_columns(tmp_path / f"x.{suffix}", names, f"x.{suffix}")
        except UserError as error:
            said = str(error)
        assert not said or f"x.{suffix}" in said
        assert "\n" not in said
        refused += bool(said)
    assert refused > 40
