"""Times at which each packet of a file is heard or shown, in seconds from the file's beginning.

A file's clock need not start at zero, its streams need not start or end together, and single times may be damaged.
Times are taken as they are unless they jump: over more than the file is long, or back. Such a packet follows the one
before it.
"""

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, Protocol

from amr.datamodules.store.decoding.source import ProblemError, Source

_SMOOTH = 1.0  # s; a step up to this long needs no reason
_BACK = 0.5  # s that a packet may begin before the end of the one before it
_GAP = 10.0  # s that may be skipped where nothing says how long the file is
_HOLD = 600.0  # s that a gap, or the last picture, may last by the file's word alone
_REORDER = 10.0  # s between decoding and showing, above which the file must be that long
_STEADY = 8  # pictures that tell a film from slides
_LOOK_AHEAD = 1.0  # s read beyond a window, for pictures that come in another order
_SEEK_FROM = 30.0  # s; nearer windows are reached by reading from the beginning, which is exact in any container
PREROLL = 1.0  # s decoded before a window, for codecs whose frames lean on earlier ones


class Track:
    """The packets of one stream, in the file's order.

    Attributes:
        ticks: Presentation time of each packet in the stream's own units, corrected.
        times: The same in seconds from the file's beginning.
        spans: Seconds that each lasts.
        keys: Whether decoding can begin there.
        codec: Decoder of the packets, until the file is opened again.
        timed: Whether the file gives times at all; otherwise frames follow one another evenly.
        moved: Number of times that were damaged.
        head: Times and size of the first packet, as the file has them.
        empty: Places of packets without content: the picture before stays on show.
        hidden: Places of packets that are decoded and not shown, because an edit list leaves them out.
    """

    def __init__(self, stream: Any, zero: float | None) -> None:
        # All is copied: the stream goes with the container when the file is opened anew.
        self.kind, self.index, self.codec = stream.type, stream.index, stream.codec_context
        self.base, self.zero = float(stream.time_base), zero
        self.declared = None if stream.duration is None else (stream.start_time or 0) + stream.duration
        self.tag = stream.metadata.get("DURATION", "")
        rate = float(stream.average_rate or 0) if self.kind == "video" else 0.0
        self.period = 1 / rate if 1 <= rate <= 240 else 0.04
        self.ticks, self.times, self.spans = array("q"), array("d"), array("d")
        self.keys: list[bool] = []
        self.empty: set[int] = set()
        self.hidden: set[int] = set()
        self.timed, self.moved = True, 0
        self.head: tuple[object, ...] | None = None
        self.offset = self.expected = 0.0  # expected: the time in decoding order at which the next packet should come
        self.shift = 0.0

    def seconds(self, ticks: int | None) -> float | None:
        """A time of the stream in seconds from the file's beginning."""
        return None if ticks is None else ticks * self.base - (self.zero or 0.0) - self.shift

    def ticks_at(self, seconds: float) -> int:
        """The inverse of `seconds`."""
        return round((seconds + (self.zero or 0.0) + self.shift) / self.base)

    @property
    def end(self) -> float:
        """Time at which the last packet ends."""
        return max((t + s for t, s in zip(self.times[-64:], self.spans[-64:], strict=True)), default=0.0)


class Listener(Protocol):
    """Decodes sound while the times of a file's packets are noted, which saves one pass over the file."""

    def begin(self, track: Track) -> None:
        """Called when reading starts, or starts again."""

    def hear(self, packet: Any, time: float, span: float) -> None:
        """The next packet of sound, its own time corrected, that time and its length in seconds."""


