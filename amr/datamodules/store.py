"""The clip store: decoded clips in Arrow IPC files, written once by `prepare` and memory-mapped by training.

A shard holds what decoding yields and nothing else. Labels and splits are read from the listing at every run, so a
corrected label or another split never decodes a clip again.
"""

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from amr.datamodules.media import KEPT, STILL, Clip, Decoded, DecodeOptions, without_details
from amr.errors import UserError
from amr.files import atomically

FORMAT = 3  # part of every key: a change of layout or of decoding makes all shards stale
SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # ascending, within a shard and from one to the next
        ("waveform", pa.large_binary()),  # int16 mono
        ("frames", pa.list_(pa.large_binary())),  # JPEG files
        ("problem", pa.string()),  # JSON {modality: reason}; null: none; with STILL or KEPT the data is there
    ]
)
_NO_DIGEST = b"0" * 64


def shard_path(store: Path, index: int) -> Path:
    """Where shard number `index` lies."""
    return store / f"shard-{index:05d}.arrow"


def shard_key(clips: Iterable[Clip], options: DecodeOptions) -> str:
    """Digest of all that decides a shard's content: format, options, and each clip's id, files and window."""
    rows = [(c.id, {m: f.as_posix() for m, f in c.files.items()}, c.start, c.end) for c in clips]
    return hashlib.sha256(json.dumps([FORMAT, asdict(options), rows], sort_keys=True).encode()).hexdigest()


def write_shard(path: Path, key: str, clips: Sequence[tuple[str, Decoded]]) -> None:
    """Write (id, decoded clip) rows so that the shard is either there, whole and on disk, or not there.

    The file carries the SHA-256 of itself, taken with zeros in the place of the digest; see `is_sound`.
    """
    problems = [_reasons(d) for _, d in clips]
    columns = [
        [id for id, _ in clips],
        [None if d.waveform is None else d.waveform.tobytes() for _, d in clips],
        [d.frames for _, d in clips],
        [json.dumps(p, sort_keys=True) if p else None for p in problems],
    ]
    schema = SCHEMA.with_metadata({"key": key, "sha256": _NO_DIGEST})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema))
    content = bytearray(sink.getvalue())
    digest = hashlib.sha256(content).hexdigest().encode()
    for place in _digest_places(content, _NO_DIGEST):
        content[place : place + len(digest)] = digest
    with atomically(path) as file:
        file.write(content)


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


def _digest_places(content: bytes | bytearray, digest: bytes) -> tuple[int, int]:
    """Where the schema, at the file's beginning, and its copy in the footer have the digest."""
    return content.index(digest), content.rindex(digest)


def is_sound(path: Path) -> bool:
    """Whether no byte of a shard has changed since it was written."""
    content = bytearray(path.read_bytes())
    try:
        with pa.ipc.open_file(pa.BufferReader(memoryview(content).toreadonly())) as reader:
            digest = bytes(reader.schema.metadata[b"sha256"])
        for place in _digest_places(content, digest):
            content[place : place + len(digest)] = _NO_DIGEST
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):  # the schema itself is damaged
        return False
    return hashlib.sha256(content).hexdigest().encode() == digest


def read_key(path: Path) -> str | None:
    """Key of a shard; None when there is no readable shard."""
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            return bytes((reader.schema.metadata or {})[b"key"]).decode()
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None


def read_problems(path: Path) -> dict[str, dict[str, str]]:
    """Reasons by modality of each clip in a shard; empty for a sound clip."""
    batch = _map_shard(path)
    ids, problems = batch.column("id").to_pylist(), batch.column("problem").to_pylist()
    return {id: json.loads(problem) if problem else {} for id, problem in zip(ids, problems, strict=True)}


def read_rows(path: Path) -> Iterator[tuple[str, Decoded]]:
    """The (id, decoded clip) rows that a shard was written from."""
    for row in _map_shard(path).to_pylist():
        problems, still, notes = _decoded(json.loads(row["problem"]) if row["problem"] else {})
        waveform = None if row["waveform"] is None else np.frombuffer(row["waveform"], dtype=np.int16)
        yield row["id"], Decoded(waveform, row["frames"], problems, still, notes)


def _map_shard(path: Path) -> Any:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: unreadable shard ({error}); delete it and run prepare again") from error


class ClipStore:
    """Random access by id to the prepared clips in a folder.

    Ids ascend from shard to shard, so a clip is found by two binary searches, the second in the mapped file: what is
    held, and pickled to each worker, is an id a shard and the clips with problems.

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
        self._shards = sorted(folder.glob("shard-*.arrow"))
        self._first: list[str] = []
        self._size = 0
        if not self._shards:
            raise UserError(f"{folder}: no prepared clips here; run prepare first")
        known: dict[str, Mapping[str, str]] = {}  # clips with the same problem share its entry
        for path in self._shards:
            batch = _map_shard(path)
            ids, problems = batch.column("id"), batch.column("problem")
            self._first.append(ids[0].as_py())
            self._size += len(ids)
            if problems.null_count < len(problems):
                for id, problem in zip(ids.to_pylist(), problems.to_pylist(), strict=True):
                    if problem:
                        self.problems[id] = known.setdefault(problem, json.loads(problem))

    def __len__(self) -> int:
        return self._size

    def __contains__(self, id: str) -> bool:
        return self._find(id) is not None

    def first_missing(self, ids: Iterable[str]) -> str | None:
        """The first, in alphabetical order, of these clips that is not here; None: all are."""
        held = {id for path in self._shards for id in _map_shard(path).column("id").to_pylist()}
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
        """
        row = self._find(id)
        if row is None:
            raise KeyError(id)
        batch = _shard(self.shard_of(id))
        waveform, frames = batch.column("waveform")[row], batch.column("frames")[row]
        data: dict[str, Any] = {}
        if waveform.is_valid:
            data["audio"] = np.frombuffer(waveform.as_buffer(), dtype=np.int16)
        if frames.is_valid:
            data["video"] = [frame.as_buffer() for frame in frames.values]
        return data

    def _find(self, id: str) -> int | None:
        """The clip's row in its shard."""
        ids = _shard(self.shard_of(id)).column("id")
        row = bisect_left(range(len(ids)), id, key=lambda i: ids[i].as_py())
        return row if row < len(ids) and ids[row].as_py() == id else None


_shard = lru_cache(maxsize=256)(_map_shard)  # bounded: each mapped file keeps a descriptor, and 1,024 is a common limit
