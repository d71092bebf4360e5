"""Shards: sized by bytes, whole or not there, and damaged ones named instead of read."""

import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from amr.datamodules import Clips
from amr.datamodules.store import prepare as prepare_module
from amr.datamodules.store.media import Clip, Decoded, DecodeOptions
from amr.datamodules.store.prepare import prepare, verify
from amr.datamodules.store.report import PrepareReport
from amr.datamodules.store.shards import ClipStore, is_sound, read_problems, read_rows, shard_files, write_shard
from amr.utils.errors import UserError

OPTIONS = DecodeOptions()
SHARD_BYTES = 30_000


def clips(count: int) -> list[Clip]:
    return [Clip(f"c{i:02d}", "a", "train", {"audio": Path("a.wav"), "video": Path("a.wav")}) for i in range(count)]


def made(clip: Clip, *_: Any) -> Decoded:
    """A clip whose size depends on its id: some 1 to 20 kB; the fifth has no sound."""
    rng = np.random.default_rng(zlib.crc32(clip.id.encode()))
    frames = [rng.bytes(1000) for _ in range(int(rng.integers(1, 15)))]
    if clip.id == "c04":
        return Decoded(None, frames, {"audio": "silent"})
    return Decoded(rng.integers(-99, 99, 2000, dtype=np.int16), frames, still=clip.id == "c07")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Takes the decoder's place; the ids that it is given."""
    ids: list[str] = []

    def decode(clip: Clip, *_: object) -> Decoded:
        ids.append(clip.id)
        return made(clip)

    monkeypatch.setattr(prepare_module, "decode", decode)
    return ids


def fill(store: Path, count: int = 20, **kwargs: Any) -> PrepareReport:
    options = {"root": store, "workers": 0, "shard_size": 16, "shard_bytes": SHARD_BYTES, **kwargs}
    return prepare(clips(count), store, OPTIONS, **options)


def check(store: Path, count: int = 20) -> None:
    """Everything is there, once, as it was decoded."""
    opened = ClipStore(store)
    assert len(opened) == count
    for clip in clips(count):
        expected, data = made(clip), opened.get(clip.id)
        assert ("audio" in data) == (expected.waveform is not None)
        if expected.waveform is not None:
            np.testing.assert_array_equal(data["audio"], expected.waveform)
        assert [bytes(frame) for frame in data["video"]] == expected.frames
    assert opened.problems == {"c04": {"audio": "silent"}, "c07": {"video": "still frames"}}
    assert verify(clips(count), store, OPTIONS, shard_size=16) == len(shard_files(store))


def stamps(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in store.glob("*.arrow")}


def test_shards_are_sized_by_bytes(tmp_path: Path, decoded: list[str]) -> None:
    fill(tmp_path)
    files = [path for group, _, path in shard_files(tmp_path) if group == 0]
    assert len(files) > 4
    sizes = [path.stat().st_size for path in files]
    assert all(SHARD_BYTES <= size < SHARD_BYTES + 25_000 for size in sizes[:-1])
    check(tmp_path)
    before = stamps(tmp_path)
    assert fill(tmp_path, shard_bytes=10**6).decoded == 0  # the size makes nothing stale
    assert stamps(tmp_path) == before
    assert len(decoded) == 20


def test_a_killed_group_continues_after_its_last_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def dies(clip: Clip, *_: Any) -> Decoded:
        seen.append(clip.id)
        if clip.id == "c10" and seen.count("c10") == 1:
            raise KeyboardInterrupt
        return made(clip)

    monkeypatch.setattr(prepare_module, "decode", dies)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))
    last = max(id for _, _, path in shard_files(tmp_path) for id in read_problems(path))
    kept, before = stamps(tmp_path), len(seen)
    assert "c04" < last < "c10"
    report = fill(tmp_path)
    assert seen[before] == f"c{int(last[1:]) + 1:02d}"
    assert report.decoded == len(seen) - before == 20 - int(last[1:]) - 1
    assert {name: stamps(tmp_path)[name] for name in kept} == kept
    check(tmp_path)


def test_only_a_lost_shards_clips_are_decoded_again(tmp_path: Path, decoded: list[str]) -> None:
    fill(tmp_path)
    _, _, path = shard_files(tmp_path)[2]
    lost = list(read_problems(path))
    path.unlink()
    with pytest.raises(UserError, match="does not follow|not in the store|1 shard "):
        verify(clips(20), tmp_path, OPTIONS, shard_size=16)
    decoded.clear()
    assert fill(tmp_path, shard_bytes=4000).decoded == len(lost)
    assert decoded == lost
    check(tmp_path)
    damaged = path.read_bytes()[:200]
    path.unlink()  # it is mapped
    path.write_bytes(damaged)
    decoded.clear()
    fill(tmp_path)
    assert decoded[0] == lost[0]
    check(tmp_path)