class Timeline:
    """Reads a file, or the part that a window needs, and keeps the times of its packets.

    Args:
        source: The file, at its beginning.
        start: Window's first second.
        end: Window's last second; infinite: to the file's end.
        listener: Object that gets each packet of sound.

    Attributes:
        audio: The packets of sound; None: the file has none.
        video: The same of the picture.
        first: Second from which the file was read; 0 unless it was reached by seeking.
        whole: Whether the file was read to its end.
    """

    def __init__(self, source: Source, start: float, end: float, listener: Listener | None = None) -> None:
        self.source = source
        self._listener: Listener | None = listener
        self.first = 0.0
        if start - PREROLL > _SEEK_FROM and source.seek(start - PREROLL):
            self.first = start - PREROLL
        self._read(end)
        tracks = [track for track in (self.audio, self.video) if track is not None]
        if self.first and not any(t.times and min(t.times[:64]) <= start for t in tracks):  # the seek missed
            source.rewind()
            self.first = 0.0
            self._read(end)
        self._listener = None  # and what it holds

    def _read(self, end: float) -> None:
        source = self.source
        self.audio, self.video = (
            None if stream is None else Track(stream, source.start) for stream in (source.audio, source.video)
        )
        self.whole = False
        if self._listener is not None and self.audio is not None:
            self._listener.begin(self.audio)
        by_index = {t.index: t for t in (self.audio, self.video) if t is not None}
        pending: dict[int, Any] = {}
        stop = end + _LOOK_AHEAD
        for packet in source.packets():
            track = by_index[packet.stream_index]
            if track.zero is None:
                stamp = packet.pts if packet.dts is None else packet.pts or packet.dts
                for other in by_index.values():
                    other.zero = (stamp or 0) * track.base
            if (before := pending.get(track.index)) is not None:
                self._place(track, before, packet)
            pending[track.index] = packet
            if track.expected > stop and all(t.expected > stop for t in by_index.values()):
                break
        else:
            self.whole = True
        for index, packet in pending.items():
            self._place(by_index[index], packet, None)
        if self.video is not None and not self.video.timed:
            count = len(self.video.times)
            self.video.times = array("d", (i * self.video.period for i in range(count)))
            self.video.ticks = array("q", range(count))

    def _place(self, track: Track, packet: Any, after: Any) -> None:
        """Give a packet its time, knowing the one after it."""
        pts, dts = packet.pts, packet.dts
        if not track.times:
            track.head = (pts, dts, packet.size)
            track.timed = pts is not None or dts is not None
            if pts is not None and dts is not None and "avi" in self.source.formats:  # which has decoding times only
                track.shift = (pts - dts) * track.base
        span = (packet.duration or 0) * track.base or self._span(track, packet, after)
        raw = track.seconds(dts if dts is not None else pts)
        if packet.is_discard:
            track.hidden.add(len(track.times))
            time = track.expected if raw is None else raw
        else:
            time = track.expected if raw is None else self._settle(track, raw, after, span)
            track.expected = time + span
        shown = time
        if raw is not None and pts is not None:
            lead = pts * track.base - (pts if dts is None else dts) * track.base
            believed = abs(lead) <= _REORDER or time + lead <= self._limit()
            track.moved += not believed
            shown = time + lead if believed else time
        if raw is None or abs(shown - (track.seconds(pts) or 0.0)) > 1e-6:
            ticks = track.ticks_at(shown)
            if track.timed:
                packet.pts, packet.dts = ticks, track.ticks_at(time)
        else:
            ticks = pts
        if not packet.size:
            track.empty.add(len(track.times))
        track.ticks.append(ticks)
        track.times.append(shown)
        track.spans.append(span)
        track.keys.append(packet.is_keyframe)
        if self._listener is not None and track is self.audio:
            self._listener.hear(packet, shown, span)

    @staticmethod
    def _span(track: Track, packet: Any, after: Any) -> float:
        """Duration of a packet that does not give one."""
        if track.kind == "video":
            return track.period
        now, then = packet.pts, None if after is None else after.pts
        step = (then - now) * track.base if now is not None and then is not None else 0.0
        return step if 0 < step <= _SMOOTH else 0.0

    def _settle(self, track: Track, raw: float, after: Any, span: float) -> float:
        """The time of a packet in decoding order, once it is judged."""
        expected = track.expected
        coming = None if after is None else track.seconds(after.dts if after.dts is not None else after.pts)
        if len(track.times) == len(track.hidden):
            if coming is not None and not -_BACK <= coming - raw <= _GAP and self._allowed(track, coming - span, 0.0):
                track.moved += 1
                return coming - span  # the first time of all is the damaged one
            if self.first or -_GAP <= raw <= 0:
                return raw
        other = self.video if track is self.audio else self.audio
        for offset in (track.offset, 0.0, 0.0 if other is None else other.offset):
            if -_BACK <= raw + offset - expected <= _SMOOTH:
                track.offset = offset
                return raw + offset
        time = raw + track.offset
        if coming is not None and abs(coming + track.offset - expected) <= _SMOOTH + span:
            track.moved += 1
            return expected  # the next packet goes on as if nothing were
        if time > expected and self._allowed(track, time, expected):
            return time
        track.offset = expected - raw  # a clock that was set anew
        track.moved += 1
        return expected

    def _limit(self) -> float:
        return (self.source.declared or 0.0) + 0.5

    def _allowed(self, track: Track, time: float, expected: float) -> bool:
        """Whether a gap up to a time can be meant."""
        other = self.video if track is self.audio else self.audio
        if other is not None and other.times and other.expected >= time - _GAP:
            return True
        if self.source.declared is not None:
            return time <= self._limit() and time - expected <= _HOLD
        return time - expected <= _GAP

    @property
    def is_still(self) -> bool:
        """Whether the file is one picture, which goes with any window."""
        track = self.video
        return self.whole and self.audio is None and track is not None and len(track.times) - len(track.hidden) == 1

    @property
    def end(self) -> float:
        """Time at which the longer stream ends; a part beyond what was read counts as present."""
        if not self.whole:
            return math.inf
        ends = [self.audio.end] if self.audio is not None else []
        return max([*ends, self.picture_end] if self.video is not None else ends, default=0.0)

    @property
    def picture_end(self) -> float:
        """Time at which the last picture disappears.

        By the file's word for this stream, where it has one. Otherwise a picture that came at a steady rate goes after
        its period; one that was written only when something changed stays to the file's end.
        """
        if not self.whole:
            return math.inf
        track = self.video
        assert track is not None
        if not track.times:
            return 0.0
        last = max(track.times)
        end = max(track.end, last)
        if self.source.cut:  # what it says of its end is no more true
            return end
        if (told := self._told(track)) is not None:
            end = max(end, told)
        elif (gap := _steady_gap(track.times)) is not None:
            end = max(end, last + gap)
        else:
            sound = 0.0 if self.audio is None else self.audio.end
            end = max(end, sound, self.source.declared or 0.0)
        sound = 0.0 if self.audio is None else self.audio.end
        return min(end, max(sound, last + _HOLD))

    def _told(self, track: Track) -> float | None:
        """The end that the file gives for one stream."""
        if "mov" in self.source.formats and track.declared is not None:
            return track.seconds(track.declared)
        try:
            hours, minutes, seconds = track.tag.split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - (track.zero or 0.0)
        except ValueError:
            return None

    @property
    def holes(self) -> float:
        """Seconds in which there is neither sound nor picture, though a moment before and after there are both."""
        if self.audio is None or self.video is None or not self.audio.times or not self.video.times:
            return 0.0
        heard = zip(self.audio.times, self.audio.spans, self.audio.times[1:], strict=False)
        silent = [(time + span, then) for time, span, then in heard if then - time - span > 0.03]
        shown = in_order(self.video)[0]
        held = [(a + self.video.period, b) for a, b in pairwise(shown) if b - a > 2.5 * self.video.period]
        return sum(max(0.0, min(b, d) - max(a, c)) for a, b in silent for c, d in held) if len(held) < 100 else 0.0

    def check(self, start: float, end: float, own_end: float) -> float:
        """Refuse a window that the file does not have, and a file that ends early.

        Args:
            start: Window's first second.
            end: Its last one; infinite: the file's end.
            own_end: When the stream ends that is asked for.

        Returns:
            Seconds that are missing because the file was cut.

        Raises:
            ProblemError: The window is not there.
        """
        if not self.whole:
            return 0.0
        file_end, declared = self.end, self.source.declared or 0.0
        missing = declared - file_end if self.source.cut and declared > file_end + 0.05 else 0.0
        if missing and min(end, declared) > file_end and start < declared:
            return min(end, declared) - max(start, file_end)
        if end < math.inf:
            slack = max(0.2, 0.1 * (end - start))
            if start >= max(own_end, 0.0) or file_end + slack < end:
                raise ProblemError(f"window outside the clip: {start:g} to {end:g} s of {min(own_end, file_end):g} s")
        elif start > 0 and start >= own_end:
            raise ProblemError(f"window outside the clip: from {start:g} s of {own_end:g} s")
        return 0.0


