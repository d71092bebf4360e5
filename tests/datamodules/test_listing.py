"""Listings as people write them: spaces, links, odd names; and data sets that are not where they were looked for."""

import os
import random
from pathlib import Path

import pytest

from amr.cli import main
from amr.datamodules import ClipDataModule, Clips, CremaD, VGGSound
from amr.datamodules.store.media import DecodeOptions
from amr.utils.errors import UserError
from tests.datamodules.conftest import write_clip
from tests.spoil import hammer

HEADER = "id,label,split,file\n"


def listed(folder: Path, text: str, name: str = "clips.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    "text",
    [
        "id,label,split,file\n1,dog,train,a.mp4\n2,dog ,train,b.mp4\n3,cat,train,b.mp4\n",
        "id,label,split,file\n1,dog,train,a.mp4 \n2,dog,train, b.mp4\n 3 ,\tcat,train\xa0,b.mp4\n",
        'id, label, split, file\n1, "dog", train, a.mp4\n2, dog, train, b.mp4\n3, cat, train, b.mp4\n\n , , , \n',
    ],
)
def test_spaces_around_cells_do_not_count(tmp_path: Path, text: str) -> None:
    module = Clips(listed(tmp_path, text))
    assert module.labels == ["cat", "dog"]
    assert [clip.id for clip in module.clips] == ["1", "2", "3"]
    assert {clip.label for clip in module.clips[:2]} == {"dog"}
    assert [clip.files["video"] for clip in module.clips] == [Path("a.mp4"), Path("b.mp4"), Path("b.mp4")]
    assert {clip.split for clip in module.clips} == {"train"}


