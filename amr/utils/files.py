"""Files that are there whole or not at all, whatever ends the process that writes them."""

import errno
import fcntl
import glob
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, TextIO

from amr.utils.errors import UserError


@contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends: a reader sees the old one or the new one.

    It lies beside the target, on the same file system, and is synced before it is renamed. It is removed if the block
    fails, for a disk that is full shall not stay so.

    Raises:
        OSError: The place cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")
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


def _host() -> str:
    """This machine's name, as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:64]


def sweep(folder: Path, name: str = "*") -> None:
    """Removes what dead processes of this machine left half written; other machines' may be at work.

    Args:
        folder: Where; below it, too, if `name` is a pattern.
        name: The target's name; by default any.
    """
    left = re.compile(rf"\..+\.{re.escape(_host())}\.(\d+)\.tmp")
    pattern = f".{name if name == '*' else glob.escape(name)}.{_host()}.*.tmp"
    for path in folder.rglob(pattern) if name == "*" else folder.glob(pattern):
        match = left.fullmatch(path.name)
        if match and not _lives(int(match[1])):
            with suppress(OSError):
                path.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return process > 0


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Same as `atomically`, for files whose failure is reported to the user; creates the folder.

    Raises:
        UserError: The place cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomically(path) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; must be a writable place with room for it") from error


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


_HELD: set[tuple[int, str]] = set()
"""Process and folder of each lock: a forked child inherits the set, but no lock."""


@contextmanager
def locked(folder: Path, instead: str, *, wait: bool = False, beside: bool = False) -> Iterator[None]:
    """Keeps every other process out of a folder until the block ends or this process dies, however it dies.

    The lock is POSIX's, on `.lock` in the folder, and says who holds it. A forked child does not inherit it: a loader's
    worker that outlives a killed run by some seconds must not keep the folder. A process that holds the folder already
    is let in again. A folder that holds no file but the lock is removed at the end.

    Args:
        folder: Made if absent.
        instead: Advice for a second process, the end of its message, such as "choose another --name".
        wait: Wait for the other process to end instead of refusing.
        beside: Put the lock's file beside the folder, which is then not made, and remove it at the end: for a folder
            that is given to others as it is.

    Raises:
        UserError: Another process holds the folder (it is named), or the folder cannot be written.
    """
    place = os.getpid(), str(folder.resolve())
    if place in _HELD:  # closing a second file on it would free the first one's lock
        yield
        return
    lock = folder.resolve().with_name(f".{folder.resolve().name}.lock") if beside else folder / ".lock"
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{folder}: {error.strerror or error}; must be a folder that can be written") from error
        with file:
            _take(file, folder, instead, wait)
            if os.fstat(file.fileno()).st_nlink == 0:  # its holder has removed it meanwhile
                continue
            holder = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n"
            with suppress(OSError):  # on a full disk, the lock holds without it
                file.truncate(0)
                os.write(file.fileno(), holder.encode())
            _HELD.add(place)
            try:
                yield
            finally:
                _HELD.discard(place)
                with suppress(OSError):  # a full disk, or a folder that is gone
                    file.truncate(0)
                    if beside:
                        lock.unlink()
                    else:
                        _remove_if_empty(folder)
            return


def _remove_if_empty(folder: Path) -> None:
    """Removes a folder that holds no file but the lock."""
    lock = folder / ".lock"
    if any(path != lock and not path.is_dir() for path in folder.rglob("*")):
        return
    lock.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):  # what is inside comes first
        path.rmdir()
    folder.rmdir()


def _take(file: TextIO, folder: Path, instead: str, wait: bool) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise UserError(f"{folder}: cannot be locked ({error.strerror})") from error
        file.seek(0)
        holder = file.read(500).strip() or "another process"
        raise UserError(f"{folder} is in use by {holder}; wait until it ends, or {instead}") from error
