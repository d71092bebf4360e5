import gc
import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from amr.datamodules.store.decoding.picture import Pictures
from amr.datamodules.store.decoding.source import Source
from amr.datamodules.store.media import Clip, Decoded, DecodeOptions, decode
from amr.datamodules.synthetic.synthesis import write_mp4
from amr.utils.errors import UserError
from tests.datamodules.conftest import write_clip


def read(path: Path, start: float | None = None, end: float | None = None, **options: object) -> Decoded:
    files = {"audio": Path(path.name), "video": Path(path.name)}
    return decode(Clip("x", "a", "train", files, start, end), path.parent, DecodeOptions(**options))  # type: ignore[arg-type]


def frame_numbers(decoded: Decoded) -> list[int]:
    """Which frames of `write_clip` these are, by their brightness."""
    assert decoded.frames is not None
    return [round(float(np.asarray(Image.open(io.BytesIO(jpeg))).mean()) / 3) for jpeg in decoded.frames]


def test_whole_clip(tmp_path: Path) -> None:
    decoded = read(write_clip(tmp_path / "a.mp4", seconds=1.0, hz=1000))
    assert decoded.problems == {}
    assert frame_numbers(decoded) == list(range(25))
    assert decoded.waveform is not None
    assert decoded.waveform.dtype == np.int16
    assert abs(len(decoded.waveform) - 16000) <= 1024  # AAC pads its last block
    spectrum = np.abs(np.fft.rfft(decoded.waveform[:16000]))
    assert spectrum.argmax() == 1000  # Hz, for one second was transformed
    assert np.abs(decoded.waveform).max() / 32768 == pytest.approx(0.5, abs=0.05)


def test_resampling_keeps_pitch_and_length(tmp_path: Path) -> None:
    wave = read(write_clip(tmp_path / "a.mp4", seconds=1.0, hz=1000), start=0, end=1, sample_rate=22050).waveform
    assert wave is not None
    assert abs(len(wave) - 22050) < 100
    assert np.abs(np.fft.rfft(wave, 22050)).argmax() == 1000


@pytest.mark.parametrize(("start", "end"), [(0.2, 0.6), (0.21, 0.5), (7.0, 7.4), (9.6, 10.0)])
def test_window(tmp_path: Path, start: float, end: float) -> None:
    """The late windows are reached by seeking."""
    n, rate = 250, 16000
    path = tmp_path / "long.mp4"
    frames = np.repeat(np.arange(n, dtype=np.uint8), 32 * 32 * 3).reshape(n, 32, 32, 3)
    wave = np.zeros(10 * rate, np.float32)
    click = round((start + 0.1) * rate)
    wave[click : click + 160] = np.sin(np.arange(160))
    write_mp4(path, frames, wave, fps=25)  # type: ignore[arg-type]
    decoded = read(path, start, end)
    assert decoded.problems == {}
    assert decoded.waveform is not None
    assert len(decoded.waveform) == round((end - start) * rate)
    loud = np.flatnonzero(np.abs(decoded.waveform) > 5000)
    assert abs(loud[0] - 1600) < 30
    first = int(np.ceil(start * 25 - 1e-6))
    seen = [number * 3 for number in frame_numbers(decoded)]  # brightness is the number here
    assert len(seen) == len(range(first, int(np.ceil(end * 25 - 1e-6))))
    assert abs(seen[0] - first) <= 4


