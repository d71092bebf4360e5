import csv
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import yaml

from amr.cli import main
from amr.datamodules import VGGSound
from amr.datamodules.store.media import Clip, DecodeOptions
from amr.datamodules.synthetic.synthesis import write_mp4
from amr.datamodules.transforms import AudioTransform, VideoTransform
from amr.datamodules.vggsound import read_tags
from amr.utils.errors import UserError

CLIPS = int(os.environ.get("AMR_TEST_VGGSOUND_CLIPS", 120))  # of the generated data set; a multiple of 20
LABELS = ["bird chirping, tweeting", "people clapping", "police car (siren)"]
SCHEMES: list[Callable[[str, int], str]] = [
    lambda video, start: f"{video}_{start:06d}",
    lambda video, start: f"{video}_{start}",
    lambda video, start: f"{video}_{start}_{start + 10}",
    lambda video, start: f"{video}_{start * 1000}_{(start + 10) * 1000}",
    lambda video, start: f"{video}_{start:06d}_{start + 10:06d}",
]
FOLDERS = ["", "train", "test", LABELS[0], "video/00"]
BOTH = ("audio", "video")
KINDS: list[tuple[str, dict[str, str]]] = [  # what is done to every clip of 20, and what is to be found
    *[("missing", dict.fromkeys(BOTH, "file missing"))] * 3,
    ("unfinished download", dict.fromkeys(BOTH, "file missing")),
    ("truncated", dict.fromkeys(BOTH, "truncated")),
    ("no index", dict.fromkeys(BOTH, "decode error")),
    ("text", dict.fromkeys(BOTH, "decode error")),
    ("zero bytes", dict.fromkeys(BOTH, "zero bytes")),
    ("silent", {"audio": "silent"}),
    ("no audio stream", {"audio": "no audio stream"}),
    ("no video stream", {"video": "no video stream"}),
    ("wav only", {"video": "file missing"}),
    ("still", {"video": "still frames"}),
    ("wrong extension", {}),
    *[("sound", {})] * 6,
]
SMALL: dict[str, Any] = {
    "decode": DecodeOptions(sample_rate=8000, fps=5),
    "audio": AudioTransform(seconds=0.5, n_fft=256, n_mels=16),
    "video": VideoTransform(frames=2, size=16),
    "num_workers": 0,
    "prepare_workers": 0,
}


class Made(NamedTuple):
    root: Path
    reasons: dict[str, dict[str, str]]  # by clip
    splits: dict[str, str]


def video_id(number: int) -> str:
    """Eleven characters, as YouTube's: every other one begins with - and all have _ and digits at their end."""
    return f"{'-' if number % 2 else 'x'}Q_{number:03d}_{number % 7}_12"[:11]