def _steady_gap(times: Iterable[float]) -> float | None:
    """Seconds between pictures that came one after another at one rate; None: they did not."""
    ordered = sorted(times)
    if len(ordered) < _STEADY:
        return None
    gaps = sorted(b - a for a, b in pairwise(ordered))
    middle = gaps[len(gaps) // 2]
    return middle if gaps[-1] <= 2.5 * middle + 0.01 else None


def keyframe_before(track: Track, time: float) -> int:
    """Place of the packet from which to decode what is shown at a time."""
    good = [i for i, key in enumerate(track.keys) if key and track.times[i] <= time - PREROLL] if track.timed else []
    return good[-1] if good else 0


def in_order(track: Track) -> tuple[list[float], list[int]]:
    """Times and ticks of the packets in the order in which they are shown."""
    shown = (i for i in range(len(track.times)) if i not in track.hidden)
    order = sorted(shown, key=track.ticks.__getitem__)
    return [track.times[i] for i in order], [track.ticks[i] for i in order]


def nearest(times: list[float], start: float, end: float, fps: float, held: float) -> Iterator[int]:
    """Places of the frames to show at `fps`: of each 1/fps s the frame nearest to its middle.

    A frame that stands longer than 0.1 s is taken as long as it is on show.

    Args:
        times: When frames are shown, in order.
        start: Window's first second.
        end: Window's last second.
        fps: Frames a second.
        held: When the last frame goes.
    """
    index = 0
    stop = min(end, held)
    while not index or start + (index + 0.5) / fps < stop - 1e-6:
        target = start + (index + 0.5) / fps
        after = bisect_left(times, target - 1e-9)
        if after == len(times):
            yield len(times) - 1
        elif after == 0:
            yield 0
        else:
            before = after - 1
            gap = times[after] - times[before]
            near = times[after] - target < target - times[before] - 1e-9
            on_show = times[after] <= target + 1e-9
            yield after if on_show or (near and gap <= 0.1) else before
        index += 1