def test_frames_nearest_to_a_rate(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", seconds=2.0)
    # Wanted at 0.25, 0.75, 1.25 and 1.75 s; the frame at or just before 0.25 s x 25 = 6.25 is number 6.
    assert frame_numbers(read(path, fps=2)) == [6, 19, 31, 44]
    assert frame_numbers(read(path, 1.0, 2.0, fps=2)) == [31, 44]
    assert len(frame_numbers(read(path, fps=50))) == 100
    assert len(frame_numbers(read(path, 0.5, 0.9, fps=1))) == 1  # shorter than 1 / fps


def test_crop_then_resize(tmp_path: Path) -> None:
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    frames[:, 8:24, 16:40] = 200
    write_mp4(tmp_path / "a.mp4", frames, None)
    decoded = read(tmp_path / "a.mp4", crop=(8, 16, 16, 24), size=8)
    assert decoded.frames is not None
    image = Image.open(io.BytesIO(decoded.frames[0]))
    assert image.size == (12, 8)
    assert np.asarray(image).min() > 180
    assert read(tmp_path / "a.mp4", crop=(20, 0, 16, 24)).problems["video"].startswith("crop outside the frame: ")


def test_problems_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no clip" * 100)
    write_clip(tmp_path / "mute.mp4", audio=False)
    write_clip(tmp_path / "blind.mp4", video=False)
    write_mp4(tmp_path / "silent.mp4", np.zeros((10, 32, 32, 3), np.uint8), np.zeros(16000, np.float32))
    whole = write_clip(tmp_path / "whole.mp4")
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    reasons = {name: read(tmp_path / f"{name}.mp4").problems for name in ("gone", "empty", "mute", "blind", "silent")}
    assert reasons == {
        "gone": {"audio": "file missing", "video": "file missing"},
        "empty": {"audio": "zero bytes", "video": "zero bytes"},
        "mute": {"audio": "no audio stream"},
        "blind": {"video": "no video stream"},
        "silent": {"audio": "silent"},
    }
    for name in ("text", "cut"):  # an mp4's index is at its end
        problems = read(tmp_path / f"{name}.mp4").problems
        assert problems.keys() == {"audio", "video"}
        assert all(reason.startswith("decode error: ") for reason in problems.values())
    assert decode(Clip("x", "a", "train", {}), tmp_path, DecodeOptions()).problems["audio"] == "no file listed"
    outside = read(whole, 3.0, 3.5)
    assert all(reason.startswith("window outside the clip: 3 to 3.5 s of 0.8") for reason in outside.problems.values())
    assert outside.waveform is None
    assert outside.frames is None


def test_real_clips_cut_short_are_truncated(shared_data: Path, tmp_path: Path) -> None:
    for source in ("AudioWAV/1001_DFA_ANG_XX.wav", "VideoFlash/1001_DFA_ANG_XX.flv"):
        data = (shared_data / "crema_d_sample" / source).read_bytes()
        path = tmp_path / Path(source).name
        path.write_bytes(data[: len(data) // 3])
        kind = "audio" if path.suffix == ".wav" else "video"
        assert read(path).problems[kind].startswith("truncated: ")


def test_crema_d_sample(shared_data: Path) -> None:
    root = shared_data / "crema_d_sample"
    names = sorted(path.stem for path in (root / "AudioWAV").iterdir())
    assert len(names) == 6
    for name in names:
        files = {"audio": Path(f"AudioWAV/{name}.wav"), "video": Path(f"VideoFlash/{name}.flv")}
        decoded = decode(Clip(name, "ANG", "train", files), root, DecodeOptions(fps=1))
        assert decoded.problems == {}
        assert decoded.waveform is not None
        assert decoded.frames is not None
        header = (root / files["audio"]).read_bytes()
        assert decoded.waveform.tobytes() == header[-decoded.waveform.nbytes :]  # 16 kHz, 16 bit already
        assert len(decoded.frames) == round(len(decoded.waveform) / 16000)
        assert Image.open(io.BytesIO(decoded.frames[0])).size == (480, 360)


def test_workers_do_not_import_torch() -> None:
    imported = "sys, amr.datamodules.store.prepare, amr.datamodules.synthetic.synthesis"
    code = f"import {imported}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "options", [{"sample_rate": 0}, {"fps": 0.0}, {"size": 0}, {"crop": (0, 0, 0, 5)}, {"jpeg_quality": 101}]
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"decode.{next(iter(options))}=.*: must be "):
        DecodeOptions(**options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reordered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Clips with frames that no other one refers to: even, with holes, late, in Matroska, cut short."""
    folder = tmp_path_factory.mktemp("reordered")
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 255, (64, 240, 3), dtype=np.uint8)
    picture = np.stack([np.roll(ground, 2 * i, 1)[:48, :64] // 2 + i for i in range(120)]).astype(np.uint8)
    wave = (0.3 * np.sin(np.arange(80000) / 9)).astype(np.float32)
    write_mp4(folder / "even.mp4", picture, wave, fps=Fraction(25), preset="medium")
    times: dict[str, Path] = {}
    with av.open(str(folder / "even.mp4")) as source:
        frames = list(source.decode(video=0))
    for name, container in (("holes", "mp4"), ("late", "mp4"), ("film", "matroska")):
        path = folder / f"{name}.{'mkv' if container == 'matroska' else 'mp4'}"
        with av.open(str(path), "w", format=container) as out:
            stream = out.add_stream("libx264", rate=25, options={"preset": "medium"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            for i, frame in enumerate(frames):
                if name == "holes" and rng.random() < 0.6:
                    continue
                new = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")
                new.pts, new.time_base = 40 * i + (700 if name == "late" else 0), Fraction(1, 1000)
                out.mux(stream.encode(new))
            out.mux(stream.encode(None))
        times[name] = path
    film = times["film"].read_bytes()
    (folder / "cut.mkv").write_bytes(film[: len(film) // 2])
    return {"even": folder / "even.mp4", "cut": folder / "cut.mkv", **times}


@pytest.mark.parametrize("name", ["even", "holes", "late", "film", "cut"])
def test_skipping_frames_changes_nothing(
    reordered: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames that no other one refers to are not decoded unless they are wanted."""
    path = reordered[name]
    clip = Clip("x", "a", "train", {"video": Path(path.name)})
    counts: list[int] = []
    settings, decode_packets = {"all": False}, Pictures._decode

    def everything(pictures: Pictures) -> Iterator[tuple[int, Any]]:
        pictures._all = settings["all"]
        for frame in decode_packets(pictures):
            counts[-1] += 1
            yield frame

    monkeypatch.setattr(Pictures, "_decode", everything)
    for fps in (0.4, 1.0, 3.0, 10.0, 25.0):
        for start, end in ((None, None), (0.0, 2.0), (1.03, 3.01), (3.2, 4.75), (0.0, 0.1)):
            results = []
            for settings["all"] in (False, True):
                counts.append(0)
                results.append(decode(replace(clip, start=start, end=end), path.parent, DecodeOptions(fps=fps)))
            assert results[0].frames == results[1].frames, (fps, start, end)
            assert (results[0].problems, results[0].still) == (results[1].problems, results[1].still)
            if (name, fps, start) == ("even", 1.0, None):
                assert counts[-2] < 0.7 * counts[-1]


def test_a_file_opened_once_reads_as_one_opened_twice(
    reordered: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [*reordered.values(), write_clip(tmp_path / "a.mp4", seconds=7.0)]
    for path in files:
        for start, end in ((None, None), (0.5, 1.5), (5.5, 6.5)):
            clip = Clip("x", "a", "train", {m: Path(path.name) for m in ("audio", "video")}, start, end)
            once = decode(clip, path.parent, DecodeOptions())
            with monkeypatch.context() as patch:
                patch.setattr(Source, "again", lambda self, seconds, begin=None: self.rewind())
                twice = decode(clip, path.parent, DecodeOptions())
            assert (once.frames, once.problems) == (twice.frames, twice.problems)
            np.testing.assert_array_equal(once.waveform, twice.waveform)


def test_frames_are_let_go_as_they_are_stored(tmp_path: Path) -> None:
    """Memory holds the JPEG files and a few frames, however long the clip is."""
    write_clip(tmp_path / "a.mp4", seconds=3.0)
    gc.collect()
    gc.disable()
    try:
        assert len(read(tmp_path / "a.mp4").frames or []) == 75
        held = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
    finally:
        gc.enable()
    assert held < 10
