"""Losses of runs when a modality is missing or corrupted: the table and the plots of robustness.parquet."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from amr.evaluation.runs import BLANK, Key
from amr.report.style import (
    COLOURS,
    EVEN,
    MARKERS,
    Plot,
    add_legend,
    drawing,
    is_crowded,
    line_look,
    new_figure,
    shorten,
)
from amr.report.table import Row, Stat, row_names, show, union_of_modalities

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

ROBUSTNESS_CAPTION = (
    "In %, test split; mean ± standard deviation over seeds. Worst missing: accuracy without the modality whose loss "
    "costs most, its encoding being the training clips' mean. Under corruption: area under accuracy against severity, "
    "mean over a modality's corruptions. Shapley: a modality's exact Shapley value in the accuracy. Together: what two "
    "modalities add beyond what each adds alone. EMAP gap: accuracy owed to interactions. ECE: calibration error. "
    "Decides (conflict): how often the output is this modality's class where the others come from a clip of another "
    "class. Right only together, lost together: clips that no modality alone gets right and all together do, and clips "
    "that some modality alone gets right and all together get wrong. "
    "InterSHAP: part of what modalities change in the predicted class's logit that they change only together. Unique, "
    "redundant and synergistic: information of the encoders' linear probes about the label, in bits, not in %."
)
SEVERITIES = range(1, 6)


def robustness_cells(rows: Sequence[Row], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The table's header and lines as text: columns that some run has."""
    modalities = union_of_modalities(rows)
    labels = list(
        dict.fromkeys(key[1] for row in rows for run in row.runs for key in run.robustness if key[0] == "auc")
    )
    pairs = {key[1] for row in rows for run in row.runs for key in run.robustness if key[0] == "cooperation"}
    wholes = {
        term: {key[1] for row in rows for run in row.runs for key in run.robustness if key[0] == f"pid_label_{term}"}
        for term in ("redundant", "synergistic")
    }
    columns: dict[str, Key] = {
        "Accuracy": ("acc", "", "", None),
        "Worst missing": ("worst_missing_mean", "", "", None),
        **{f"{label} under corruption": ("auc", label, "mean", None) for label in labels},
        **{f"Shapley {m}": ("shapley", m, "", None) for m in modalities},
        **{
            f"Together {pair}" if len(pairs) > 1 else "Together": ("cooperation", pair, "", None)
            for pair in sorted(pairs)
        },
        **{f"{m} decides (conflict)": ("conflict", m, "", None) for m in modalities},
        "Right only together": ("outcome_synergistic", "", "", None),
        "Lost together": ("outcome_lost", "", "", None),
        "EMAP gap": ("emap_gap", "", "", None),
        "ECE": ("ece", "", "", None),
        "InterSHAP": ("intershap", "", "", None),
    }
    bits: dict[str, Key] = {f"Unique {m} (bits)": ("pid_label_unique", m, "", None) for m in modalities}
    for term, found in wholes.items():
        for whole in sorted(found):
            title = f"{term.capitalize()} {whole}" if len(found) > 1 else term.capitalize()
            bits[f"{title} (bits)"] = (f"pid_label_{term}", whole, "", None)
    body = []
    for name, row in zip(names, rows, strict=True):
        stats = [Stat.of(_values(row, key)) for key in columns.values()]
        cells = [show(stat, len(row.runs)) for stat in stats]
        body.append([name, *cells, *(_number(_values(row, key), len(row.runs)) for key in bits.values())])
    head = ["Method", *columns, *bits]
    kept = [i for i in range(len(head)) if any(line[i] != BLANK for line in body)]
    return [head[i] for i in kept], [[line[i] for i in kept] for line in body]


def _number(values: Sequence[float], runs: int) -> str:
    """A cell of a number that is not a fraction: mean and deviation as they are, and the number of runs if not all."""
    if not values:
        return BLANK
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}" + ("" if len(values) == runs else f" (n={len(values)})")


def plot_robustness(rows: Sequence[Row]) -> list[Plot]:
    """One dataset's plots, of the rows with robustness.parquet: those with data."""
    labels = list(
        dict.fromkeys(key[1] for row in rows for run in row.runs for key in run.robustness if key[0] == "auc")
    )
    with drawing():
        plots = [_areas(rows, labels)] if is_crowded(rows) else [_severities(rows, label) for label in labels]
        plots += [_missing(rows), *(_shapley(rows, m) for m in union_of_modalities(rows)[:1])]
        plots += [] if is_crowded(rows) else [_dial(rows)]
    return [plot for plot in plots if plot]


def _values(row: Row, key: Key) -> list[float]:
    return [run.robustness[key] for run in row.runs if math.isfinite(run.robustness.get(key, math.nan))]


