"""Rows of single runs, compared clip by clip: with the baseline's run, and a method with AMR with itself without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from amr.evaluation.paired import RESAMPLES, ClipDifference, Outcomes, clip_difference, stored_outcomes
from amr.evaluation.runs import BLANK
from amr.report.table import AMR_CAPTION, METRICS, Row, amr_cells, baseline_of, plain_of, row_names
from amr.utils.errors import UserError

CAPTION = (
    "One run per row: its accuracy minus that of the baseline's run, in percentage points, with a 95 % interval of the "
    f"paired bootstrap over the test clips ({RESAMPLES:,} resamples). It says how far the difference moves with other "
    "clips, and nothing of other seeds."
)
HEAD = ["Method", "Accuracy, over clips", "Clips", "Only this right", "Only the baseline right"]
OVER_CLIPS = "Accuracy, over clips"
SHARES_CAPTION = "Dominance and decision share in %, without → with AMR."
CLIPS_CAPTION = (
    f" {OVER_CLIPS}: of one run each, in percentage points, with a 95 % interval of the paired bootstrap over the test "
    "clips, which says nothing of other seeds."
)
NO_INTERVAL = " Of one run each, without stored predictions of the same test clips, a difference has no interval."
Known = Callable[[Path], tuple[Outcomes | None, str]]


def outcomes_reader(rows: Sequence[Row]) -> Known:
    """A function that reads the outcomes of one of the rows' runs, by its path, once."""
    runs = {run.path: run for row in rows for run in row.runs}
    return cache(lambda path: stored_outcomes(runs[path]))


def single_cells(
    shown: Sequence[Row], rows: Sequence[Row] | None = None, known: Known | None = None
) -> tuple[list[list[str]], list[str]]:
    """Lines of the table with `HEAD`, and notes on predictions that could not be used.

    Args:
        shown: Rows of the report's table.
        rows: All rows, which they are compared with; None if these are all.
        known: Function that reads the outcomes; None: read here.
    """
    rows = shown if rows is None else rows
    known = known or outcomes_reader([*rows, *shown])
    body: list[list[str]] = []
    notes: list[str] = []
    for name, row in zip(row_names(shown), shown, strict=True):
        if compared := _compared(name, row, baseline_of(row, rows), known, notes):
            counts = (compared.clips, compared.gained, compared.lost)
            body.append([name, str(compared), *map(str, counts)])
    return body, list(dict.fromkeys(notes))


def effect_cells(
    shown: Sequence[Row], rows: Sequence[Row] | None = None, known: Known | None = None
) -> tuple[str, list[str], list[list[str]], list[str]] | None:
    """What AMR changes: the caption, the head, the lines, and notes on predictions that could not be used.

    It is `amr_cells`' table without the columns in which no line has anything, and with the difference over clips of
    single runs, which have none over seeds. None if no method is there with and without AMR.

    Args:
        shown: Rows, of which those with AMR are in the table.
        rows: All rows, which they are compared with; None if these are all.
        known: Function that reads the outcomes; None: read here.
    """
    rows = shown if rows is None else rows
    if (effects := amr_cells(shown, rows)) is None:
        return None
    head, body = effects
    known = known or outcomes_reader([*rows, *shown])
    names = dict(zip(map(id, shown), row_names(shown), strict=True))
    notes: list[str] = []
    pairs = [(row, plain) for row in shown if (plain := plain_of(row, rows))]
    over_clips = [str(_compared(names[id(row)], row, plain, known, notes) or BLANK) for row, plain in pairs]
    place = head.index(METRICS["acc"]) + 1
    head = [*head[:place], OVER_CLIPS, *head[place:]]
    body = [[*line[:place], cell, *line[place:]] for line, cell in zip(body, over_clips, strict=True)]
    kept = [i for i, name in enumerate(head) if name not in (*METRICS.values(), OVER_CLIPS) or _any(body, i)]
    head, body = [head[i] for i in kept], [[line[i] for i in kept] for line in body]
    caption = AMR_CAPTION if {*METRICS.values()} & {*head} else SHARES_CAPTION
    if OVER_CLIPS in head:
        caption += CLIPS_CAPTION
    elif caption == SHARES_CAPTION:
        caption += NO_INTERVAL
    return caption, head, body, list(dict.fromkeys(notes))


def _any(body: Sequence[Sequence[str]], column: int) -> bool:
    return any(line[column] != BLANK for line in body)


def _compared(name: str, row: Row, other: Row | None, known: Known, notes: list[str]) -> ClipDifference | None:
    """The difference of two rows of one tested run each; None where there is none, with a note where that is odd."""
    if other is None or row.source != "test" or len(row.runs) > 1 or len(other.runs) > 1:
        return None
    try:
        (mine, said), (theirs, also) = (known(each.runs[0].path) for each in (row, other))
    except UserError as error:
        notes.append(f"{name}: not compared clip by clip: {error}.")
        return None
    notes += [f"{each.runs[0].where}: {text}." for each, text in ((row, said), (other, also)) if text]
    if mine is None or theirs is None:
        return None
    if (compared := clip_difference(mine, theirs)) is None:
        notes.append(f"{name}: not compared clip by clip: {other.runs[0].where} was tested on other clips.")
    return compared
