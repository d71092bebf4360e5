"""Curves and scatter of a comparison. Matplotlib is imported by the functions that draw; pyplot never."""

from __future__ import annotations

import io
import math
import statistics
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from amr.evaluation.runs import Run
from amr.report.table import SPLIT_NAMES, Row, difference, naive_of, row_names, summarise, union_of_modalities

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D

# Okabe and Ito's colours without the yellow, which is lost on white. 7 colours, 4 dashes: 28 distinct lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
MOST = 8  # rows that one panel can show; more get a small panel a method
PLAIN: dict[str, Any] = {"color": COLOURS[0], "linestyle": "-"}
WITH_AMR: dict[str, Any] = {"color": COLOURS[1], "linestyle": (0, (4, 1.5))}
NAIVE: dict[str, Any] = {"color": "#999999", "linestyle": "-", "linewidth": 1.1}
EVEN: dict[str, Any] = {"color": "#555555", "linewidth": 0.9, "linestyle": (0, (1, 2))}  # the line of equal shares
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 10,
    "text.parse_math": False,  # a "$" in a name is a dollar
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "svg.fonttype": "path",
    "svg.hashsalt": "amr",  # the same ids each time: the same runs give the same bytes
}


@dataclass(frozen=True)
class Plot:
    """A figure, the dataset it is about, its title, and its content in words."""

    dataset: str
    title: str
    alt: str
    figure: Figure


def plot_curves(runs: Iterable[Run]) -> list[Plot]:
    """Each dataset's curves over epochs, accuracy-dominance scatter, differences to naive: those with data."""
    rows = summarise(runs)
    plots = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        plots += _plots([row for row in rows if row.dataset == dataset])
    return plots


def is_crowded(rows: Iterable[Row]) -> bool:
    """Whether a dataset's rows are too many for one panel."""
    return len(list(rows)) > MOST


