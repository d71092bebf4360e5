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

from amr.compare.runs import Run
from amr.compare.table import SPLIT_NAMES, Row, row_names, summarise, union_of_modalities

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito's colours without the yellow, which is lost on white. 7 colours, 4 dashes: 28 distinct lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
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
    """Curves over epochs and the accuracy-dominance scatter, for each dataset; panels without data are left out."""
    rows = summarise(runs)
    plots = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        plots += _plots([row for row in rows if row.dataset == dataset])
    return plots


def plot_summary(runs: Iterable[Run]) -> Figure:
    """Validation accuracy and the first modality's dominance over epochs, side by side; a row for each dataset."""
    rows = summarise(runs)
    with _drawing():
        from matplotlib.figure import Figure

        datasets = list(dict.fromkeys(row.dataset for row in rows))
        figure = Figure(figsize=(12, 4.5 * max(1, len(datasets))), dpi=100, layout="constrained")
        parts = figure.subfigures(max(1, len(datasets)), 1, squeeze=False)[:, 0]
        for part, dataset in zip(parts, datasets, strict=False):
            chosen = [row for row in rows if row.dataset == dataset]
            panels = [panel for panel in _panels(chosen) if panel.column.startswith(("val/acc", "val/dom"))][:2]
            lines: dict[int, Line2D] = {}
            for axes, panel in zip(part.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
                lines |= _draw(axes, chosen, panel)
                axes.set_title(panel.title, fontsize=12)
            _legend(part, chosen, lines, columns=6, size=11)
            several = any(len(row.runs) > 1 for row in chosen)
            part.suptitle(f"{dataset}" + ("   (line: mean over seeds, band: lowest to highest)" if several else ""))
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


def _look(index: int) -> dict[str, Any]:
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
            (lines[index],) = axes.plot(epochs, mean, **_look(index), markevery=(index % every, every))
            if len(row.runs) > 1:
                axes.fill_between(epochs, low, high, color=_look(index)["color"], alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.set_title(panel.title)
    if panel.even is not None:
        axes.axhline(panel.even, **EVEN)
        axes.set_xlabel("epoch; thin dotted line: equal shares")
        axes.set_ylim(0, 100)
    return lines


def _legend(figure: Any, rows: Sequence[Row], lines: Mapping[int, Any], columns: int, size: float = 9) -> None:
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
    return [name if len(name) <= 40 else f"{name[:39]}…" for name in row_names(rows)]


def _columns(rows: Sequence[Row], most: int) -> int:
    """Columns of the legend: fewer than `most` for long names, and filled evenly."""
    fit = min(most, max(1, most * 22 // max(map(len, _labels(rows)), default=1)))
    return math.ceil(len(rows) / math.ceil(len(rows) / fit)) if rows else 1


def _plots(rows: Sequence[Row]) -> list[Plot]:
    """One dataset's figures, each with its own legend: they are read one at a time on a phone."""
    names = row_names(rows)
    plots = []
    with _drawing():
        for panel in _panels(rows):
            figure = _small_figure(rows)
            lines = _draw(figure.subplots(), rows, panel)
            _legend(figure, rows, lines, columns=2)
            last = [f"{names[i]} {_curve(rows[i], panel)[-1][1]:.{1 if panel.scale > 1 else 3}f}" for i in lines]
            alt = f"{panel.title} over epochs. At the last common epoch of each method's seeds: {', '.join(last)}."
            plots.append(Plot(rows[0].dataset, panel.title, alt, figure))
        if (modalities := union_of_modalities([row for row in rows if row.dominance])) and (
            plot := _scatter(rows, modalities[0], 100 / len(modalities))
        ):
            plots.append(plot)
    return plots


def _scatter(rows: Sequence[Row], modality: str, even: float) -> Plot | None:
    """Accuracy against one modality's dominance: a small mark a run, a large one for the mean; None without data."""
    figure = _small_figure(rows)
    axes = figure.subplots()
    dots: dict[int, Line2D] = {}
    words = []
    for i, (name, row) in enumerate(zip(row_names(rows), rows, strict=True)):
        numbers = [run.numbers(row.source) for run in row.runs if modality in row.dominance]
        points = [(100 * n[f"dominance/{modality}"], 100 * n["acc"]) for n in numbers if f"dominance/{modality}" in n]
        if points:
            x, y = zip(*points, strict=True)
            mean = statistics.fmean(x), statistics.fmean(y)
            look = _look(i) | {"linestyle": ""}
            if len(points) > 1:
                axes.plot(x, y, **look, markersize=5, alpha=0.6, markeredgewidth=0)
            (dots[i],) = axes.plot(*([value] for value in mean), **look, markersize=9, markeredgecolor="white")
            words.append(f"{name} {mean[0]:.1f}, {mean[1]:.1f}")
    if not dots:
        return None
    title = f"Accuracy by dominance of {modality}, {SPLIT_NAMES[rows[0].source]}"
    axes.axvline(even, **EVEN)
    axes.set(xlabel=f"dominance of {modality} (%); thin dotted line: equal shares", ylabel="accuracy (%)", title=title)
    _legend(figure, rows, dots, columns=2)
    return Plot(rows[0].dataset, title, f"{title}. Dominance and accuracy in %: {'; '.join(words)}.", figure)


def _small_figure(rows: Sequence[Row]) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(4.6, 3.0 + 0.17 * math.ceil(len(rows) / _columns(rows, 2))), layout="constrained")


@contextmanager
def _drawing() -> Iterator[None]:
    """Matplotlib in this module's style, whatever the user's matplotlibrc says; put back at the end."""
    from matplotlib import style

    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box for a name in a script DejaVu lacks
        yield


def image(figure: Figure, kind: Literal["svg", "png"]) -> bytes:
    """The figure without dates or program names, and for SVG without the document type's address."""
    buffer = io.BytesIO()
    nothing = ("Date", "Creator", "Format", "Type") if kind == "svg" else ("Software",)
    with _drawing():
        figure.savefig(buffer, format=kind, metadata=dict.fromkeys(nothing))
    data = buffer.getvalue()
    return data[data.index(b"<svg") :] if kind == "svg" else data