@pytest.mark.parametrize("other", ["do\u200bg", "dog\ufeff", "d\u043eg\u0301 ", "two  words"])
def test_labels_that_look_alike_are_refused(tmp_path: Path, other: str) -> None:
    label = {"d\u043eg\u0301 ": "d\u043e\u01f5", "two  words": "two words"}.get(other, "dog")
    with pytest.raises(UserError, match="look alike; write one label one way") as error:
        Clips(listed(tmp_path, f"{HEADER}1,{label},train,a.mp4\n2,{other},train,b.mp4\n"))
    assert str(error.value).isascii()


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("1,x,train,d\0/a.mp4", r"line 2: 'd\\x00/a.mp4' has a control character"),
        ("1,x\0,train,a.mp4", "line 2: .* has a control character"),
        ('"1\n2",x,train,a.mp4', "line 3: .* has a control character"),
        ("1,\x1b[31mred,train,a.mp4", "line 2: .* has a control character"),
        (f"1,x,train,{'a' * 140_000}", "line 2: not a CSV in UTF-8 .field larger than field limit"),
    ],
)
def test_odd_cells_are_named(tmp_path: Path, cells: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Clips(listed(tmp_path, f"{HEADER}{cells}\nb,y,val,b.mp4\n"))
    assert str(error.value).isprintable()


def test_names_that_no_disk_has_are_missing_files(tmp_path: Path) -> None:
    names = ["a" * 3000, "loop", "/".join("b" * 1500), "file.txt/c.mp4"]
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file.txt").touch()
    rows = "".join(f"{i},x,train,{name}\n" for i, name in enumerate(names))
    module = Clips(listed(tmp_path, HEADER + rows), store=tmp_path / "store", prepare_workers=0)
    assert module.prepare().empty == 4


def test_a_column_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are two columns 'file'"):
        Clips(listed(tmp_path, "id,label,split,file,file \n1,a,train,a.mp4,b.mp4\n"))


def test_vggsounds_list_has_bounded_numbers(tmp_path: Path) -> None:
    text = f"abc,{'9' * 5000},dog,train\n"
    with pytest.raises(UserError, match="are not a video id"):
        VGGSound(tmp_path, csv=listed(tmp_path, text))


ROWS = [f"{i},{'ab'[i % 2]},{('train', 'val', 'test')[i % 3]},m/c{i}.mp4,0,{i + 1}" for i in range(6)]
TEXTS = {
    "clips": "id,label,split,file,start,end\n" + "\n".join(ROWS) + "\n",
    "vggsound": "".join(f"-a_{i},{i * 10},bird chirping,{('train', 'test')[i % 2]}\n" for i in range(6)),
    "train": "".join(f"{1001 + i}_DFA_ANG_XX,ANG\n" for i in range(6)),
}
ODD = (
    *["\x00", "\n", "\r", '"', ",", "\ufeff", "\u2028", "..", "/", "1e999", "nan", "-1", "\\", "id"],
    "9" * 400,
    "a" * 300,
)


def mutated(text: str, chance: random.Random) -> bytes:
    data = bytearray(text.encode())
    for _ in range(chance.randint(1, 2)):
        place = chance.randrange(len(data))
        match chance.randrange(4):
            case 0:
                data[place] = chance.randrange(256)
            case 1:
                del data[place : place + chance.randint(1, 20)]
            case 2:
                data[place:place] = chance.choice(ODD).encode()
            case _:
                data[place:place] = data[place // 2 : place]
    return bytes(data)


@pytest.mark.parametrize("kind", TEXTS)
def test_mutated_listings_end_in_one_line(kind: str, tmp_path: Path) -> None:
    """100 of each kind: no traceback, no hang."""
    (tmp_path / "AudioWAV").mkdir()
    listed(tmp_path, "1009_DFA_ANG_XX,ANG\n", "test.csv")
    path = tmp_path / f"{kind}.csv"

    def spoil(chance: random.Random) -> str:
        path.write_bytes(mutated(TEXTS[kind], chance))
        return ""

    def read() -> None:
        module: ClipDataModule
        match kind:
            case "clips":
                module = Clips(path, labels=None)
            case "vggsound":
                module = VGGSound(tmp_path, csv=path)
            case _:
                module = CremaD(tmp_path, split="ogm", ogm_split=tmp_path)
        assert all(clip.id and clip.label in module.labels for clip in module.clips)
        files = [file for clip in module.clips for file in clip.files.values()]
        assert not any(file.is_absolute() or ".." in file.parts for file in files)

    assert 5 < hammer(100, spoil, read) < 100


# -------------------------------------------------------------------- links


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A root whose folder `clips` is a link to another disk, with a listing."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").mkdir()
    write_clip(tmp_path / "disk/a.mp4")
    (tmp_path / "root/clips").symlink_to(tmp_path / "disk")
    return listed(tmp_path / "root", f"{HEADER}1,x,train,clips/a.mp4\n")


def test_the_owners_links_are_followed(linked: Path, tmp_path: Path) -> None:
    for follow in (None, True):
        module = Clips(linked, store=tmp_path / "store", prepare_workers=0, follow_links=follow)
        assert module.prepare().ok == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser gives files to others")
def test_links_of_others_are_followed_if_asked(
    linked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chown(linked.parent / "clips", 12345, 12345, follow_symlinks=False)
    arguments = ["prepare", "--data", "amr.datamodules.Clips", "--data.csv", str(linked), "--data.prepare_workers", "0"]
    arguments += ["--data.store", str(tmp_path / "store")]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"clips is a link to {tmp_path / 'disk'}, which the folder's owner did not make; data.follow_links" in said
    assert main([*arguments, "--data.follow_links", "true"]) == 0


def test_links_within_the_root_are_always_followed(tmp_path: Path) -> None:
    write_clip(tmp_path / "real/a.mp4")
    (tmp_path / "clips").symlink_to("real")
    module = Clips(listed(tmp_path, f"{HEADER}1,x,train,clips/a.mp4\n"), follow_links=False)
    assert module.clips[0].files["audio"] == Path("clips/a.mp4")


# ------------------------------------------------------------------ Git LFS


def pointer(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 72862\n")


def crema_d(root: Path) -> list[str]:
    """Pointers in the place of clips of six actors; their names."""
    names = [f"{actor}_DFA_{label}_XX" for actor in range(1001, 1007) for label in ("ANG", "SAD")]
    for name in names:
        pointer(root / f"AudioWAV/{name}.wav")
        pointer(root / f"VideoFlash/{name}.flv")
    return names


def test_git_lfs_pointers_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "crema"
    names = crema_d(root)
    store = tmp_path / "store"
    arguments = ["prepare", "--data", "amr.datamodules.CremaD", "--data.root", str(root), "--data.store", str(store)]
    for _ in range(2):  # a finished store does not end well either
        assert main([*arguments, "--data.prepare_workers", "0"]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert "audio a Git LFS pointer, not the file: 12" in last
        assert "run git lfs pull there, then prepare again" in last
    lines = (store / "report.csv").read_text().splitlines()
    assert lines[1] == f'{names[0]},audio,"a Git LFS pointer, not the file: git lfs pull fetches it"'
    for name in names:  # git lfs pull
        (root / f"AudioWAV/{name}.wav").unlink()
        (root / f"VideoFlash/{name}.flv").unlink()
        write_clip(root / f"VideoFlash/{name}.flv.mp4", seconds=0.4).rename(root / f"VideoFlash/{name}.flv")
        write_clip(root / f"AudioWAV/{name}.wav.mp4", seconds=0.4, video=False).rename(root / f"AudioWAV/{name}.wav")
    assert CremaD(root, store=store, prepare_workers=0).prepare().ok == 12


def test_some_git_lfs_pointers_stop_nothing(tmp_path: Path) -> None:
    pointer(tmp_path / "a.mp4")
    write_clip(tmp_path / "b.mp4")
    path = listed(tmp_path, f"{HEADER}1,x,train,a.mp4\n2,x,train,b.mp4\n")
    report = Clips(path, store=tmp_path / "store", prepare_workers=0).prepare()
    assert (report.ok, report.empty) == (1, 1)
    assert report.reasons == {(m, "a Git LFS pointer, not the file"): 1 for m in ("audio", "video")}


# ---------------------------------------------------------------- CREMA-D's copies


@pytest.mark.parametrize(("sound", "picture"), [(".WAV", ".FLV"), (".wav", ".mp4"), (".mp3", ".MP4")])
def test_copies_of_crema_d_in_other_formats(tmp_path: Path, sound: str, picture: str) -> None:
    names = crema_d(tmp_path)
    for name in names:
        (tmp_path / f"AudioWAV/{name}.wav").rename(tmp_path / f"AudioWAV/{name}{sound}")
        (tmp_path / f"VideoFlash/{name}.flv").rename(tmp_path / f"VideoFlash/{name}{picture}")
    module = CremaD(tmp_path)
    assert [clip.id for clip in module.clips] == names
    assert module.clips[0].files == {
        "audio": Path(f"AudioWAV/{names[0]}{sound}"),
        "video": Path(f"VideoFlash/{names[0]}{picture}"),
    }


def test_the_published_format_is_preferred(tmp_path: Path) -> None:
    names = crema_d(tmp_path)
    (tmp_path / f"VideoFlash/{names[0]}.avi").touch()
    (tmp_path / f"VideoFlash/{names[0]}.mp4").touch()
    (tmp_path / f"AudioWAV/{names[0]}.mp3").touch()
    published = {"audio": Path(f"AudioWAV/{names[0]}.wav"), "video": Path(f"VideoFlash/{names[0]}.flv")}
    assert CremaD(tmp_path).clips[0].files == published
    (tmp_path / f"VideoFlash/{names[0]}.flv").unlink()
    assert CremaD(tmp_path).clips[0].files["video"].suffix == ".mp4"


def test_a_copy_with_sound_alone(tmp_path: Path) -> None:
    names = crema_d(tmp_path)
    for name in names:
        (tmp_path / f"VideoFlash/{name}.flv").unlink()
    alone = r"VideoFlash: {}; there is audio alone: use --data.modalities \[audio\]"
    with pytest.raises(UserError, match=alone.format("no .*files in it")):
        CremaD(tmp_path)
    (tmp_path / "VideoFlash").rmdir()
    with pytest.raises(UserError, match=alone.format("no such folder")):
        CremaD(tmp_path)
    assert len(CremaD(tmp_path, modalities=["audio"]).clips) == 12


# -------------------------------------------------------------- another folder


@pytest.mark.parametrize("root", ["data/AudioWAV", ".", "data/empty", "data/a/b"])
def test_crema_d_is_found_nearby(tmp_path: Path, root: str) -> None:
    crema_d(tmp_path / "data")
    (tmp_path / root).mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match=rf"no such folder; found under {tmp_path}/data: use --data.root {tmp_path}/d"):
        CremaD(tmp_path / root)


@pytest.mark.parametrize(("root", "file"), [("set", "a.mp4"), ("set/clips/x", "a.mp4"), ("set/clips", "clips/a.mp4")])
def test_clips_are_found_nearby(tmp_path: Path, root: str, file: str) -> None:
    write_clip(tmp_path / "set/clips/a.mp4")
    (tmp_path / root).mkdir(parents=True, exist_ok=True)
    path = listed(tmp_path, f"{HEADER}1,x,train,gone.mp4\n2,x,train,{file}\n")
    other = (tmp_path / "set/clips/a.mp4").parents[file.count("/")]
    said = f"looked for {tmp_path / root / 'gone.mp4'}; found under {other}: use --data.root {other}"
    with pytest.raises(UserError) as error:
        Clips(path, root=tmp_path / root, store=tmp_path / "store", prepare_workers=0).prepare()
    assert str(error.value).endswith(said)
    assert not (tmp_path / "store").exists()
    assert Clips(path, root=other, store=tmp_path / "store", prepare_workers=0).prepare().ok == 1
    # what is in the store is not looked for again
    Clips(path, root=tmp_path / root, store=tmp_path / "store", prepare_workers=0).prepare()


def test_vggsound_is_found_nearby(tmp_path: Path) -> None:
    write_clip(tmp_path / "videos/deep/down/here/-a_1_000030.mp4")
    csv = listed(tmp_path, "-b,1,a,train\n-a_1,30,a,train\n")
    (tmp_path / "videos/deep/other").mkdir()
    module = VGGSound(tmp_path / "videos", csv=csv, store=tmp_path / "s", decode=DecodeOptions(fps=1.0))
    with pytest.raises(UserError, match="no file is named as a clip of"):
        module.prepare()
    module = VGGSound(tmp_path / "videos/deep/other", csv=csv, store=tmp_path / "s")
    with pytest.raises(UserError, match=rf"; found under {tmp_path}/videos/deep/down/here: use --data.root"):
        module.prepare()
