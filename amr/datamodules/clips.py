"""Any folder of clips with a CSV."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amr.datamodules.base import ClipDataModule
from amr.datamodules.folders import check_folder
from amr.datamodules.listing import read_cells, read_lines
from amr.datamodules.store.media import MODALITIES, Clip
from amr.datamodules.texts import TEXT, ClipTexts, TextColumn
from amr.utils.errors import UserError


class Clips(ClipDataModule):
    """Clips listed in a CSV.

    Its columns are `id`, `label`, `split` (train, val, test, or all: in each of the three), then either `file` or any
    of `audio_file` and `video_file`, and optionally `start` and `end`, seconds of the window to use. Files are relative
    to `root`; an empty one means that the clip lacks it. A column may be a text (`text`). Other columns are ignored,
    and so are spaces around a cell.

    Args:
        csv: The listing; relative to the current folder or else to `root`.
        root: Folder of the files; None: the CSV's.
        labels: Class names in the order of the class indices, or a text file with one per line (relative to the current
            folder or else to `root`); None: those in the CSV, sorted.
        name: Name of the data set in tables and folders; None: of the root folder and the CSV.
        text: The column that is a text, and how it becomes token ids: the modality `text`. None: no text.
        modalities: Modalities that the batches hold, in this order. None: audio, video, and the text if there is one.
        kwargs: See `ClipDataModule`.
    """

    def __init__(
        self,
        csv: str | Path,
        root: str | Path | None = None,
        labels: list[str] | str | None = None,
        name: str | None = None,
        text: TextColumn | None = None,
        modalities: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if root is None:
            self.csv, root = Path(csv), Path(csv).parent
        else:
            self.csv = find_file(csv, check_folder(Path(root), "data.root"))
        folder = Path(root).resolve().name
        self.name = name or (f"{folder}-{self.csv.stem}" if folder else self.csv.stem)
        self._labels, self.text, self._texts = labels, text, [""]
        super().__init__(root, modalities=self.possible() if modalities is None else modalities, **kwargs)

    def possible(self) -> tuple[str, ...]:
        """Sound, picture, and the text if there is one."""
        return MODALITIES if self.text is None else (*MODALITIES, TEXT)

    def list_texts(self, fitted: dict[str, Any] | None = None) -> ClipTexts | None:
        """The texts of the CSV."""
        if self.text is None:
            return None
        words = self.text.vocabulary
        if isinstance(words, str):
            words = read_lines(find_file(words, self.root), "data.text.vocabulary")
        return ClipTexts(self.text, self.clips, self._texts, words, fitted)

    def list_clips(self) -> tuple[list[Clip], list[str]]:
        """Read the CSV."""
        clips, self._texts = _read_csv(self.csv, None if self.text is None else self.text.column)
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


def _read_csv(path: Path, text: str | None) -> tuple[list[Clip], list[str]]:
    """The clips, and each one's text."""
    rows = read_cells(path, "data.csv")
    _, columns = next(rows, ("", []))
    files = _file_columns(path, columns)
    if text is not None and text not in columns:
        raise UserError(f"data.text.column={text}: {path} has no such column; must be of {', '.join(columns)}")
    clips, texts = [], []
    for where, cells in rows:
        clips.append(_read_row(where, columns, cells, files))
        texts.append("" if text is None else cells[columns.index(text)])
    return clips, texts


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
