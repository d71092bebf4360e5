"""From a clip's stored bytes to a network's input. Randomness is torch's; the caller seeds it."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torchaudio.transforms as T
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import RandomResizedCrop  # type: ignore[attr-defined]  # untyped
from torchvision.transforms.v2.functional import resize  # type: ignore[attr-defined]

from amr.datamodules.spectra import mel_power, power_density, resampled, stft_magnitude
from amr.utils.errors import UserError

if TYPE_CHECKING:
    from amr.datamodules.atoms import Atoms


def _require(ok: bool, key: str, value: object, allowed: str) -> None:
    if not ok:
        raise UserError(f"{key} is {value}; it must be {allowed}")


@dataclass(frozen=True)
class Picture:
    """An input to look at.

    Attributes:
        image: Grey (height, width), of any range, or colours (height, width, 3) in 0..1.
        element: The element of the input that is shown at each place, of those of one channel that go together the
            first: position in the flattened input, (height, width) int64.
        atom: The atom at each place, (height, width) int64.
        unit: What the axes mean, in a few words.
    """

    image: NDArray[np.float32]
    element: NDArray[np.int64]
    atom: NDArray[np.int64]
    unit: str


@dataclass(frozen=True)
class AudioTransform:
    """A waveform to a fixed-length input: (1, F, T) spectrogram or (1, samples) waveform, float32.

    The order is: resample, fit to `seconds`, shift in time, add noise, spectrogram, logarithm, normalise, mask.

    Args:
        seconds: Length of the input.
        fit: A shorter clip is repeated (tile) or followed by silence (pad).
        crop: Part of a longer clip: random in training and the middle otherwise, or always the first.
        kind: log_stft: log(|STFT| + eps), Hann windows; log_mel: log(mel power + eps), Hann windows; log_psd:
            log(power spectral density + eps) as `scipy.signal.spectrogram` has it by default (Tukey windows, each less
            its mean, and no padding); waveform: samples in -1..1.
        n_fft: Window length in samples.
        hop_length: Step between windows in samples. T = 1 + samples // hop_length, and of log_psd
            1 + (samples - n_fft) // hop_length.
        n_mels: F of log_mel; log_stft and log_psd have n_fft // 2 + 1.
        eps: Added before the logarithm.
        normalise: Give each input mean 0 and standard deviation 1.
        time_shift_ms: In training, rotate by up to this many milliseconds either way.
        freq_mask: In training, set up to this many neighbouring bins to the input's mean.
        time_mask: The same for steps in time.
        noise_snr_db: White noise at this ratio of the clip's power to the noise's, in dB, drawn anew in every training
            epoch and always the same for a clip otherwise; None adds none.
        sample_rate: Samples a second of the input. The stored waveform is resampled to it in single precision (soxr,
            high quality), as `librosa.load` does; None keeps the store's rate. `n_fft` and `hop_length` count samples
            at this rate.
        padding: What log_stft and log_mel see beyond both ends of the input, n_fft // 2 samples: the input reflected,
            or zeros, as librosa does since 0.9.
    """

    seconds: float = 3.0
    fit: Literal["tile", "pad"] = "pad"
    crop: Literal["random", "first"] = "random"
    kind: Literal["log_stft", "log_mel", "log_psd", "waveform"] = "log_mel"
    n_fft: int = 512
    hop_length: int = 160
    n_mels: int = 64
    eps: float = 1e-7
    normalise: bool = True
    time_shift_ms: float = 0.0
    freq_mask: int = 0
    time_mask: int = 0
    noise_snr_db: float | None = None
    sample_rate: int | None = None
    padding: Literal["reflect", "zeros"] = "reflect"

    def __post_init__(self) -> None:
        _require(0 < self.seconds < math.inf, "audio.seconds", self.seconds, "positive")
        _require(self.sample_rate is None or self.sample_rate >= 1, "audio.sample_rate", self.sample_rate, "at least 1")
        for key in ("n_fft", "hop_length", "n_mels"):
            _require(getattr(self, key) >= 1, f"audio.{key}", getattr(self, key), "at least 1")
        for key in ("time_shift_ms", "freq_mask", "time_mask"):
            _require(getattr(self, key) >= 0, f"audio.{key}", getattr(self, key), "at least 0")
        _require(self.eps > 0, "audio.eps", self.eps, "positive: silence has no logarithm")

    def __call__(self, samples: NDArray[np.int16 | np.float32], sample_rate: int, *, train: bool) -> Tensor:
        """Transform (samples,) at `sample_rate` Hz, in int16's range.

        Raises:
            UserError: The input is too short for the windows.
        """
        x = self._features(self._wave(samples, sample_rate, train)[None], self.rate(sample_rate))
        if train and self.kind != "waveform":
            # The value is the mean: zero after normalising would be wrong for a raw logarithm.
            for width, mask in ((self.freq_mask, T.FrequencyMasking), (self.time_mask, T.TimeMasking)):
                if width:
                    x = mask(width + 1)(x, float(x.mean()))  # torchaudio excludes the upper bound
        return x

    def batch(
        self,
        clips: Sequence[NDArray[np.int16]],
        draws: Sequence[AbstractContextManager[None]],
        *,
        sample_rate: int,
        train: bool,
    ) -> Tensor:
        """As a call for each clip, but with one spectrogram of all: equal up to rounding. Without masks only.

        Args:
            clips: Of each clip, (samples,).
            draws: Contexts in which a clip's random choices are made.
            sample_rate: Samples a second of the clips.
            train: Whether to augment.

        Returns:
            (clips, *shape).
        """
        waves = []
        for samples, draw in zip(clips, draws, strict=True):
            with draw:
                waves.append(self._wave(samples, sample_rate, train))
        return self._features(torch.stack(waves), self.rate(sample_rate)).unsqueeze(1)

    def rate(self, sample_rate: int) -> int:
        """Samples a second of the input, from that of the store."""
        return self.sample_rate or sample_rate

    def _wave(self, samples: NDArray[np.int16 | np.float32], sample_rate: int, train: bool) -> Tensor:
        """(samples,) float32, of the input's rate and length, shifted and noisy."""
        rate = self.rate(sample_rate)
        wave = torch.from_numpy(resampled((samples / np.float32(32768)).astype(np.float32), sample_rate, rate))
        whole = wave
        wave = self._fit(wave, round(self.seconds * rate), train)
        if train and self.time_shift_ms:
            reach = round(self.time_shift_ms / 1000 * rate)
            wave = wave.roll(int(torch.randint(-reach, reach + 1, ())))
        if self.noise_snr_db is not None:
            wave = wave + torch.randn_like(wave) * (whole.square().mean() / 10 ** (self.noise_snr_db / 10)).sqrt()
        return wave

    def _features(self, x: Tensor, sample_rate: int) -> Tensor:
        """(clips, samples) to (clips, F, T), or (clips, samples)."""
        padding = {"reflect": "reflect", "zeros": "constant"}[self.padding]
        match self.kind:
            # In double precision: in single, rounding errors of loud bins exceed a small `eps` in the quiet ones.
            case "log_stft":
                x = stft_magnitude(self.n_fft, self.hop_length, padding)(x.double()).add_(self.eps).log_().float()
            case "log_psd":
                x = power_density(x.double(), sample_rate, self.n_fft, self.hop_length).add_(self.eps).log_().float()
            case "log_mel":
                x = mel_power(sample_rate, self.n_fft, self.hop_length, self.n_mels, padding)(x).add_(self.eps).log_()
        if self.normalise:
            of_clip = tuple(range(1, x.ndim))
            x = (x - x.mean(of_clip, keepdim=True)) / (x.std(of_clip, keepdim=True) + 1e-5)
        return x

    def shape(self, sample_rate: int) -> tuple[int, ...]:
        """Shape of the input, from the store's samples a second."""
        return tuple(self(np.zeros(1, np.int16), sample_rate, train=False).shape)

    def bin_edges(self, sample_rate: int) -> list[float]:
        """Edges of a spectrogram's bins in Hz, F + 1 of them: half-way between the bins' centres, from 0 to Nyquist.

        Args:
            sample_rate: Samples a second of the store.
        """
        rate = self.rate(sample_rate)
        nyquist = rate / 2
        if self.kind == "log_mel":  # centres are evenly spaced in mels, those of O'Shaughnessy (1987), as torchaudio's
            top = 2595 * math.log10(1 + nyquist / 700)
            mels = [top * (k + 0.5) / (self.n_mels + 1) for k in range(1, self.n_mels)]
            inner = [700 * (10 ** (mel / 2595) - 1) for mel in mels]
        else:
            inner = [(k - 0.5) * rate / self.n_fft for k in range(1, self.n_fft // 2 + 1)]
        return [0.0, *inner, nyquist]

    def atoms(self, sample_rate: int, blocks: Sequence[int] = (8, 8)) -> "Atoms":
        """The input in pieces that are explained together: frequency × time, or time alone of a waveform.

        Args:
            sample_rate: Samples a second of the store.
            blocks: In frequency and in time; fewer where there are fewer bins or steps.
        """
        from amr.datamodules.atoms import spectrogram_atoms, waveform_atoms

        shape = self.shape(sample_rate)
        if self.kind == "waveform":
            return waveform_atoms(shape, min(blocks[1], shape[-1]), self.seconds)
        rows, columns = (min(b, n) for b, n in zip(blocks, shape[-2:], strict=True))
        return spectrogram_atoms(shape, rows, columns, seconds=self.seconds, hz=self.bin_edges(sample_rate))

    def picture(self, x: Tensor, atoms: "Atoms") -> Picture:
        """An input (1, F, T) or (1, samples) to look at; low frequencies are at the bottom."""
        if self.kind == "waveform":
            wave = x[0].float()
            step = max(1, len(wave) // 512)
            wave = wave[: len(wave) // step * step].reshape(-1, step).abs().amax(1)
            rows = torch.linspace(1, -1, 64)[:, None]
            shown = (rows.abs() <= wave / wave.max().clamp_min(1e-9)).float()
            element = (torch.arange(len(wave)) * step).expand(shown.shape)
            return _picture(shown, element, atoms, f"{self.seconds:g} s")
        element = torch.arange(x[0].numel()).reshape(x[0].shape).flip(0)
        return _picture(x[0].flip(0).float(), element, atoms, f"{self.seconds:g} s, 0 Hz at the bottom")

    def _fit(self, wave: Tensor, length: int, train: bool) -> Tensor:
        if len(wave) > length:
            spare = len(wave) - length
            start = 0 if self.crop == "first" else int(torch.randint(spare + 1, ())) if train else spare // 2
            return wave[start : start + length]
        if self.fit == "tile":
            return wave.repeat(-(-length // len(wave)))[:length]
        return pad(wave, (0, length - len(wave)))


@dataclass(frozen=True)
class View:
    """What is seen of a clip's frames.

    Attributes:
        box: Top, left, height and width in pixels, which may reach over the border; None: all.
        mirror: Left and right exchanged.
        frames: Of each frame, where they differ; `box` and `mirror` are then without effect.
    """

    box: tuple[int, int, int, int] | None = None
    mirror: bool = False
    frames: "tuple[View, ...]" = ()


class ChosenFrames:
    """Clips' frames on their way to the device that decodes them, with every random choice made.

    Neither a dataclass nor a tuple: Lightning would move what is in it to the device, and nvjpeg reads host memory.

    Attributes:
        data: (bytes,) uint8, the JPEG files one after the other.
        sizes: Bytes of each frame's file, a list a clip; empty for a clip without video.
        views: Of each clip.
    """

    def __init__(self, data: Tensor, sizes: list[list[int]], views: list[View]) -> None:
        self.data, self.sizes, self.views = data, sizes, views

    @classmethod
    def none(cls) -> "ChosenFrames":
        """Those of one clip that has no video."""
        return cls(torch.empty(0, dtype=torch.uint8), [[]], [View()])

    def clips(self) -> "list[ChosenFrames]":
        """Each clip's frames; the inverse of `join`."""
        data = torch.split(self.data, [sum(sizes) for sizes in self.sizes])
        return [ChosenFrames(d, [s], [v]) for d, s, v in zip(data, self.sizes, self.views, strict=True)]

    @classmethod
    def join(cls, clips: Sequence["ChosenFrames"]) -> "ChosenFrames":
        """All of the clips' frames."""
        data = torch.cat([clip.data for clip in clips])
        return cls(data, [s for clip in clips for s in clip.sizes], [v for clip in clips for v in clip.views])


@dataclass(frozen=True)
class VideoTransform:
    """JPEG frames to a fixed number of them: (frames, 3, height, width) float32, 1 channel if `grayscale`.

    Args:
        frames: Number taken. Frames repeat in a clip that has fewer.
        pick: segments: the clip is cut into as many equal segments and gives one frame of each: a random one in
            training, the middle one otherwise. first: the first ones that are stored, always.
        size: Height and width in pixels; one number: a square.
        augment: In training. shift: move by up to `shift` pixels, the border repeated. resized_crop: a random part
            of 8 to 100 % of the area at a random aspect ratio, as is usual for ImageNet.
        shift: Pixels, for augment=shift.
        flip: In training, mirror every second clip (every second frame, with `per_frame`).
        per_frame: Draw `augment` and `flip` for each frame; otherwise all frames of a clip are augmented alike.
        grayscale: Keep the luminance only.
        mean: Subtracted from values in 0..1: a channel each, or one number for all.
        std: Divides what is left.
    """

    frames: int = 3
    size: int | tuple[int, int] = 224
    augment: Literal["none", "shift", "resized_crop"] = "none"
    shift: int = 4
    flip: bool = False
    grayscale: bool = False
    mean: float | tuple[float, float, float] = 0.5
    std: float | tuple[float, float, float] = 0.5
    pick: Literal["segments", "first"] = "segments"
    per_frame: bool = False

    def __post_init__(self) -> None:
        _require(self.frames >= 1, "video.frames", self.frames, "at least 1")
        _require(min(self._size) >= 1, "video.size", self.size, "at least 1 pixel")
        _require(self.shift >= 0, "video.shift", self.shift, "at least 0 pixels")
        _require(min(_channels(self.std)) > 0, "video.std", self.std, "positive")
        for key in ("mean", "std"):
            value = getattr(self, key)
            _require(len(_channels(value)) == 1 or not self.grayscale, f"video.{key}", value, "one number if grayscale")

    def __call__(self, jpegs: Sequence[Any], *, train: bool) -> Tensor:
        """Transform the clip's frames, each a buffer with a JPEG file.

        Raises:
            ValueError: A frame cannot be decoded.
        """
        return self.finish(self.choose(jpegs, train=train), "cpu")[0]

    def choose(self, jpegs: Sequence[Any], *, train: bool) -> ChosenFrames:
        """Draw all that is random: which frames, and what is seen of them. `finish` does the rest, now or later."""
        places = self._sample(len(jpegs), train)
        files = [jpegs[i] for i in places]
        # One buffer, for what travels from process to process is a file descriptor a tensor; a copy, for torch warns
        # of memory that it may not write to.
        buffer = bytearray().join(files)
        view = self._views(lambda: _jpeg_size(buffer), train)
        data = torch.frombuffer(buffer, dtype=torch.uint8)
        return ChosenFrames(data, [[len(file) for file in files]], [view])

    def _views(self, size: Callable[[], tuple[int, int]], train: bool) -> View:
        """Draws what is seen of a clip's frames, whose height and width `size` tells."""
        if not self.per_frame:
            return self._view(size, train)
        return View(frames=tuple(self._view(size, train) for _ in range(self.frames)))

    def _view(self, size: Callable[[], tuple[int, int]], train: bool) -> View:
        box = None
        if train and self.augment == "resized_crop":
            params = _resized_crop(self._size).make_params([torch.empty(()).expand(size())])
            box = (params["top"], params["left"], params["height"], params["width"])
        elif train and self.augment == "shift" and self.shift:
            top, left = (int(torch.randint(2 * self.shift + 1, ())) - self.shift for _ in range(2))
            box = (top, left, *self._size)
        return View(box, train and self.flip and bool(torch.rand(()) < 0.5))

    def decode(self, jpegs: Sequence[Any]) -> Tensor:
        """All of a clip's frames, (frames, channels, h, w) uint8.

        Raises:
            ValueError: A frame cannot be decoded, or their sizes differ.
        """
        data = torch.frombuffer(bytearray().join(jpegs), dtype=torch.uint8)
        chosen = ChosenFrames(data, [[len(jpeg) for jpeg in jpegs]], [View()])
        frames = [frame for clip in self._decode(chosen, torch.device("cpu")) for frame in clip]
        if any(frame.shape != frames[0].shape for frame in frames):
            raise ValueError("its frames differ in size")
        return torch.stack(frames)

    def batch(self, clips: Sequence[Tensor], draws: Sequence[AbstractContextManager[None]], *, train: bool) -> Tensor:
        """As a call for each clip, from frames that are decoded already.

        Args:
            clips: Each clip's frames, as `decode` gives them.
            draws: Contexts in which a clip's random choices are made.
            train: Whether to augment.

        Returns:
            (clips, frames, channels, height, width) float32.
        """
        x = torch.empty((len(clips), *self.shape()))
        for i, (frames, draw) in enumerate(zip(clips, draws, strict=True)):
            with draw:
                places = self._sample(len(frames), train)
                view = self._views(lambda frames=frames: tuple(frames.shape[-2:]), train)  # type: ignore[misc]
            x[i] = self._look([frames[place] for place in places], view)
        mean, std = (torch.tensor(_channels(v)).view(-1, 1, 1) for v in (self.mean, self.std))
        return x.div_(255).sub_(mean).div_(std)

    def finish(
        self,
        chosen: ChosenFrames,
        device: torch.device | str,
        corrupt: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Decode and transform the clips' chosen frames on a device.

        Args:
            chosen: The frames.
            device: Where.
            corrupt: What befalls a clip's decoded frames, (frames, channels, h, w) uint8, first.

        Returns:
            (clips, frames, channels, height, width) float32; zeros for a clip without frames.

        Raises:
            ValueError: A frame cannot be decoded.
        """
        x = torch.zeros((len(chosen.views), *self.shape()), device=device)
        mean, std = (torch.tensor(_channels(v), device=device).view(-1, 1, 1) for v in (self.mean, self.std))
        there = [i for i, sizes in enumerate(chosen.sizes) if sizes]
        for i, frames in zip(there, self._decode(chosen, torch.device(device)), strict=True):
            x[i] = self._look([*corrupt(torch.stack(frames))] if corrupt else frames, chosen.views[i])
        x.div_(255).sub_(mean).div_(std)
        if len(there) < len(x):
            x[[i for i, sizes in enumerate(chosen.sizes) if not sizes]] = 0
        return x

    def _decode(self, chosen: ChosenFrames, device: torch.device) -> list[list[Tensor]]:
        """Each clip's frames, (channels, h, w) uint8; clips without any are left out."""
        mode = ImageReadMode.GRAY if self.grayscale else ImageReadMode.RGB
        files = torch.split(chosen.data, [size for sizes in chosen.sizes for size in sizes])
        try:
            images: Any = decode_jpeg(list(files), mode, device) if files else []
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(str(error).splitlines()[0]) from error
        clips = [images[i : i + self.frames] for i in range(0, len(images), self.frames)]
        if any(image.shape != clip[0].shape for clip in clips for image in clip):
            raise ValueError("its frames differ in size")
        return clips

    def _look(self, frames: list[Tensor], view: View) -> Tensor:
        """What a view shows of frames (channels, h, w): (frames, channels, height, width)."""
        if view.frames:
            return torch.cat([self._look([frame], own) for frame, own in zip(frames, view.frames, strict=True)])
        if self.augment == "resized_crop" and view.box:
            top, left, height, width = view.box
            frames = [frame[:, top : top + height, left : left + width] for frame in frames]  # before they are copied
        x = resize(torch.stack(frames), [*self._size], antialias=True)
        if self.augment == "shift" and view.box:
            top, left, _, _ = view.box
            x = pad(x.float(), (-left, left, -top, top), mode="replicate")  # on a GPU, floats only
        return x.flip(-1) if view.mirror else x

    def shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        return (self.frames, 1 if self.grayscale else 3, *self._size)

    def atoms(self, blocks: Sequence[int] = (4, 4, 4)) -> "Atoms":
        """The input in pieces that are explained together: frames × patches.

        Args:
            blocks: In time, height and width; fewer where there are fewer frames or pixels.
        """
        from amr.datamodules.atoms import video_atoms

        shape = self.shape()
        times, rows, columns = (min(b, n) for b, n in zip(blocks, (shape[0], *shape[2:]), strict=True))
        return video_atoms(shape, (rows, columns), times)

    def picture(self, x: Tensor, atoms: "Atoms") -> Picture:
        """An input (frames, channels, height, width) to look at: each block's middle frame, side by side."""
        mean, std = (torch.tensor(_channels(v)).view(-1, 1, 1) for v in (self.mean, self.std))
        blocks = atoms.grid[0]
        shown = [(2 * b + 1) * len(x) // (2 * blocks) for b in range(blocks)]
        pixels = torch.cat([(x[i].float().cpu() * std + mean).clamp(0, 1) for i in shown], dim=2)  # (C, H, blocks W)
        index = torch.arange(x.numel()).reshape(x.shape)
        element = torch.cat([index[i, 0] for i in shown], dim=1)
        image = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
        return _picture(image, element, atoms, f"frames {', '.join(str(i) for i in shown)} of {len(x)}")

    @property
    def _size(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def _sample(self, available: int, train: bool) -> list[int]:
        if self.pick == "first":
            return [min(i, available - 1) for i in range(self.frames)]
        within = torch.rand(self.frames) if train else torch.full((self.frames,), 0.5)
        places = (torch.arange(self.frames) + within) * (available / self.frames)
        return [min(int(place), available - 1) for place in places.tolist()]


def _picture(image: Tensor, element: Tensor, atoms: "Atoms", unit: str) -> Picture:
    return Picture(image.numpy(), element.numpy(), atoms.label.flatten()[element].numpy(), unit)


def _channels(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


@lru_cache
def _resized_crop(size: tuple[int, int]) -> Any:
    return RandomResizedCrop(size)


def _jpeg_size(data: bytearray) -> tuple[int, int]:
    """Height and width that the JPEG file at the beginning of the data says it has.

    Raises:
        ValueError: It has none.
    """
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        if 0xC0 <= data[place + 1] <= 0xC2:  # the frame header of the baseline, extended or progressive process
            height, width = (int.from_bytes(data[place + i : place + i + 2], "big") for i in (5, 7))
            if height and width:
                return height, width
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    raise ValueError("not a JPEG file")
