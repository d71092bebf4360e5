"""The long table of measures, one row per number with its interval, and its file."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from amr.evaluation.bootstrap import Bootstrap, Interval
from amr.utils.files import write_bytes
from amr.utils.readers import read_table, reading

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("measure", "modality", "corruption")),
        ("severity", pa.int64()),
        *((name, pa.float64()) for name in ("value", "low", "high")),
        ("clips", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Row:
    """One number of the long table.

    Attributes:
        measure: Its name, as docs/robustness.md lists them; after an @, what it is restricted to, as in `@class=3`.
        modality: The one it is about; several joined by +; empty for the whole model.
        corruption: Name of the corruption; empty for none, `mean` for the mean over a modality's corruptions.
        severity: 1 to 5; None for none, and for what all of them enter.
        value: The number.
        low: Lower end of its 95 % interval over clips.
        high: Upper end.
        clips: How many it is of.
    """

    measure: str
    modality: str
    corruption: str
    severity: int | None
    value: float
    low: float
    high: float
    clips: int

    @property
    def is_detail(self) -> bool:
        """Whether it is a breakdown, of a class or another condition, or of one severity: in the file, never logged."""
        return "@" in self.measure or self.severity is not None

    @property
    def name(self) -> str:
        """`measure/modality/corruption/severity`, without the empty ones."""
        parts = (self.measure, self.modality, self.corruption, "" if self.severity is None else str(self.severity))
        return "/".join(part for part in parts if part)


class Table:
    """Rows of measures over the same clips and the same resamples."""

    def __init__(self, clips: int, resamples: int, seed: int) -> None:
        self.bootstrap, self.rows = Bootstrap(clips, resamples=resamples, seed=seed), list[Row]()

    def interval(self, values: Tensor) -> Interval:
        """The interval of a mean over clips, of which no row is made."""
        return self.bootstrap.mean(values)

    def mean(
        self,
        measure: str,
        modality: str,
        values: Tensor,
        among: Tensor | None = None,
        corruption: str = "",
        severity: int | None = None,
    ) -> None:
        """A mean over clips, or over those of `among`."""
        count = self.bootstrap.clips if among is None else int(among.sum())
        if count:
            self._append(measure, modality, corruption, severity, self.bootstrap.mean(values, among), count)

    def means(self, names: Sequence[tuple[str, str, str]], values: Tensor) -> None:
        """Means over clips of the columns of values (N, K); each has a measure, a modality and a corruption."""
        for name, found in zip(names, self.bootstrap.means(values), strict=True):
            self._append(*name, None, found, self.bootstrap.clips)

    def class_means(self, measure: str, modality: str, values: Tensor, labels: Tensor, classes: int) -> None:
        """Mean of values (N,) over the clips of each class that has any: rows `<measure>@class=<c>`, c from 0."""
        counts = torch.bincount(labels, minlength=classes).tolist()
        found = self.bootstrap.each(partial(_class_means, values.double(), labels, classes))
        for c, (interval, count) in enumerate(zip(found, counts, strict=True)):
            self._append(f"{measure}@class={c}", modality, "", None, interval, count)

    def add(self, measure: str, modality: str, statistic: Callable[[Tensor], Tensor], clips: int | None = None) -> None:
        """Adds a row with any statistic of the clips."""
        self._append(measure, modality, "", None, self.bootstrap(statistic), clips or self.bootstrap.clips)

    def _append(
        self, measure: str, modality: str, corruption: str, severity: int | None, found: Interval, clips: int
    ) -> None:
        if found.value == found.value:
            self.rows.append(Row(measure, modality, corruption, severity, found.value, found.low, found.high, clips))


def _class_means(values: Tensor, labels: Tensor, classes: int, weights: Tensor) -> Tensor:
    """(R, C); NaN for a class without any weight."""
    sums, total = weights.new_zeros(2, len(weights), classes)
    sums.index_add_(1, labels, weights * values)
    total.index_add_(1, labels, weights)
    return torch.div(sums, total)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes the long table as parquet, whole or not at all.

    Raises:
        UserError: The place cannot be written.
    """
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], SCHEMA), buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def read_rows(path: Path) -> list[Row]:
    """Reads what `write_rows` wrote.

    Raises:
        UserError: It is not such a file.
    """
    allowed = "a table of robustness, as amr test writes it"
    with reading(path, allowed):
        table = pa.Table.from_pylist(read_table(path, allowed, SCHEMA.names, SCHEMA.names), SCHEMA)
        return [Row(**row) for row in table.to_pylist()]
