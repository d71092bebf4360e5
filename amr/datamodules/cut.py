"""A clip's window as one small mp4 that any browser plays: what a person is shown of it."""

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from amr.datamodules.media import _decode, _Files, _ProblemError
from amr.files import replacing

LONGEST = 640  # pixels of the longer side; larger frames are made smaller
_CLOCK = 90000  # ticks a second
_BLOCK = 1024  # samples in a frame of AAC
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


def cut(files: Mapping[str, Path], out: Path, start: float | None = None, end: float | None = None) -> str | None:
    """Writes a window's sound and picture to one mp4: H.264 (yuv420p) and AAC, its index first.

    A whole file that is H.264 and AAC already keeps its streams as they are. Otherwise sound is cut to the sample;
    the frame on show at `start` comes first, and frames keep their times.

    Args:
        files: The clip's file of `audio`, of `video`, or of both, which may be one.
        out: The mp4; put in place in one step.
        start: Window's first second; None: the file's beginning.
        end: Window's last second, excluded; None: the file's end.

    Returns:
        None, or in words why nothing was written.

    Raises:
        UserError: `out` cannot be written.
    """
    try:
        with closing(_Files()) as opened, replacing(out) as target:
            if not (start is None and end is None and _copy(files, opened, target)):
                _encode(files, opened, target, start or 0.0, math.inf if end is None else end)
    except _ProblemError as problem:
        return str(problem)
    except av.FFmpegError as error:
        return f"decode error: {error.strerror}"
    return None


def probe(path: Path) -> dict[str, Any]:
    """What a file that `cut` wrote holds: `seconds`, and whether it has `sound` and `picture`."""
    with av.open(str(path)) as container:
        return {
            "seconds": (container.duration or 0) / av.time_base,
            "sound": bool(container.streams.audio),
            "picture": bool(container.streams.video),
        }


def _container(target: Any) -> Any:
    return av.open(target, "w", format="mp4", options={"movflags": "+faststart"})


def _copy(files: Mapping[str, Path], opened: _Files, target: Any) -> bool:
    """Copies the packets of one whole file, if a browser plays them; whether it did."""
    if len(set(files.values())) != 1:
        return False
    path = next(iter(files.values()))
    streams = [opened.open(path, kind)[1] for kind in files]
    source, _ = opened.open(path, next(iter(files)))
    for stream in streams:
        codec = stream.codec_context
        plays = codec.name == "aac" if stream.type == "audio" else (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        if not plays or "mp4" not in source.format.name.split(","):
            return False
    with _container(target) as container:
        outs = {stream.index: container.add_stream_from_template(stream) for stream in streams}
        for packet in source.demux(streams):
            if packet.dts is not None:
                packet.stream = outs[packet.stream.index]
                container.mux(packet)
    return True


def _encode(files: Mapping[str, Path], opened: _Files, target: Any, start: float, end: float) -> None:
    with _container(target) as container:
        video = audio = None
        if "video" in files:
            source, stream = opened.open(files["video"], "video")
            rate = stream.average_rate or Fraction(25)
            video = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "23"})
            video.width, video.height = _fit(stream.codec_context.width, stream.codec_context.height)
            video.pix_fmt, video.codec_context.thread_count = "yuv420p", 1
            video.codec_context.time_base = Fraction(1, _CLOCK)
        if "audio" in files:
            _, sound = opened.open(files["audio"], "audio")
            hz = sound.codec_context.sample_rate
            hz = hz if hz in _AAC_RATES else 48000
            layout = "mono" if sound.codec_context.layout.nb_channels == 1 else "stereo"
            audio = container.add_stream("aac", rate=hz, layout=layout)
        if video is not None:
            source, stream = opened.open(files["video"], "video")
            for time, frame in _window(_decode(source, stream, start), start, end):
                scaled = frame.reformat(video.width, video.height, "yuv420p")
                scaled.pts, scaled.time_base = round((time - start) * _CLOCK), Fraction(1, _CLOCK)
                scaled.pict_type = av.video.frame.PictureType.NONE
                container.mux(video.encode(scaled))
            container.mux(video.encode(None))
        if audio is not None:
            source, sound = opened.open(files["audio"], "audio")
            wave = _wave(_decode(source, sound, start), layout, hz, start, end)
            for i in range(0, wave.shape[1], _BLOCK):
                block = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, i : i + _BLOCK]), "fltp", layout)
                block.sample_rate, block.pts, block.time_base = hz, i, Fraction(1, hz)
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))


def _window(frames: Iterator[tuple[float, Any]], start: float, end: float) -> Iterator[tuple[float, Any]]:
    """The frames on show in the window; the first is on show from `start`."""
    previous, any_frame = None, False
    for time, frame in frames:
        if time >= end - 1e-6:
            break
        if time > start + 1e-6:
            if previous is not None:
                yield max(previous[0], start), previous[1]
                previous, any_frame = None, True
            yield time, frame
            any_frame = True
        else:
            previous = (time, frame)
    if previous is not None:
        yield max(previous[0], start), previous[1]
        any_frame = True
    if not any_frame:
        raise _ProblemError("no frames in the window")


def _wave(frames: Iterator[tuple[float, Any]], layout: str, hz: int, start: float, end: float) -> Any:
    """Samples of the window, (channels, samples) float32; what is not there before the first one is silence."""
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=hz)
    chunks, first = [], None
    for time, frame in frames:
        if time > end + 0.1:
            break
        first = time if first is None else first
        chunks += [out.to_ndarray() for out in resampler.resample(frame)]
    if first is None:
        raise _ProblemError("no samples in the window")
    wave = np.concatenate([*chunks, *(out.to_ndarray() for out in resampler.resample(None))], axis=1)
    skip = round((start - first) * hz)
    wave = wave[:, skip:] if skip >= 0 else np.pad(wave, ((0, 0), (-skip, 0)))
    if end < math.inf:
        wave = wave[:, : round((end - start) * hz)]
    if not wave.shape[1]:
        raise _ProblemError("no samples in the window")
    return wave.astype(np.float32)


def _fit(width: int, height: int) -> tuple[int, int]:
    """Even sides, as yuv420p wants them, within `LONGEST`."""
    scale = min(1.0, LONGEST / max(width, height))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)
