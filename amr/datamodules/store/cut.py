"""A clip's window as one small mp4 that any browser plays."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from amr.datamodules.store.decoding.picture import Pictures, Turns
from amr.datamodules.store.decoding.sound import Sound
from amr.datamodules.store.decoding.source import ProblemError, Source
from amr.datamodules.store.decoding.timeline import Timeline
from amr.utils.files import replacing

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
        with replacing(out) as target:
            if not (start is None and end is None and _copy(files, target)):
                _encode(files, target, start or 0.0, math.inf if end is None else end)
    except ProblemError as problem:
        return str(problem)
    except av.FFmpegError as error:
        return f"decode error: {error.strerror}"
    return None


def probe(path: Path) -> dict[str, Any]:
    """Content of a file that `cut` wrote: its `seconds`, and whether it has `sound` and `picture`."""
    with av.open(str(path)) as container:
        return {
            "seconds": (container.duration or 0) / av.time_base,
            "sound": bool(container.streams.audio),
            "picture": bool(container.streams.video),
        }


def _container(target: Any) -> Any:
    return av.open(target, "w", format="mp4", options={"movflags": "+faststart"})


def _copy(files: Mapping[str, Path], target: Any) -> bool:
    """Copies the packets of one whole file, if a browser plays them; whether it did."""
    if len(set(files.values())) != 1:
        return False
    with closing(Source(next(iter(files.values())))) as source:
        streams = [source.stream(kind) for kind in files]
        for stream in streams:
            codec = stream.codec_context
            sound = stream.type == "audio"
            plays = codec.name == "aac" if sound else (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
            if not plays or "mp4" not in source.formats:
                return False
        with _container(target) as container:
            outs = {stream.index: container.add_stream_from_template(stream) for stream in streams}
            for packet in source.packets():
                if packet.dts is not None and packet.stream_index in outs:
                    packet.stream = outs[packet.stream_index]
                    container.mux(packet)
    return True


def _encode(files: Mapping[str, Path], target: Any, start: float, end: float) -> None:
    with _container(target) as container, ExitStack() as opened:
        sources = {kind: opened.enter_context(closing(Source(path))) for kind, path in files.items()}
        video = audio = None
        if "video" in sources:
            timeline = Timeline(sources["video"], start, end)
            shown = _shown(sources["video"], timeline, start, end)
            first = next(shown)
            rate = sources["video"].stream("video").average_rate or Fraction(25)
            video = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "23"})
            video.width, video.height = _fit(first[1].width, first[1].height)
            video.pix_fmt, video.codec_context.thread_count = "yuv420p", 1
            video.codec_context.time_base = Fraction(1, _CLOCK)
        if "audio" in sources:
            sound = sources["audio"].stream("audio").codec_context
            hz = sound.sample_rate if sound.sample_rate in _AAC_RATES else 48000
            layout = "mono" if sound.layout.nb_channels == 1 else "stereo"
            audio = container.add_stream("aac", rate=hz, layout=layout)
        if video is not None:
            for time, frame in chain([first], shown):
                scaled = frame.reformat(video.width, video.height, "yuv420p")
                scaled.pts, scaled.time_base = round((time - start) * _CLOCK), Fraction(1, _CLOCK)
                scaled.pict_type = av.video.frame.PictureType.NONE
                container.mux(video.encode(scaled))
            container.mux(video.encode(None))
        if audio is not None:
            wave = _wave(sources["audio"], layout, hz, start, end)
            for i in range(0, wave.shape[1], _BLOCK):
                block = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, i : i + _BLOCK]), "fltp", layout)
                block.sample_rate, block.pts, block.time_base = hz, i, Fraction(1, hz)
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))


def _shown(source: Source, timeline: Timeline, start: float, end: float) -> Iterator[tuple[float, Any]]:
    """The upright frames on show in the window; the first is on show from `start`."""
    if not timeline.is_still:
        timeline.check(start, end, timeline.picture_end)
    times: list[float] = []
    turns = Turns(source.path if source.photo else None)
    for time, frame, _ in Pictures(source, timeline, start, end, None, on_show=True):
        time = max(time, start)
        if times and time <= times[-1]:
            continue
        times.append(time)
        if ops := turns(frame):
            image = frame.to_image()
            for op in ops:
                image = image.transpose(op)
            frame = av.VideoFrame.from_ndarray(np.asarray(image), "rgb24")
        yield time, frame


def _wave(source: Source, layout: str, hz: int, start: float, end: float) -> Any:
    """Samples of the window, (channels, samples) float32; what is not there before the first one is silence."""
    sound = Sound(hz, start, end, layout=layout, format="fltp")
    timeline = Timeline(source, start, end, sound)
    wave = sound.finish()
    assert timeline.audio is not None
    timeline.check(start, end, timeline.audio.end)
    if not wave.shape[1]:
        raise ProblemError("no samples in the window")
    return wave.astype(np.float32)


def _fit(width: int, height: int) -> tuple[int, int]:
    """Even sides, as yuv420p wants them, within `LONGEST`."""
    scale = min(1.0, LONGEST / max(width, height))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)
