"""Modalities of every kind from their columns."""

from typing import Any

import numpy as np
import pytest
import torch

from amr.datamodules.tensors.columns import Column, as_column
from amr.datamodules.tensors.sources import as_values
from amr.datamodules.tensors.values import Modality, modality_of
from amr.utils.errors import UserError

N, TRAIN = 6, np.arange(6) < 4


def made(values: Any, fitted: Any = None, **options: Any) -> Modality:
    columns = {name: as_values(x, name) for name, x in (values if isinstance(values, dict) else {"x": values}).items()}
    column = Column(**options)
    count = len(next(iter(columns.values())))
    return modality_of(
        "x", column, columns, np.arange(count) < 4, [f"c{i}" for i in range(count)], fitted, column.vocabulary
    )


@pytest.mark.parametrize(
    ("kind", "shape", "given"),
    [
        ("vector", (5,), (5,)),
        ("vector", (1,), ()),
        ("table", (5,), (5,)),
        ("series", (4, 3), (4, 3)),
        ("series", (4, 1), (4,)),
        ("image", (3, 8, 9), (8, 9, 3)),
        ("image", (3, 8, 9), (3, 8, 9)),
        ("image", (1, 8, 9), (8, 9)),
        ("frames", (2, 3, 8, 9), (2, 8, 9, 3)),
        ("frames", (2, 1, 8, 9), (2, 8, 9)),
        ("spectrogram", (1, 8, 9), (8, 9)),
        ("spectrogram", (2, 8, 9), (2, 8, 9)),
    ],
)
def test_shapes(kind: str, shape: tuple[int, ...], given: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=(N, *given))
    x = made(values, kind=kind, standardize=False)
    assert (x.x.shape, x.x.dtype, bool(x.present.all())) == ((N, *shape), torch.float32, True)
    expected = np.moveaxis(values, -1, -3) if given[-1:] == (3,) and len(given) > 2 else values
    assert torch.equal(x.x.flatten(), torch.from_numpy(expected.astype(np.float32)).flatten())


@pytest.mark.parametrize(
    ("kind", "given", "axes"),
    [
        ("vector", (5,), (0,)),
        ("series", (4, 3), (0, 1)),
        ("image", (3, 4, 4), (0, 2, 3)),
        ("spectrogram", (4, 5), None),
    ],
)
def test_standardizing_is_by_the_training_clips(kind: str, given: tuple[int, ...], axes: Any) -> None:
    values = np.random.default_rng(0).normal(5, 3, size=(N, *given)).astype(np.float32)
    x = made(values, kind=kind, standardize=True)
    kept = values[TRAIN].astype(np.float64)
    expected = (values - kept.mean(axes, keepdims=True)) / kept.std(axes, keepdims=True)
    np.testing.assert_allclose(x.x.reshape(values.shape), expected, rtol=1e-5, atol=1e-6)
    again = made(values[:2], fitted=x.fitted, kind=kind, standardize=True)
    assert torch.equal(again.x, x.x[:2])  # with what was fitted before, not with these clips' own


def test_a_constant_dimension_stays_finite() -> None:
    assert torch.equal(made(np.full((N, 2), 0.1), kind="vector").x.abs() < 1e-6, torch.ones(N, 2, dtype=torch.bool))


def test_missing_values_become_the_mean_and_missing_clips_are_absent() -> None:
    values = np.arange(12, dtype=np.float64).reshape(N, 2)
    values[1, 0], values[5] = np.nan, np.nan
    x = made(values, kind="vector", standardize=False)
    assert x.present.tolist() == [True] * 5 + [False]
    assert x.x[1].tolist() == [pytest.approx(np.nanmean(values[:4, 0])), 3]
    assert x.x[5].tolist() == [0, 0]
    lists = made([None if i == 5 else values[i] for i in range(N)], kind="vector", standardize=False)
    assert torch.equal(lists.x, x.x)
    assert torch.equal(lists.present, x.present)


def test_series_side_by_side_are_padded_with_the_mean() -> None:
    hr, bp = [np.ones(i + 1) * 3 for i in range(N)], [np.arange(i + 1.0) for i in range(N)]
    x = made({"hr": hr, "bp": bp}, kind="series", standardize=False)
    assert x.x.shape == (N, N, 2)
    mean = sum(map(sum, bp[:4])) / sum(map(len, bp[:4]))
    assert torch.equal(x.x[1, :, 1], torch.tensor([0, 1, *[mean] * 4], dtype=torch.float32))
    assert bool((x.x[:, :, 0] == 3).all())
    assert made({"hr": hr}, kind="series", length=2).x.shape == (N, 2, 1)


