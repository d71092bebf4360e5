"""Fills docs/study/decisions.md and the answer of docs/study/README.md from results/*.parquet, and draws the figures.

    python docs/study/decisions/tables.py

Differences are paired by seed, with 95 % t-intervals. A form of AMR is compared with the method that it is added to.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

FOLDER = Path(__file__).parent
sys.path += [str(FOLDER.parent)]

import report as study  # noqa: E402  # of docs/study
from report import COLOURS, Measure, Results, fill, markdown, paired, spread  # noqa: E402

from amr.evaluation.statistics import Difference  # noqa: E402
from amr.utils.files import write_text  # noqa: E402

PAGES = (FOLDER.with_suffix(".md"), FOLDER.parent / "README.md")
DATASETS = {
    "letters": "GRID letters, clean",
    "letters-0db": "GRID letters, sound at 0 dB",
    "letters-5db": "GRID letters, sound at -5 dB",
    "letters-10db": "GRID letters, sound at -10 dB",
    "colours": "GRID colour word, lips say little",
    "digits": "GRID digits, both say much",
    "synthetic-redundant": "Planted: either modality tells the class",
    "synthetic-audio_only": "Planted: only audio tells the class",
    "synthetic-video_only": "Planted: only video tells the class",
    "synthetic-synergistic": "Planted: only both together tell the class",
}
TITLES = {
    "audio": "Audio alone",
    "video": "Video alone",
    "naive": "Naive fusion",
    "multi_loss": "Multi-loss",
    "dgl": "DGL",
    "tcmax": "TCMax",
    "umt": "UMT",
    "g2d": "G2D",
    "mcr": "MCR",
    "amr": "AMR (gradient)",
    "amr_guard": "AMR (gradient), guarded",
    "amr_shapley": "AMR (Shapley)",
    "amr_head": "AMR (output, head)",
    "amr_encoder": "AMR (output, encoder)",
    "amr_encoder_guard": "AMR (output, encoder), guarded",
    "amr_weak": "AMR (output, encoder, weak)",
    "amr_weak_guard": "AMR (output, encoder, weak), guarded",
}
ABLATED = {
    "multi_loss": "Multi-loss",
    "form": "+ the form of the dial: gradient into head and encoder, both pushed, 4 other clips",
    "head": "gradient into the head alone",
    "zeros": "gradient into the head alone, replaced by zeros",
    "all": "gradient into everything",
    "weak": "only the modality below its target is pushed",
    "mean": "replaced by the batch's mean",
    "different": "other clips of another class only",
    "k1": "1 other clip",
    "k16": "16 other clips",
}
FORMS = tuple(name for name in TITLES if name.startswith("amr") and not name.endswith("_guard"))
RIVALS = ("multi_loss", "umt")  # that a claim of robustness must beat
ACCURACY = Measure("accuracy", "acc")
SHARE = Measure("audio's share", "share", "audio")
DECISION = Measure("audio's decision share", "shapley_share_odds", "audio")
WITHOUT_AUDIO = Measure("accuracy without audio", "acc_missing_mean", "audio")
WITHOUT_VIDEO = Measure("accuracy without video", "acc_missing_mean", "video")
CONFLICT_AUDIO = Measure("conflicts that audio wins", "conflict", "audio")
CONFLICT_VIDEO = Measure("conflicts that video wins", "conflict", "video")
AUC_AUDIO = Measure("AUC, audio corrupted", "auc", "audio", "mean")
AUC_VIDEO = Measure("AUC, video corrupted", "auc", "video", "mean")
ECE = Measure("ECE", "ece")
MEASURES = (
    ACCURACY, SHARE, DECISION, CONFLICT_AUDIO, CONFLICT_VIDEO, WITHOUT_AUDIO, WITHOUT_VIDEO, AUC_AUDIO, AUC_VIDEO, ECE
)  # fmt: skip
MARGIN = 0.01  # of accuracy, that the balance may cost
NEAR = 0.05  # of a target, within which it counts as reached
Numbers = dict[int, float]


def title(row: str) -> str:
    """How the page calls a row."""
    return " + ".join(TITLES.get(part, part) for part in row.split("."))


def base(row: str) -> str:
    """The method that a form of AMR is added to."""
    return row.partition(".")[0] if "." in row else "naive"


def is_form(row: str) -> bool:
    """Whether a row has a form of AMR."""
    return row.rpartition(".")[2].removesuffix("_guard") in FORMS


def rows_of(results: Results, dataset: str, grid: str = "main") -> list[str]:
    """Rows that have been trained: methods and forms in the order of `TITLES`, then forms on other methods."""
    there = results.rows(dataset, grid)
    known = [name for name in TITLES if name in there]
    return known + sorted(name for name in there if name not in known)


def differences(results: Results, at: tuple[str, str], row: str, other: str, measure: Measure) -> list[float]:
    """A row minus another, of each seed that both have."""
    ours, theirs = results.of(*at, row, measure), results.of(*at, other, measure)
    return [value - theirs[seed] for seed, value in ours.items() if seed in theirs]


def worst(results: Results, at: tuple[str, str], row: str) -> Numbers:
    """Of each seed, the area under accuracy against severity of the modality whose corruption costs more."""
    audio, video = results.of(*at, row, AUC_AUDIO), results.of(*at, row, AUC_VIDEO)
    return {seed: min(value, video[seed]) for seed, value in audio.items() if seed in video}


def at_same_share(results: Results, at: tuple[str, str], row: str) -> dict[str, Numbers]:
    """A form minus the decision-time dial of the method that it is added to, where both have one decision share.

    The dial gives the trained method's parts other weights, without training; between its positions it is interpolated.

    Args:
        results: What was measured.
        at: Data set and grid.
        row: The form's row.

    Returns:
        Accuracy, and the area of the worse corruption, of each seed that both have.
    """
    shares = results.of(*at, row, DECISION)
    ours = {"accuracy": results.of(*at, row, ACCURACY), "area": worst(results, at, row)}
    found: dict[str, Numbers] = {"accuracy": {}, "area": {}}
    for seed, share in shares.items():
        numbers = results.values.get((*at, base(row)), {}).get(seed, {})
        positions = [key[0].partition("@")[2] for key in numbers if key[0].startswith("dial_share@")]
        for name, values in ours.items():
            points = []
            for position in positions:
                there = numbers[f"dial_share@{position}", "audio", ""]
                if name == "accuracy":
                    points.append((there, numbers[f"dial_acc@{position}", "", ""]))
                elif (f"dial_auc@{position}", "audio", "mean") in numbers:
                    areas = [numbers[f"dial_auc@{position}", modality, "mean"] for modality in study.MODALITIES]
                    points.append((there, min(areas)))
            if points and seed in values:
                found[name][seed] = values[seed] - float(np.interp(share, *zip(*sorted(points), strict=True)))
    return found


# -------------------------------------------------------------------------------------------------------------- tables


def main_table(results: Results, dataset: str, grid: str = "main") -> str:
    """Every row's measures."""
    names = rows_of(results, dataset, grid)
    shown = [m for m in MEASURES if any(results.of(dataset, grid, name, m) for name in names)]
    body = []
    for name in names:
        cells = [spread(results.of(dataset, grid, name, measure).values()) for measure in shown]
        body.append([title(name), *cells, str(len(results.of(dataset, grid, name, ACCURACY)))])
    return markdown(["", *(measure.title for measure in shown), "seeds"], body)


