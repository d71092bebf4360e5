"""Corruptions of a clip's sound and picture, at five severities.

Pure functions of what is stored, before any transform: a waveform (samples,) float32 in about -1..1, or the frames that
a network gets, (frames, channels, height, width) uint8, at the size in the store. Randomness is torch's, and the caller
seeds it by the clip alone: the same noise and the same place at every severity, so a worse one takes more of the same.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from amr.datamodules.loader import seeded
from amr.datamodules.store.shards import ClipStore
from amr.datamodules.transforms import AudioTransform, VideoTransform
from amr.utils.errors import UserError

SEVERITIES = (1, 2, 3, 4, 5)
_PACKET = 0.02  # s
_VOICES = 4


@dataclass(frozen=True)
class Context:
    """Further inputs that a corruption may need besides the clip.

    Attributes:
        sample_rate: Samples a second.
        others: Function that draws a number of other waveforms at random.
    """

    sample_rate: int = 16000
    others: Callable[[int], list[Tensor]] = lambda count: []


@dataclass(frozen=True)
class Corruption:
    """One way in which a modality goes wrong.

    Attributes:
        unit: Unit of a level.
        levels: Level of each of the severities 1 to 5.
        apply: From what is stored, a level and the context to the same, corrupted.
    """

    unit: str
    levels: tuple[float, float, float, float, float]
    apply: Callable[[Tensor, float, Context], Tensor]


class Corruptible(ABC):
    """A data module whose clips can be corrupted, with what the measures of robustness need."""

    @property
    @abstractmethod
    def corruptions(self) -> Mapping[str, Mapping[str, Corruption]]:
        """The corruptions of each modality, by name."""

    @property
    def joint_corruptions(self) -> Mapping[str, Mapping[str, str]]:
        """Joint corruptions of several modalities, by name: one corruption per modality."""
        return {}

    def corruption_at(self, modality: str, corruption: str, severity: int) -> tuple[Corruption, Any]:
        """A modality's corruption, by name, and its level at a severity.

        Raises:
            UserError: The corruption or the severity does not exist.
        """
        known = self.corruptions.get(modality, {})
        if corruption not in known or not 1 <= severity <= len(known[corruption].levels):
            allowed = "; ".join(f"{m}: {', '.join(names)}" for m, names in self.corruptions.items())
            raise UserError(f"corruption={modality} {corruption} {severity}: must be {allowed}, each from 1 to 5")
        return known[corruption], known[corruption].levels[severity - 1]

    @abstractmethod
    def corrupted(
        self, split: str, modality: str, corruption: str, severity: int, ids: Sequence[str], seed: int = 0
    ) -> Dataset[dict[str, Any]]:
        """These clips of a split, in this order, with one modality's corrupted input and no other modality's.

        Args:
            split: train, val or test.
            modality: Modality of which the input is made.
            corruption: One of the modality's.
            severity: 1 to 5.
            ids: Ids of clips that have the modality.
            seed: Seed of the noise; for a seed it is a function of the clip.

        Returns:
            Items `{"inputs": {modality: Tensor}, "label": int, "id": str}`.
        """


# ---------------------------------------------------------------------------------------------------------------- sound


def add_noise(wave: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """The sum, with the noise scaled so that the ratio of the mean powers is `snr_db`; silence stays as it is."""
    power, noise_power = wave.square().mean(), noise.square().mean()
    if noise_power == 0:
        return wave
    return wave + noise * (power / noise_power / 10 ** (snr_db / 10)).sqrt()


def white(wave: Tensor, snr_db: float, _: Context) -> Tensor:
    """White Gaussian noise."""
    return add_noise(wave, torch.randn_like(wave), snr_db)


def babble(wave: Tensor, snr_db: float, context: Context) -> Tensor:
    """Four other clips' sound together, each of the same power; repeated where they are shorter."""
    noise = torch.zeros_like(wave)
    for other in context.others(_VOICES):
        voice = other.repeat(-(-len(wave) // len(other)))[: len(wave)]
        noise += voice / voice.square().mean().sqrt().clamp_min(1e-8)
    return add_noise(wave, noise, snr_db)


def time_mask(wave: Tensor, fraction: float, _: Context) -> Tensor:
    """Silences one stretch, a fraction of the clip."""
    wave = wave.clone()
    wave[_stretch(len(wave), fraction)] = 0
    return wave


def frequency_mask(wave: Tensor, fraction: float, context: Context) -> Tensor:
    """Removes one band, a fraction of the range in mels (O'Shaughnessy 1987)."""
    spectrum = torch.fft.rfft(wave)
    hertz = torch.linspace(0, context.sample_rate / 2, len(spectrum))
    mel = torch.log10(1 + hertz / 700)
    place, top = float(torch.rand(())), float(mel[-1])
    low, high = place * (1 - fraction) * top, (place + fraction * (1 - place)) * top
    rest: Tensor = torch.fft.irfft(spectrum.masked_fill((mel >= low) & (mel <= high), 0), len(wave))
    return rest


def clipping(wave: Tensor, fraction: float, _: Context) -> Tensor:
    """Cuts off the loudest samples, a fraction of all, at one level."""
    size = wave.abs()
    limit = size.sort().values[min(int((1 - fraction) * len(wave)), len(wave) - 1)]
    return wave.clamp(-limit, limit)


def resampling(wave: Tensor, factor: float, _: Context) -> Tensor:
    """Resamples to a rate lower by a factor, and back; content above the new Nyquist frequency is lost."""
    spectrum = torch.fft.rfft(wave)
    spectrum[int(len(spectrum) / factor) :] = 0  # what an ideal resampler there and back leaves
    back: Tensor = torch.fft.irfft(spectrum, len(wave))
    return back


def silence(wave: Tensor, fraction: float, context: Context) -> Tensor:
    """Silences packets of 20 ms, a fraction of all."""
    size = max(1, round(_PACKET * context.sample_rate))
    lost = torch.randperm(-(-len(wave) // size))
    lost = lost[: math.ceil(fraction * len(lost))]
    dead = torch.zeros(-(-len(wave) // size), dtype=torch.bool)
    dead[lost] = True
    return wave.masked_fill(dead.repeat_interleave(size)[: len(wave)], 0)


# -------------------------------------------------------------------------------------------------------------- picture


def noise(frames: Tensor, sigma: float, _: Context) -> Tensor:
    """Gaussian noise, drawn for each frame, pixel and channel."""
    return _grey_levels(frames + torch.randn(frames.shape) * sigma)


def blur(frames: Tensor, fraction: float, _: Context) -> Tensor:
    """Blurs by a Gaussian whose standard deviation is a fraction of the shorter side."""
    sigma = fraction * min(frames.shape[-2:])
    # Four standard deviations either way: cut off at two, the kernel's own deviation is 0.88 sigma.
    reach = max(1, math.ceil(4 * sigma))
    kernel = torch.exp(-((torch.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    kernel /= kernel.sum()
    height, width = frames.shape[-2:]
    blurred = frames.float().flatten(0, 1)[:, None]  # (frames · channels, 1, height, width)
    blurred = conv2d(blurred[:, :, _reflected(height, reach)], kernel[None, None, :, None])
    blurred = conv2d(blurred[..., _reflected(width, reach)], kernel[None, None, None]).view(frames.shape)
    return _grey_levels(blurred)


def occlusion(frames: Tensor, area: float, _: Context) -> Tensor:
    """Covers a fraction of the picture by a grey block, at the same place in all frames."""
    rows, columns = (_stretch(side, math.sqrt(area)) for side in frames.shape[-2:])
    frames = frames.clone()
    frames[..., rows, columns] = 127
    return frames


def frame_drop(frames: Tensor, fraction: float, _: Context) -> Tensor:
    """Loses a fraction of the frames after the first; the last frame before a lost one is repeated."""
    after = len(frames) - 1
    lost = set((1 + torch.randperm(after))[: math.ceil(fraction * after)].tolist())
    kept = [0]
    for i in range(1, len(frames)):
        kept.append(kept[-1] if i in lost else i)
    return frames[kept]


def contrast(frames: Tensor, kept: float, _: Context) -> Tensor:
    """Moves grey levels towards the clip's mean, until a fraction of their distance is left."""
    mean = frames.float().mean()
    return _grey_levels(mean + (frames.float() - mean) * kept)


def jpeg(frames: Tensor, quality: float, _: Context) -> Tensor:
    """Compresses each frame by JPEG at that quality."""
    mode = ImageReadMode.GRAY if frames.shape[1] == 1 else ImageReadMode.RGB
    files: Any = encode_jpeg(list(frames.cpu()), quality=int(quality))
    decoded: Any = [decode_jpeg(file, mode) for file in files]
    return torch.stack(decoded)


AUDIO = {
    "white": Corruption("signal-to-noise ratio, dB", (30, 20, 10, 0, -10), white),
    "babble": Corruption("signal-to-noise ratio, dB", (20, 10, 5, 0, -5), babble),
    "time_mask": Corruption("part of the clip", (0.05, 0.1, 0.2, 0.35, 0.5), time_mask),
    "frequency_mask": Corruption("part of the range in mels", (0.05, 0.1, 0.2, 0.35, 0.5), frequency_mask),
    "clipping": Corruption("part of the samples", (0.05, 0.15, 0.3, 0.5, 0.7), clipping),
    "resampling": Corruption("factor", (1.25, 1.5, 2, 3, 5), resampling),
    "silence": Corruption("part of the 20 ms packets", (0.1, 0.25, 0.5, 0.75, 1.0), silence),
}
VIDEO = {
    "noise": Corruption("standard deviation, of 255", (15, 30, 60, 90, 130), noise),
    "blur": Corruption("standard deviation, of the shorter side", (0.01, 0.02, 0.04, 0.07, 0.12), blur),
    "occlusion": Corruption("part of the area", (0.1, 0.2, 0.35, 0.5, 0.7), occlusion),
    "frame_drop": Corruption("part of the frames after the first", (0.2, 0.4, 0.6, 0.8, 1.0), frame_drop),
    "contrast": Corruption("part of the contrast that is left", (0.6, 0.4, 0.25, 0.15, 0.08), contrast),
    "jpeg": Corruption("quality", (50, 25, 12, 6, 2), jpeg),
}
CORRUPTIONS: Mapping[str, Mapping[str, Corruption]] = {"audio": AUDIO, "video": VIDEO}
JOINT = {
    "noise": {"audio": "white", "video": "noise"},
    "mask": {"audio": "time_mask", "video": "occlusion"},
    "loss": {"audio": "silence", "video": "frame_drop"},
    "quality": {"audio": "resampling", "video": "jpeg"},
}


def _stretch(length: int, fraction: float) -> slice:
    """Stretch at a random place that is a fraction of a line; larger fractions contain smaller ones."""
    size, place = round(fraction * length), float(torch.rand(()))
    start = min(round(place * (length - size)), length - size)
    return slice(start, start + size)


def _reflected(side: int, reach: int) -> Tensor:
    """Places along a line with `reach` more at each end, in which it is reflected as often as is needed."""
    period = max(2 * (side - 1), 1)
    place = torch.arange(-reach, side + reach) % period
    return torch.minimum(place, period - place)


def _grey_levels(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)


# ----------------------------------------------------------------------------------------------- a data module's clips


class OtherWaves:
    """Sounds to mix in, by chance, from a store.

    Args:
        store: Store that holds them.
        ids: Ids of clips that have sound.
    """

    def __init__(self, store: ClipStore, ids: Sequence[str]) -> None:
        self.store, self.ids = store, ids

    def __call__(self, count: int) -> list[Tensor]:
        """Draws `count` clips; some may be drawn twice."""
        drawn = torch.randint(len(self.ids), (count if self.ids else 0,)).tolist()
        return [_wave(self.store.get(self.ids[i])["audio"]) for i in drawn]


class CorruptedAudio:
    """A transform of sound, after a corruption.

    Args:
        transform: Transform that follows.
        corruption: Corruption that comes first.
        level: Level of the corruption.
        context: The sample rate and other sounds.
        key: Seed of the corruption, besides the clip.
    """

    def __init__(
        self, transform: AudioTransform, corruption: Corruption, level: float, context: Context, key: str
    ) -> None:
        self.transform, self.corruption, self.level, self.context, self.key = transform, corruption, level, context, key

    def __call__(self, samples: Any, *, train: bool) -> Tensor:
        """Corrupt and transform (samples,) int16."""
        wave = _wave(samples)
        # The dataset has seeded torch by the clip; the transform's own draws are to be those of the clean clip.
        with seeded(self.key, torch.initial_seed()):
            wave = self.corruption.apply(wave, self.level, self.context)
        return self.transform(wave.numpy() * 32768, self.context.sample_rate, train=train)


class CorruptedVideo:
    """A transform of frames, which are corrupted once they are decoded; arguments as `CorruptedAudio` has them."""

    def __init__(self, transform: VideoTransform, corruption: Corruption, level: float, key: str) -> None:
        self.transform, self.corruption, self.level, self.key = transform, corruption, level, key

    def __call__(self, stored: Sequence[Any], *, train: bool) -> Tensor:
        """Corrupt and transform a clip's stored frames."""
        chosen = self.transform.choose(stored, train=train, whole=True)
        with seeded(self.key, torch.initial_seed()):
            context = Context()
            return self.transform.finish(chosen, "cpu", lambda x: self.corruption.apply(x, self.level, context))[0]


def _wave(samples: Any) -> Tensor:
    return torch.from_numpy(samples.astype("float32") / 32768)
