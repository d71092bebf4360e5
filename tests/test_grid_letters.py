"""The scripts of docs/results/grid-letters: what they choose, what they say, and whether the grids resolve."""

import json
import shlex
import shutil
import statistics
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy import stats

from amr.cli import main
from amr.cli.benchmark.plan import make_cells, read_grid
from amr.cli.benchmark.resolve import resolver
from tests.conftest import REPOSITORY
from tests.scripts import STUDY, line, script

FOLDER = REPOSITORY / "docs" / "results" / "grid-letters"
WRITTEN = ("tuning", "amr", "main")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return script(FOLDER / "tables.py")


@pytest.fixture(scope="module")
def schema() -> pa.Schema:
    return script(STUDY / "measure.py").SCHEMA


# ------------------------------------------------------------------------------------------------------- what is chosen


def trial(grid: str, name: str, *curves: tuple[tuple[float, float], ...]) -> list[dict[str, Any]]:
    """(accuracy, mAP) of each epoch of each seed."""
    return [
        line(name, seed, f"val/{measure}", epoch[index], grid, epoch=number)
        for seed, curve in enumerate(curves)
        for number, epoch in enumerate(curve)
        for index, measure in enumerate(("acc", "mAP"))
    ]


def trials(entries: dict[str, Any]) -> list[dict[str, Any]]:
    """Of all grids that are tuned; the last value of each method is the best but where said otherwise."""
    at = {name: number for number, name in enumerate(entries["methods"])}
    better = [line for name, n in at.items() for line in trial("tuning", name, ((n / 100, 0.5),), ((n / 100, 0.5),))]
    better = [line for line in better if not line["row"].startswith(("naive", "dgl", "umt"))]
    lines = [
        *trial("rates", "audio-lr0.05", ((0.5, 0.5), (0.6, 0.5)), ((0.5, 0.5), (0.6, 0.5))),
        *trial("rates", "audio-lr0.1", ((0.9, 0.5), (0.1, 0.5)), ((0.2, 0.5), (0.4, 0.5))),  # best epochs: 0.65
        *trial("rates", "audio-lr0.025", ((0.6, 0.9), (0.6, 0.9)), ((0.6, 0.9), (0.6, 0.9))),
        *trial("rates", "video-lr0.05", ((0.5, 0.5),), ((0.5, 0.5),)),
        *(
            line
            for grid in ("rates", "tuning")
            for line in (
                *trial(grid, "naive-lr0.05", ((0.75, 0.7),), ((0.75, 0.7),)),
                *trial(grid, "naive-lr0.1", ((0.625, 0.75),), ((0.875, 0.75),)),  # as good, with a higher mAP
                *trial(grid, "naive-lr0.025", ((0.75, 0.75),), ((0.75, 0.75),)),  # as good in both
            )
        ),
        *trial("tuning", "dgl-a1", ((0.1, 0.8),), ((0.1, 0.8),)),
        *trial("tuning", "umt-w3", ((0.1, 0.8),), ((0.1, 0.8),)),
        *trial("amr", "naive-amr0.05", ((0.1, 0.8),), ((0.1, 0.8),)),
        *trial("amr", "naive-amr0.1", ((0.2, 0.8),), ((0.2, 0.8),)),
        *trial("amr", "umt-amr0.2", ((0.2, 0.8),), ((0.2, 0.8),)),
    ]
    return lines + better


def settings() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "settings.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory, schema: pa.Schema, tables: ModuleType) -> Path:
    """The folder of grids with those that are written of `trials`."""
    folder = tmp_path_factory.mktemp("letters")
    (folder / "results").mkdir()
    for name in ("settings", "rates"):
        shutil.copy(FOLDER / f"{name}.yaml", folder)
    pq.write_table(pa.Table.from_pylist(trials(settings()), schema), folder / "results/letters-tuning.parquet")
    for name in WRITTEN:
        assert tables.pick.main(["--folder", str(folder), name]) == 0
    return folder


def test_validation_chooses(chosen: Path) -> None:
    grids = {name: yaml.safe_load((chosen / f"{name}.yaml").read_text()) for name in WRITTEN}
    entries = settings()["methods"]
    rate = "--model.optimizer.init_args.lr="
    assert grids["tuning"]["methods"] == entries
    assert grids["tuning"]["unimodal"] == {
        "audio": ["docs/study/audio.yaml", f"{rate}0.1"],
        "video": ["docs/study/video.yaml", f"{rate}0.05"],
    }
    base = ["docs/results/grid-letters/recipe.yaml", f"{rate}0.1"]
    assert [grids[name]["base"] for name in WRITTEN] == [base] * 3
    assert grids["main"]["unimodal"] == grids["amr"]["unimodal"] == grids["tuning"]["unimodal"]
    main_rows = grids["main"]["methods"]
    assert main_rows["naive"] == entries["naive-lr0.1"]
    assert main_rows["dgl"] == entries["dgl-a1"]
    assert main_rows["smv"] == entries["smv-e9"]
    amr = ["configs/methods/amr.yaml", "--model.amr.guard=false", "--model.amr.lr=0.1"]
    assert main_rows["naive-amr"] == [*entries["naive-lr0.1"], *amr]
    assert main_rows["umt-amr"] == [*entries["umt-w3"], *amr[:2], "--model.amr.lr=0.2"]
    assert grids["main"]["teachers"] == {
        "umt": "model.umt.teachers",
        "umt-amr": "model.umt.teachers",
        "g2d": "model.g2d.teachers",
    }
    assert "dgl-amr" not in main_rows  # none of its rates has been tried
    assert set(grids["main"]["ensembles"].values()) == {"logits", "probabilities"}


