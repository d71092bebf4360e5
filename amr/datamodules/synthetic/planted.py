"""Clips of `Synthetic` in which what tells the class, and where it is, is known. Nothing here imports torch."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from amr.datamodules.synthetic.synthesis import FPS, RATE, SECONDS, SIDE
from amr.utils.errors import UserError

Task = Literal["audio_only", "video_only", "redundant", "synergistic"]
TASKS: tuple[Task, ...] = get_args(Task)
_TELLING: dict[Task, frozenset[str]] = {
    "audio_only": frozenset({"audio"}),
    "video_only": frozenset({"video"}),
    "redundant": frozenset({"audio", "video"}),
    "synergistic": frozenset(),
}

FRAMES = round(SECONDS * float(FPS))
_SEGMENT = SECONDS * 3 / 8  # s
_TOP_MEL = 2595 * math.log10(1 + RATE / 2 / 700)  # O'Shaughnessy (1987)
_BAND = _TOP_MEL * 3 / 8  # mel; that part of a log-mel spectrogram's height wherever it lies
_MARGIN = 100  # mel, free at both ends of the spectrum
_PATCH = SIDE * 3 // 8  # pixels
_SHOWN = FRAMES // 2  # frames


@dataclass(frozen=True)
class Place:
    """Where a clip's two cues are, in its file; ends are exclusive.

    Args:
        start_s: Beginning of the sound's segment in seconds.
        end_s: Its end.
        low_hz: Lower edge of the sound's band in Hz.
        high_hz: Upper edge.
        top: The picture's patch, in pixels from the top and the left.
        left: See `top`.
        bottom: See `top`.
        right: See `top`.
        frame: First frame that shows it, from 0.
        end_frame: First one after it.
    """

    start_s: float
    end_s: float
    low_hz: float
    high_hz: float
    top: int
    left: int
    bottom: int
    right: int
    frame: int
    end_frame: int


@dataclass(frozen=True)
class Planted:
    """All that decides the clips of a task; see `Synthetic`."""

    classes: int
    seed: int
    task: Task
    audio_snr_db: float
    video_noise: float

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"data.task={self.task!r}: must be one of {', '.join(TASKS)}, or null")

    def label(self, index: int) -> int:
        """Class of a clip; classes alternate."""
        return index % self.classes

    def cues(self, index: int) -> dict[str, int]:
        """The cue that each modality of a clip shows, 0 to C - 1."""
        rng = np.random.default_rng([self.seed, index, 2])
        label, other = self.label(index), int(rng.integers(self.classes))
        match self.task:
            case "audio_only":
                return {"audio": label, "video": other}
            case "video_only":
                return {"audio": other, "video": label}
            case "redundant":
                return {"audio": label, "video": label}
            case "synergistic":
                return {"audio": other, "video": (label - other) % self.classes}

    def shows(self, index: int) -> frozenset[str]:
        """Modalities that tell the class by themselves."""
        return _TELLING[self.task]

    def place(self, index: int) -> Place:
        """Where a clip's cues are; independent of its class."""
        rng = np.random.default_rng([self.seed, index, 3])
        start = rng.uniform(0, SECONDS - _SEGMENT)
        low = rng.uniform(_MARGIN, _TOP_MEL - _MARGIN - _BAND)
        top, left = (int(at) for at in rng.integers(SIDE - _PATCH + 1, size=2))
        frame = int(rng.integers(FRAMES - _SHOWN + 1))
        return Place(
            start, start + _SEGMENT, _hz(low), _hz(low + _BAND), top, left, top + _PATCH, left + _PATCH, frame,
            frame + _SHOWN,
        )  # fmt: skip

    def draw(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """A clip's frames, (frames, side, side, 3), and waveform, (samples,) in -1..1."""
        cues, place, rng = self.cues(index), self.place(index), np.random.default_rng([self.seed, index, 4])
        wave = _glide(cues["audio"] / (self.classes - 1), place, self.audio_snr_db, rng)
        return _bar(cues["video"] / self.classes, place, self.video_noise, rng), wave


def _hz(mel: float) -> float:
    return float(700 * (10 ** (mel / 2595) - 1))


def _mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def _glide(cue: float, place: Place, snr_db: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """White noise, and within the place a tone, whose glide, from steeply down to steeply up, is the cue, 0 to 1."""
    t = np.arange(round(SECONDS * RATE)) / RATE
    within = ((t - place.start_s) / _SEGMENT).clip(0, 1)
    low, high = _mel(place.low_hz), _mel(place.high_hz)
    slope = 2 * cue - 1 + rng.uniform(-0.1, 0.1)  # bands a segment, but for the factor below, which stays inside
    pitch = 700 * (10 ** (((low + high) / 2 + 0.8 * slope * _BAND * (within - 0.5)) / 2595) - 1)  # Hz, straight in mel
    fade = (np.minimum(within, 1 - within) * 12).clip(0, 1)  # 20 ms each
    tone = np.sin(math.pi / 2 * fade) ** 2 * np.sin(2 * math.pi * (np.cumsum(pitch) / RATE + rng.random()))
    noise = rng.standard_normal(len(t)) * math.sqrt(0.5) / 10 ** (snr_db / 20)
    wave = tone + noise
    wave *= rng.uniform(0.3, 0.9) / np.abs(wave).max()
    return np.asarray(wave, np.float32)


def _bar(cue: float, place: Place, noise: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Noise, and within the place a bar, whose angle is the cue, 0 to 1."""
    angle = math.pi * cue + rng.uniform(-0.1, 0.1)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    dx, dy = x - (place.left + place.right) / 2, y - (place.top + place.bottom) / 2
    along, across = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
    bar = (np.abs(across) < 2) & (np.abs(along) < _PATCH / 2 - 1)
    shown = np.zeros((FRAMES, 1, 1, 1))
    shown[place.frame : place.end_frame] = 1
    colour = rng.uniform(0.6, 1, 3)
    frames = 100 + 100 * shown * bar[..., None] * colour + noise * rng.standard_normal((FRAMES, SIDE, SIDE, 1))
    return np.asarray(frames.clip(0, 255), np.uint8)
