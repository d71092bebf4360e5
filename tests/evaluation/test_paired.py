"""Single runs, clip by clip: the interval against a bootstrap that draws clips, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amr.evaluation.paired import clip_difference, stored_outcomes
from amr.evaluation.runs import BLANK
from amr.report import read_run, summarise, table_text
from amr.report.parts.single import effect_cells, single_cells
from tests.report.runs import epoch, page_of, results, table_of, write_run

RIGHT = {"naive": [True] * 70 + [False] * 30, "amr": [True] * 60 + [False] * 10 + [True] * 25 + [False] * 5}


def store(run: Path, right: list[bool], name: str = "test_predictions.parquet", first: int = 0) -> None:
    """Predictions of as many clips as `right` has."""
    ids = [f"{first + i:03d}" for i in range(len(right))]
    columns = {"id": ids, "label": ["a"] * len(ids), "prediction": ["a" if yes else "b" for yes in right]}
    pq.write_table(pa.table(columns), run / name)


def make(folder: Path, **rights: list[bool]) -> list[Path]:
    """A tested run of each method, with its predictions."""
    paths = []
    for method, right in rights.items():
        path = write_run(folder / method, epoch(0, 0.5), results(sum(right) / len(right)), method=method)
        store(path, right)
        paths.append(path)
    return paths


def test_the_interval_is_that_of_resampled_clips() -> None:
    ids = range(100)
    first, second = ({f"{i}": ("a", RIGHT[name][i]) for i in ids} for name in ("amr", "naive"))
    found = clip_difference(first, second)
    assert found is not None
    difference = np.array(RIGHT["amr"], float) - np.array(RIGHT["naive"], float)
    drawn = np.random.default_rng(1).integers(100, size=(20_000, 100))
    low, high = np.quantile(difference[drawn].mean(1), [0.025, 0.975])
    assert found.mean == pytest.approx(difference.mean())
    assert (found.clips, found.gained, found.lost) == (100, 25, 10)
    # Quantiles of a distribution on hundredths: a draw's noise may move an end by one.
    assert found.low == pytest.approx(low, abs=0.0101)
    assert found.high == pytest.approx(high, abs=0.0101)
    mirrored = clip_difference(second, first)
    assert mirrored is not None
    assert mirrored.mean == -found.mean
    assert clip_difference(first, first) is not None
    assert clip_difference(first, dict(list(second.items())[1:])) is None  # other clips
    assert clip_difference(first, {**second, "0": ("b", True)}) is None  # another label


def test_page_and_text_name_it(tmp_path: Path) -> None:
    paths = make(tmp_path, **RIGHT)
    runs = [read_run(path) for path in paths]
    text, page = table_text(runs), page_of(paths, tmp_path / "report.html")
    row = table_of(text, 2)["amr"]
    assert row[0] == "amr"
    assert row[1].startswith("+15.0 [")
    assert row[2:] == ["100", "25", "10"]
    for shown in (text, page):
        assert "Single runs, clip by clip" in shown
        assert "paired bootstrap over the test clips" in shown
    assert list(table_of(text, 2)) == ["amr"]  # the baseline is not compared with itself


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ("another accuracy", "test_predictions.parquet has an accuracy of 50.0 %, not the 85.0 % of its last test"),
        ("other clips", "/naive was tested on other clips"),
        ("no table", "amr: not compared clip by clip: "),
        ("nothing", ""),
    ],
)
def test_predictions_of_something_else_are_not_used(change: str, note: str, tmp_path: Path) -> None:
    paths = make(tmp_path, **RIGHT)
    file = paths[1] / "test_predictions.parquet"
    changes: dict[str, Any] = {
        "another accuracy": lambda: store(paths[1], [True, False]),
        "other clips": lambda: store(paths[1], RIGHT["amr"], first=1),
        "no table": lambda: file.write_text("x"),
        "nothing": file.unlink,
    }
    changes[change]()
    body, notes = single_cells(summarise([read_run(path) for path in paths]))
    assert body == []
    assert len(notes) == bool(note)
    assert all(note in said for said in notes)


def test_what_amr_changes_in_single_runs(tmp_path: Path) -> None:
    """Over clips where the predictions are there, and else the shares alone: no column of dashes."""
    right = RIGHT | {"umt": RIGHT["naive"], "umt+amr": RIGHT["amr"]}
    paths = make(tmp_path, **right)
    (paths[-1] / "test_predictions.parquet").unlink()
    shown = table_of(table_text([read_run(path) for path in paths]), 1)
    assert shown["naive"][1:] == [str(over_clips("amr", "naive")), "50.0 → 50.0", "50.0 → 50.0"]
    assert shown["umt"][1] == BLANK
    page = page_of(paths, tmp_path / "report.html")
    assert "Accuracy, over clips: of one run each" in page
    (paths[1] / "test_predictions.parquet").unlink()
    effects = effect_cells(summarise([read_run(path) for path in paths]))
    assert effects is not None
    caption, head, body, notes = effects
    assert head == ["Method", "audio dominance", "video dominance"]
    assert [line[0] for line in body] == ["naive", "umt"]
    assert "a difference has no interval" in caption
    assert notes == []


def over_clips(first: str, second: str) -> object:
    one, other = ({str(i): ("a", right) for i, right in enumerate(RIGHT[name])} for name in (first, second))
    return clip_difference(one, other)


def test_what_predict_left_is_used_where_it_fits(tmp_path: Path) -> None:
    (path,) = make(tmp_path, naive=RIGHT["naive"])
    (path / "test_predictions.parquet").rename(path / "predictions.parquet")
    outcomes, said = stored_outcomes(read_run(path))
    assert outcomes is not None
    assert (len(outcomes), said) == (100, "")
    store(path, [True, False], "predictions.parquet")  # of the validation split, say
    assert stored_outcomes(read_run(path)) == (None, "")


def test_several_runs_a_row_are_compared_by_seed_only(tmp_path: Path) -> None:
    paths = make(tmp_path, **RIGHT)
    more = [write_run(tmp_path / f"{m}-1", epoch(0, 0.5), results(0.7), method=m, seed=1) for m in RIGHT]
    assert single_cells(summarise([read_run(path) for path in [*paths, *more]])) == ([], [])
