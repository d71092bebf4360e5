"""Stored frames are upright and of one size; a still picture goes with any sound."""

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from amr.datamodules.store.media import Clip, Decoded, DecodeOptions, decode

from . import timed
from .timed import even, sound_lag, write


def read(path: Path, start: float | None = None, end: float | None = None, **options: Any) -> Decoded:
    clip = Clip("x", "a", "train", {"video": Path(path.name)}, start, end)
    return decode(clip, path.parent, DecodeOptions(**options))


def matrix(path: Path, values: tuple[int, ...]) -> Path:
    """Puts a display matrix into the first track of an mp4 file."""
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4 + 4 + 20 + 8 + 8
    assert struct.unpack(">i", data[at : at + 4]) == (65536,)
    data[at : at + 36] = struct.pack(">9i", *values)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("turn", "a", "b", "c", "d"),
    [
        ("upright", 1, 0, 0, 1),
        ("right", 0, 1, -1, 0),
        ("over", -1, 0, 0, -1),
        ("left", 0, -1, 1, 0),
        ("mirrored", -1, 0, 0, 1),
    ],
)
def test_a_picture_is_turned_upright(tmp_path: Path, turn: str, a: int, b: int, c: int, d: int) -> None:
    path = write(tmp_path / "a.mp4", 1.0, times=even(0.2), end=0.2)
    one = 65536
    frames = read(matrix(path, (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30))).frames
    assert frames is not None
    image = np.asarray(Image.open(io.BytesIO(frames[-1])).convert("L"), float)
    upper = shown(turn)
    assert image.shape == upper.shape
    assert np.abs(image - upper).mean() < 2


def shown(turn: str) -> Any:
    """Greys of the frame at 0.16 s as a player shows it."""
    flat = np.full((timed.HEIGHT, timed.WIDTH), 40.0)
    flat[: timed.HEIGHT // 2] = 52
    turned = {"right": 3, "over": 2, "left": 1}.get(turn, 0)
    return np.rot90(flat, turned)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    image = Image.new("RGB", (48, 32), (40, 40, 40))
    image.paste((250, 30, 30), (0, 0, 16, 12))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    with Image.open(tmp_path / f"a.{suffix}") as saved:
        upright = np.asarray(ImageOps.exif_transpose(saved).convert("RGB"), float)
    clip = Clip("x", "a", "train", {"video": Path(f"a.{suffix}")})
    frames = decode(clip, tmp_path, DecodeOptions()).frames
    assert frames is not None
    assert len(frames) == 1
    stored = np.asarray(Image.open(io.BytesIO(frames[0])), float)
    assert stored.shape == upright.shape
    assert np.abs(stored - upright).mean() < 6


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp"])
def test_a_picture_goes_with_any_window_of_a_sound(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (48, 32), (200, 40, 40)).save(tmp_path / f"a.{suffix}")
    wave = write(tmp_path / "a.wav", 12.0)
    for window in ((None, None), (0.5, 1.5), (10.0, 11.0)):
        for fps in (None, 5.0):
            clip = Clip("x", "a", "train", {"audio": Path(wave.name), "video": Path(f"a.{suffix}")}, *window)
            decoded = decode(clip, tmp_path, DecodeOptions(fps=fps))
            assert decoded.problems == {}
            assert len(decoded.frames or []) == 1
            assert not decoded.still
            assert decoded.waveform is not None
            assert abs(sound_lag(decoded.waveform, window[0] or 0.0)[0]) < 0.01


def encoded(size: tuple[int, int]) -> list[bytes]:
    """VP8 packets of ten grey frames, the first of which begins a stream."""
    with av.open(io.BytesIO(), "w", format="webm") as file:
        stream = file.add_stream("libvpx", rate=timed.FPS, options={"deadline": "realtime", "lag-in-frames": "0"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        packets = []
        for i in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 100, np.uint8), "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, timed.FPS)
            packets += stream.encode(frame)
        return [bytes(packet) for packet in [*packets, *stream.encode(None)]]


def test_a_clip_whose_frames_change_their_size(tmp_path: Path) -> None:
    """A phone that is turned while it records: a player scales to the size of the first frame."""
    with av.open(str(tmp_path / "a.webm"), "w") as file:
        stream = file.add_stream("libvpx", rate=timed.FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        file.start_encoding()
        for i, data in enumerate(encoded((64, 48)) + encoded((48, 64))):
            packet = av.Packet(data)
            packet.pts = packet.dts = i * 40
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 1000), stream, i % 10 == 0
            file.mux(packet)
    sizes = [Image.open(io.BytesIO(jpeg)).size for jpeg in read(tmp_path / "a.webm").frames or []]
    assert sizes == [(64, 48)] * 20
    for options, wanted in (({"size": 24}, (32, 24)), ({"crop": (0, 0, 40, 60)}, (60, 40))):
        frames = read(tmp_path / "a.webm", **options).frames or []
        assert {Image.open(io.BytesIO(jpeg)).size for jpeg in frames} == {wanted}
