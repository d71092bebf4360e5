"""Assigns clips to shards, and finds the shards that are finished."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from amr.datamodules.store.media import Clip, DecodeOptions
from amr.datamodules.store.shards import read_head, shard_files, shard_key, shard_path

Plan = list["Group"]


class Group(NamedTuple):
    """Clips that are planned together."""

    path: Path  # of its first shard
    key: str
    clips: Sequence[Clip]


class Span(NamedTuple):
    """A finished shard: the clips from number `start` to before `stop` of its group."""

    start: int
    stop: int
    path: Path


def make_plan(clips: Sequence[Clip], store: Path, options: DecodeOptions, shard_size: int) -> Plan:
    """The clips in groups of `shard_size`, ordered by id, whatever the order of the listing."""
    ordered = sorted(clips, key=lambda clip: clip.id)
    groups = [ordered[i : i + shard_size] for i in range(0, len(ordered), shard_size)]
    return [Group(shard_path(store, i), shard_key(group, options), group) for i, group in enumerate(groups)]


def finished_shards(store: Path, plan: Plan) -> dict[Path, list[Span]]:
    """The shards of each group that are up to date, by the path of its first one."""
    files = defaultdict(list)
    for group, start, path in shard_files(store):
        files[shard_path(store, group)].append((start, path))
    return {group.path: finished_spans(group.key, len(group.clips), files[group.path]) for group in plan}


def finished_spans(key: str, count: int, files: list[tuple[int, Path]]) -> list[Span]:
    """Those of a group's files, in order, that have its key and do not overlap."""
    spans: list[Span] = []
    for start, path in files:
        head = read_head(path)
        reached = spans[-1].stop if spans else 0
        if head is not None and head[0] == key and 0 < head[1] <= count - start and start >= reached:
            spans.append(Span(start, start + head[1], path))
    return spans


def gaps(spans: list[Span], count: int) -> list[tuple[int, int]]:
    """The stretches of a group's clips that no shard has: first, and the one after the last."""
    ends = [0, *(span.stop for span in spans)]
    starts = [*(span.start for span in spans), count]
    return [(end, start) for end, start in zip(ends, starts, strict=True) if end < start]


def stray_files(store: Path, plan: Plan, finished: Mapping[Path, list[Span]]) -> set[Path]:
    """The store's own shards that no clip needs, and what killed runs left; other files are somebody else's.

    Those of a group that is not finished stay until others take their place.
    """
    open_groups = {i for i, group in enumerate(plan) if gaps(finished[group.path], len(group.clips))}
    needed = {span.path for spans in finished.values() for span in spans}
    files = {path for group, _, path in shard_files(store) if group not in open_groups} - needed
    return {path for path in files if read_head(path) is not None} | set(store.glob(".shard-*.arrow.*.tmp"))
