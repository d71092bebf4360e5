"""The clip store: decoded clips in Arrow IPC files, written once by `prepare` and memory-mapped by training.

A shard holds what decoding yields and nothing else. Labels and splits are read from the listing at every run, so a
corrected label or another split never decodes a clip again.

A shard has a record batch per clip and one more at its end, the index: a row per clip with all but the data. So a
shard is written and read a clip at a time, and opening it reads one batch.
"""

import hashlib
import json
import re
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from amr.datamodules.store.media import KEPT, STILL, Clip, Decoded, DecodeOptions, without_details
from amr.datamodules.store.sealing import NO_DIGEST, is_sealed, seal
from amr.utils.errors import UserError
from amr.utils.files import atomically

FORMAT = 4  # part of every key: a change of layout or of decoding makes all shards stale
SHARD_BYTES = 256 * 2**20  # a shard that has reached this size takes no more clips
SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # ascending, within a shard and from one to the next
        ("waveform", pa.large_binary()),  # int16 mono; null in the index
        ("frames", pa.list_(pa.large_binary())),  # JPEG files; null in the index
        (
            "problem",
            pa.string(),
        ),  # in the index: JSON {modality: reason}; null: none; with STILL or KEPT the data is there
        ("crc", pa.uint32()),  # in the index: CRC-32 of the waveform and the frames
    ]
)
_NAME = re.compile(r"shard-(\d{5,})(?:-(\d{3,}))?\.arrow")
_DAMAGE = (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError, MemoryError, pa.ArrowException)


def shard_path(store: Path, group: int, start: int = 0) -> Path:
    """Where the shard lies whose first clip is number `start` of a group.

    A group is a fixed number of clips that follow each other in the listing. Most fill one shard; clips that are long
    take more, each named by its first clip.
    """
    return store / (f"shard-{group:05d}-{start:03d}.arrow" if start else f"shard-{group:05d}.arrow")


def group_of(path: Path) -> int:
    """Number of the group that a shard, named by `shard_path`, belongs to."""
    name = _NAME.fullmatch(path.name)
    assert name
    return int(name[1])


def shard_files(store: Path, pattern: str = "shard-*.arrow") -> list[tuple[int, int, Path]]:
    """(group, start, path) of all files that are named as shards, in order."""
    named = ((_NAME.fullmatch(path.name), path) for path in store.glob(pattern))
    return sorted((int(name[1]), int(name[2] or 0), path) for name, path in named if name)


def shard_key(clips: Iterable[Clip], options: DecodeOptions) -> str:
    """Digest of all that decides a group's content: format, options, and each clip's id, files and window."""
    rows = [(c.id, {m: f.as_posix() for m, f in c.files.items()}, c.start, c.end) for c in clips]
    return hashlib.sha256(json.dumps([FORMAT, asdict(options), rows], sort_keys=True).encode()).hexdigest()


def write_shard(
    path: Path,
    key: str,
    rows: Iterable[tuple[str, Decoded]],
    limit: int | None = None,
    written: Callable[[str], None] = lambda id: None,
) -> None:
    """Write (id, decoded clip) rows so that the shard is either there, whole and on disk, or not there.

    One row is held at a time. The file carries the SHA-256 of itself, taken with zeros in the place of the digest; see
    `is_sound`.

    Args:
        path: The file.
        key: Its group's key.
        rows: Drawn until they end or the file is full.
        limit: Bytes after which no more rows are drawn; None: all rows are.
        written: Called with a clip's id as soon as its row is in the file.
    """
    schema = SCHEMA.with_metadata({"key": key, "sha256": NO_DIGEST})
    index: list[tuple[str, str | None, int]] = []
    with atomically(path) as file:
        with pa.ipc.new_file(file, schema) as writer:
            for id, decoded in rows:
                batch, crc = _pack(id, decoded)
                reasons = _reasons(decoded)
                index.append((id, json.dumps(reasons, sort_keys=True) if reasons else None, crc))
                writer.write_batch(batch)
                del batch, decoded  # before the next clip is decoded
                written(id)
                if limit is not None and file.tell() >= limit:
                    break
            ids, problem, crcs = zip(*index, strict=True) if index else ((), (), ())
            nulls = [pa.nulls(len(index), SCHEMA.field(name).type) for name in ("waveform", "frames")]
            columns = [pa.array(ids, pa.string()), *nulls, pa.array(problem, pa.string()), pa.array(crcs, pa.uint32())]
            writer.write_batch(pa.record_batch(columns, SCHEMA))
        seal(file)


