"""Tables, sentences and figure of docs/results/grid-letters.md from results/*.parquet.

    python docs/results/grid-letters/tables.py

Differences are paired by seed, with 95 % t-intervals. Statements about many rows at once hold the false discovery rate
of their tests at 5 % (Benjamini and Hochberg 1995).
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from scipy import stats

FOLDER = Path(__file__).parent
sys.path += [str(FOLDER), str(FOLDER.parents[1] / "study")]

import pick  # noqa: E402  # beside this file
import report as study  # noqa: E402  # of docs/study
from report import COLOURS, Measure, Results, fill, markdown, paired, spread  # noqa: E402

from amr.evaluation.statistics import Difference  # noqa: E402
from amr.utils.files import write_text  # noqa: E402

PAGE = FOLDER.with_suffix(".md")
FIGURE = "accuracy.png"
At = tuple[str, str]  # data set and grid
AT, PLANTED = ("letters", "main"), ("planted", "main")
LISTED = 5  # rows that a sentence names; more are counted
TITLES = {
    "audio": "Audio alone",
    "video": "Video alone",
    "ensemble": "Ensemble (logits)",
    "ensemble_probabilities": "Ensemble (probabilities)",
    "naive": "Naive fusion",
    "multi_loss": "Multi-loss",
    "late_tuned": "Late fusion",
    "umt": "UMT",
    "dgl": "DGL",
    "tcmax": "TCMax",
    "mcr": "MCR",
    "g2d": "G2D",
    "mla": "MLA",
    "dropout": "Dropout",
    "modality_dropout": "Modality dropout",
    "ogm": "OGM",
    "ogm_ge": "OGM-GE",
    "gradient_blending": "G-Blend",
    "gge": "GGE",
    "pmr": "PMR",
    "agm": "AGM",
    "mmpareto": "MMPareto",
    "mmcosine": "MMCosine",
    "info_reg": "InfoReg",
    "data_remixing": "Data Remixing",
    "smv": "SMV",
    "relearning": "Re-learning",
    "opm": "OPM",
    "arl": "ARL",
    "pdmp": "PDMP",
    "cml": "CML",
    "mbsd": "MBSD",
    "amco": "AMCo",
    "aug": "AUG",
    "reconboost": "ReconBoost",
    "greedy": "Greedy",
    "cggm": "CGGM",
    "lfm": "LFM",
    "synib": "SynIB",
    "midas": "MIDAS",
}
PLUS = "-amr"
DRAW = ("letters", "draw")
DRAWN = {
    "smv": "SMV",
    "naive": "Naive fusion",
    "multi_loss": "Multi-loss",
    "naive_long": "Naive fusion, 36 epochs",
    "multi_loss_long": "Multi-loss, 36 epochs",
}
ALONE = ("audio", "video")
CONTROLS = ("naive", "multi_loss", "late_tuned", "ensemble", "ensemble_probabilities")
CPU = Measure("CPU seconds", "cpu_seconds")
ACCURACY, PRECISION = Measure("accuracy", "acc"), Measure("mAP", "test/mAP")
SHARE = Measure("audio's share", "share", "audio")
DECISION = Measure("audio's decision share", "shapley_share_odds", "audio")
WITHOUT_AUDIO, WITHOUT_VIDEO = (
    Measure(f"accuracy without {modality}", "acc_missing_mean", modality) for modality in ALONE
)
MEASURES = (
    ACCURACY,
    PRECISION,
    SHARE,
    DECISION,
    WITHOUT_AUDIO,
    WITHOUT_VIDEO,
    Measure("ECE", "ece"),
)


def title(name: str) -> str:
    """How the page calls a row."""
    plain = name.removesuffix(PLUS)
    return TITLES.get(plain, plain) + (" w/ AMR" if name != plain else "")


def rows_of(results: Results, at: At = AT) -> list[str]:
    """Rows that have been trained, in the order of `TITLES`, each method plain and with AMR."""
    there = set(results.rows(*at))
    return [name for method in TITLES for name in (method, method + PLUS) if name in there]


def of(results: Results, name: str, measure: Measure, at: At = AT) -> dict[int, float]:
    """A number of each seed."""
    return results.of(*at, name, measure)


# -------------------------------------------------------------------------------------------------------------- tables


def main_table(results: Results, at: At = AT) -> str:
    """Every row's measures."""
    body = []
    for name in rows_of(results, at):
        cells = [spread(of(results, name, measure, at).values()) for measure in MEASURES]
        body.append([title(name), *cells, str(len(of(results, name, ACCURACY, at)))])
    return markdown(["", *(measure.title for measure in MEASURES), "seeds"], body)


