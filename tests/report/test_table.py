"""Paired differences, titles, the rows' order, notes on balance, and the plots of many methods."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from scipy import stats

from amr.evaluation.statistics import Difference, t_quantile
from amr.report import find_runs, plot_curves, plot_summary, read_run, read_runs, summarise, table_text, write_report
from tests.report.runs import EVIL, Reader, epoch, results, table_of, write_run

DASH = "\N{EN DASH}"
BASES = ["naive", "dropout", "modality_dropout", "umt", "ogm", "ogm_ge", "gradient_blending", "gge", "pmr", "agm"]
BASES += ["mmpareto", "mmcosine"]
WITH_NEWER = ["naive", "multi_loss", *BASES[1:], "dgl", "tcmax", "mcr", "mla", "g2d", "info_reg"]
WITH_NEWER += ["data_remixing", "smv", "relearning"]
WITH_NEWER += ["opm", "arl", "pdmp", "cml", "mbsd", "amco", "aug", "reconboost", "greedy"]
WITH_NEWER += ["cggm", "lfm", "synib", "midas"]


def with_amr(method: str) -> str:
    return "amr" if method == "naive" else f"{method}+amr"


def seeds(
    folder: Path, method: str, accuracies: Sequence[float], audio: float = 0.7, first: int = 0, **info: object
) -> None:
    """A run for each accuracy, validated once; the last part of its folder's name is the seed."""
    for seed, accuracy in enumerate(accuracies, first):
        write_run(folder / f"{method}-{seed}", epoch(0, accuracy, audio), method=method, seed=seed, **info)  # type: ignore[arg-type]


# ---- differences


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 10, 29, 100])
@pytest.mark.parametrize("probability", [0.5, 0.95, 0.999])
def test_the_quantile_is_scipys(freedom: int, probability: float) -> None:
    assert t_quantile(freedom, probability) == pytest.approx(stats.t.ppf((1 + probability) / 2, freedom), rel=1e-12)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_interval_is_the_paired_t_tests(n: int) -> None:
    first, second = np.random.default_rng(n).normal(size=(2, n))
    difference = Difference.of(list(first - second))
    assert difference is not None
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    np.testing.assert_allclose((difference.low, difference.high), (expected.low, expected.high), rtol=1e-12)
    assert difference.mean == pytest.approx((first - second).mean())


def test_what_has_no_interval() -> None:
    assert Difference.of([]) is Difference.of([0.1]) is Difference.of([0.1, float("nan"), 0.2]) is None
    assert str(Difference(0.0130, 0.0730, 3)) == "+1.3 [-6.0, +8.6]"
    assert str(Difference(-0.0001, 0.0001, 3)) == "+0.0 [+0.0, +0.0]"


def test_differences_to_naive_are_over_common_seeds(tmp_path: Path) -> None:
    naive, umt = [0.50, 0.56, 0.55, 0.60], [0.58, 0.57, 0.66]  # seeds 0 to 3, and 1 to 3
    seeds(tmp_path, "naive", naive)
    seeds(tmp_path, "umt", umt, first=1)
    seeds(tmp_path, "agm", [0.9], first=2)
    table = table_of(table_text(read_runs([tmp_path])))
    low, high = 100 * np.array(stats.ttest_rel(umt, naive[1:]).confidence_interval(0.95))
    mean = 100 * np.mean(np.subtract(umt, naive[1:]))
    expected = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    assert table["umt"][5:7] == [expected, expected]
    assert table["agm"][5:7] == table["naive"][5:7] == [DASH, DASH]
    seeds(tmp_path, "umt", [0.9], first=9)
    assert table_of(table_text(read_runs([tmp_path])))["umt"][6] == f"{expected} (n=3)"


def test_which_naive_a_row_is_compared_with(tmp_path: Path) -> None:
    for fusion, accuracy in (("Concat", 0.5), ("FiLM", 0.6)):
        seeds(tmp_path / fusion, "naive", [accuracy, accuracy], fusion=fusion)
    seeds(tmp_path / "a", "umt", [0.65, 0.65], fusion="FiLM")
    seeds(tmp_path / "b", "gge", [0.65, 0.65], fusion="Late")
    seeds(tmp_path / "c", "umt", [0.65, 0.65], dataset="other")

    def gains(*folders: str) -> dict[str, str]:
        text = table_text(read_runs([tmp_path / folder for folder in folders]))
        return {method: cells[-2].strip() for method, cells in table_of(text).items()}

    assert gains("Concat", "FiLM", "a")["umt"] == "+5.0 [+5.0, +5.0]", "its own fusion's"
    assert gains("Concat", "a", "b") == {"naive": DASH, "umt": "+15.0 [+15.0, +15.0]", "gge": "+15.0 [+15.0, +15.0]"}
    assert gains("Concat", "FiLM", "a", "b")["gge"] == DASH, "either could be meant"
    assert "vs naive" not in table_text(read_runs([tmp_path / "Concat", tmp_path / "c"]))


