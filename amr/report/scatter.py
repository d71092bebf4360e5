"""Accuracy against dominance, and each row's difference to naive fusion. Matplotlib is imported to draw only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from amr.report.style import (
    COLOURS,
    EVEN,
    PLAIN,
    WITH_AMR,
    Plot,
    add_legend,
    line_look,
    new_figure,
    row_groups,
    shorten,
    small_figure,
)
from amr.report.table import SPLIT_NAMES, Row, gains, row_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


def _points(rows: Sequence[Row], modality: str) -> list[tuple[list[float], list[float]]]:
    """Each row's (dominance, accuracy) in %, a value per run; without values for a row that has none."""
    points = []
    for row in rows:
        numbers = [run.numbers(row.source) for run in row.runs if modality in row.dominance]
        found = [n for n in numbers if f"dominance/{modality}" in n and "acc" in n]
        points.append(([100 * n[f"dominance/{modality}"] for n in found], [100 * n["acc"] for n in found]))
    return points


def plot_scatter(rows: Sequence[Row], modality: str, even: float) -> Plot | None:
    """Accuracy against one modality's dominance: a small mark per run, a large one for the mean; None without data."""
    figure = small_figure(rows)
    axes = figure.subplots()
    dots: dict[int, Line2D] = {}
    means = {}
    for i, (x, y) in enumerate(_points(rows, modality)):
        if x:
            means[i] = statistics.fmean(x), statistics.fmean(y)
            look = line_look(i) | {"linestyle": ""}
            if len(x) > 1:
                axes.plot(x, y, **look, markersize=5, alpha=0.6, markeredgewidth=0)
            (dots[i],) = axes.plot(*([value] for value in means[i]), **look, markersize=9, markeredgecolor="white")
    if not dots:
        return None
    add_legend(figure, rows, dots, columns=2)
    return _finish_scatter(axes, rows, modality, even, means)


def plot_numbered_scatter(rows: Sequence[Row], modality: str, even: float) -> Plot | None:
    """The same for many rows: the means only, one number per method, thin lines from each to the same with AMR."""
    means = {i: (statistics.fmean(x), statistics.fmean(y)) for i, (x, y) in enumerate(_points(rows, modality)) if x}
    groups = [kept for group in row_groups(rows) if (kept := [i for i in group if i in means])]
    if not groups:
        return None
    figure = new_figure(5.4 + 0.17 * math.ceil(len(groups) / 2))
    axes = figure.subplots()
    for group in groups:
        axes.plot(*zip(*(means[i] for i in group), strict=True), color="#bbbbbb", linewidth=0.8, zorder=1)
        for i in group:
            marker, look = ("D", WITH_AMR) if rows[i].with_amr else ("o", PLAIN)
            axes.plot(*([value] for value in means[i]), marker=marker, color=look["color"], markersize=5, zorder=3)
    plot = _finish_scatter(axes, rows, modality, even, means)
    axes.margins(0.1)
    names = row_names(rows)
    key = [f"{number}  {shorten(names[group[0]], 24)}" for number, group in enumerate(groups, 1)]
    marks = [axes.plot([], [], marker=m, color=c["color"], linestyle="")[0] for m, c in (("o", PLAIN), ("D", WITH_AMR))]
    blank = [axes.plot([], [], linestyle="")[0] for _ in key]
    figure.legend(
        [*marks, *blank],
        ["without AMR", "with AMR", *key],
        loc="outside lower center",
        ncols=2,
        fontsize=9,
        handlelength=1,
    )
    figure.draw_without_rendering()  # settles where the points are
    _number_points(axes, {i: str(number) for number, group in enumerate(groups, 1) for i in group}, means)
    return plot


def _number_points(axes: Axes, labels: Mapping[int, str], means: Mapping[int, tuple[float, float]]) -> None:
    """Put each label beside its point where it can be no other's, or else farther away, with a line to its point."""
    scale = 72 / axes.figure.dpi  # to points, the unit of the text's size
    points = {i: tuple(axes.transData.transform(mean) * scale) for i, mean in means.items()}
    turns = [(math.cos(math.pi / 8 * turn), math.sin(math.pi / 8 * turn)) for turn in range(16)]
    written: list[tuple[float, float]] = []
    for i, (x, y) in sorted(points.items(), key=lambda item: item[1]):
        others = [point for other, point in points.items() if other != i] + written
        for radius in (9, *range(16, 90, 5)):
            places = [(radius * dx, radius * dy) for dx, dy in turns]
            room, dx, dy = max(
                (min((math.dist((x + u, y + v), p) for p in others), default=math.inf), u, v) for u, v in places
            )
            if room > (14 if radius == 9 else 10):
                break
        written.append((x + dx, y + dy))
        line = {"arrowstyle": "-", "color": "#888888", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
        text = axes.annotate(
            labels[i],
            means[i],
            (dx, dy),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            arrowprops=None if radius == 9 else line,
        )
        text.set_in_layout(False)


def _finish_scatter(
    axes: Axes, rows: Sequence[Row], modality: str, even: float, means: Mapping[int, tuple[float, float]]
) -> Plot:
    title = f"Accuracy by dominance of {modality}, {SPLIT_NAMES[rows[0].source]}"
    axes.axvline(even, **EVEN)
    axes.set(xlabel=f"dominance of {modality} (%); thin dotted line: equal shares", ylabel="accuracy (%)", title=title)
    names = row_names(rows)
    words = "; ".join(f"{names[i]} {x:.1f}, {y:.1f}" for i, (x, y) in means.items())
    figure = axes.figure.get_figure(root=True)
    return Plot(rows[0].dataset, title, f"{title}. Dominance and accuracy in %: {words}.", figure)


def plot_forest(rows: Sequence[Row]) -> Plot | None:
    """Each row's paired accuracy difference to the baseline with its 95 % interval; None for fewer than two."""
    found = [(name, gain) for name, row in zip(row_names(rows), rows, strict=True) if (gain := gains(row, rows)["acc"])]
    if len(found) < 2:
        return None
    figure = new_figure(1.1 + 0.22 * len(found))
    axes = figure.subplots()
    for place, (_, gain) in enumerate(found):
        clear = gain.low > 0 or gain.high < 0
        axes.plot([100 * gain.low, 100 * gain.high], [place, place], color=COLOURS[0], linewidth=1.4)
        axes.plot([100 * gain.mean], [place], "o", color=COLOURS[0], markerfacecolor=COLOURS[0] if clear else "white")
    axes.axvline(0, color="#555555", linewidth=0.9)
    axes.set_yticks(range(len(found)), [shorten(name, 28) for name, _ in found], fontsize=9)
    axes.set_ylim(len(found) - 0.4, -0.6)
    figure.supxlabel("percentage points, 95 % intervals; filled: 0 lies outside", fontsize=9)
    baseline = "naive fusion" if rows[0].baseline == "naive" else rows[0].baseline
    title = f"Accuracy minus {baseline}'s, {SPLIT_NAMES[rows[0].source]}"
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    words = "; ".join(f"{name} {gain}" for name, gain in found)
    return Plot(
        rows[0].dataset, title, f"{title}, paired by seed, in percentage points with 95 % intervals: {words}.", figure
    )
