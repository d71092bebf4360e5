"""Converts a store without reading the media: changes the form of frames, and adds or drops spectrograms."""

import io
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from amr.datamodules.store.media import Clip, Decoded, DecodeOptions, encoded
from amr.datamodules.store.plan import Plan, finished_spans, gaps
from amr.datamodules.store.raw import is_raw, packed, unpacked
from amr.datamodules.store.room import OVERHEAD, stored_size
from amr.datamodules.store.shards import Shard, group_of, identity_key, read_key, read_settings, shard_files
from amr.utils.errors import UserError

_SAMPLE = 16  # clips that are converted for the estimate


class Origin:
    """The clips of a group in an old store, as other options keep them.

    Args:
        folder: The old store.
        group: Number of the group.
        options: Those of the new store.
    """

    def __init__(self, folder: Path, group: int, options: DecodeOptions) -> None:
        self._options = options
        self._places: dict[str, tuple[Shard, int]] = {}
        for number, _, path in shard_files(folder, f"shard-{group:05d}*"):
            if number == group:
                shard = Shard(path)
                self._places.update({id: (shard, place) for place, id in enumerate(shard.ids)})

    def __call__(self, clip: Clip) -> Decoded:
        """One clip, converted.

        Raises:
            UserError: Its data in the old store are damaged.
        """
        shard, place = self._places[clip.id]
        if not shard.is_sound(place):
            raise UserError(f"{shard.path}: clip {clip.id!r} is damaged; prepare that store again from the media")
        return convert(shard.decoded(place), self._options)


def convert(decoded: Decoded, options: DecodeOptions) -> Decoded:
    """A stored clip as other options keep it.

    Raw frames become the JPEG files that `prepare` makes of the media. JPEG files that become raw frames keep their
    loss.
    """
    frames = None if decoded.frames is None else [_reframed(frame, options) for frame in decoded.frames]
    spectrogram = None if decoded.waveform is None else options.spectrum(decoded.waveform)
    return replace(decoded, frames=frames, spectrogram=spectrogram)


def _reframed(frame: bytes, options: DecodeOptions) -> bytes:
    if is_raw(frame) == (options.frames == "raw"):
        return frame
    if is_raw(frame):
        return encoded(Image.fromarray(unpacked(frame)), options)
    with Image.open(io.BytesIO(frame)) as image:
        return packed(np.asarray(image.convert("RGB")))


def check_origin(origin: Path, store: Path, plan: Plan, options: DecodeOptions) -> None:
    """Refuse to convert a store that lacks clips, or whose options differ where they cannot be converted.

    Raises:
        UserError: It says what differs.
    """
    files = shard_files(origin)
    if origin.resolve() == store.resolve():
        raise UserError(f"convert={origin}: must be another folder than data.store, in which the new store is made")
    if not files:
        raise UserError(f"convert={origin}: must be a store that prepare filled; it has no shard")
    kinds = list(_kinds(options, {read_settings(path) for _, _, path in files}))
    of_group: dict[int, list[tuple[int, Path]]] = {}
    for number, start, path in files:
        of_group.setdefault(number, []).append((start, path))
    for group in plan:
        there = of_group.get(group_of(group.path), [])
        known = {identity_key(group.clips, kind) for kind in kinds}
        keys = [key for key in dict.fromkeys(read_key(path) for _, path in there) if key in known]
        if not any(not gaps(finished_spans(key, len(group.clips), there), len(group.clips)) for key in keys if key):
            raise UserError(
                f"convert={origin}: must be a finished store of the same clips and data.decode, but for frames and"
                f" spectrogram; it is not from clip {group.clips[0].id!r} on"
            )


def _kinds(options: DecodeOptions, settings: set[str | None]) -> Iterator[dict[str, Any]]:
    """Identities of the options of all stores that can be converted.

    Args:
        options: Those of the new store.
        settings: Settings of the old store's spectrograms, as its shards say them.
    """
    given = {field.name: getattr(options, field.name) for field in fields(DecodeOptions)}
    for form in ("jpeg", "raw"):
        kind = DecodeOptions(**{**given, "frames": form, "spectrogram": False}).identity()
        for text in settings:
            yield kind if text is None else {**kind, "spectrogram": json.loads(text)}


def estimate_converted(origin: Path, plan: Plan, options: DecodeOptions) -> tuple[float, float]:
    """Bytes that the converted clips will take, and the standard error, from some that lie evenly in the listing."""
    clips = [(group_of(group.path), clip) for group in plan for clip in group.clips]
    count = min(_SAMPLE, max(2, len(clips) // 16))
    sizes = []
    for number, clip in _evenly(clips, count):
        sizes.append(OVERHEAD + stored_size(Origin(origin, number, options)(clip)))
    deviation = statistics.stdev(sizes) if len(sizes) > 1 else 0.0
    return len(clips) * statistics.mean(sizes), len(clips) * deviation / len(sizes) ** 0.5


def _evenly(clips: Sequence[tuple[int, Clip]], count: int) -> list[tuple[int, Clip]]:
    places = dict.fromkeys(int((i + 0.5) * len(clips) / count) for i in range(count))
    return [clips[place] for place in places]
