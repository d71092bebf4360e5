"""Listings of clips: how they are read, what is allowed in one, and an order that is the same on every machine."""

import csv
import hashlib
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from amr.datamodules.folders import RootFolder, is_there
from amr.datamodules.store.media import Clip
from amr.utils.errors import UserError
from amr.utils.readers import opened, printable

SPLITS = ("train", "val", "test", "all")
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
        raise UserError(f"{key}={printable(str(path))}: no such file")
    with opened(path, _BYTES) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True, skipinitialspace=True)
        try:
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                cells = [cell.strip() for cell in row]
                for cell in cells:
                    if not cell.isprintable() and any(unicodedata.category(char) == "Cc" for char in cell):
                        raise UserError(f"{where}: {cell[:80]!r} has a control character; must be text on one line")
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
        raise UserError(f"{key}={printable(str(path))}: no such file")
    with opened(path, _BYTES) as file:
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{key}={path}: not a text in UTF-8 ({error})") from error
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


def check_listing(name: str, root: RootFolder, clips: Sequence[Clip], labels: Sequence[str]) -> None:
    """Refuse the listing of a data set that cannot be used.

    Args:
        name: Name of the data set.
        root: Its folder, which says of each clip's files whether they may be read.
        clips: The listing.
        labels: Class names.

    Raises:
        UserError: It names the clip, and what is allowed.
    """
    twice = [id for id, n in Counter(clip.id for clip in clips).items() if n > 1]
    if twice:
        raise UserError(f"{name}: clip id {twice[0]!r} is listed {Counter(c.id for c in clips)[twice[0]]} times")
    allowed = set(labels)
    check_labels(labels, name)
    for clip in clips:
        where = f"{name}: clip {clip.id!r}"
        if clip.label not in allowed:
            raise UserError(f"{where}: label={clip.label!r}: must be one of {', '.join(labels)}")
        if clip.split not in SPLITS:
            raise UserError(f"{where}: split={clip.split!r}: must be one of {', '.join(SPLITS)}")
        if (clip.start or 0) < 0 or (clip.end is not None and clip.end <= (clip.start or 0)):
            raise UserError(f"{where}: start={clip.start}, end={clip.end}: must be 0 <= start < end")
        for path in clip.files.values():
            if refusal := root.refusal(path):
                raise UserError(f"{where} has file {path}, {refusal}")
    if not any(clip.split in ("train", "all") for clip in clips):
        raise UserError(f"{name}: no clip has split 'train'; splits found: {sorted({c.split for c in clips})}")


def stable_key(item: str, seed: int) -> bytes:
    """Hash of an item, by which `stable_order` sorts."""
    return hashlib.sha256(f"{seed} {item}".encode()).digest()


def stable_order(items: Iterable[str], seed: int) -> list[str]:
    """Shuffle by hash: the same on every machine and library version, whatever the order of the items."""
    return sorted(items, key=lambda item: stable_key(item, seed))
