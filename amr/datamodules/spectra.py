"""Resampling and spectra of waveforms; each says which library's numbers it gives."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import soxr
import torch
import torchaudio.transforms as T
from numpy.typing import NDArray
from torch import Tensor

from amr.utils.errors import UserError


def resampled(wave: NDArray[np.float32], rate: int, to: int) -> NDArray[np.float32]:
    """A waveform at another rate, as `librosa.load` resamples: by soxr, in high quality and single precision.

    Args:
        wave: (samples,), in -1..1.
        rate: Samples a second.
        to: Samples a second of the result.

    Returns:
        (ceil(samples * to / rate),); the waveform itself where the rates are equal.
    """
    if rate == to:
        return wave
    result = np.zeros(-(-len(wave) * to // rate), np.float32)
    made = soxr.resample(wave, rate, to, "HQ")[: len(result)]  # at some lengths a sample less
    # The filter overshoots. As in OGM-GE's code, what no file could hold is cut off; louder sound (of which corrupted
    # clips may consist) keeps its own limit.
    limit = max(1.0, float(np.abs(wave).max(initial=0)))
    result[: len(made)] = made.clip(-limit, limit)
    return result


@lru_cache
def stft_magnitude(n_fft: int, hop_length: int, pad_mode: str) -> Any:
    """Function from (..., samples) float64 to |STFT|, (..., F, T): Hann windows, as in `librosa.stft`."""
    return T.Spectrogram(n_fft, hop_length=hop_length, power=1.0, pad_mode=pad_mode, wkwargs={"dtype": torch.float64})


@lru_cache
def mel_power(sample_rate: int, n_fft: int, hop_length: int, n_mels: int, pad_mode: str) -> Any:
    """Function from (..., samples) to the power in mel bands, (..., n_mels, T): torchaudio's."""
    return T.MelSpectrogram(sample_rate, n_fft, hop_length=hop_length, n_mels=n_mels, pad_mode=pad_mode)


def power_density(x: Tensor, sample_rate: int, n_fft: int, hop_length: int) -> Tensor:
    """One-sided power spectral density: that of `scipy.signal.spectrogram` with its defaults.

    Args:
        x: (..., samples) float64.
        sample_rate: Samples a second.
        n_fft: Window length in samples.
        hop_length: Step between windows in samples.

    Returns:
        (..., n_fft // 2 + 1, 1 + (samples - n_fft) // hop_length).

    Raises:
        UserError: The input is shorter than a window.
    """
    if x.shape[-1] < n_fft:
        raise UserError(f"audio.n_fft={n_fft}: must be, with log_psd, at most the input's {x.shape[-1]} samples")
    window = _tukey(n_fft)
    windows = x.unfold(-1, n_fft, hop_length)  # (..., T, n_fft)
    power: Tensor = torch.fft.rfft((windows - windows.mean(-1, keepdim=True)) * window).abs().square()
    power *= 2 / (sample_rate * window.square().sum())  # 2: the power of both signs of a frequency
    power[..., 0] /= 2
    if n_fft % 2 == 0:
        power[..., -1] /= 2
    return power.mT


@lru_cache
def _tukey(length: int, taper: float = 0.25) -> Tensor:
    """Tukey's window, (length,) float64, periodic: half a cosine's period rises over `taper` / 2 of it at each end."""
    place = torch.arange(length, dtype=torch.float64) / length
    edge = torch.minimum(place, 1 - place) / (taper / 2)
    window: Tensor = 0.5 * (1 - torch.cos(math.pi * edge.clamp(max=1)))
    return window
