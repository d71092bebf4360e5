"""Sound as one waveform in which every sample lies at its time."""

import math
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from amr.datamodules.store.decoding.source import ProblemError
from amr.datamodules.store.decoding.timeline import PREROLL, Track

_JITTER = 0.025  # s by which a frame's time may differ from the end of the one before it
_RATES = (1000, 1_000_000)  # Hz; others are damage, and would need gigabytes
_BLOCKS = 256  # resampled arrays that are held apart
_TOGETHER = 1 << 16  # samples that go through the resampler at once: a call costs as much as a thousand samples
_SAMPLED = 4  # of so many stereo frames one is measured
_CANCELS = 0.01  # power of the mixture by that of the louder channel: 20 dB less
_AUDIBLE = (3 / 32768) ** 2  # power of a channel


class Sound:
    """Decodes packets of sound and puts them in place: silence where there is none, nothing twice.

    Args:
        rate: Samples a second to make.
        start: First second to keep.
        end: Last one; infinite: all.
        layout: Layout of what is made.
        format: `s16` or `fltp`.
        channel: The only channel to use; None: mix all.
    """

    def __init__(
        self,
        rate: int,
        start: float,
        end: float,
        *,
        layout: str = "mono",
        format: str = "s16",
        channel: int | None = None,
    ) -> None:
        self.rate, self.start, self.end = rate, start, end
        self.layout, self.format, self.channel = layout, format, channel

    def begin(self, track: Track) -> None:
        """Start again, with the packets of a stream."""
        self.track, self._context = track, track.codec
        self.lost = 0.0  # s of the window that could not be decoded
        self.error: av.FFmpegError | None = None
        self._pieces: list[NDArray[Any]] = []
        self._length = 0  # samples made
        self._resampler: Any = None
        self._waiting: list[Any] = []  # frames for the resampler
        self._waiting_samples = 0
        self._run: list[NDArray[Any]] = []  # what the resampler made of frames that follow one another
        self._joined: list[NDArray[Any]] = []  # earlier parts of it
        self._run_at = self._expected = 0.0
        self._kind: tuple[object, ...] | None = None
        self._gap = False  # the packet before was lost
        self._frames = 0
        self._powers: list[NDArray[np.float64]] = []

    def hear(self, packet: Any, time: float, span: float) -> None:
        """Take the next packet."""
        if time + span < self.start - PREROLL or time > self.end + PREROLL:
            return
        try:
            frames = self._context.decode(packet)
        except av.FFmpegError as error:
            self._lose(error, time, span)
            return
        for frame in frames:
            self._place(frame, time)

    def _lose(self, error: av.FFmpegError, time: float, span: float) -> None:
        self._gap = True
        if self.start <= time < self.end:
            self.error = self.error or error
            self.lost += span

    def _place(self, frame: Any, fallback: float) -> None:
        if not frame.samples:
            return
        if not _RATES[0] <= frame.sample_rate <= _RATES[1]:
            raise ProblemError(f"no sample rate: {frame.sample_rate} Hz")
        time = self.track.seconds(frame.pts)
        if time is None:
            time = self._expected if self._kind is not None else fallback
        if time > self.end + 0.1:  # the resampler holds a few milliseconds back
            return
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._kind or self._gap or abs(time - self._expected) > _JITTER:
            contiguous = self._kind is not None and not self._gap and abs(time - self._expected) <= _JITTER
            time = self._expected if contiguous else time
            self._end_run()
            self._run_at, self._kind, self._gap = time, kind, False
            self._expected = time
            layout = "mono" if self.channel is not None else self.layout
            self._resampler = av.AudioResampler(format=self.format, layout=layout, rate=self.rate)
        self._expected += frame.samples / frame.sample_rate
        self._measure(frame)
        if self.channel is not None:
            frame = _one_channel(frame, self.channel)
        self._waiting.append(frame)
        self._waiting_samples += frame.samples
        if self._waiting_samples >= _TOGETHER:
            self._resample()

    def _resample(self) -> None:
        """Resample the frames that wait, as one: it goes by the samples, not by how they are cut into frames."""
        waiting, self._waiting, self._waiting_samples = self._waiting, [], 0
        for frame in _joined(waiting):
            self._run += [out.to_ndarray() for out in self._resampler.resample(frame)]
        if len(self._run) >= _BLOCKS:  # small arrays take more than they hold
            self._joined.append(np.concatenate(self._run, axis=1))
            self._run.clear()

    def _measure(self, frame: Any) -> None:
        channels = frame.layout.nb_channels
        if channels > 1 and (self._frames < 64 or self._frames % _SAMPLED == 0):
            samples = _channels(frame)
            if not self._powers or len(self._powers[0]) == len(samples):
                self._powers.append(np.mean(np.square(samples), axis=1))
        self._frames += 1

    def _end_run(self) -> None:
        """Put what was decoded without a gap in its place."""
        if self._resampler is None:
            return
        self._resample()
        self._run += [out.to_ndarray() for out in self._resampler.resample(None)]
        self._resampler = None
        parts = self._joined + self._run
        wave = np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.int16)
        self._joined, self._run = [], []
        at = round((self._run_at - self.start) * self.rate)
        if abs(self._run_at - self.start) < 0.002:  # containers round times to milliseconds
            at = 0
        if at < self._length:
            wave, at = wave[:, self._length - at :], self._length
        if wave.shape[1]:
            if at > self._length:
                self._pieces.append(np.zeros((len(wave), at - self._length), wave.dtype))
            self._pieces.append(wave)
            self._length = at + wave.shape[1]

    def finish(self) -> NDArray[Any]:
        """The waveform, (channels, samples), from `start`.

        Raises:
            av.FFmpegError: Nothing could be decoded.
        """
        try:
            for frame in self._context.decode(None):
                self._place(frame, self._expected)
        except av.FFmpegError:  # a decoder that had nothing
            pass
        self._end_run()
        if not self._pieces:
            if self.error is not None:
                raise self.error
            return np.zeros((1, 0), np.int16)
        wave = self._pieces[0] if len(self._pieces) == 1 else np.concatenate(self._pieces, axis=1)
        self._pieces = []
        return wave if self.end == math.inf else wave[:, : round((self.end - self.start) * self.rate)]

    def cancelled(self, wave: NDArray[np.int16]) -> int | None:
        """The loudest channel, where the mixture of all leaves next to nothing of it; None: the mixture is good."""
        if not self._powers or not wave.size:
            return None
        power = np.mean(self._powers, axis=0)
        mixed = float(np.mean(np.square(wave, dtype=np.float64))) / 32768**2
        loudest = int(power.argmax())
        return loudest if power[loudest] > max(_AUDIBLE, mixed / _CANCELS) else None


def _joined(frames: list[Any]) -> list[Any]:
    """Frames of one kind that follow one another, as one; as they are where PyAV cannot make such a frame."""
    if len(frames) < 2:
        return frames
    first = frames[0]
    try:
        samples = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
        whole = av.AudioFrame.from_ndarray(samples, first.format.name, first.layout.name)
    except ValueError:  # a format without a numpy type, a layout without a name
        return frames
    whole.sample_rate = first.sample_rate
    if first.time_base is not None:  # not of a single channel, see `_one_channel`
        whole.time_base, whole.pts = first.time_base, first.pts
    return [whole]


def _channels(frame: Any) -> NDArray[np.float64]:
    """Samples of a frame, (channels, samples), full scale 1."""
    data: NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, frame.layout.nb_channels).T
    samples = data.astype(np.float64)
    if data.dtype == np.uint8:
        return (samples - 128) / 128
    return samples / np.iinfo(data.dtype).max if data.dtype.kind == "i" else samples


def _one_channel(frame: Any, channel: int) -> Any:
    """A frame of one channel of another."""
    samples = _channels(frame)[channel : channel + 1].astype(np.float32)
    single = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", "mono")
    single.sample_rate = frame.sample_rate
    return single
