"""Decode every clip once into the store's shards, in parallel, and carry on where a killed run stopped."""

import csv
import fcntl
import multiprocessing
import multiprocessing.connection
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from amr.datamodules.media import Clip, Decoded, DecodeOptions, decode
from amr.datamodules.store import read_key, read_problems, shard_key, shard_path, write_shard
from amr.errors import UserError

T = TypeVar("T")


@dataclass
class PrepareReport:
    """What `prepare` found.

    Attributes:
        total: Clips in the listing.
        ok: Clips without any problem.
        decoded: Clips decoded by this run; the others lay in finished shards.
        reasons: Number of clips by (modality, reason), the reason without its details.
    """

    total: int = 0
    ok: int = 0
    decoded: int = 0
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, problems: dict[str, dict[str, str]]) -> None:
        """Count a shard's clips."""
        self.total += len(problems)
        self.ok += sum(not p for p in problems.values())
        self.reasons += count_reasons(problems.values())

    def __str__(self) -> str:
        text = f"{self.ok} of {self.total} clips are sound"
        return f"{text}; {describe_reasons(self.reasons)}" if self.reasons else text


def count_reasons(problems: Iterator[dict[str, str]] | Any) -> Counter[tuple[str, str]]:
    """Number of clips by (modality, reason without details)."""
    return Counter((m, reason.split(":")[0]) for clip in problems for m, reason in clip.items())


def describe_reasons(reasons: Counter[tuple[str, str]]) -> str:
    """One line, the most frequent reason first."""
    return ", ".join(f"{modality} {reason}: {n}" for (modality, reason), n in reasons.most_common())


def prepare(
    clips: Sequence[Clip],
    store: Path,
    options: DecodeOptions,
    *,
    root: Path,
    workers: int,
    shard_size: int = 64,
    executor: Executor | None = None,
    recheck: bool = False,
    locate: Callable[[Clip], Clip] = lambda clip: clip,
) -> PrepareReport:
    """Bring the store up to date with the clips.

    A shard is the unit of work. Finished ones, known by their key alone, are left as they are. Shards that no clip
    needs any more are deleted.

    Args:
        clips: What the store shall hold.
        store: Its folder; made if absent.
        options: How to decode.
        root: Folder that the clips' files are relative to.
        workers: Processes; 0 decodes in this one.
        shard_size: Clips a shard.
        executor: Runs the work instead of a process pool of our own, for instance a cluster's; its workers must see
            `root` and `store` under the same paths.
        recheck: Also decode the shards again of whose missing files one has appeared since.
        locate: Gives a clip its files, where the listing leaves them out; called only for clips that are about to be
            decoded or rechecked. A shard's key has the listed files, so that clips of such a listing which move or go
            after they were decoded make nothing stale.

    Returns:
        The report, which is also written to `report.csv` in the store (id, modality, reason: a row a problem).

    Raises:
        UserError: The store cannot be written, or a worker died.
    """
    clips = sorted(clips, key=lambda clip: clip.id)  # the listing's order does not matter
    shards = [clips[i : i + shard_size] for i in range(0, len(clips), shard_size)]
    plan = [(shard_path(store, i), shard_key(shard, options), shard) for i, shard in enumerate(shards)]
    keep = {path for path, _, _ in plan}
    if _shards(store) == keep and (store / "report.csv").is_file() and not _to_do(plan, root, recheck, locate):
        return _report(plan)  # a finished store may be read-only
    try:
        store.mkdir(parents=True, exist_ok=True)
        with _locked(store):
            todo = _to_do(plan, root, recheck, locate)  # another process may have worked while this one waited
            for path in _shards(store) - keep:  # of an older plan, and temporary files of a killed run
                path.unlink()
            decoded = sum(len(shard) for _, _, shard in todo)
            progress = Progress(f"prepare {store.name}", decoded, "clips")
            tasks = [(path, key, [locate(clip) for clip in shard], root, options) for path, key, shard in todo]
            for count in run_tasks(_prepare_shard, tasks, workers=workers, executor=executor):
                progress.advance(count)
            report = _report(plan)
            report.decoded = decoded
            _write_report(store, plan)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"{store}: cannot write the store ({error.strerror}); name another folder as `store`"
        ) from error
    print(f"{store}: {report}", file=sys.stderr)
    return report