def write_media(path: Path, kind: str, label: int, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = rng.integers(0, 60, (12, 32, 32, 3), dtype=np.uint8) + np.uint8(60 * label)
    wave = 0.5 * np.sin(2 * np.pi * 300 * (label + 1) * np.arange(15360) / 16000).astype(np.float32)
    match kind:
        case "still":
            frames[:] = np.linspace(0, 255, 32, dtype=np.uint8)[:, None, None]
        case "silent":
            wave[:] = 0
        case "zero bytes":
            path.touch()
            return
        case "text":
            path.write_text("<html>Video unavailable</html>" * 50)
            return
    write_mp4(path, None if kind == "no video stream" else frames, None if kind == "no audio stream" else wave)
    if kind == "truncated":
        index_first(path)
    if kind in ("truncated", "no index"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if kind == "wav only":
        with av.open(str(path)) as source, av.open(str(path.with_suffix(".wav")), "w") as target:
            stream = target.add_stream("pcm_s16le", rate=16000, layout="mono")
            for frame in source.decode(audio=0):
                target.mux(stream.encode(frame))
            target.mux(stream.encode(None))
        path.unlink()
    if kind in ("wrong extension", "unfinished download"):
        path.rename(path.with_suffix(".webm" if kind == "wrong extension" else ".mp4.part"))


def index_first(path: Path) -> None:
    """Put an mp4's index before its data, as sites do."""
    whole = path.with_name("index.mp4")
    with av.open(str(path)) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as target:
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    whole.replace(path)


def make(root: Path, clips: int) -> Made:
    """A VGGSound of so many rows, two clips a video, with every naming and every mishap."""
    rng, rows, made = np.random.default_rng(0), [], Made(root, {}, {})
    for i in range(clips):
        kind, reasons = KINDS[i % 20]
        row = i // 20 + i  # so that kinds, labels, names and splits mix
        video, start = video_id(i // 2), [0, 7, 30, 1200][i // 2 % 4] + 10 * (i % 2)
        split = "test" if i // 2 % 5 == row // 40 % 5 else "train"
        rows.append([video, start, LABELS[row % 3], split])
        id = f"{video}_{start:06d}"
        made.reasons[id], made.splits[id] = reasons, split
        if kind != "missing":
            name = SCHEMES[row % 5](video, start) + ".mp4"
            write_media(root / FOLDERS[row // 3 % 5] / name, kind, row % 3, rng)
    write_list(root / "vggsound.csv", rows)
    write_list(root / "stat.csv", [[label, 2, "people"] for label in reversed(LABELS)])
    (root / "README.txt").touch()
    (root / "train/.DS_Store").touch()
    return made


def write_list(path: Path, rows: list[list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("vggsound"), CLIPS)


@pytest.fixture
def row(tmp_path: Path) -> Callable[..., VGGSound]:
    """A data set of one training clip, `-a_1_000030` unless told otherwise, and these empty files."""

    def build(*files: str, rows: list[list[Any]] | None = None, **kwargs: Any) -> VGGSound:
        for name in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        write_list(tmp_path / "vggsound.csv", rows or [["-a_1", 30, "a", "train"]])
        return VGGSound(tmp_path, store=tmp_path / ".store", **{**SMALL, **kwargs})

    return build


def test_every_mishap_is_counted(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = VGGSound(made.root, store=tmp_path, **{**SMALL, "prepare_workers": 2})
    report = module.prepare()
    found = Counter(id for id, reasons in made.reasons.items() if reasons.get("audio") != "file missing")
    assert f"vggsound: {len(found)} of {CLIPS} clips are in {made.root} (" in capsys.readouterr().err
    expected = Counter((m, reason) for reasons in made.reasons.values() for m, reason in reasons.items())
    assert report.reasons == expected
    assert report.reasons["video", "file missing"] == CLIPS // 4  # a fifth, and those with sound alone
    assert (report.total, report.ok) == (CLIPS, sum(not reasons for reasons in made.reasons.values()))
    with (tmp_path / "report.csv").open(newline="") as file:
        lines = {(line["id"], line["modality"]): line["reason"].split(":")[0] for line in csv.DictReader(file)}
    assert lines == {(id, m): reason for id, reasons in made.reasons.items() for m, reason in reasons.items()}

    module.setup()
    ids = [clip.id for clips in (module._usable or {}).values() for clip in clips]
    assert sorted(ids) == sorted(id for id, r in made.reasons.items() if set(r.values()) <= {"still frames"})
    for split, loader in (("train", module.train_dataloader()), ("test", module.test_dataloader())):
        for batch in loader:
            assert batch["inputs"]["audio"].shape[1:] == (1, 16, 26)
            for id, label in zip(batch["id"], batch["label"].tolist(), strict=True):
                assert made.splits[id] == split
                assert module.labels[label] == next(clip.label for clip in module.clips if clip.id == id)
    picky = VGGSound(made.root, store=tmp_path, still="skip", **SMALL)
    picky.setup()
    assert len(ids) - sum(map(len, (picky._usable or {}).values())) == CLIPS // 20


def test_train_then_go_on_without_the_clips(made: Made, tmp_path: Path) -> None:
    root = shutil.copytree(made.root, tmp_path / "clips")
    data = {
        "class_path": "amr.datamodules.VGGSound",
        "init_args": {
            "root": str(root),
            "store": str(tmp_path / "store"),
            "labels": "stat.csv",
            "val_fraction": 0.2,
            "decode": {"sample_rate": 8000, "fps": 5},
            "audio": {"seconds": 0.5, "n_fft": 256, "n_mels": 16},
            "video": {"frames": 2, "size": 16},
            "batch_size": 8,
            "num_workers": 0,
            "prepare_workers": 0,
        },
    }
    encoders = {
        "audio": {"class_path": "amr.encoders.SmallCNN", "init_args": {"width": 4, "out_dim": 8}},
        "video": {
            "class_path": "amr.encoders.SmallFrameCNN",
            "init_args": {"in_channels": 3, "frames": 2, "width": 4, "out_dim": 8},
        },
    }
    config = tmp_path / "config.yaml"
    trainer = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    config.write_text(yaml.safe_dump({"data": data, "model": {"encoders": encoders}, "trainer": trainer}))
    run = ["fit", "--config", str(config), "--runs_dir", str(tmp_path), "--wandb", "disabled"]
    assert main([*run, "--name", "first"]) == 0
    assert json.loads((tmp_path / "first/run.json").read_text())["dataset"] == "vggsound"
    listing = root / "vggsound.csv"
    listing.rename(tmp_path / "list.csv")
    shutil.rmtree(root)
    assert main([*run, "--name", "second", "--data.init_args.csv", str(tmp_path / "list.csv")]) == 2  # no stat.csv
    labels = ["--data.init_args.csv", str(tmp_path / "list.csv"), "--data.init_args.labels", "null"]
    assert main([*run, "--name", "third", *labels]) == 0
    assert main(["test", "--ckpt_path", str(tmp_path / "third/checkpoints/best.ckpt"), "--wandb", "disabled"]) == 0
    root.mkdir()
    given: dict[str, Any] = {**SMALL, "csv": tmp_path / "list.csv", "decode": DecodeOptions(8000, 5, frames="raw")}
    fast = VGGSound(root, store=tmp_path / "fast", val_fraction=0.2, **given)
    assert fast.prepare(convert=tmp_path / "store").decoded == len(fast.clips)


def test_official_lists(shared_data: Path) -> None:
    root = shared_data / "vggsound_meta"
    module = VGGSound(root, csv="test.csv", labels="stat.csv")
    assert (len(module.clips), module.num_classes) == (15446, 309)
    assert {clip.split for clip in module.clips} == {"test"}
    assert "bird chirping, tweeting" in module.labels
    assert module.labels == VGGSound(root, csv=root / "test.csv").labels == sorted(module.labels)
    assert module.clips[0].id == "glLQrEijrKg_000300"
    assert sum(clip.id.startswith("-") for clip in module.clips) > 100
    with pytest.raises(UserError, match="no file is named as a clip of .*test.csv is, like glLQrEijrKg_000300.mp4"):
        module.locate(module.clips[0])


def test_validation_is_cut_by_video(made: Made, tmp_path: Path) -> None:
    def splits(**kwargs: Any) -> dict[str, str]:
        return {clip.id: clip.split for clip in VGGSound(made.root, **kwargs).clips}

    found = splits(val_fraction=0.25)
    videos = {side: {id.rpartition("_")[0] for id in found if found[id] == side} for side in ("train", "val", "test")}
    assert not videos["train"] & videos["val"]
    assert {id for id in found if found[id] == "test"} == {id for id, split in made.splits.items() if split == "test"}
    assert len(videos["val"]) == round(0.25 * len(videos["val"] | videos["train"]))
    assert splits(val_fraction=0.25, seed=3) == found
    assert splits(val_fraction=0.25, split_seed=1) != found
    assert "val" not in splits(val_fraction=0.0).values()
    assert "val" in splits(val_fraction=0.001).values()
    alone = shutil.copy(made.root / "vggsound.csv", tmp_path)  # no clips at all: same splits, same indices
    module = VGGSound(tmp_path, csv=alone, val_fraction=0.25)
    assert {clip.id: clip.split for clip in module.clips} == found
    assert module.labels == VGGSound(made.root, labels="stat.csv").labels == LABELS


def test_label_files(row: Callable[..., VGGSound], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("z, y\na\n")
    assert row(labels="labels.txt").labels == ["z, y", "a"]
    assert row(labels=["b", "a"]).labels == ["b", "a"]
    assert row(labels=str(tmp_path / "labels.txt")).num_classes == 2


@pytest.mark.parametrize(
    ("files", "audio", "video"),
    [
        (["-a_1_30.mp4", "-a_1_000030.mkv"], "-a_1_30.mp4", "-a_1_30.mp4"),
        (["b/-a_1_30.mp4", "a/-a_1_000030.mp4"], "a/-a_1_000030.mp4", "a/-a_1_000030.mp4"),
        (["a/-a_1_30.WAV", "b/c/-a_1_000030.flv"], "a/-a_1_30.WAV", "b/c/-a_1_000030.flv"),
        (["-a_1_30000_40000.avi", "a/b/c/-a_1_30.mp4"], "-a_1_30000_40000.avi", "-a_1_30000_40000.avi"),
        (["-a_1_30_40.mp4", "-a_1_000031.mp4", "a_1_30.mp4"], "-a_1_30_40.mp4", "-a_1_30_40.mp4"),
        (["-a_1_30.wav", "-a_1_30.mp4/00001.jpg", "._-a_1_30.mp4"], "-a_1_30.wav", "-a_1_000030.mp4"),
    ],
)
def test_which_file_is_taken(row: Callable[..., VGGSound], files: list[str], audio: str, video: str) -> None:
    module = row(*files)
    assert module.locate(module.clips[0]).files == {"audio": Path(audio), "video": Path(video)}


def test_names_that_could_be_two_clips(row: Callable[..., VGGSound]) -> None:
    rows = [[video, start, "a", "train"] for video, start in (("v", 0), ("v", 10), ("v_5", 20), ("v_0", 10000))]
    module = row("v_0_10.mp4", "v_10000_20000.mp4", "v_5_20.mp4", "v_0_10000_10010.mp4", rows=rows)
    assert {clip.id: module.locate(clip).files["video"].name for clip in module.clips} == {
        "v_000000": "v_0_10.mp4",
        "v_000010": "v_10000_20000.mp4",
        "v_5_000020": "v_5_20.mp4",
        "v_0_010000": "v_0_10000_10010.mp4",
    }


def test_a_clip_that_comes_later(row: Callable[..., VGGSound], made: Made, tmp_path: Path) -> None:
    rows = [["-a_1", 30, "a", "train"], ["b", 0, "a", "train"]]
    source = next(path for path in made.root.rglob("*.webm"))
    shutil.copy(source, tmp_path / "b_0.mp4")
    module = row(rows=rows)
    assert module.prepare().reasons == {("audio", "file missing"): 1, ("video", "file missing"): 1}
    (tmp_path / "new").mkdir()
    shutil.copy(source, tmp_path / "new/-a_1_30_40.mp4")
    module.prepare_data()  # only `prepare` looks again
    assert module.prepare().reasons == {}
    shutil.rmtree(tmp_path / "new")
    assert (module.prepare().decoded, module.prepare().ok) == (0, 2)


def test_links_that_leave_the_folder(row: Callable[..., VGGSound], tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "clip.mp4").touch()
    module = row(follow_links=False)
    (tmp_path / "notes.txt").symlink_to(outside / "clip.mp4")  # nobody reads it
    (tmp_path / "-a_1_30.mp4").symlink_to(outside / "clip.mp4")
    with pytest.raises(
        UserError,
        match=r"file -a_1_30.mp4, which leaves the root folder .*: -a_1_30.mp4 is a link to .*clip.mp4; data.follow",
    ):
        module.locate(module.clips[0])
    (tmp_path / "-a_1_30.mp4").unlink()
    (tmp_path / "train").symlink_to(outside)
    with pytest.raises(UserError, match=r"file train, which leaves the root folder .*: train is a link to"):
        module.prepare()
    (outside / "-a_1_30.mp4").touch()
    module = row()
    assert module.locate(module.clips[0]).files["audio"] == Path("train/-a_1_30.mp4")  # the owner's link


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["a", "30", "x"], "vggsound.csv, line 2: 3 cells; must be video id, start, label, split; or file, label"),
        (["a", "30", "x", "valid"], "vggsound.csv, line 2: label='x', split='valid': must be any label, and"),
        (["a", "30", "", "test"], "vggsound.csv, line 2: label=''"),
        (["a", "3.5", "x", "test"], "vggsound.csv, line 2: 'a' and '3.5' are not a video id"),
        (["../a", "3", "x", "test"], "vggsound.csv, line 2: '../a' and '3' are not a video id"),
        (["x.mp4", "y"], "vggsound.csv, line 2: '' and 'x' are not a video id"),
        (["-a_1", "030", "a", "test"], "vggsound.csv, line 2: clip '-a_1_000030' is listed twice"),
    ],
)
def test_bad_rows(row: Callable[..., VGGSound], cells: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        row(rows=[["-a_1", 30, "a", "train"], cells])
    assert "\n" not in str(error.value)


def test_bad_arguments(row: Callable[..., VGGSound], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.root=nowhere: no such folder"):
        VGGSound("nowhere")
    with pytest.raises(UserError, match=r"data.csv=.*vggsound.csv: no such file"):
        VGGSound(tmp_path)
    row()
    with pytest.raises(UserError, match="data.root=nowhere: no such folder"):
        VGGSound("nowhere", csv=tmp_path / "vggsound.csv")
    with pytest.raises(UserError, match="data.val_fraction=1: must be at least 0 and below 1"):
        row(val_fraction=1)
    with pytest.raises(UserError, match="line 1: label 'a' is not among the 1 of data.labels"):
        row(labels=["b"])
    with pytest.raises(UserError, match="data.labels=.* names 'a' twice"):
        row(labels=["a", "b", "a"])
    with pytest.raises(UserError, match=r"data.labels=.*none.csv: no such file"):
        row(labels="none.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(UserError, match=r"data.csv=.*empty.csv: no rows"):
        VGGSound(tmp_path, csv="empty.csv")


def test_vggsounders_tags_say_where_a_clips_own_class_is(tmp_path: Path) -> None:
    rows = [
        ("abc_000010", "dog barking", "A"),
        ("abc_000010", "cat purring", "V"),  # another class than the clip's
        ("-b_c_000000", "bird chirping, tweeting", "V"),
        ("both_000030", "dog barking", "AV"),
        ("other_000000", "cat purring", "AV"),
        ("train_000000", "dog barking", "AV"),
    ]
    with (tmp_path / "tags.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video_id", "label", "modality", "background_music", "static_image", "voice_over"])
        writer.writerows([*row, str(n % 2 == 0), "False", "False"] for n, row in enumerate(rows))
    labels = {"abc_000010": "dog barking", "-b_c_000000": "bird chirping, tweeting", "both_000030": "dog barking"}
    labels |= {"other_000000": "dog barking", "untagged_000000": "dog barking"}
    found = read_tags([Clip(id, label, "test", {}) for id, label in labels.items()], tmp_path / "tags.csv")
    assert found == {
        "abc_000010": {"audio"},
        "-b_c_000000": {"video"},
        "both_000030": {"audio", "video"},
        "other_000000": set(),
    }


def test_the_packages_tags_fit_the_official_list(shared_data: Path, tmp_path: Path) -> None:
    """15,069 of the 15,446 test clips have tags, and of these 11,905 their own class."""
    data = VGGSound(tmp_path, csv=str(shared_data / "vggsound_meta/test.csv"), store=tmp_path)
    tags = read_tags(data.clips)
    assert (len(data.clips), len(tags)) == (15446, 15069)
    kinds = Counter("+".join(sorted(tag)) for tag in tags.values())
    assert kinds == {"audio+video": 8481, "audio": 3035, "video": 389, "": 3164}
    assert data.evidence() == {id: tag for id, tag in tags.items() if tag}


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vggsounder", None)
    with pytest.raises(UserError, match=r"VGGSounder's tags are not installed; pip install 'amr-fusion\[vggsound\]'"):
        read_tags([])
