"""Compare finished runs: `amr compare RUN... --out report.html`.

`sources` finds runs and `runs`, `foreign` and `results` read them; `table` groups and averages them, `figures` draws,
`page` writes the HTML. Nothing here imports torch; matplotlib is imported only to draw, pyarrow and wandb only to read
their files.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from amr.evaluation.runs import Run
from amr.report.figures import plot_curves, plot_summary
from amr.report.page import check_target, write_report
from amr.report.results import read_results, write_results
from amr.report.sources import find_runs, read_run, read_runs
from amr.report.style import Plot, image
from amr.report.table import Row, Stat, choose_source, incomplete, summarise
from amr.report.text import table_markdown, table_text
from amr.utils.files import sweep, write_bytes

__all__ = [
    "Plot",
    "Row",
    "Run",
    "Stat",
    "choose_source",
    "compare",
    "find_runs",
    "incomplete",
    "plot_curves",
    "plot_summary",
    "read_results",
    "read_run",
    "read_runs",
    "summarise",
    "table_markdown",
    "table_text",
    "write_report",
    "write_results",
]


def compare(paths: Iterable[str | Path], out: str | Path, picture: str | Path | None = None) -> str:
    """Compare runs: write the page (and a PNG of the two main plots) and return the table with its notes.

    Args:
        paths: Runs, results.parquet files, folders of runs, or globs.
        out: The page, an .html file.
        picture: A .png file, 1200 pixels wide: accuracy and dominance over epochs.

    Returns:
        What the numbers are, the table in Markdown, and the notes; to be printed.

    Raises:
        UserError: A path without runs, an unreadable file, or a file that cannot be written.
    """
    check_target(Path(out), ".html")
    if picture is not None:
        check_target(Path(picture), ".png")
    for file in (Path(out), *([] if picture is None else [Path(picture)])):
        sweep(file.parent, file.name)
    paths = list(paths)
    runs = read_runs(paths)
    extra = [] if picture is None else ["--picture", str(picture)]
    write_report(runs, out, shlex.join(["amr", "compare", *map(str, paths), "--out", str(out), *extra]))
    if picture is not None:
        write_bytes(Path(picture), image(plot_summary(runs), "png"))
    return table_text(runs)