@pytest.mark.usefixtures("decoded")
def test_other_options_or_clips_leave_no_old_shard(tmp_path: Path) -> None:
    fill(tmp_path)
    first = [path for group, _, path in shard_files(tmp_path) if group == 0]
    fill(tmp_path, 18, shard_bytes=10**6)  # the first group has the same clips
    assert [path for _, _, path in shard_files(tmp_path)] == [*first, tmp_path / "shard-00001.arrow"]
    check(tmp_path, 18)
    prepare(clips(20), tmp_path, DecodeOptions(fps=3.0), root=tmp_path, workers=0, shard_size=16)
    assert [path.name for _, _, path in shard_files(tmp_path)] == ["shard-00000.arrow", "shard-00001.arrow"]


def test_files_that_come_renew_their_shard_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(clip: Clip, root: Path, _: DecodeOptions) -> Decoded:
        if clip.id == "c05" and not (root / "a.wav").is_file():
            return Decoded(problems=dict.fromkeys(("audio", "video"), "file missing"))
        return made(clip)

    monkeypatch.setattr(prepare_module, "decode", decode)
    fill(tmp_path)
    before = stamps(tmp_path)
    assert fill(tmp_path, recheck=True).decoded == 0
    (tmp_path / "a.wav").write_bytes(b"sound")
    assert fill(tmp_path, recheck=True).decoded > 0
    assert len([name for name, stamp in stamps(tmp_path).items() if stamp != before[name]]) == 1
    check(tmp_path)


def test_groups_are_in_order_beyond_a_hundred_thousand(tmp_path: Path) -> None:
    for name in ("shard-100000.arrow", "shard-99999.arrow", "shard-99999-012.arrow", "shard-x.arrow"):
        (tmp_path / name).touch()
    names = [path.name for _, _, path in shard_files(tmp_path)]
    assert names == ["shard-99999.arrow", "shard-99999-012.arrow", "shard-100000.arrow"]


def test_a_row_is_written_before_the_next_is_drawn(tmp_path: Path) -> None:
    held: list[int] = []
    events: list[str] = []

    def rows() -> Iterator[tuple[str, Decoded]]:
        for clip in clips(5):
            held.append(len(events))
            yield clip.id, made(clip)

    write_shard(tmp_path / "shard-00000.arrow", "key", rows(), None, events.append)
    assert held == [0, 1, 2, 3, 4]
    assert is_sound(tmp_path / "shard-00000.arrow")


# ------------------------------------------------------------- other stores


@pytest.mark.usefixtures("decoded")
def test_another_data_sets_store_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    fill(store)
    before = {path.name: path.read_bytes() for path in store.glob("shard-*")}
    other = [Clip(f"x{clip.id}", "a", "train", clip.files) for clip in clips(3)]
    with pytest.raises(UserError, match=r"store: holds other clips, such as 'c00', and none .*Name another") as error:
        prepare(other, store, OPTIONS, root=tmp_path, workers=0)
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in store.glob("shard-*")} == before
    prepare([*other, clips(1)[0]], store, OPTIONS, root=tmp_path, workers=0)  # a listing that has grown is not refused
    assert len(ClipStore(store)) == 4


@pytest.mark.usefixtures("decoded")
def test_an_old_store_is_known_by_its_clips(tmp_path: Path) -> None:
    """The format before had one batch a shard, and no column `crc`."""
    fields = [("id", pa.string()), ("waveform", pa.large_binary()), ("problem", pa.string())]
    schema = pa.schema(fields).with_metadata({"key": "k", "sha256": "0" * 64})
    path = tmp_path / "shard-00000.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch([["c00", "c01"], [b"", b""], [None, None]], schema))
    with pytest.raises(UserError, match="unreadable shard .*delete it and run prepare again"):
        ClipStore(tmp_path)
    other = [Clip("x", "a", "train", clips(1)[0].files)]
    with pytest.raises(UserError, match="holds other clips, such as 'c00'"):
        prepare(other, tmp_path, OPTIONS, root=tmp_path, workers=0)
    fill(tmp_path)
    check(tmp_path)


@pytest.mark.usefixtures("decoded")
def test_links_in_a_store_lead_nowhere(tmp_path: Path) -> None:
    other, store = tmp_path / "other", tmp_path / "store"
    fill(other)
    before = {path: path.read_bytes() for path in other.iterdir() if path.is_file()}
    store.mkdir()
    for path in other.glob("shard-*"):
        (store / path.name).symlink_to(path)
    for name in ("shard-00000.journal", "report.csv", "report.html"):
        (store / name).symlink_to(other / "report.csv")
    prepare(clips(20), store, DecodeOptions(fps=3.0), root=tmp_path, workers=0)
    assert {path: path.read_bytes() for path in before} == before
    (store / ".lock").unlink()
    (store / ".lock").symlink_to(other / "report.csv")
    with pytest.raises(UserError, match=r"\.lock is a link"):
        prepare(clips(19), store, OPTIONS, root=tmp_path, workers=0)
    assert {path: path.read_bytes() for path in before} == before


