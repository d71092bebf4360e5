"""Tables and plots of the study from docs/study/results/*.parquet: `python docs/study/report.py`.

Tables go between the markers of docs/study/README.md and tables.md, plots beside them. Differences are paired by seed,
with 95 % t-intervals (`amr.evaluation.statistics`).
"""

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from amr.evaluation.statistics import Difference
from amr.utils.files import write_text

FOLDER = Path(__file__).parent
PAGES = ("README.md", "tables.md")
OTHERS = ("answer",)  # parts of the pages that decisions/tables.py fills
MODALITIES = ("audio", "video")
METHODS = ("naive", "modality_dropout", "umt", "ogm_ge", "mmpareto")
MARKERS = dict(zip(METHODS, "osD^v", strict=True))
TITLES = {
    "audio": "Audio alone",
    "video": "Video alone",
    "naive": "Naive fusion",
    "modality_dropout": "Modality dropout",
    "umt": "UMT",
    "ogm_ge": "OGM-GE",
    "mmpareto": "MMPareto",
}
DATASETS = {
    "letters": "GRID letters, clean",
    "letters-0db": "GRID letters, audio at 0 dB",
    "letters-5db": "GRID letters, audio at -5 dB",
    "letters-10db": "GRID letters, audio at -10 dB",
    "letters-plain": "GRID letters, clean, no augmentation",
    "letters-hidden": "GRID letters, clean, hidden layer",
    "synthetic-audio_only": "Synthetic, audio only",
    "synthetic-video_only": "Synthetic, video only",
    "synthetic-redundant": "Synthetic, redundant",
    "synthetic-synergistic": "Synthetic, synergistic",
    "crema-d": "CREMA-D",
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito (2008)


@dataclass(frozen=True)
class Measure:
    """A column of the tables: how it is called there, and where it is."""

    title: str
    measure: str
    modality: str = ""
    corruption: str = ""


MEASURES = (
    Measure("accuracy", "acc"),
    Measure("mAP", "test/mAP"),
    Measure("audio's share", "share", "audio"),
    Measure("audio's Shapley share", "shapley_share", "audio"),
    Measure("audio's Shapley share, zeros", "shapley_share_zeros", "audio"),
    Measure("audio's Shapley share, log-odds", "shapley_share_odds", "audio"),
    Measure("audio's centred share", "share_centred", "audio"),
    Measure("accuracy without audio", "acc_missing_mean", "audio"),
    Measure("accuracy without video", "acc_missing_mean", "video"),
    Measure("worst missing", "worst_missing_mean"),
    Measure("AUC, audio corrupted", "auc", "audio", "mean"),
    Measure("AUC, video corrupted", "auc", "video", "mean"),
    Measure("AUC, both corrupted", "auc", "audio+video", "mean"),
    Measure("ECE", "ece"),
    Measure("EMAP gap", "emap_gap"),
    Measure("probe of audio", "probe", "audio"),
    Measure("probe of video", "probe", "video"),
    Measure("perceptual score of audio", "perceptual", "audio"),
    Measure("perceptual score of video", "perceptual", "video"),
    Measure("cooperation", "cooperation", "audio+video"),
)
SHOWN = (
    "accuracy",
    "mAP",
    "audio's share",
    "audio's Shapley share",
    "accuracy without audio",
    "accuracy without video",
)
SHOWN += ("AUC, audio corrupted", "AUC, video corrupted", "AUC, both corrupted", "ECE")
NOISE = {"letters": "none", "letters-0db": "0 dB", "letters-5db": "-5 dB", "letters-10db": "-10 dB"}
DIALLED = (*SHOWN[:1], *SHOWN[2:4], "audio's Shapley share, log-odds", *SHOWN[4:])
TURNED = {"dial": "audio's share", "shapley": "audio's Shapley share, log-odds"}  # what each grid's target is of
Key = tuple[str, str, str]  # measure, modality, corruption


class Results:
    """The numbers of all runs.

    Args:
        folder: With the parquet files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values: dict[tuple[str, str, str], dict[int, dict[Key, float]]] = defaultdict(lambda: defaultdict(dict))
        self.curves: dict[tuple[str, str, str, str], dict[int, dict[int, float]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for file in sorted(folder.glob("*.parquet")):
            for line in pq.read_table(file).to_pylist():
                at = (line["dataset"], line["grid"], line["row"])
                of_seed = self.values[at][line["seed"]]
                if line["epoch"] is not None:
                    self.curves[*at, line["measure"]][line["seed"]][line["epoch"]] = line["value"]
                elif line["severity"] is not None:
                    name = f"{line['measure']}/{line['modality']}/{line['corruption']}"
                    self.curves[*at, name][line["seed"]][line["severity"]] = line["value"]
                else:
                    key = (line["measure"], line["modality"], line["corruption"])
                    of_seed[key] = line["value"]

    def grids(self) -> list[tuple[str, str]]:
        """(data set, grid) of which there are runs, in the order of `DATASETS`."""
        known = list(DATASETS)
        return sorted({(d, g) for d, g, _ in self.values}, key=lambda dg: (known.index(dg[0]), dg[1]))

    def rows(self, dataset: str, grid: str) -> list[str]:
        """Rows of a grid, as they were trained."""
        return [r for d, g, r in self.values if (d, g) == (dataset, grid)]

    def of(self, dataset: str, grid: str, row: str, measure: Measure) -> dict[int, float]:
        """One number per seed; a unimodal run's share of its own modality is 1."""
        key = (measure.measure, measure.modality, measure.corruption)
        found = self.values.get((dataset, grid, row), {})
        return {seed: values[key] for seed, values in sorted(found.items()) if key in values}

    def curve(self, dataset: str, grid: str, row: str, name: str) -> list[tuple[int, float, float]]:
        """(x, mean over seeds, standard deviation) of a logged or corrupted quantity."""
        points: dict[int, list[float]] = defaultdict(list)
        for line in self.curves.get((dataset, grid, row, name), {}).values():
            for x, y in line.items():
                points[x].append(y)
        return [
            (x, statistics.fmean(ys), statistics.stdev(ys) if len(ys) > 1 else 0.0) for x, ys in sorted(points.items())
        ]


def title(row: str) -> str:
    """How the page calls a row."""
    plain, plus, _ = row.partition("+amr")
    return TITLES.get(plain, plain) + (" w/ AMR" if plus else "")


def named(name: str) -> Measure:
    """The measure of a column."""
    return next(measure for measure in MEASURES if measure.title == name)


def spread(values: Iterable[float]) -> str:
    """Mean ± standard deviation, in percent."""
    found = [100 * value for value in values]
    if not found:
        return "–"
    return f"{statistics.fmean(found):.1f}" + (f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else "")


def paired(one: dict[int, float], other: dict[int, float]) -> str:
    """The mean of paired differences with its interval, in points; in bold where it leaves out 0."""
    found = Difference.of([one[seed] - other[seed] for seed in one if seed in other])
    if found is None:
        return "–"
    text = str(found)
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *body)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(head) - 1), *lines[1:]])