def change_table(results: Results, dataset: str, grid: str = "main") -> str:
    """What each form changes in the method that it is added to."""
    names = [name for name in rows_of(results, dataset, grid) if is_form(name)]
    shown = [m for m in MEASURES if any(results.of(dataset, grid, name, m) for name in names)]
    body = []
    for name in names:
        cells = [
            paired(results.of(dataset, grid, name, measure), results.of(dataset, grid, base(name), measure))
            for measure in shown
        ]
        body.append([f"{title(name)} minus {title(base(name))}", *cells])
    return markdown(["", *(measure.title for measure in shown)], body)


def rival_table(results: Results, dataset: str, grid: str = "main") -> str:
    """Each form against multi-loss and UMT."""
    names = [name for name in rows_of(results, dataset, grid) if is_form(name)]
    columns = [(measure, rival) for rival in RIVALS for measure in (ACCURACY, WITHOUT_AUDIO, AUC_AUDIO, AUC_VIDEO)]
    body = []
    for name in names:
        cells = [
            paired(results.of(dataset, grid, name, measure), results.of(dataset, grid, rival, measure))
            for measure, rival in columns
        ]
        body.append([title(name), *cells])
    return markdown(["", *(f"{measure.title} minus {title(rival)}'s" for measure, rival in columns)], body)


