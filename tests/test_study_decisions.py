"""The study's second part: its grids, and its page and answer, which are made of the runs that there are."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy import stats

from amr.evaluation.statistics import Difference
from amr.utils.errors import UserError
from tests.scripts import STUDY, line, script

FOLDER = STUDY / "decisions"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    return script(FOLDER / "tables.py")


@pytest.fixture(scope="module")
def pick() -> ModuleType:
    return script(FOLDER / "choose.py")


def results_of(report: ModuleType, folder: Path, lines: list[dict[str, Any]]) -> Any:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(lines, script(STUDY / "measure.py").SCHEMA), folder / "letters.parquet")
    return report.Results(folder)


def measured(row: str, seed: int, share: float, accuracy: float, grid: str = "main") -> list[dict[str, Any]]:
    return [
        line(row, seed, "acc", accuracy, grid),
        line(row, seed, "shapley_share_odds", share, grid, modality="audio"),
        line(row, seed, "auc", accuracy - 0.3, grid, modality="audio", corruption="mean"),
        line(row, seed, "auc", accuracy - 0.1, grid, modality="video", corruption="mean"),
    ]


def test_the_pages_are_made_of_the_runs_that_there_are(report: ModuleType) -> None:
    parts = report.pieces(report.Results(FOLDER / "results"))
    for page in report.PAGES:
        text = page.read_text()
        assert report.filled(text, parts) == text, page


def test_what_moved_and_what_it_cost(report: ModuleType, tmp_path: Path) -> None:
    """A form that lowers audio's share in every seed is named with both intervals; one that does not is not."""
    shares, costs = (0.7, 0.72, 0.71), (0.85, 0.87, 0.84)
    lines = [one for seed in range(3) for one in measured("naive", seed, 0.9, 0.86)]
    lines += [one for s in range(3) for one in measured("amr_weak", s, shares[s], costs[s])]
    lines += [one for s in range(3) for one in measured("amr", s, 0.9 + 0.02 * (s - 1), 0.86)]
    results = results_of(report, tmp_path / "results", lines)
    text = report.moved_sentence(results, "letters")
    moved, cost = Difference.of([s - 0.9 for s in shares]), Difference.of([c - 0.86 for c in costs])
    assert "1 of 2 forms of AMR lower audio's decision share" in text
    assert f"AMR (output, encoder, weak) ({moved} points, accuracy {cost} points)" in text
    assert "AMR (gradient)" not in text


def test_what_both_draws_show(report: ModuleType, tmp_path: Path) -> None:
    """The share falls in both draws, accuracy only in the second; another form's share falls only in the first."""
    lines = []
    for grid, first, cost, other in (("main", 0, 0.0, 0.8), ("draw", 10, 0.05, 0.9)):
        for seed in range(first, first + 3):
            wobble = 0.001 * (seed - first)
            lines += measured("naive", seed, 0.9, 0.86, grid)
            lines += measured("amr", seed, 0.8 + wobble, 0.86 - cost + wobble * (-1) ** seed, grid)
            lines += measured("amr_weak", seed, other + 0.01 * (-1) ** seed, 0.86, grid)
    found = report.confirmed(results_of(report, tmp_path / "results", lines), "letters")
    share = Difference.of([-0.1, -0.099, -0.098])
    assert found == [["AMR (gradient) minus Naive fusion", "audio's decision share", str(share), str(share)]]
    alone = [line for line in lines if line["grid"] == "main"]
    assert report.confirmed(results_of(report, tmp_path / "alone", alone), "letters") == []


def test_the_dial_s_slope_and_the_targets_that_it_reaches(report: ModuleType, tmp_path: Path) -> None:
    """Share 0.5 + 0.5 · (target − 0.5): half a point a point; only 50 % is reached within five points, at no cost."""
    lines = []
    for seed in range(3):
        lines += measured("multi_loss", seed, 0.85, 0.86, "dial")
        for target in (0.1, 0.5, 0.9):
            lines += measured(f"r{target}", seed, 0.5 + 0.5 * (target - 0.5) + 0.001 * seed, 0.86, "dial")
    text = report.dial_sentence(results_of(report, tmp_path / "results", lines), "letters")
    assert "rises by 0.50 [0.50, 0.50] points" in text
    assert text.endswith("(lower end of the interval): 50 %.")


