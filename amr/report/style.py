"""How the figures of a comparison look. Matplotlib is imported by the functions that draw; pyplot never."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from amr.report.table import Row, row_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Okabe and Ito's colours without the yellow, which is lost on white. 7 colours, 4 dashes: 28 distinct lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
MOST = 8  # rows that one panel can show; more get a small panel per method
PLAIN: dict[str, Any] = {"color": COLOURS[0], "linestyle": "-"}
WITH_AMR: dict[str, Any] = {"color": COLOURS[1], "linestyle": (0, (4, 1.5))}
NAIVE: dict[str, Any] = {"color": "#999999", "linestyle": "-", "linewidth": 1.1}
EVEN: dict[str, Any] = {"color": "#555555", "linewidth": 0.9, "linestyle": (0, (1, 2))}  # the line of equal shares
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 10,
    "text.parse_math": False,  # a "$" in a name is a dollar
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "svg.fonttype": "path",
    "svg.hashsalt": "amr",  # the same ids each time: the same runs give the same bytes
}


@dataclass(frozen=True)
class Plot:
    """A figure, the dataset it is about, its title, and its content in words."""

    dataset: str
    title: str
    alt: str
    figure: Figure


def is_crowded(rows: Iterable[Row]) -> bool:
    """Whether a dataset's rows are too many for one panel."""
    return len(list(rows)) > MOST


def line_look(index: int) -> dict[str, Any]:
    """Colour, dashes and marker of a row."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def add_legend(figure: Any, rows: Sequence[Row], lines: Mapping[int, Any], columns: int, size: float = 9) -> None:
    """Name the rows that have a line, below the figure."""
    labels = [f" {label}" if label.startswith("_") else label for label in labels_of(rows)]  # matplotlib hides "_..."
    shown = sorted(lines)
    figure.legend(
        [lines[i] for i in shown],
        [labels[i] for i in shown],
        loc="outside lower center",
        ncols=legend_columns(rows, columns),
        fontsize=size,
    )


def labels_of(rows: Sequence[Row]) -> list[str]:
    """The rows' names, short enough for a legend."""
    return [shorten(name, 40) for name in row_names(rows)]


def shorten(name: str, most: int) -> str:
    """A name of at most that many characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def legend_columns(rows: Sequence[Row], most: int) -> int:
    """Columns of the legend: fewer than `most` for long names, and filled evenly."""
    fit = min(most, max(1, most * 22 // max(map(len, labels_of(rows)), default=1)))
    return math.ceil(len(rows) / math.ceil(len(rows) / fit)) if rows else 1


def row_groups(rows: Sequence[Row]) -> list[list[int]]:
    """Places of the rows that share a small panel: a method without and with AMR."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault((row.method,) if row.unimodal else (row.fusion, row.base), []).append(i)
    return list(groups.values())


def small_figure(rows: Sequence[Row]) -> Figure:
    """A figure for one panel, with room for the rows' legend below."""
    return new_figure(3.0 + 0.17 * math.ceil(len(rows) / legend_columns(rows, 2)))


def new_figure(height: float) -> Figure:
    """A figure as wide as a column of the page, that many inches high."""
    from matplotlib.figure import Figure

    return Figure(figsize=(4.6, height), layout="constrained")


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib in this module's style, whatever the user's matplotlibrc says; put back at the end."""
    from matplotlib import style

    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box for a name in a script DejaVu lacks
        yield


def image(figure: Figure, kind: Literal["svg", "png"]) -> bytes:
    """The figure without dates or program names, and for SVG without the document type's address."""
    buffer = io.BytesIO()
    nothing = ("Date", "Creator", "Format", "Type") if kind == "svg" else ("Software",)
    with drawing():
        figure.savefig(buffer, format=kind, metadata=dict.fromkeys(nothing))
    data = buffer.getvalue()
    return data[data.index(b"<svg") :] if kind == "svg" else data
