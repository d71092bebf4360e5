"""Compare finished runs: `amr compare RUN... --out report.html`.

`runs` reads the folders, `table` groups and averages them, `figures` draws, `page` writes the HTML. Nothing here
imports torch, and matplotlib is imported only to draw.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable
from pathlib import Path

from amr.compare.figures import Plot, image, plot_curves, plot_summary
from amr.compare.page import check_target, write_file, write_report
from amr.compare.runs import Run, find_runs, read_run
from amr.compare.table import Row, Stat, choose_source, incomplete, notes_on, statement, summarise, table_markdown

__all__ = [
    "Plot",
    "Row",
    "Run",
    "Stat",
    "add_arguments",
    "choose_source",
    "compare",
    "find_runs",
    "incomplete",
    "plot_curves",
    "plot_summary",
    "read_run",
    "run",
    "summarise",
    "table_markdown",
    "write_report",
]


def compare(paths: Iterable[str | Path], out: str | Path, picture: str | Path | None = None) -> str:
    """Compare runs: write the page (and a PNG of the two main plots) and return the table with its notes.

    Args:
        paths: Runs, folders of runs, or globs.
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
    paths = list(paths)
    runs = [read_run(path) for path in find_runs(paths)]
    extra = [] if picture is None else ["--picture", str(picture)]
    write_report(runs, out, shlex.join(["amr", "compare", *map(str, paths), "--out", str(out), *extra]))
    if picture is not None:
        write_file(Path(picture), image(plot_summary(runs), "png"))
    rows = summarise(runs)
    table = [statement(rows[0].source), "", table_markdown(rows)] if rows else ["No run has a validated epoch yet."]
    notes = notes_on(runs, rows)
    return "\n".join([*table, *([""] if notes else []), *(f"- {note}" for note in notes)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `compare`'s arguments to a parser."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, a folder of runs, or a quoted glob")
    parser.add_argument("--out", default="report.html", metavar="FILE.html", help="the page (default: %(default)s)")
    parser.add_argument("--picture", metavar="FILE.png", help="also write the two main plots as a PNG")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    print(compare(args.runs, args.out, args.picture))
    print(f"\nPage: {args.out}" + (f"\nPicture: {args.picture}" if args.picture else ""))
    return 0
