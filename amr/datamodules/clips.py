"""Any folder of clips with a CSV."""

import math
from pathlib import Path
from typing import Any

from amr.datamodules.base import ClipDataModule
from amr.datamodules.folders import check_folder
from amr.datamodules.listing import read_cells, read_lines
from amr.datamodules.store.media import MODALITIES, Clip
from amr.utils.errors import UserError


class Clips(ClipDataModule):
    """Clips listed in a CSV.

    Its columns are `id`, `label`, `split` (train, val, test, or all: in each of the three), then either `file` or any
    of `audio_file` and `video_file`, and optionally `start` and `end`, seconds of the window to use. Files are relative
    to `root`; an empty one means that the clip lacks it. Other columns are ignored, and so are spaces around a cell.

    Args:
        csv: The listing; relative to the current folder or else to `root`.
        root: Folder of the files; None: the CSV's.
        labels: Class names in the order of the class indices, or a text file with one per line (relative to the current
            folder or else to `root`); None: those in the CSV, sorted.
        name: Name of the data set in tables and folders; None: of the root folder and the CSV.
        kwargs: See `ClipDataModule`.
    """

    def __init__(
        self,
        csv: str | Path,
        root: str | Path | None = None,
        labels: list[str] | str | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if root is None:
            self.csv, root = Path(csv), Path(csv).parent
        else:
            self.csv = find_file(csv, check_folder(Path(root), "data.root"))
        folder = Path(root).resolve().name
        self.name = name or (f"{folder}-{self.csv.stem}" if folder else self.csv.stem)
        self._labels = labels
        super().__init__(root, **kwargs)

    def list_clips(self) -> tuple[list[Clip], list[str]]:
        """Read the CSV."""
        clips = _read_csv(self.csv)
        if self._labels is None:
            return clips, sorted({clip.label for clip in clips})
        if isinstance(self._labels, list):
            labels = [label.strip() for label in self._labels]
        else:
            labels = read_lines(find_file(self._labels, self.root), "data.labels")
        if len(set(labels)) < len(labels):
            raise UserError(f"data.labels={labels}: must name each label once")
        return clips, labels


def find_file(path: str | Path, root: Path) -> Path:
    """A path relative to the current folder or else to `root`."""
    return Path(path) if Path(path).exists() else root / path


def _read_csv(path: Path) -> list[Clip]:
    rows = read_cells(path, "data.csv")
    _, columns = next(rows, ("", []))
    files = _file_columns(path, columns)
    return [_read_row(where, columns, cells, files) for where, cells in rows]


def _file_columns(path: Path, columns: list[str]) -> dict[str, str]:
    """The column that holds each modality's file."""
    for column in ("id", "label", "split"):
        if column not in columns:
            raise UserError(f"{path}: no column {column!r}; it has {', '.join(columns) or 'none'}")
    twice = [column for column in columns if column and columns.count(column) > 1]  # "" is an index that pandas wrote
    if twice:
        raise UserError(f"{path}: there are two columns {twice[0]!r}; must be one of each name")
    own = {modality: f"{modality}_file" for modality in MODALITIES if f"{modality}_file" in columns}
    if ("file" in columns) == bool(own):
        allowed = " or ".join(f"{modality}_file" for modality in MODALITIES)
        raise UserError(f"{path}: there must be a column 'file', or columns {allowed}, and not both")
    return own or dict.fromkeys(MODALITIES, "file")


def _read_row(where: str, columns: list[str], cells: list[str], files: dict[str, str]) -> Clip:
    if len(cells) != len(columns):
        raise UserError(f"{where}: another number of cells than the header has")
    row = dict(zip(columns, cells, strict=True))
    for column in ("id", "label", "split"):
        if not row[column]:
            raise UserError(f"{where}: {column!r} is empty")
    start, end = (_seconds(where, column, row.get(column, "")) for column in ("start", "end"))
    paths = {modality: Path(row[column]) for modality, column in files.items() if row[column]}
    return Clip(row["id"], row["label"], row["split"], paths, start, end)


def _seconds(where: str, column: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {column!r}={text!r}: must be a number of seconds, or empty")
    return value
