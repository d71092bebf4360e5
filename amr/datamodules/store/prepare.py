"""Decode every clip once into the store's shards, in parallel, and carry on where a killed run stopped."""

import errno
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from amr.datamodules.store.convert import Origin, check_origin, estimate_converted
from amr.datamodules.store.journal import Deaths, killers_of, log_clip
from amr.datamodules.store.media import MODALITIES, Clip, Decoded, DecodeOptions, as_listed, decode, without_details
from amr.datamodules.store.plan import Group, Plan, Span, finished_shards, finished_spans, gaps, make_plan, stray_files
from amr.datamodules.store.report import PrepareReport, describe_reasons, write_problems
from amr.datamodules.store.room import check_room, estimate
from amr.datamodules.store.shards import (
    SHARD_BYTES,
    damaged_clips,
    group_of,
    is_sound,
    read_ids,
    read_problems,
    read_rows,
    shard_files,
    shard_path,
    write_shard,
)
from amr.datamodules.store.summary import write_summary
from amr.utils.errors import UserError
from amr.utils.files import locked
from amr.utils.streams import Progress, status
from amr.utils.work import check_not_in_worker, run_tasks

MISSING = "file missing"
POINTER = "a Git LFS pointer, not the file"
KILLER = "killed the worker"
_SMALL = 256  # fewer clips than this are not worth an estimate, if they are kept as JPEG files
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ALONE = threading.Lock()  # the lock of a folder keeps other processes out, and not this one's other threads


class Pending(NamedTuple):
    """A group that is not finished, or of which files have come."""

    group: Group
    clips: Sequence[Clip]  # to be decoded
    size: int  # clips in the shards that will be written


def prepare(
    clips: Sequence[Clip],
    store: Path,
    options: DecodeOptions,
    *,
    root: Path,
    workers: int,
    shard_size: int = 64,
    shard_bytes: int = SHARD_BYTES,
    executor: Executor | None = None,
    recheck: bool = False,
    locate: Callable[[Clip], Clip] = as_listed,
    origin: Path | None = None,
) -> PrepareReport:
    """Bring the store up to date with the clips.

    A group of clips is the unit of work; it fills one shard, or several where its clips are long. Finished shards,
    known by their key alone, are left as they are. Shards that no clip needs any more are deleted. A group whose worker
    process dies is given to another one, which continues after the shards that are finished. A clip at which two have
    died is left out, with that for its reason.

    Args:
        clips: Clips that the store shall hold.
        store: Its folder; made if absent.
        options: How to decode.
        root: Folder that the clips' files are relative to.
        workers: Processes; 0 decodes in this one.
        shard_size: Clips in a group, the most that a shard holds.
        shard_bytes: Size after which a shard takes no more clips. What is held in memory is one clip, not a shard.
        executor: Runs the work instead of processes of our own, for instance a cluster's; its workers must see `root`
            and `store` under the same paths.
        recheck: Also decode clips whose missing files have appeared since; the others in their shards are kept.
        locate: Gives a clip its files, where the listing leaves them out; called only for clips that are about to be
            decoded or rechecked. A shard's key has the listed files, so that clips of such a listing which move or go
            after they were decoded make nothing stale.
        origin: Another store of the same clips, whose data are converted in place of decoding the media. It is only
            read. None: the media are decoded.

    Returns:
        The report, which is also written to the store: `report.csv` (id, modality, reason: one row per problem) and
        `report.html`.

    Raises:
        UserError: The store cannot be written or its disk is too small; it holds other clips alone; workers die, and
            not at a clip; every clip that is there is a Git LFS pointer; or `origin` holds other clips, or clips that
            are kept by options between which nothing can convert.
    """
    store, root = store.absolute(), root.absolute()  # a cluster's workers start elsewhere
    plan = make_plan(clips, store, options, shard_size)
    if origin is not None:
        origin, recheck, locate = origin.absolute(), False, as_listed  # the media may be gone
        check_origin(origin, store, plan, options)
    finished = finished_shards(store, plan)
    told = (store / "report.csv").is_file() and (store / "report.html").is_file()
    if told and not stray_files(store, plan, finished) and not _to_do(plan, finished, root, recheck, locate):
        return _checked(_report(finished), root)  # a finished store may be read-only
    check_not_in_worker()
    try:
        store.mkdir(parents=True, exist_ok=True)
        if (store / ".lock").is_symlink():
            raise UserError(f"{store / '.lock'} is a link; remove it, or name another folder as `store`")
        with _ALONE, locked(store, "name another folder as `store`", wait=True):
            _check_listed(store, plan)
            report = _fill(plan, store, options, root, workers, executor, recheck, locate, shard_bytes, origin)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"{store}: cannot write the store ({error.strerror}); name another folder as `store`"
        ) from error
    except OSError as error:
        if error.errno not in _FULL:
            raise
        done = sum(span.stop - span.start for spans in finished_shards(store, plan).values() for span in spans)
        raise UserError(
            f"{store}: the disk is full after {done} of {len(clips)} clips; finished shards are kept: make room and run"
            " the same command again, or name another folder as `store`"
        ) from error
    status(f"{store}: {report}")
    return _checked(report, root)


