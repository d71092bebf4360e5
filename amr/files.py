"""Files that are there whole or not at all, whatever ends the process that writes them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from amr.errors import UserError


@contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends: a reader sees the old one or the new one.

    It lies beside the target, on the same file system, and is synced before it is renamed. It is removed if the block
    fails, for a disk that is full shall not stay so.

    Raises:
        OSError: The place cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """As `atomically`, for files whose failure is to be told to the user; the folder is made.

    Raises:
        UserError: The place cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomically(path) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; allowed: a writable place with room for it") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file in one step; its folder is made.

    Raises:
        UserError: The place cannot be written, or the disk is full.
    """
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, in UTF-8 and with its line ends as they are, in one step; its folder is made.

    Raises:
        UserError: The place cannot be written, or the disk is full.
    """
    write_bytes(path, text.encode())


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run in which a checkpoint lies, if it lies in one; the current folder may be within it."""
    return (checkpoint if len(checkpoint.parts) > 2 else checkpoint.resolve()).parent.parent
