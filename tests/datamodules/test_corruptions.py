"""Corruptions do what their levels say, more of it at each severity, and the same to a clip every time."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from amr.datamodules import Clips, corruptions
from amr.datamodules.corruptions import AUDIO, JOINT, VIDEO, Context, CorruptedAudio, CorruptedVideo, Corruption
from amr.datamodules.loader import seeded
from amr.utils.errors import UserError

RATE = 16000


def voices(count: int) -> list[Tensor]:
    return [torch.randn(5000 + 100 * i) for i in range(count)]


SOUND = Context(RATE, voices)


@pytest.fixture(scope="module")
def wave() -> Tensor:
    """Noise that is louder at low frequencies and in the middle, like speech."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.fft.rfft(torch.randn(RATE, generator=generator)) / torch.arange(1, 8002).sqrt()
    found: Tensor = torch.fft.irfft(spectrum, RATE) * torch.hann_window(RATE)
    return found * 0.3 / found.abs().max()


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """A pattern that brightens and moves: no two frames alike."""
    generator = torch.Generator().manual_seed(1)
    ramp = torch.arange(11)[:, None, None, None] * 8 + 40
    rough = torch.randint(90, (1, 3, 40, 60), generator=generator)
    return (ramp + rough).to(torch.uint8)


def apply(corruption: Corruption, severity: int, x: Tensor) -> Tensor:
    with seeded("clip"):
        return corruption.apply(x, corruption.levels[severity - 1], SOUND)


@pytest.mark.parametrize("name", [*AUDIO, *VIDEO])
def test_a_higher_severity_changes_more(name: str, wave: Tensor, frames: Tensor) -> None:
    x, corruption = (wave, AUDIO[name]) if name in AUDIO else (frames, VIDEO[name])
    before = x.clone()
    energies = [float((apply(corruption, s, x).float() - x.float()).square().sum()) for s in (1, 2, 3, 4, 5)]
    assert energies[0] > 0
    assert all(less < more for less, more in pairwise(energies)), energies
    assert torch.equal(x, before)  # in place, it would corrupt the store's memory
    spoilt = apply(corruption, 5, x)
    assert (spoilt.shape, spoilt.dtype) == (x.shape, x.dtype)
    assert torch.equal(spoilt, apply(corruption, 5, x))


@pytest.mark.parametrize("name", ["white", "babble"])
@pytest.mark.parametrize("severity", [1, 5])
def test_noise_has_the_ratio_that_it_says(name: str, severity: int, wave: Tensor) -> None:
    noise = apply(AUDIO[name], severity, wave) - wave
    ratio = 10 * torch.log10(wave.square().mean() / noise.square().mean())
    assert float(ratio) == pytest.approx(AUDIO[name].levels[severity - 1], abs=0.01)


def test_what_is_taken_from_sound_is_as_much_as_the_level_says(wave: Tensor) -> None:
    loud = wave + 0.01 * wave.abs().max()  # no zeros of its own
    loud[loud == 0] = 0.1
    for severity in (1, 3, 5):
        for name in ("time_mask", "silence"):
            lost = (apply(AUDIO[name], severity, loud) == 0).double().mean()
            assert float(lost) == pytest.approx(AUDIO[name].levels[severity - 1], abs=0.025)
        clipped = apply(AUDIO["clipping"], severity, wave)
        at_limit = (clipped.abs() >= clipped.abs().max() * (1 - 1e-6)).double().mean()
        assert float(at_limit) == pytest.approx(AUDIO["clipping"].levels[severity - 1], abs=0.01)
        spectrum = torch.fft.rfft(apply(AUDIO["resampling"], severity, wave)).abs()
        heard = torch.nonzero(spectrum > 1e-3 * spectrum.max()).max() / len(spectrum)
        assert float(heard) == pytest.approx(1 / AUDIO["resampling"].levels[severity - 1], abs=0.01)
        before, after = (torch.fft.rfft(x).abs() for x in (wave, apply(AUDIO["frequency_mask"], severity, wave)))
        mel = torch.log10(1 + torch.linspace(0, RATE / 2, len(before)) / 700)
        gone = torch.nonzero(after < 1e-3 * before)[:, 0]
        assert gone.diff().max() == 1  # one band
        width = (mel[gone[-1]] - mel[gone[0]]) / mel[-1]
        assert float(width) == pytest.approx(AUDIO["frequency_mask"].levels[severity - 1], abs=0.01)
    assert apply(AUDIO["silence"], 5, wave).abs().max() == 0