# -------------------------------------------------------------------------------------------------------------- tables


def methods_table(results: Results, dataset: str) -> str:
    """Every row of the main grid."""
    measures = [
        m
        for m in map(named, SHOWN)
        if any(results.of(dataset, "methods", r, m) for r in results.rows(dataset, "methods"))
    ]
    body = []
    for row in ordered(results.rows(dataset, "methods")):
        cells = [spread(results.of(dataset, "methods", row, measure).values()) for measure in measures]
        body.append([title(row), *cells, str(len(results.of(dataset, "methods", row, measures[0])))])
    return markdown(["", *(m.title for m in measures), "seeds"], body)


def ordered(rows: Iterable[str]) -> list[str]:
    """Unimodal rows, then methods, each plain and with AMR."""
    known = [*MODALITIES, *(name + plus for name in METHODS for plus in ("", "+amr"))]
    return sorted(rows, key=lambda row: (known.index(row) if row in known else len(known), row))


def amr_table(results: Results, dataset: str, measures: Sequence[Measure] = MEASURES) -> str:
    """What AMR changes: a measure a line, a method a column."""
    there = set(results.rows(dataset, "methods"))
    methods = [name for name in METHODS if {name, name + "+amr"} <= there]
    body = []
    for measure in measures:
        cells = [
            paired(*(results.of(dataset, "methods", name + plus, measure) for plus in ("+amr", ""))) for name in methods
        ]
        if any(cell != "–" for cell in cells):
            body.append([measure.title, *cells])
    return markdown(["with AMR minus without", *map(title, methods)], body)


