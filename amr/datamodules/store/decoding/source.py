"""One media file, opened without trusting it."""

import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import av

# By FFmpeg's names. None of them opens another file: no playlist (hls, dash, concat), no session (sdp), no pattern of
# file names (image2), no drawing that links to pictures (svg).
# fmt: off
FORMATS = frozenset({
    "3g2", "3gp", "aac", "ac3", "aiff", "amr", "amrnb", "amrwb", "ape", "apng", "asf", "au", "av1", "avi", "bmp_pipe",
    "caf", "dts", "dv", "eac3", "flac", "flv", "gif", "gxf", "h261", "h263", "h264", "hevc", "ivf", "jpeg_pipe",
    "live_flv", "m4a", "m4v", "matroska", "mj2", "mjpeg", "mov", "mp3", "mp4", "mpc", "mpc8", "mpeg", "mpegts",
    "mpegvideo", "mxf", "nsv", "nut", "obu", "ogg", "pbm_pipe", "pgm_pipe", "png_pipe", "ppm_pipe", "rm", "swf",
    "tak", "tiff_pipe", "tta", "vc1", "vc1test", "voc", "w64", "wav", "webm", "webp_pipe", "wtv", "wv",
    "yuv4mpegpipe",
})
# fmt: on
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(sorted(FORMATS)),
    "max_pixels": str(2**26),  # of a frame: a damaged header may ask for gigabytes
}
_SEEKABLE = {"mov", "matroska"}  # whose seeks lead to packets with exact times
_NO_LENGTH = 0x7FFF0000  # bytes; what writes to a pipe puts this or more into a header
_PARTS = 100_000  # of a file that are looked at for its length
_READ_ERRORS = 16  # after which a file is given up


class ProblemError(Exception):
    """A modality of a clip cannot be used; the message says why."""


class Source:
    """A media file, at its beginning.

    Args:
        path: The file.

    Attributes:
        audio: Its default sound; None: it has none.
        video: Its default picture, never a cover; None: it has none.
        photo: Whether it is one picture, in a format of its own.
        start: Time that the file's clock shows at its beginning, s; None: the first packet's.
        declared: Seconds that the file says it has; None: it does not say. Nothing follows from it alone.
        cut: Whether bytes that the file says it has are missing, or reading it failed.

    Raises:
        ProblemError: There is no such file, or it is of no kind that is read.
        av.FFmpegError: It is damaged.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ProblemError("file missing")
        size = path.stat().st_size
        if size == 0:
            raise ProblemError("zero bytes")
        self.path = path
        self._open()
        self.start = None if self._container.start_time is None else self._container.start_time / av.time_base
        declared = self._container.duration
        self.declared = None if declared is None else declared / av.time_base
        with path.open("rb") as file:
            self.cut, longer = _missing_bytes(file, size)
        if self.declared is not None:
            self.declared *= longer

    def _open(self) -> None:
        self._file = _Bytes(self.path)
        try:
            self._container: Any = av.open(self._file, options=_OPTIONS, metadata_errors="replace")
        except av.error.ArgumentError:
            self._file.close()
            raise ProblemError("kind of file not read: no container of sound or pictures on the list") from None
        except BaseException:
            self._file.close()
            raise
        self.formats = frozenset(self._container.format.name.split(","))
        self.photo = self._container.format.name.endswith("_pipe")
        self.audio = _default(self._container.streams.audio)
        self.video = _default(self._container.streams.video)
        for stream in (self.audio, self.video):
            if stream is not None:
                stream.codec_context.thread_count = 1  # the clips are decoded in parallel, not the frames

    def stream(self, kind: str) -> Any:
        """The default stream of a kind.

        Raises:
            ProblemError: There is none, or FFmpeg has no decoder for it.
        """
        stream = self.audio if kind == "audio" else self.video
        if stream is None:
            unknown = any(s.codec_context is None for s in getattr(self._container.streams, kind))
            raise ProblemError(f"no {kind} decoder" if unknown else f"no {kind} stream")
        return stream

    def packets(self, *kinds: str) -> Iterator[Any]:
        """The packets of sound and picture, or of one of them, from where the file is; errors do not end it."""
        chosen = {"audio": self.audio, "video": self.video}
        streams = [chosen[kind] for kind in kinds or chosen if chosen[kind] is not None]
        for _ in range(_READ_ERRORS):
            try:
                for packet in self._container.demux(streams):
                    if packet.size or packet.pts is not None:  # not the empty ones at the end
                        yield packet
                return
            except av.FFmpegError:
                self.cut = True

    def rewind(self) -> None:
        """Back to the first packet, with fresh decoders."""
        self.close()
        self._open()

    def again(self, seconds: float, begin: Any = None) -> None:
        """Back to where reading began: the beginning, or what a seek to `seconds` leads to.

        Args:
            seconds: 0: the beginning.
            begin: Decoding time of the first picture, in the stream's units. mp4 and its kin have an index that leads
                there, which saves opening the file again; the caller checks what comes first.
        """
        if not seconds and begin is not None and "mov" in self.formats:
            try:
                self._container.seek(begin, stream=self.video)
                return
            except av.FFmpegError:
                pass
        self.rewind()
        if seconds:
            self.seek(seconds)

    def seek(self, seconds: float) -> bool:
        """Go to a picture, or sound, from which a time can be decoded.

        Returns:
            Whether that was done; otherwise the file is at its beginning.
        """
        stream = self.video or self.audio
        if not self.formats & _SEEKABLE or stream is None:
            return False
        try:
            self._container.seek(math.floor((seconds + (self.start or 0.0)) / stream.time_base), stream=stream)
        except av.FFmpegError:
            self.rewind()
            return False
        return True

    def close(self) -> None:
        """Close the file."""
        self._container.close()
        self._file.close()


class _Bytes:
    """A file that FFmpeg reads through Python: it never sees the name, in which it would look for patterns."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        suffix = path.suffix.lower()
        self.name = f"media{suffix}" if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else "media"
        self.read, self.seek, self.tell, self.close = (
            self._file.read,
            self._file.seek,
            self._file.tell,
            self._file.close,
        )