def test_what_is_done_to_frames_is_as_much_as_the_level_says(frames: Tensor) -> None:
    for severity in (1, 3, 5):
        covered = (apply(VIDEO["occlusion"], severity, frames) == 127).all(0).all(0).double().mean()
        assert float(covered) == pytest.approx(VIDEO["occlusion"].levels[severity - 1], abs=0.04)
        kept = apply(VIDEO["frame_drop"], severity, frames)
        shown = [int((frames == frame).flatten(1).all(1).nonzero()[0]) for frame in kept]
        assert shown[0] == 0
        assert shown == sorted(shown)
        assert sum(i != s for i, s in enumerate(shown)) == round(10 * VIDEO["frame_drop"].levels[severity - 1])
        ratio = apply(VIDEO["contrast"], severity, frames).float().std() / frames.float().std()
        assert float(ratio) == pytest.approx(VIDEO["contrast"].levels[severity - 1], abs=0.02)
    grey = torch.full((4, 1, 50, 50), 127, dtype=torch.uint8)
    assert float(apply(VIDEO["noise"], 2, grey).float().std()) == pytest.approx(VIDEO["noise"].levels[1], rel=0.05)


@pytest.mark.parametrize(("size", "severity"), [((200, 300), 3), ((300, 200), 5), ((120, 120), 4)])
def test_blur_reaches_its_deviation(size: tuple[int, int], severity: int) -> None:
    """The picture of an edge is the normal distribution, of the level's deviation, along either axis."""
    sigma = VIDEO["blur"].levels[severity - 1] * min(size)
    for axis, side in enumerate(size):
        edge = torch.zeros(1, 1, *size)
        edge.transpose(-1, -2 + axis)[..., side // 2 :] = 255
        blurred = apply(VIDEO["blur"], severity, edge.to(torch.uint8)).float()
        profile = blurred.mean((0, 1, 3 - axis)) / 255
        assert float(blurred.std(3 - axis).max()) == 0  # the other axis is even
        place = torch.arange(side) - side // 2 + 0.5
        expected = 0.5 * (1 + torch.erf(place / sigma / 2**0.5))
        inside = place.abs() < side / 2 - 4 * sigma  # beyond, the mirrored edge is in sight
        torch.testing.assert_close(profile[inside], expected[inside], rtol=0, atol=0.004)  # a grey level


def test_blur_reflects_at_the_borders() -> None:
    """As often as the kernel reaches over them: an even picture stays even, and a mirrored one keeps its mean."""
    even = torch.full((2, 3, 9, 30), 77, dtype=torch.uint8)
    assert torch.equal(apply(VIDEO["blur"], 5, even), even)
    picture = torch.randint(0, 256, (1, 1, 40, 12), dtype=torch.uint8)
    for severity in (1, 5):
        sigma = VIDEO["blur"].levels[severity - 1] * 12
        expected = gaussian_filter(picture[0, 0].double().numpy(), sigma, mode="mirror", truncate=4)
        got = apply(VIDEO["blur"], severity, picture)[0, 0].numpy()
        assert np.abs(got - expected).max() < 2


@pytest.mark.parametrize("name", [*AUDIO, *VIDEO])
def test_odd_clips(name: str) -> None:
    """Silence, a single sample, one frame of one pixel."""
    given = [torch.zeros(300), torch.ones(1)] if name in AUDIO else [torch.full((1, 1, 1, 1), 9, dtype=torch.uint8)]
    for x in given:
        for severity in (1, 5):
            spoilt = apply({**AUDIO, **VIDEO}[name], severity, x)
            assert spoilt.shape == x.shape
            assert bool(torch.isfinite(spoilt.float()).all())


def test_no_corruption_is_the_clean_clip(make_module: Callable[..., Clips]) -> None:
    """The transform's own random choices, here its noise, are those of the clean clip."""
    data = make_module()
    data.setup()
    clean = data.clips_of("test")
    nothing = Corruption("", (1, 2, 3, 4, 5), lambda x, level, context: x + 0 * int(torch.randint(9, ())))
    own = data.corrupted("test", "audio", "white", 1, [])
    own.transforms = {
        "audio": CorruptedAudio(data.audio, nothing, 1, Context(RATE), "k"),
        "video": CorruptedVideo(data.video, nothing, 1, "k"),
    }
    own.clips = clean.clips
    for i in range(len(clean)):
        for modality in ("audio", "video"):
            torch.testing.assert_close(own[i]["inputs"][modality], clean[i]["inputs"][modality], rtol=0, atol=1e-5)
    assert torch.equal(own[0]["inputs"]["video"], clean[0]["inputs"]["video"])


def test_a_clips_corruption_is_a_function_of_the_seed_and_the_clip(make_module: Callable[..., Clips]) -> None:
    data = make_module()
    ids = [clip.id for clip in data.clips if clip.split == "test"]
    for modality, name in (("audio", "white"), ("video", "noise")):
        one, again = (data.corrupted("test", modality, name, 3, ids) for _ in range(2))
        torch.manual_seed(5)
        part = data.corrupted("test", modality, name, 3, ids[2:3])
        other = data.corrupted("test", modality, name, 3, ids, seed=1)
        clean = data.clips_of("test")
        pick: Callable[[Any, int], Tensor] = lambda d, i: d[i]["inputs"][modality]  # noqa: B023, E731
        assert torch.equal(pick(one, 2), pick(again, 2))
        assert torch.equal(pick(one, 2), pick(part, 0))
        assert not torch.equal(pick(one, 2), pick(other, 2))
        assert not torch.equal(pick(one, 2), pick(clean, 2))
        assert list(one[0]["inputs"]) == [modality]
        assert (one[1]["id"], one[1]["label"]) == (ids[1], clean[1]["label"])


def test_babble_is_of_training_clips(make_module: Callable[..., Clips]) -> None:
    data = make_module()
    data.setup()
    others = data._other_waves()
    assert set(others.ids) == {clip.id for clip in data.clips if clip.split == "train"}
    assert [wave.dtype for wave in others(4)] == [torch.float32] * 4


def test_what_does_not_exist_is_refused(make_module: Callable[..., Clips]) -> None:
    data = make_module(modalities=["video"])
    assert list(data.corruptions) == ["video"]
    assert data.joint_corruptions == {}
    assert make_module().joint_corruptions == JOINT
    with pytest.raises(UserError, match="audio white 1: must be video: noise, .*, each from 1 to 5"):
        data.corrupted("test", "audio", "white", 1, [])
    with pytest.raises(UserError, match="video noise 6: must be"):
        data.corrupted("test", "video", "noise", 6, [])
    with pytest.raises(UserError, match="no usable clip 'x' in split 'test'"):
        data.corrupted("test", "video", "noise", 1, ["x"])


def test_a_data_module_declares_its_own(make_module: Callable[..., Clips]) -> None:
    data = make_module()
    louder = Corruption("factor", (2, 3, 4, 5, 6), lambda x, level, _: x * level)
    own = type("Own", (type(data),), {"corruptions": property(lambda _: {"audio": {"louder": louder}})})
    data.__class__ = own
    ids = [clip.id for clip in data.clips if clip.split == "test"]
    raw = data.audio.__class__(seconds=0.3, kind="waveform", normalise=False)
    data.audio = raw
    quiet, loud = data.clips_of("test")[0]["inputs"]["audio"], data.corrupted("test", "audio", "louder", 2, ids)[0]
    np.testing.assert_allclose(loud["inputs"]["audio"], 3 * quiet, rtol=1e-4, atol=1e-5)
    assert corruptions.SEVERITIES == (1, 2, 3, 4, 5)
