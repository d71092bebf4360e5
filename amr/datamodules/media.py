"""One clip: where it is, how it is decoded, and what was wrong with it.

Nothing here imports torch: the worker processes of `prepare` import this file, and torch would cost each of them
seconds and hundreds of megabytes.
"""

import io
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from amr.errors import UserError

MODALITIES = ("audio", "video")

_SEEK_FROM = 5.0  # s; nearer starts are reached faster, and in any container, by decoding from the beginning
_PREROLL = 1.0  # s decoded before the window after a seek, for codecs whose frames lean on earlier ones
_NEAR = 2  # frames from a wanted time within which every frame is decoded
_SILENCE = 3  # of 32,768: about -80 dB, above the dither of a recording of nothing
_STILLNESS = 4  # of 255, in a 16 x 16 thumbnail: re-encoded pictures reach it, faces that talk exceed 14
STILL = "still frames"  # this reason and the next do not make a modality unusable
KEPT = "damaged, kept"


def without_details(reason: str) -> str:
    """A reason without its details: the same text for all clips with that problem."""
    return reason.split(":")[0]


@dataclass(frozen=True, slots=True)  # slots: there may be hundreds of thousands
class Clip:
    """One row of a listing.

    Attributes:
        id: Unique name.
        label: One of the data module's labels.
        split: train, val, test, or all (in each of the three).
        files: The file of each modality that the clip has, relative to the data module's root.
        start: Window's first second; None: the file's beginning.
        end: Window's last second, excluded; None: the file's end.
    """

    id: str
    label: str
    split: str
    files: dict[str, Path]
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class DecodeOptions:
    """What `prepare` keeps of a clip. Other options mean another store.

    Args:
        sample_rate: Samples a second of the mono waveform.
        fps: Frames a second, each the one nearest to the middle of its 1/fps s; None keeps every native frame.
        size: Shorter side of the stored frames in pixels; None keeps the native size.
        crop: Part of the source frame to keep, before resizing: top, left, height, width in pixels.
        jpeg_quality: 1 to 95.
    """

    sample_rate: int = 16000
    fps: float | None = None
    size: int | None = None
    crop: tuple[int, int, int, int] | None = None
    jpeg_quality: int = 95

    def __post_init__(self) -> None:
        if self.sample_rate < 1:
            raise UserError(f"decode.sample_rate is {self.sample_rate}; it must be at least 1 Hz")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UserError(f"decode.fps is {self.fps}; it must be positive, or null for every frame")
        if self.size is not None and self.size < 1:
            raise UserError(f"decode.size is {self.size}; it must be at least 1 pixel, or null for the native size")
        if self.crop is not None and (min(self.crop[:2]) < 0 or min(self.crop[2:]) < 1):
            raise UserError(
                f"decode.crop is {list(self.crop)}; it must be [top >= 0, left >= 0, height > 0, width > 0]"
            )
        if not 1 <= self.jpeg_quality <= 95:
            raise UserError(f"decode.jpeg_quality is {self.jpeg_quality}; it must be 1 to 95")


@dataclass
class Decoded:
    """A decoded clip; a modality with a problem has no data.

    Attributes:
        waveform: (samples,) int16, mono.
        frames: JPEG files in order of time.
        problems: Reason by modality; the part before a colon is the same for all clips with that problem.
        still: Whether all of several frames show the same picture, give or take what encoding does.
        notes: By modality: what was lost of data that is kept all the same. Each begins with `KEPT`.
    """

    waveform: NDArray[np.int16] | None = None
    frames: list[bytes] | None = None
    problems: dict[str, str] = field(default_factory=dict)
    still: bool = False
    notes: dict[str, str] = field(default_factory=dict)


class _SkippedError(Exception):
    """A frame that was not decoded may have been the one to pick."""


class _ProblemError(Exception):
    """Why a modality of a clip cannot be used."""


def decode(clip: Clip, root: Path, options: DecodeOptions) -> Decoded:
    """Decode the clip's window of every modality. Whatever is wrong with its files is returned, never raised."""
    decoded = Decoded()
    with closing(_Files()) as files:
        for modality in MODALITIES:
            try:
                if modality not in clip.files:
                    raise _ProblemError("no file listed")
                path = root / clip.files[modality]
                if modality == "audio":
                    decoded.waveform = _read_waveform(files, path, clip, options)
                else:
                    decoded.frames, decoded.still = _read_frames(files, path, clip, options)
            except _ProblemError as problem:
                decoded.problems[modality] = str(problem)
            except av.FFmpegError as error:
                decoded.problems[modality] = f"decode error: {error.strerror}"
            except Exception as error:  # one strange file must not end hours of work
                decoded.problems[modality] = f"decode error: {type(error).__name__} {error}"
    return decoded