def test_the_decision_time_dial_is_met_at_the_same_share(report: ModuleType, tmp_path: Path) -> None:
    """Between positions of share 0.6 and 0.9 and accuracy 0.8 and 0.86, a form of share 0.75 is compared with 0.83."""
    lines = []
    for seed in range(2):
        lines += [*measured("naive", seed, 0.9, 0.86), *measured("amr_weak", seed, 0.75, 0.85 + 0.01 * seed)]
        for part, share, accuracy in (("0.3", 0.6, 0.8), ("0.5", 0.9, 0.86)):
            at = f"audio={part}"
            lines += [line("naive", seed, f"dial_share@{at}", share, "main", modality="audio")]
            lines += [line("naive", seed, f"dial_acc@{at}", accuracy, "main")]
            for modality, area in (("audio", accuracy - 0.2), ("video", accuracy - 0.4)):
                lines += [line("naive", seed, f"dial_auc@{at}", area, "main", modality=modality, corruption="mean")]
    results = results_of(report, tmp_path / "results", lines)
    found = report.at_same_share(results, ("letters", "main"), "amr_weak")
    assert found["accuracy"] == pytest.approx({0: 0.02, 1: 0.03})
    assert found["area"] == pytest.approx({0: 0.55 - 0.43, 1: 0.56 - 0.43})


def test_validation_chooses_the_forms(pick: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best strength of each form; the three best forms on other methods; teachers and the guard follow."""
    control = {
        "base": ["recipe"],
        "unimodal": {"audio": ["a"], "video": ["v"]},
        "methods": {m: [f"{m}.yaml"] for m in ("naive", "multi_loss", "dgl", "umt")},
        "teachers": {"umt": "model.umt.teachers"},
    }
    lines = []
    for rank, name in enumerate(pick.forms()):
        form = name.partition("-")[0]
        accuracy = 0.5 + 0.1 * ["amr", "amr_shapley", "amr_head", "amr_encoder", "amr_weak"].index(form) + 0.001 * rank
        for measure in ("val/acc", "val/mAP"):
            lines.append(line(name, 0, measure, accuracy, "trials", epoch=3))
    folder = tmp_path / "results"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(lines, script(STUDY / "measure.py").SCHEMA), folder / "letters.parquet")
    results = pick.Results(folder)
    assert pick.best_forms(results, control) == {
        "amr_weak": "amr_weak-w3",
        "amr_encoder": "amr_encoder-w3",
        "amr_head": "amr_head-lr0.2",
        "amr_shapley": "amr_shapley-lr0.2",
        "amr": "amr-lr0.2",
    }
    onto = pick.onto(results, control)
    assert len(onto["methods"]) == 2 * 3 * 3
    assert onto["methods"]["dgl.amr_head-lr0.1"] == ["dgl.yaml", *pick.forms()["amr_head-lr0.1"]]
    grid = pick.main_grid(results, control)
    assert grid["teachers"] == {"umt": "model.umt.teachers"}
    assert pick.OFF in grid["methods"]["amr"]
    assert pick.OFF not in grid["methods"]["amr_guard"]
    dial = pick.dial(control)["methods"]
    assert list(dial) == ["multi_loss", *(f"r{target}" for target in pick.TARGETS)]
    assert dial["r0.3"][-1] == "--model.amr.ratio={audio: 0.3, video: 0.7}"
    changed = pick.ablation(control)["methods"]
    assert list(changed) == ["multi_loss", "form", *pick.CHANGES]
    form = changed["form"]
    assert form == dial["r0.5"][:-1]
    assert all(changed[name] == [*form, *(f"--model.amr.{o}" for o in pick.CHANGES[name])] for name in pick.CHANGES)
    monkeypatch.setattr(pick, "LETTERS", tmp_path)
    with pytest.raises(UserError, match="run docs/results/grid-letters/run.sh tuning first"):
        pick.controls(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_the_forms_are_options_of_amr(pick: ModuleType) -> None:
    """Each entry's last words are options that the shipped configuration takes."""
    from amr.regularizers import AMR

    for name, entry in pick.forms().items():
        options = dict(word.removeprefix("--model.amr.").split("=") for word in entry[1:])
        AMR(**{key: yaml.safe_load(value) for key, value in options.items()})
        assert entry[0] == "configs/methods/amr.yaml", name
    for change in pick.CHANGES.values():
        options = {key: yaml.safe_load(value) for key, value in (option.split("=") for option in change)}
        AMR(**{"attribution": "output", "gradient": "encoder", **options})


def test_the_form_with_an_option_changed_is_compared_with_it(report: ModuleType, tmp_path: Path) -> None:
    lines = []
    for seed in range(5):
        lines += measured("form", seed, 0.8, 0.85, "ablation")
        lines += measured("weak", seed, 0.7 - 0.01 * seed, 0.86 + 0.001 * seed, "ablation")
    table = report.ablation_table(results_of(report, tmp_path / "results", lines), "letters")
    change = stats.t.interval(0.95, 4, -12, np.std([0, -1, -2, -3, -4], ddof=1) / 5**0.5)
    (row,) = (row for row in table.splitlines() if row.startswith("| only the modality"))
    assert f"**-12.0 [{change[0]:+.1f}, {change[1]:+.1f}]**" in row
    assert report.ABLATED["head"] not in table