def against_table(results: Results) -> str:
    """Each row against naive fusion and against multi-loss."""
    body = []
    for name in rows_of(results):
        cells = [
            "–" if name == other else paired(of(results, name, measure), of(results, other, measure))
            for other in ("naive", "multi_loss")
            for measure in (ACCURACY, PRECISION)
        ]
        body.append([title(name), *cells])
    head = [f"{m.title} minus {title(other).lower()}'s" for other in CONTROLS[:2] for m in (ACCURACY, PRECISION)]
    return markdown(["", *head], body)


def draw_table(results: Results) -> str:
    """The second draw: each row, and its differences to the controls of the same seeds."""
    body = []
    for name in DRAWN:
        found = {measure: results.of(*DRAW, name, measure) for measure in (*MEASURES[:4], CPU)}
        others = [results.of(*DRAW, other, ACCURACY) for other in DRAWN if other != "smv"]
        gains = ["–" if name != "smv" else paired(found[ACCURACY], other) for other in others]
        seconds = f"{statistics.median(found[CPU].values()):.0f}" if found[CPU] else "–"
        body.append([DRAWN[name], *(spread(found[measure].values()) for measure in MEASURES[:4]), seconds, *gains])
    versus = [f"accuracy minus that of {text[:1].lower()}{text[1:]}" for name, text in DRAWN.items() if name != "smv"]
    return markdown(["", *(measure.title for measure in MEASURES[:4]), "CPU seconds", *versus], body)


def draw_sentence(results: Results) -> str:
    """Whether the lead of the method above all controls repeats with other seeds, and against longer controls."""
    ours = results.of(*DRAW, "smv", ACCURACY)
    texts = []
    for name, text in DRAWN.items():
        theirs = results.of(*DRAW, name, ACCURACY)
        gain = Difference.of([value - theirs[number] for number, value in ours.items() if number in theirs])
        if name != "smv" and gain is not None:
            where = "above" if gain.low > 0 else "below" if gain.high < 0 else "not shown to differ from"
            texts.append(f"{where} that of {text[:1].lower()}{text[1:]} ({gain} points)")
    joined = " and ".join([", ".join(texts[:-1]), *texts[-1:]] if texts[1:] else texts)
    return f"With other seeds, SMV's accuracy is {joined}." if texts else "No runs with other seeds."


def amr_table(results: Results) -> str:
    """What AMR changes, one line per method."""
    there = set(rows_of(results))
    body = []
    for name in (name for name in TITLES if {name, name + PLUS} <= there):
        pairs = [(of(results, name + PLUS, measure), of(results, name, measure)) for measure in MEASURES]
        body.append([title(name), *(paired(*pair) for pair in pairs)])
    return markdown(["with AMR minus without", *(measure.title for measure in MEASURES)], body)


def tuning_table(results: Results) -> str:
    """Trials of each method, best validation accuracy; what was chosen in bold."""
    tuning = pick.tuning_grid(results)
    grids = {"rates": pick.read("rates"), "tuning": tuning, "amr": pick.amr_grid(results, tuning)}
    cells: dict[str, dict[str, list[str]]] = {}
    for grid, entries in grids.items():
        best = pick.winners(results, grid, entries).values()
        names = [
            name for name in entries["methods"] if grid != "rates" or pick.method_of(name) in ALONE
        ]  # naive: below
        for name in names:
            if score := pick.score(results, grid, name):
                text = f"{name.partition('-')[2]} {100 * score[0]:.1f}"
                columns = cells.setdefault(pick.method_of(name), {"plain": [], "amr": []})
                columns["amr" if grid == "amr" else "plain"].append(f"**{text}**" if name in best else text)
    body = [
        [title(method), *(", ".join(texts) or "–" for texts in columns.values())] for method, columns in cells.items()
    ]
    return markdown(["", "setting and validation accuracy", "AMR's rate and validation accuracy"], body)


def time_table(results: Results) -> str:
    """CPU seconds per run on one thread, test included; a run that two grids share counts in each."""
    body = []
    for grid in ("rates", "tuning", "amr", "main", "draw"):
        names = results.rows("letters", grid)
        taken = {name: [*results.of("letters", grid, name, Measure("", "cpu_seconds")).values()] for name in names}
        seconds = [value for values in taken.values() for value in values]
        if seconds:
            slowest = max(taken, key=lambda name: max(taken[name], default=0.0))
            numbers = (len(seconds), statistics.median(seconds), max(seconds))
            body.append([grid, *(f"{number:.0f}" for number in numbers), slowest])
    file = results.folder / "machine.json"
    machine = json.loads(file.read_text()) if file.is_file() else {"cpu": "?", "cores": 0}
    table = markdown(["grid", "runs", "CPU seconds per run, median", "at most", "of"], body)
    return f"{table}\n\n{machine['cpu']}, {machine['cores']} processors."