def _pack(id: str, decoded: Decoded) -> tuple[Any, int]:
    """A clip's record batch and the checksum of its data; neither copies the waveform, and the frames are joined."""
    waveform, frames, crc = (pa.nulls(1, SCHEMA.field(name).type) for name in ("waveform", "frames", "crc"))
    checksum = 0
    if decoded.waveform is not None:
        samples = pa.py_buffer(np.ascontiguousarray(decoded.waveform))
        waveform = pa.Array.from_buffers(pa.large_binary(), 1, [None, _offsets([samples.size]), samples])
        checksum = zlib.crc32(samples)
    if decoded.frames is not None:
        joined, sizes = pa.py_buffer(b"".join(decoded.frames)), [len(frame) for frame in decoded.frames]
        files = pa.Array.from_buffers(pa.large_binary(), len(sizes), [None, _offsets(sizes), joined])
        frames = pa.ListArray.from_arrays(pa.array([0, len(sizes)], pa.int32()), files)
        checksum = zlib.crc32(joined, checksum)
    return pa.record_batch([pa.array([id]), waveform, frames, pa.nulls(1, pa.string()), crc], SCHEMA), checksum


def _reasons(decoded: Decoded) -> dict[str, str]:
    """All that is said of a clip, by modality."""
    reasons = {**decoded.notes, **decoded.problems}
    if decoded.still:
        reasons["video"] = f"{STILL}: {reasons['video']}" if "video" in reasons else STILL
    return reasons


def _decoded(reasons: dict[str, str]) -> tuple[dict[str, str], bool, dict[str, str]]:
    """The problems, whether the frames are still, and the notes that `_reasons` was made from."""
    problems = dict(reasons)
    if still := without_details(problems.get("video", "")) == STILL:
        note = problems.pop("video").partition(": ")[2]
        problems.update({"video": note} if note else {})
    notes = {modality: text for modality, text in problems.items() if text.startswith(KEPT)}
    return {modality: text for modality, text in problems.items() if modality not in notes}, still, notes


def _offsets(sizes: list[int]) -> Any:
    return pa.py_buffer(np.cumsum([0, *sizes], dtype=np.int64))


def is_sound(path: Path) -> bool:
    """Whether no byte of a shard has changed since it was written."""
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            digest = bytes(reader.schema.metadata[b"sha256"])
        return is_sealed(path, digest)
    except _DAMAGE:  # the schema itself is damaged
        return False


def read_head(path: Path) -> tuple[str, int] | None:
    """Key of a shard's group and number of its clips; None when there is no readable shard."""
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            return bytes((reader.schema.metadata or {})[b"key"]).decode(), reader.num_record_batches - 1
    except _DAMAGE:
        return None


def read_key(path: Path) -> str | None:
    """Key of a shard's group; None when there is no readable shard."""
    head = read_head(path)
    return None if head is None else head[0]


def read_ids(path: Path) -> list[str]:
    """Ids of a shard's clips, whatever its format; none of one that cannot be read."""
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            batch = reader.get_batch(reader.num_record_batches - 1)
            batch.validate(full=True)
            return [str(id) for id in batch.column("id").to_pylist()]
    except _DAMAGE:
        return []


def read_problems(path: Path) -> dict[str, dict[str, str]]:
    """Reasons by modality of each clip in a shard; empty for a sound clip."""
    shard = Shard(path)
    return dict(zip(shard.ids, shard.problems, strict=True))


def read_rows(path: Path) -> Iterator[tuple[str, Decoded]]:
    """The (id, decoded clip) rows that a shard was written from, one at a time."""
    shard = Shard(path)
    for row, (id, reasons) in enumerate(zip(shard.ids, shard.problems, strict=True)):
        (problems, still, notes), data = _decoded(reasons), shard.data(row)
        frames = [frame.to_pybytes() for frame in data["video"]] if "video" in data else None
        yield id, Decoded(data.get("audio"), frames, problems, still, notes)


def damaged_clips(path: Path) -> list[str]:
    """Ids of a shard's clips whose data differ from what was written; none if its index cannot be read."""
    try:
        shard = Shard(path)
    except UserError:
        return []
    return [id for row, id in enumerate(shard.ids) if not shard.is_sound(row)]


