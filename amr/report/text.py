"""What `compare` prints: the tables in Markdown, and what to know before trusting them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from amr.evaluation.runs import Run
from amr.report.parts.settings import differing_settings
from amr.report.parts.single import CAPTION, HEAD, effect_cells, outcomes_reader, single_cells
from amr.report.table import (
    Bold,
    Row,
    cells,
    explanation,
    gains,
    incomplete,
    leading,
    plain_of,
    row_names,
    statement,
    summarise,
    union_of_modalities,
)

TOLERANCE = 0.05  # of a share, from its target
PARTED = 0.1  # dominance from decision share, in rows whose dominance was trained
NOTES = 100  # that are printed


def table_markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown with padded columns: reads well in a terminal and in a README."""
    return _markdown(*cells(rows))


def table_text(runs: Sequence[Run], rows: Sequence[Row] | None = None) -> str:
    """What `compare` prints: what the numbers are, the tables in Markdown, and what to know before trusting them.

    Args:
        runs: Runs.
        rows: Their summary, where it is there already.
    """
    rows = summarise(runs) if rows is None else rows
    shown, further = leading(rows)
    parts = (
        [finding(rows), statement(rows[0].source), _markdown(*cells(shown, rows))]
        if rows
        else ["No run has a validated epoch yet."]
    )
    parts += [further_text(shown, further)] if further else []
    parts += [f"All in %; {text}" for text in [explanation(rows)] if text]
    known = outcomes_reader([*rows, *shown])
    singles, single_notes = single_cells(shown, rows, known)
    if effects := effect_cells(shown, rows, known):
        caption, head, body, more = effects
        parts += [f"What AMR changes. {caption}", _markdown(head, body)]
        single_notes += [note for note in more if note not in single_notes]
    parts += [f"Single runs, clip by clip. {CAPTION}", _markdown(HEAD, singles)] if singles else []
    notes = notes_on(runs, rows) + single_notes
    parts.append("\n".join(f"- {note}" for note in notes[:NOTES]))
    parts += [f"{len(notes) - NOTES} further notes are on the page."] if len(notes) > NOTES else []
    return "\n\n".join(part for part in parts if part)


def finding(rows: Sequence[Row]) -> str:
    """What the table says, in two or three sentences: who is above the baseline, and what AMR moves.

    A method is called better or worse only where its paired 95 % interval to the baseline leaves out 0.
    """
    sentences, several = [], len({row.dataset for row in rows}) > 1
    for dataset in dict.fromkeys(row.dataset for row in rows):
        members = [row for row in rows if row.dataset == dataset]
        where = f"{dataset}: " if several else ""
        sentences += [where + sentence for sentence in (_ranking(members), _moved(members)) if sentence]
    return " ".join(sentences)


def _ranking(rows: Sequence[Row]) -> str:
    """Who is above the baseline in accuracy."""
    names = {id(row): name for row, name in zip(rows, row_names(rows), strict=True)}
    base = next((row for row in rows if row.method == row.baseline), None)
    best = max(
        (row for row in rows if row.accuracy), key=lambda row: row.accuracy.mean if row.accuracy else 0.0, default=None
    )
    if best is None:
        return ""
    level = [names[id(row)] for row in rows if str(row.accuracy) == str(best.accuracy)]
    who = f"{', '.join(level[:-1])} and {level[-1]} have" if 1 < len(level) <= 3 else f"{names[id(best)]} has"
    highest = f"{who} the highest accuracy, {best.accuracy} %"
    found = [(row, gain) for row in rows if (gain := gains(row, rows)["acc"])]
    if base is None or not found:
        lacking = "no baseline to compare with" if base is None else "too few common seeds for an interval"
        return f"{highest}; {lacking}, so no difference is claimed." if len(rows) > 1 else f"{highest}."
    baseline = "naive fusion" if base.baseline == "naive" else base.title
    above = sorted((entry for entry in found if entry[1].low > 0), key=lambda entry: -entry[1].mean)
    below = sum(gain.high < 0 for _, gain in found)
    if above:
        row, gain = above[0]
        more = f"{len(above)} of {len(found)} rows are above {baseline} in accuracy by their 95 % intervals, "
        text = f"{more}most of all {names[id(row)]} ({gain} points)"
    else:
        rest = f"{len(found)} {'row' if len(found) == 1 else 'rows'}"
        text = f"None of {rest} is above {baseline} in accuracy by its 95 % interval"
    return f"{text}; {below} {'is' if below == 1 else 'are'} below it."