def verify(clips: Sequence[Clip], store: Path, options: DecodeOptions, *, shard_size: int = 64) -> int:
    """Reread every byte of the store.

    Args:
        clips: Clips that the store shall hold.
        store: Its folder.
        options: How the clips were decoded.
        shard_size: Clips in a group, as in `prepare`.

    Returns:
        Number of shards, which are all there, up to date and sound.

    Raises:
        UserError: Some are not; it names them, and the clips that are damaged.
    """
    plan = make_plan(clips, store, options, shard_size)
    finished = finished_shards(store, plan)
    files = [path for group, _, path in shard_files(store) if group < len(plan)]
    damaged, ids = [], []
    progress = Progress(f"verify {store.name}", len(files), "shards")
    for path in files:
        if not is_sound(path):
            damaged.append(path.name)
            ids += damaged_clips(path)
        progress.advance(1)
    if damaged:
        where = f" at clip{'s' * (len(ids) > 1)} {_some(ids)}" if ids else ""
        raise UserError(
            f"{store}: {_shards_text(damaged)} changed since written{where} (a failing disk?); delete and run prepare"
            " again"
        )
    stale = [group.path.name for group in plan if gaps(finished[group.path], len(group.clips))]
    if stale:
        raise UserError(f"{store}: {_shards_text(stale)} missing or of other clips or options; run prepare again")
    status(f"{store}: {len(files)} shards with {len(clips)} clips are as they were written")
    return len(files)


def _shards_text(names: list[str]) -> str:
    return f"{len(names)} shard{'s' * (len(names) > 1)} ({_some(names)})"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{', '.join(names[:10])}{more}"


def _check_listed(store: Path, plan: Plan) -> None:
    """Refuse a store of other clips, which would be deleted."""
    listed = {clip.id for group in plan for clip in group.clips}
    example = ""
    for _, _, path in shard_files(store):
        ids = read_ids(path)
        if not listed.isdisjoint(ids):
            return
        example = ids[0] if ids and not example else example
    if example:
        raise UserError(
            f"{store}: holds other clips, such as {example!r}, and none of this listing: another data set's store? Name"
            " another folder as `store`, or delete the shards in this one"
        )


