"""The section of `compare`'s page on runs whose robustness is made up, and so known."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.lines import Line2D

from amr.report import find_runs, read_run, summarise, write_report
from amr.report.robustness import plot_robustness, robustness_cells
from amr.report.table import Row, row_names
from amr.utils.errors import UserError
from tests.report.runs import EVIL, epoch, results, write_run

LOSS = {"audio": 0.1, "video": 0.02, "audio+video": 0.12}  # of accuracy, a severity


def write_table(run: Path, acc: float, share: float) -> None:
    found: list[tuple[str, str, str, int | None, float]] = [("acc", "", "", None, acc), ("ece", "", "", None, 0.1)]
    found += [("worst_missing_mean", "", "", None, acc / 2), ("emap_gap", "", "", None, 0.01)]
    for m, part in (("audio", share), ("video", 1 - share)):
        found += [("acc_missing_mean", m, "", None, acc * (1 - part)), ("shapley", m, "", None, acc * part)]
        found += [("share", m, "", None, part), ("shapley_share", m, "", None, part**2)]
    for m, part in (("audio", share), ("video", 1 - share)):
        found += [("conflict", m, "", None, part**3)]
        for r in (0, 0.5, 1):
            found.append((f"dial_auc@audio={r:g}", m, "mean", None, (acc - LOSS[m]) * (1 - (r - 0.5) ** 2)))
    found += [(f"dial_acc@audio={r:g}", "", "", None, acc - abs(r - 0.5)) for r in (0, 0.5, 1)]
    found += [("outcome_synergistic", "", "", None, 0.02), ("outcome_lost", "", "", None, 0.04)]
    found += [("outcome_lost@class=3", "", "", None, 0.5)]
    found += [("outcome_lost", "audio", "", None, 0.01)]
    found += [("cooperation", "audio+video", "", None, 0.03)]
    found += [("intershap", "", "", None, share / 10)]
    found += [
        ("pid_label_unique", "audio", "", None, 2 * share),
        ("pid_label_redundant", "audio+video", "", None, 0.25),
    ]
    for label, loss in LOSS.items():
        for n, name in enumerate(("white", EVIL)):
            curve = [max(0.0, acc - (1 + n) * loss * severity) for severity in range(6)]
            found += [("acc_corrupted", label, name, s, curve[s]) for s in range(1, 6)]
        found.append(("auc", label, "mean", None, acc - 1.5 * loss))
    columns = ("measure", "modality", "corruption", "severity", "value")
    table = pa.table({name: [row[i] for row in found] for i, name in enumerate(columns)})
    pq.write_table(table, run / "robustness.parquet")


def points(line: Line2D) -> list[list[float]]:
    return [np.asarray(data).tolist() for data in line.get_data()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for method, acc, share in (("naive", 0.8, 0.75), ("amr", 0.78, 0.5), ("umt", 0.7, 0.6)):
        for seed in (0, 1):
            run = write_run(
                tmp_path / f"runs/{method}{seed}", [*epoch(0, acc), *results(acc)], method=method, seed=seed
            )
            if method != "umt":
                write_table(run, acc + 0.02 * seed, share)
    return tmp_path / "runs"


def rows_of(folder: Path) -> list[Row]:
    return summarise(read_run(path) for path in find_runs([folder]))


def test_the_table(folder: Path) -> None:
    rows = rows_of(folder)
    head, body = robustness_cells(rows, row_names(rows))
    naive, amr, _ = (dict(zip(head, line, strict=True)) for line in body)
    assert naive["Accuracy"] == "81.0 ± 1.4"
    assert naive["Worst missing"] == "40.5 ± 0.7"
    assert naive["audio under corruption"] == "66.0 ± 1.4"
    assert amr["audio+video under corruption"] == "61.0 ± 1.4"
    assert naive["Shapley audio"] == "60.8 ± 1.1"
    assert naive["Together"] == "3.0 ± 0.0"
    assert naive["audio decides (conflict)"] == "42.2 ± 0.0"
    assert naive["video decides (conflict)"] == "1.6 ± 0.0"
    assert naive["Right only together"] == "2.0 ± 0.0"
    assert naive["Lost together"] == "4.0 ± 0.0"
    assert naive["InterSHAP"] == "7.5 ± 0.0"
    assert (naive["Unique audio (bits)"], naive["Redundant (bits)"]) == ("1.50 ± 0.00", "0.25 ± 0.00")
    assert "Synergistic (bits)" not in naive
    assert body[2] == ["umt", *["–"] * (len(head) - 1)]


def test_rows_by_class_are_not_read(folder: Path) -> None:
    kinds = {key[0] for key in read_run(folder / "naive0").robustness}
    assert {"outcome_lost", "dial_acc@audio=0.5"} < kinds
    assert not any("class" in kind for kind in kinds)


def test_the_plots_show_the_means(folder: Path) -> None:
    rows = [row for row in rows_of(folder) if row.method != "umt"]
    plots = {plot.title: plot for plot in plot_robustness(rows)}
    assert list(plots) == [
        *(f"Accuracy (%) under corruption of {label}" for label in LOSS),
        "Accuracy with a modality missing",
        "Dominance of audio and its Shapley share",
        "Decision-time dial: audio's weight from 0 to 1",
    ]
    figure = plots["Accuracy (%) under corruption of video"].figure
    mean, white, evil = figure.axes
    assert [axes.get_title(loc="left") for axes in (mean, white)] == ["mean of all", "white"]
    assert points(white.lines[0])[1] == pytest.approx([81 - 2 * s for s in range(6)])
    assert points(evil.lines[0])[1] == pytest.approx([81 - 4 * s for s in range(6)])
    assert points(mean.lines[1])[1] == pytest.approx([79 - 3 * s for s in range(6)])
    assert "naive 81.0, 78.0, 75.0, 72.0, 69.0, 66.0" in plots["Accuracy (%) under corruption of video"].alt
    (shapley,) = plots["Dominance of audio and its Shapley share"].figure.axes
    assert [[75], [56.25]] in [points(line) for line in shapley.lines]
    audio, video = plots["Decision-time dial: audio's weight from 0 to 1"].figure.axes
    assert [audio.get_title(loc="left"), video.get_title(loc="left")] == ["audio corrupted", "video corrupted"]
    x, y = points(audio.lines[0])
    assert x == pytest.approx([31, 81, 31])
    assert y == pytest.approx([71 * 0.75, 71, 71 * 0.75])
    assert points(audio.lines[1]) == [pytest.approx([81]), pytest.approx([71])]  # the model as it is
    assert "amr, video, by part of audio 0: 29.0, 57.8" in plots["Decision-time dial: audio's weight from 0 to 1"].alt
    assert "naive: all modalities 81.0, without audio 20.2" in plots["Accuracy with a modality missing"].alt


def test_many_rows_get_one_mark_each(folder: Path) -> None:
    for n in range(9):
        run = write_run(folder / f"m{n}", [*epoch(0, 0.5), *results(0.5)], method=f"m{n}", seed=0)
        write_table(run, 0.5, 0.5)
    titles = [plot.title for plot in plot_robustness(rows_of(folder))]
    assert titles[0] == "Area under accuracy against severity"
    assert not any("under corruption" in title for title in titles)


def test_the_page_has_the_section_where_there_is_something_to_show(folder: Path, tmp_path: Path) -> None:
    write_report([read_run(path) for path in find_runs([folder])], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<h2>Robustness</h2>" in page
    assert EVIL not in page
    for file in folder.glob("*/robustness.parquet"):
        file.unlink()
    write_report([read_run(path) for path in find_runs([folder])], tmp_path / "page.html")
    assert "Robustness" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("content", [b"no parquet", None])
def test_another_file_of_that_name_is_named(folder: Path, content: bytes | None) -> None:
    file = folder / "naive0/robustness.parquet"
    if content is None:
        pq.write_table(pa.table({"measure": ["acc"]}), file)
    else:
        file.write_bytes(content)
    wrong = "cannot be read .*" if content else "no column 'modality'; it has measure"
    with pytest.raises(UserError, match=f"robustness.parquet: {wrong}; must be a table as amr test writes"):
        read_run(folder / "naive0")
