"""Pictures at their times, upright and of one size."""

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter
from PIL import Image

from amr.datamodules.store.decoding.source import ProblemError, Source
from amr.datamodules.store.decoding.timeline import Timeline, in_order, keyframe_before, nearest

_T = Image.Transpose
_BY_ANGLE = {90: [_T.ROTATE_90], 180: [_T.ROTATE_180], 270: [_T.ROTATE_270]}
_BY_EXIF = {
    2: [_T.FLIP_LEFT_RIGHT],
    3: [_T.ROTATE_180],
    4: [_T.FLIP_TOP_BOTTOM],
    5: [_T.TRANSPOSE],
    6: [_T.ROTATE_270],
    7: [_T.TRANSVERSE],
    8: [_T.ROTATE_90],
}
_ON_ITS_SIDE = {_T.ROTATE_90, _T.ROTATE_270, _T.TRANSPOSE, _T.TRANSVERSE}
Crop = tuple[int, int, int, int]


class Pictures:
    """Decodes the pictures of a window.

    Args:
        source: The file.
        timeline: When its packets are shown.
        start: First second.
        end: Last one; infinite: all.
        fps: Pictures a second; None: each one that the file has.
        on_show: Whether to begin with the picture that is on show at the window's first second, however soon the next
            one comes.

    Attributes:
        error: The first error of decoding; None: there was none.

    Raises:
        ProblemError: The window has no pictures.
    """

    def __init__(
        self,
        source: Source,
        timeline: Timeline,
        start: float,
        end: float,
        fps: float | None,
        *,
        on_show: bool = False,
    ) -> None:
        track = timeline.video
        assert track is not None
        self._source, self._timeline, self._track = source, timeline, track
        self._times, self._ticks = in_order(track)
        if not self._times:
            raise ProblemError("no frames")
        self._errors = 0.0
        held = timeline.picture_end if end == math.inf else timeline.end  # in a window, as long as there is sound
        self.error: av.FFmpegError | None = None
        if timeline.is_still:
            picks = [0]
        elif fps is None:
            picks = self._native(start, end, on_show)
        elif self._times[0] >= end:
            picks = []
        else:
            picks = list(nearest(self._times, max(start, 0.0), end, fps, held))
        if not picks:
            raise ProblemError("no frames")
        self._picks, self._all = picks, fps is None

    def _native(self, start: float, end: float, on_show: bool) -> list[int]:
        """Places of all frames that begin in the window, and of one that is held when it begins."""
        inside = [i for i, time in enumerate(self._times) if start - 1e-6 <= time < end - 1e-6]
        before = next((i for i in reversed(range(len(self._times))) if self._times[i] < start - 1e-6), None)
        if before is not None:
            until = self._times[inside[0]] if inside else min(end, self._timeline.end)
            soon = max(2 * self._track.period, 0.1) if inside and not on_show else 1e-6
            if until - start > soon:
                inside.insert(0, before)
        return inside

    @property
    def lost(self) -> float:
        """Seconds of the pictures between the first and the last one that could not be decoded."""
        return self._errors

    def __iter__(self) -> Iterator[tuple[float, Any, bool]]:
        """(seconds from the file's beginning, frame, whether it is the one before again) of each picture to show."""
        picks = iter(self._picks)
        pick: int | None = next(picks)
        previous: tuple[int, Any] | None = None
        shown: Any = None

        for tick, frame in self._decode():
            while pick is not None and tick >= (wanted := self._ticks[pick]):
                best = frame if previous is None or tick - wanted < wanted - previous[0] else previous[1]
                yield self._times[pick], best, best is shown
                shown, pick = best, next(picks, None)
            if pick is None:
                return
            previous = (tick, frame)
        if previous is None:
            if self.error is not None:
                raise self.error
            raise ProblemError("no frames")
        while pick is not None:
            yield self._times[pick], previous[1], previous[1] is shown
            shown, pick = previous[1], next(picks, None)

    def _decode(self) -> Iterator[tuple[int, Any]]:
        """(tick, frame) in the order in which they are shown, from the first wanted one or a little earlier."""
        track = self._track
        first, last = self._ticks[self._picks[0]], self._ticks[self._picks[-1]]
        begin = keyframe_before(track, self._times[self._picks[0]])
        wanted = None if self._all or not track.timed else {self._ticks[pick] for pick in self._picks}
        count, before = 0, None
        for place, packet in self._packets():
            if place < begin or place in track.empty:
                continue
            context = packet.stream.codec_context
            if wanted is not None:
                context.skip_frame = "DEFAULT" if track.ticks[place] in wanted else "NONREF"
            if track.timed:
                packet.pts = track.ticks[place]
            try:
                frames = context.decode(packet)
            except av.FFmpegError as error:
                self.error = self.error or error
                self._errors += track.spans[place] if first <= track.ticks[place] <= last else 0.0
                continue
            for frame in frames:
                before = self._tick(frame, count, before)
                count += 1
                self._errors += track.period if frame.is_corrupt and first <= before <= last else 0.0
                yield before, frame
                if before > last:
                    return
        try:
            frames = self._source.stream("video").codec_context.decode(None)
        except av.FFmpegError:
            frames = []
        for frame in frames:
            before = self._tick(frame, count, before)
            count += 1
            yield before, frame

    def _tick(self, frame: Any, count: int, before: int | None) -> int:
        if not self._track.timed:
            return self._ticks[min(count, len(self._ticks) - 1)]
        stamp = frame.pts if frame.pts is not None else frame.dts
        return int(stamp) if stamp is not None else (before or 0) + 1

    def _packets(self) -> Iterator[tuple[int, Any]]:
        """(place in the track, packet), once more from where the timeline began."""
        track, first = self._track, self._timeline.first
        for fresh in (False, True):
            self._source.again(first, None if fresh or track.head is None else track.head[1])
            place = 0
            for packet in self._source.packets("video"):
                if not place and not fresh and (packet.pts, packet.dts, packet.size) != track.head:
                    break  # not the packet that came first before
                yield place, packet
                place += 1
                if place == len(track.ticks):
                    return
            if place:
                return


