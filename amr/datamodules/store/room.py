"""Estimates the size of a store from a few clips, scaled by the size of all files."""

import math
import shutil
import statistics
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from itertools import accumulate
from pathlib import Path

from amr.datamodules.store.media import Clip, Decoded, DecodeOptions, as_listed, decode
from amr.utils.errors import UserError
from amr.utils.streams import status
from amr.utils.work import run_tasks

_SAMPLE = 16  # clips that are decoded
_WEIGHED = 20_000  # clips whose files are looked at; more would take minutes on a network's file system
OVERHEAD = 1000  # bytes that a clip takes in a shard besides its data


def check_room(estimated: tuple[float, float], count: int, store: Path, options: DecodeOptions) -> None:
    """Report how much room the clips will take, and refuse a disk that is surely too small.

    Args:
        estimated: Bytes that they will take, and the standard error.
        count: Number of clips.
        store: Where.
        options: How they are kept.

    Raises:
        UserError: The disk is too small.
    """
    need, error = estimated
    free = shutil.disk_usage(store).free
    text = f"{store}: estimate: about {_size_text(need)} (± {_size_text(2 * error)}) for {count} clips"
    text += f", {_size_text(free)} free"
    if need - 2 * error > free:
        less = "decode.fps and decode.size" + (", or by decode.frames=jpeg" if options.frames == "raw" else "")
        raise UserError(f"{text}; name another folder as `store`, or keep less by {less}")
    status(text)


def estimate(
    clips: Sequence[Clip],
    options: DecodeOptions,
    root: Path,
    workers: int,
    executor: Executor | None = None,
    locate: Callable[[Clip], Clip] = as_listed,
    sample: int = _SAMPLE,
) -> tuple[float, float] | None:
    """Bytes that the clips will take in a store, and the standard error; None: there is nothing to tell from.

    A clip is drawn with a probability proportional to its weight (seconds of its window, or else bytes of its files),
    so that a few long clips count for what they are. The mean of (stored bytes / weight) then estimates the whole
    without bias (Hansen and Hurwitz 1943).

    Args:
        clips: Those to be decoded.
        options: How to decode.
        root: Folder that the clips' files are relative to.
        workers: Processes, as in `prepare`.
        executor: As in `prepare`.
        locate: As in `prepare`.
        sample: Number of draws.
    """
    looked = [locate(clip) for clip in clips[:: math.ceil(len(clips) / _WEIGHED)]]
    windowed = all(clip.end is not None for clip in looked)
    weights = [_weight(clip, root, windowed=windowed) for clip in looked]
    total = sum(weights)
    if not total:  # nothing is there
        return None
    reach = list(accumulate(weights))
    drawn = [bisect_left(reach, (i + 0.5) / sample * total) for i in range(sample)]
    stored: dict[int, float] = {}
    try:
        tasks = [(number, looked[number], root, options) for number in dict.fromkeys(drawn)]
        for number, size in run_tasks(_size, tasks, workers=workers, executor=executor):
            stored[number] = size
    except UserError:  # a clip killed its worker: preparing it will show which
        pass
    ratios = [stored[number] / weights[number] for number in drawn if number in stored]
    if len(ratios) < 2:
        return None
    whole = total * len(clips) / len(looked)
    return whole * statistics.mean(ratios), whole * statistics.stdev(ratios) / len(ratios) ** 0.5


def _weight(clip: Clip, root: Path, *, windowed: bool) -> float:
    """A clip's seconds or its files' bytes; 0: none of its files is there."""
    size = 0
    for file in set(clip.files.values()):
        try:
            size += (root / file).stat().st_size
        except (OSError, ValueError):
            continue
    if size and windowed and clip.end is not None:
        return clip.end - (clip.start or 0.0)
    return float(size)


def _size(number: int, clip: Clip, root: Path, options: DecodeOptions) -> tuple[int, float]:
    """The number, and the bytes that the decoded clip takes in a shard."""
    return number, float(OVERHEAD + stored_size(decode(clip, root, options)))


def stored_size(decoded: Decoded) -> int:
    """Bytes of a decoded clip's data in a shard."""
    sound = sum(values.nbytes for values in (decoded.waveform, decoded.spectrogram) if values is not None)
    frames = decoded.frames or []
    return sound + sum(map(len, frames)) + 8 * len(frames)


def _size_text(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
