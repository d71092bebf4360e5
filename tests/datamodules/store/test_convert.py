"""Stores of raw frames and of spectrograms, and what becomes of one kind of store in another: without the media."""

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torchvision.io import decode_jpeg

from amr.cli.runs.commands import run_prepare
from amr.datamodules import Clips
from amr.datamodules.store.media import Clip, DecodeOptions, decode
from amr.datamodules.store.prepare import prepare, verify
from amr.datamodules.store.raw import is_raw, packed, unpacked
from amr.datamodules.store.report import PrepareReport
from amr.datamodules.store.shards import ClipStore, is_sound, read_rows, shard_files, shard_key
from amr.datamodules.transforms import AudioTransform
from amr.datamodules.transforms.spectrograms import kept_options
from amr.utils.errors import UserError
from tests.datamodules.conftest import write_csv

AUDIO = AudioTransform(0.3, crop="first", kind="log_stft", n_fft=128, hop_length=64, sample_rate=11025)
KINDS = {
    (frames, spectrogram): kept_options(DecodeOptions(fps=10, frames=frames, spectrogram=spectrogram), AUDIO)  # type: ignore[arg-type]
    for frames, spectrogram in itertools.product(("jpeg", "raw"), (False, True))
}
JPEG, RAW, SPECTRAL = KINDS["jpeg", False], KINDS["raw", False], KINDS["jpeg", True]


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.glob("*.arrow"))}


@pytest.fixture(scope="module")
def clips(clip_folder: Path) -> list[Clip]:
    """Ten clips, of which one has no file and one no sound."""
    clips = Clips(clip_folder / "clips.csv").clips[:10]
    clips[3] = Clip("c03", "a", "train", {"audio": Path("gone.mp4"), "video": Path("gone.mp4")})
    clips[5] = Clip("c05", "a", "train", {"video": clips[5].files["video"]}, 0.1, 0.3)
    return clips


@pytest.fixture(scope="module")
def made(
    clips: list[Clip], clip_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, bool], Path]:
    """A store of each kind, of the media."""
    root = tmp_path_factory.mktemp("kinds")
    stores = {kind: root / f"{kind[0]}-{kind[1]}" for kind in KINDS}
    for kind, store in stores.items():
        prepare(clips, store, KINDS[kind], root=clip_folder, workers=0, shard_size=4)
    return stores


@pytest.fixture
def converted(clips: list[Clip], tmp_path: Path) -> Callable[..., PrepareReport]:
    """Converts without the media."""

    def run(origin: Path, store: Path, options: DecodeOptions, **kwargs: Any) -> PrepareReport:
        given = {"root": tmp_path / "nowhere", "workers": 0, "shard_size": 4, "origin": origin, **kwargs}
        return prepare(clips, store, options, **given)

    return run


def test_older_stores_stay_valid() -> None:
    """The keys of shards that were written before there were other kinds of store."""
    clip = Clip("a", "x", "train", {"audio": Path("a.wav"), "video": Path("v/a.mp4")}, 0.5, None)
    assert shard_key([clip], DecodeOptions()).startswith("79f0272b4c35eb9ada7ce4558b0f6ca2")
    other = DecodeOptions(fps=5, crop=(1, 2, 3, 4), damage="skip")
    assert shard_key([clip], other).startswith("027baf7471d85f28892b44ed5708d6f2")
    assert len({shard_key([clip], kind) for kind in KINDS.values()}) == 4
    qualities = [DecodeOptions(frames=f, jpeg_quality=q) for f in ("jpeg", "raw") for q in (90, 95)]
    assert len({shard_key([clip], kind) for kind in qualities}) == 3  # raw frames have no quality


def test_a_raw_store_has_the_pictures_and_a_spectral_one_their_sound(
    clips: list[Clip], clip_folder: Path, made: dict[tuple[str, bool], Path]
) -> None:
    whole = ClipStore(made["raw", True])
    for clip in clips[:3]:
        data, jpegs = whole.get(clip.id), decode(clip, clip_folder, JPEG).frames
        assert jpegs
        assert len(data["video"]) == len(jpegs)
        for frame, jpeg in zip(data["video"], jpegs, strict=True):
            pixels, lossy = unpacked(frame), decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8))
            assert pixels.shape == (32, 48, 3)
            assert (
                np.abs(pixels.astype(int) - torch.as_tensor(lossy).permute(1, 2, 0).numpy()).max() <= 2
            )  # grey, of quality 95
        expected = AUDIO(data["audio"], 16000, train=False).numpy()
        np.testing.assert_array_equal(data["spectrogram"].reshape(expected.shape), expected.astype(np.float16))
    assert "spectrogram" not in whole.get("c05")
    assert whole.get("c03") == {}


def test_reading_a_clip_copies_none_of_it(made: dict[tuple[str, bool], Path]) -> None:
    """Raw frames are large, and a transform sees a few of them, or a part of each."""
    store = ClipStore(made["raw", True])
    store.get("c00")
    before = pa.total_allocated_bytes()
    data = store.get("c01")
    assert sum(frame.size for frame in data["video"]) > 10_000
    assert pa.total_allocated_bytes() == before