# ----------------------------------------------------------------------------------------------------------- sentences


def differences(results: Results, name: str, other: str, measure: Measure = ACCURACY, at: At = AT) -> list[float]:
    """A measure minus another row's, for each seed that both have."""
    ours, theirs = of(results, name, measure, at), of(results, other, measure, at)
    return [value - theirs[number] for number, value in ours.items() if number in theirs]


def compared(
    results: Results, names: Sequence[str], other: str, measure: Measure = ACCURACY, at: At = AT
) -> dict[str, tuple[Difference, bool]]:
    """Rows' measure minus another row's, and whether each stands with the false discovery rate of all held at 5 %.

    Args:
        results: What was measured.
        names: Rows to compare.
        other: Row that they are compared with.
        measure: What is compared.
        at: Data set and grid.
    """
    intervals, tests = dict[str, Difference](), dict[str, float]()
    for name in names:
        values = differences(results, name, other, measure, at)
        interval = Difference.of(values)
        if name != other and interval is not None:
            intervals[name] = interval
            tests[name] = float(stats.ttest_1samp(values, 0).pvalue) if interval.half > 0 else 1.0
    corrected = dict(zip(tests, stats.false_discovery_control([*tests.values()]), strict=True)) if tests else {}
    return {name: (interval, bool(corrected[name] <= 0.05)) for name, interval in intervals.items()}


def listed(names: Sequence[str]) -> str:
    """Titles of rows, in a sentence."""
    titles = [title(name) for name in names]
    return "none" if not titles else ", ".join(titles[:-1]) + (" and " if titles[:-1] else "") + titles[-1]


def counted(names: Sequence[str], where: str, among: str = "") -> str:
    """How many are above or below, and which if they are few."""
    if not names:
        return f"none{among} is {where}"
    which = f" ({listed(names)})" if len(names) <= LISTED else ""
    return f"{len(names)}{among} {'is' if len(names) == 1 else 'are'} {where}{which}"


def verdict(intervals: Mapping[str, tuple[Difference, bool]]) -> str:
    """Which rows are above and below, and which of them stand."""
    above = [name for name, (interval, _) in intervals.items() if interval.low > 0]
    below = [name for name, (interval, _) in intervals.items() if interval.high < 0]
    among = f" of {len(intervals)} rows"
    text = f"by their intervals, {counted(above, 'above', among)} and {counted(below, 'below')}"
    if not above and not below:
        return text
    high, low = ([name for name in names if intervals[name][1]] for names in (above, below))
    return f"{text}; with the false discovery rate at 5 %, {counted(high, 'above')} and {counted(low, 'below')}"


def planted_sentences(results: Results) -> str:
    """What the methods change where both modalities tell the class: by rule."""
    names = [name for name in rows_of(results, PLANTED) if name not in (*ALONE, *CONTROLS)]
    if not names:
        return "No runs."
    said = []
    for measure in (ACCURACY, DECISION, WITHOUT_AUDIO, WITHOUT_VIDEO):
        against = [
            f"gainst {title(other).lower()}: {verdict(compared(results, names, other, measure, PLANTED))}."
            for other in CONTROLS[:2]
        ]
        said.append(f"{measure.title[:1].upper()}{measure.title[1:]} a{' A'.join(against)}")
    return "\n".join(f"{number}. {text}" for number, text in enumerate(said, 1))


def sentences(results: Results) -> str:
    """What beats the controls, and what does not: by rule."""
    there = rows_of(results)
    controls = [name for name in CONTROLS if name in there]
    names = [name for name in there if name not in (*ALONE, *CONTROLS)]
    if not {"naive", "multi_loss"} <= set(controls) or not names:
        return "No runs."
    against = {other: compared(results, names, other) for other in controls}
    texts = {other: f"gainst {title(other).lower()}: {verdict(against[other])}." for other in controls}
    said = [f"Accuracy a{texts[other]}" for other in controls[:2]]
    if controls[2:]:
        said.append(f"Accuracy a{' A'.join(texts[other] for other in controls[2:])}")
    every = [name for name in names if all(name in each and each[name][0].low > 0 for each in against.values())]

    def best(among: Sequence[str]) -> str:
        top = max(among, key=lambda name: statistics.fmean(of(results, name, ACCURACY).values()))
        return f"{title(top)} ({spread(of(results, top, ACCURACY).values())})"

    said.append(
        f"Above all of {listed(controls)} by their intervals: {listed(every)}. The highest mean accuracy is that of"
        f" {best(names)}; among the controls it is that of {best(controls)}."
    )
    said.append(amr_sentence(results, there))
    return "\n".join(f"{number}. {text}" for number, text in enumerate(said, 1))