def control_table(results: Results, dataset: str, grid: str = "main") -> str:
    """Each form against the decision-time dial of the method that it is added to, at the form's decision share."""
    body = []
    for name in (name for name in rows_of(results, dataset, grid) if is_form(name)):
        found = at_same_share(results, (dataset, grid), name)
        body.append([title(name), *(paired(values, dict.fromkeys(values, 0.0)) for values in found.values())])
    return markdown(["minus the decision-time dial", "accuracy", "area of the worse corruption"], body)


def dial_table(results: Results, dataset: str) -> str:
    """What is asked for and what is reached."""
    body = []
    for name in targets(results, dataset):
        cells = [spread(results.of(dataset, "dial", name, measure).values()) for measure in MEASURES]
        body.append([f"{100 * target_of(name):.0f} %", *cells])
    return markdown(["target of audio", *(measure.title for measure in MEASURES)], body)


def ablation_table(results: Results, dataset: str, grid: str = "ablation") -> str:
    """The dial's form at equal targets, and that with one option changed at a time."""
    at = (dataset, grid)
    shown = (ACCURACY, SHARE, DECISION, WITHOUT_AUDIO, WITHOUT_VIDEO, ECE)
    versus = ((DECISION, "form", "the form's"), (ACCURACY, "form", "the form's"), (ACCURACY, RIVALS[0], "Multi-loss's"))
    body = []
    for name in (name for name in ABLATED if name in results.rows(*at)):
        cells = [spread(results.of(*at, name, measure).values()) for measure in shown]
        for measure, other, _ in versus:
            same = name == other
            cells.append("–" if same else paired(results.of(*at, name, measure), results.of(*at, other, measure)))
        body.append([ABLATED[name], *cells])
    titles = [f"{measure.title} minus {whose}" for measure, _, whose in versus]
    return markdown(["", *(measure.title for measure in shown), *titles], body)


def sentences(results: Results, dataset: str) -> str:
    """What the answer says of the letters, for another data set."""
    makers = (moved_sentence, robust_sentence, control_sentence, draw_sentence)
    said = [make(results, dataset) for make in makers]
    if dataset == "colours":
        said.insert(0, guard_sentence(results, dataset))
    start = f"{DATASETS[dataset]}"
    texts = [text.removeprefix(start).lstrip(":, ") for text in said if text is not None]
    return "\n".join(f"- {text[:1].upper()}{text[1:]}" for text in texts)


def targets(results: Results, dataset: str) -> list[str]:
    """Rows of the dial, by target."""
    return sorted((name for name in results.rows(dataset, "dial") if name.startswith("r0")), key=target_of)


def target_of(row: str) -> float:
    """Audio's target of a row of the dial."""
    return float(row[1:])


