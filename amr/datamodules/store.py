"""The clip store: decoded clips in Arrow IPC files, written once by `prepare` and memory-mapped by training.

A shard holds what decoding yields and nothing else. Labels and splits are read from the listing at every run, so a
corrected label or another split never decodes a clip again.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from amr.datamodules.media import STILL, Clip, Decoded, DecodeOptions
from amr.errors import UserError

FORMAT = 1  # part of every key: a change of layout or of decoding makes all shards stale
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("waveform", pa.large_binary()),  # int16 mono
        ("frames", pa.list_(pa.large_binary())),  # JPEG files
        ("problem", pa.string()),  # JSON {modality: reason}; null: none; a modality with STILL has its data
    ]
)


def shard_path(store: Path, index: int) -> Path:
    """Where shard number `index` lies."""
    return store / f"shard-{index:05d}.arrow"


def shard_key(clips: Iterable[Clip], options: DecodeOptions) -> str:
    """Digest of all that decides a shard's content: format, options, and each clip's id, files and window."""
    rows = [(c.id, {m: f.as_posix() for m, f in c.files.items()}, c.start, c.end) for c in clips]
    return hashlib.sha256(json.dumps([FORMAT, asdict(options), rows], sort_keys=True).encode()).hexdigest()


def write_shard(path: Path, key: str, clips: Sequence[tuple[str, Decoded]]) -> None:
    """Write (id, decoded clip) rows so that the shard is either there, whole and on disk, or not there."""
    problems = [{**d.problems, **({"video": STILL} if d.still else {})} for _, d in clips]
    columns = [
        [id for id, _ in clips],
        [None if d.waveform is None else d.waveform.tobytes() for _, d in clips],
        [d.frames for _, d in clips],
        [json.dumps(p, sort_keys=True) if p else None for p in problems],
    ]
    schema = SCHEMA.with_metadata({"key": key})
    batch = pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def read_key(path: Path) -> str | None:
    """Key of a shard; None when there is no readable shard."""
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            return bytes((reader.schema.metadata or {})[b"key"]).decode()
    except (OSError, KeyError, pa.ArrowInvalid):
        return None


def read_problems(path: Path) -> dict[str, dict[str, str]]:
    """Reasons by modality of each clip in a shard; empty for a sound clip."""
    batch = _map_shard(path)
    ids, problems = batch.column("id").to_pylist(), batch.column("problem").to_pylist()
    return {id: json.loads(problem) if problem else {} for id, problem in zip(ids, problems, strict=True)}


def _map_shard(path: Path) -> Any:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: unreadable shard ({error}); delete it and run prepare again") from error


class ClipStore:
    """Random access by id to the prepared clips in a folder.

    Nothing is read until it is asked for, and what is pickled is only the index: a worker maps the files itself.

    Args:
        folder: Store that `prepare` filled.

    Attributes:
        problems: What was wrong with each clip: {id: {modality: reason}}, with an entry for every clip.

    Raises:
        UserError: No shard in the folder, or an unreadable one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: dict[str, dict[str, str]] = {}
        self._place: dict[str, tuple[Path, int]] = {}
        shards = sorted(folder.glob("shard-*.arrow"))
        if not shards:
            raise UserError(f"{folder}: no prepared clips here; run prepare first")
        for path in shards:
            problems = read_problems(path)
            self.problems.update(problems)
            self._place.update({id: (path, row) for row, id in enumerate(problems)})

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, id: str) -> bool:
        return id in self._place

    def get(self, id: str) -> dict[str, Any]:
        """A clip's data by modality; one with a problem is left out.

        Returns:
            `audio`: (samples,) int16, read-only. `video`: list of buffers, a JPEG file each.
        """
        path, row = self._place[id]
        batch = _shard(path)
        waveform, frames = batch.column("waveform")[row], batch.column("frames")[row]
        data: dict[str, Any] = {}
        if waveform.is_valid:
            data["audio"] = np.frombuffer(waveform.as_buffer(), dtype=np.int16)
        if frames.is_valid:
            data["video"] = [frame.as_buffer() for frame in frames.values]
        return data


_shard = lru_cache(maxsize=256)(_map_shard)  # bounded: each mapped file keeps a descriptor, and 1,024 is a common limit
