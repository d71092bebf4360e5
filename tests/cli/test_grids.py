"""Large grids: what they read does not grow with their square; impossible cells are told before any is trained."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from amr.cli import main
from amr.cli.benchmark.command import _wandb_of
from amr.cli.benchmark.grid import Grid
from amr.cli.benchmark.plan import Cell, Row, make_cells, read_grid
from amr.cli.benchmark.possible import check_cells
from amr.cli.benchmark.trials import candidates, ranges_of
from amr.encoders import Encoder
from amr.utils import readers
from amr.utils.errors import UserError
from tests.cli.cells import finish, section_of
from tests.conftest import REPOSITORY

ENCODERS = {"audio": {"class_path": "amr.encoders.SmallCNN"}, "video": {"class_path": "amr.encoders.SmallFrameCNN"}}


def cell(name: str, teachers: str | None = None, data: dict[str, Any] | None = None, **model: Any) -> Cell:
    config = {"model": {"encoders": ENCODERS, **model}, "data": {"init_args": data or {}}}
    return Cell(Row(name, (), teachers=teachers), 0, (), config)


MISSING = {"audio": "teacher", "video": "teacher"}  # which the grid will train
IMPOSSIBLE: list[tuple[Cell, str]] = [
    (cell("a", ogm={}, ogm_ge={}), "a: model.ogm: cannot be combined with 'ogm_ge'"),
    (cell("a", mla={}), "a: model.mla: .*Shared"),
    (cell("a", mla={}, fusion="amr.fusion.Shared", dropout={}), "a: model.mla: cannot be combined with 'dropout'"),
    (cell("a", amr={}, encoders={"audio": ENCODERS["audio"]}), "a: model.amr: needs at least 2 modalities"),
    (cell("a", data={"modalities": ["audio"]}), "a: model.encoders.video: no input; must be among .*'audio'"),
    (cell("a", param_groups={"encodres": {"lr": 0}}), "a: model.param_groups.encodres: must match"),
    (cell("a", "model.umt.teachers", umt={"teachers": MISSING}, ogm={}, ogm_ge={}), "a: model.ogm: cannot be combined"),
    (cell("a", umt={"teachers": MISSING}), "a: model.umt.teachers.audio=teacher does not exist"),
    (cell("a", g2d={"teachers": MISSING}, umt={"teachers": MISSING}), "a: model.g2d: cannot be combined with 'umt'"),
]


@pytest.mark.parametrize(("wrong", "message"), IMPOSSIBLE)
def test_impossible_cells_are_refused(wrong: Cell, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}.*; take the rows out of the grid, or choose others with --only$"):
        check_cells([cell("naive"), wrong])


def test_all_that_are_wrong_are_named_in_one_line() -> None:
    cells = [cell(f"row{i}", ogm={}, ogm_ge={}) for i in range(6)] + [cell("right", ogm={})]
    with pytest.raises(UserError) as refused:
        check_cells([*cells, *cells])
    text = str(refused.value)
    assert "\n" not in text
    assert all(text.count(f"row{i}") == 1 for i in range(6))
    assert "; and row4, row5; take" in text
    assert "right" not in text


def test_what_may_be_trained_passes() -> None:
    teachers = {"teachers": MISSING}
    check_cells([cell("umt+amr", "model.umt.teachers", umt=teachers, amr={}), cell("mla", mla={}, fusion="Shared")])
    pretrained = {"class_path": "amr.encoders.ResNetEncoder", "init_args": {"weights": "nowhere.pt"}}
    check_cells([cell("resnet", encoders={**ENCODERS, "audio": pretrained})])


@pytest.mark.parametrize(
    ("base", "mode"),
    [([], "offline"), (["--wandb=disabled"], "disabled"), (["--x", "1", "--wandb", "online"], "online")],
)
def test_wandb_is_as_the_grids_base_says(base: list[str], mode: str) -> None:
    assert _wandb_of(base) == mode


def test_what_cannot_be_checked_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"class_path": f"{__name__}.Odd"}
    check_cells([cell("odd", encoders={**ENCODERS, "video": odd})])
    assert capsys.readouterr().err == "benchmark: odd is not checked: RuntimeError: needs its data\n"


class Odd(Encoder):
    def __init__(self) -> None:
        raise RuntimeError("needs its data")


def test_the_grids_that_come_with_amr_can_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 1's rows are rows of the larger grid."""
    monkeypatch.chdir(REPOSITORY)
    base, rows = read_grid(Path("configs/benchmarks/balance.yaml"))
    check_cells([Cell(row, 0, (), {"model": section_of([*base, *row.arguments])}) for row in rows])  # not the ensembles
    base_of_paper, rows_of_paper = read_grid(Path("configs/benchmarks/table1.yaml"))
    assert base_of_paper == base
    assert set(rows_of_paper) < set(rows)


