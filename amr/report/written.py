"""The table for other programs: CSV with full numbers, and LaTeX with booktabs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from amr.evaluation.statistics import Difference
from amr.report.table import Bold, Row, Stat, baseline_of, cells, difference, union_of_modalities

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "→": r"$\to$", "<": r"$<$", ">": r"$>$", "\N{EN DASH}": "--", "\N{MINUS SIGN}": "$-$"},
}


def table_csv(rows: Sequence[Row]) -> str:
    """The table as CSV: a line per row, numbers in percent and unrounded, empty where something was not measured.

    Columns: `dataset`, `fusion`, `method`, `title`, `split`, `seeds` (separated by spaces), `runs`; then of `accuracy`,
    `mAP`, `dominance_<m>` and `decision_share_<m>` the mean, `_sd` over seeds and `_n` seeds; then of
    `accuracy_vs_<baseline>` and `mAP_vs_<baseline>` the mean paired difference in points, the ends of its 95 % interval
    `_low` and `_high`, and `_n` seeds.

    Args:
        rows: Rows of `summarise`.
    """
    lines = []
    for row in rows:
        stats: dict[str, Stat | None] = {"accuracy": row.accuracy, "mAP": row.mean_ap}
        for kind, shares in (("dominance", row.dominance), ("decision_share", row.decision)):
            stats |= {f"{kind}_{m}": shares.get(m) for m in union_of_modalities(rows)}
        line: dict[str, Any] = {key: getattr(row, key) for key in ("dataset", "fusion", "method", "title")}
        line |= {"split": row.source, "seeds": " ".join("" if s is None else str(s) for s in row.seeds)}
        line["runs"] = len(row.runs)
        for name, stat in stats.items():
            sd = stat.sd if stat else None
            line |= {name: _percent(stat.mean if stat else None), f"{name}_sd": _percent(sd)}
            line[f"{name}_n"] = stat.n if stat else ""
        for metric in ("acc", "mAP"):
            gain = difference(row, baseline_of(row, rows), metric)
            line |= _interval(f"{'accuracy' if metric == 'acc' else metric}_vs_{row.baseline}", gain)
        lines.append(line)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def table_latex(shown: Sequence[Row], rows: Sequence[Row] | None = None) -> str:
    """The table as a LaTeX `tabular` for the package booktabs, to be put into a `table` environment.

    Args:
        shown: Rows of the table.
        rows: All rows, which they are compared with; None if these are all.
    """
    head, body = cells(shown, rows)
    texts = ("Dataset", "Fusion", "Method", "Seeds")
    lines = [
        "% \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{''.join('l' if name in texts else 'r' for name in head)}}}",
        "\\toprule",
        _line(head),
        "\\midrule",
        *map(_line, body),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(map(_cell, cells)) + r" \\"


def _cell(cell: str) -> str:
    text = "".join(_LATEX.get(character, character) for character in cell)
    return f"\\textbf{{{text}}}" if isinstance(cell, Bold) else f"{{{text}}}" if text.startswith("[") else text


def _percent(value: float | None) -> float | str:
    return "" if value is None else 100 * value


def _interval(name: str, gain: Difference | None) -> dict[str, Any]:
    found = {"": gain.mean, "_low": gain.low, "_high": gain.high} if gain else dict.fromkeys(("", "_low", "_high"))
    return {**{f"{name}{end}": _percent(value) for end, value in found.items()}, f"{name}_n": gain.n if gain else ""}