class Shaper:
    """Makes each frame an upright RGB picture of the size of the first.

    Args:
        size: Shorter side in pixels; None: as it is.
        crop: Part to keep, before resizing: top, left, height, width in pixels.
        photo: File of a still picture, which may say how it is turned.
    """

    def __init__(self, size: int | None = None, crop: Crop | None = None, photo: Path | None = None) -> None:
        self._size, self._crop = size, crop
        self._turns = Turns(photo)
        self._first: tuple[int, int] | None = None
        self._reformatter = VideoReformatter()  # one for all frames: each would build its own scaler otherwise

    def __call__(self, frame: Any) -> Image.Image:
        """One frame.

        Raises:
            ProblemError: The part to keep is not in it.
        """
        ops = self._turns(frame)
        side = bool(_ON_ITS_SIDE.intersection(ops))
        if self._first is None:
            width, height = (frame.height, frame.width) if side else (frame.width, frame.height)
            self._first = (width, height) if self._crop is not None else scaled(width, height, self._size)
        width, height = self._first[::-1] if side else self._first
        rgb = self._reformatter.reformat(frame, width, height, "rgb24", interpolation="BILINEAR", threads=1)
        image = Image.fromarray(rgb.to_ndarray())
        for op in ops:
            image = image.transpose(op)
        return image if self._crop is None else self._cropped(image, self._crop)

    def _cropped(self, image: Image.Image, crop: Crop) -> Image.Image:
        top, left, height, width = crop
        if top + height > image.height or left + width > image.width:
            raise ProblemError(f"crop outside the frame: {list(crop)} of {image.height} x {image.width} pixels")
        image = image.crop((left, top, left + width, top + height))
        return image.resize(scaled(*image.size, self._size), Image.Resampling.BILINEAR)


class Turns:
    """Finds the operations that make a frame upright.

    Args:
        photo: File of a still picture, whose EXIF orientation counts; None: the frames' display matrix does.
    """

    def __init__(self, photo: Path | None = None) -> None:
        self._photo = photo
        self._angle: int | None = None
        self._ops: list[Image.Transpose] = []

    def __call__(self, frame: Any) -> list[Image.Transpose]:
        """The operations on a picture, in order.

        The matrix is read again only when its angle changes: a frame whose side data were read is a reference cycle in
        PyAV, which keeps its pixels until Python collects garbage.
        """
        if frame.rotation != self._angle:
            self._angle = frame.rotation
            self._ops = _matrix_turns(frame) if self._photo is None else _photo_turns(self._photo)
        return self._ops


def _matrix_turns(frame: Any) -> list[Image.Transpose]:
    try:
        data = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # the frame has data that PyAV does not know, as EXIF
        return _BY_ANGLE.get(frame.rotation % 360, [])
    if data is None:
        return []
    a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(data), np.int32)[:5])
    side = abs(b) + abs(c) > abs(a) + abs(d)  # x' = a x + c y, y' = b x + d y
    ops = [Image.Transpose.TRANSPOSE] if side else []
    if (c if side else a) < 0:
        ops.append(Image.Transpose.FLIP_LEFT_RIGHT)
    if (b if side else d) < 0:
        ops.append(Image.Transpose.FLIP_TOP_BOTTOM)
    return ops


def _photo_turns(path: Path) -> list[Image.Transpose]:
    """By EXIF orientation, which may mirror."""
    try:
        with Image.open(path) as image:
            return _BY_EXIF.get(image.getexif().get(0x0112, 1), [])
    except Exception:  # not for Pillow to judge: FFmpeg has decoded it
        return []


def scaled(width: int, height: int, size: int | None) -> tuple[int, int]:
    """Width and height whose shorter side is `size`."""
    if size is None:
        return width, height
    scale = size / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def jpeg(image: Image.Image, quality: int) -> bytes:
    """The picture as a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
