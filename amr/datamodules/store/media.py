"""One clip: where it is, how it is decoded, and what was wrong with it.

Nothing here imports torch: the worker processes of `prepare` import this file, and torch would cost each of them
seconds and hundreds of megabytes.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amr.datamodules.store.decoding.picture import Pictures, Shaper, jpeg
from amr.datamodules.store.decoding.sound import Sound
from amr.datamodules.store.decoding.source import ProblemError, Source
from amr.datamodules.store.decoding.timeline import Timeline
from amr.datamodules.store.raw import packed
from amr.utils.errors import UserError

MODALITIES = ("audio", "video")

_TOLERATED = 0.1  # part of a modality that may be lost where damaged clips are kept
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
    """Options that decide what `prepare` keeps of a clip. Other options mean another store.

    Args:
        sample_rate: Samples a second of the mono waveform.
        fps: Frames a second, each the one nearest to the middle of its 1/fps s, or the one on show there if it stands
            longer than 0.1 s; None keeps every native frame.
        size: Shorter side of the stored frames in pixels; None keeps the native size.
        crop: Part of the source frame to keep, before resizing: top, left, height, width in pixels.
        jpeg_quality: 1 to 95.
        damage: Treatment of a modality of which a part is lost: `keep` what is sound if less than a tenth is lost,
            and report how much; `skip` it.
        frames: How frames are stored. jpeg: compressed, with `jpeg_quality`. raw: as uint8 pixels, which are read
            several times faster and take 5 to 15 times the room.
        spectrogram: Whether to store the spectrogram that `data.audio` makes, too, rounded to float16. Training then
            reads it in place of computing it in each epoch. Nothing random may precede it.
    """

    sample_rate: int = 16000
    fps: float | None = None
    size: int | None = None
    crop: tuple[int, int, int, int] | None = None
    jpeg_quality: int = 95
    damage: Literal["keep", "skip"] = "keep"
    frames: Literal["jpeg", "raw"] = "jpeg"
    spectrogram: bool = False

    def __post_init__(self) -> None:
        # 1 in Python, 1.0 in YAML and a list for a tuple must give one store.
        if self.fps is not None:
            object.__setattr__(self, "fps", float(self.fps))
        if self.crop is not None:
            object.__setattr__(self, "crop", tuple(self.crop))
        if self.sample_rate < 1:
            raise UserError(f"decode.sample_rate={self.sample_rate}: must be at least 1 Hz")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UserError(f"decode.fps={self.fps}: must be positive, or null for every frame")
        if self.size is not None and self.size < 1:
            raise UserError(f"decode.size={self.size}: must be at least 1 pixel, or null for the native size")
        if self.crop is not None and (min(self.crop[:2]) < 0 or min(self.crop[2:]) < 1):
            raise UserError(f"decode.crop={list(self.crop)}: must be [top >= 0, left >= 0, height > 0, width > 0]")
        if not 1 <= self.jpeg_quality <= 95:
            raise UserError(f"decode.jpeg_quality={self.jpeg_quality}: must be 1 to 95")
        if self.damage not in ("keep", "skip"):
            raise UserError(f"decode.damage={self.damage!r}: must be keep or skip")
        if self.frames not in ("jpeg", "raw"):
            raise UserError(f"decode.frames={self.frames!r}: must be jpeg or raw")

    def identity(self) -> dict[str, Any]:
        """Values that distinguish the stores of two options, in plain types.

        The defaults of `frames` and `spectrogram` are left out: stores that are older than these options stay valid.
        """
        what = asdict(self)
        if self.frames == "raw":
            del what["jpeg_quality"]
        else:
            del what["frames"]
        if not self.spectrogram:
            del what["spectrogram"]
        return what

    def settings(self) -> dict[str, Any] | None:
        """Settings of the stored spectrograms, in plain types; None: there are none."""
        return None

    def spectrum(self, waveform: NDArray[np.int16]) -> NDArray[np.float16] | None:
        """The spectrogram of a clip to store; None: none is stored."""
        return None


def as_listed(clip: Clip) -> Clip:
    """The clip as it is, for listings that have its files."""
    return clip


@dataclass
class Decoded:
    """A decoded clip; a modality with a problem has no data.

    Attributes:
        waveform: (samples,) int16, mono.
        frames: Frames in order of time: JPEG files, or PPM files if they are raw.
        problems: Reason by modality; the part before a colon is the same for all clips with that problem.
        still: Whether all of several frames show the same picture, give or take what encoding does.
        notes: By modality: what was lost of data that is kept all the same. Each begins with `KEPT`.
        spectrogram: Float16, of the shape that the audio transform gives; None: it is not stored, or there is no sound.
    """

    waveform: NDArray[np.int16] | None = None
    frames: list[bytes] | None = None
    problems: dict[str, str] = field(default_factory=dict)
    still: bool = False
    notes: dict[str, str] = field(default_factory=dict)
    spectrogram: NDArray[np.float16] | None = None


def decode(clip: Clip, root: Path, options: DecodeOptions) -> Decoded:
    """Decode the clip's window of every modality. Whatever is wrong with its files is returned, never raised.

    Seconds count from the file's beginning: from the earliest of its sound and its picture, whatever its clock says. A
    gap in the sound is silence; a picture stays until the next one comes.
    """
    decoded = Decoded()
    by_path: dict[Path, list[str]] = {}
    for modality in MODALITIES:
        if modality in clip.files:
            by_path.setdefault(root / clip.files[modality], []).append(modality)
        else:
            decoded.problems[modality] = "no file listed"
    for path, modalities in by_path.items():
        with _noting(decoded, modalities), closing(Source(path)) as source:
            timeline = None
            if "audio" in modalities:
                with _noting(decoded, ["audio"]):
                    timeline = _read_sound(source, clip, options, decoded)
            if "video" in modalities:
                with _noting(decoded, ["video"]):
                    _read_pictures(source, timeline, clip, options, decoded)
    return decoded


@contextmanager
def _noting(decoded: Decoded, modalities: Sequence[str]) -> Iterator[None]:
    """Turn an exception into a problem of the modalities."""
    try:
        yield
        return
    except ProblemError as problem:
        text = str(problem)
    except av.FFmpegError as error:
        text = f"decode error: {error.strerror}"
    except Exception as error:  # one strange file must not end hours of work
        text = f"decode error: {type(error).__name__} {error}"
    for modality in modalities:
        decoded.problems[modality] = text
        decoded.notes.pop(modality, None)


def _window(clip: Clip) -> tuple[float, float]:
    return clip.start or 0.0, math.inf if clip.end is None else clip.end


def _read_sound(source: Source, clip: Clip, options: DecodeOptions, decoded: Decoded) -> Timeline:
    (start, end), rate = _window(clip), options.sample_rate
    source.stream("audio")
    sound = Sound(rate, start, end)
    timeline = Timeline(source, start, end, sound)
    wave = sound.finish()[0]
    if (channel := sound.cancelled(wave)) is not None:
        source.rewind()
        sound = Sound(rate, start, end, channel=channel)
        timeline = Timeline(source, start, end, sound)
        wave = sound.finish()[0]
    track = timeline.audio
    assert track is not None
    missing = timeline.check(start, end, track.end)
    _judge(decoded, "audio", timeline, start, end, missing, sound.lost, track.moved, options)
    if end < math.inf and timeline.whole:
        wave = np.pad(wave, (0, max(0, round((min(end, timeline.end) - start) * rate) - len(wave))))
    if not len(wave):
        raise ProblemError("no samples")
    if max(int(wave.max()), -int(wave.min())) <= _SILENCE:
        raise ProblemError("silent")
    decoded.waveform, decoded.spectrogram = wave, options.spectrum(wave)
    return timeline


def _read_pictures(
    source: Source, timeline: Timeline | None, clip: Clip, options: DecodeOptions, decoded: Decoded
) -> None:
    start, end = _window(clip)
    source.stream("video")
    if timeline is None:
        if "audio" in clip.files:  # whose reading failed
            source.rewind()
        timeline = Timeline(source, start, end)
    track = timeline.video
    assert track is not None
    missing = 0.0 if timeline.is_still else timeline.check(start, end, timeline.picture_end)
    pictures = Pictures(source, timeline, -math.inf if clip.start is None else start, end, options.fps)
    shape = Shaper(options.size, options.crop, source.path if source.photo else None)
    files: list[bytes] = []
    first, still = None, True
    for _, frame, again in pictures:
        if again:
            files.append(files[-1])
            continue
        image = shape(frame)
        if still:
            thumbnail = np.asarray(image.resize((16, 16), Image.Resampling.BOX), np.int16)
            first = thumbnail if first is None else first
            still = bool(np.abs(thumbnail - first).max() <= _STILLNESS)
        files.append(encoded(image, options))
    _judge(decoded, "video", timeline, start, end, missing, pictures.lost, track.moved, options)
    decoded.frames, decoded.still = files, still and len(files) > 1


def encoded(image: Image.Image, options: DecodeOptions) -> bytes:
    """A picture as the store keeps it."""
    return packed(np.asarray(image)) if options.frames == "raw" else jpeg(image, options.jpeg_quality)


def _judge(
    decoded: Decoded,
    modality: str,
    timeline: Timeline,
    start: float,
    end: float,
    missing: float,
    lost: float,
    moved: int,
    options: DecodeOptions,
) -> None:
    """Decide about a modality of which a part is lost.

    Args:
        decoded: Where it is noted.
        modality: Which.
        timeline: Timeline of its file.
        start: Window's first second.
        end: Window's last one.
        missing: Seconds that are missing at the end.
        lost: Seconds that could not be decoded.
        moved: Times that were damaged.
        options: Has `damage`.

    Raises:
        ProblemError: Too much is lost.
    """
    holes = timeline.holes
    if not missing and not lost and not moved and not holes:
        return
    track = timeline.audio if modality == "audio" else timeline.video
    assert track is not None
    length = max(min(end, timeline.end + missing if timeline.whole else math.inf) - start, 1e-3)
    bad = options.damage == "skip" and (missing or lost or moved)
    if missing and (bad or (missing + lost) / length >= _TOLERATED):
        raise ProblemError(f"truncated: {length - missing:.2f} of {length:.2f} s")
    details = [f"{missing + lost:.2f} of {length:.2f} s lost"] if missing or lost else []
    details += [f"{holes:.2f} s without sound and picture"] if holes else []  # which a pause makes, too
    details += [f"{moved} of {len(track.times)} times wrong"] if moved else []
    if bad or lost / length >= _TOLERATED or moved / len(track.times) >= _TOLERATED:
        raise ProblemError(f"damaged: {', '.join(details)}")
    decoded.notes[modality] = f"{KEPT}: {', '.join(details)}"