def _default(streams: Any) -> Any:
    """The stream that a player plays: the default one, and of several the one with most channels or pixels."""
    no_film = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    for_some = av.stream.Disposition.hearing_impaired | av.stream.Disposition.visual_impaired

    def rank(stream: Any) -> tuple[bool, bool, int, int]:
        context = stream.codec_context
        size = context.layout.nb_channels if stream.type == "audio" else context.width * context.height
        marked = av.stream.Disposition.default in stream.disposition
        return marked, not stream.disposition & for_some, size, -stream.index

    streams = [s for s in streams if s.codec_context is not None and not s.disposition & no_film]
    return max(streams, key=rank, default=None)


def _missing_bytes(file: IO[bytes], size: int) -> tuple[bool, float]:
    """Whether a file is shorter than its own structure says; and how many times longer it should be.

    The second is 1 except for WAV and AVI, where FFmpeg takes the remaining part of a cut file for the whole.
    """
    head = file.read(64)
    if head[:4] == b"RIFF":
        declared = _wav(file, size) if head[8:12] == b"WAVE" else int.from_bytes(head[4:8], "little") + 8
        cut = size < declared < _NO_LENGTH
        return cut, declared / size if cut else 1.0
    cut = False
    if head[:4] == b"FORM":
        cut = size < int.from_bytes(head[4:8], "big") + 8 < _NO_LENGTH
    elif head[:4] == b"\x1a\x45\xdf\xa3":
        cut = _matroska(file, size)
    elif head[:3] == b"FLV":
        cut = _flv(file, size)
    elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        cut = _boxes(file, size)
    return cut, 1.0


def _wav(file: IO[bytes], size: int) -> int:
    """Where the samples should end. The length of the data counts, not that of the file, which writers get wrong."""
    at = 12
    for _ in range(_PARTS):
        if at + 8 > size:
            break
        file.seek(at)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"data":
            return int(at + 8 + length)
        at += 8 + length + length % 2
    return 0


def _boxes(file: IO[bytes], size: int) -> bool:
    """Whether the last box of an mp4 file ends after the file."""
    at = 0
    for _ in range(_PARTS):
        if at + 8 > size:
            break
        file.seek(at)
        length, _, long = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        length = long if length == 1 else length
        if length == 0:  # to the end
            return False
        if length < 8:
            return False
        at += length
    return at > size


def _matroska(file: IO[bytes], size: int) -> bool:
    """Whether the segment, or one of its clusters where it has no length, ends after the file."""

    def element(at: int) -> tuple[int, int | None]:
        """Where the content of the element at a place begins and ends; None: it has no length."""
        file.seek(at)
        head = file.read(16).ljust(16, b"\0")
        width = 9 - head[0].bit_length() if head[0] else 16
        if width > 4 or not head[width]:
            return at, at
        span = 9 - head[width].bit_length()
        length = int.from_bytes(head[width : width + span], "big") & ((1 << 7 * span) - 1)
        begin = at + width + span
        return begin, None if length == (1 << 7 * span) - 1 else begin + length

    _, at = element(0)
    if at is None or at >= size:
        return False
    begin, end = element(at)
    if end is not None:
        return end > size
    at = begin
    for _ in range(_PARTS):
        if at >= size:
            break
        begin, end = element(at)
        if end is None or end <= at:
            return False
        at = end
    return at > size


def _flv(file: IO[bytes], size: int) -> bool:
    """Whether the last tag is not followed by its own length."""
    file.seek(max(size - 4, 0))
    at = size - 4 - int.from_bytes(file.read(4), "big")
    if at < 9:
        return True
    file.seek(at)
    tag = file.read(4)
    return tag[0] & 0x1F not in (8, 9, 18) or int.from_bytes(tag[1:4], "big") + 11 != size - 4 - at
