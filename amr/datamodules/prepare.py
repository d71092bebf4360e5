"""Decode every clip once into the store's shards, in parallel, and carry on where a killed run stopped."""

import csv
import errno
import fcntl
import io
import json
import re
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amr.datamodules.media import MODALITIES, Clip, Decoded, DecodeOptions, decode, without_details
from amr.datamodules.store import is_sound, read_key, read_problems, read_rows, shard_key, shard_path, write_shard
from amr.datamodules.summary import write_summary
from amr.datamodules.work import Progress, Task, check_not_in_worker, run_tasks
from amr.errors import UserError
from amr.files import atomically

MISSING = "file missing"
KILLER = "killed the worker"
_SAMPLE = 8  # clips that are decoded to estimate the store's size
_SMALL = 256  # fewer clips than this are not worth an estimate
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FUTILE = 3  # deaths of workers in a row that did not even reach a clip


@dataclass
class PrepareReport:
    """What `prepare` found.

    Attributes:
        total: Clips in the listing.
        ok: Clips without any problem.
        decoded: Clips decoded by this run; the others lay in finished shards.
        reasons: Number of clips by (modality, reason), the reason without its details.
        bytes: Size of the store's shards.
        seconds: What decoding took; 0: nothing was to be done.
        deaths: Worker processes that died at it.
    """

    total: int = 0
    ok: int = 0
    decoded: int = 0
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes: int = 0
    seconds: float = 0.0
    deaths: int = 0

    def add(self, problems: Mapping[str, Mapping[str, str]]) -> None:
        """Count a shard's clips."""
        self.total += len(problems)
        self.ok += sum(not p for p in problems.values())
        self.reasons += count_reasons(problems.values())

    def __str__(self) -> str:
        text = f"{self.ok} of {self.total} clips are sound"
        return f"{text}; {describe_reasons(self.reasons)}" if self.reasons else text