def _moved(rows: Sequence[Row]) -> str:
    """How far AMR moves the first modality's share, and its decision share, as means over methods."""
    pairs = [(row, plain) for row in rows if (plain := plain_of(row, rows))]
    moved = {}
    for kind in ("dominance", "decision"):
        for name in union_of_modalities(rows)[:1]:
            both = [(getattr(p, kind).get(name), getattr(row, kind).get(name)) for row, p in pairs]
            known = [(before.mean, after.mean) for before, after in both if before and after]
            if known:
                before, after = (100 * sum(column) / len(known) for column in zip(*known, strict=True))
                moved[kind] = (name, before, after, len(known))
    if "dominance" not in moved:
        return ""
    name, before, after, count = moved["dominance"]
    text = f"AMR {'takes' if _moves(before, after) else 'leaves'} {name}'s attribution share {_way(before, after)}"
    if "decision" in moved:
        _, decided, decides, _ = moved["decision"]
        text += f", and its share of the decisions {_way(decided, decides)}"
        if abs((after - before) - (decides - decided)) > 100 * PARTED:
            text += ": the decisions did not follow as far"
    return f"{text} (mean over {count} {'method' if count == 1 else 'methods'})."


def _moves(before: float, after: float) -> bool:
    return f"{before:.0f}" != f"{after:.0f}"


def _way(before: float, after: float) -> str:
    return f"from {before:.0f} to {after:.0f} %" if _moves(before, after) else f"at {after:.0f} %"


def further_text(shown: Sequence[Row], further: Sequence[Row]) -> str:
    """That there are more rows than are shown."""
    baseline = "naive fusion" if shown[0].baseline == "naive" else shown[0].baseline
    return f"The {len(shown)} rows with the highest accuracy and {baseline}; {len(further)} more are on the page."


def _markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [[_markdown_cell(cell) for cell in line] for line in [head, *body]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = [cell in ("Dataset", "Fusion", "Method", "Seeds") for cell in head]
    rule = ["-" * width if is_left else "-" * (width - 1) + ":" for width, is_left in zip(widths, left, strict=True)]
    padded = [
        [f"{cell:{'<' if is_left else '>'}{w}}" for cell, w, is_left in zip(line, widths, left, strict=True)]
        for line in [lines[0], rule, *lines[1:]]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _markdown_cell(cell: str) -> str:
    text = re.sub(r"([\\|<`*])", r"\\\1", cell)
    return f"**{text}**" if isinstance(cell, Bold) else text


def notes_on(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    """What a reader must know before trusting the table."""
    notes = [
        f"Incomplete, not in the table: {run.where}: {reason}."
        for run, reason in incomplete(runs, rows[0].source if rows else None)
    ]
    notes += [f"{run.where}: {note}." for run in runs for note in run.notes]
    tested = [run for row in rows for run in row.runs if "test/acc" in run.test]
    if rows and rows[0].source == "val" and tested:
        total = sum(len(row.runs) for row in rows)
        notes.append(f"{len(tested)} of {total} runs have test results; they are not shown, to compare like with like.")
    for name, row in zip(row_names(rows), rows, strict=True):
        doubles = [str(seed) for seed, count in Counter(row.seeds).items() if count > 1 and seed is not None]
        if doubles:
            notes.append(
                f"{name}: seed {', '.join(doubles)} is there more than once; its ± is not over independent runs."
            )
        if keys := differing_settings(row.runs):
            shown = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
            notes.append(f"{name}: its runs differ in more than the seed: {shown}.")
        for run in row.runs:
            done, planned = max(run.epochs, default=-1) + 1, run.settings.get("trainer.max_epochs", "")
            if planned.isdecimal() and 0 < done < int(planned):
                notes.append(f"{run.where}: {done} of {planned} epochs so far (still running, or stopped early).")
    labels: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    for row in rows:
        labels[row.dataset].update(run.labels for run in row.runs)
    different = [dataset for dataset, lists in labels.items() if len(lists) > 1]
    notes += [f"{dataset}: the runs' class lists differ, so their numbers are not comparable." for dataset in different]
    return notes + _balance_notes(rows)


def _balance_notes(rows: Sequence[Row]) -> list[str]:
    """Which rows with AMR have a share that is not near its target, on the split that the table shows."""
    notes, measured = [], False
    for name, row in zip(row_names(rows), rows, strict=True):
        if row.with_amr and row.dominance:
            measured = True
            away = [
                f"{m} {100 * share.mean:.1f} for {100 * row.target[m]:.1f} %"
                for m, share in row.dominance.items()
                if not abs(share.mean - row.target[m]) <= TOLERANCE + 1e-9  # NaN, too, is not near
            ]
            if away:
                notes.append(f"{name}: dominance farther than {TOLERANCE} from its target: {', '.join(away)}.")
    if measured and not notes:
        notes.append(f"Every AMR row's dominance is within {TOLERANCE} of its target.")
    return notes + _parted_notes(rows)


def _parted_notes(rows: Sequence[Row]) -> list[str]:
    """In which rows with AMR dominance and decision share part."""
    notes = []
    for name, row in zip(row_names(rows), rows, strict=True):
        shares = {m: (row.dominance[m].mean, row.decision[m].mean) for m in row.decision if m in row.dominance}
        if row.with_amr and any(abs(share - decision) > PARTED for share, decision in shares.values()):
            m, (share, decision) = max(shares.items(), key=lambda entry: abs(entry[1][0] - entry[1][1]))
            notes.append(
                f"{name}: the share moved, the decisions did not as far: {m} has {100 * share:.1f} % of the "
                f"attribution and {100 * decision:.1f} % of the decisions."
            )
    return notes
