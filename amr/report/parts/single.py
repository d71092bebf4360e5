"""Rows of single runs, compared with the baseline's run clip by clip."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from amr.evaluation.paired import RESAMPLES, clip_difference, stored_outcomes
from amr.report.table import Row, baseline_of, row_names
from amr.utils.errors import UserError

CAPTION = (
    "One run per row: its accuracy minus that of the baseline's run, in percentage points, with a 95 % interval of the "
    f"paired bootstrap over the test clips ({RESAMPLES:,} resamples). It says how far the difference moves with other "
    "clips, and nothing of other seeds."
)
HEAD = ["Method", "Accuracy, over clips", "Clips", "Only this right", "Only the baseline right"]


def single_cells(shown: Sequence[Row], rows: Sequence[Row] | None = None) -> tuple[list[list[str]], list[str]]:
    """Lines of the table with `HEAD`, and notes on predictions that could not be used.

    Args:
        shown: Rows of the report's table.
        rows: All rows, which they are compared with; None if these are all.
    """
    rows = shown if rows is None else rows
    body, notes = [], []
    known = cache(lambda path: stored_outcomes(run_at[path]))  # the baseline's is asked for in every row
    run_at = {run.path: run for row in (*rows, *shown) for run in row.runs}
    for name, row in zip(row_names(shown), shown, strict=True):
        other = baseline_of(row, rows)
        if other is None or row.source != "test" or len(row.runs) > 1 or len(other.runs) > 1:
            continue
        try:
            (mine, said), (theirs, also) = (known(each.runs[0].path) for each in (row, other))
        except UserError as error:
            notes.append(f"{name}: not compared clip by clip: {error}.")
            continue
        notes += [f"{each.runs[0].where}: {text}." for each, text in ((row, said), (other, also)) if text]
        if mine is None or theirs is None:
            continue
        if (compared := clip_difference(mine, theirs)) is None:
            notes.append(f"{name}: not compared clip by clip: the baseline's run was tested on other clips.")
            continue
        counts = (compared.clips, compared.gained, compared.lost)
        body.append([name, str(compared), *map(str, counts)])
    return body, list(dict.fromkeys(notes))