def amr_sentence(results: Results, there: Sequence[str]) -> str:
    """What AMR does to shares and accuracy, over the methods that have both rows."""
    names = [name for name in there if name + PLUS in there]
    if not names:
        return "AMR has no rows."

    def mean(measure: Measure, plus: str) -> float:
        return 100 * statistics.fmean(statistics.fmean(of(results, n + plus, measure).values()) for n in names)

    shares = " and ".join(
        f"{measure.title} from {mean(measure, ''):.1f} to {mean(measure, PLUS):.1f} %" for measure in (SHARE, DECISION)
    )
    intervals = {name: Difference.of(differences(results, name + PLUS, name)) for name in names}
    up = [name for name, interval in intervals.items() if interval is not None and interval.low > 0]
    down = [name for name, interval in intervals.items() if interval is not None and interval.high < 0]
    return (
        f"As a mean over {len(names)} methods, AMR moves {shares}. By their intervals, it raises the accuracy of"
        f" {listed(up)}, and lowers that of {listed(down)}."
    )


# -------------------------------------------------------------------------------------------------------------- figure


def plot(results: Results) -> Figure | None:
    """Accuracy minus naive fusion's and multi-loss's with intervals, and audio's shares, a method a line."""
    there = set(rows_of(results))
    names = [name for name in TITLES if name in there and name not in ALONE]
    if "naive" not in there or "multi_loss" not in there:
        return None
    drawn, panels = study.figure(11, 0.3 * len(names) + 1.4, 3, sharey=True)
    places = {name: len(names) - 1 - number for number, name in enumerate(names)}
    for colour, plus, label, lift in ((COLOURS[0], "", "plain", 0.13), (COLOURS[1], PLUS, "with AMR", -0.13)):
        lines = {name + plus: places[name] + lift for name in names if name + plus in there}
        for panel, other in zip(panels[:2], CONTROLS[:2], strict=True):
            intervals = {name: interval for name, (interval, _) in compared(results, [*lines], other).items()}
            panel.errorbar(
                [100 * d.mean for d in intervals.values()],
                [lines[name] for name in intervals],
                xerr=[100 * d.half for d in intervals.values()],
                fmt="o",
                markersize=3.5,
                linewidth=1.2,
                color=colour,
                label=label,
            )
            panel.axvline(0, color="grey", linewidth=0.8)
            panel.set(xlabel=f"accuracy minus {title(other).lower()}'s, points")
        for measure, marker in ((SHARE, "s"), (DECISION, "D")):
            means = {name: [*of(results, name, measure).values()] for name in lines}
            points = [(100 * statistics.fmean(values), lines[name]) for name, values in means.items() if values]
            panels[2].scatter(
                *zip(*points, strict=True), marker=marker, s=16, color=colour, label=f"{measure.title}, {label}"
            )
    panels[2].axvline(50, color="grey", linewidth=0.8)
    panels[2].set(xlabel="%", xlim=(0, 100))
    panels[0].set_yticks([*places.values()], [title(name) for name in places], fontsize=8)
    pairs = [pair for n in (0, 2) for pair in zip(*panels[n].get_legend_handles_labels(), strict=True)]
    drawn.legend(*zip(*pairs, strict=True), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return drawn


# ---------------------------------------------------------------------------------------------------------------- page


def pieces(results: Results) -> dict[str, str]:
    """The generated parts of the page, by marker."""
    if not rows_of(results):
        return {}
    return {
        "main": main_table(results),
        "against": against_table(results),
        "sentences": sentences(results),
        "figure": f"![Accuracy minus the controls' with intervals, and audio's shares]({FOLDER.name}/{FIGURE})",
        "amr": amr_table(results),
        "draw": f"{draw_sentence(results)}\n\n{draw_table(results)}",
        "planted": f"{planted_sentences(results)}\n\n{main_table(results, PLANTED)}",
        "tuning": tuning_table(results),
        "time": time_table(results),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="folder of the parquet files")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page")
    parser.add_argument("--figure", type=Path, default=FOLDER / FIGURE, help="the figure")
    options = parser.parse_args(arguments)
    results = Results(options.results)
    write_text(options.page, fill(options.page.read_text(encoding="utf-8"), pieces(results)))
    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "amr"}):
        if (drawn := plot(results)) is not None:
            drawn.savefig(options.figure, dpi=110, metadata={"Software": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