def test_every_method_has_the_same_budget(tables: ModuleType) -> None:
    """Three values of a setting, and every method and control there is."""
    counts: dict[str, int] = {}
    rates = yaml.safe_load((FOLDER / "rates.yaml").read_text())["methods"]
    assert all(rates[name] == entry for name, entry in settings()["methods"].items() if name.startswith("naive-"))
    for name in {**settings()["methods"], **rates}:
        counts[tables.pick.method_of(name)] = counts.get(tables.pick.method_of(name), 0) + 1
    assert set(counts.values()) == {3} == {len(tables.pick.RATES)}
    methods = {path.stem for path in (REPOSITORY / "configs/methods").glob("*.yaml")} - {"amr"}
    assert set(counts) == methods | {"naive", "late_tuned", "audio", "video"}
    assert set(counts) | set(tables.pick.ENSEMBLES) == set(tables.TITLES)
    on_crema_d = yaml.safe_load((REPOSITORY / "configs/benchmarks/crema-d.yaml").read_text())
    assert set(on_crema_d["methods"]) == methods | {"naive", "late_tuned"}


def test_the_halves_are_the_whole(
    tables: ModuleType, chosen: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    for name in ("rates", *WRITTEN):
        halves = []
        for half in ("first", "rest"):
            assert tables.pick.main(["--folder", str(chosen), "rows", name, half]) == 0
            halves += capsys.readouterr().out.split()
        _, rows = read_grid(chosen / f"{name}.yaml")
        assert sorted(halves) == sorted(row.name for row in rows)


@pytest.mark.filterwarnings("ignore")
def test_grids_resolve(chosen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows of each; what was chosen is the cell that was tried."""
    monkeypatch.chdir(REPOSITORY)
    resolve, hashes = resolver(), dict[str, str]()
    for name, only in (
        ("rates", ["audio-lr0.1", "naive-lr0.1"]),
        ("tuning", ["umt-w3", "naive-lr0.1"]),
        ("main", ["umt", "naive"]),
    ):
        base, rows = read_grid(chosen / f"{name}.yaml")
        data = ["--config", str(STUDY / "letters.yaml")]
        for cell in make_cells(rows, [0], [*data, *base], resolve, only):
            assert hashes.setdefault(cell.row.name, cell.hash) == cell.hash
    assert hashes["audio"] == hashes["audio-lr0.1"]
    assert hashes["umt"] == hashes["umt-w3"]
    assert hashes["naive"] == hashes["naive-lr0.1"]
    assert len(set(hashes.values())) == 4  # with the picture alone


# --------------------------------------------------------------------------------------------------------- what is said

ACCURACIES = {
    "naive": (0.80, 0.82, 0.81, 0.83, 0.80),
    "multi_loss": (0.84, 0.85, 0.84, 0.86, 0.83),
    "late_tuned": (0.80, 0.80, 0.80, 0.80, 0.80),
    "ensemble": (0.70, 0.71, 0.70, 0.71, 0.72),
    "umt": (0.90, 0.91, 0.93, 0.92, 0.91),
    "umt-amr": (0.84, 0.90, 0.82, 0.93, 0.80),
    "ogm": (0.60, 0.62, 0.61, 0.63, 0.62),
}


def measured() -> list[dict[str, Any]]:
    lines = []
    for name, values in ACCURACIES.items():
        for seed, value in enumerate(values):
            lines += [line(name, seed, measure, value, "main") for measure in ("acc", "test/mAP", "ece")]
            for measure in ("share", "shapley_share_odds", "acc_missing_mean"):
                lines.append(line(name, seed, measure, 0.5 if "amr" in name else 0.9, "main", modality="audio"))
    return lines


def benjamini_hochberg(values: list[float]) -> list[bool]:
    """Which of the tests are rejected at 5 %, by the definition."""
    order = np.argsort(values)
    last = max((k for k, i in enumerate(order, 1) if values[i] <= 0.05 * k / len(values)), default=0)
    return [i in order[:last] for i in range(len(values))]


def test_tables_and_sentences(tables: ModuleType, schema: pa.Schema, chosen: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(chosen / "results", results)
    pq.write_table(pa.Table.from_pylist(measured(), schema), results / "letters-main.parquet")
    page = tmp_path / "page.md"
    names = ("main", "against", "sentences", "amr", "tuning", "time")
    page.write_text("Before\n" + "".join(f"<!-- {name} -->\nold\n<!-- end -->\n" for name in names))
    given = ["--results", str(results), "--page", str(page), "--figure", str(tmp_path / "accuracy.png")]
    assert tables.main(given) == 0
    text = page.read_text()
    assert text.startswith("Before\n<!-- main -->\n|  | accuracy | mAP | audio's share | audio's decision share |")
    assert "old" not in text
    assert (tmp_path / "accuracy.png").stat().st_size > 5000
    assert "| UMT w/ AMR | 85.8 ± 5.5 | 85.8 ± 5.5 | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 0.0 | – |" in text

    other = ACCURACIES["multi_loss"]
    test = stats.ttest_rel(ACCURACIES["umt"], other)
    interval = test.confidence_interval(0.95)
    mean = 100 * statistics.fmean(a - b for a, b in zip(ACCURACIES["umt"], other, strict=True))
    cell = f"**{mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]**"
    assert f"| UMT | {cell_of(text, 'UMT', 1)} | {cell_of(text, 'UMT', 2)} | {cell} | {cell} |" in text

    compared = tables.compared(tables.Results(results), ["umt", "umt-amr", "ogm"], "naive")
    tests = [stats.ttest_rel(ACCURACIES[name], ACCURACIES["naive"]).pvalue for name in compared]
    assert [stands for _, stands in compared.values()] == benjamini_hochberg(tests) == [True, False, True]
    assert (
        "1. Accuracy against naive fusion: by their intervals, 1 of 3 rows is above (UMT) and 1 is below (OGM);"
        " with the false discovery rate at 5 %, 1 is above (UMT) and 1 is below (OGM)." in text
    )
    assert (
        "4. Above all of Naive fusion, Multi-loss, Late fusion and Ensemble (logits) by their intervals: UMT." in text
    )
    assert "of UMT (91.4 ± 1.1); among the controls it is that of Multi-loss (84.4 ± 1.1)." in text
    assert "audio's share from 90.0 to 50.0 % and audio's decision share from 90.0 to 50.0 %" in text
    assert "| Naive fusion | lr0.05 75.0, **lr0.1 75.0**, lr0.025 75.0 | amr0.05 10.0, **amr0.1 20.0** |" in text
    assert tables.main(given) == 0
    assert page.read_text() == text


def cell_of(text: str, title: str, column: int) -> str:
    """A cell of the table of intervals."""
    part = text.split("<!-- against -->")[1].split("<!-- end -->")[0]
    (cells,) = (row.split(" | ") for row in part.splitlines() if row.startswith(f"| {title} |"))
    return cells[column]


def test_the_page_is_made_of_the_runs_that_there_are(tables: ModuleType) -> None:
    """And so are the grids beside it."""
    results = tables.Results(FOLDER / "results")
    text = tables.PAGE.read_text()
    assert tables.fill(text, tables.pieces(results)) == text
    for name in WRITTEN:
        if (FOLDER / f"{name}.yaml").is_file():
            assert (FOLDER / f"{name}.yaml").read_text() == tables.pick.written(tables.pick.next_grid(name, results))


# -------------------------------------------------------------------------------------------------------------- CREMA-D


@pytest.mark.filterwarnings("ignore")
def test_crema_d(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script's plan on the six real clips, and an epoch of one of its cells, with smaller pictures."""
    monkeypatch.chdir(REPOSITORY)
    clips = [
        "--data.init_args.split=all",
        f"--data.init_args.store={tmp_path / 'store'}",
        "--data.init_args.num_workers=0",
    ]
    clips += ["--data.init_args.prepare_workers=0", "--data.init_args.video.size=32"]
    small = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", *clips]
    arguments = [str(shared_data / "crema_d_sample"), "--seeds", "0", "--out", str(tmp_path / "out"), "--dry_run"]
    arguments += ["--only", "dgl", "ensemble", *small]
    command = f"amr() {{ printf '%s\\0' \"$@\"; }}; export -f amr; docs/results/crema-d.sh {shlex.join(arguments)}"
    noted = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
    assert main(noted.split("\0")[:-1]) == 0
    plan = capsys.readouterr().out
    for name in ("audio.2-s0", "dgl.2-s0", "audio-s0", "video-s0", "ensemble-s0", "dgl-s0"):
        assert f"to do     {name} " in plan
    planned = [shlex.split(text) for text in plan.splitlines() if text.startswith("  amr fit")]
    fit = next(
        words for words in planned if any(word.startswith("--model.dgl") or "dgl.yaml" in word for word in words)
    )
    assert main(fit[1:]) == 0
    (record,) = (tmp_path / "out/runs").glob("dgl*/run.json")
    facts = json.loads(record.read_text())
    assert (facts["dataset"], facts["method"], facts["num_classes"]) == ("crema_d", "dgl", 6)
    missing = subprocess.run(["docs/results/crema-d.sh", "nowhere"], capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert missing.stderr.startswith("PATH=nowhere: must be the folder with AudioWAV and VideoFlash")