@pytest.mark.parametrize("to", list(KINDS))
def test_converting_gives_the_bytes_that_the_media_give(
    converted: Callable[..., PrepareReport], made: dict[tuple[str, bool], Path], tmp_path: Path, to: tuple[str, bool]
) -> None:
    """From each kind to each, but that what was a JPEG file keeps its loss."""
    for origin, store in made.items():
        before = contents(store)
        converted(store, tmp_path / str(origin), KINDS[to])
        assert contents(store) == before
        if origin[0] == "raw" or to[0] == "jpeg":
            assert contents(tmp_path / str(origin)) == contents(made[to])
            continue
        for path in made[origin].glob("*.arrow"):
            rows = zip(read_rows(path), read_rows(tmp_path / str(origin) / path.name), strict=True)
            for (_, old), (_, new) in rows:
                assert (old.problems, old.still, old.notes) == (new.problems, new.still, new.notes)
                for jpeg, frame in zip(old.frames or [], new.frames or [], strict=True):
                    pixels = torch.as_tensor(decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8))).permute(
                        1, 2, 0
                    )
                    np.testing.assert_array_equal(unpacked(frame), pixels.numpy())


def test_converting_resumes_and_the_store_needs_no_media(
    converted: Callable[..., PrepareReport],
    clips: list[Clip],
    made: dict[tuple[str, bool], Path],
    tmp_path: Path,
    capsys: Any,
) -> None:
    """Shards that are smaller than the old store's, one of which a killed run left out."""
    old, new = made["jpeg", False], tmp_path / "new"
    report = converted(old, new, RAW, shard_bytes=20_000)
    assert (report.total, report.decoded) == (10, 10)
    said = re.search(r"new: estimate: about ([\d.]+) MB \(± [\d.]+ MB\) for 10 clips", capsys.readouterr().err)
    assert said
    assert float(said[1]) * 1e6 == pytest.approx(sum(map(len, contents(new).values())), rel=0.5)
    assert len(shard_files(new)) > len(shard_files(old))
    whole = contents(new)
    lost = shard_files(new)[2][2]
    lost.unlink()
    stamps = {path: path.stat().st_mtime_ns for path in new.glob("*.arrow")}
    assert converted(old, new, RAW, shard_bytes=20_000).decoded < 5
    assert contents(new) == whole
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert prepare(clips, new, RAW, root=tmp_path, workers=0, shard_size=4).decoded == 0
    assert verify(clips, new, RAW, shard_size=4) == len(whole)


def test_what_cannot_be_converted_is_refused_and_stays(
    converted: Callable[..., PrepareReport], made: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    old = made["jpeg", False]
    before = contents(old)
    (tmp_path / "link").symlink_to(old)
    for store in (old, tmp_path / "link"):
        with pytest.raises(UserError, match=r"convert=.*: must be another folder than data\.store"):
            converted(old, store, RAW)
    with pytest.raises(UserError, match=r"convert=.*nothing: must be a store that prepare filled; it has no shard"):
        converted(tmp_path / "nothing", tmp_path / "new", RAW)
    wrong = [DecodeOptions(fps=5, frames="raw"), DecodeOptions(fps=10, jpeg_quality=80)]
    for options in wrong:
        with pytest.raises(UserError, match=r"must be a finished store of the same clips .* from clip 'c00' on"):
            converted(old, tmp_path / "new", options)
    part = tmp_path / "part"
    shutil.copytree(old, part)
    (part / "shard-00001.arrow").unlink()
    with pytest.raises(UserError, match=r"must be a finished store .* from clip 'c04' on"):
        converted(part, tmp_path / "new", RAW)
    shutil.copy(old / "shard-00001.arrow", part)
    path = part / "shard-00000.arrow"
    frames = next(read_rows(path))[1].frames
    assert frames
    content = path.read_bytes().replace(frames[0], frames[0][:-9] + bytes([frames[0][-9] ^ 1]) + frames[0][-8:], 1)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00000.arrow: clip 'c00' is damaged; prepare that store again"):
        converted(part, tmp_path / "new", RAW)
    assert contents(old) == before
    assert not contents(tmp_path / "new")


def test_the_command_converts(clip_folder: Path, tmp_path: Path) -> None:
    media = shutil.copytree(clip_folder / "media", tmp_path / "media")
    rows = [{"id": f"c{i}", "label": "a", "split": "all", "file": f"media/c0{i}.mp4"} for i in range(3)]
    listing, new = write_csv(tmp_path / "clips.csv", rows), tmp_path / "new"
    data = ["--data", "amr.datamodules.Clips", "--data.csv", str(listing), "--data.prepare_workers", "0"]
    run_prepare([*data, "--data.store", str(tmp_path / "old")])
    shutil.rmtree(media)
    data += ["--data.store", str(new), "--data.decode.frames", "raw", "--convert", str(tmp_path / "old")]
    run_prepare(data)
    assert [is_sound(path) for path in new.glob("*.arrow")] == [True]
    assert all(is_raw(frame) for _, row in read_rows(new / "shard-00000.arrow") for frame in row.frames or [b""])
    with pytest.raises(UserError, match="--convert: must not be given with --verify"):
        run_prepare([*data, "--verify"])


@pytest.mark.parametrize("file", [b"P6\n2 2\n255\n" + bytes(11), b"P6\n0 2\n255\n", b"P6\n2 2\n", b"P5\n1 1\n255\n0"])
def test_a_damaged_raw_frame_says_so(file: bytes) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(unpacked(packed(pixels)), pixels)
    with pytest.raises(ValueError, match="PPM file"):
        unpacked(file)
