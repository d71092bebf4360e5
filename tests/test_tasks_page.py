"""The numbers of docs/multiviz/tasks.md are those of the measurements beside its script."""

from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import REPOSITORY
from tests.scripts import script

FOLDER = REPOSITORY / "docs/results/tasks"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return script(FOLDER / "run.py")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(FOLDER / "measures.parquet").to_pylist()
    return found


def test_the_page_is_made_of_the_measurements(study: ModuleType, rows: list[dict[str, Any]]) -> None:
    text = study.PAGE.read_text()
    assert study.filled(text, rows) == text


def test_rates_are_pooled_over_seeds(study: ModuleType) -> None:
    """3 of 4 and 1 of 12 clips are 4 of 16; their Wilson interval by its formula, z = 1.96."""
    one = {"task": "t", "measure": "pointing", "part": "U x"}
    rows = [{**one, "value": 3 / 4, "chance": 0.5, "clips": 4}, {**one, "value": 1 / 12, "chance": 0.1, "clips": 12}]
    z, n, p = 1.959964, 16, 4 / 16
    middle, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z / (1 + z * z / n) * (p * (1 - p) / n + z * z / 4 / n**2) ** 0.5,
    )
    assert (
        study.rate_of(rows, "t", "U x") == f"25 [{100 * (middle - half):.0f}, {100 * (middle + half):.0f}] | 20.0 | 16"
    )


def test_every_seed_and_measure_is_there(rows: list[dict[str, Any]]) -> None:
    """Within a task no number is the mean of fewer models than the others."""
    for task in {row["task"] for row in rows}:
        mine = [row for row in rows if row["task"] == task]
        seeds = {row["seed"] for row in mine}
        assert {"accuracy", "EMAP gap", "pointing", "simulated user", "fault", "debugging"} <= {
            r["measure"] for r in mine
        }
        for measure in ("accuracy", "pointing", "debugging"):
            places = [(row["seed"], row["part"]) for row in mine if row["measure"] == measure]
            assert len(places) == len({*places}) == len(seeds) * len({part for _, part in places})
