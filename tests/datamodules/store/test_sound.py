"""Sound goes through the resampler in few calls, and comes out as from one call per frame."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from amr.datamodules.store.decoding import sound
from amr.datamodules.store.media import Clip, DecodeOptions, decode
from tests.datamodules.store.timed import CONTAINERS, write
from tests.datamodules.store.timed import sound as tones


@pytest.mark.parametrize(
    ("suffix", "channels", "rate"),
    [*((suffix, 1, 16000) for suffix in CONTAINERS), ("wav", 2, 44100), ("m4a", 2, 22050), ("mkv", -2, 16000)],
)
def test_the_samples_are_those_of_a_call_per_frame(
    suffix: str, channels: int, rate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of -2 channels the second is the first's opposite, so that one of them is taken alone."""
    wave = tones(3.0)
    samples = wave if channels == 1 else np.stack([wave, (0.5 if channels == 2 else -1) * wave])
    path = write(tmp_path / f"a.{suffix}", 3.0, samples=samples, kinds=["audio"])
    clip, options = Clip("a", "x", "train", {"audio": path}, start=0.5, end=2.5), DecodeOptions(sample_rate=rate)
    calls: list[int] = []
    make = av.AudioResampler

    class Counting:
        def __init__(self, **kwargs: Any) -> None:
            self.resampler = make(**kwargs)

        def resample(self, frame: Any) -> Any:
            calls.append(0 if frame is None else frame.samples)
            return self.resampler.resample(frame)

    monkeypatch.setattr("av.AudioResampler", Counting)
    whole = decode(clip, tmp_path, options).waveform
    together = len(calls)
    monkeypatch.setattr(sound, "_TOGETHER", 1)
    single = decode(clip, tmp_path, options).waveform
    assert whole is not None
    assert single is not None
    assert np.array_equal(whole, single)
    assert len(whole) == 2 * rate
    assert together <= 8 < len(calls) - together