def _read_waveform(files: "_Files", path: Path, clip: Clip, options: DecodeOptions) -> NDArray[np.int16]:
    rate, start, end = options.sample_rate, clip.start or 0.0, math.inf if clip.end is None else clip.end
    chunks: list[NDArray[np.int16]] = []
    first: float | None = None  # time of the first decoded sample
    container, stream = files.open(path, "audio")
    declared = _duration(container, stream)
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    for time, frame in _decode(container, stream, start):
        if time > end + 0.1:  # the resampler holds a few milliseconds back
            break
        first = time if first is None else first
        chunks += [out.to_ndarray()[0] for out in resampler.resample(frame)]
    if first is not None:
        chunks += [out.to_ndarray()[0] for out in resampler.resample(None)]
    wave = np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
    if first is not None and clip.start is not None:
        skip = round((start - first) * rate)
        wave = wave[skip:] if skip >= 0 else np.concatenate([np.zeros(-skip, np.int16), wave])
    if end < math.inf:
        wave = wave[: round((end - start) * rate)]
    _check_length(len(wave) / rate, start, end, declared)
    if not len(wave):
        raise _ProblemError("no samples")
    if max(int(wave.max()), -int(wave.min())) <= _SILENCE:
        raise _ProblemError("silent")
    return wave


def _read_frames(files: "_Files", path: Path, clip: Clip, options: DecodeOptions) -> tuple[list[bytes], bool]:
    """The frames, and whether they are all the same."""
    try:
        return _pick_frames(files, path, clip, options, skip=options.fps is not None)
    except _SkippedError:  # a stream whose frames are not evenly spaced
        files.close()  # with the decoder that skips
        return _pick_frames(files, path, clip, options, skip=False)


def _pick_frames(
    files: "_Files", path: Path, clip: Clip, options: DecodeOptions, *, skip: bool
) -> tuple[list[bytes], bool]:
    """As `_read_frames`.

    With `skip`, frames that no other one refers to are decoded only within `_NEAR` periods of a wanted time, which
    saves about a third; what is picked is the same, for a frame picked from farther away raises `_SkippedError`.
    """
    start, end = clip.start or 0.0, math.inf if clip.end is None else clip.end
    jpegs: list[bytes] = []
    first, still = None, True
    container, stream = files.open(path, "video")
    declared = _duration(container, stream)
    period = 1 / float(stream.average_rate or 25)
    near = _NEAR * period
    reach = start  # the time up to which frames were seen

    def see(time: float) -> bool:
        """Note a frame's time; whether one of the wanted times is near."""
        nonlocal reach
        if start - 1e-6 <= time < end - 1e-6:
            reach = max(reach, time + period)
        if options.fps is None:
            return True
        place = (time - start) * options.fps - 0.5  # in wanted times
        return abs(place - max(round(place), 0)) <= near * options.fps

    def window() -> Iterator[tuple[float, Any]]:
        for time, frame in _decode(container, stream, start, see if skip else None):
            if time >= end - 1e-6:
                return
            if time >= start - 1e-6:
                see(time)
                yield time, frame

    picked = window() if options.fps is None else _nearest(window(), start, end, options.fps, period)
    reformatter = VideoReformatter()  # one for all frames: each would build its own scaler otherwise
    for index, (time, frame) in enumerate(picked):
        if skip and options.fps is not None and abs(time - start - (index + 0.5) / options.fps) > near:
            raise _SkippedError
        width, height = _scaled(frame.width, frame.height, options)
        scaled = reformatter.reformat(frame, width, height, "rgb24", interpolation="BILINEAR", threads=1)
        image = Image.fromarray(scaled.to_ndarray())
        if still:
            thumbnail = np.asarray(image.resize((16, 16), Image.Resampling.BOX), np.int16)
            first = thumbnail if first is None else first
            still = bool(np.abs(thumbnail - first).max() <= _STILLNESS)
        jpegs.append(_jpeg(image, options))
    _check_length(reach - start, start, end, declared)
    if not jpegs:
        raise _ProblemError("no frames")
    return jpegs, still and len(jpegs) > 1


class _Files:
    """Opens a clip's files; one that holds both sound and picture only once, for probing it takes milliseconds."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._container: Any = None

    def open(self, path: Path, kind: str) -> tuple[Any, Any]:
        """The file's container, at its beginning, and its first stream of a kind."""
        if path != self._path or not self._rewind():
            self.close()
            self._container = _open(path)
            self._path = path
        streams = getattr(self._container.streams, kind)
        if not streams:
            raise _ProblemError(f"no {kind} stream")
        streams[0].codec_context.thread_count = 1  # the clips are decoded in parallel, not the frames
        return self._container, streams[0]

    def _rewind(self) -> bool:
        """Only mp4 and its kin have an index that is sure to lead to the very first packet."""
        if "mp4" not in self._container.format.name.split(","):
            return False
        try:
            self._container.seek(0)
        except av.FFmpegError:
            return False
        return True

    def close(self) -> None:
        """Close what is open."""
        if self._container is not None:
            self._container.close()
        self._path = self._container = None


