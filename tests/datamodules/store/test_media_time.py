"""Sound and picture lie where the file's clock puts them: in every container, whole and in windows, and with faults."""

import math
import shutil
import struct
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amr.datamodules.store.media import KEPT, Clip, Decoded, DecodeOptions, decode
from tests.datamodules.store.timed import (
    CONTAINERS,
    FPS,
    RATE,
    STORED,
    even,
    picture_errors,
    slot,
    sound,
    sound_lag,
    write,
)

FILMS = [suffix for suffix, (picture, _) in CONTAINERS.items() if picture]
FRAME = 1 / FPS
# WMA delays its sound by 46 ms and does not say so; the muxer delays the picture with it.
LAG = {"wmv": 0.06}
Make = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a file of a container and a kind, once."""
    folder = tmp_path_factory.mktemp("timed")
    kinds: dict[str, dict[str, Any]] = {
        "long": {"seconds": 21.6},
        "late sound": {"late": {"audio": 1.0}},
        "late picture": {"late": {"video": 1.0}},
        "gap": {"keep": lambda kind, time: kind == "video" or not 1.5 <= time < 2.5},
        "clock": {"clock": 50.0},
        "short sound": {"samples": sound(1.5)},
        "short picture": {"times": even(1.5), "end": 1.5},
        "slides": {"times": [0, 0.04, 1.0], "end": 4.0},
    }

    @cache
    def make(suffix: str, kind: str) -> Path:
        return write(folder / f"{kind}.{suffix}", **kinds[kind])

    return make


def read(
    path: Path, start: float | None = None, end: float | None = None, video: Path | None = None, **options: Any
) -> Decoded:
    films = path.suffix[1:] in FILMS or video is not None
    files = {"audio": Path(path.name)} | ({"video": Path((video or path).name)} if films else {})
    decoded = decode(Clip("x", "a", "train", files, start, end), path.parent, DecodeOptions(**options))
    if not films:
        assert decoded.problems.pop("video") == "no file listed"
    return decoded


def assert_sound(decoded: Decoded, suffix: str, start: float = 0.0, *, late: float = 0.0, fits: float = 0.95) -> None:
    assert decoded.waveform is not None
    lag, part = sound_lag(decoded.waveform, start)
    assert abs(lag - late) < LAG.get(suffix, FRAME), (lag, late)
    assert part > fits


def assert_pictures(decoded: Decoded, start: float, *, rate: float, late: float = 0.0, last: float = math.inf) -> None:
    """`late`: seconds by which the picture begins after the sound. `last`: what the last frame says."""
    assert decoded.frames is not None
    times = [start - late + (i + (0.5 if rate != FPS else 0.0)) / rate for i in range(len(decoded.frames))]
    assert picture_errors(decoded.frames, [min(max(time, 0), last) for time in times], FRAME) == []


@pytest.mark.parametrize(("start", "end"), [(None, None), (1.3, 2.3), (20.3, 21.3)])
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_whole_and_window(made: Make, suffix: str, start: float | None, end: float | None) -> None:
    decoded = read(made(suffix, "long"), start, end, fps=10)
    assert (decoded.problems, decoded.notes) == ({}, {})
    assert_sound(decoded, suffix, start or 0.0)
    assert decoded.waveform is not None
    length = 21.6 if end is None else 1.0
    assert abs(len(decoded.waveform) / STORED - length) < (0.1 if end is None else 1e-6)
    if suffix in FILMS:
        assert_pictures(decoded, start or 0.0, rate=10)
        assert abs(len(decoded.frames or []) - length * 10) <= (1 if end is None else 0)


@pytest.mark.parametrize("suffix", FILMS)
def test_native_frames_of_a_window(made: Make, suffix: str) -> None:
    decoded = read(made(suffix, "long"), 20.32, 20.72)
    assert len(decoded.frames or []) == 10
    assert_pictures(decoded, 20.32, rate=FPS)


@pytest.mark.parametrize("suffix", FILMS)
@pytest.mark.parametrize(
    ("kind", "sounds", "pictures"),
    [  # seconds of each, and by how much it is late
        ("late sound", (5.0, 1.0), (4.0, 0.0)),
        ("late picture", (4.0, 0.0), (5.0, 1.0)),
        ("clock", (4.0, 0.0), (4.0, 0.0)),
        ("short sound", (1.5, 0.0), (4.0, 0.0)),
        ("short picture", (4.0, 0.0), (1.5, 0.0)),
    ],
)
def test_streams_that_do_not_begin_and_end_together(
    made: Make, suffix: str, kind: str, sounds: tuple[float, float], pictures: tuple[float, float]
) -> None:
    if suffix == "avi" and kind in ("late sound", "clock"):
        pytest.skip("AVI cannot say so")
    decoded = read(made(suffix, kind), fps=10)
    assert (decoded.problems, decoded.notes) == ({}, {})
    assert decoded.waveform is not None
    assert abs(len(decoded.waveform) / STORED - sounds[0]) < 0.1
    assert_sound(decoded, suffix, late=sounds[1], fits=0.78)  # of it a fifth is silence
    assert abs(len(decoded.frames or []) / 10 - pictures[0]) < 0.11
    assert_pictures(decoded, 0.0, rate=10, late=pictures[1], last=pictures[0] - pictures[1] - 0.02)


@pytest.mark.parametrize("suffix", [s for s in FILMS if s not in ("avi", "ogg")])  # which cannot say so
def test_a_gap_in_the_sound_is_silence(made: Make, suffix: str) -> None:
    decoded = read(made(suffix, "gap"))
    assert (decoded.problems, decoded.notes) == ({}, {})
    assert decoded.waveform is not None
    rate, lag = STORED, LAG.get(suffix, FRAME)
    assert np.abs(decoded.waveform[round(1.65 * rate) : round(2.4 * rate)]).max() < 300
    for part, start in ((slice(0, round(1.4 * rate)), 0.0), (slice(round(2.6 * rate), None), 2.6)):
        late, fits = sound_lag(decoded.waveform[part], start)
        assert abs(late) < lag
        assert fits > 0.9


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "flv"])
def test_a_picture_is_held(made: Make, suffix: str) -> None:
    path = made(suffix, "slides")
    assert [slot(jpeg) for jpeg in read(path).frames or []] == [0, 0, 10]
    assert [slot(jpeg) for jpeg in read(path, fps=5).frames or []] == [0] * 5 + [10] * 15
    assert [slot(jpeg) for jpeg in read(path, 2.0, 3.0).frames or []] == [10]
    assert [slot(jpeg) for jpeg in read(path, 0.5, 3.0).frames or []] == [0, 10]
    assert [slot(jpeg) for jpeg in read(path, 0.5, 1.5, fps=10).frames or []] == [0] * 5 + [10] * 5


def test_a_window_beyond_the_shorter_stream(made: Make) -> None:
    decoded = read(made("mkv", "short sound"), 1.0, 3.0)
    assert decoded.waveform is not None
    assert len(decoded.waveform) == 2 * STORED
    assert not decoded.waveform[round(0.6 * STORED) :].any()
    outside = read(made("mkv", "short picture"), 2.0, 3.0, fps=10)
    assert outside.problems == {"video": "window outside the clip: 2 to 3 s of 1.52 s"}
    assert len(read(made("mkv", "short picture"), 1.0, 2.0, fps=10).frames or []) == 10


@pytest.mark.parametrize("jump", [600, 3600, 1_000_000])
def test_a_damaged_time(tmp_path: Path, jump: int) -> None:
    path = write(tmp_path / "a.flv", 3.0)
    data = bytearray(path.read_bytes())
    tags, at = [], 13
    while at + 11 <= len(data):
        tags += [at] if data[at] == 9 else []
        at += 15 + int.from_bytes(data[at + 1 : at + 4], "big")
    stamp = int.from_bytes(data[tags[20] + 4 : tags[20] + 7], "big") + jump * 1000
    data[tags[20] + 4 : tags[20] + 8] = (stamp & 0xFFFFFF).to_bytes(3, "big") + bytes([stamp >> 24 & 0x7F])
    path.write_bytes(data)
    decoded = read(path, fps=10)
    assert decoded.problems == {}
    assert decoded.notes == {"video": f"{KEPT}: 1 of 75 times wrong"}
    assert len(decoded.frames or []) == 30
    assert_pictures(decoded, 0.0, rate=10)
    assert_sound(decoded, "flv")
    skipped = read(path, fps=10, damage="skip")
    assert skipped.problems == {"video": "damaged: 1 of 75 times wrong"}


@pytest.mark.parametrize("suffix", ["mp4", "flv", "ts", "mp3"])
def test_one_bad_packet(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"good.{suffix}", 4.0)
    data = path.read_bytes()
    whole = read(path)
    noted = 0
    for place in range(3, 8):  # in one of them the damage hits a header of sound
        bad = bytearray(data)
        at = len(data) * place // 10
        bad[at : at + 60] = bytes(60)
        (tmp_path / f"bad.{suffix}").write_bytes(bad)
        decoded = read(tmp_path / f"bad.{suffix}")
        assert decoded.problems == {}
        noted += bool(decoded.notes)
        assert decoded.waveform is not None
        assert whole.waveform is not None
        assert abs(len(decoded.waveform) - len(whole.waveform)) < 0.1 * STORED
        assert len(decoded.frames or []) == len(whole.frames or [])
        assert_sound(decoded, suffix, fits=0.8)
        for note in decoded.notes.values():
            assert note.startswith(f"{KEPT}: 0.")
    assert noted


def test_how_much_may_be_lost(tmp_path: Path) -> None:
    for cut, kept in ((0.06, True), (0.3, False)):
        path = write(tmp_path / "a.wav", 4.0)
        path.write_bytes(path.read_bytes()[: round(path.stat().st_size * (1 - cut))])
        decoded, skipped = read(path), read(path, damage="skip")
        assert skipped.problems == {"audio": f"truncated: {4 * (1 - cut):.2f} of 4.00 s"}
        if kept:
            assert decoded.notes == {"audio": f"{KEPT}: 0.24 of 4.00 s lost"}
            assert_sound(decoded, "wav")
        else:
            assert decoded.problems == skipped.problems


@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv", "avi", "mov"])
def test_a_file_that_was_cut(made: Make, tmp_path: Path, suffix: str) -> None:
    source = made(suffix, "late picture" if suffix != "mov" else "clock")
    data = source.read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data[: len(data) * 6 // 10])
    problems = read(path, fps=10).problems
    wanted = "decode error: " if suffix == "mov" else "truncated: "  # mov has its index at the end
    assert all(problems[kind].startswith(wanted) for kind in ("audio", "video")), problems


def wav(path: Path, riff: int, data: int, body: bytes) -> Path:
    form = struct.pack("<HHIIHH", 1, 1, STORED, 2 * STORED, 2, 16)
    head = b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + struct.pack("<I", 16) + form
    path.write_bytes(head + b"data" + struct.pack("<I", data) + body)
    return path


@pytest.mark.parametrize(
    ("riff", "data"),
    [
        (0x7FFFF024, 0x7FFFF000),
        (0x7FFFFFFF, 0x7FFFFFDB),
        (0x80000024, 0x80000000),
        (2**32 - 1, 2**32 - 1),
        (128044, 128000),
        (128036 + 0x60000000, 128000),
        (0, 0),
    ],
)
def test_wav_lengths_that_no_writer_meant(tmp_path: Path, riff: int, data: int) -> None:
    body = (sound(4.0, STORED) * 32767).astype("<i2").tobytes()
    decoded = read(wav(tmp_path / "a.wav", riff, data, body))
    assert (decoded.problems, decoded.notes) == ({}, {})
    assert decoded.waveform is not None
    assert decoded.waveform.tobytes() == body


@pytest.mark.parametrize("noise", [0.0, 0.002])
@pytest.mark.parametrize("suffix", ["wav", "mp4", "flac", "mp3"])
def test_opposite_channels_do_not_cancel(tmp_path: Path, suffix: str, noise: float) -> None:
    tone = sound(3.0)
    hiss = np.random.default_rng(0).normal(0, noise, len(tone)).astype(np.float32)
    path = write(tmp_path / f"a.{suffix}", 3.0, samples=np.stack([tone, hiss - tone]))
    decoded = read(path)
    assert decoded.problems == {}
    assert decoded.waveform is not None
    assert np.abs(decoded.waveform).max() > 10_000
    assert_sound(decoded, suffix)
    quiet = read(write(tmp_path / f"b.{suffix}", 3.0, samples=np.stack([tone, 0 * tone])))
    assert quiet.waveform is not None
    assert np.abs(quiet.waveform).max() == pytest.approx(np.abs(decoded.waveform).max() / 2, rel=0.1)  # still a mixture


def test_two_mp3_files_joined(tmp_path: Path) -> None:
    part = write(tmp_path / "part.mp3", 2.0)
    path = tmp_path / "joined.mp3"
    path.write_bytes(part.read_bytes() * 2)
    decoded = read(path)
    assert decoded.problems == {}
    assert decoded.waveform is not None
    assert len(decoded.waveform) / STORED == pytest.approx(4.0, abs=0.1)
    assert abs(sound_lag(decoded.waveform[: 2 * STORED])[0]) < FRAME


def test_an_mp3_file_without_an_index(tmp_path: Path) -> None:
    data = write(tmp_path / "whole.mp3", 21.6).read_bytes()
    frames = data.index(b"\xff\xfb", 200)  # after the frame that has the index
    (tmp_path / "bare.mp3").write_bytes(data[frames:])
    assert_sound(read(tmp_path / "bare.mp3", 20.3, 21.3), "mp3", 20.3)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
class TestAgainstFFmpeg:
    """Containers and codecs that only the program writes, and its own reading of all of them."""

    @pytest.mark.parametrize(
        "arguments",
        [
            "a.ogv -c:v libtheora -c:a libvorbis -q:v 9",
            "a.swf -c:v flv -c:a mp3 -ar 44100",
            "a.avi -c:v libx264 -preset medium -c:a mp3",
            "a.mkv -c:v libx264 -preset medium -c:a copy",
            "a.vob -c:v mpeg2video -bf 2 -c:a ac3",
            "a.m1v -c:v mpeg1video -an",
            "a.h264 -c:v libx264 -an",
            "a.mxf -c:v mpeg2video -ar 48000",
            "a.aac -vn",
            "a.opus -vn",
        ],
    )
    def test_windows(self, made: Make, tmp_path: Path, arguments: str) -> None:
        source = made("mkv", "long")
        name, *rest = arguments.split()
        rest = [*rest, "-b:v", "1M"] if "libx264" not in rest else rest
        subprocess.run(["ffmpeg", "-v", "error", "-i", source, *rest, tmp_path / name], check=True)
        files = dict.fromkeys(["audio"] * ("-an" not in rest) + ["video"] * ("-vn" not in rest), Path(name))
        for start in (1.3, 20.3):
            clip = Clip("x", "a", "train", files, start, start + 1)
            decoded = decode(clip, tmp_path, DecodeOptions(fps=10))
            assert set(decoded.problems) == {"audio", "video"} - set(files)
            if "audio" in files:  # coding it twice delays it twice
                assert decoded.waveform is not None
                assert abs(sound_lag(decoded.waveform, start)[0]) < FRAME + 0.03
            if "video" in files:
                assert len(decoded.frames or []) == 10
                assert (
                    picture_errors(decoded.frames or [], [start + (i + 0.5) / 10 for i in range(10)], 2 * FRAME) == []
                )

    @pytest.mark.parametrize("suffix", CONTAINERS)
    def test_whole_files_equal_its_own(self, made: Make, suffix: str) -> None:
        path = made(suffix, "late picture" if suffix in FILMS else "long")
        rate = 48000 if CONTAINERS[suffix][1] == "libopus" else RATE  # its own: a shift is a whole number of samples
        raw = ["-v", "error", "-i", str(path), "-ac", "1", "-ar", str(rate), "-f", "s16le", "-"]
        output = subprocess.run(["ffmpeg", *raw], capture_output=True, check=True)
        theirs, ours = np.frombuffer(output.stdout, np.int16).astype(int), read(path, sample_rate=rate).waveform
        assert ours is not None
        size = 2 ** math.ceil(math.log2(len(theirs) + len(ours)))
        spectrum = np.fft.rfft(theirs, size) * np.conj(np.fft.rfft(ours.astype(int), size))
        shift = int(np.fft.irfft(spectrum, size).argmax())
        shift -= size if shift > size // 2 else 0  # versions differ in the codec's delay that they leave in
        assert abs(shift) < 0.1 * rate
        here = slice(5000, min(len(theirs) - shift, len(ours)) - 5000)
        difference = np.abs(theirs[here.start + shift : here.stop + shift] - ours[here])
        assert difference.mean() < 30  # of 16,000


def test_one_store_for_one_rate() -> None:
    assert repr(DecodeOptions(fps=1)) == repr(DecodeOptions(fps=1.0))
    assert DecodeOptions(crop=[0, 0, 8, 8]) == DecodeOptions(crop=(0, 0, 8, 8))  # type: ignore[arg-type]
    assert math.isclose(DecodeOptions(fps=2).fps or 0, 2.0)
