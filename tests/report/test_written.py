"""The table as CSV and LaTeX, the finding in words, and what rows are compared with."""

from __future__ import annotations

import base64
import csv
import io
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest

from amr.report import Row, compare, read_runs, summarise, table_csv, table_latex, write_report
from amr.report.text import finding
from amr.utils.errors import UserError
from tests.report.runs import EVIL, epoch, results, write_run
from tests.report.test_table import seeds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """UMT is clearly above naive fusion, OGM is not, and AMR moves the share but not the decisions."""
    folder = tmp_path / "runs"
    for method, accuracies in {
        "naive": (0.70, 0.72, 0.71),
        "umt": (0.80, 0.83, 0.81),
        "ogm": (0.70, 0.74, 0.69),
    }.items():
        seeds(folder, method, accuracies)
    for seed, accuracy in enumerate((0.69, 0.70, 0.70)):
        decides = {"val/decision_share/audio": 0.68, "val/decision_share/video": 0.32}
        write_run(folder / f"amr-{seed}", epoch(0, accuracy, 0.5, **decides), method="amr", seed=seed)
    for seed in range(3):
        shutil.rmtree(folder / f"naive-{seed}")
        decides = {"val/decision_share/audio": 0.7, "val/decision_share/video": 0.3}
        accuracy = (0.70, 0.72, 0.71)[seed]
        write_run(folder / f"naive-{seed}", epoch(0, accuracy, 0.7, **decides), method="naive", seed=seed)
    return folder


def rows_of(folder: Path, **options: object) -> list[Row]:
    return summarise(read_runs([folder]), **options)  # type: ignore[arg-type]


def test_csv_reads_back_to_the_same_numbers(folder: Path) -> None:
    rows = rows_of(folder)
    read = {line["method"]: line for line in csv.DictReader(io.StringIO(table_csv(rows)))}
    assert [*read] == [row.method for row in rows]
    for row in rows:
        line = read[row.method]
        assert row.accuracy is not None
        assert float(line["accuracy"]) == 100 * row.accuracy.mean
        assert float(line["accuracy_sd"]) == 100 * (row.accuracy.sd or 0)
        assert float(line["dominance_audio"]) == 100 * row.dominance["audio"].mean
        assert line["seeds"] == "0 1 2"
    gains = [b - a for a, b in zip((0.70, 0.72, 0.71), (0.80, 0.83, 0.81), strict=True)]
    assert float(read["umt"]["accuracy_vs_naive"]) == pytest.approx(100 * statistics.fmean(gains))
    assert read["naive"]["accuracy_vs_naive"] == read["umt"]["decision_share_audio"] == ""


def test_latex_has_the_cells_and_compiles(folder: Path, tmp_path: Path) -> None:
    write_run(folder / "odd", epoch(0, 0.5, 0.5), method="odd", title="50 % & $x_1$ {#} \\ ~^ <b>", seed=0)
    text = table_latex(rows_of(folder))
    assert r"50 \% \& \$x\_1\$ \{\#\} \textbackslash{} \textasciitilde{}\textasciicircum{} $<$b$>$" in text
    assert r"\textbf{81.3 $\pm$ 1.5}" in text
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert columns
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in body} == {len(columns.group(1))}
    if shutil.which("pdflatex"):
        paper = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{text}\\end{{document}}"
        (tmp_path / "paper.tex").write_text(paper)
        subprocess.run(["pdflatex", "-interaction=batchmode", "-halt-on-error", "paper.tex"], cwd=tmp_path, check=True)


def test_the_finding(folder: Path) -> None:
    said = finding(rows_of(folder))
    assert said.startswith(
        "1 of 3 rows are above naive fusion in accuracy by their 95 % intervals, most of all umt (+10.3 [+8.9, +11.8]"
    )
    assert "; 0 are below it. " in said
    assert said.endswith(
        "AMR takes audio's attribution share from 70 to 50 %, and its share of the decisions from 70 to 68 %: "
        "the decisions did not follow as far (mean over 1 method)."
    )


def test_a_share_that_stays_is_not_taken_anywhere(tmp_path: Path) -> None:
    for method in ("naive", "amr"):
        seeds(tmp_path, method, [0.5, 0.5], 0.7)
    assert finding(rows_of(tmp_path)).endswith("AMR leaves audio's attribution share at 70 % (mean over 1 method).")


def test_one_seed_claims_nothing(tmp_path: Path) -> None:
    for method, accuracy in {"naive": 0.5, "umt": 0.9}.items():
        seeds(tmp_path, method, [accuracy])
    assert finding(rows_of(tmp_path)) == (
        "umt has the highest accuracy, 90.0 %; too few common seeds for an interval, so no difference is claimed."
    )


def test_another_baseline_order_and_split(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    files = {name: tmp_path / f"table.{end}" for name, end in {"csv": "csv", "latex": "tex", "md": "md"}.items()}
    said = compare([folder], out, sort="acc", baseline="umt", **files)  # type: ignore[arg-type]
    lines = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert [line["method"] for line in lines] == ["umt", "naive", "ogm", "amr"]
    assert float(lines[1]["accuracy_vs_umt"]) < 0
    assert "Accuracy vs umt" in said
    assert files["md"].read_text() in said + "\n"
    assert "--sort acc --baseline umt" in out.read_text()
    with pytest.raises(UserError, match="--baseline=pmr: no such method among the runs; must be one of 'amr', 'naive'"):
        compare([folder], out, baseline="pmr")
    write_run(folder / "tested", epoch(0, 0.9, 0.5), results(0.6), method="naive", seed=3)
    (row,) = rows_of(folder, split="test")
    assert (row.source, row.seeds) == ("test", (3,))
    assert "not tested yet" in compare([folder], out, split="test")


def test_the_page_saves_its_table(folder: Path, tmp_path: Path) -> None:
    write_run(folder / "evil", epoch(0, 0.5, 0.5), method="evil", title=EVIL, seed=0)
    runs = read_runs([folder])
    write_report(runs, tmp_path / "page.html")
    saved = re.findall(
        r'download="table\.(\w+)" href="data:[^,]*;base64,([^"]*)"', (tmp_path / "page.html").read_text()
    )
    assert {end: base64.b64decode(data).decode() for end, data in saved} == {
        "csv": table_csv(summarise(runs)),
        "tex": table_latex(summarise(runs)),
    }
