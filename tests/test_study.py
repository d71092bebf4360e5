"""The study's grids resolve, and its report is made from whatever runs there are."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from amr.cli import main
from amr.cli.benchmark.plan import make_cells, read_grid
from amr.cli.benchmark.resolve import resolver
from amr.evaluation.statistics import Difference
from tests.conftest import REPOSITORY
from tests.scripts import STUDY, line, script

GRIDS = {
    **dict.fromkeys(("tuning", "methods", "dial", "shapley", "options"), "letters"),
    "crema-d": None,
}


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "docs").rglob("*.py")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_scripts_of_the_documents_import(path: Path) -> None:
    """They take hours and are not run here; what they import must be where they think."""
    script(path)


@pytest.fixture(scope="module")
def report() -> ModuleType:
    return script(STUDY / "report.py")


@pytest.mark.filterwarnings("ignore")
def test_grids_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    resolve = resolver()
    for grid, data in GRIDS.items():
        base, rows = read_grid(STUDY / f"{grid}.yaml")
        config = STUDY / f"{data}.yaml" if data else REPOSITORY / "configs/data/crema-d.yaml"
        only = [rows[-1].name]  # each takes a second
        cells = make_cells(rows, [0], ["--config", str(config), *base], resolve, only)
        assert set(only) <= {cell.row.name for cell in cells}


def test_what_the_grids_say_of_each_other() -> None:
    """Cells that two grids share are trained once: their entries must be the same."""
    files = {
        name: yaml.safe_load((STUDY / f"{name}.yaml").read_text())
        for name in ("methods", "tuning", "dial", "shapley", "options")
    }
    assert len({json.dumps(grid["base"]) for grid in files.values()}) == 1
    tried = files["tuning"]["methods"].values()
    assert all(entry in tried for entry in files["methods"]["methods"].values())  # what was chosen had been tried
    amr = files["methods"]["amr"]
    assert files["options"]["methods"]["amr"] == files["dial"]["methods"]["r0.5"] == amr
    assert amr in tried
    assert all(entry[: len(amr)] == amr for name, entry in files["dial"]["methods"].items() if name != "naive")
    shapley = files["shapley"]["methods"]
    for name, entry in shapley.items():
        ratio = [] if name == "r0.5" else files["dial"]["methods"][name][-1:]
        assert entry == shapley["r0.5"] + ratio


# ---------------------------------------------------------------------------------------------------------- the report


def lines() -> list[dict[str, Any]]:
    """Three seeds of naive fusion and of AMR, a dial and a trial."""
    found = []
    for seed, (plain, balanced) in enumerate([(0.8, 0.79), (0.84, 0.81), (0.82, 0.81)]):
        for row, accuracy, share in (("naive", plain, 0.9), ("naive+amr", balanced, 0.5)):
            found += [line(row, seed, "acc", accuracy), line(row, seed, "share", share, modality="audio")]
            found += [line(row, seed, "shapley_share", share + 0.05, modality="audio")]
            found += [line(row, seed, "acc_missing_mean", 0.1 + share / 2, modality="video")]
            found += [line(row, seed, "val/dominance/audio", share, epoch=epoch) for epoch in range(3)]
            for severity in range(1, 6):
                spoilt: dict[str, Any] = {"modality": "audio", "corruption": "white", "severity": severity}
                found += [line(row, seed, "acc_corrupted", accuracy - 0.1 * severity, **spoilt)]
        for target in (0.1, 0.5, 0.9):
            found += [line(f"r{target}", seed, "share", target + 0.02 * seed, "dial", modality="audio")]
            found += [line(f"r{target}", seed, "acc", 0.7 + 0.2 * target, "dial")]
        found += [
            line("naive-lr0.1", seed, "val/acc", accuracy, "tuning", epoch=epoch)
            for epoch, accuracy in enumerate((0.5, 0.6))
        ]
    return found


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(lines(), script(STUDY / "measure.py").SCHEMA), folder / "letters.parquet")
    return folder


def test_report(report: ModuleType, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "README.md"
    page.write_text("Before\n\n<!-- amr letters -->\nold\n<!-- end -->\n\n<!-- options -->\n<!-- end -->\nafter\n")
    assert report.main(["--results", str(results), "--out", str(tmp_path), "--print"]) == 0
    text = page.read_text()
    difference = Difference.of([-0.01, -0.03, -0.01])
    assert f"| accuracy | {difference} |" in text
    assert "| audio's share | **-40.0 [-40.0, -40.0]** |" in text
    assert text.startswith("Before\n\n<!-- amr letters -->\n| with AMR minus without | Naive fusion |")
    assert "old" not in text
    printed = capsys.readouterr().out
    assert "| Naive fusion w/ AMR | 80.3 ± 1.2 | 50.0 ± 0.0 |" in printed
    assert "| naive-lr0.1 | 60.0 ± 0.0 | – | 3 |" in printed
    assert "| accuracy | +2.0 [+2.0, +2.0] | +1.00 | 3 |" in printed  # of the dial: 0.2 a whole
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {"epochs.png", "severity-letters.png", "shapley.png", "dial-letters.png", "tuning.png"}
    once = page.read_text()
    assert report.main(["--results", str(results), "--out", str(tmp_path)]) == 0
    assert page.read_text() == once


def test_report_of_the_runs_that_there_are(report: ModuleType) -> None:
    """The pages' tables are those of the parquet files beside it."""
    parts = report.pieces(report.Results(STUDY / "results"))
    for page in (STUDY / name for name in report.PAGES):
        text = page.read_text()
        assert report.fill(text, parts, report.OTHERS) == text, page
        assert "No runs." not in text, page