Plan = list[tuple[Path, str, list[Clip]]]


def _to_do(plan: Plan, root: Path, recheck: bool, locate: Callable[[Clip], Clip]) -> Plan:
    return [
        (path, key, shard)
        for path, key, shard in plan
        if read_key(path) != key or (recheck and _has_appeared(path, shard, root, locate))
    ]


def _shards(store: Path) -> set[Path]:
    """The store's own shards, and what a killed run left of one; anything else in the folder is somebody else's."""
    ours = re.compile(r"shard-\d{5,}\.arrow")
    shards = {path for path in store.glob("shard-*") if ours.fullmatch(path.name) and read_key(path) is not None}
    return shards | {path for path in store.glob("shard-*.tmp") if ours.match(path.name)}


def _has_appeared(path: Path, shard: list[Clip], root: Path, locate: Callable[[Clip], Clip]) -> bool:
    """Whether a file that was missing when the shard was written is there now."""
    clips = {clip.id: clip for clip in shard}
    return any(
        reason == "file missing" and (root / locate(clips[id]).files[modality]).is_file()
        for id, problems in read_problems(path).items()
        for modality, reason in problems.items()
    )


def _prepare_shard(path: Path, key: str, clips: list[Clip], root: Path, options: DecodeOptions) -> int:
    rows: list[tuple[str, Decoded]] = [(clip.id, decode(clip, root, options)) for clip in clips]
    write_shard(path, key, rows)
    return len(rows)


def _report(plan: Plan) -> PrepareReport:
    report = PrepareReport()
    for path, _, _ in plan:
        report.add(read_problems(path))
    return report


def _write_report(store: Path, plan: Plan) -> None:
    temporary = store / "report.csv.tmp"
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "modality", "reason"])
        for path, _, _ in plan:
            for id, problems in read_problems(path).items():
                writer.writerows([id, modality, reason] for modality, reason in problems.items())
    temporary.replace(store / "report.csv")


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """One `prepare` at a time in a store; the lock goes with the process, however it ends."""
    with (store / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_tasks(
    function: Callable[..., T], tasks: Sequence[tuple[Any, ...]], *, workers: int, executor: Executor | None = None
) -> Iterator[T]:
    """Yield `function(*task)` for each task as they are done, in no fixed order.

    Raises:
        UserError: A worker process died.
    """
    workers = min(workers, len(tasks))
    if executor is None and workers <= 1:  # a process of its own would start for nothing
        yield from (function(*task) for task in tasks)
        return
    # spawn: the calling process may hold CUDA and threads, which do not survive a fork.
    pool = executor or ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _exit_with_parent)
    try:
        for future in as_completed([pool.submit(function, *task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed (out of memory?); run the same command again: finished parts are kept"
        ) from error
    finally:
        if executor is None:
            pool.shutdown(cancel_futures=True)


def _exit_with_parent() -> None:
    """Without this the workers of a killed process would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Progress:
    """Done, rate and time left on stderr: one rewritten line on a terminal, else a line every half minute."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self.started = self.printed = time.monotonic()

    def advance(self, count: int) -> None:
        """Add to what is done."""
        self.done += count
        now, terminal, last = time.monotonic(), sys.stderr.isatty(), self.done >= self.total
        if now - self.printed < (0.2 if terminal else 30) and not last:
            return
        self.printed = now
        rate = self.done / max(now - self.started, 1e-9)
        line = f"{self.title}: {self.done}/{self.total} {self.unit}, {rate:.1f} {self.unit}/s"
        line += "" if last else f", {(self.total - self.done) / rate:.0f} s left"
        print(f"\r\033[K{line}" if terminal else line, end="\n" if last or not terminal else "", file=sys.stderr)
        sys.stderr.flush()