def _open(path: Path) -> Any:
    if not path.is_file():
        raise _ProblemError("file missing")
    size = path.stat().st_size
    if size == 0:
        raise _ProblemError("zero bytes")
    if size < (declared := _riff_size(path)):  # FFmpeg takes the rest of a cut WAV for all of it
        raise _ProblemError(f"truncated: {size} of {declared} bytes")
    return av.open(str(path))


def _riff_size(path: Path) -> int:
    """Bytes that a WAV or AVI file says it has; 0: another format, or a writer that did not know."""
    with path.open("rb") as file:
        head = file.read(8)
    size = int.from_bytes(head[4:8], "little") + 8
    return size if head[:4] == b"RIFF" and size < 2**32 else 0


def _decode(
    container: Any, stream: Any, start: float, wanted: Callable[[float], bool] | None = None
) -> Iterator[tuple[float, Any]]:
    """(seconds, frame) from at most `start` on; a late start is reached by seeking.

    wanted: Says of a frame's time whether it must be decoded; others are where they are needed to decode one that must.
    """
    frames = _frames(container, stream, wanted)
    if start > _SEEK_FROM:
        container.seek(int((start - _PREROLL) / stream.time_base), stream=stream)
        frames = _frames(container, stream, wanted)
        head = next(frames, None)
        if head is None or head.time is None or head.time > start:  # a container without a usable index
            container.seek(0)
            frames = _frames(container, stream, wanted)
        else:
            yield head.time, head
    count = 0
    try:
        for frame in frames:
            yield (frame.time if frame.time is not None else count / float(stream.average_rate or 25)), frame
            count += 1
    except av.FFmpegError as error:
        if count:
            raise _ProblemError(f"truncated: {error.strerror} after {count} frames") from error
        raise


def _frames(container: Any, stream: Any, wanted: Callable[[float], bool] | None) -> Iterator[Any]:
    if wanted is None:
        yield from container.decode(stream)
        return
    second = float(stream.time_base)
    for packet in container.demux(stream):
        needed = packet.pts is None or wanted(packet.pts * second)
        stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        yield from packet.decode()


def _nearest(
    frames: Iterable[tuple[float, Any]], start: float, end: float, fps: float, period: float
) -> Iterator[tuple[float, Any]]:
    """The frames nearest to start + (i + 0.5) / fps, holding no more than two at a time."""
    index, previous = 0, None
    for time, frame in frames:
        while (target := start + (index + 0.5) / fps) <= time:
            index += 1
            yield previous if previous and target - previous[0] <= time - target else (time, frame)
        previous = (time, frame)
    if previous:
        while not index or start + (index + 0.5) / fps < min(end, previous[0] + period) - 1e-6:
            index += 1
            yield previous


def _scaled(width: int, height: int, options: DecodeOptions) -> tuple[int, int]:
    """Width and height at which a frame leaves the decoder: the stored ones, unless it is cropped first."""
    if options.size is None or options.crop is not None:
        return width, height
    scale = options.size / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _jpeg(image: Image.Image, options: DecodeOptions) -> bytes:
    if options.crop is not None:
        top, left, height, width = options.crop
        if top + height > image.height or left + width > image.width:
            raise _ProblemError(
                f"crop outside the frame: {list(options.crop)} of {image.height} x {image.width} pixels"
            )
        image = image.crop((left, top, left + width, top + height))
        image = image.resize(_scaled(*image.size, replace(options, crop=None)), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=options.jpeg_quality)
    return buffer.getvalue()


def _duration(container: Any, stream: Any) -> float | None:
    """Seconds that the file declares for the stream, or for its longest one."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


def _check_length(got: float, start: float, end: float, declared: float | None) -> None:
    """Refuse a window that the file does not have, and a file that ends early."""
    limit = math.inf if declared is None else declared
    want = min(end, limit) - start
    slack = max(0.2, 0.1 * want) if want < math.inf else 0.2
    if start >= limit or limit + slack < end < math.inf:
        raise _ProblemError(f"window outside the clip: {start:g} to {end:g} s of {limit:g} s")
    want = (end if end < math.inf else limit) - start
    if want < math.inf and got < want - slack:
        raise _ProblemError(f"truncated: {got:.2f} of {want:.2f} s")
