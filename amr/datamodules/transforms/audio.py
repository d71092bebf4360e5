"""Transform from a clip's stored samples to a network's input. Randomness is torch's; the caller seeds it."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torchaudio.transforms as T
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from amr.datamodules.atoms import Atoms, spectrogram_atoms, waveform_atoms
from amr.datamodules.spectra import mel_power, power_density, resampled, stft_magnitude
from amr.datamodules.transforms.allowed import require_option
from amr.datamodules.transforms.picture import Picture, picture_of


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
        noise_snr_db: White noise at this ratio of the clip's power to the noise's, in dB, drawn again in every training
            epoch and always the same for a clip otherwise; None adds none.
        sample_rate: Samples a second of the input. The stored waveform is resampled to it in single precision (soxr,
            high quality), as `librosa.load` does; None keeps the store's rate. `n_fft` and `hop_length` count samples
            at this rate.
        padding: Values that log_stft and log_mel see beyond both ends, n_fft // 2 samples: the input reflected,
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
        require_option(0 < self.seconds < math.inf, "audio.seconds", self.seconds, "positive")
        require_option(
            self.sample_rate is None or self.sample_rate >= 1, "audio.sample_rate", self.sample_rate, "at least 1"
        )
        for key in ("n_fft", "hop_length", "n_mels"):
            require_option(getattr(self, key) >= 1, f"audio.{key}", getattr(self, key), "at least 1")
        for key in ("time_shift_ms", "freq_mask", "time_mask"):
            require_option(getattr(self, key) >= 0, f"audio.{key}", getattr(self, key), "at least 0")
        require_option(self.eps > 0, "audio.eps", self.eps, "positive: silence has no logarithm")

    def __call__(self, samples: NDArray[np.int16 | np.float32], sample_rate: int, *, train: bool) -> Tensor:
        """Transform (samples,) at `sample_rate` Hz, in int16's range.

        Raises:
            UserError: The input is too short for the windows.
        """
        x = self._features(self._wave(samples, sample_rate, train)[None], self.rate(sample_rate))
        return self._masked(x, train)

    def features(self, samples: NDArray[np.int16 | np.float32], sample_rate: int) -> Tensor:
        """Features of (samples,) before the masks, if nothing random precedes them."""
        return self._features(self._wave(samples, sample_rate, False)[None], self.rate(sample_rate))

    def from_features(self, stored: NDArray[np.float16], *, shape: Sequence[int], train: bool) -> Tensor:
        """Same as a call, from stored `features`.

        Args:
            stored: The features, flat.
            shape: Their shape.
            train: Whether to mask.

        Raises:
            ValueError: They are of another shape.
        """
        return self._masked(_floats(stored).reshape(tuple(shape)), train)

    def batch_from_features(
        self,
        clips: Sequence[NDArray[np.float16]],
        draws: Sequence[AbstractContextManager[None]],
        *,
        shape: Sequence[int],
        train: bool,
    ) -> Tensor:
        """Same as `batch`, from stored `features`; nothing is drawn."""
        return torch.stack([self.from_features(clip, shape=shape, train=False) for clip in clips])

    def _masked(self, x: Tensor, train: bool) -> Tensor:
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
        """Same as a call per clip, up to rounding, with one spectrogram computation for all clips. Only without masks.

        Args:
            clips: Samples of each clip, (samples,).
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

    def atoms(self, sample_rate: int, blocks: Sequence[int] = (8, 8)) -> Atoms:
        """The input in pieces that are explained together: frequency × time, or time alone of a waveform.

        Args:
            sample_rate: Samples a second of the store.
            blocks: In frequency and in time; fewer where there are fewer bins or steps.
        """
        shape = self.shape(sample_rate)
        if self.kind == "waveform":
            return waveform_atoms(shape, min(blocks[1], shape[-1]), self.seconds)
        rows, columns = (min(b, n) for b, n in zip(blocks, shape[-2:], strict=True))
        return spectrogram_atoms(shape, rows, columns, seconds=self.seconds, hz=self.bin_edges(sample_rate))

    def picture(self, x: Tensor, atoms: Atoms) -> Picture:
        """An input (1, F, T) or (1, samples) to look at; low frequencies are at the bottom."""
        if self.kind == "waveform":
            wave = x[0].float()
            step = max(1, len(wave) // 512)
            wave = wave[: len(wave) // step * step].reshape(-1, step).abs().amax(1)
            rows = torch.linspace(1, -1, 64)[:, None]
            shown = (rows.abs() <= wave / wave.max().clamp_min(1e-9)).float()
            element = (torch.arange(len(wave)) * step).expand(shown.shape)
            return picture_of(shown, element, atoms, f"{self.seconds:g} s")
        element = torch.arange(x[0].numel()).reshape(x[0].shape).flip(0)
        return picture_of(x[0].flip(0).float(), element, atoms, f"{self.seconds:g} s, 0 Hz at the bottom")

    def _fit(self, wave: Tensor, length: int, train: bool) -> Tensor:
        if len(wave) > length:
            spare = len(wave) - length
            start = 0 if self.crop == "first" else int(torch.randint(spare + 1, ())) if train else spare // 2
            return wave[start : start + length]
        if self.fit == "tile":
            return wave.repeat(-(-length // len(wave)))[:length]
        return pad(wave, (0, length - len(wave)))


def _floats(stored: NDArray[np.float16]) -> Tensor:
    """Float16 numbers as float32. torch converts them some four times as fast as numpy, but not a read-only array."""
    copied = torch.empty(stored.shape, dtype=torch.float16)
    copied.numpy()[...] = stored
    return copied.float()
