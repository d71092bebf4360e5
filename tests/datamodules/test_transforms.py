import io
import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio
from PIL import Image

from amr.datamodules.loader import seeded
from amr.datamodules.spectra import power_density, resampled
from amr.datamodules.transforms import AudioTransform, ChosenFrames, VideoTransform
from amr.utils.errors import UserError


def tone(seconds: float, rate: int = 16000, hz: float = 440.0) -> np.ndarray[Any, np.dtype[np.int16]]:
    return (8000 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.int16)


def jpegs(n: int, height: int = 24, width: int = 32) -> list[bytes]:
    """Frame i is grey with brightness 10 i on the left and dark on the right."""
    files = []
    for i in range(n):
        image = np.zeros((height, width, 3), np.uint8)
        image[:, : width // 2] = 10 * i
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    return files


@pytest.mark.parametrize(("padding", "mode"), [("reflect", "reflect"), ("zeros", "constant")])
def test_the_recipe_of_ogm_ge(padding: Any, mode: Any) -> None:
    recipe: dict[str, Any] = {"fit": "tile", "crop": "first", "kind": "log_stft", "normalise": False}
    transform = AudioTransform(seconds=3, n_fft=512, hop_length=353, eps=1e-7, padding=padding, **recipe)
    samples = tone(1.3, 22050)
    x = transform(samples, 22050, train=True)
    assert x.shape == transform.shape(22050) == (1, 257, 188)
    wave = np.tile(samples / 32768, 3)[: 3 * 22050]
    padded = np.pad(wave, 256, mode=mode)
    window = np.hanning(513)[:-1]
    reference = np.stack([np.abs(np.fft.rfft(window * padded[i : i + 512])) for i in range(0, len(wave) + 1, 353)], 1)
    np.testing.assert_allclose(x[0].numpy(), np.log(reference + 1e-7), atol=1e-5)
    batch = transform.batch([samples, samples], [nullcontext()] * 2, sample_rate=22050, train=False)
    torch.testing.assert_close(batch[1], x)


def test_the_recipe_of_pmr() -> None:
    """PMR's and MMCosine's, and the one of VGGSound's authors: SciPy's power density."""
    transform = AudioTransform(seconds=3, fit="tile", crop="first", kind="log_psd", n_fft=512, hop_length=159)
    samples = (tone(1.7) + np.random.default_rng(0).normal(0, 200, 27200)).astype(np.int16)
    x = transform(samples, 16000, train=False)
    assert x.shape == transform.shape(16000) == (1, 257, 299)
    from scipy.signal import spectrogram  # a second, which the other processes need not spend

    _, _, density = spectrogram(np.tile(samples / 32768, 3)[:48000], 16000, nperseg=512, noverlap=353)
    reference = np.log(density + 1e-7)
    reference = (reference - reference.mean()) / (reference.std() + 1e-9)
    np.testing.assert_allclose(x[0].numpy(), reference, atol=1e-3)  # 1e-5 is added to the deviation
    with pytest.raises(UserError, match=r"audio.n_fft=512: must be, with log_psd, at most the input's 160 samples"):
        AudioTransform(seconds=0.01, kind="log_psd")(samples, 16000, train=False)


@pytest.mark.parametrize("nperseg", [64, 63])
def test_power_density_is_scipys(nperseg: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, 1000)) + 5  # the mean is taken off
    from scipy.signal import spectrogram

    _, _, expected = spectrogram(x, 8000, nperseg=nperseg, noverlap=nperseg - 20)
    np.testing.assert_allclose(power_density(torch.from_numpy(x), 8000, nperseg, 20).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(("rate", "to"), [(16000, 22050), (22050, 16000), (16000, 8000)])
def test_resampling_keeps_time_and_pitch(rate: int, to: int) -> None:
    """A tone that both rates can hold is the tone sampled at the other rate."""
    t = np.arange(3 * to // 2) / to
    got = resampled((0.5 * np.sin(2 * np.pi * 440 * np.arange(3 * rate // 2) / rate)).astype(np.float32), rate, to)
    assert got.dtype == np.float32
    assert len(got) == len(t)
    middle = slice(to // 10, -to // 10)
    np.testing.assert_allclose(got[middle], 0.5 * np.sin(2 * np.pi * 440 * t)[middle], atol=2e-6)


def test_resampling_ends_and_overshoot() -> None:
    for length in (1, 2, 101, 33017):
        assert len(resampled(np.ones(length, np.float32), 16000, 22050)) == math.ceil(length * 22050 / 16000)
    square = np.where(np.arange(4000) % 100 < 50, 1, -1).astype(np.float32)
    assert np.abs(resampled(square, 16000, 22050)).max() == 1
    assert np.abs(resampled(square * np.float32(3), 16000, 22050)).max() == 3
    assert resampled(square, 16000, 16000) is square


def test_the_inputs_rate_counts() -> None:
    """A transform that resamples is the one of the other rate after resampling, in all that knows of seconds."""
    samples = tone(1.0)
    options: dict[str, Any] = {"seconds": 0.5, "time_shift_ms": 50, "noise_snr_db": 10, "n_mels": 20}
    one, other = AudioTransform(sample_rate=8000, **options), AudioTransform(**options)
    halved = resampled(samples.astype(np.float32) / np.float32(32768), 16000, 8000) * np.float32(32768)
    for train in (True, False):
        with seeded("rate"):
            x = one(samples, 16000, train=train)
        with seeded("rate"):
            torch.testing.assert_close(x, other(halved, 8000, train=train))
    assert one.shape(16000) == other.shape(8000)
    assert one.bin_edges(16000) == other.bin_edges(8000)
    assert one.atoms(16000).grid == other.atoms(8000).grid


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"kind": "log_mel", "n_mels": 40, "hop_length": 160}, (1, 40, 101)),
        ({"kind": "log_stft", "n_fft": 400, "hop_length": 200}, (1, 201, 81)),
        ({"kind": "waveform"}, (1, 16000)),
        ({"kind": "log_psd", "n_fft": 400, "hop_length": 200}, (1, 201, 79)),
    ],
)
@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.2])
def test_every_clip_gets_the_same_shape(options: dict[str, Any], shape: tuple[int, ...], seconds: float) -> None:
    transform = AudioTransform(seconds=1.0, **options)
    for fit in ("tile", "pad"):
        for train in (True, False):
            x = AudioTransform(seconds=1.0, fit=fit, **options)(tone(seconds), 16000, train=train)
            assert x.shape == transform.shape(16000) == shape
            assert x.dtype == torch.float32
            assert abs(float(x.mean())) < 1e-3
            assert float(x.std()) == pytest.approx(1, abs=1e-2)


def test_fit() -> None:
    samples = np.arange(1, 11, dtype=np.int16)

    def fit(train: bool = False, **options: Any) -> list[int]:
        x = AudioTransform(kind="waveform", normalise=False, **options)(samples, 10, train=train)
        return [round(v) for v in (x[0] * 32768).tolist()]

    assert fit(seconds=1.5, fit="pad") == [*range(1, 11), 0, 0, 0, 0, 0]
    assert fit(seconds=2.5, fit="tile") == [*range(1, 11), *range(1, 11), 1, 2, 3, 4, 5]
    assert fit(seconds=0.4) == [4, 5, 6, 7]
    assert fit(seconds=0.4, crop="first", train=True) == [1, 2, 3, 4]
    starts = {fit(seconds=0.4, train=True)[0] for _ in range(200)}
    assert starts == set(range(1, 8))
    assert sorted(fit(seconds=1.0, time_shift_ms=300, train=True)) == list(range(1, 11))
    assert fit(seconds=1.0, time_shift_ms=300) == list(range(1, 11))


@pytest.mark.parametrize("snr", [-10.0, 0.0, 20.0])
def test_noise_has_the_asked_power(snr: float) -> None:
    clean = AudioTransform(seconds=2.0, kind="waveform", normalise=False)
    noisy = AudioTransform(seconds=2.0, kind="waveform", normalise=False, noise_snr_db=snr)
    samples = tone(2.0)
    with seeded("noise"):
        x, noise = clean(samples, 16000, train=False), noisy(samples, 16000, train=False)
    noise = noise - x
    assert float(10 * torch.log10(x.square().mean() / noise.square().mean())) == pytest.approx(snr, abs=0.1)
    assert float(noise.mean()) == pytest.approx(0, abs=4 * float(noise.std()) / len(samples) ** 0.5)


def test_masks() -> None:
    transform = AudioTransform(seconds=1.0, freq_mask=5, time_mask=7)
    plain = AudioTransform(seconds=1.0)(tone(1.0), 16000, train=False)[0]
    widths = set()
    for _ in range(60):
        changed = (transform(tone(1.0), 16000, train=True)[0] - plain).abs() > 1e-6
        rows, columns = changed.all(1).sum(), changed.all(0).sum()
        widths.add((int(rows), int(columns)))
    assert max(rows for rows, _ in widths) == 5
    assert max(columns for _, columns in widths) == 7
    torch.testing.assert_close(transform(tone(1.0), 16000, train=False)[0], plain)


@pytest.mark.parametrize("augment", ["none", "shift", "resized_crop"])
@pytest.mark.parametrize("grayscale", [True, False])
@pytest.mark.parametrize("available", [1, 3, 10])
def test_frames_have_one_shape(augment: Any, grayscale: bool, available: int) -> None:
    transform = VideoTransform(frames=4, size=(12, 18), augment=augment, flip=True, grayscale=grayscale)
    for train in (True, False):
        x = transform(jpegs(available), train=train)
        assert x.shape == transform.shape() == (4, 1 if grayscale else 3, 12, 18)
        assert x.dtype == torch.float32


def brightness(x: torch.Tensor) -> list[int]:
    """Which of the frames of `jpegs` these are."""
    return [round(float(v) * 255 / 10) for v in x.amax((1, 2, 3))]


def test_segment_sampling() -> None:
    transform = VideoTransform(frames=4, size=(24, 32), mean=0.0, std=1.0)
    assert brightness(transform(jpegs(20), train=False)) == [2, 7, 12, 17]
    assert brightness(transform(jpegs(2), train=False)) == [0, 0, 1, 1]
    drawn = torch.tensor([brightness(transform(jpegs(20), train=True)) for _ in range(100)])
    for i in range(4):
        assert set(drawn[:, i].tolist()) == set(range(5 * i, 5 * i + 5))


def test_the_first_frames() -> None:
    transform = VideoTransform(frames=2, size=(24, 32), mean=0.0, std=1.0, pick="first")
    for train in (True, False):
        assert brightness(transform(jpegs(20), train=train)) == [0, 1]
        assert brightness(transform(jpegs(1), train=train)) == [0, 0]


@pytest.mark.parametrize("augment", ["shift", "resized_crop"])
def test_each_frame_of_a_clip_is_augmented_by_itself(augment: Any) -> None:
    options: dict[str, Any] = {"size": (24, 32), "augment": augment, "shift": 6, "flip": True}
    alike, apart = VideoTransform(frames=3, **options), VideoTransform(frames=3, per_frame=True, **options)
    single, same = VideoTransform(frames=1, **options), [jpegs(20)[-1]] * 3
    differing = 0
    for seed in range(20):
        with seeded(seed):
            x = apart(same, train=True)
        with seeded(seed):
            torch.rand(3)  # which frames
            views = [single._view(lambda: (24, 32), train=True) for _ in range(3)]
        frames = single.decode(same)
        for frame, view, got in zip(frames, views, x, strict=True):  # each as a clip of one frame with its own draws
            expected = single._look([frame], view).float().div(255).sub(0.5).div(0.5)
            torch.testing.assert_close(got[None], expected)
        differing += not (torch.equal(x[0], x[1]) and torch.equal(x[0], x[2]))
        with seeded(seed):
            (again,) = apart.batch([frames], [nullcontext()], train=True)
        torch.testing.assert_close(again, x)
    assert differing > 15
    torch.testing.assert_close(apart(same, train=False), alike(same, train=False))
    joined = ChosenFrames.join([apart.choose(same, train=True) for _ in range(2)])
    assert [len(clip.views[0].frames) for clip in joined.clips()] == [3, 3]
    assert apart.finish(joined, "cpu").shape == (2, 3, 3, 24, 32)


@pytest.mark.parametrize("augment", ["shift", "resized_crop"])
def test_all_frames_of_a_clip_are_augmented_alike(augment: Any) -> None:
    transform = VideoTransform(frames=3, size=(24, 32), augment=augment, shift=6, flip=True)
    same = [jpegs(20)[-1]] * 3
    results = [transform(same, train=True) for _ in range(10)]
    for x in results:
        assert torch.equal(x[0], x[1])
        assert torch.equal(x[0], x[2])
    assert any(not torch.equal(results[0], x) for x in results[1:])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 20, "comment": b"no" * 300}])