def count_reasons(problems: Iterable[Mapping[str, str]]) -> Counter[tuple[str, str]]:
    """Number of clips by (modality, reason without details)."""
    return Counter((m, without_details(reason)) for clip in problems for m, reason in clip.items())


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
    needs any more are deleted. A shard whose worker process dies is given to another one; a clip at which two have died
    is left out, with that for its reason.

    Args:
        clips: What the store shall hold.
        store: Its folder; made if absent.
        options: How to decode.
        root: Folder that the clips' files are relative to.
        workers: Processes; 0 decodes in this one.
        shard_size: Clips a shard.
        executor: Runs the work instead of processes of our own, for instance a cluster's; its workers must see `root`
            and `store` under the same paths.
        recheck: Also decode clips whose missing files have appeared since; the others in their shards are kept.
        locate: Gives a clip its files, where the listing leaves them out; called only for clips that are about to be
            decoded or rechecked. A shard's key has the listed files, so that clips of such a listing which move or go
            after they were decoded make nothing stale.

    Returns:
        The report, which is also written to the store: `report.csv` (id, modality, reason: a row a problem) and
        `report.html`.

    Raises:
        UserError: The store cannot be written or its disk is too small, or workers die before they reach a clip.
    """
    store, root = store.absolute(), root.absolute()  # a cluster's workers start elsewhere
    plan = _plan(clips, store, options, shard_size)
    told = (store / "report.csv").is_file() and (store / "report.html").is_file()
    if told and _shards(store) == {path for path, _, _ in plan} and not _to_do(plan, root, recheck, locate):
        return _report(plan)  # a finished store may be read-only
    check_not_in_worker()
    try:
        store.mkdir(parents=True, exist_ok=True)
        with _locked(store):
            report = _fill(plan, store, options, root, workers, executor, recheck, locate)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"{store}: cannot write the store ({error.strerror}); name another folder as `store`"
        ) from error
    except OSError as error:
        if error.errno not in _FULL:
            raise
        done = sum(len(shard) for path, key, shard in plan if read_key(path) == key)
        raise UserError(
            f"{store}: the disk is full after {done} of {len(clips)} clips; finished shards are kept: make room and run"
            " the same command again, or name another folder as `store`"
        ) from error
    print(f"{store}: {report}", file=sys.stderr)
    return report


def verify(clips: Sequence[Clip], store: Path, options: DecodeOptions, *, shard_size: int = 64) -> int:
    """Reread every byte of the store.

    Args:
        clips: What the store shall hold.
        store: Its folder.
        options: How the clips were decoded.
        shard_size: Clips a shard.

    Returns:
        Number of shards, which are all there, up to date and sound.

    Raises:
        UserError: Some are not; it names them.
    """
    plan = _plan(clips, store, options, shard_size)
    damaged, stale = [], []
    progress = Progress(f"verify {store.name}", len(plan), "shards")
    for path, key, _ in plan:
        if path.is_file() and not is_sound(path):
            damaged.append(path.name)
        elif read_key(path) != key:
            stale.append(path.name)
        progress.advance(1)
    if damaged:
        raise UserError(
            f"{store}: {_some(damaged)} changed since written (a failing disk?); delete and run prepare again"
        )
    if stale:
        raise UserError(f"{store}: {_some(stale)} missing or of other clips or options; run prepare again")
    print(f"{store}: {len(plan)} shards with {len(clips)} clips are as they were written", file=sys.stderr)
    return len(plan)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{len(names)} shard{'s' * (len(names) > 1)} ({', '.join(names[:10])}{more})"


Plan = list[tuple[Path, str, Sequence[Clip]]]


def _plan(clips: Sequence[Clip], store: Path, options: DecodeOptions, shard_size: int) -> Plan:
    """The shards: path, key, clips."""
    ordered = sorted(clips, key=lambda clip: clip.id)  # the listing's order does not matter
    shards = [ordered[i : i + shard_size] for i in range(0, len(ordered), shard_size)]
    return [(shard_path(store, i), shard_key(shard, options), shard) for i, shard in enumerate(shards)]


def _fill(
    plan: Plan,
    store: Path,
    options: DecodeOptions,
    root: Path,
    workers: int,
    executor: Executor | None,
    recheck: bool,
    locate: Callable[[Clip], Clip],
) -> PrepareReport:
    todo = _to_do(plan, root, recheck, locate)  # another process may have worked while this one waited
    for path in _shards(store) - {path for path, _, _ in plan}:  # of an older plan, or left by a killed run
        path.unlink()
    for path in store.glob("shard-*.journal"):  # what a killed run was at is no fault of the clip's
        path.unlink()
    decoded = sum(len(shard) for _, _, shard in todo)
    if decoded >= _SMALL:
        _check_space(plan, todo, store, options, root, workers, executor, locate)
    progress = Progress(f"prepare {store.name}", decoded, "clips")
    tasks = ((path, key, [locate(clip) for clip in shard], root, options) for path, key, shard in todo)
    deaths = _Deaths()
    for count in run_tasks(_prepare_shard, tasks, workers=workers, executor=executor, again=deaths.again):
        progress.advance(count)
    report = _report(plan)
    report.decoded, report.seconds, report.deaths = decoded, progress.seconds, deaths.total
    _write_report(store, plan)
    write_summary(store, report, _clips_with_problems(plan))
    return report


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
    return shards | set(store.glob(".shard-*.arrow.*.tmp"))


def _has_appeared(path: Path, shard: Sequence[Clip], root: Path, locate: Callable[[Clip], Clip]) -> bool:
    """Whether a file that was missing when the shard was written is there now."""
    clips = {clip.id: clip for clip in shard}
    return any(
        reason == MISSING and (root / locate(clips[id]).files[modality]).is_file()
        for id, problems in read_problems(path).items()
        for modality, reason in problems.items()
    )


def _prepare_shard(path: Path, key: str, clips: list[Clip], root: Path, options: DecodeOptions) -> int:
    """Decode a shard's clips. Of a shard that is up to date, only those with missing files: the others' may be gone."""
    kept = {id: d for id, d in read_rows(path) if MISSING not in d.problems.values()} if read_key(path) == key else {}
    journal = path.with_suffix(".journal")
    killers = _killers(journal)
    rows: list[tuple[str, Decoded]] = []
    with journal.open("a") as log:
        for clip in clips:
            if clip.id in kept:
                rows.append((clip.id, kept[clip.id]))
            elif clip.id in killers:
                rows.append((clip.id, Decoded(problems=dict.fromkeys(MODALITIES, KILLER))))
            else:
                _note(log, "+", clip.id)
                rows.append((clip.id, decode(clip, root, options)))
                _note(log, "-", clip.id)
    write_shard(path, key, rows)
    journal.unlink()
    return len(rows)


def _note(log: Any, sign: str, id: str) -> None:
    log.write(f"{sign}{json.dumps(id)}\n")
    log.flush()  # to the system, which outlives the process


def _killers(journal: Path) -> set[str]:
    """Clips that were begun twice more often than ended: workers died at them."""
    if not journal.is_file():
        return set()
    balance: Counter[str] = Counter()
    for line in journal.read_text().splitlines():
        balance[json.loads(line[1:])] += 1 if line[0] == "+" else -1
    return {id for id, count in balance.items() if count >= 2}


class _Deaths:
    """Says whether to try a shard again whose worker died: as long as the attempts get to a clip."""

    def __init__(self) -> None:
        self.total = 0
        self._seen: dict[Path, tuple[int, int]] = {}  # size of the journal, deaths in which it has not grown

    def again(self, task: Task) -> bool:
        """To be called after each death."""
        self.total += 1
        path: Path = task[0]
        journal = path.with_suffix(".journal")
        size = journal.stat().st_size if journal.is_file() else 0
        before, futile = self._seen.get(path, (0, 0))
        futile = futile + 1 if size <= before else 0
        self._seen[path] = (size, futile)
        print(f"{path.name}: its worker process died; trying again", file=sys.stderr)
        return futile < _FUTILE


def _check_space(
    plan: Plan,
    todo: Plan,
    store: Path,
    options: DecodeOptions,
    root: Path,
    workers: int,
    executor: Executor | None,
    locate: Callable[[Clip], Clip],
) -> None:
    """Say how much room the clips will take, and refuse what surely has none."""
    pending = {path for path, _, _ in todo}
    sizes = [path.stat().st_size / len(shard) for path, _, shard in plan if path not in pending]
    if len(sizes) < 2:
        clips = [clip for _, _, shard in todo for clip in shard]
        sample = [(locate(clip), root, options) for clip in clips[:: len(clips) // _SAMPLE][:_SAMPLE]]
        sizes = list(run_tasks(_size, sample, workers=workers, executor=executor, again=lambda _: True))
    count = sum(len(shard) for _, _, shard in todo)
    need, error = count * statistics.mean(sizes), count * statistics.stdev(sizes) / len(sizes) ** 0.5
    free = shutil.disk_usage(store).free
    text = f"{store}: about {_gigabytes(need)} (± {_gigabytes(2 * error)}) for {count} clips, {_gigabytes(free)} free"
    if need - 2 * error > free:
        raise UserError(f"{text}; name another folder as `store`, or keep less by decode.fps and decode.size")
    print(text, file=sys.stderr)


def _size(clip: Clip, root: Path, options: DecodeOptions) -> float:
    """Bytes of a decoded clip."""
    decoded = decode(clip, root, options)
    wave = 0 if decoded.waveform is None else decoded.waveform.nbytes
    return float(wave + sum(map(len, decoded.frames or [])))


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _report(plan: Plan) -> PrepareReport:
    report = PrepareReport()
    for path, _, _ in plan:
        report.add(read_problems(path))
        report.bytes += path.stat().st_size
    return report


def _clips_with_problems(plan: Plan) -> Iterator[tuple[Clip, Mapping[str, str]]]:
    """Each clip and what is wrong with it, a shard at a time."""
    for path, _, shard in plan:
        problems = read_problems(path)
        yield from ((clip, problems[clip.id]) for clip in shard)


def _write_report(store: Path, plan: Plan) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", "modality", "reason"])
    for clip, problems in _clips_with_problems(plan):
        writer.writerows([clip.id, modality, reason] for modality, reason in problems.items())
    with atomically(store / "report.csv") as file:
        file.write(text.getvalue().encode())


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """One `prepare` at a time in a store; the lock goes with the process, however it ends."""
    with (store / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
