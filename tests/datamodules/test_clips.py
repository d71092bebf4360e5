import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amr.cli import main
from amr.datamodules import Clips
from amr.utils.errors import UserError
from tests.datamodules.conftest import write_csv

ROW = {"id": "1", "file": "1.mp4", "label": "a", "split": "train"}


def listed(folder: Path, *rows: dict[str, Any], **kwargs: Any) -> Clips:
    return Clips(write_csv(folder / "list.csv", rows or [ROW]), **kwargs)


def test_listing(tmp_path: Path) -> None:
    module = listed(
        tmp_path, {**ROW, "start": "", "end": ""}, {**ROW, "id": "2", "label": "b", "start": "0.5", "end": "1"}
    )
    assert (module.labels, module.num_classes) == (["a", "b"], 2)
    assert module.name == f"{tmp_path.name}-list"
    assert module.clips[0].files == {"audio": Path("1.mp4"), "video": Path("1.mp4")}
    assert (module.clips[0].start, module.clips[1].start, module.clips[1].end) == (None, 0.5, 1.0)


def test_a_file_for_each_modality(tmp_path: Path) -> None:
    row = {"id": "1", "label": "a", "split": "train", "audio_file": "s/1.wav", "video_file": ""}
    assert listed(tmp_path, row).clips[0].files == {"audio": Path("s/1.wav")}


def test_root_and_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("b\na\nnever, seen\n")
    write_csv(tmp_path / "list.csv", [ROW])
    module = Clips("list.csv", root=tmp_path, labels="labels.txt")
    assert module.labels == ["b", "a", "never, seen"]
    assert Clips("list.csv", root=tmp_path, labels=["c", "a"]).num_classes == 2


def test_real_listing(shared_data: Path) -> None:
    module = Clips("letters.csv", root=shared_data / "grid")
    assert (len(module.clips), module.num_classes, module.name) == (1000, 25, "grid-letters")
    splits = [clip.split for clip in module.clips]
    assert [splits.count(split) for split in ("train", "val", "test")] == [700, 100, 200]


def without(column: str) -> dict[str, str]:
    return {key: value for key, value in ROW.items() if key != column}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([without("label")], r"list.csv: no column 'label'; it has id, file, split"),
        ([without("file")], r"list.csv: there must be a column 'file', or columns audio_file or video_file"),
        ([{**ROW, "audio_file": "1.wav"}], r"and not both"),
        ([ROW, {**ROW, "label": ""}], r"list.csv, line 3: 'label' is empty"),
        ([ROW, ROW], r"clip id '1' is listed 2 times"),
        ([{**ROW, "split": "training"}], r"clip '1': split='training': must be one of train, val, test, all"),
        ([{**ROW, "split": "test"}], r"no clip has split 'train'; splits found: \['test'\]"),
        ([{**ROW, "start": "x", "end": "1"}], r"list.csv, line 2: 'start'='x': must be a number of seconds"),
        ([{**ROW, "start": "nan", "end": "1"}], r"'start'='nan'"),
        ([{**ROW, "start": "2", "end": "1"}], r"clip '1': start=2.0, end=1.0: must be"),
        ([{**ROW, "start": "-1", "end": "1"}], r"clip '1': start=-1.0"),
        ([{**ROW, "file": "../1.mp4"}], r"clip '1' has file ../1.mp4, which leaves the root folder"),
        ([{**ROW, "file": "/etc/passwd"}], r"clip '1' has file /etc/passwd, which leaves the root folder"),
        ([{**ROW, "file": "link.mp4"}], r"clip '1' has file link.mp4, which leaves the root folder"),
        ([{**ROW, "file": "link/1.mp4"}], r"clip '1' has file link/1.mp4, which leaves the root folder"),
    ],
)
def test_bad_listings(tmp_path: Path, rows: list[dict[str, str]], message: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.mp4").touch()
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        listed(root, *rows, follow_links=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"labels": ["b"]}, "clip '1': label='a': must be one of b"),
        ({"labels": ["a", "a"]}, "must name each label once"),
        ({"labels": "none.txt"}, "none.txt: no such file"),
        ({"root": "nowhere"}, "data.root=nowhere: no such folder"),
        (
            {"modalities": ["audio", "smell"]},
            re.escape("data.modalities=['audio', 'smell']: must be of ['audio', 'video']"),
        ),
        ({"modalities": []}, "data.modalities=.*: must be"),
        ({"batch_size": 0}, "data.batch_size=0: must be"),
        ({"num_workers": -1}, "data.num_workers=-1: must be"),
    ],
)
def test_bad_arguments(tmp_path: Path, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        listed(tmp_path, **kwargs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'id'; it has none"),
        ("id,file,label,split\n1,1.mp4,a\n", "line 2: another number of cells"),
        ("id,file,label,split\n1,1.mp4,a,train,b\n", "line 2: another number of cells"),
        ('id,file,label,split\n1,"1.mp4,a,train\n', "not a CSV in UTF-8"),
        ("id,file,label,split\n\xff,1.mp4,a,train\n", "not a CSV in UTF-8"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        Clips(tmp_path / "list.csv")
    with pytest.raises(UserError, match=r"data.csv=.*none.csv: no such file"):
        Clips(tmp_path / "none.csv")


def test_prepare_of_another_folder_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not one clip can be used: a script must not go on."""
    # Names that no other test's files have: the message tells of a folder nearby that holds them.
    (tmp_path / "list.csv").write_text("id,file,label,split\n1,unique-1.mp4,a,train\n2,unique-2.mp4,b,test\n")
    command = ["prepare", "--data", "amr.datamodules.Clips", "--data.csv", str(tmp_path / "list.csv")]
    assert main([*command, "--data.store", str(tmp_path / "store"), "--data.prepare_workers", "0"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "amr: no clip of 2 can be used (audio file missing: 2, video file missing: 2); "
        "--data.root must be the folder in which their paths begin"
    )


def test_fit_on_an_unprepared_folder(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make: Callable[[], Clips] = lambda: Clips(clip_folder / "clips.csv", num_workers=0, prepare_workers=0)  # noqa: E731
    module = make()
    module.prepare_data()
    module.setup("fit")
    assert next(iter(module.train_dataloader()))["inputs"]["video"].shape == (13, 3, 3, 224, 224)
    assert [path.name for path in (tmp_path / "stores").iterdir()] == [module.store.name]
    assert make().prepare().decoded == 0


def test_an_index_that_pandas_wrote_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text(",id,file,label,split\n0,x,x.mp4,a,train\n1,y,y.mp4,b,train\n")
    assert [clip.id for clip in Clips(tmp_path / "clips.csv").clips] == ["x", "y"]