def test_a_crop_knows_the_size_from_the_header(options: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((90, 30, 3), 7, np.uint8)).save(buffer, "JPEG", **options)
    transform = VideoTransform(frames=1, augment="resized_crop")
    views = [transform.choose([buffer.getvalue()], train=True).views[0] for _ in range(50)]
    boxes = [view.box or (0, 0, 0, 0) for view in views]
    assert all(top + height <= 90 and left + width <= 30 for top, left, height, width in boxes)
    assert max(top + height for top, _, height, _ in boxes) > 60


@pytest.mark.parametrize("augment", ["none", "resized_crop"])
def test_frames_that_cannot_be_decoded(augment: Any) -> None:
    transform = VideoTransform(frames=2, augment=augment)
    for files in ([b"", b""], [b"\0" + file[1:] for file in jpegs(2)], [file[:20] for file in jpegs(2)]):
        with pytest.raises(ValueError, match=r"."):
            transform(files, train=True)
    with pytest.raises(ValueError, match="frames differ in size"):
        VideoTransform(frames=2)([*jpegs(1), *jpegs(1, height=30)], train=False)
    with pytest.raises(ValueError, match="frames differ in size"):
        VideoTransform(frames=1).decode([*jpegs(1), *jpegs(1, height=30)])


def test_values() -> None:
    x = VideoTransform(frames=1, size=(24, 32), mean=0.2, std=0.4)(jpegs(21)[20:], train=False)
    assert float(x[..., :14].mean()) == pytest.approx((200 / 255 - 0.2) / 0.4, abs=0.02)
    x = VideoTransform(frames=1, size=(24, 32), mean=(0.0, 0.5, 1.0), std=(1.0, 2.0, 4.0))(jpegs(1), train=False)
    assert x[0, :, 0, 0].tolist() == [0, -0.25, -0.25]


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_normalisation_of_every_grey_level(mean: Any, std: Any) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).expand(2, 3, 1, 256)
    wide = [torch.tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (mean, std)]
    right = (pixels.double() / 255 - wide[0]) / wide[1]
    found = VideoTransform(mean=mean, std=std).normalised(pixels)
    assert found.dtype == torch.float32
    assert float((found - right).abs().max()) < 5e-7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AudioTransform(seconds=0), "audio.seconds=0"),
        (lambda: AudioTransform(eps=0), "audio.eps=0"),
        (lambda: AudioTransform(time_mask=-1), "audio.time_mask=-1"),
        (lambda: AudioTransform(sample_rate=0), "audio.sample_rate=0"),
        (lambda: VideoTransform(frames=0), "video.frames=0"),
        (lambda: VideoTransform(size=(0, 3)), "video.size="),
        (lambda: VideoTransform(std=0.0), "video.std=0"),
        (lambda: VideoTransform(grayscale=True, mean=(0.1, 0.2, 0.3)), "video.mean=.* one number"),
    ],
)
def test_bad_values(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_bin_edges_lie_between_the_centres() -> None:
    rate = 16000
    mel = AudioTransform(n_fft=512, n_mels=20)
    banks = torchaudio.functional.melscale_fbanks(8193, 0.0, rate / 2, 20, rate)  # (frequencies, mels), triangles
    peaks = banks.argmax(0) * (rate / 2) / 8192
    edges = torch.tensor(mel.bin_edges(rate))
    assert len(edges) == 21
    assert bool((edges[:-1] < peaks).all() and (peaks < edges[1:]).all())
    assert edges[[0, -1]].tolist() == [0, rate / 2]
    stft = AudioTransform(kind="log_stft", n_fft=8)
    assert stft.bin_edges(rate) == [0, 1000, 3000, 5000, 7000, 8000]


def test_atoms_and_pictures_go_together() -> None:
    audio, video = AudioTransform(seconds=1.0, n_mels=16), VideoTransform(frames=5, size=(8, 12), mean=0.3, std=0.2)
    atoms = audio.atoms(16000)
    assert (atoms.grid, atoms.label.shape) == ((8, 8), audio.shape(16000))
    x = torch.randn(audio.shape(16000))
    shown = audio.picture(x, atoms)
    np.testing.assert_array_equal(shown.image, x[0].flip(0))
    assert shown.atom[-1, 0] == 0  # low frequencies at the bottom
    frames = torch.rand(5, 3, 8, 12)
    atoms = video.atoms((2, 2, 3))
    shown = video.picture((frames - 0.3) / 0.2, atoms)
    assert shown.image.shape == (8, 24, 3)
    np.testing.assert_allclose(shown.image[:, :12], frames[1].permute(1, 2, 0), atol=1e-5)
    assert shown.atom[0, 0] == 0
    assert shown.atom[-1, -1] == len(atoms) - 1 == 11
    wave = AudioTransform(seconds=0.1, kind="waveform")
    atoms = wave.atoms(16000, (1, 4))
    shown = wave.picture(torch.sin(torch.arange(1600) / 9)[None], atoms)
    assert shown.image.shape == shown.atom.shape
    assert sorted(set(shown.atom[0].tolist())) == [0, 1, 2, 3]
