"""Comparisons of thousands of runs: what is read grows with the runs, not their square, and the best come first."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from amr.evaluation.runs import Run
from amr.report import find_runs, read_runs, summarise, table_text, write_report
from amr.report import table as tables
from amr.report.table import cells, leading
from amr.utils import readers
from amr.utils.errors import UserError
from amr.utils.readers import parse_yaml
from tests.report.runs import epoch, results, write_run


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Naive fusion, the worst, and eleven methods, two seeds each."""
    for number in range(12):
        for seed in (0, 1):
            accuracy = 0.3 + 0.05 * number + 0.01 * seed + 0.001 * number * seed
            name = "naive" if number == 0 else f"m{number:02d}"
            rows = [*epoch(0, accuracy), *results(accuracy)]
            write_run(tmp_path / f"runs/{name}-{seed}", rows, method=name, seed=seed)
    return tmp_path / "runs"


def test_each_file_is_opened_once_and_no_run_is_compared_with_the_others(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()

    def opened(file: Path, *rest: Any) -> Any:
        counts[str(file)] += 1
        return real(file, *rest)

    def equal(self: Run, other: object) -> bool:
        counts["comparisons"] += 1
        return self is other

    real = readers.opened
    monkeypatch.setattr(readers, "opened", opened)
    monkeypatch.setattr(Run, "__eq__", equal)
    runs = read_runs([many])
    assert len(runs) == 24
    assert counts.pop("comparisons", 0) == 0
    assert set(counts.values()) == {1}
    assert len(counts) == 24 * 3  # run.json, metrics.csv, config.yaml


def test_a_folder_of_wandb_runs_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run has two starts, in folders of their own."""
    for run in range(20):
        for time in (1, 2):
            folder = tmp_path / f"wandb/offline-run-2026010{time}_000000-r{run:02d}"
            folder.mkdir(parents=True)
            (folder / f"run-r{run:02d}.wandb").touch()
    listed: Counter[Path] = Counter()

    def iterdir(self: Path) -> Any:
        listed[self] += 1
        return real(self)

    real = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", iterdir)
    found = find_runs([tmp_path])
    assert [path.name for path in found] == [f"offline-run-20260101_000000-r{run:02d}" for run in range(20)]
    assert listed[tmp_path / "wandb"] == 2  # to find them, and to group their starts
    assert sum(listed.values()) <= 4


def test_the_best_rows_come_first_where_there_are_many(many: Path, tmp_path: Path, monkeypatch: Any) -> None:
    runs = read_runs([many])
    rows = summarise(runs)
    assert leading(rows) == (rows, [])
    monkeypatch.setattr(tables, "TOP", 4)
    shown, further = leading(rows)
    assert [row.method for row in shown] == ["m11", "m10", "m09", "m08", "naive"]
    assert [row.method for row in further] == [f"m{number:02d}" for number in range(7, 0, -1)]
    whole = dict(zip((row.method for row in rows), cells(rows)[1], strict=True))
    assert cells(shown, rows)[1] == [whole[row.method] for row in shown]  # compared with all, not with those shown
    text = table_text(runs)
    assert "The 5 rows with the highest accuracy and naive fusion; 7 more are on the page." in text
    assert "| m11 " in text
    assert "| m07 " not in text
    write_report(runs, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<summary>7 further rows</summary>" in page
    assert page.index(">m11<") < page.index(">naive<") < page.index(">m07<")


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: {c: [1, 2.5, 1e-3, null, true], d: x}\ne:\n- 1\n- - 2\n  - '3'\n",
        "# resumed\na: !unknown {b: 1}\nb: &x [1]\nc: *x\n",
        "",
    ],
)
def test_both_yaml_parsers_read_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = parse_yaml(Path("f"), text)
    monkeypatch.setattr(readers, "_is_shallow", lambda _: False)
    assert parse_yaml(Path("f"), text) == fast


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{a: " * 50_000,
        "- " * 50_000,
        "? " * 50_000,
        "\n".join("  " * i + "a:" for i in range(1500)),
        "\u2028".join(" " * i + "- a:" for i in range(1500)),
        "\r".join(" " * i + "a:" for i in range(1500)),
    ],
    ids=["list", "mapping", "dashes", "keys", "indented", "separators", "returns"],
)
def test_what_is_nested_deeply_never_reaches_the_parser_without_a_limit(text: str) -> None:
    assert not readers._is_shallow(text)
    with pytest.raises(UserError, match="^f: not YAML"):
        parse_yaml(Path("f"), text)
