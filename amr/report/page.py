"""The page: one HTML file that loads nothing, readable on a phone, in light and in dark."""

from __future__ import annotations

import base64
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from amr.evaluation.runs import BLANK, Run
from amr.report.figures import plot_curves
from amr.report.parts.beside import CARD, link, sites_near
from amr.report.parts.settings import HEAD as SETTINGS
from amr.report.parts.settings import settings_cells
from amr.report.parts.single import CAPTION, HEAD, effect_cells, outcomes_reader, single_cells
from amr.report.robustness import ROBUSTNESS_CAPTION, plot_robustness, robustness_cells
from amr.report.style import Plot, image, is_crowded
from amr.report.table import (
    SPLIT_NAMES,
    Bold,
    Row,
    Stat,
    cells,
    explanation,
    leading,
    row_names,
    show,
    statement,
    summarise,
    union_of_modalities,
)
from amr.report.text import finding, notes_on
from amr.report.written import table_csv, table_latex
from amr.utils.errors import UserError
from amr.utils.files import write_text
from amr.utils.html import document
from amr.utils.readers import printable

NEAR = 10  # runs around which sites are looked for, and links that are not folded
Section = tuple[str, str, Sequence[str], Sequence[Sequence[str]]]


def write_report(
    runs: Sequence[Run],
    out: str | Path,
    command: str | None = None,
    rows: Sequence[Row] | None = None,
    tables: Sequence[Section] = (),
) -> None:
    """Write the page: one HTML file that loads nothing, put in place in one step.

    Figures are SVG in `img` data URIs: sharp at any size, their ids cannot collide, and an image runs no script.

    Args:
        runs: Finished and unfinished runs.
        out: The file, ending in .html; its folder is made.
        command: How the page says it can be made again; default: from the runs' paths.
        rows: The runs' summary, where it is there already.
        tables: Further sections: title, caption, head and body of a table.

    Raises:
        UserError: `out` is not an .html file or cannot be written.
    """
    out = Path(out)
    if command is None:
        command = shlex.join(["amr", "compare", *(str(run.path) for run in runs), "--out", str(out)])
    check_target(out, ".html")
    rows = summarise(runs) if rows is None else rows
    write_text(out, _page(runs, printable(command), rows, tables, _beside(runs, out.parent)))


