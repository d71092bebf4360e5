"""Draw and encode the clips of `Synthetic`. Nothing here imports torch: worker processes import this file."""

import math
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from numpy.typing import NDArray

from amr.utils.errors import UserError

RATE = 16000  # Hz
FPS = Fraction(25, 2)
SECONDS = 0.96  # 12 frames
SIDE = 64  # pixels


@dataclass(frozen=True)
class Evidence:
    """Probability that a modality shows the clip's own class; otherwise it shows one drawn from all C classes.

    The best accuracy that one modality allows is therefore e + (1 - e) / C.
    """

    audio: float = 0.95
    video: float = 0.6

    def __post_init__(self) -> None:
        for modality, value in vars(self).items():
            if not 0 <= value <= 1:
                raise UserError(f"data.evidence.{modality}={value}: must be 0 to 1")


@dataclass(frozen=True)
class Recipe:
    """All that decides the clips; see `Synthetic`."""

    classes: int
    seed: int
    evidence: Evidence
    audio_snr_db: float
    video_noise: float

    def label(self, index: int) -> int:
        """Class of a clip; classes alternate."""
        return index % self.classes

    def cues(self, index: int) -> dict[str, int]:
        """The class that each modality of a clip shows."""
        rng = np.random.default_rng([self.seed, index, 0])
        cues = {}
        for modality, evidence in vars(self.evidence).items():
            own, other = rng.random() < evidence, int(rng.integers(self.classes))
            cues[modality] = self.label(index) if own else other
        return cues

    def shows(self, index: int) -> frozenset[str]:
        """Modalities that show the clip's own class, be it by chance."""
        return frozenset(m for m, cue in self.cues(index).items() if cue == self.label(index))

    def draw(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """A clip's frames, (frames, side, side, 3), and waveform, (samples,) in -1..1."""
        cues, rng = self.cues(index), np.random.default_rng([self.seed, index, 1])
        wave = _tone(cues["audio"] / self.classes, self.audio_snr_db, rng)
        return _moving_bar(cues["video"] / self.classes, self.video_noise, rng), wave


class Drawable(Protocol):
    """Description from which clips are drawn: `Recipe` or `Planted`."""

    def draw(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """A clip's frames and waveform."""


def write_clips(folder: Path, recipe: Drawable, indices: list[int]) -> int:
    """Write the clips with these numbers and return how many they are."""
    for index in indices:
        _write_clip(folder / f"{index:05d}.mp4", recipe, index)
    return len(indices)


def _write_clip(path: Path, recipe: Drawable, index: int) -> None:
    frames, wave = recipe.draw(index)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    write_mp4(temporary, frames, wave)
    temporary.replace(path)


def cue_of(cue: float) -> tuple[float, float, float]:
    """Features that show a class, before each clip's own deviation.

    Args:
        cue: The class, in [0, 1): its number over the number of classes.

    Returns:
        The tone's pitch in Hz, its pulses per second, and the bar's angle from upright in rad.
    """
    return 300 * 2 ** (3 * cue), 3 + 4 * cue, math.pi * cue  # 300 Hz up, over three octaves; 3 to 7 per second


def _tone(cue: float, snr_db: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A pulsing tone in white noise, (samples,) in -1..1; pitch and rhythm tell the class, `cue` in 0..1."""
    t = np.arange(round(SECONDS * RATE)) / RATE
    pitch, rate, _ = cue_of(cue)
    pitch *= rng.uniform(0.97, 1.03)
    pulses = np.sin(math.pi * rate * (t + rng.random())) ** 2
    tone = pulses * np.sin(2 * math.pi * (pitch * t + rng.random()))
    noise = rng.standard_normal(len(t)) * tone.std() / 10 ** (snr_db / 20)
    wave = tone + noise
    wave *= rng.uniform(0.3, 0.9) / np.abs(wave).max()
    return np.asarray(wave, np.float32)


def _moving_bar(cue: float, noise: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A bar drifting sideways over noise, (frames, side, side, 3); its angle tells the class, `cue` in 0..1."""
    n = round(SECONDS * float(FPS))
    angle = cue_of(cue)[2] + rng.uniform(-0.1, 0.1)
    across = np.array([math.cos(angle), math.sin(angle)])  # the direction of the drift
    y, x = np.mgrid[:SIDE, :SIDE]
    drift = rng.choice([-1, 1]) * rng.uniform(0.5, 1.5) * (np.arange(n) - n / 2)  # pixels
    centre = SIDE / 2 + rng.uniform(-10, 10, 2) + drift[:, None] * across  # (n, 2)
    dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]  # (n, side, side)
    bar = (np.abs(dx * across[0] + dy * across[1]) < 3) & (np.abs(dy * across[0] - dx * across[1]) < 16)
    colour = rng.uniform(0.4, 1, 3)
    frames = 100 + 100 * bar[..., None] * colour + noise * rng.standard_normal((n, SIDE, SIDE, 1))
    return np.asarray(frames.clip(0, 255), np.uint8)


def write_mp4(
    path: Path,
    frames: NDArray[np.uint8] | None,
    wave: NDArray[np.float32] | None,
    *,
    fps: Fraction = FPS,
    rate: int = RATE,
    preset: str = "ultrafast",
) -> None:
    """Encode H.264 and AAC.

    Args:
        path: The file.
        frames: (n, height, width, 3), even sides; None: no video stream.
        wave: (samples,) in -1..1; None: no audio stream.
        fps: Frames a second.
        rate: Samples a second.
        preset: x264's: how much work it puts into a smaller file.
    """
    with av.open(str(path), "w", format="mp4") as container:
        if frames is not None:
            video = container.add_stream("libx264", rate=fps, options={"preset": preset, "crf": "20"})
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = "yuv420p"
            video.codec_context.thread_count = 1  # the same bytes on any machine
        if wave is not None:
            audio = container.add_stream("aac", rate=rate, layout="mono")
        if frames is not None:
            for image in frames:
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(video.encode(None))
        if wave is not None:
            for i in range(0, len(wave), 1024):  # AAC's frame length
                block = av.AudioFrame.from_ndarray(wave[None, i : i + 1024], format="fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = rate, i, Fraction(1, rate)
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))