def time_table(results: Results) -> str:
    """CPU seconds per run on one thread, test included."""
    body = []
    for dataset in DATASETS:
        for grid in ("trials", "onto", "main", "dial", "ablation", "ablation_draw", "draw"):
            seconds = [
                value
                for name in results.rows(dataset, grid)
                for value in results.of(dataset, grid, name, Measure("", "cpu_seconds")).values()
            ]
            if seconds:
                numbers = (len(seconds), statistics.median(seconds), max(seconds), sum(seconds) / 60)
                body.append([DATASETS[dataset], grid, *(f"{number:.0f}" for number in numbers)])
    head = ["data", "grid", "runs", "CPU seconds per run, median", "at most", "minutes in all"]
    return markdown(head, body) if body else "No runs."


# ------------------------------------------------------------------------------------------------------------- answer


def listed(texts: Sequence[str]) -> str:
    """In a sentence."""
    return "none" if not texts else ", ".join(texts[:-1]) + (" and " if texts[:-1] else "") + texts[-1]


def points(difference: Difference | None) -> str:
    """A difference with its interval, in percentage points."""
    return "not measured" if difference is None else f"{difference} points"


def grids_of_answer(results: Results, dataset: str) -> dict[str, tuple[str, str]]:
    """The first draw of seeds, and the second where there is one."""
    found = {"first seeds": (dataset, "main"), "other seeds": (dataset, "draw")}
    return {name: at for name, at in found.items() if results.rows(*at)}


def moved_sentence(results: Results, dataset: str) -> str:
    """Which forms move the decision share towards equality, and what that costs."""
    at = (dataset, "main")
    forms = [name for name in rows_of(results, *at) if is_form(name) and not name.endswith("_guard")]
    found = {
        name: (
            Difference.of(differences(results, at, name, base(name), DECISION)),
            Difference.of(differences(results, at, name, base(name), ACCURACY)),
        )
        for name in forms
    }
    moved = {n: (d, a) for n, (d, a) in found.items() if d is not None and d.high < 0}
    texts = [
        f"{title(name)} ({points(decision)}, accuracy {points(accuracy)})"
        for name, (decision, accuracy) in moved.items()
    ]
    return (
        f"{DATASETS[dataset]}: {len(moved)} of {len(found)} forms of AMR lower audio's decision share, compared with"
        f" the method that they are added to (95 % interval below 0): {listed(texts)}."
    )


def dial_sentence(results: Results, dataset: str) -> str | None:
    """How far the decision share follows the target."""
    names = targets(results, dataset)
    at = (dataset, "dial")
    slopes = []
    for seed in results.of(*at, names[0], DECISION) if names else ():
        pairs = [
            (target_of(name), values[seed]) for name in names if seed in (values := results.of(*at, name, DECISION))
        ]
        if len(pairs) == len(names):
            slopes.append(statistics.linear_regression(*zip(*pairs, strict=True)).slope)
    slope = Difference.of(slopes)
    if slope is None:
        return None
    reached = []
    for name in names:
        shares = results.of(*at, name, DECISION)
        cost = Difference.of(differences(results, at, name, "multi_loss", ACCURACY))
        near = abs(statistics.fmean(shares.values()) - target_of(name)) <= NEAR
        if near and cost is not None and cost.low > -MARGIN:
            reached.append(f"{100 * target_of(name):.0f} %")
    return (
        f"{DATASETS[dataset]}, on multi-loss: when audio's target rises by one point, its decision share rises by"
        f" {slope.mean:.2f} [{slope.low:.2f}, {slope.high:.2f}] points. Targets that the decision share reaches within"
        f" {100 * NEAR:.0f} points, at a loss of accuracy below {100 * MARGIN:.0f} point (lower end of the interval):"
        f" {listed(reached)}."
    )