def test_balance_has_every_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    rows = {row.name for row in read_grid(Path("configs/benchmarks/balance.yaml"))[1]}
    methods = {file.stem for file in Path("configs/methods").glob("*.yaml")} - {"amr"}
    assert rows >= {name for each in ("naive", *methods) for name in (each, f"{each}+amr")}


def test_balance_gives_every_row_as_many_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer where there are fewer values, one where there is no range."""
    monkeypatch.chdir(REPOSITORY)
    base, rows = read_grid(Path("configs/benchmarks/balance.yaml"))
    epochs = {"trainer": {"max_epochs": 20}}
    cells = [Cell(row, 0, (), {"model": section_of([*base, *row.arguments]), **epochs}) for row in rows]
    lists = candidates(rows, cells, 4)
    several = {cell.row.name: bool(ranges_of(cell.config)) for cell in cells if not cell.row.ensemble}
    assert {name: len(each) for name, each in lists.items() if len(each) < 4} == {
        **{name: 1 for name, tuned in several.items() if not tuned},
        "mla": 2,
    }
    assert [name for name, tuned in several.items() if not tuned] == ["audio", "video", "naive", "late_tuned", "tcmax"]
    assert all(len(set(each)) == len(each) for each in lists.values())


def test_a_grid_reads_each_run_and_lists_its_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its cells finish one by one, and the table is written after each."""
    rows = [Row(f"m{number}", (f"--{number}",)) for number in range(10)]
    resolved: list[Any] = []

    def resolve(arguments: Sequence[str]) -> dict[str, Any]:
        resolved.append(arguments)
        return {"model": {"arguments": list(arguments)}, "trainer": {"max_epochs": 1}}

    cells = make_cells(rows, range(3), [], resolve)
    assert (len(cells), len(resolved)) == (30, 10)  # a configuration a row
    (tmp_path / "cells").mkdir()
    opened_files: Counter[str] = Counter()
    listed: Counter[Path] = Counter()

    def opened(file: Path, *rest: Any) -> Any:
        opened_files[str(file)] += 1
        return real_open(file, *rest)

    def glob(self: Path, pattern: str) -> Any:
        listed[self] += 1
        return real_glob(self, pattern)

    real_open, real_glob = readers.opened, Path.glob
    monkeypatch.setattr(readers, "opened", opened)
    monkeypatch.setattr(Path, "glob", glob)
    monkeypatch.setattr("amr.cli.benchmark.grid.SELDOM", 0.0)
    grid = Grid(cells, tmp_path)
    for done in cells:
        finish(grid.task(done))
        grid._ended(done, 0, 1.0)
        assert len(json.loads((tmp_path / "grid.json").read_text())["runs"]) == len(grid.records)
    assert len(grid.records) == 30
    runs = [path for path in opened_files if path.endswith(("run.json", "metrics.csv"))]
    assert len(runs) == 60
    assert {opened_files[path] for path in runs} == {1}
    assert max(count for path, count in opened_files.items() if "/cells/" in path) <= 2
    assert listed[tmp_path / "runs"] == 1
    again = Grid(cells, tmp_path)
    assert not again.waiting
    assert [again.folder(done) for done in cells] == [grid.folder(done) for done in cells]
    assert listed[tmp_path / "runs"] == 2


def test_the_table_is_written_seldom_if_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = make_cells([Row("m", ())], range(6), [], lambda _: {"model": {}, "trainer": {}})
    (tmp_path / "cells").mkdir()
    grid = Grid(cells, tmp_path)
    written: list[int] = []
    real = Grid.write

    def write(self: Grid, page: bool = False) -> None:
        written.append(len(self.records))
        real(self, page)

    monkeypatch.setattr(Grid, "write", write)
    for number, done in enumerate(cells):
        finish(grid.task(done))
        if number == 2:
            grid._cost = 1e6  # as if it had taken days
        grid._ended(done, 0, 1.0)
    assert max(written) <= 2
    grid.run()  # nothing is left to train
    assert written[-1] == 6
    grid.run()
    assert written.count(6) == 1


def test_a_wrong_candidate_is_refused_before_any_is_trained(
    tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one of a stage that waits for the unimodal rows."""
    audio = "--model.encoders={audio: {class_path: amr.encoders.SmallCNN}}"
    tuning = {
        "all": [[], ["--model.dropout.p=0.5"]],
        "mla": [[], ["--model.ogm.alpha=0.1", "--model.ogm_ge.alpha=0.1"]],
    }
    grid = {
        "unimodal": {"audio": [audio, "--data.init_args.modalities=[audio]"]},
        "methods": {"mla": ["--model.fusion=Shared", "--model.mla.projection=false"]},
        "tuning": tuning,
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    command = [
        "benchmark",
        "--config",
        str(tmp_path / "grid.yaml"),
        "--data",
        tiny[1],
        *tiny[2:],
        "--wandb",
        "disabled",
    ]
    assert main([*command, "--seeds", "0", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("amr: mla.1: model.ogm: cannot be combined with 'ogm_ge'")
    assert not (tmp_path / "out").exists()
