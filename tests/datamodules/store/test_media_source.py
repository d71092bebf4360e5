"""Which files are read at all, and which of their streams."""

from pathlib import Path

import av
import numpy as np
import pytest

from amr.datamodules.store.decoding.source import FORMATS, Source
from amr.datamodules.store.media import MODALITIES, Clip, Decoded, DecodeOptions, decode
from tests.datamodules.store import timed
from tests.datamodules.store.timed import sound, sound_lag, write


def read(path: Path) -> Decoded:
    return decode(Clip("x", "a", "train", dict.fromkeys(MODALITIES, Path(path.name))), path.parent, DecodeOptions())


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Media outside the clips' root."""
    folder = tmp_path_factory.mktemp("private")
    write(folder / "1.mp4", 1.0)
    write(folder / "secret.wav", 1.0)
    return write(folder / "secret.ts", 1.0)


def test_a_file_that_names_other_files_is_not_read(secret: Path, tmp_path: Path) -> None:
    folder = secret.parent
    lists = {
        "clip.m3u8": f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:3\n#EXTINF:3.0,\n{secret}\n#EXT-X-ENDLIST\n",
        "clip.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3.0,\n{secret}\n#EXT-X-ENDLIST\n",
        "clip.ffconcat": f"ffconcat version 1.0\nfile '{folder}/1.mp4'\n",
        "clip.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        "clip.mpd": (
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>'
            f'<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{folder}/1.mp4'
            "</BaseURL></Representation></AdaptationSet></Period></MPD>"
        ),
        "clip.svg": f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="{secret}"/></svg>',
        "clip.txt": f"{secret}\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        decoded = read(tmp_path / name)
        assert set(decoded.problems) == set(MODALITIES), name
        assert all(r.startswith(("kind of file not read", "decode error")) for r in decoded.problems.values())
    assert read(tmp_path / "clip.m3u8").problems["audio"].startswith("kind of file not read: ")


def test_a_name_is_no_pattern(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("frame%03d.png", "frame001.png", "*.png"):
        Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / name, format="png")
        clip = Clip("x", "a", "train", {"video": Path(name)})
        assert len(decode(clip, tmp_path, DecodeOptions()).frames or []) == 1


def test_no_format_that_opens_other_files_is_listed() -> None:
    assert not FORMATS & {"hls", "dash", "concat", "image2", "sdp", "rtsp", "rtp", "svg_pipe", "lavfi", "imf", "vobsub"}
    assert {n for names in map(str, av.formats_available) for n in names.split(",")} >= FORMATS - {"mpc", "mpc8"}


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_default_track_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w", format={"mkv": "matroska"}.get(suffix, suffix)) as file:
        silent, heard = (timed._audio(file, "aac", 1) for _ in range(2))
        silent.disposition, heard.disposition = av.stream.Disposition(0), av.stream.Disposition.default
        file.start_encoding()
        packets = timed._sounds(silent, 0 * np.atleast_2d(sound(2.0))) + timed._sounds(heard, np.atleast_2d(sound(2.0)))
        for _, _, packet in sorted(packets, key=lambda item: item[0]):
            file.mux(packet)
    wave = read(path).waveform
    assert wave is not None
    assert sound_lag(wave)[1] > 0.95


def test_a_cover_is_no_film(tmp_path: Path) -> None:
    from PIL import Image

    cover = tmp_path / "cover.jpg"
    Image.new("RGB", (32, 32), (0, 90, 0)).save(cover)
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as file, av.open(str(cover)) as picture:
        audio = timed._audio(file, "aac", 1)
        video = file.add_stream_from_template(picture.streams.video[0])
        video.disposition = av.stream.Disposition.attached_pic
        file.start_encoding()
        for packet in picture.demux():
            if packet.size:
                packet.stream = video
                file.mux(packet)
        for _, _, packet in timed._sounds(audio, np.atleast_2d(sound(2.0))):
            file.mux(packet)
    decoded = read(path)
    assert decoded.problems == {"video": "no video stream"}
    assert decoded.waveform is not None


def test_a_file_is_closed(tmp_path: Path) -> None:
    source = Source(write(tmp_path / "a.wav", 1.0))
    source.rewind()
    source.close()
    assert source._file.read.__self__.closed  # type: ignore[attr-defined]