def _severities(rows: Sequence[Row], label: str) -> Plot | None:
    """Accuracy against severity, a small panel a corruption and one for their mean."""
    from matplotlib.ticker import MaxNLocator

    found = dict.fromkeys(
        key[2] for row in rows for run in row.runs for key in run.robustness if key[:2] == ("acc_corrupted", label)
    )
    if not found:
        return None
    panels = ["mean", *found]
    height = 0.8 + 1.35 * math.ceil(len(panels) / 2) + 0.17 * math.ceil(len(rows) / 2)
    figure = new_figure(height)
    grid = figure.subplots(math.ceil(len(panels) / 2), 2, sharex=True, sharey=True, squeeze=False)
    lines: dict[int, Line2D] = {}
    words: list[str] = []
    names = row_names(rows)
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.remove()
            continue
        members = list(found) if panels[place] == "mean" else [panels[place]]
        for i, row in enumerate(rows):
            curves = _curves(row, label, members)
            if not curves:
                continue
            means = [100 * statistics.fmean(values) for values in zip(*curves, strict=True)]
            (lines[i],) = axes.plot(range(len(means)), means, **line_look(i), markevery=2, linewidth=1.2)
            if len(curves) > 1:
                low, high = ([100 * f(values) for values in zip(*curves, strict=True)] for f in (min, max))
                axes.fill_between(range(len(means)), low, high, color=line_look(i)["color"], alpha=0.15, linewidth=0)
            if panels[place] == "mean":
                words.append(f"{names[i]} {', '.join(f'{value:.1f}' for value in means)}")
        title = "mean of all" if panels[place] == "mean" else panels[place].replace("_", " ")
        axes.set_title(shorten(title, 24), fontsize=9, fontweight="bold" if place == 0 else "normal", pad=3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8)
        if place + 2 >= len(panels):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("severity", fontsize=8)
    title = f"Accuracy (%) under corruption of {label}"
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    add_legend(figure, rows, lines, columns=2)
    alt = f"{title}, test split, by severity 0 to 5, mean over {len(found)} corruptions: {'; '.join(words)}."
    return Plot(rows[0].dataset, title, alt, figure)


def _curves(row: Row, label: str, corruptions: Sequence[str]) -> list[list[float]]:
    """Accuracy at severities 0 to 5, mean over the corruptions, of each run that has it."""
    curves = []
    for run in row.runs:
        curve = [run.robustness.get(("acc", "", "", None), math.nan)]
        for severity in SEVERITIES:
            values = [run.robustness.get(("acc_corrupted", label, name, severity), math.nan) for name in corruptions]
            curve.append(statistics.fmean(values))
        if all(map(math.isfinite, curve)):
            curves.append(curve)
    return curves


def _areas(rows: Sequence[Row], labels: Sequence[str]) -> Plot | None:
    """Plot for many rows: the area under accuracy against severity, one mark per modality."""
    kinds = {label: ("auc", label, "mean", None) for label in labels}
    return _dots(rows, kinds, "Area under accuracy against severity", "% of the clips, mean over corruptions")


def _missing(rows: Sequence[Row]) -> Plot | None:
    """Accuracy with all modalities and without each."""
    kinds: dict[str, Key] = {"all modalities": ("acc", "", "", None)}
    kinds |= {f"without {m}": ("acc_missing_mean", m, "", None) for m in union_of_modalities(rows)}
    return _dots(rows, kinds, "Accuracy with a modality missing", "% (its encoding: the training clips' mean)")