def naive_table(results: Results, dataset: str) -> str:
    """Each row against naive fusion."""
    measures = [m for m in map(named, SHOWN) if results.of(dataset, "methods", "naive", m)]
    body = []
    for row in ordered(results.rows(dataset, "methods")):
        if row != "naive":
            of = [
                (results.of(dataset, "methods", row, m), results.of(dataset, "methods", "naive", m)) for m in measures
            ]
            body.append([title(row), *(paired(*pair) for pair in of)])
    return markdown(["minus naive fusion", *(m.title for m in measures)], body)


def dial_table(results: Results, dataset: str, grid: str) -> str:
    """What was asked for and what came of it."""
    measures = [named(n) for n in DIALLED]
    rows = results.rows(dataset, grid)
    body = []
    for row in sorted(rows, key=lambda r: (r != "naive", r)):
        body.append(
            [
                title(row),
                *(spread(results.of(dataset, grid, row, m).values()) for m in measures),
                str(len(results.of(dataset, grid, row, measures[0]))),
            ]
        )
    return markdown(["target for audio", *(m.title for m in measures), "seeds"], body)


def dial_slopes(results: Results, dataset: str, grid: str) -> str:
    """How much a measure changes a tenth of the target: least squares for each seed, then over seeds."""
    targets = {row: float(row[1:]) for row in results.rows(dataset, grid) if row[0] == "r"}
    body = []
    for name in DIALLED:
        found: dict[int, dict[float, float]] = defaultdict(dict)
        for row, target in targets.items():
            for seed, value in results.of(dataset, grid, row, named(name)).items():
                found[seed][target] = value
        slopes = [slope(points) / 10 for points in found.values() if len(points) == len(targets)]
        rho = [spearman(points) for points in found.values() if len(points) == len(targets)]
        if len(slopes) > 1:
            each = Difference.of(slopes)
            body.append([name, str(each), f"{statistics.fmean(rho):+.2f}", str(len(slopes))])
    return markdown(["change for +0.1 of the target", "points", "Spearman's ρ with the target", "seeds"], body)


def slope(points: dict[float, float]) -> float:
    """Of the least-squares line."""
    return statistics.linear_regression(list(points), list(points.values())).slope


def spearman(points: dict[float, float]) -> float:
    """Rank correlation."""
    return rank_correlation(list(points.items()))


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's, ties sharing their mean rank; 0 of a constant."""
    if any(len(set(column)) < 2 for column in zip(*pairs, strict=True)):
        return 0.0
    columns = [
        [sum(y < x for y in column) + sum(y == x for y in column) / 2 for x in column]
        for column in zip(*pairs, strict=True)
    ]
    return statistics.correlation(*columns)


def options_table(results: Results, dataset: str) -> str:
    """Each option against AMR as it is."""
    measures = [named(name) for name in ("accuracy", *SHOWN[2:])]
    body = []
    for row in results.rows(dataset, "options"):
        if row in MODALITIES:
            continue
        own = [results.of(dataset, "options", row, m) for m in measures]
        if row == "amr":
            body.insert(0, [row, *(spread(values.values()) for values in own), str(len(own[0]))])
        else:
            cells = [
                spread(values.values())
                if m.title in ("audio's share", "audio's Shapley share")
                else paired(values, results.of(dataset, "options", "amr", m))
                for m, values in zip(measures, own, strict=True)
            ]
            body.append([row, *cells, str(len(own[0]))])
    return markdown(["minus AMR (first line: AMR)", *(m.title for m in measures), "seeds"], body)


