"""A data set's folder: which paths in it may be read, and where it lies if not where it was looked for."""

import os
import stat
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path

from amr.utils.errors import UserError

_LONGEST = 4096  # characters of a path; no system has longer ones
_LOOKED_AT = 1000  # folders in which files are looked for
_LOOKED_FOR = 20  # files: some of a data set may be lacking


def check_folder(folder: Path, key: str) -> Path:
    """The folder, if it is one.

    Raises:
        UserError: It does not exist or is a file.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder")
    return folder


def is_there(path: Path) -> bool:
    """Whether a file or folder exists; false for names that the system refuses."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long a name, or a folder that may not be read
        return False


class RootFolder:
    """Checks whether a path stays inside a folder, with links followed; one or two system calls per path.

    Args:
        root: The folder.
        follow_links: Whether to follow links that lead out of it. None: those that the folder's owner made.
    """

    def __init__(self, root: Path, follow_links: bool | None) -> None:
        self.root, self.follow_links = root, follow_links
        self.base = root.resolve()
        self._owner = self.base.stat().st_uid if self.base.exists() else None
        self._folder = cache(self._refusal_of_folder)

    def refusal(self, path: Path) -> str:
        """Why a relative path may not be read; empty if it may, or is not there."""
        leaves = f"which leaves the root folder {self.root}"
        if path.is_absolute() or ".." in path.parts:
            return f"{leaves}; must be relative to data.root: set that to a folder above all files"
        if len(str(path)) > _LONGEST:
            return ""
        reason = self._folder(path.parent) or self._refusal_of_link(path)
        return f"{leaves}: {reason}" if reason else ""

    def _refusal_of_folder(self, folder: Path) -> str:
        for part in [*list(folder.parents)[-2::-1], folder]:  # from the root on, which is not asked
            if reason := self._refusal_of_link(part):
                return reason
        return ""

    def _refusal_of_link(self, path: Path) -> str:
        place = self.base / path
        try:
            status = place.lstat()
            if not stat.S_ISLNK(status.st_mode):
                return ""
            target = place.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # not there, too long a name, links in a circle: nothing to read
            return ""
        if target.is_relative_to(self.base) or self.follow_links:
            return ""
        if self.follow_links is None and status.st_uid == self._owner:
            return ""
        whose = "" if self.follow_links is False else ", which the folder's owner did not make"
        return f"{path} is a link to {target}{whose}; data.follow_links: true follows it"


def found_elsewhere(root: Path, paths: Sequence[Path]) -> str:
    """End of a message that `root` has none of the paths: a near place that has one of the first, or nothing."""
    for folder in islice(_near(root), _LOOKED_AT):
        if any(is_there(folder / path) for path in paths[:_LOOKED_FOR]):
            return f"; found under {folder}: use --data.root {folder}"
    return ""


def _near(root: Path) -> Iterator[Path]:
    """Folders above, in, and beside a folder."""
    parents = list(root.absolute().parents)[:3]
    yield from parents
    for folder in (root, *parents[:1]):
        level = [folder]
        for _ in range(2):
            level = [below for above in level for below in _subfolders(above)]
            yield from level


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    return [folder / name for name in names[:_LOOKED_AT]]
