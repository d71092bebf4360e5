"""`--tune`: as many trials for every row over its methods' ranges, chosen by validation, and said."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from amr.cli import main
from amr.cli.benchmark.grid import Grid
from amr.cli.benchmark.plan import Cell, Row
from amr.cli.benchmark.trials import candidates
from amr.regularizers import Regularizer
from amr.regularizers.slots import method_slots
from amr.utils.errors import UserError
from amr.utils.names.ranges import Choices, Range, radical_inverse
from tests.cli.cells import AtOnce, section_of

ROWS = {"naive": [], "multi_loss": ["--model.multi_loss.weight=1"], "mla": ["--model.mla.mixing=entropy"]}
REQUIRED: dict[str, Any] = {"teachers": {"a": "a.ckpt"}, "dominant": "a"}


def test_positions_fill_the_range_evenly() -> None:
    assert [radical_inverse(n, 2) for n in range(1, 8)] == [1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8]
    assert [radical_inverse(n, 3) for n in range(1, 6)] == pytest.approx([1 / 3, 2 / 3, 1 / 9, 4 / 9, 7 / 9])


def test_values_by_hand() -> None:
    assert [Range(0.1, 10, "log").at(p, 9) for p in (0.25, 0.5, 0.75)] == [0.316, 1.0, 3.16]
    assert [Range(0, 4).at(p, 9) for p in (0.25, 0.5)] == [1.0, 2.0]
    assert [Range(0, 0.5, "epochs", least=1).at(p, 20) for p in (0.01, 0.5, 0.99)] == [1, 5, 10]
    assert [Choices(("a", "b")).at(p, 9) for p in (0.1, 0.5, 0.9)] == ["a", "b", "b"]


@pytest.mark.parametrize("name", [name for name, kind in method_slots().items() if kind.ranges])
def test_every_value_of_a_range_is_allowed(name: str) -> None:
    kind: type[Regularizer] = method_slots()[name]
    needed = {key: REQUIRED[key] for key in inspect.signature(kind).parameters if key in REQUIRED}
    for position in (0.001, 0.5, 0.999):
        for epochs in (4, 100):
            kind(**needed, **{option: span.at(position, epochs) for option, span in kind.ranges.items()})


def resolve(arguments: Sequence[str]) -> dict[str, Any]:
    return {"model": {"naive": None, **section_of(arguments)}, "trainer": {"max_epochs": 20}}


def test_all_rows_have_the_same_trials_and_what_was_chosen_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """More trials keep those that there are; the trials' seed is the first one alone."""
    started: list[str] = []

    def process(self: Grid, cell: Cell) -> AtOnce:
        started.append(cell.name)
        weight = cell.config["model"].get("multi_loss", {}).get("weight", 1)
        return AtOnce(self.task(cell), {0.316: 0.4, 3.16: 0.7, 0.562: 0.8}.get(weight, 0.5))

    monkeypatch.setattr(Grid, "process", process)
    monkeypatch.setattr("amr.cli.benchmark.command.resolver", lambda: resolve)
    monkeypatch.setattr("amr.cli.benchmark.command.check_cells", lambda cells: None)
    monkeypatch.setattr("amr.cli.benchmark.command.prepare_stores", lambda cells: None)
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"methods": ROWS, "tuning": {"all": [[], ["--lr=1"]]}}))
    out = tmp_path / "out"
    command = ["benchmark", "--config", str(tmp_path / "grid.yaml"), "--data", "synthetic", "--out", str(out)]
    command += ["--seeds", "3", "4", "--jobs", "4"]
    assert main([*command, "--tune", "3"]) == 0
    trials = {"naive.0-s3", "mla.0-s3", "mla.1-s3", *(f"multi_loss.{n}-s3" for n in range(3))}
    assert set(started) == trials | {"naive-s4", "mla-s4", "multi_loss-s4"}
    assert len(started) == 9
    record = json.loads((out / "grid.json").read_text())["tuning"]
    assert (record["seed"], record["trials"]) == (3, 3)
    assert record["rows"] == json.loads((out / "tuning.json").read_text())
    assert record["rows"]["multi_loss"] == {
        "candidates": [[], ["--model.multi_loss.weight=0.316"], ["--model.multi_loss.weight=3.16"]],
        "val/acc": [0.5, 0.4, 0.7],
        "chosen": 2,
    }
    printed, said = capsys.readouterr()
    assert "--tune takes the place of the grid's own `tuning`" in said
    for text in (printed, (out / "table.md").read_text()):
        assert "3 trials per row, each with seed 3 alone" in text
        assert "Nothing to tune, so without further trials: naive." in text
        assert "| multi_loss | model.multi_loss.weight=3.16 | 70.0 | 3 |" in text
        assert "| mla | as it stands | 50.0 | 2 (no further values) |" in text
    page = (out / "report.html").read_text()
    assert "Chosen by validation" in page
    assert "model.multi_loss.weight=3.16" in page
    started.clear()
    assert main([*command, "--tune", "3"]) == 0
    assert started == []
    assert main([*command, "--tune", "6"]) == 0
    assert started == ["multi_loss.3-s3", "multi_loss.4-s3", "multi_loss.5-s3", "multi_loss-s4"]
    capsys.readouterr()
    assert main([*command, "--tune", "6", "--dry_run"]) == 0
    assert capsys.readouterr().out.endswith("6/6 cells finished\n")


@pytest.mark.parametrize(
    ("trials", "given", "names", "epochs", "message"),
    [
        (1, [], ROWS, 20, "--tune=1: must be at least 2"),
        (-3, [], ROWS, 20, "--tune=-3: must be at least 2"),
        (3, [], ["naive"], 20, "--tune=3: no row has an option with a range; must be left out"),
        (3, ["model.mla.mixing"], ROWS, 20, "--model.mla.mixing: must not be given with --tune, .* row mla"),
        (3, [], ["smv"], -1, "smv: trainer.max_epochs=-1: must be a positive number with --tune"),
        (3, [], ["smv"], None, "smv: trainer.max_epochs=None: must be"),
    ],
)
def test_what_makes_no_sense_is_refused(
    trials: int, given: list[str], names: Sequence[str], epochs: int | None, message: str
) -> None:
    rows = [Row(name, ()) for name in names]
    cells = [Cell(row, 0, (), {"model": {row.name: {}}, "trainer": {"max_epochs": epochs}}) for row in rows]
    with pytest.raises(UserError, match=f"^{message}"):
        candidates(rows, cells, trials, given)
