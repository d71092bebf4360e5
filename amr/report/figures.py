"""Curves of a comparison over epochs, and all its figures together. Matplotlib is imported only to draw."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amr.evaluation.runs import Run
from amr.report.scatter import plot_forest, plot_numbered_scatter, plot_scatter
from amr.report.style import (
    EVEN,
    NAIVE,
    PLAIN,
    WITH_AMR,
    Plot,
    add_legend,
    drawing,
    is_crowded,
    line_look,
    new_figure,
    row_groups,
    shorten,
    small_figure,
)
from amr.report.table import Row, baseline_of, leading, row_names, summarise, union_of_modalities

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D


def plot_curves(runs: Iterable[Run], rows: Sequence[Row] | None = None) -> list[Plot]:
    """Each dataset's curves over epochs, accuracy-dominance scatter, differences to naive: those with data.

    Args:
        runs: Runs.
        rows: Their summary, where it is there already.
    """
    rows, _ = leading(summarise(runs) if rows is None else rows)
    plots = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        plots += _plots([row for row in rows if row.dataset == dataset])
    return plots


def plot_summary(runs: Iterable[Run], rows: Sequence[Row] | None = None) -> Figure:
    """Validation accuracy, the first modality's dominance and decision share over epochs; a row for each dataset.

    Args:
        runs: Runs.
        rows: Their summary, where it is there already.
    """
    rows, _ = leading(summarise(runs) if rows is None else rows)
    with drawing():
        from matplotlib.figure import Figure

        datasets = list(dict.fromkeys(row.dataset for row in rows))
        members = [[row for row in rows if row.dataset == dataset] for dataset in datasets]
        heights = [0.9 + 1.2 * math.ceil(len(row_groups(m)) / 3) if is_crowded(m) else 4.5 for m in members] or [4.5]
        figure = Figure(figsize=(12, sum(heights)), dpi=100, layout="constrained")
        parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, dataset, chosen in zip(parts, datasets, members, strict=False):
            drawn = _panels(chosen)
            first = [next((panel for panel in drawn if panel.column.startswith(start)), None) for start in LEADING]
            panels = [panel for panel in first if panel is not None]
            several = any(len(row.runs) > 1 for row in chosen)
            part.suptitle(f"{dataset}" + ("   (line: mean over seeds, band: lowest to highest)" if several else ""))
            if is_crowded(chosen):
                for half, panel in zip(part.subfigures(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
                    _multiples(half, chosen, panel, columns=3)
                continue
            lines: dict[int, Line2D] = {}
            for axes, panel in zip(part.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
                lines |= _draw(axes, chosen, panel)
                axes.set_title(panel.title, fontsize=12 if len(panels) < 3 else 10)
            add_legend(part, chosen, lines, columns=6, size=11)
    return figure


LEADING = ("val/acc", "val/dominance", "val/decision_share")  # what the summary shows, of the first modality


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
        *(_Panel(f"val/decision_share/{m}", f"Decision share of {m}, validation (%)", even=even) for m in shown),
        _Panel("val/mAP", "Validation mAP (%)"),
        _Panel("train/loss", "Training loss", scale=1.0),
    ]
    return [panel for panel in panels if any(_curve(row, panel) for row in rows)]


def _curve(row: Row, panel: _Panel) -> list[tuple[int, float, float, float]]:
    """(epoch, mean, lowest, highest) over the row's runs, at the epochs that every one of them has."""
    if panel.even is not None and len(row.runs[0].modalities) == 1:
        return []
    logged = [{e: v.get(panel.column, math.nan) * panel.scale for e, v in run.epochs.items()} for run in row.runs]
    finite = [{e: value for e, value in values.items() if math.isfinite(value)} for values in logged]
    series = [values for values in finite if values]
    common = sorted(set(series[0]).intersection(*series[1:])) if series else []
    points = [(epoch, [values[epoch] for values in series]) for epoch in common]
    return [(epoch, statistics.fmean(vs), min(vs), max(vs)) for epoch, vs in points]


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


def _plots(rows: Sequence[Row]) -> list[Plot]:
    """One dataset's figures, each with its own legend: they are read one at a time on a phone."""
    names, crowded = row_names(rows), is_crowded(rows)
    plots: list[Plot | None] = []
    with drawing():
        for panel in _panels(rows):
            if not crowded:
                figure = small_figure(rows)
                add_legend(figure, rows, _draw(figure.subplots(), rows, panel), columns=2)
            elif panel.column.startswith(LEADING):
                figure = new_figure(0.9 + 1.15 * math.ceil(len(row_groups(rows)) / 2))
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
            scatter = plot_numbered_scatter if crowded else plot_scatter
            plots.append(scatter(rows, modalities[0], 100 / len(modalities)))
        plots.append(plot_forest(rows))
    return [plot for plot in plots if plot]


def _multiples(figure: Figure | SubFigure, rows: Sequence[Row], panel: _Panel, columns: int) -> None:
    """Draw a small panel for each method, all with the same axes: without and with AMR, and naive fusion in grey."""
    from matplotlib.ticker import MaxNLocator

    names = row_names(rows)
    groups = [kept for group in row_groups(rows) if (kept := [i for i in group if _curve(rows[i], panel)])]
    panels = figure.subplots(math.ceil(len(groups) / columns), columns, sharex=True, sharey=True, squeeze=False)
    grid = list(panels.flat)
    lines: dict[str, Line2D] = {}
    for axes, group in zip(grid, groups, strict=False):
        reference = rows[group[0]] if rows[group[0]].method == "naive" else baseline_of(rows[group[0]], rows)
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
