"""Spectrograms that `prepare` computes once and the store keeps."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amr.datamodules.store.media import DecodeOptions
from amr.datamodules.transforms.audio import AudioTransform
from amr.utils.errors import UserError

_LATER = ("crop", "time_shift_ms", "noise_snr_db", "freq_mask", "time_mask")  # do not change what is stored


@dataclass(frozen=True)
class SpectralOptions(DecodeOptions):
    """Decode options with `spectrogram`, and the transform that makes the spectrograms.

    Args:
        audio: The transform.

    Raises:
        UserError: Something random precedes the spectrogram, or there is none.
    """

    audio: AudioTransform = field(default_factory=AudioTransform)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.audio.kind == "waveform":
            raise UserError("data.decode.spectrogram=true: must be false with audio.kind=waveform, which makes none")
        fixed = {"crop": "first", "time_shift_ms": 0.0, "noise_snr_db": None}
        given = {key: getattr(self.audio, key) for key in fixed}
        if wrong := [key for key, value in fixed.items() if given[key] != value]:
            names = " and ".join(f"audio.{key}={given[key]}" for key in wrong)
            mended = ", ".join(f"audio.{key}={'null' if fixed[key] is None else fixed[key]}" for key in wrong)
            raise UserError(
                f"data.decode.spectrogram=true: must be false with {names}, drawn at random before the spectrogram in"
                f" each epoch; or set {mended}"
            )

    def identity(self) -> dict[str, Any]:
        """Values that distinguish the stores of two options, in plain types."""
        what = super().identity()
        del what["audio"]
        return {**what, "spectrogram": self.settings()}

    def settings(self) -> dict[str, Any]:
        """Settings of the stored spectrograms, in plain types."""
        kept = {key: value for key, value in asdict(self.audio).items() if key not in _LATER}
        return {**kept, "sample_rate": self.audio.rate(self.sample_rate)}

    def spectrum(self, waveform: NDArray[np.int16]) -> NDArray[np.float16]:
        """The spectrogram of a clip, (1, F, T), rounded to the nearest float16."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # worker processes share the cores already
        try:
            return self.audio.features(waveform, self.sample_rate).numpy().astype(np.float16)
        finally:
            torch.set_num_threads(threads)


def kept_options(decode: DecodeOptions, audio: AudioTransform) -> DecodeOptions:
    """The options by which clips are decoded, with the audio transform where it decides what is stored.

    Raises:
        UserError: Spectrograms are to be stored, and something random precedes them.
    """
    if not decode.spectrogram:
        return decode
    return SpectralOptions(**{part.name: getattr(decode, part.name) for part in fields(DecodeOptions)}, audio=audio)
