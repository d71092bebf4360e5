"""Items of stores with raw frames and spectrograms against those of a plain store, and what may not be stored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from amr.datamodules import Clips
from amr.datamodules.store.media import DecodeOptions
from amr.datamodules.store.shards import ClipStore
from amr.datamodules.transforms import AudioTransform, VideoTransform
from amr.utils.errors import UserError

FIXED: dict[str, Any] = {"seconds": 0.3, "crop": "first"}
AUDIO = {
    "log_stft": AudioTransform(**FIXED, kind="log_stft", n_fft=256, sample_rate=22050, normalise=False),
    "log_psd": AudioTransform(**FIXED, kind="log_psd", n_fft=256),
    "log_mel": AudioTransform(**FIXED, n_fft=256, n_mels=16),
}
VIDEO = {
    "log_stft": VideoTransform(frames=2, size=16, augment="resized_crop", flip=True, per_frame=True),
    "log_psd": VideoTransform(frames=2, size=16, augment="resized_crop", pick="first"),
    "log_mel": VideoTransform(frames=3, size=(20, 24), augment="shift", flip=True, grayscale=True),
}


@pytest.mark.parametrize("kind", list(AUDIO))
def test_items_are_those_of_a_plain_store(
    make_module: Callable[..., Clips], clip_store: Path, tmp_path: Path, kind: str
) -> None:
    """Sound: rounded to float16 and nothing else. Frames, once they were JPEG files: the same bits."""
    given = {"audio": AUDIO[kind], "video": VIDEO[kind]}
    plain = make_module(**given)
    options = DecodeOptions(frames="raw", spectrogram=True)
    fast = make_module(**given, store=tmp_path, decode=options)
    fast.prepare(convert=clip_store)
    memory = make_module(**given, store=tmp_path, decode=options, in_memory=True)
    level = 2 / 255 / 0.5 if VIDEO[kind].grayscale else 0.0  # of two, by which JPEG's luminance differs
    for train in (True, False):
        old, new, held = (module.dataset("train", train=train) for module in (plain, fast, memory))
        batch = held.__getitems__([(2, i) for i in range(4)])  # type: ignore[attr-defined]
        for i in range(4):
            a, b = old[2, i]["inputs"], new[2, i]["inputs"]
            torch.testing.assert_close(b["audio"], a["audio"].half().float(), rtol=0, atol=0)
            torch.testing.assert_close(b["video"], a["video"], rtol=0, atol=level)
            torch.testing.assert_close(batch[i]["inputs"], b, rtol=0, atol=1e-6)
            late = fast.video.choose(ClipStore(tmp_path).get(new.clips[i].id)["video"], train=False)
            if not train:
                torch.testing.assert_close(fast.video.finish(late, "cpu")[0], b["video"], rtol=0, atol=0)


def test_masks_are_drawn_alike(make_module: Callable[..., Clips], clip_store: Path, tmp_path: Path) -> None:
    given = {"audio": AudioTransform(**FIXED, n_fft=256, n_mels=16, freq_mask=6, time_mask=8), "modalities": ["audio"]}
    plain, fast = make_module(**given), make_module(**given, store=tmp_path, decode=DecodeOptions(spectrogram=True))
    fast.prepare(convert=clip_store)
    for i in range(6):
        a, b = (module.dataset("train", train=True)[1, i]["inputs"]["audio"] for module in (plain, fast))
        torch.testing.assert_close(b, a, rtol=0, atol=2e-3)
    assert not torch.equal(b, fast.dataset("train")[1, i]["inputs"]["audio"])  # something was masked


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        ({"crop": "random"}, "false with audio.crop=random, drawn .*; or set audio.crop=first"),
        (
            {"crop": "first", "time_shift_ms": 20, "noise_snr_db": 5.0},
            "false with audio.time_shift_ms=20 and audio.noise_snr_db=5.0, .* set audio.time_shift_ms=0.0, "
            "audio.noise_snr_db=null",
        ),
        ({"crop": "first", "kind": "waveform"}, "false with audio.kind=waveform"),
    ],
)
def test_nothing_random_may_precede(make_module: Callable[..., Clips], audio: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.decode\.spectrogram=true: must be {said}") as refused:
        make_module(audio=AudioTransform(**audio), decode=DecodeOptions(spectrogram=True))
    assert "\n" not in str(refused.value)


def test_other_settings_are_another_store(make_module: Callable[..., Clips], clip_store: Path, tmp_path: Path) -> None:
    """And one in the same folder is noticed, by training that does not prepare."""
    options = DecodeOptions(spectrogram=True)
    made = make_module(audio=AUDIO["log_mel"], store=tmp_path, decode=options)
    made.prepare(convert=clip_store)
    for store, audio in ((tmp_path, AUDIO["log_psd"]), (clip_store, AUDIO["log_mel"])):
        with pytest.raises(UserError, match=r"its spectrograms are not those of data\.audio; run prepare again"):
            make_module(audio=audio, store=store, decode=options).setup()
    names = {make_module(audio=audio, store=None, decode=options).store for audio in AUDIO.values()}
    masked = AudioTransform(**FIXED, n_fft=256, n_mels=16, freq_mask=3)  # masks come after
    assert make_module(audio=masked, store=None, decode=options).store in names
    assert len(names) == 3