def plot_summary(runs: Iterable[Run]) -> Figure:
    """Validation accuracy and the first modality's dominance over epochs, side by side; a row for each dataset."""
    rows = summarise(runs)
    with drawing():
        from matplotlib.figure import Figure

        datasets = list(dict.fromkeys(row.dataset for row in rows))
        members = [[row for row in rows if row.dataset == dataset] for dataset in datasets]
        heights = [0.9 + 1.2 * math.ceil(len(_groups(m)) / 3) if is_crowded(m) else 4.5 for m in members] or [4.5]
        figure = Figure(figsize=(12, sum(heights)), dpi=100, layout="constrained")
        parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, dataset, chosen in zip(parts, datasets, members, strict=False):
            panels = [panel for panel in _panels(chosen) if panel.column.startswith(("val/acc", "val/dom"))][:2]
            several = any(len(row.runs) > 1 for row in chosen)
            part.suptitle(f"{dataset}" + ("   (line: mean over seeds, band: lowest to highest)" if several else ""))
            if is_crowded(chosen):
                for half, panel in zip(part.subfigures(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
                    _multiples(half, chosen, panel, columns=3)
                continue
            lines: dict[int, Line2D] = {}
            for axes, panel in zip(part.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
                lines |= _draw(axes, chosen, panel)
                axes.set_title(panel.title, fontsize=12)
            add_legend(part, chosen, lines, columns=6, size=11)
    return figure


@dataclass(frozen=True)
class _Panel:
    column: str
    title: str
    scale: float = 100.0
    even: float | None = None  # equal shares, in %: drawn as a reference line


def _panels(rows: Sequence[Row]) -> list[_Panel]:
    several = [row for row in rows if len(row.runs[0].modalities) > 1]
    modalities = union_of_modalities(several)
    even = 100 / max(1, len(modalities))
    shown = modalities[:1] if len(modalities) == 2 else modalities  # of two shares, one says both
    panels = [
        _Panel("val/acc", "Validation accuracy (%)"),
        *(_Panel(f"val/dominance/{m}", f"Dominance of {m}, validation (%)", even=even) for m in shown),
        _Panel("val/mAP", "Validation mAP (%)"),
        _Panel("train/loss", "Training loss", scale=1.0),
    ]
    return [panel for panel in panels if any(_curve(row, panel) for row in rows)]


def _curve(row: Row, panel: _Panel) -> list[tuple[int, float, float, float]]:
    """(epoch, mean, lowest, highest) over the row's runs, at the epochs that every one of them has."""
    if "/dominance/" in panel.column and len(row.runs[0].modalities) == 1:
        return []
    logged = [{e: v.get(panel.column, math.nan) * panel.scale for e, v in run.epochs.items()} for run in row.runs]
    finite = [{e: value for e, value in values.items() if math.isfinite(value)} for values in logged]
    series = [values for values in finite if values]
    common = sorted(set(series[0]).intersection(*series[1:])) if series else []
    points = [(epoch, [values[epoch] for values in series]) for epoch in common]
    return [(epoch, statistics.fmean(vs), min(vs), max(vs)) for epoch, vs in points]


def line_look(index: int) -> dict[str, Any]:
    """Colour, dashes and marker of a row."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def _draw(axes: Axes, rows: Sequence[Row], panel: _Panel) -> dict[int, Line2D]:
    """Draw one panel; returns the line of each row that is in it."""
    from matplotlib.ticker import MaxNLocator

    lines = {}
    for index, row in enumerate(rows):
        if curve := _curve(row, panel):
            epochs, mean, low, high = zip(*curve, strict=True)
            every = max(1, len(epochs) // 6)
            (lines[index],) = axes.plot(epochs, mean, **line_look(index), markevery=(index % every, every))
            if len(row.runs) > 1:
                axes.fill_between(epochs, low, high, color=line_look(index)["color"], alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.set_title(panel.title)
    if panel.even is not None:
        axes.axhline(panel.even, **EVEN)
        axes.set_xlabel("epoch; thin dotted line: equal shares")
        axes.set_ylim(0, 100)
    return lines


def add_legend(figure: Any, rows: Sequence[Row], lines: Mapping[int, Any], columns: int, size: float = 9) -> None:
    """Name the rows that have a line, below the figure."""
    labels = [f" {label}" if label.startswith("_") else label for label in _labels(rows)]  # matplotlib hides "_..."
    shown = sorted(lines)
    figure.legend(
        [lines[i] for i in shown],
        [labels[i] for i in shown],
        loc="outside lower center",
        ncols=_columns(rows, columns),
        fontsize=size,
    )


def _labels(rows: Sequence[Row]) -> list[str]:
    return [shorten(name, 40) for name in row_names(rows)]


def shorten(name: str, most: int) -> str:
    """A name of at most that many characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _columns(rows: Sequence[Row], most: int) -> int:
    """Columns of the legend: fewer than `most` for long names, and filled evenly."""
    fit = min(most, max(1, most * 22 // max(map(len, _labels(rows)), default=1)))
    return math.ceil(len(rows) / math.ceil(len(rows) / fit)) if rows else 1


def _plots(rows: Sequence[Row]) -> list[Plot]:
    """One dataset's figures, each with its own legend: they are read one at a time on a phone."""
    names, crowded = row_names(rows), is_crowded(rows)
    plots: list[Plot | None] = []
    with drawing():
        for panel in _panels(rows):
            if not crowded:
                figure = _small_figure(rows)
                add_legend(figure, rows, _draw(figure.subplots(), rows, panel), columns=2)
            elif panel.column.startswith(("val/acc", "val/dom")):
                figure = new_figure(0.9 + 1.15 * math.ceil(len(_groups(rows)) / 2))
                _multiples(figure, rows, panel, columns=2)
            else:
                continue
            last = [
                (name, curve[-1][1]) for name, row in zip(names, rows, strict=True) if (curve := _curve(row, panel))
            ]
            words = ", ".join(f"{name} {value:.{1 if panel.scale > 1 else 3}f}" for name, value in last)
            alt = f"{panel.title} over epochs. At the last common epoch of each method's seeds: {words}."
            plots.append(Plot(rows[0].dataset, panel.title, alt, figure))
        if modalities := union_of_modalities([row for row in rows if row.dominance]):
            scatter = _numbered_scatter if crowded else _scatter
            plots.append(scatter(rows, modalities[0], 100 / len(modalities)))
        plots.append(_forest(rows))
    return [plot for plot in plots if plot]


def _groups(rows: Sequence[Row]) -> list[list[int]]:
    """Places of the rows that share a small panel: a method without and with AMR."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault((row.method,) if row.unimodal else (row.fusion, row.base), []).append(i)
    return list(groups.values())


def _multiples(figure: Figure | SubFigure, rows: Sequence[Row], panel: _Panel, columns: int) -> None:
    """Draw a small panel for each method, all with the same axes: without and with AMR, and naive fusion in grey."""
    from matplotlib.ticker import MaxNLocator

    names = row_names(rows)
    groups = [kept for group in _groups(rows) if (kept := [i for i in group if _curve(rows[i], panel)])]
    panels = figure.subplots(math.ceil(len(groups) / columns), columns, sharex=True, sharey=True, squeeze=False)
    grid = list(panels.flat)
    lines: dict[str, Line2D] = {}
    for axes, group in zip(grid, groups, strict=False):
        reference = rows[group[0]] if rows[group[0]].method == "naive" else naive_of(rows[group[0]], rows)
        if reference and (curve := _curve(reference, panel)):
            (lines["naive fusion"],) = axes.plot(*list(zip(*curve, strict=True))[:2], **NAIVE)
        for i in group:
            if rows[i].method == "naive":
                continue
            epochs, mean, low, high = zip(*_curve(rows[i], panel), strict=True)
            look = WITH_AMR if rows[i].with_amr else PLAIN
            (lines["with AMR" if rows[i].with_amr else "the method"],) = axes.plot(epochs, mean, **look)
            axes.fill_between(epochs, low, high, color=look["color"], alpha=0.15, linewidth=0)
        if panel.even is not None:
            (lines["equal shares"],) = [axes.axhline(panel.even, **EVEN)]
            axes.set_ylim(0, 100)
        axes.set_title(shorten(names[group[0]], 26), fontsize=9, fontweight="normal", pad=3)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        axes.tick_params(labelsize=8)
    for place, axes in enumerate(grid):
        if place >= len(groups):
            axes.remove()
        elif place + columns >= len(groups):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("epoch", fontsize=8)
    figure.suptitle(panel.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    order = [label for label in ("the method", "with AMR", "naive fusion", "equal shares") if label in lines]
    handles = [lines[label] for label in order]
    figure.legend(handles, order, loc="outside lower center", ncols=2 if columns == 2 else 4, fontsize=9)


def _points(rows: Sequence[Row], modality: str) -> list[tuple[list[float], list[float]]]:
    """Each row's (dominance, accuracy) in %, a value a run; without values for a row that has none."""
    points = []
    for row in rows:
        numbers = [run.numbers(row.source) for run in row.runs if modality in row.dominance]
        found = [n for n in numbers if f"dominance/{modality}" in n and "acc" in n]
        points.append(([100 * n[f"dominance/{modality}"] for n in found], [100 * n["acc"] for n in found]))
    return points


def _scatter(rows: Sequence[Row], modality: str, even: float) -> Plot | None:
    """Accuracy against one modality's dominance: a small mark a run, a large one for the mean; None without data."""
    figure = _small_figure(rows)
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


def _numbered_scatter(rows: Sequence[Row], modality: str, even: float) -> Plot | None:
    """The same for many rows: the means only, a number a method, thin lines from each to the same with AMR."""
    means = {i: (statistics.fmean(x), statistics.fmean(y)) for i, (x, y) in enumerate(_points(rows, modality)) if x}
    groups = [kept for group in _groups(rows) if (kept := [i for i in group if i in means])]
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


def _forest(rows: Sequence[Row]) -> Plot | None:
    """Each row's paired accuracy difference to naive fusion with its 95 % interval; None for fewer than two."""
    gains = [difference(row, naive_of(row, rows), "acc") for row in rows]
    found = [(name, gain) for name, gain in zip(row_names(rows), gains, strict=True) if gain]
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
    title = f"Accuracy minus naive fusion's, {SPLIT_NAMES[rows[0].source]}"
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    words = "; ".join(f"{name} {gain}" for name, gain in found)
    return Plot(
        rows[0].dataset, title, f"{title}, paired by seed, in percentage points with 95 % intervals: {words}.", figure
    )


def _small_figure(rows: Sequence[Row]) -> Figure:
    return new_figure(3.0 + 0.17 * math.ceil(len(rows) / _columns(rows, 2)))


def new_figure(height: float) -> Figure:
    """A figure as wide as a column of the page, that many inches high."""
    from matplotlib.figure import Figure

    return Figure(figsize=(4.6, height), layout="constrained")


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib in this module's style, whatever the user's matplotlibrc says; put back at the end."""
    from matplotlib import style

    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box for a name in a script DejaVu lacks
        yield


def image(figure: Figure, kind: Literal["svg", "png"]) -> bytes:
    """The figure without dates or program names, and for SVG without the document type's address."""
    buffer = io.BytesIO()
    nothing = ("Date", "Creator", "Format", "Type") if kind == "svg" else ("Software",)
    with drawing():
        figure.savefig(buffer, format=kind, metadata=dict.fromkeys(nothing))
    data = buffer.getvalue()
    return data[data.index(b"<svg") :] if kind == "svg" else data
