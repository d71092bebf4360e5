"""Reads listings: CSV files that people and spreadsheets write."""

import csv
import io
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from amr.datamodules.folders import is_there
from amr.utils.errors import UserError
from amr.utils.readers import opened, printable

_BYTES = 256 << 20  # of a listing; VGGSound's has 8 MB


def read_cells(path: Path, key: str) -> Iterator[tuple[str, list[str]]]:
    """The lines of a CSV that have anything in them.

    Spaces around a cell do not count.

    Args:
        path: A CSV in UTF-8.
        key: The configuration key that names it, for messages.

    Yields:
        Where the line is, for messages, and its cells.

    Raises:
        UserError: No such file, not a CSV in UTF-8, or a cell with a control character, such as NUL.
    """
    if not is_there(path):
        raise UserError(f"{key} {printable(str(path))}: no such file")
    with opened(path, _BYTES) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True, skipinitialspace=True)
        try:
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                cells = [cell.strip() for cell in row]
                for cell in cells:
                    if not cell.isprintable() and any(unicodedata.category(char) == "Cc" for char in cell):
                        raise UserError(f"{where}: {cell[:80]!r} has a control character; allowed: text on one line")
                if any(cells):
                    yield where, cells
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}, line {reader.line_num}: not a CSV in UTF-8 ({printable(str(error))})") from error


def read_lines(path: Path, key: str) -> list[str]:
    """The lines of a text file that are not empty, without spaces around them.

    Raises:
        UserError: No such file, or not a text in UTF-8.
    """
    if not is_there(path):
        raise UserError(f"{key} {printable(str(path))}: no such file")
    with opened(path, _BYTES) as file:
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{key} {path}: not a text in UTF-8 ({error})") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def check_labels(labels: Iterable[str], where: str) -> None:
    """Refuse labels that differ and look alike: by spaces within, invisible characters, or how an accent is written.

    Raises:
        UserError: It names two of them.
    """
    seen: dict[str, str] = {}
    for label in labels:
        visible = "".join(char for char in unicodedata.normalize("NFKC", label) if unicodedata.category(char) != "Cf")
        other = seen.setdefault(" ".join(visible.split()), label)
        if other != label:
            raise UserError(f"{where}: labels {other!a} and {label!a} look alike; write one label one way")