def _fill(
    plan: Plan,
    store: Path,
    options: DecodeOptions,
    root: Path,
    workers: int,
    executor: Executor | None,
    recheck: bool,
    locate: Callable[[Clip], Clip],
    shard_bytes: int,
    origin: Path | None,
) -> PrepareReport:
    finished = finished_shards(store, plan)
    todo = _to_do(plan, finished, root, recheck, locate)  # another process may have worked while this one waited
    for path in stray_files(store, plan, finished):  # of an older plan, or left by a killed run
        path.unlink()
    for path in store.glob("shard-*.journal"):  # what a killed run was at is no fault of the clip's
        path.unlink()
    decoded = [clip for pending in todo for clip in pending.clips]
    if origin is not None:
        open_groups = [pending.group for pending in todo]
        if open_groups:
            check_room(estimate_converted(origin, open_groups, options), len(decoded), store, options)
    elif decoded and (len(decoded) >= _SMALL or options.frames == "raw" or options.spectrogram):
        sample = min(16, max(2, len(decoded) // 16))
        if estimated := estimate(decoded, options, root, workers, executor, locate, sample):
            check_room(estimated, len(decoded), store, options)
    count = sum(pending.size for pending in todo)
    progress = Progress(f"prepare {store.name}", count, "clips")
    tasks = (
        (g.path, g.key, [locate(clip) for clip in g.clips], root, options, shard_bytes, origin) for g, _, _ in todo
    )
    deaths = Deaths()
    try:
        with closing(
            run_tasks(_prepare_shard, tasks, workers=workers, executor=executor, again=deaths.again)
        ) as counts:
            for done in counts:
                progress.advance(done)
    except KeyboardInterrupt:
        for path in store.glob(".shard-*.arrow.*.tmp") if executor is None else ():  # the workers have ended
            path.unlink(missing_ok=True)
        raise
    finished = finished_shards(store, plan)
    report = _report(finished)
    report.decoded, report.seconds, report.deaths = count, progress.seconds, deaths.total
    write_problems(store, _clips_with_problems(plan, finished))
    write_summary(store, report, _clips_with_problems(plan, finished))
    return report


def _to_do(
    plan: Plan, finished: Mapping[Path, list[Span]], root: Path, recheck: bool, locate: Callable[[Clip], Clip]
) -> list[Pending]:
    todo = []
    for group in plan:
        spans = finished[group.path]
        clips = [clip for start, stop in gaps(spans, len(group.clips)) for clip in group.clips[start:stop]]
        count = len(clips)
        for span in spans if recheck else ():
            if come := _come(span, group.clips, root, locate):
                clips += come.values()
                count += span.stop - span.start
        if clips:
            todo.append(Pending(group, clips, count))
    return todo


def _come(span: Span, clips: Sequence[Clip], root: Path, locate: Callable[[Clip], Clip] = as_listed) -> dict[str, Clip]:
    """The clips of a shard with a file that could not be had when it was written and is there now, by id."""
    known, come = {clip.id: clip for clip in clips}, {}
    for id, problems in read_problems(span.path).items():
        lacking = [m for m, reason in problems.items() if without_details(reason) in (MISSING, POINTER)]
        if lacking:
            files = locate(known[id]).files
            if any((root / files[m]).is_file() and not _is_pointer(root / files[m]) for m in lacking if m in files):
                come[id] = known[id]
    return come


def _prepare_shard(
    path: Path,
    key: str,
    clips: list[Clip],
    root: Path,
    options: DecodeOptions,
    limit: int = SHARD_BYTES,
    origin: Path | None = None,
) -> int:
    """Decode a group's clips that no shard has, and those whose files have come; the others' may be gone.

    With `origin`, the clips that no shard has are converted from there instead.

    Returns:
        Number of clips in the shards that it wrote.
    """
    number = group_of(path)
    files = [(start, file) for group, start, file in shard_files(path.parent, f"{path.stem}*") if group == number]
    spans = finished_spans(key, len(clips), files)
    stale = {file for _, file in files} - {span.path for span in spans}
    journal = path.with_suffix(".journal")
    killers = killers_of(journal)
    begun: set[str] = set()
    count = 0
    converted = None if origin is None else Origin(origin, number, options)
    settings = options.settings()

    def fresh(clips: Sequence[Clip]) -> Iterator[tuple[str, Decoded]]:
        for clip in clips:
            if clip.id in killers:
                yield clip.id, Decoded(problems=dict.fromkeys(MODALITIES, KILLER))
            else:
                log_clip(log, "+", clip.id)
                begun.add(clip.id)
                yield clip.id, converted(clip) if converted else _decode(clip, root, options)

    def renewed(span: Span, come: Mapping[str, Clip]) -> Iterator[tuple[str, Decoded]]:
        for id, decoded in read_rows(span.path):
            yield from fresh([come[id]]) if id in come else [(id, decoded)]

    def written(id: str) -> None:
        nonlocal count
        count += 1
        if id in begun:
            log_clip(log, "-", id)

    with journal.open("a", encoding="utf-8") as log:
        for span in spans:
            if converted is None and (come := _come(span, clips, root)):
                write_shard(span.path, key, renewed(span, come), None, written, settings)
        for start, stop in gaps(spans, len(clips)):
            rows, before = fresh(clips[start:stop]), count
            while (place := start + count - before) < stop:
                shard = shard_path(path.parent, number, place)
                write_shard(shard, key, rows, limit, written, settings)
                stale.discard(shard)
    for file in stale:  # of other clips or options
        file.unlink()
    journal.unlink()
    return count


def _decode(clip: Clip, root: Path, options: DecodeOptions) -> Decoded:
    decoded = decode(clip, root, options)
    for modality in decoded.problems:
        if modality in clip.files and _is_pointer(root / clip.files[modality]):
            decoded.problems[modality] = f"{POINTER}: git lfs pull fetches it"
    return decoded


def _is_pointer(path: Path) -> bool:
    """Whether Git LFS has left its text of three lines in the file's place."""
    start = b"version https://git-lfs.github.com/spec/"
    try:
        with path.open("rb") as file:
            return file.read(len(start)) == start
    except (OSError, ValueError):
        return False


def _report(finished: Mapping[Path, list[Span]]) -> PrepareReport:
    report = PrepareReport()
    for span in (span for spans in finished.values() for span in spans):
        report.add(read_problems(span.path))
        report.bytes += span.path.stat().st_size
    return report


def _checked(report: PrepareReport, root: Path) -> PrepareReport:
    """The report, if there is anything to train on or the reason is not one that the user can mend at once."""
    if report.total == report.empty and any(reason == POINTER for _, reason in report.reasons):
        raise UserError(
            f"{root}: no clip has data ({describe_reasons(report.reasons)}); run git lfs pull there, then prepare again"
        )
    return report


def _clips_with_problems(plan: Plan, finished: Mapping[Path, list[Span]]) -> Iterator[tuple[Clip, Mapping[str, str]]]:
    """Each clip and what is wrong with it, a shard at a time."""
    for group in plan:
        for span in finished[group.path]:
            problems = read_problems(span.path)
            yield from ((clip, problems[clip.id]) for clip in group.clips[span.start : span.stop])
