"""Packs a clip into a record batch of a shard, and its problems into a line of text."""

import json
import zlib
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from amr.datamodules.store.media import KEPT, STILL, Decoded, without_details

SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # ascending, within a shard and from one to the next
        ("waveform", pa.large_binary()),  # int16 mono; null in the index
        ("frames", pa.list_(pa.large_binary())),  # JPEG or PPM files; null in the index
        (
            "problem",
            pa.string(),
        ),  # in the index: JSON {modality: reason}; null: none; with STILL or KEPT the data is there
        ("crc", pa.uint32()),  # in the index: CRC-32 of the waveform, the frames and the spectrogram
    ]
)
SPECTRAL = SCHEMA.append(pa.field("spectrogram", pa.large_binary()))  # float16; null in the index


def pack(id: str, decoded: Decoded, schema: Any) -> tuple[Any, int]:
    """A clip's record batch and the checksum of its data; no sound is copied, and the frames are joined."""
    columns = {"id": pa.array([id])}
    checksum = 0
    if decoded.waveform is not None:
        columns["waveform"], checksum = _binary(decoded.waveform, checksum)
    if decoded.frames is not None:
        joined, sizes = pa.py_buffer(b"".join(decoded.frames)), [len(frame) for frame in decoded.frames]
        files = pa.Array.from_buffers(pa.large_binary(), len(sizes), [None, _offsets(sizes), joined])
        columns["frames"] = pa.ListArray.from_arrays(pa.array([0, len(sizes)], pa.int32()), files)
        checksum = zlib.crc32(joined, checksum)
    if decoded.spectrogram is not None:
        columns["spectrogram"], checksum = _binary(decoded.spectrogram, checksum)
    return pa.record_batch([columns.get(f.name, pa.nulls(1, f.type)) for f in schema], schema), checksum


def pack_index(index: list[tuple[str, str | None, int]], schema: Any) -> Any:
    """The last record batch: id, problem and checksum of each clip."""
    ids, problems, crcs = zip(*index, strict=True) if index else ((), (), ())
    columns = {
        "id": pa.array(ids, pa.string()),
        "problem": pa.array(problems, pa.string()),
        "crc": pa.array(crcs, pa.uint32()),
    }
    return pa.record_batch([columns.get(f.name, pa.nulls(len(ids), f.type)) for f in schema], schema)


def checksum_of(data: dict[str, Any]) -> int:
    """Checksum of a clip's data as they are read, to compare with that of `pack`."""
    crc = zlib.crc32(data["audio"]) if "audio" in data else 0
    for frame in data.get("video", ()):
        crc = zlib.crc32(frame, crc)
    return zlib.crc32(data["spectrogram"], crc) if "spectrogram" in data else crc


def parts(column: Any) -> list[Any]:
    """Each row of a column of bytes as a buffer, of which nothing is copied; a scalar's `as_buffer` copies."""
    _, offsets, content = column.buffers()
    if content is None:  # as where all rows are empty
        return [pa.py_buffer(b"")] * len(column)
    ends = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1].tolist()
    return [content.slice(start, end - start) for start, end in pairwise(ends)]


def _binary(values: Any, checksum: int) -> tuple[Any, int]:
    """A column of one row with an array's bytes, and the running checksum updated with them."""
    content = pa.py_buffer(np.ascontiguousarray(values))
    column = pa.Array.from_buffers(pa.large_binary(), 1, [None, _offsets([content.size]), content])
    return column, zlib.crc32(content, checksum)


def _offsets(sizes: list[int]) -> Any:
    return pa.py_buffer(np.cumsum([0, *sizes], dtype=np.int64))


def packed_reasons(decoded: Decoded) -> dict[str, str]:
    """All problems of a clip, by modality."""
    reasons = {**decoded.notes, **decoded.problems}
    if decoded.still:
        reasons["video"] = f"{STILL}: {reasons['video']}" if "video" in reasons else STILL
    return reasons


def unpacked_reasons(reasons: dict[str, str]) -> tuple[dict[str, str], bool, dict[str, str]]:
    """The problems, whether the frames are still, and the notes that `packed_reasons` was made from."""
    problems = dict(reasons)
    if still := without_details(problems.get("video", "")) == STILL:
        note = problems.pop("video").partition(": ")[2]
        problems.update({"video": note} if note else {})
    notes = {modality: text for modality, text in problems.items() if text.startswith(KEPT)}
    return {modality: text for modality, text in problems.items() if modality not in notes}, still, notes


def parsed_reasons(problem: str | None) -> dict[str, str]:
    """Reasons by modality, from their JSON; none of null."""
    reasons = json.loads(problem) if problem else {}
    if not isinstance(reasons, dict) or not all(isinstance(reason, str) for reason in reasons.values()):
        raise ValueError("a problem that is no reason by modality")
    return reasons