def _page(runs: Sequence[Run], command: str, rows: Sequence[Row], tables: Sequence[Section], beside: str) -> str:
    shown_rows, further = leading(rows)
    datasets = sorted({run.dataset for run in runs})
    methods = len({row.method for row in rows})
    shown = sum(len(row.runs) for row in rows)
    of = "" if shown == len(runs) else f"{shown} of "
    title = f"Comparison on {', '.join(datasets)}: {_count(methods, 'method')}, {of}{_count(len(runs), 'run')}"
    parts = [f"<h1>{escape(title)}</h1>"]
    if rows:
        parts.append(f'<p class="finding">{escape(finding(rows))}</p>')
        parts.append(f"<p>{escape(statement(rows[0].source))}</p>")
        fusions = {row.fusion for row in rows}
        about = "" if len(fusions) > 1 else f"Fusion: {fusions.pop()}. "
        caption = f"{about}All in %, {SPLIT_NAMES[rows[0].source]} split; mean ± standard deviation over seeds."
        parts.append(_table(f"{caption} {explanation(rows)}".strip(), *cells(shown_rows, rows)))
        if further:
            lines = _table("The further rows, by accuracy.", *cells(further, rows))
            parts.append(f"<details><summary>{len(further)} further rows</summary>{lines}</details>")
        parts.append(_downloads(rows, shown_rows))
        known = outcomes_reader(rows)
        singles, single_notes = single_cells(shown_rows, rows, known)
        if singles:
            parts += ["<h2>Single runs, clip by clip</h2>", _table(CAPTION, HEAD, singles)]
        if effects := effect_cells(shown_rows, rows, known):
            said, columns, changes, more = effects
            parts += ["<h2>What AMR changes</h2>", _table(said, columns, changes)]
            single_notes += [note for note in more if note not in single_notes]
    else:
        single_notes = []
        parts.append("<p>No run has a validated epoch yet: there is nothing to compare.</p>")
    if notes := notes_on(runs, rows) + single_notes:
        parts.append(f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>')
    plots = plot_curves(runs, rows)
    for dataset in dict.fromkeys(plot.dataset for plot in plots):
        parts.append(f"<h2>{escape('Training' if len(datasets) == 1 else f'Training on {dataset}')}</h2>")
        small = (
            ""
            if is_crowded(row for row in rows if row.dataset == dataset)
            else " In the scatter, small marks are runs."
        )
        parts.append('<p class="soft">Line: mean over a method\'s seeds, at the epochs that all of them have. ')
        parts.append(f"Band: lowest to highest seed.{small}</p>")
        figures = "".join(_figure(plot) for plot in plots if plot.dataset == dataset)
        parts.append(f'<div class="plots">{figures}</div>')
    for heading, caption, head, body in tables:
        parts += [f"<h2>{escape(heading)}</h2>", _table(caption, head, body)]
    parts += [
        *_robustness(shown_rows),
        *_class_tables(shown_rows),
        *_settings(rows),
        *_run_table(rows),
        _definitions(rows[0].baseline if rows else "naive"),
    ]
    parts.append(beside)
    parts.append(f'<h2>Make this page again</h2><pre tabindex="0"><code>{escape(command)}</code></pre>')
    return document(title, "\n".join(parts), script=SCRIPT)


def _downloads(rows: Sequence[Row], shown: Sequence[Row]) -> str:
    """Links that save the table: they need no script and no server."""
    files = {
        "CSV": ("table.csv", "text/csv", table_csv(rows)),
        "LaTeX": ("table.tex", "text/plain", table_latex(shown, rows)),
    }
    links = []
    for name, (file, kind, text) in files.items():
        data = base64.b64encode(text.encode()).decode()
        links.append(f'<a class="save" download="{file}" href="data:{kind};charset=utf-8;base64,{data}">{name}</a>')
    return f"<p>Save the table: {' '.join(links)}</p>"


def _beside(runs: Sequence[Run], folder: Path) -> str:
    """Links to sites and model cards that lie near the page."""
    cards = {run.where: run.path / CARD for run in runs if (run.path / CARD).is_file()}
    sites = {str(page.parent): page for page in sites_near([folder, *(run.path for run in runs[:NEAR])])}
    parts = []
    for title, files in (("Sites", sites), ("Model cards", cards)):
        links = [
            f'<li><a href="{escape(href)}">{escape(printable(Path(name).name if name in cards else href))}</a></li>'
            for name, file in files.items()
            if (href := link(file, folder))
        ]
        if links:
            shown = f"<details><summary>{len(links)} of the runs</summary><ul>{''.join(links)}</ul></details>"
            parts.append(f"<h3>{title}</h3>{shown if len(links) > NEAR else f'<ul>{chr(10).join(links)}</ul>'}")
    return f"<h2>Beside this page</h2>{''.join(parts)}" if parts else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _figure(plot: Plot) -> str:
    data = base64.b64encode(image(plot.figure, "svg")).decode()
    return f'<figure><img alt="{escape(plot.alt)}" src="data:image/svg+xml;base64,{data}"></figure>'


SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.querySelectorAll("thead th[data-column]")];
  for (const head of heads) {
    const button = document.createElement("button"), column = Number(head.dataset.column);
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = row => row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [parseFloat(value(a)), parseFloat(value(b))];
        if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
        const order = Number.isNaN(x) ? value(b).localeCompare(value(a)) : y - x;
        return down ? order : -order;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare));
    });
  }
}
for (const image of document.querySelectorAll("figure img")) {
  const link = document.createElement("a");
  link.className = "save";
  link.download = image.alt.split(".")[0].replace(/[^A-Za-z0-9]+/g, "-") + ".svg";
  link.href = image.src;
  link.textContent = "SVG";
  image.after(link);
}
"""
"""Sorts a table by the column that is clicked, cells without a number last, and gives each figure a link to its SVG."""

TEXT_COLUMNS = frozenset({"Dataset", "Fusion", "Method", "Seeds", "Class", "Setting", "Value", "Methods", "Run"})
DOMINANCE = " dominance"


def _table(caption: str, head: Sequence[str], body: Iterable[Sequence[str]], row_head: str = "Method") -> str:
    """An HTML table of escaped cells; the cells under `row_head` head their rows, "<m> dominance" share a heading."""
    kinds = ["text" if name in TEXT_COLUMNS else "num" for name in head]
    shares = [name.removesuffix(DOMINANCE) for name in head if name.endswith(DOMINANCE)]
    rowspan = ' rowspan="2"' if shares else ""
    headings = [
        f'<th scope="col" class="{kind}" data-column="{place}"{rowspan}>{escape(name)}</th>'
        for place, (name, kind) in enumerate(zip(head, kinds, strict=True))
        if not name.endswith(DOMINANCE)
    ]
    if shares:
        before = next(index for index, name in enumerate(head) if name.endswith(DOMINANCE))
        headings.insert(before, f'<th scope="colgroup" class="group" colspan="{len(shares)}">Dominance</th>')
        headings.append("</tr><tr>")
        for place, name in enumerate(shares, before):
            headings.append(f'<th scope="col" class="num" data-column="{place}">{_breakable(name)}</th>')
    lines = []
    for line in body:
        cells = []
        for name, kind, cell in zip(head, kinds, line, strict=True):
            text = _breakable(cell)
            if kind == "num":  # may break before the ± or the interval, never inside a number
                text = re.sub(r" (?=±|\[)", "</span> <span>", f"<span>{escape(cell)}</span>")
            if isinstance(cell, Bold):
                text = f"<strong>{text}</strong>"
            tag, scope = ("th", ' scope="row"') if name == row_head else ("td", "")
            cells.append(f'<{tag}{scope} class="{kind}">{text}</{tag}>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table><caption>{escape(caption)}</caption><thead><tr>{''.join(headings)}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _breakable(text: str) -> str:
    """Escaped text that a narrow column may break after a dot, slash, plus or underscore."""
    return re.sub(r"([/+_]|\.(?!\d))", r"\1<wbr>", escape(text))


def _robustness(rows: Sequence[Row]) -> list[str]:
    """What is lost when a modality is missing or goes wrong: a table and plots, of the runs that were asked."""
    parts = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        chosen = [row for row in rows if row.dataset == dataset and any(run.robustness for run in row.runs)]
        if not chosen:
            continue
        names = dict(zip(map(id, rows), row_names(rows), strict=True))
        several = len({row.dataset for row in rows}) > 1
        parts.append(f"<h2>{escape(f'Robustness on {dataset}' if several else 'Robustness')}</h2>")
        parts.append(_table(ROBUSTNESS_CAPTION, *robustness_cells(chosen, [names[id(row)] for row in chosen])))
        figures = "".join(map(_figure, plot_robustness(chosen)))
        parts.append(f'<div class="plots">{figures}</div>')
    return parts


def _class_tables(rows: Sequence[Row]) -> list[str]:
    """Accuracy and dominance by class, a fold for each row whose runs have per_class.csv with the table's split."""
    parts, without = [], []
    for name, row in zip(row_names(rows), rows, strict=True):
        tables = [table for run in row.runs if (table := run.per_class.get(row.source))]
        if not tables:
            if any(run.per_class for run in row.runs):
                without.append(name)
            continue
        modalities = list(row.dominance)
        body = []
        for label in dict.fromkeys(label for table in tables for label in table):
            cells = [table[label] for table in tables if label in table]
            clips = sorted({int(cell["clips"]) for cell in cells if math.isfinite(cell.get("clips", math.nan))})
            stats = [
                Stat.of([cell[column] for cell in cells if column in cell])
                for column in ("acc", "AP", *(f"dominance/{m}" for m in modalities))
            ]
            counted = BLANK if not clips else str(clips[0]) if len(clips) == 1 else f"{clips[0]} to {clips[-1]}"
            body.append([label, counted, *(show(stat, len(tables)) for stat in stats)])
        head = ["Class", "Clips", "Accuracy", "AP", *(f"{m} dominance" for m in modalities)]
        caption = f"{name}, {SPLIT_NAMES[row.source]} split, {_count(len(tables), 'run')}; in %."
        parts.append(f"<details><summary>{escape(name)}</summary>{_table(caption, head, body, 'Class')}</details>")
    if without:
        names = escape(", ".join(without))
        parts.append(f"<p>per_class.csv has no rows of the {SPLIT_NAMES[rows[0].source]} split: {names}.</p>")
    return ["<h2>By class</h2>", *parts] if parts else []