def test_the_best_is_bold_only_if_clearly_above_naive(tmp_path: Path) -> None:
    seeds(tmp_path, "naive", [0.50, 0.52, 0.51])
    seeds(tmp_path, "umt", [0.56, 0.57, 0.57])  # clear, but not the highest
    seeds(tmp_path, "agm", [0.40, 0.95, 0.60])  # the highest, but not clear
    text = table_text(read_runs([tmp_path]))
    assert "**" not in text
    assert "intervals are not corrected for the number of rows" in text
    seeds(tmp_path, "pmr", [0.70, 0.72, 0.71])
    seeds(tmp_path, "naive_too", [0.9, 0.9, 0.9], dataset="other")  # with nothing to compare
    runs = read_runs([tmp_path])
    table = table_of(table_text(runs))
    assert table["pmr"][2:4] == ["**66.0 ± 1.0**", "**71.0 ± 1.0**"]
    assert table_text(runs).count("**") == 4
    write_report(runs, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    bold = [re.sub("<.*?>", "", cell) for cell in re.findall("<strong>(.*?)</strong>", page)]
    assert bold == ["66.0 ± 1.0", "71.0 ± 1.0"]
    assert "not corrected for the number of rows" in page


def test_what_amr_changes(tmp_path: Path) -> None:
    seeds(tmp_path, "umt", [0.5, 0.6, 0.7], 0.7)
    seeds(tmp_path, "umt+amr", [0.55, 0.63, 0.71], 0.52)
    seeds(tmp_path, "agm+amr", [0.5, 0.6, 0.7])
    seeds(tmp_path / "other", "agm", [0.5, 0.6, 0.7], fusion="FiLM")
    runs = read_runs([tmp_path])
    low, high = 100 * np.array(stats.ttest_rel([0.55, 0.63, 0.71], [0.5, 0.6, 0.7]).confidence_interval(0.95))
    change = f"+3.0 [{low:+.1f}, {high:+.1f}]"
    assert table_of(table_text(runs), 1) == {"umt": ["umt", change, change, "70.0 → 52.0", "30.0 → 48.0"]}
    write_report(runs, tmp_path / "r.html")
    assert f"umt{change}{change}70.0 → 52.030.0 → 48.0" in Reader((tmp_path / "r.html").read_text()).text
    without = [run for run in runs if run.method != "umt"]
    assert "What AMR changes" not in table_text(without)


# ---- titles, order, notes


def test_rows_are_in_the_papers_order_under_their_titles(tmp_path: Path) -> None:
    methods = [*WITH_NEWER, *map(with_amr, WITH_NEWER), "zeta", "alpha", "alpha+amr", "norm_penalty+umt"]
    for method in sorted(methods):
        write_run(tmp_path / method, epoch(0, 0.5), method=method, title=f"Title of {method}", labels=[])
    for name in ("video", "audio", "audio+dropout"):
        write_run(tmp_path / f"{name}-", epoch(0, 0.5, 1.0), method=name, modalities=[name.split("+")[0]], fusion="Sum")
    rows = summarise(read_runs([tmp_path]))
    expected = ["audio", "audio+dropout", "video"]
    expected += [name for base in WITH_NEWER for name in (base, with_amr(base))]
    assert [row.method for row in rows] == [*expected, "alpha", "alpha+amr", "norm_penalty+umt", "zeta"]
    assert (rows[0].title, rows[3].title) == ("audio", "Title of naive")
    text = table_text([run for row in rows for run in row.runs])
    assert "Title of umt+amr" in table_of(text)
    assert "What AMR changes" in text


def test_titles_group_nothing_and_hide_nothing(tmp_path: Path) -> None:
    for method in ("a", "b"):
        write_run(tmp_path / method, epoch(0, 0.5), method=method, title=EVIL)
    write_run(tmp_path / "c", epoch(0, 0.5), method="c", title="")
    runs = read_runs([tmp_path])
    assert [run.title for run in runs] == [EVIL, EVIL, "c"]
    assert list(table_of(table_text(runs))) == [f"\\{EVIL} (a)", f"\\{EVIL} (b)", "c"]
    write_report(runs, tmp_path / "r.html")
    reader = Reader((tmp_path / "r.html").read_text())
    assert all("onerror" not in attrs for _, attrs in reader.tags)
    assert f"{EVIL} (a)" in reader.text


def test_rows_away_from_their_target_are_named(tmp_path: Path) -> None:
    seeds(tmp_path, "naive", [0.5, 0.5], 0.9)
    seeds(tmp_path, "amr", [0.5, 0.5], 0.55)
    told = {"model": {"amr": {"init_args": {"ratio": {"audio": 4, "video": 1}}}}}
    seeds(tmp_path, "umt+amr", [0.5, 0.5], 0.76, config=told)
    text = table_text(read_runs([tmp_path]))
    assert "- Every AMR row's dominance is within 0.05 of its target." in text
    write_run(tmp_path / "x", epoch(0, 0.5, 0.65), method="amr", seed=2)  # the row's mean is 58.3 now
    text = table_text(read_runs([tmp_path]))
    assert "- amr: dominance farther than 0.05 from its target: audio 58.3 for 50.0 %, video 41.7 for 50.0 %." in text
    assert "within 0.05" not in text
    assert "umt+amr: dominance" not in text
    assert "target" not in table_text(read_runs([f"{tmp_path}/naive-*"]))


def test_balance_is_of_the_split_that_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", epoch(0, 0.5, 0.5), results(0.5, 0.8), method="amr")
    assert "audio 80.0 for 50.0 %" in table_text([read_run(run)])
    other = write_run(tmp_path / "b", epoch(0, 0.5), method="naive")
    assert "within 0.05 of its target" in table_text([read_run(run), read_run(other)])


# ---- figures


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Two unimodal methods, and twelve without and with AMR; two seeds, two epochs."""
    for seed in (0, 1):
        for place, method in enumerate([*BASES, *map(with_amr, BASES)]):
            audio = 0.5 if "amr" in method else 0.55 + place / 50
            rows = [*epoch(0, 0.2, 0.5), *epoch(1, 0.5 + place / 100 + seed / 50, audio)]
            write_run(tmp_path / "runs" / f"{method}-{seed}", rows, method=method, seed=seed, title=method.upper())
        for name in ("audio", "video"):
            write_run(
                tmp_path / "runs" / f"{name}-{seed}", epoch(0, 0.4, 1.0), method=name, seed=seed, modalities=[name]
            )
    return tmp_path


def drawn(axes: Axes) -> dict[str, float]:
    """The curves' last values by style; a curve has as many values as epochs."""
    curves = [
        line for line in axes.get_lines() if line.get_linestyle() != ":" and len(np.asarray(line.get_xdata())) == 2
    ]
    colours = {"#0072B2": "plain", "#D55E00": "amr", "#999999": "naive"}
    return {
        colours[str(line.get_color())]: float(np.asarray(line.get_ydata())[-1])
        for line in curves
        if line.get_color() in colours
    }


def test_many_methods_get_a_panel_each(many: Path) -> None:
    runs = read_runs([many])
    plots = {plot.title: plot for plot in plot_curves(runs)}
    assert list(plots) == [
        "Validation accuracy (%)",
        "Dominance of audio, validation (%)",
        "Accuracy by dominance of audio, validation",
        "Accuracy minus naive fusion's, validation",
    ]
    panels = {axes.get_title(loc="left"): axes for axes in plots["Validation accuracy (%)"].figure.axes}
    assert list(panels) == ["audio", "video", *(base.upper() for base in BASES)]
    assert drawn(panels["UMT"]) == pytest.approx({"naive": 51, "plain": 54, "amr": 66})
    assert drawn(panels["NAIVE"]) == pytest.approx({"naive": 51, "amr": 63})
    (dashed,) = (line for line in panels["UMT"].get_lines() if line.get_color() == "#D55E00")
    assert dashed.get_linestyle() == "--"
    limits = {(axes.get_xlim(), axes.get_ylim()) for axes in panels.values()}
    assert len(limits) == 1
    shares = {axes.get_title(loc="left"): axes for axes in plots["Dominance of audio, validation (%)"].figure.axes}
    assert list(shares) == [base.upper() for base in BASES], "a unimodal run has no shares"
    assert drawn(shares["UMT"]) == pytest.approx({"naive": 55, "plain": 61, "amr": 50})
    assert "UMT+AMR 66.0" in plots["Validation accuracy (%)"].alt
    assert plot_summary(runs).axes[2].get_title(loc="left") == "NAIVE"


def test_eight_methods_share_a_panel(many: Path) -> None:
    runs = read_runs([f"{many}/runs/*{name}-?" for name in ("naive", "umt", "agm", "mmcosine")])
    assert len(plot_curves(runs)[0].figure.axes) == 1
    runs = read_runs([f"{many}/runs/*{name}*-?" for name in ("naive", "umt", "agm", "pmr", "mmcosine", "amr")])
    assert len(plot_curves(runs)[0].figure.axes) > 4


def test_many_points_are_numbered_and_joined(many: Path) -> None:
    plot = next(p for p in plot_curves(read_runs([many])) if p.title.startswith("Accuracy by"))
    (axes,) = plot.figure.axes
    numbers = [text.get_text() for text in axes.texts]
    assert sorted(numbers, key=int) == [str(n) for n in range(1, 13) for _ in range(2)], "one without, one with AMR"
    key = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert key[2:] == [f"{n}  {base.upper()}" for n, base in enumerate(BASES, 1)]
    pairs = [line for line in axes.get_lines() if line.get_color() == "#bbbbbb"]
    umt = [(61, 54), (50, 66)]
    assert any(np.allclose(np.asarray(line.get_xydata()), umt) for line in pairs)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_one_point_among_many_rows(tmp_path: Path) -> None:
    for n in range(9):
        write_run(tmp_path / f"m{n}", epoch(0, 0.5, 0.5 if n == 0 else None), method=f"m{n}")
    titles = [plot.title for plot in plot_curves(read_runs([tmp_path]))]
    assert "Accuracy by dominance of audio, validation" in titles


def test_the_intervals_are_drawn_in_the_tables_order(tmp_path: Path) -> None:
    seeds(tmp_path, "naive", [0.50, 0.52, 0.51])
    seeds(tmp_path, "umt", [0.56, 0.57, 0.57])
    assert not any("minus naive" in plot.title for plot in plot_curves(read_runs([tmp_path])))
    seeds(tmp_path, "amr", [0.45, 0.60, 0.52])
    plot = plot_curves(read_runs([tmp_path]))[-1]
    (axes,) = plot.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["amr", "umt"]
    assert axes.yaxis_inverted()
    bars = [np.asarray(line.get_xdata()) for line in axes.get_lines() if len(np.asarray(line.get_xdata())) == 2]
    for bar, accuracy in zip(bars, ([0.45, 0.60, 0.52], [0.56, 0.57, 0.57]), strict=False):
        expected = stats.ttest_rel(accuracy, [0.50, 0.52, 0.51]).confidence_interval(0.95)
        np.testing.assert_allclose(bar, [100 * expected.low, 100 * expected.high])
    dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() for dot in dots] == ["white", "#0072B2"], "filled: 0 lies outside"


