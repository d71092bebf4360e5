"""A clip's window as an mp4 for people."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from amr.datamodules.store.cut import cut, probe
from amr.datamodules.synthetic.synthesis import write_mp4

RATE, FPS = 16000, Fraction(25)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds: each frame's grey and each tenth of a second's loudness tell the time."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    frames = np.broadcast_to((np.arange(50) * 5)[:, None, None, None], (50, 64, 96, 3)).astype(np.uint8)
    t = np.arange(2 * RATE) / RATE
    wave = (np.sin(2 * np.pi * 440 * t) * np.floor(t * 10) / 25).astype(np.float32)
    write_mp4(path, frames, wave, fps=FPS, rate=RATE)
    return path


def read(path: Path) -> tuple[list[float], list[float], Any]:
    """Times and greys of the frames, and the samples."""
    with av.open(str(path)) as container:
        frames = (
            [(frame.time, frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)]
            if container.streams.video
            else []
        )
    with av.open(str(path)) as container:
        sound = [frame.to_ndarray() for frame in container.decode(audio=0)] if container.streams.audio else []
    return [t for t, _ in frames], [g for _, g in frames], np.concatenate(sound, 1)[0] if sound else np.zeros(0)


@pytest.mark.parametrize(("start", "end"), [(0.5, 1.1), (0.51, 1.13), (None, 0.8), (1.2, None)])
def test_a_window(film: Path, tmp_path: Path, start: float | None, end: float | None) -> None:
    assert cut({"audio": film, "video": film}, tmp_path / "out.mp4", start, end) is None
    times, greys, wave = read(tmp_path / "out.mp4")
    first, last = start or 0.0, end or 2.0
    _, source, _ = read(film)
    shown = [source[int((t + first) * 25 + 1e-6)] for t in times]  # the frame that is on show at each time
    np.testing.assert_allclose(greys, shown, atol=3)
    assert times[0] == 0
    assert abs(len(wave) / RATE - (last - first)) < 0.13  # AAC fills its last frame, here twice
    for tenth in range(int(first * 10) + 1, int(last * 10)):
        at = (tenth / 10 - first + 0.02) * RATE
        loud = np.abs(wave[int(at) : int(at + 0.06 * RATE)]).max()
        assert loud == pytest.approx(tenth / 25, rel=0.15)
    assert probe(tmp_path / "out.mp4")["sound"]
    assert (tmp_path / "out.mp4").read_bytes().find(b"moov") < (tmp_path / "out.mp4").read_bytes().find(b"mdat")


def test_a_whole_file_is_copied_as_it_is(film: Path, tmp_path: Path) -> None:
    assert cut({"audio": film, "video": film}, tmp_path / "out.mp4") is None

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(video=0) if packet.size]

    assert packets(tmp_path / "out.mp4") == packets(film)
    assert cut({"video": film}, tmp_path / "silent.mp4") is None
    assert probe(tmp_path / "silent.mp4") == {"seconds": pytest.approx(2.0, abs=0.05), "sound": False, "picture": True}


def test_sound_and_picture_of_two_files(film: Path, tmp_path: Path) -> None:
    import wave

    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((2, 2, 11000, 0, "NONE", ""))  # stereo, at a rate that AAC lacks
        file.writeframes(np.full(2 * 22000, 8000, np.int16).tobytes())
    assert cut({"audio": tmp_path / "sound.wav", "video": film}, tmp_path / "out.mp4") is None
    found = probe(tmp_path / "out.mp4")
    assert (found["sound"], found["picture"]) == (True, True)
    assert cut({"audio": tmp_path / "sound.wav"}, tmp_path / "alone.mp4", 0.5, 1.0) is None
    assert probe(tmp_path / "alone.mp4") == {"seconds": pytest.approx(0.5, abs=0.05), "sound": True, "picture": False}


def test_large_frames_are_made_smaller(tmp_path: Path) -> None:
    rgb = np.zeros((5, 360, 1000, 3), np.uint8)
    write_mp4(tmp_path / "wide.mp4", rgb, None)
    assert cut({"video": tmp_path / "wide.mp4"}, tmp_path / "out.mp4", 0.0, 0.3) is None
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.codec_context.pix_fmt) == (640, 230, "yuv420p")


@pytest.mark.parametrize(
    ("content", "window", "why"),
    [
        (None, (None, None), "file missing"),
        (b"", (None, None), "zero bytes"),
        (b"no film at all", (None, None), "decode error"),
        ("film", (5.0, 6.0), "window outside the clip"),
    ],
)
def test_why_not(film: Path, tmp_path: Path, content: Any, window: Any, why: str) -> None:
    path = film if content == "film" else tmp_path / "x.mp4"
    if isinstance(content, bytes):
        path.write_bytes(content)
    said = cut({"audio": path, "video": path}, tmp_path / "out.mp4", *window)
    assert said is not None
    assert why in said
    assert not list(tmp_path.glob("*out*"))
