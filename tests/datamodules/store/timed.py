"""Media that tell their own time, and what reads it back.

Every tenth of a second has a number, which two tones and two greys spell: the picture's upper half and the lower tone
count to 16, the lower half and the higher tone count the sixteens. Good for 25.6 s.
"""

import io
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT, FPS, RATE = 64, 48, 25, 44100
STORED = 16000  # Hz, of what is read back
CONTAINERS = {  # codecs of picture and sound
    "mp4": ("libx264", "aac"),
    "mov": ("libx264", "aac"),
    "mkv": ("libx264", "aac"),
    "webm": ("libvpx", "libopus"),
    "avi": ("mpeg4", "libmp3lame"),
    "flv": ("libx264", "aac"),
    "ts": ("libx264", "aac"),
    "mpg": ("mpeg2video", "mp2"),
    "wmv": ("wmv2", "wmav2"),
    "ogg": ("libvpx", "libopus"),
    "wav": (None, "pcm_s16le"),
    "mp3": (None, "libmp3lame"),
    "m4a": (None, "aac"),
    "flac": (None, "flac"),
}
_FORMATS = {"mpg": "vob", "m4a": "ipod", "ts": "mpegts", "mkv": "matroska", "wmv": "asf"}


def sound(seconds: float, rate: int = RATE, start: float = 0.0) -> NDArray[np.float32]:
    """(samples,), the tones from `start` on."""
    slot = np.floor((start + np.arange(round(seconds * rate)) / rate) * 10 + 1e-6)
    tones = [np.sin(np.cumsum(2 * np.pi * f / rate)) for f in (500 + 100 * (slot % 16), 2500 + 200 * (slot // 16))]
    return (0.25 * (tones[0] + tones[1])).astype(np.float32)


def picture(time: float) -> NDArray[np.uint8]:
    """Planes Y, U and V, (height * 3 / 2, width)."""
    slot = math.floor(time * 10 + 1e-6)
    planes = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
    planes[: HEIGHT // 2] = 16 + round((40 + 12 * (slot % 16)) * 219 / 255)
    planes[HEIGHT // 2 : HEIGHT] = 16 + round((40 + 12 * (slot // 16)) * 219 / 255)
    return planes


def even(seconds: float) -> list[float]:
    """Times of frames at the usual rate."""
    return [i / FPS for i in range(round(seconds * FPS))]


def write(
    path: Path,
    seconds: float = 4.0,
    *,
    times: Sequence[float] | None = None,
    samples: NDArray[np.float32] | None = None,
    late: dict[str, float] | None = None,
    keep: Callable[[str, float], bool] = lambda kind, time: True,
    change: Callable[[str, int, Any], None] = lambda kind, place, packet: None,
    clock: float = 0.0,
    end: float | None = None,
    kinds: Sequence[str] = ("video", "audio"),
) -> Path:
    """Write a file whose container and codecs go by its suffix.

    Args:
        path: The file.
        seconds: Its length.
        times: When the frames are shown.
        samples: The sound, (samples,) or (channels, samples).
        late: By kind: seconds after which the stream begins, as it says itself.
        keep: Says of a packet's kind and time whether it is written.
        change: May alter a packet; is given its kind and place.
        clock: What the clock shows at the beginning.
        end: When the last frame goes.
        kinds: Streams to write.
    """
    suffix, late = path.suffix[1:], late or {}
    vcodec, acodec = CONTAINERS[suffix]
    times = even(seconds) if times is None else times
    samples = sound(seconds) if samples is None else samples
    packets: list[tuple[float, str, Any]] = []
    with av.open(str(path), "w", format=_FORMATS.get(suffix)) as file:
        video = _video(file, vcodec) if vcodec and "video" in kinds else None
        audio = _audio(file, acodec, np.ndim(samples)) if "audio" in kinds else None
        file.start_encoding()
        if video is not None:
            packets += _pictures(video, times, seconds if end is None else end)
        if audio is not None:
            packets += _sounds(audio, np.atleast_2d(samples))
        count = {"video": 0, "audio": 0}
        for _, kind, packet in sorted(packets, key=lambda item: item[0] + late.get(item[1], 0.0)):
            time = float(packet.pts * packet.time_base)
            count[kind] += 1
            if not keep(kind, time):
                continue
            move = round((late.get(kind, 0.0) + clock) / float(packet.time_base))
            packet.pts, packet.dts = packet.pts + move, packet.dts + move
            change(kind, count[kind] - 1, packet)
            file.mux(packet)
    return path


def _video(file: Any, codec: str) -> Any:
    options = {"crf": "12", "preset": "ultrafast", "g": "50"} if codec == "libx264" else {"g": "12"}
    options |= {"deadline": "realtime", "cpu-used": "16", "lag-in-frames": "0"} if codec == "libvpx" else {}
    stream = file.add_stream(codec, rate=FPS, options=options)
    stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    if codec != "libx264":
        stream.bit_rate = 400_000
    return stream


def _audio(file: Any, codec: str, dimensions: int) -> Any:
    stream = file.add_stream(codec, rate=48000 if codec == "libopus" else RATE)
    stream.layout = "mono" if dimensions == 1 else "stereo"
    if codec == "wmav2":
        stream.bit_rate = 64_000
    return stream


def _pictures(stream: Any, times: Sequence[float], end: float) -> list[tuple[float, str, Any]]:
    packets = []
    for time in times:
        frame = av.VideoFrame.from_ndarray(picture(time), "yuv420p")
        frame.pts, frame.time_base = round(time * FPS), Fraction(1, FPS)
        packets += stream.encode(frame)
    packets += stream.encode(None)
    stops = dict(zip((round(t * 1000) for t in times), [*times[1:], end], strict=True))
    for packet in packets:
        time = float(packet.pts * packet.time_base)
        packet.duration = round((stops.get(round(time * 1000), time + 1 / FPS) - time) / float(packet.time_base))
    return [(float(p.dts * p.time_base), "video", p) for p in packets]


def _sounds(stream: Any, samples: NDArray[np.float32]) -> list[tuple[float, str, Any]]:
    """One frame as long as the encoder takes at a time."""
    context, packets = stream.codec_context, []
    context.open(strict=False)
    layout = "mono" if len(samples) == 1 else "stereo"
    whole = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", layout)
    whole.sample_rate, whole.pts, whole.time_base = RATE, 0, Fraction(1, RATE)
    resampler = av.AudioResampler(context.format, layout, context.sample_rate, context.frame_size or 1024)
    for frame in [*resampler.resample(whole), *resampler.resample(None)]:
        packets += stream.encode(frame)
    packets += stream.encode(None)
    return [(float(p.dts * p.time_base), "audio", p) for p in packets]


# What reads it back


def sound_lag(samples: NDArray[np.int16], start: float = 0.0, span: float = 1.5) -> tuple[float, float]:
    """Seconds by which the sound comes too late, and the part of it that fits."""
    step, size = STORED // 100, 480
    windows = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float32), size)[::step]
    spectra = np.abs(np.fft.rfft(windows * np.hanning(size), 2048))
    hertz = np.fft.rfftfreq(2048, 1 / STORED)
    low, high = (hertz > 400) & (hertz < 2100), (hertz > 2400) & (hertz < 5700)
    slots = np.round((hertz[low][spectra[:, low].argmax(1)] - 500) / 100)
    slots += 16 * np.round((hertz[high][spectra[:, high].argmax(1)] - 2500) / 200)
    times = start + (np.arange(len(slots)) * step + size / 2) / STORED
    lags = np.arange(-span, span, 0.005)
    fits = np.array([(slots == np.floor((times - lag) * 10 + 1e-6)).mean() for lag in lags])
    return float(lags[fits == fits.max()].mean()), float(fits.max())


def slot(jpeg: bytes) -> int:
    """The tenth of a second that a stored frame says."""
    image = np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"), float)
    height = len(image)
    low, high = np.median(image[height // 8 : height * 3 // 8]), np.median(image[height * 5 // 8 : height * 7 // 8])
    return round(float(low - 40) / 12) + 16 * round(float(high - 40) / 12)


def picture_errors(jpegs: Sequence[bytes], times: Sequence[float], slack: float = 1 / FPS) -> list[tuple[float, int]]:
    """The frames that do not say the time at which they should be on show, give or take `slack` seconds."""
    said = [(time, slot(jpeg)) for time, jpeg in zip(times, jpegs, strict=True)]
    return [(t, s) for t, s in said if not math.floor((t - slack) * 10) <= s <= math.floor((t + slack) * 10 + 1e-6)]