def robust_sentence(results: Results, dataset: str) -> str | None:
    """Whether any form holds better than multi-loss and UMT when a modality goes wrong."""
    at = (dataset, "main")
    names = [name for name in rows_of(results, *at) if is_form(name)]
    rivals = [name for name in RIVALS if name in rows_of(results, *at)]
    better: list[str] = []
    for name in names:
        ours = worst(results, at, name)
        intervals = [
            Difference.of([ours[s] - theirs[s] for s in ours if s in theirs])
            for theirs in (worst(results, at, rival) for rival in rivals)
        ]
        if intervals and all(interval is not None and interval.low > 0 for interval in intervals):
            better.append(title(name))
    means = {name: worst(results, at, name) for name in rows_of(results, *at)}
    known = {name: statistics.fmean(values.values()) for name, values in means.items() if values}
    if not known or not names:
        return None
    top = max(known, key=lambda name: known[name])
    best_form = max((name for name in names if name in known), key=lambda name: known[name])
    rest = listed([f"{title(name)} has {spread(means[name].values())}" for name in rivals])
    highest = f"{title(top)} has the highest mean ({spread(means[top].values())})"
    if best_form != top:
        highest += f", {title(best_form)} the highest of the forms ({spread(means[best_form].values())})"
    return (
        f"{DATASETS[dataset]}, area under accuracy against severity, for the modality whose corruption costs more:"
        f" forms that are above both {listed([title(name) for name in rivals])} by their intervals: {listed(better)}."
        f" {highest}; {rest}."
    )


def control_sentence(results: Results, dataset: str) -> str | None:
    """Whether training moves decisions better than weights that are set after training."""
    at = (dataset, "main")
    above: dict[str, list[str]] = {"accuracy": [], "area": []}
    count = 0
    for name in (name for name in rows_of(results, *at) if is_form(name)):
        found = {
            measure: Difference.of([*values.values()]) for measure, values in at_same_share(results, at, name).items()
        }
        count += any(found.values())
        for measure, interval in found.items():
            if interval is not None and interval.low > 0:
                above[measure].append(f"{title(name)} ({interval})")
    if not count:
        return None
    return (
        f"{DATASETS[dataset]}, {count} forms compared with the decision-time dial of the method that they are added to,"
        f" at the same decision share: above it in accuracy by their intervals, in points: {listed(above['accuracy'])};"
        f" in the area of the worse corruption: {listed(above['area'])}."
    )


def draw_sentence(results: Results, dataset: str) -> str | None:
    """The rows of the answer, in both draws of seeds."""
    grids = grids_of_answer(results, dataset)
    if len(grids) < 2:
        return None
    names = [name for name in rows_of(results, dataset, "draw") if is_form(name)]
    texts = []
    for name in names:
        changes = " and ".join(
            str(Difference.of(differences(results, at, name, base(name), DECISION))) for at in grids.values()
        )
        costs = " and ".join(
            str(Difference.of(differences(results, at, name, base(name), ACCURACY))) for at in grids.values()
        )
        texts.append(f"{title(name)} {changes}, accuracy {costs}")
    return (
        f"{DATASETS[dataset]}, drawn twice with different seeds, changes of audio's decision share in points:"
        f" {'; '.join(texts)}."
    )


def confirmed(results: Results, dataset: str) -> list[list[str]]:
    """What a form changes in the method that it is added to, if both draws of seeds show it by their intervals.

    Returns:
        Form and method, what changes, and the change in each draw, in points. The share that forms are trained on is
        left out.
    """
    grids = grids_of_answer(results, dataset)
    rows: list[list[str]] = []
    for name in (name for name in rows_of(results, dataset, "draw") if is_form(name) and len(grids) > 1):
        changes: dict[str, list[Difference | None]] = {
            measure.title: [Difference.of(differences(results, at, name, base(name), measure)) for at in grids.values()]
            for measure in MEASURES
            if measure is not SHARE
        }
        dials = [at_same_share(results, at, name) for at in grids.values()]
        for what, words in (("accuracy", "accuracy"), ("area", "area of the worse corruption")):
            changes[f"{words}, minus the decision-time dial's at the same decision share"] = [
                Difference.of([*dial[what].values()]) for dial in dials
            ]
        for what, both in changes.items():
            known = [change for change in both if change is not None]
            if len(known) == len(both) and (all(c.low > 0 for c in known) or all(c.high < 0 for c in known)):
                rows.append([f"{title(name)} minus {title(base(name))}", what, *map(str, known)])
    return rows