# ------------------------------------------------------------------- damage


@pytest.mark.usefixtures("decoded")
def test_verify_names_the_clip(tmp_path: Path) -> None:
    fill(tmp_path)
    path = shard_files(tmp_path)[1][2]
    id, row = list(read_rows(path))[-1]
    content = bytearray(path.read_bytes())
    assert row.frames
    content[content.index(row.frames[0]) + 500] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"1 shard \({path.name}\) changed since written at clip {id} \("):
        verify(clips(20), tmp_path, OPTIONS, shard_size=16)


def test_a_damaged_offset_names_its_clip(tmp_path: Path) -> None:
    """Read without a check, it ends the process by a signal."""
    path = tmp_path / "shard-00000.arrow"
    write_shard(path, "key", [(clip.id, made(clip)) for clip in clips(3)])
    content = bytearray(path.read_bytes())
    frames = made(clips(3)[1]).frames
    assert frames
    offsets = np.cumsum([0, *map(len, frames)]).astype("<i8").tobytes()
    place = content.index(offsets, content.index(b"c01"))
    content[place + 8 : place + 16] = (2**40).to_bytes(8, "little")
    path.write_bytes(content)
    store = ClipStore(tmp_path)
    store.get("c00")
    with pytest.raises(UserError, match=re.escape(f"{path}: clip 'c01' is damaged (") + ".*run prepare --verify"):
        store.get("c01")


FUZZ = """
import random, sys
from pathlib import Path
from amr.datamodules.store.shards import ClipStore, damaged_clips, is_sound
from amr.datamodules.store.shards import read_head, read_ids, read_problems, read_rows
from amr.utils.errors import UserError
path, chance = Path(sys.argv[1]) / "shard-00000.arrow", random.Random(0)
whole, readable = path.read_bytes(), 0
for number in range(400):
    content = bytearray(whole)
    kind = number % 4
    if kind == 0:
        for _ in range(chance.randint(1, 8)):
            content[chance.randrange(len(content))] = chance.randrange(256)
    elif kind == 1:  # a number of the metadata or an offset
        place = chance.randrange(len(content) // 8) * 8
        content[place : place + 8] = chance.choice([0, 1, 2**31 - 1, 2**40, 2**63 - 1, 2**64 - 1]).to_bytes(8, "little")
    elif kind == 2:
        del content[chance.randrange(len(content)) : chance.randrange(len(content))]
    else:  # the footer
        content[-chance.randint(1, 1500)] ^= 1 << chance.randrange(8)
    path.unlink()  # mapped: not changed in place
    path.write_bytes(content)
    print(number, flush=True)
    sound = is_sound(path)
    assert sound == (content == whole), number
    read_head(path), read_ids(path), damaged_clips(path)
    for read in (lambda: read_problems(path), lambda: [str(row) for row in read_rows(path)]):
        try:
            read()
        except UserError as error:
            assert "\\n" not in str(error)
    try:
        store = ClipStore(path.parent)
    except UserError as error:
        assert "\\n" not in str(error)
        continue
    for id in ("c00", "c01", "c02"):
        try:
            if id in store:
                sum(map(sum, map(bytes, store.get(id).get("video", []))))
                readable += 1
        except UserError as error:
            assert "is damaged" in str(error) and "\\n" not in str(error)
assert 200 < readable < 1200, readable
"""


def test_mutated_shards_end_in_one_line(tmp_path: Path) -> None:
    """400 of them: no traceback, no signal, no hang, and none that is taken for sound."""
    write_shard(tmp_path / "shard-00000.arrow", "key", [(clip.id, made(clip)) for clip in clips(3)])
    command = [sys.executable, "-c", FUZZ, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"at {done.stdout.split()[-1:]}: {done.stderr[-2000:]}"


def test_options_of_one_meaning_are_one_store(clip_folder: Path, tmp_path: Path) -> None:
    """5 in Python, 5.0 in YAML; a tuple and a list."""
    options = [DecodeOptions(fps=5, crop=(0, 0, 16, 16)), DecodeOptions(fps=5.0, crop=[0, 0, 16, 16])]  # type: ignore[arg-type]
    modules = [Clips(clip_folder / "clips.csv", decode=decode) for decode in options]
    assert modules[0].store == modules[1].store
    some = modules[0].clips[:2]
    assert [prepare(some, tmp_path, o, root=clip_folder, workers=0).decoded for o in options] == [2, 0]