def tuning_table(results: Results, dataset: str) -> str:
    """Validation only: the best epoch's accuracy, and the share there."""
    body = []
    for row in results.rows(dataset, "tuning"):
        if row in MODALITIES:
            continue
        accuracies, shares = list[float](), list[float]()
        for seed, epochs in sorted(results.curves[dataset, "tuning", row, "val/acc"].items()):
            best = max(epochs, key=lambda epoch: (epochs[epoch], epoch))
            share = results.curves[dataset, "tuning", row, "val/dominance/audio"][seed].get(best)
            accuracies.append(epochs[best])
            shares += [] if share is None else [share]
        body.append([row, spread(accuracies), spread(shares), str(len(accuracies))])
    return markdown(["trial", "validation accuracy", "audio's share", "seeds"], body)


def time_table(results: Results) -> str:
    """Seconds per run, start-up and test included; runs that several grids share count in each."""
    body = []
    for dataset, grid in results.grids():
        rows = results.rows(dataset, grid)
        seconds = [v for row in rows for v in results.of(dataset, grid, row, Measure("", "seconds")).values()]
        if seconds:
            cells = (len(seconds), statistics.median(seconds), max(seconds), sum(seconds) / 60)
            body.append([DATASETS[dataset], grid, *(f"{cell:.0f}" for cell in cells)])
    file = results.folder / "machine.json"
    machine = json.loads(file.read_text()) if file.is_file() else {"cpu": "?", "cores": 0, "gpus": []}
    about = f"{machine['cpu']}, {machine['cores']} processors, {', '.join(machine['gpus']) or 'no GPU'}."
    return (
        f"{markdown(['data', 'grid', 'runs', 'seconds per run, median', 'at most', 'minutes in all'], body)}\n\n{about}"
    )


def agreement_table(results: Results) -> str:
    """Does dominance by gradient⊙input agree with Shapley's share and the drop? Over clips, and over runs."""
    body = []
    for dataset, grid in results.grids():
        if grid != "methods":
            continue
        for plus in ("", "+amr"):
            rows = [r for r in results.rows(dataset, grid) if r not in MODALITIES and r.endswith("+amr") == bool(plus)]
            cells = []
            for key in ("agreement_share_shapley", "agreement_share_drop", "agreement_shapley_drop", "same_leader"):
                modality = "" if key == "same_leader" else "audio"
                found = [v for r in rows for v in results.of(dataset, grid, r, Measure("", key, modality)).values()]
                cells.append(
                    spread(found) if key == "same_leader" else f"{statistics.fmean(found):+.2f}" if found else "–"
                )
            runs = [
                (
                    results.of(dataset, grid, r, named("audio's share")),
                    results.of(dataset, grid, r, named("audio's Shapley share")),
                )
                for r in rows
            ]
            pairs = [(a[seed], b[seed]) for a, b in runs for seed in a if seed in b]
            over = rank_correlation(pairs) if len(pairs) > 2 else None
            body.append(
                [
                    DATASETS[dataset],
                    "with AMR" if plus else "plain",
                    *cells,
                    "–" if over is None else f"{over:+.2f}",
                    str(len(pairs)),
                ]
            )
    return markdown(
        [
            "data",
            "",
            "share ~ Shapley (clips)",
            "share ~ drop (clips)",
            "Shapley ~ drop (clips)",
            "same leader, %",
            "share ~ Shapley (runs)",
            "runs",
        ],
        body,
    )


# --------------------------------------------------------------------------------------------------------------- plots


def figure(width: float, height: float, columns: int, rows: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """Panels in a row."""
    drawn = Figure(figsize=(width, height), layout="constrained")
    panels = drawn.subplots(rows, columns, squeeze=False, **options)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25, linewidth=0.6)
    return drawn, list(panels.flat)


def band(panel: Axes, points: Sequence[tuple[float, float, float]], label: str, colour: str, style: str = "-") -> None:
    """A line with its standard deviation."""
    if points:
        x, mean, sd = zip(*points, strict=True)
        panel.plot(x, [100 * y for y in mean], style, color=colour, label=label, linewidth=1.6)
        panel.fill_between(
            x,
            [100 * max(y - s, 0.0) for y, s in zip(mean, sd, strict=True)],  # all that is drawn lies in [0, 1]
            [100 * min(y + s, 1.0) for y, s in zip(mean, sd, strict=True)],
            color=colour,
            alpha=0.13,
            linewidth=0,
        )