def _settings(rows: Sequence[Row]) -> list[str]:
    caption, body = settings_cells(rows)
    return ["<h2>What differs between the runs</h2>", _table(caption, SETTINGS, body, "Setting")] if body else []


def _run_table(rows: Sequence[Row]) -> list[str]:
    modalities = union_of_modalities(rows)
    kinds = {"dominance": DOMINANCE} | ({"decision_share": " decides"} if any(row.decision for row in rows) else {})
    body = []
    for name, row in zip(row_names(rows), rows, strict=True):
        for run in row.runs:
            numbers = run.numbers(row.source)
            shares = [f"{kind}/{m}" if row.dominance else "" for kind in kinds for m in modalities]
            values = [f"{100 * numbers[c]:.1f}" if c in numbers else BLANK for c in ("mAP", "acc", *shares)]
            best = BLANK if run.best_epoch is None else str(run.best_epoch)
            seed = BLANK if run.seed is None else str(run.seed)
            body.append([run.where, name, seed, str(len(run.epochs)), best, *values])
    if not body:
        return []
    shares = [f"{m}{said}" for said in kinds.values() for m in modalities]
    head = ["Run", "Method", "Seed", "Epochs", "Best epoch", "mAP", "Accuracy", *shares]
    caption = (
        f"In %, {SPLIT_NAMES[rows[0].source]} split. Epochs count from 0; best: the first with the highest val/acc."
    )
    return [
        "<h2>Every run</h2>",
        f"<details><summary>{len(body)} in the table</summary>",
        _table(caption, head, body, "Run"),
        "</details>",
    ]


