"""Labels, ids and splits of tensors."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from amr.datamodules.tensors.labels import check_fractions, drawn, ids_of, labels_of, splits_of
from amr.utils.errors import UserError

IDS = ["c0", "c1", "c2"]
FLAGS = [[1, 0], [1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("values", "given", "names", "target"),
    [
        (np.array([10, 2, 10]), None, ["2", "10"], [1, 0, 1]),
        (np.array([1.0, 0.0, 1.0]), ["no", "yes"], ["no", "yes"], [1, 0, 1]),
        (np.array(["b", "a", "b"]), None, ["a", "b"], [1, 0, 1]),
        (["b", "a ", "b"], ["b", "a"], ["b", "a"], [0, 1, 0]),
        (np.array([True, False, True]), None, ["0", "1"], [1, 0, 1]),
        (np.array(FLAGS), None, ["0", "1"], FLAGS),
        (np.array(FLAGS, bool), ["cat", "dog"], ["cat", "dog"], FLAGS),
        ([["cat"], ["dog", "cat"], []], None, ["cat", "dog"], FLAGS),
        ([np.array([0]), np.array([1, 0]), np.array([])], ["cat", "dog"], ["cat", "dog"], FLAGS),
    ],
)
def test_labels(values: Any, given: Any, names: list[str], target: Any) -> None:
    found = labels_of({"y": values}, given, IDS)
    assert found.names == names
    assert found.target.tolist() == target
    assert found.target.dtype == (torch.int64 if np.ndim(target) == 1 else torch.float32)
    if np.ndim(target) == 1:
        assert found.text == [names[i] for i in target]
    else:
        assert found.text == [names[0], ", ".join(names), ""]


def test_labels_in_columns_of_their_own() -> None:
    found = labels_of({"cat": np.array([1, 1, 0]), "dog": [0, 1, 0]}, None, IDS)
    assert (found.names, found.target.tolist()) == (["cat", "dog"], FLAGS)


@pytest.mark.parametrize(
    ("values", "given", "message"),
    [
        (
            {"y": np.array(["a", "", "b"])},
            None,
            r"clip 'c1' \(row 1\): column 'y' has ''; must be a class's name or index",
        ),
        ({"y": ["a", None, "b"]}, None, r"clip 'c1' \(row 1\)"),
        ({"y": np.array([0.5, 1, 1])}, None, r"clip 'c0' \(row 0\): column 'y' has '0.5'"),
        ({"y": np.array([0, 1, 2])}, ["a", "b"], r"clip 'c2' \(row 2\): label 2; must be an index of the 2 .* 0 to 1"),
        ({"y": np.array(["a", "b", "c"])}, ["a", "b"], r"clip 'c2' \(row 2\): label 'c'; must be one of a, b"),
        ({"y": np.array([0, 1, 1])}, ["a", "a"], "must name each label once"),
        ({"y": np.array([[0, 1], [0, 2], [0, 1]])}, None, r"clip 'c1' \(row 1\): label '1' is 2; must be 0 or 1"),
        ({"y": np.array([[0, np.nan], [0, 1], [0, 1]])}, None, r"clip 'c0' \(row 0\): label '1' is nan"),
        ({"y": np.array(FLAGS)}, ["a"], "1 names; must be 2"),
        ({"y": [["a"], None, ["b"]]}, None, r"clip 'c1' \(row 1\): column 'y' has 'None'; must be a list"),
        ({"y": [["a"], ["z"], ["a"]]}, ["a", "b"], r"clip 'c1' \(row 1\): label 'z'; must be one of a, b"),
        ({"y": [[], [], np.array([[1]])]}, None, "must be a list|no label"),
        ({"y": np.array([0, 1, 1]), "z": np.array(["a", "b", "c"])}, None, "label column 'z' is of"),
        ({"y": np.array(["a", "a\u200b", "b"])}, None, "look alike"),
    ],
)
def test_labels_that_are_refused(values: Any, given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        labels_of(values, given, IDS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", None], "row 1 is 'None'"),
        (["a", " "], "row 1 is ' '"),
        (["a", "a"], "'a' is there 2 times"),
        (["a\x00b", "b"], "row 0 is"),
        ([np.array([1, 2]), "b"], "row 0 is"),
    ],
)
def test_ids_that_are_refused(ids: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ids_of(ids)


def test_blanks_around_an_id_do_not_count() -> None:
    assert ids_of(["a", " b\n"]) == ["a", "b"]


def test_a_split_that_is_refused() -> None:
    with pytest.raises(UserError, match=r"clip 'c1' \(row 1\) has 'dev'; must be one of train, val, test, all"):
        splits_of(np.array(["train", "dev", "test"]), IDS)


def test_fractions_are_of_each_class_and_do_not_depend_on_the_order() -> None:
    ids = [f"c{i}" for i in range(400)]
    target = torch.tensor([0] * 300 + [1] * 80 + [2] * 20)
    split = drawn({"val": 0.1, "test": 0.2}, ids, target, 0, stratify=True)
    counts = Counter(zip(split, target.tolist(), strict=True))
    assert [counts[s, c] for s in ("val", "test") for c in range(3)] == [30, 8, 2, 60, 16, 4]
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0)).tolist()
    again = drawn({"val": 0.1, "test": 0.2}, [ids[i] for i in order], target[order], 0, stratify=True)
    assert [again[order.index(i)] for i in range(400)] == split
    other = drawn({"val": 0.1, "test": 0.2}, ids, target, 1, stratify=False)
    assert Counter(other) == {"train": 280, "val": 40, "test": 80}
    assert other != split


def test_fractions_of_several_labels_are_of_the_rarest() -> None:
    target = torch.zeros(100, 3)
    target[:, 0], target[:20, 1], target[:10, 2] = 1, 1, 1
    split = drawn({"test": 0.5}, [f"c{i}" for i in range(100)], target, 0, stratify=True)
    assert [split[:10].count("test"), split[10:20].count("test"), split[20:].count("test")] == [5, 5, 40]


def test_many_small_classes_keep_the_whole_fraction() -> None:
    split = drawn({"test": 0.2}, [f"c{i}" for i in range(100)], torch.arange(100) // 2, 0, stratify=True)
    assert split.count("test") == 20


@pytest.mark.parametrize("given", [{}, {"train": 0.5}, {"val": 0}, {"val": 0.5, "test": 0.5}, {"val": "x"}])
def test_fractions_that_are_refused(given: Any) -> None:
    with pytest.raises(UserError, match="must be fractions of val and test"):
        check_fractions(given)