def plot_epochs(results: Results) -> Figure | None:
    """Audio's share over epochs, on the validation split."""
    datasets = [d for d, g in results.grids() if g == "methods"]
    if not datasets:
        return None
    columns = min(len(datasets), 4)
    rows = -(-len(datasets) // columns)
    drawn, panels = figure(max(3.1 * columns, 8), 2.7 * rows + 0.6, columns, rows, sharey=True)
    for panel, dataset in zip(panels, datasets, strict=False):
        for colour, name in zip(COLOURS, METHODS, strict=False):
            for plus, style in (("", "-"), ("+amr", "--")):
                band(
                    panel,
                    results.curve(dataset, "methods", name + plus, "val/dominance/audio"),
                    title(name + plus),
                    colour,
                    style,
                )
        panel.axhline(50, color="grey", linewidth=0.8, linestyle=":")
        panel.set(title=DATASETS[dataset], xlabel="epoch", ylim=(0, 100))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.title.set_fontsize(9)
    for panel in panels[len(datasets) :]:
        panel.set_visible(False)
    for panel in panels[::columns]:
        panel.set_ylabel("audio's share, %")
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return drawn


def plot_knob(results: Results) -> Figure | None:
    """What noise on the sound does to dominance, and to what is left without a modality."""
    datasets = [dataset for dataset in NOISE if (dataset, "methods") in results.grids()]
    if len(datasets) < 2:
        return None
    names = ("audio's share", "audio's Shapley share", "accuracy", "accuracy without audio", "accuracy without video")
    drawn, panels = figure(13, 3.4, len(names), sharey=True)
    for panel, name in zip(panels, names, strict=True):
        for colour, row in zip(COLOURS, ("naive", *MODALITIES), strict=False):
            for plus, style in (("", "-"), ("+amr", "--")):
                found = [[*results.of(d, "methods", row + plus, named(name)).values()] for d in datasets]
                points = [(x, *mean_sd(values)) for x, values in enumerate(found) if values]
                band(panel, points, title(row + plus), colour, style)
        panel.set(title=name, xlabel="noise on the sound")
        panel.set_xticks(range(len(datasets)), [NOISE[dataset] for dataset in datasets])
        panel.title.set_fontsize(9)
    panels[0].set(ylabel="%", ylim=(0, 100))
    drawn.legend(*panels[2].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return drawn


def plot_severity(results: Results, dataset: str) -> Figure | None:
    """Accuracy against severity."""
    if (dataset, "methods") not in results.grids():
        return None
    kinds = [
        ("audio", "white", "white noise on the sound"),
        ("audio", "time_mask", "sound masked in time"),
        ("video", "noise", "noise on the frames"),
        ("video", "occlusion", "frames occluded"),
        ("audio+video", "noise", "noise on both"),
    ]
    drawn, panels = figure(13, 3.4, len(kinds), sharey=True)
    for panel, (modality, corruption, text) in zip(panels, kinds, strict=True):
        for colour, name in zip(COLOURS, METHODS, strict=False):
            for plus, style in (("", "-"), ("+amr", "--")):
                clean = results.of(dataset, "methods", name + plus, named("accuracy")).values()
                if clean:
                    start = (0, statistics.fmean(clean), statistics.stdev(clean) if len(clean) > 1 else 0.0)
                    points = results.curve(dataset, "methods", name + plus, f"acc_corrupted/{modality}/{corruption}")
                    band(panel, [start, *points], title(name + plus), colour, style)
        panel.set(title=text, xlabel="severity")
        panel.title.set_fontsize(9)
    panels[0].set_ylabel("accuracy, %")
    panels[0].set_ylim(0)
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return drawn


def plot_shapley(results: Results) -> Figure | None:
    """A run's share against its Shapley share, and against the accuracy that audio's absence costs."""
    datasets = [d for d, g in results.grids() if g == "methods"]
    if not datasets:
        return None
    drawn, panels = figure(10.5, 4.6, 2)
    markers = "osD^v<>PX*"
    for marker, dataset in zip(markers, datasets, strict=False):
        for plus, colour in (("", COLOURS[0]), ("+amr", COLOURS[1])):
            for panel, other in zip(
                panels, (named("audio's Shapley share"), Measure("", "drop_mean", "audio")), strict=True
            ):
                points = [
                    (100 * share[seed], 100 * y[seed])
                    for row in results.rows(dataset, "methods")
                    if row not in MODALITIES and row.endswith("+amr") == bool(plus)
                    for share, y in [
                        (
                            results.of(dataset, "methods", row, named("audio's share")),
                            results.of(dataset, "methods", row, other),
                        )
                    ]
                    for seed in share
                    if seed in y
                ]
                if points:
                    label = f"{DATASETS[dataset]}{', with AMR' if plus else ''}"
                    panel.scatter(
                        *zip(*points, strict=True),
                        s=18,
                        marker=marker,
                        color=colour,
                        alpha=0.6,
                        linewidths=0,
                        label=label,
                    )
    panels[0].plot([0, 100], [0, 100], color="grey", linewidth=0.8, linestyle=":")
    panels[0].set(
        xlabel="audio's share by gradient⊙input, %", ylabel="audio's share by Shapley values of the output, %"
    )
    panels[1].set(xlabel="audio's share by gradient⊙input, %", ylabel="accuracy lost without audio, points")
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=7, frameon=False)
    return drawn


def plot_dial(results: Results, dataset: str, grid: str) -> Figure | None:
    """What the target does, with the other methods where they are."""
    targets = sorted((float(row[1:]), row) for row in results.rows(dataset, grid) if row[0] == "r")
    if not targets:
        return None
    drawn, panels = figure(13, 4.3, 4)
    share = named(TURNED[grid])

    def over_targets(name: str) -> list[tuple[float, float, float]]:
        measure = named(name)
        return [(100 * x, *mean_sd(results.of(dataset, grid, row, measure).values())) for x, row in targets]

    band(panels[0], over_targets(share.title), "achieved", COLOURS[0])
    panels[0].plot([10, 90], [10, 90], color="grey", linewidth=0.8, linestyle=":", label="as asked")
    panels[0].set(xlabel="target for audio, %", ylabel=f"{share.title}, %", title="is it reached?")
    panels[0].legend(fontsize=8, frameon=False)
    for panel, names, text in (
        (panels[1], ("accuracy",), "what it costs"),
        (panels[2], ("AUC, audio corrupted", "AUC, video corrupted"), "corruption"),
        (panels[3], ("accuracy without audio", "accuracy without video"), "one modality missing"),
    ):
        for name, colour in zip(names, COLOURS, strict=False):
            band(panel, over_targets(name), name, colour)
            for method, marker in MARKERS.items():
                where = results.of(dataset, "methods", method, share).values()
                height = results.of(dataset, "methods", method, named(name)).values()
                if where and height:
                    at = (100 * statistics.fmean(where), 100 * statistics.fmean(height))
                    panel.scatter(
                        *at, marker=marker, s=42, facecolor="white", edgecolor=colour, linewidth=1.4, zorder=3
                    )
        panel.set(xlabel="AMR's target; a method's own, %", ylabel="accuracy or area under it, %", title=text)
        panel.set_xticks(range(10, 100, 20))
    methods = [
        Line2D([], [], marker=marker, color="black", markerfacecolor="white", linestyle="", label=title(method))
        for method, marker in MARKERS.items()
        if results.of(dataset, "methods", method, share)
    ]
    lines = [line for panel in panels[2:] for line in panel.get_legend_handles_labels()[0]]
    drawn.legend(handles=[*lines, *methods], loc="outside lower center", ncols=9, fontsize=8, frameon=False)
    return drawn


def mean_sd(values: Iterable[float]) -> tuple[float, float]:
    """Of a few numbers; (nan, 0) of none."""
    found = list(values)
    return (statistics.fmean(found) if found else float("nan"), statistics.stdev(found) if len(found) > 1 else 0.0)


def plot_tuning(results: Results, dataset: str) -> Figure | None:
    """Trials by method."""
    rows = [row for row in results.rows(dataset, "tuning") if row not in MODALITIES]
    if not rows:
        return None
    drawn, (panel,) = figure(8.5, 3.4, 1)
    names = list(dict.fromkeys(row.partition("-")[0] for row in rows))
    for x, row in enumerate(rows):
        name = row.partition("-")[0]
        best = [max(epochs.values()) for epochs in results.curves[dataset, "tuning", row, "val/acc"].values()]
        colour = COLOURS[names.index(name) % len(COLOURS)]
        panel.scatter([x] * len(best), [100 * value for value in best], color=colour, s=22, alpha=0.6, zorder=3)
        panel.hlines(100 * statistics.fmean(best), x - 0.3, x + 0.3, color=colour, linewidth=2)
    panel.set_xticks(range(len(rows)), rows, rotation=40, ha="right", fontsize=8)
    panel.set_ylabel("best validation accuracy, %")
    return drawn


# ---------------------------------------------------------------------------------------------------------------- page


def pieces(results: Results) -> dict[str, str]:
    """The generated parts of the page, by marker."""
    parts: dict[str, str] = {"tuning": tuning_table(results, "letters"), "options": options_table(results, "letters")}
    for dataset, grid in results.grids():
        if grid == "methods":
            parts[f"methods {dataset}"] = methods_table(results, dataset)
            parts[f"amr {dataset}"] = amr_table(results, dataset)
            parts[f"naive {dataset}"] = naive_table(results, dataset)
        elif grid in TURNED:
            parts[f"{grid} {dataset}"] = dial_table(results, dataset, grid)
            parts[f"{grid} slopes {dataset}"] = dial_slopes(results, dataset, grid)
    parts["agreement"], parts["time"] = agreement_table(results), time_table(results)
    return parts


def fill(page: str, parts: dict[str, str], others: Sequence[str] = ()) -> str:
    """The page with what stands between `<!-- name -->` and `<!-- end -->` replaced.

    Args:
        page: The page's text.
        parts: What is to stand there, by name; a name without a part gets "No runs.".
        others: First words of the names that another script fills; their text stays.
    """

    def put(found: re.Match[str]) -> str:
        if found[1].split()[0] in others:
            return found[0]
        return f"<!-- {found[1]} -->\n{parts.get(found[1], 'No runs.')}\n<!-- end -->"

    return re.sub(r"<!-- ([\w -]+?) -->\n.*?<!-- end -->", put, page, flags=re.DOTALL)


def plots(results: Results) -> dict[str, Callable[[], Figure | None]]:
    """By file name."""
    drawn: dict[str, Callable[[], Figure | None]] = {
        "epochs.png": lambda: plot_epochs(results),
        "knob.png": lambda: plot_knob(results),
        "shapley.png": lambda: plot_shapley(results),
        "tuning.png": lambda: plot_tuning(results, "letters"),
    }
    for dataset in ("letters", "letters-10db", "letters-hidden", "synthetic-redundant", "synthetic-synergistic"):
        drawn[f"severity-{dataset}.png"] = lambda dataset=dataset: plot_severity(results, dataset)  # type: ignore[misc]
    for dataset in ("letters", "letters-plain", "letters-10db"):
        for grid in TURNED:
            drawn[f"{grid}-{dataset}.png"] = lambda d=dataset, g=grid: plot_dial(results, d, g)  # type: ignore[misc]
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="folder of the parquet files")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of README.md and the plots")
    parser.add_argument("--print", action="store_true", help="also print the tables")
    options = parser.parse_args(arguments)
    results = Results(options.results)
    parts = pieces(results)
    for page in (options.out / name for name in PAGES):
        if page.is_file():
            write_text(page, fill(page.read_text(encoding="utf-8"), parts, OTHERS))
    if options.print:
        for name, text in parts.items():
            print(f"\n## {name}\n\n{text}")
    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "amr"}):
        for name, draw in plots(results).items():
            if (drawn := draw()) is not None:
                drawn.savefig(options.out / name, dpi=110, metadata={"Software": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