# ------------------------------------------------------------------------------------------------------------ measures


@pytest.mark.filterwarnings("ignore")
def test_measure(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's numbers: those that testing logged, and those of `amr.evaluation.robustness`, measured once."""
    measure = script(STUDY / "measure.py")
    monkeypatch.setattr(measure, "RUNS", tmp_path)
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    out = tmp_path / "letters"
    fit = [
        "fit",
        *tiny,
        "--runs_dir",
        str(out / "runs"),
        "--name",
        "a",
        "--wandb",
        "disabled",
        "--trainer.max_epochs",
        "1",
    ]
    assert main(fit) == 0
    assert main(["test", "--ckpt_path", str(out / "runs/a/checkpoints/best.ckpt"), "--wandb", "disabled"]) == 0
    command = "amr benchmark --config docs/study/methods.yaml --data x"
    facts = {"command": command, "runs": {"naive-s3": "a"}, "machine": {}}
    (out / "cells").mkdir()
    (out / "cells/x.json").write_text(json.dumps({"run": "a", "seconds": 12.5, "resumed": False}))
    (out / "grid.json").write_text(json.dumps(facts))
    assert measure.main(["letters", "methods"]) == 0
    rows = pq.read_table(tmp_path / "results/letters-methods.parquet").to_pylist()
    assert {(row["dataset"], row["grid"], row["row"], row["seed"]) for row in rows} == {
        ("letters", "methods", "naive", 3)
    }
    value = {(row["measure"], row["modality"]): row["value"] for row in rows if row["severity"] is None}
    assert value["acc", ""] == pytest.approx(value["test/acc", ""])
    assert value["share", "audio"] == pytest.approx(value["test/dominance/audio", ""], abs=1e-6)
    assert ("probe", "video") in value
    assert value["seconds", ""] == 12.5
    spoilt = [row for row in rows if row["measure"] == "acc_corrupted"]
    assert len(spoilt) == 5 * (2 + 2 + 2)
    elsewhere = ["letters", "methods", "--results", str(tmp_path / "clean"), "--runs"]
    few = tmp_path / "few"
    few.mkdir()
    (few / "letters").mkdir()
    for name in ("runs", "cells", "grid.json"):
        (few / "letters" / name).symlink_to(out / name)
    assert measure.main([*elsewhere, str(few), "--measures", "logged"]) == 0
    logged = pq.read_table(tmp_path / "clean/letters-methods.parquet").to_pylist()
    assert {row["measure"] for row in logged} >= {"val/acc", "val/mAP", "test/acc", "seconds"}
    assert not {"acc", "share"} & {row["measure"] for row in logged}
    assert measure.main([*elsewhere, str(few), "--measures", "clean"]) == 0  # what was logged alone is not all of it
    clean = pq.read_table(tmp_path / "clean/letters-methods.parquet").to_pylist()
    assert {row["measure"] for row in clean} < {row["measure"] for row in rows}
    assert all(row in rows for row in clean)
    monkeypatch.setattr(measure, "load_model", lambda path: pytest.fail("measured twice"))
    facts |= {"command": command.replace("methods", "dial"), "runs": {"r0.1-s3": "b"}}  # of another grid
    (out / "grid.json").write_text(json.dumps(facts))
    assert measure.main(["letters", "methods"]) == 0
    assert pq.read_table(tmp_path / "results/letters-methods.parquet").to_pylist() == rows