class Shard:
    """A mapped shard, checked as far as it is read: a damaged one raises, and never ends the process.

    Args:
        path: The file.

    Attributes:
        ids: Ids of its clips, ascending.
        problems: Problems of each clip, {modality: reason}; empty for a sound clip.

    Raises:
        UserError: It is not a shard of this format, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids: list[str] = []
        self.problems: list[dict[str, str]] = []
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
            if not self._reader.schema.equals(SCHEMA):
                raise ValueError("other columns")
            index = self._batch(self._reader.num_record_batches - 1)
            self.ids, self._crc = index.column("id").to_pylist(), index.column("crc").to_pylist()
            if len(self.ids) != self._reader.num_record_batches - 1 or None in self.ids or None in self._crc:
                raise ValueError("its index does not fit")
            if any(a >= b for a, b in zip(self.ids, self.ids[1:], strict=False)):
                raise ValueError("ids do not ascend")
            self.problems = [_parsed(problem) for problem in index.column("problem").to_pylist()]
        except _DAMAGE as error:
            raise UserError(f"{path}: unreadable shard ({_short(error)}); delete it and run prepare again") from error

    def data(self, row: int) -> dict[str, Any]:
        """A clip's data by modality; see `ClipStore.get`.

        Raises:
            UserError: They are damaged so that they cannot be read.
        """
        try:
            batch = self._batch(row)
            if batch.num_rows != 1 or batch.column("id")[0].as_py() != self.ids[row]:
                raise ValueError("another clip lies in its place")
            waveform, frames = batch.column("waveform")[0], batch.column("frames")[0]
            data: dict[str, Any] = {}
            if waveform.is_valid:
                data["audio"] = np.frombuffer(waveform.as_buffer(), dtype=np.int16)
            if frames.is_valid:
                if frames.values.null_count:
                    raise ValueError("a frame is missing")
                data["video"] = [frame.as_buffer() for frame in frames.values]
        except _DAMAGE as error:
            raise UserError(
                f"{self.path}: clip {self.ids[row]!r} is damaged ({_short(error)}); run prepare --verify"
            ) from error
        return data

    def is_sound(self, row: int) -> bool:
        """Whether a clip's data are as they were written."""
        try:
            data = self.data(row)
        except UserError:
            return False
        crc = zlib.crc32(data["audio"]) if "audio" in data else 0
        for frame in data.get("video", ()):
            crc = zlib.crc32(frame, crc)
        return bool(crc == self._crc[row])

    def _batch(self, number: int) -> Any:
        """A record batch whose offsets lie within its buffers: reading beyond them would kill the process."""
        batch = self._reader.get_batch(number)
        batch.validate(full=True)
        return batch


def _parsed(problem: str | None) -> dict[str, str]:
    reasons = json.loads(problem) if problem else {}
    if not isinstance(reasons, dict) or not all(isinstance(reason, str) for reason in reasons.values()):
        raise ValueError("a problem that is no reason by modality")
    return reasons


def _short(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _opener() -> Callable[[Path], Shard]:
    """Opens shards and keeps the last ones open; each keeps a descriptor, and 1,024 is a common limit."""
    return lru_cache(maxsize=256)(Shard)


class ClipStore:
    """Random access by id to the prepared clips in a folder.

    Ids ascend from shard to shard, so a clip is found by two binary searches: what is held, and pickled to each worker,
    is an id per shard and the clips with problems.

    Args:
        folder: Store that `prepare` filled.

    Attributes:
        problems: What was wrong with clips: {id: {modality: reason}}; sound clips have no entry.

    Raises:
        UserError: No shard in the folder, or an unreadable one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: dict[str, Mapping[str, str]] = {}
        self._shards = [path for _, _, path in shard_files(folder)]
        self._first: list[str] = []
        self._size = 0
        self._opened = _opener()
        if not self._shards:
            raise UserError(f"{folder}: no prepared clips here; run prepare first")
        known: dict[str, Mapping[str, str]] = {}  # clips with the same problem share its entry
        last = ""
        for path in self._shards:
            shard = Shard(path)
            self._size += len(shard.ids)
            if not shard.ids or (self._first and shard.ids[0] <= last):
                raise UserError(f"{path}: does not follow the shard before it; run prepare again to finish the store")
            self._first.append(shard.ids[0])
            last = shard.ids[-1]
            for id, reasons in zip(shard.ids, shard.problems, strict=True):
                if reasons:
                    self.problems[id] = known.setdefault(json.dumps(reasons), reasons)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._opened = _opener()

    def __len__(self) -> int:
        return self._size

    def __contains__(self, id: str) -> bool:
        return self._find(id)[1] is not None

    def first_missing(self, ids: Iterable[str]) -> str | None:
        """The first, in alphabetical order, of these clips that is not here; None: all are."""
        held = {id for path in self._shards for id in Shard(path).ids}
        return min(set(ids) - held, default=None)

    def shard_of(self, id: str) -> Path:
        """The file that holds a clip, or would."""
        return self._shards[max(bisect_right(self._first, id) - 1, 0)]

    def get(self, id: str) -> dict[str, Any]:
        """A clip's data by modality; one with a problem is left out.

        Returns:
            `audio`: (samples,) int16, read-only. `video`: list of buffers, a JPEG file each.

        Raises:
            KeyError: The clip is not in the store.
            UserError: The clip is damaged.
        """
        shard, row = self._find(id)
        if row is None:
            raise KeyError(id)
        return shard.data(row)

    def _find(self, id: str) -> tuple[Shard, int | None]:
        """The clip's shard, and its row there."""
        shard = self._opened(self.shard_of(id))
        row = bisect_left(shard.ids, id)
        return shard, row if row < len(shard.ids) and shard.ids[row] == id else None