def confirmed_table(results: Results) -> str | None:
    """Those changes on every data set that was drawn twice."""
    body = []
    for dataset in (dataset for dataset in DATASETS if len(grids_of_answer(results, dataset)) > 1):
        body += [[DATASETS[dataset], *row] for row in confirmed(results, dataset) or [["none"] + ["–"] * 3]]
    return markdown(["data", "form", "shown by both draws", "first seeds", "other seeds"], body) if body else None


def guard_sentence(results: Results, dataset: str = "colours") -> str | None:
    """What AMR does where the second modality says little, and what the guard saves."""
    at = (dataset, "main")
    if not {"naive", "amr", "amr_guard"} <= set(rows_of(results, *at)):
        return None
    changes = [
        f"{title(name)} {points(Difference.of(differences(results, at, name, 'naive', ACCURACY)))}"
        for name in ("amr", "amr_guard", "amr_weak", "amr_weak_guard")
        if name in rows_of(results, *at)
    ]
    return f"{DATASETS[dataset]}, accuracy compared with naive fusion: {listed(changes)}."


def answer(results: Results) -> str:
    """What both draws of seeds show, how far the dial turns, and whether a form is more robust than the rivals."""
    found = [
        *(dial_sentence(results, d) for d in ("letters", "letters-10db", "digits")),
        *(robust_sentence(results, d) for d in ("letters", "letters-10db", "digits") if results.rows(d, "main")),
    ]
    lines = "\n".join(f"- {text}" for text in found if text is not None)
    return "\n\n".join(part for part in (confirmed_table(results), lines) if part) or "No runs."


# ------------------------------------------------------------------------------------------------------------ figures