def _dots(rows: Sequence[Row], kinds: Mapping[str, Key], title: str, unit: str) -> Plot | None:
    """A line per row, a mark per kind: the mean over seeds, with a bar from the lowest to the highest."""
    values = [{kind: found for kind, key in kinds.items() if (found := _values(row, key))} for row in rows]
    if not any(len(found) > 1 for found in values):
        return None
    names = row_names(rows)
    figure = new_figure(1.4 + 0.3 * len(rows))
    axes = figure.subplots()
    marks: dict[str, Line2D] = {}
    for place, own in enumerate(values):
        for k, kind in enumerate(kinds):
            if numbers := [100 * value for value in own.get(kind, [])]:
                height = place + 0.22 * (k - (len(kinds) - 1) / 2)
                axes.plot([min(numbers), max(numbers)], [height] * 2, color=COLOURS[k % len(COLOURS)], linewidth=1.2)
                look: dict[str, Any] = {
                    "marker": MARKERS[k % len(MARKERS)],
                    "color": COLOURS[k % len(COLOURS)],
                    "linestyle": "",
                }
                (marks[kind],) = axes.plot([statistics.fmean(numbers)], [height], **look)
    axes.set_yticks(range(len(rows)), [shorten(name, 28) for name in names], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(unit, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=min(3, len(marks)), fontsize=9)
    mean: Callable[[list[float]], str] = lambda numbers: f"{100 * statistics.fmean(numbers):.1f}"  # noqa: E731
    words = [
        f"{name}: {', '.join(f'{kind} {mean(numbers)}' for kind, numbers in found.items())}"
        for name, found in zip(names, values, strict=True)
    ]
    return Plot(rows[0].dataset, title, f"{title}, test split, in %. {'; '.join(words)}.", figure)


def _shapley(rows: Sequence[Row], modality: str) -> Plot | None:
    """Dominance against the Shapley share: a small mark per run, a large one for their mean."""
    axes: Axes | None = None
    figure = new_figure(3.6 + 0.17 * math.ceil(len(rows) / 2))
    dots: dict[int, Line2D] = {}
    words = []
    names = row_names(rows)
    for i, row in enumerate(rows):
        share, shapley = ((kind, modality, "", None) for kind in ("share", "shapley_share"))
        points = [(run.robustness[share], run.robustness[shapley]) for run in row.runs if shapley in run.robustness]
        if not points:
            continue
        axes = axes or figure.subplots()
        look = line_look(i) | {"linestyle": ""}
        x, y = ([100 * value for value in column] for column in zip(*points, strict=True))
        if len(points) > 1:
            axes.plot(x, y, **look, markersize=5, alpha=0.6, markeredgewidth=0)
        mean = statistics.fmean(x), statistics.fmean(y)
        (dots[i],) = axes.plot(*([value] for value in mean), **look, markersize=9, markeredgecolor="white")
        words.append(f"{names[i]} {mean[0]:.1f}, {mean[1]:.1f}")
    if axes is None:
        return None
    title = f"Dominance of {modality} and its Shapley share"
    axes.axline((50, 50), slope=1, **EVEN)
    axes.set(
        xlabel=f"dominance of {modality} (%); thin dotted line: equal",
        ylabel="Shapley share of the logit (%)",
        title=title,
    )
    add_legend(figure, rows, dots, columns=2)
    return Plot(rows[0].dataset, title, f"{title}, test split, in %: {'; '.join(words)}.", figure)


def _dial(rows: Sequence[Row]) -> Plot | None:
    """Plot of the decision-time dial: accuracy against the area under a modality's corruption, or without it.

    A line per row, along the dial of the first modality; the large mark is the model as it is.
    """
    parts = sorted({part for row in rows for run in row.runs for part in _positions(run.robustness)})
    if not parts:
        return None
    names, modalities = row_names(rows), union_of_modalities(rows)
    first = min((part[1] for part in parts), key=lambda m: modalities.index(m) if m in modalities else len(modalities))
    parts = [part for part in parts if part[1] == first]
    areas = any(key[0].startswith("dial_auc@") for row in rows for run in row.runs for key in run.robustness)
    measure, corruption = ("dial_auc", "mean") if areas else ("dial_missing", "")
    figure = new_figure(1.1 + 2.2 * len(modalities) + 0.17 * math.ceil(len(rows) / 2))
    panels = figure.subplots(len(modalities), 1, sharex=True, squeeze=False)[:, 0]
    lines: dict[int, Line2D] = {}
    words = []
    for axes, modality in zip(panels, modalities, strict=True):
        for i, row in enumerate(rows):
            points = []
            for part, _, name in parts:
                keys: list[Key] = [
                    (f"dial_acc@{name}", "", "", None),
                    (f"{measure}@{name}", modality, corruption, None),
                ]
                if all(pair := [_values(row, key) for key in keys]):
                    points.append((part, *(100 * statistics.fmean(values) for values in pair)))
            if not points:
                continue
            look = line_look(i)
            (lines[i],) = axes.plot(*zip(*((x, y) for _, x, y in points), strict=True), **look, markersize=3.5)
            middle = min(points, key=lambda point: abs(point[0] - 1 / len(modalities)))
            axes.plot(*([value] for value in middle[1:]), **look, markersize=9, markeredgecolor="white")
            told = "; ".join(f"{part:g}: {x:.1f}, {y:.1f}" for part, x, y in points)
            words.append(f"{names[i]}, {modality}, by part of {first} {told}")
        axes.set_title(f"{modality} corrupted" if areas else f"without {modality}", fontsize=9, pad=3)
        axes.set_ylabel("area (%)" if areas else "accuracy (%)", fontsize=8)
        axes.tick_params(labelsize=8)
    panels[-1].set_xlabel("accuracy (%); large mark: the model as it is", fontsize=8)
    title = f"Decision-time dial: {first}'s weight from 0 to 1"
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    add_legend(figure, rows, lines, columns=2)
    what = "area under accuracy against severity" if areas else "accuracy without the modality"
    return Plot(
        rows[0].dataset, title, f"{title}, test split, accuracy against {what}, in %. {'. '.join(words)}.", figure
    )


def _positions(numbers: Mapping[Key, float]) -> list[tuple[float, str, str]]:
    """The dial's positions that have an accuracy: the part, the modality, and both as in the measure's name."""
    found = []
    for measure, *_ in numbers:
        if measure.startswith("dial_acc@"):
            modality, _, part = measure.removeprefix("dial_acc@").rpartition("=")
            with contextlib.suppress(ValueError):  # made by another amr
                found.append((float(part), modality, f"{modality}={part}"))
    return found
