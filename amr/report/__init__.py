"""Compare finished runs: `amr compare RUN... --out report.html`.

`sources` finds runs and `runs`, `foreign` and `results` read them; `table` groups and averages them, `figures` draws,
`page` writes the HTML. Nothing here imports torch; matplotlib is imported only to draw, pyarrow and wandb only to read
their files.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from amr.evaluation.runs import Run, Source
from amr.report.figures import plot_curves, plot_summary
from amr.report.page import check_target, write_report
from amr.report.results import read_results, write_results
from amr.report.sources import find_runs, read_run, read_runs
from amr.report.style import Plot, image
from amr.report.table import Row, Sort, Stat, choose_source, incomplete, leading, summarise
from amr.report.text import table_markdown, table_text
from amr.report.written import table_csv, table_latex
from amr.utils.files import sweep, write_bytes, write_text

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
    "table_csv",
    "table_latex",
    "table_markdown",
    "table_text",
    "write_report",
    "write_results",
]


def compare(
    paths: Iterable[str | Path],
    out: str | Path,
    picture: str | Path | None = None,
    *,
    csv: str | Path | None = None,
    latex: str | Path | None = None,
    md: str | Path | None = None,
    split: Source | None = None,
    sort: Sort = "method",
    baseline: str = "naive",
) -> str:
    """Compare runs: write the page, and the table and a PNG where asked; return the table with its notes.

    Args:
        paths: Runs, results.parquet files, folders of runs, or globs.
        out: The page, an .html file.
        picture: A .png file, 1200 pixels wide: accuracy and dominance over epochs. None for no file.
        csv: A .csv file for the table, in percent and unrounded; see `table_csv`. None for no file.
        latex: A .tex file for the table, for the package booktabs. None for no file.
        md: A .md file for the table. None for no file.
        split: `test` or `val`; None for test if every run was tested, else val.
        sort: `method`, or `acc` or `mAP` for the highest mean first.
        baseline: Name of the method that rows are compared with.

    Returns:
        What the numbers are, the table in Markdown, and the notes; to be printed.

    Raises:
        UserError: A path without runs, an unreadable file, a file that cannot be written, or an unknown baseline.
    """
    files = {"picture": (picture, ".png"), "csv": (csv, ".csv"), "latex": (latex, ".tex"), "md": (md, ".md")}
    wanted = {name: (Path(file), suffix) for name, (file, suffix) in files.items() if file is not None}
    for file, suffix in ((Path(out), ".html"), *wanted.values()):
        check_target(file, suffix)
        sweep(file.parent, file.name)
    paths = list(paths)
    runs = read_runs(paths)
    rows = summarise(runs, split=split, sort=sort, baseline=baseline)
    options = {name: str(file) for name, (file, _) in wanted.items()} | ({"split": split} if split else {})
    options |= {"sort": sort} if sort != "method" else {}
    options |= {"baseline": baseline} if baseline != "naive" else {}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    write_report(runs, out, shlex.join(["amr", "compare", *map(str, paths), "--out", str(out), *words]), rows)
    shown, _ = leading(rows)
    texts = {
        "csv": lambda: table_csv(rows),
        "latex": lambda: table_latex(shown, rows),
        "md": lambda: table_markdown(rows) + "\n",
    }
    for name, (file, _) in wanted.items():
        if name in texts:
            write_text(file, texts[name]())
    if picture is not None:
        write_bytes(Path(picture), image(plot_summary(runs, rows), "png"))
    return table_text(runs, rows)