def plot_moves(results: Results) -> Figure | None:
    """Decision share against accuracy and against the worst corruption area, a row a point."""
    datasets = [d for d in ("letters", "letters-10db") if results.rows(d, "main")]
    if not datasets:
        return None
    drawn, panels = study.figure(11, 5.2 * len(datasets), 2, len(datasets))
    handles: dict[str, Line2D] = {}
    for number, dataset in enumerate(datasets):
        at = (dataset, "main")
        for panel, label, numbers in (
            (panels[2 * number], "accuracy, %", lambda row, at=at: results.of(*at, row, ACCURACY)),
            (panels[2 * number + 1], "area of the worse corruption, %", lambda row, at=at: worst(results, at, row)),
        ):
            for row in rows_of(results, *at):
                x, y = results.of(*at, row, DECISION), numbers(row)
                if not x or not y or row in study.MODALITIES:
                    continue
                colour = COLOURS[1] if is_form(row) else COLOURS[0]
                place = 100 * statistics.fmean(x.values()), 100 * statistics.fmean(y.values())
                panel.errorbar(*place, xerr=error(x), yerr=error(y), fmt="none", linewidth=0.5, color=colour, alpha=0.5)
                marks = handles.setdefault(
                    row, Line2D([], [], marker=f"${len(handles) + 1}$", linestyle="", color=colour)
                )
                panel.plot(*place, marker=marks.get_marker(), markersize=9, color=colour, markeredgewidth=0.4)
            panel.set(xlabel="audio's decision share, %", ylabel=label, title=DATASETS[dataset])
            panel.title.set_fontsize(9)
    names = [title(row) for row in handles]
    drawn.legend([*handles.values()], names, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return drawn


def error(values: Mapping[int, float]) -> float:
    """Half of the 95 % t-interval of a mean, in percent; 0 for one value."""
    found = Difference.of([*values.values()])
    return 0.0 if found is None else 100 * found.half


def plot_dial(results: Results) -> Figure | None:
    """Shares, accuracy and corruption areas that the dial reaches, against audio's target."""
    datasets = [d for d in ("letters", "digits", "letters-10db") if targets(results, d)]
    if not datasets:
        return None
    shown = ((SHARE, DECISION), (ACCURACY, WITHOUT_AUDIO, WITHOUT_VIDEO), (AUC_AUDIO, AUC_VIDEO))
    drawn, panels = study.figure(12, 3.8 * len(datasets), len(shown), len(datasets))
    for number, dataset in enumerate(datasets):
        for panel, measures in zip(panels[len(shown) * number :], shown, strict=False):
            for colour, measure in zip(COLOURS, measures, strict=False):
                line = [
                    (100 * target_of(name), *study.mean_sd([*values.values()]))
                    for name in targets(results, dataset)
                    if (values := results.of(dataset, "dial", name, measure))
                ]
                study.band(panel, line, measure.title, colour)
            if measures[0] is SHARE:
                panel.plot([10, 90], [10, 90], ":", color="grey", linewidth=1, label="as asked for")
            panel.set(xlabel="audio's target, %", ylabel="%", ylim=(0, 100), title=DATASETS[dataset])
            panel.title.set_fontsize(9)
            panel.legend(fontsize=7, frameon=False)
    return drawn


FIGURES = {"moves.png": plot_moves, "dial.png": plot_dial}
ALTS = {
    "moves": "Audio's decision share against accuracy, and against the area of the worse corruption, with intervals",
    "dial": "Shares, accuracy and corruption areas against audio's target",
}

# --------------------------------------------------------------------------------------------------------------- page


def pieces(results: Results) -> dict[str, str]:
    """The generated parts of the pages, by marker."""
    parts = {"answer": answer(results), "decisions time": time_table(results)}
    parts |= {f"decisions figure {name}": f"![{alt}](decisions/{name}.png)" for name, alt in ALTS.items()}
    for dataset in DATASETS:
        if results.rows(dataset, "main"):
            parts[f"decisions main {dataset}"] = main_table(results, dataset)
            parts[f"decisions change {dataset}"] = change_table(results, dataset)
            parts[f"decisions control {dataset}"] = control_table(results, dataset)
            parts[f"decisions rivals {dataset}"] = rival_table(results, dataset)
            parts[f"decisions sentences {dataset}"] = sentences(results, dataset)
        if results.rows(dataset, "draw"):
            parts[f"decisions draw {dataset}"] = change_table(results, dataset, "draw")
            parts[f"decisions draw_control {dataset}"] = control_table(results, dataset, "draw")
        for grid in ("ablation", "ablation_draw"):
            if results.rows(dataset, grid):
                parts[f"decisions {grid} {dataset}"] = ablation_table(results, dataset, grid)
        if targets(results, dataset):
            parts[f"decisions dial {dataset}"] = dial_table(results, dataset)
    return parts


def filled(page: str, parts: dict[str, str]) -> str:
    """The page with this script's parts; those of the first part's script stay."""
    names = {name.split()[0] for name in re.findall(r"<!-- ([\w -]+?) -->", page)}
    return fill(page, parts, [*names - {"answer", "decisions"}])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="folder of the parquet files")
    parser.add_argument("--pages", type=Path, nargs="*", default=PAGES, help="the pages")
    parser.add_argument("--figures", type=Path, default=FOLDER, help="folder of the figures")
    options = parser.parse_args(arguments)
    results = Results(options.results)
    parts = pieces(results)
    for page in options.pages:
        write_text(page, filled(page.read_text(encoding="utf-8"), parts))
    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "amr"}):
        for name, draw in FIGURES.items():
            if (drawn := draw(results)) is not None:
                drawn.savefig(options.figures / name, dpi=110, metadata={"Software": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
