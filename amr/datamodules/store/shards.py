"""The clip store: decoded clips in Arrow IPC files, written once by `prepare` and memory-mapped by training.

A shard holds what decoding yields and nothing else. Labels and splits are read from the listing at every run, so a
corrected label or another split never decodes a clip again.

A shard has a record batch per clip and one more at its end, the index: a row per clip with all but the data. So a
shard is written and read a clip at a time, and opening it reads one batch.
"""

import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from amr.datamodules.store.media import Clip, Decoded, DecodeOptions
from amr.datamodules.store.packing import (
    SCHEMA,
    SPECTRAL,
    checksum_of,
    pack,
    pack_index,
    packed_reasons,
    parsed_reasons,
    parts,
    unpacked_reasons,
)
from amr.datamodules.store.sealing import NO_DIGEST, is_sealed, seal
from amr.utils.errors import UserError
from amr.utils.files import atomically

FORMAT = 4  # part of every key: a change of layout or of decoding makes all shards stale
SHARD_BYTES = 256 * 2**20  # a shard that has reached this size takes no more clips
_NAME = re.compile(r"shard-(\d{5,})(?:-(\d{3,}))?\.arrow")
_DAMAGE = (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError, MemoryError, pa.ArrowException)


def shard_path(store: Path, group: int, start: int = 0) -> Path:
    """Path of the shard whose first clip is number `start` of a group.

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
    return identity_key(clips, options.identity())


def identity_key(clips: Iterable[Clip], identity: Mapping[str, Any]) -> str:
    """`shard_key` of options with this `DecodeOptions.identity`."""
    rows = [(c.id, {m: f.as_posix() for m, f in c.files.items()}, c.start, c.end) for c in clips]
    return hashlib.sha256(json.dumps([FORMAT, identity, rows], sort_keys=True).encode()).hexdigest()


def write_shard(
    path: Path,
    key: str,
    rows: Iterable[tuple[str, Decoded]],
    limit: int | None = None,
    written: Callable[[str], None] = lambda id: None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write (id, decoded clip) rows so that the shard is either there, whole and on disk, or not there.

    One row is held at a time. The file carries the SHA-256 of itself, computed with zeros for the digest; see
    `is_sound`.

    Args:
        path: The file.
        key: Its group's key.
        rows: Drawn until they end or the file is full.
        limit: Bytes after which no more rows are drawn; None: all rows are.
        written: Called with a clip's id as soon as its row is in the file.
        settings: Settings of the spectrograms, which the file says; None: it has none.
    """
    schema = SCHEMA if settings is None else SPECTRAL
    said = {} if settings is None else {"spectrogram": settings_text(settings)}
    schema = schema.with_metadata({"key": key, "sha256": NO_DIGEST, **said})
    index: list[tuple[str, str | None, int]] = []
    with atomically(path) as file:
        with pa.ipc.new_file(file, schema) as writer:
            for id, decoded in rows:
                batch, crc = pack(id, decoded, schema)
                reasons = packed_reasons(decoded)
                index.append((id, json.dumps(reasons, sort_keys=True) if reasons else None, crc))
                writer.write_batch(batch)
                del batch, decoded  # before the next clip is decoded
                written(id)
                if limit is not None and file.tell() >= limit:
                    break
            writer.write_batch(pack_index(index, schema))
        seal(file)


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
    for row, id in enumerate(shard.ids):
        yield id, shard.decoded(row)


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
        settings: Settings of its spectrograms, as JSON; None: it has none.

    Raises:
        UserError: It is not a shard of this format, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids: list[str] = []
        self.problems: list[dict[str, str]] = []
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
            schema = self._reader.schema
            self.settings = _settings(schema)
            if not schema.equals(SCHEMA if self.settings is None else SPECTRAL):
                raise ValueError("other columns")
            index = self._batch(self._reader.num_record_batches - 1)
            self.ids, self._crc = index.column("id").to_pylist(), index.column("crc").to_pylist()
            if len(self.ids) != self._reader.num_record_batches - 1 or None in self.ids or None in self._crc:
                raise ValueError("its index does not fit")
            if any(a >= b for a, b in zip(self.ids, self.ids[1:], strict=False)):
                raise ValueError("ids do not ascend")
            self.problems = [parsed_reasons(problem) for problem in index.column("problem").to_pylist()]
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
            waveform, frames = batch.column("waveform"), batch.column("frames")
            data: dict[str, Any] = {}
            if not waveform.null_count:
                data["audio"] = np.frombuffer(parts(waveform)[0], dtype=np.int16)
            if not frames.null_count:
                first, last = frames.offsets.to_pylist()
                files = frames.values.slice(first, last - first)  # flatten() would import pyarrow.compute
                if files.null_count:
                    raise ValueError("a frame is missing")
                data["video"] = parts(files)
            if self.settings is not None and not (stored := batch.column("spectrogram")).null_count:
                data["spectrogram"] = np.frombuffer(parts(stored)[0], dtype=np.float16)
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
        return bool(checksum_of(data) == self._crc[row])

    def decoded(self, row: int) -> Decoded:
        """The decoded clip that a row was written from.

        Raises:
            UserError: Its data are damaged so that they cannot be read.
        """
        (problems, still, notes), data = unpacked_reasons(self.problems[row]), self.data(row)
        frames = [frame.to_pybytes() for frame in data["video"]] if "video" in data else None
        return Decoded(data.get("audio"), frames, problems, still, notes, data.get("spectrogram"))

    def _batch(self, number: int) -> Any:
        """A record batch whose offsets lie within its buffers: reading beyond them would kill the process."""
        batch = self._reader.get_batch(number)
        batch.validate(full=True)
        return batch


def settings_text(settings: Mapping[str, Any] | None) -> str | None:
    """Settings of spectrograms as a shard says them; None of none."""
    return None if settings is None else json.dumps(settings, sort_keys=True)


def read_settings(path: Path) -> str | None:
    """Settings of a shard's spectrograms, as JSON; None: it has none, or cannot be read."""
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            return _settings(reader.schema)
    except _DAMAGE:
        return None


def _settings(schema: Any) -> str | None:
    text = (schema.metadata or {}).get(b"spectrogram")
    return None if text is None else bytes(text).decode()


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
        problems: Problems of clips: {id: {modality: reason}}; sound clips have no entry.
        settings: Settings of the spectrograms of each shard, as JSON; None stands for shards that have none.

    Raises:
        UserError: No shard in the folder, or an unreadable one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: dict[str, Mapping[str, str]] = {}
        self.settings: set[str | None] = set()
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
            self.settings.add(shard.settings)
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
        """The file that holds a clip, or would hold it."""
        return self._shards[max(bisect_right(self._first, id) - 1, 0)]

    def get(self, id: str) -> dict[str, Any]:
        """A clip's data by modality; one with a problem is left out.

        Returns:
            `audio`: (samples,) int16, read-only. `video`: list of buffers, each a JPEG file, or a PPM file if frames
            are raw. `spectrogram`, where the store has them: flat float16, read-only.

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