def test_a_page_of_many_methods(many: Path) -> None:
    runs = [read_run(path) for path in find_runs([many])]
    write_report(runs, many / "r.html")
    reader = Reader((many / "r.html").read_text())
    assert len(reader.images()) == 4
    assert "small marks are runs" not in reader.text


def test_a_share_that_moved_without_the_decisions_is_said(tmp_path: Path) -> None:
    """A row with AMR whose dominance and decision share part by more than ten points; naive fusion is not judged."""
    for method, shares in (("naive", (0.9, 0.7)), ("amr", (0.5, 0.65)), ("umt+amr", (0.5, 0.58))):
        audio, decides = shares
        more = {"val/decision_share/audio": decides, "val/decision_share/video": 1 - decides}
        write_run(tmp_path / method, epoch(0, 0.8, audio, **more), method=method)
    runs = read_runs([tmp_path])
    text = table_text(runs)
    write_report(runs, tmp_path / "report.html")
    assert "| audio decides |" in text
    assert (
        "- amr: the share moved, the decisions did not as far: audio has 50.0 % of the attribution and 65.0 % of the "
        "decisions." in text
    )
    assert text.count("the share moved") == 1
    page = (tmp_path / "report.html").read_text()
    assert "Decision share of audio, validation" in page
    assert "65.0" in page