def test_tables_of_numbers_and_categories() -> None:
    sex = ["f", "m", None, "f", "x", "m"]
    x = made({"age": np.arange(6.0), "sex": sex}, kind="table", standardize=False)
    assert (x.names, x.owner) == (("age", "sex=f", "sex=m"), (0, 1, 1))
    assert x.x[:, 0].tolist() == list(range(6))
    assert x.x[[0, 1, 4]][:, 1:].tolist() == [[1, 0], [0, 1], [0, 0]]  # training has no x
    assert torch.allclose(x.x[2, 1:], torch.tensor([2 / 3, 1 / 3]))  # missing: the mean
    assert made(np.ones((N, 2)), kind="table", names=["p", "q"]).names == ("p", "q")


def test_tokens_of_texts_and_ids() -> None:
    texts = ["b a a", "a", "c a b", "d", "z b", None]
    x = made(texts, kind="tokens")
    assert x.vocabulary == ["<pad>", "<unknown>", "a", "b", "c", "d"]  # the most frequent first; z is not in training
    assert x.x.tolist() == [[3, 2, 2], [2, 0, 0], [4, 2, 3], [5, 0, 0], [1, 3, 0], [0, 0, 0]]
    assert x.present.tolist() == [True] * 5 + [False]
    assert (x.x.dtype, made(texts, kind="tokens", most=1).vocabulary) == (torch.int64, ["<pad>", "<unknown>", "a"])
    assert made(["ab", "b"], kind="tokens", unit="character").x.tolist() == [[3, 2], [2, 0]]
    assert made(texts, kind="tokens", vocabulary=["d", "a"]).x[0].tolist() == [1, 3, 3]
    assert made([["b", "a"], ["a"]], kind="tokens").x.tolist() == [[3, 2], [2, 0]]
    ids = made([[5, 6, 7], [8]], kind="tokens", length=2)
    assert (ids.x.tolist(), ids.vocabulary) == ([[5, 6], [8, 0]], [])
    assert made(["y b"], fitted=x.fitted, kind="tokens").x.tolist() == [[1, 3, 0]]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (
            np.array(["a", "b"]),
            {"kind": "vector"},
            r"data.modalities.x: clip 'c0' \(row 0\): column 'x' has text; must be \(D,\)",
        ),
        ([[1.0, 2.0], [1.0]], {"kind": "vector"}, r"clip 'c1' \(row 1\): its shape is \(1,\), others' \(2,\)"),
        ([[1.0, 2.0], "x"], {"kind": "vector"}, r"clip 'c1' \(row 1\): column 'x' has 'x'"),
        ([[1.0], [np.inf]], {"kind": "vector"}, r"clip 'c1' \(row 1\): column 'x' has infinity"),
        (np.ones((2, 3, 4)), {"kind": "vector"}, r"its shape is \(3, 4\); must be \(D,\)"),
        (np.ones((2, 0)), {"kind": "vector"}, r"its shape is \(0,\)"),
        (np.full((2, 3), np.nan), {"kind": "vector"}, "no training clip has it"),
        ([None, None], {"kind": "vector"}, "no clip has it"),
        (np.ones((2, 3)), {"kind": "image"}, r"must be \(H, W\), \(C, H, W\) or \(H, W, C\)"),
        ([[1.5], [2.0]], {"kind": "tokens"}, "an id that is no whole number"),
        ([[-1], [2]], {"kind": "tokens"}, "an id that is no whole number"),
        ([[7], [2]], {"kind": "tokens", "vocabulary": ["a"]}, "id 7 is not in the vocabulary of 3"),
        (["", ""], {"kind": "tokens"}, "no clip has a token"),
        (["a", 5], {"kind": "tokens"}, "has shape|among texts"),
        (np.ones((2, 2)), {"kind": "table", "names": ["p"]}, "names: 1 names; must be 2"),
        ([None, None], {"kind": "table"}, "no clip has it"),
    ],
)
def test_values_that_are_refused(values: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        made(
            [np.asarray(v) if isinstance(v, list) else v for v in values] if isinstance(values, list) else values,
            **options,
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sound", r"data.modalities.x.kind='sound': must be one of vector, table"),
        (5, r"data.modalities.x=5: must be a kind"),
        ({"columns": "a"}, "data.modalities.x: no kind"),
        ({"kind": "vector", "colums": "a"}, "no option 'colums'"),
        ({"kind": "vector", "columns": ["a", "b"]}, "several are for a table or a series"),
        ({"kind": "vector", "length": 3}, "length=3: must be null for the kind vector"),
        ({"kind": "series", "length": 0}, "length=0: must be a whole number of at least 1"),
        ({"kind": "tokens", "standardize": True}, "must be false or null for tokens"),
        ({"kind": "table", "columns": ["a", "b"], "names": ["a", "b"]}, "names: must be null"),
        ({"kind": "image", "channels": "middle"}, "channels='middle': must be one of first, last"),
    ],
)
def test_options_that_are_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_column("x", given)