def _definitions(baseline: str) -> str:
    terms = {
        "Dominance": "A modality's share of the attribution, in %. Gradient x input at the encoder outputs: the "
        "gradient of the winning class's score with respect to the encoder's output, times that output, elementwise; "
        "the L2 norm of this, divided by the sum of these norms over modalities; averaged over clips. The shares of a "
        f"run add up to 100; with two modalities, 50 is balance. A unimodal run's is always 100: left blank ({BLANK}).",
        "Decides": "A modality's decision share, in %: the mean over clips of its Shapley value's share in the "
        "log-odds of the predicted class, where a missing modality has the mean encoding. It is what the output owes "
        "to the modality. Training can move dominance and leave this where it is.",
        "Accuracy": "Clips whose highest-scored class is the right one, in %.",
        "mAP": "Average precision of each class, averaged over classes, in %.",
        f"mAP vs {baseline} and Accuracy vs {baseline}": "Mean, over the seeds that a row and the baseline "
        f"({baseline}) both have, of the row's number minus the baseline's with the same seed; in brackets, its 95 % "
        "interval by Student's t with n - 1 degrees of freedom. The baseline with the row's fusion, or the dataset's "
        "only one; at least two such seeds.",
        "±": "Sample standard deviation over seeds (divided by n - 1); none for a single seed. "
        "(n=...) beside a number: only so many of the row's runs have it.",
    }
    return (
        f"<h2>Definitions</h2><dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in terms.items())}</dl>"
    )


def check_target(path: Path, suffix: str) -> None:
    """Refuse a file name that is not for this kind of file, before the work and before anything else is overwritten.

    Raises:
        UserError: The name does not end in `suffix`, or is a folder's.
    """
    if path.suffix.lower() != suffix or path.is_dir():
        raise UserError(f"{printable(str(path))}: not a file to write; must be a name ending in {suffix}")
