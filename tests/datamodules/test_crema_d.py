from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from amr.datamodules import CremaD
from amr.datamodules.transforms import AudioTransform, VideoTransform
from amr.utils.errors import UserError
from tests.conftest import REPOSITORY
from tests.datamodules import librosa_reference
from tests.datamodules.conftest import parse_data


@pytest.fixture
def fake_root(tmp_path: Path) -> Path:
    """91 actors with six clips each, as empty files."""
    for folder in ("AudioWAV", "VideoFlash"):
        (tmp_path / folder).mkdir()
    for actor in range(1001, 1092):
        for label in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"):
            (tmp_path / f"AudioWAV/{actor}_DFA_{label}_XX.wav").touch()
            (tmp_path / f"VideoFlash/{actor}_DFA_{label}_XX.flv").touch()
    return tmp_path


def splits(module: CremaD) -> dict[str, str]:
    assert len({clip.id for clip in module.clips}) == len(module.clips)
    return {clip.id: clip.split for clip in module.clips}


def test_actor_split(fake_root: Path) -> None:
    module = CremaD(fake_root)
    assert module.labels == ["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"]
    found = splits(module)
    assert len(found) == 91 * 6
    actors = {split: {id[:4] for id, s in found.items() if s == split} for split in ("train", "val", "test")}
    assert {split: len(group) for split, group in actors.items()} == {"train": 64, "val": 9, "test": 18}
    assert len(set.union(*actors.values())) == 91  # and so no actor is on two sides
    assert splits(CremaD(fake_root, seed=5)) == found
    assert splits(CremaD(fake_root, split_seed=1)) != found
    assert all(clip.label in clip.id for clip in module.clips)


def test_a_file_in_one_folder_only(fake_root: Path) -> None:
    (fake_root / "AudioWAV/1001_DFA_ANG_XX.wav").unlink()
    (fake_root / "VideoFlash/1002_DFA_ANG_XX.flv").unlink()
    (fake_root / "AudioWAV/._1001_DFA_DIS_XX.wav").touch()  # what macOS leaves behind
    module = CremaD(fake_root, store=fake_root / "store", prepare_workers=0)
    assert len(module.clips) == 91 * 6
    report = module.prepare()
    assert report.reasons[("audio", "file missing")] == 1
    assert report.reasons[("video", "file missing")] == 1
    assert report.reasons[("audio", "zero bytes")] == 91 * 6 - 1


def test_ogm_split(fake_root: Path, shared_data: Path) -> None:
    folder = shared_data / "crema_d_meta/ogm_split"
    module = CremaD(fake_root, split="ogm", ogm_split=folder)
    found = splits(module)
    lists = {
        name: [line.split(",")[0] for line in (folder / f"{name}.csv").read_text().split()]
        for name in ("train", "test")
    }
    assert {id for id, split in found.items() if split == "test"} == set(lists["test"])
    assert {id for id, split in found.items() if split != "test"} == set(lists["train"])
    of_train = Counter(id.split("_")[2] for id in lists["train"])
    of_val = Counter(id.split("_")[2] for id, split in found.items() if split == "val")
    assert of_val == {label: round(n / 10) for label, n in of_train.items()}
    assert splits(CremaD(fake_root, split="ogm", ogm_split=folder, seed=3)) == found


def test_sample_of_one_actor(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "crema_d_sample"
    with pytest.raises(UserError, match="clips of 1 actor, and split=actor needs at least 3; use split=all"):
        CremaD(root)
    module = CremaD(
        root,
        split="all",
        store=tmp_path,
        audio=AudioTransform(fit="tile", kind="log_stft", hop_length=353),
        video=VideoTransform(augment="resized_crop", flip=True),
        num_workers=0,
        prepare_workers=0,
    )
    module.prepare_data()
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        (batch,) = loader
        assert batch["inputs"]["audio"].shape == (6, 1, 257, 136)
        assert batch["inputs"]["video"].shape == (6, 3, 3, 224, 224)
        assert sorted(batch["label"].tolist()) == list(range(6))


@pytest.mark.parametrize("in_memory", [False, True])
def test_the_recipes_sound_is_librosas(shared_data: Path, tmp_path: Path, in_memory: bool) -> None:
    """In every row: those above 8 kHz, which the recording does not reach, hold only the resampler's rounding."""
    changes = ["--data.root", str(shared_data / "crema_d_sample"), "--data.split", "all", "--data.num_workers", "0"]
    changes += ["--data.store", str(tmp_path), "--data.prepare_workers", "0", "--data.in_memory", str(in_memory)]
    module = parse_data(REPOSITORY / "configs/data/crema-d.yaml", *changes)
    module.prepare_data()
    (batch,) = module.train_dataloader()
    reference = librosa_reference.load()
    assert batch["inputs"]["audio"].shape == (6, 1, 257, 188)
    assert sorted(batch["id"]) == sorted(reference)
    for id, (x,) in zip(batch["id"], batch["inputs"]["audio"].numpy(), strict=True):
        np.testing.assert_allclose(x[:, librosa_reference.COLUMNS], reference[id], rtol=0, atol=1e-3)
        assert x[188:].mean() < -15


def test_bad_folders_and_lists(fake_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.root=nowhere: no such folder"):
        CremaD("nowhere")
    with pytest.raises(UserError, match="AudioWAV: no such folder"):
        CremaD(tmp_path / "AudioWAV")
    with pytest.raises(UserError, match=r"data.split='random': must be actor, ogm or all"):
        CremaD(fake_root, split="random")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"data.ogm_split must name the folder"):
        CremaD(fake_root, split="ogm")
    with pytest.raises(UserError, match=r"train.csv: no such file"):
        CremaD(fake_root, split="ogm", ogm_split=tmp_path)
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.csv").write_text("1001_DFA_ANG_XX,ANG\n1001_DFA_DIS_XX,SAD\n")
    (lists / "test.csv").write_text("1001_DFA_ANG_XX,ANG\n")
    with pytest.raises(UserError, match=r"train.csv, line 2: '1001_DFA_DIS_XX,SAD' is not a name and the label in it"):
        CremaD(fake_root, split="ogm", ogm_split=lists)
    (lists / "train.csv").write_text("1001_DFA_ANG_XX,ANG\n")
    with pytest.raises(UserError, match=r"'1001_DFA_ANG_XX' is in train.csv and in test.csv"):
        CremaD(fake_root, split="ogm", ogm_split=lists)
    (fake_root / "AudioWAV/holiday.wav").touch()
    with pytest.raises(UserError, match="'holiday' is not named as CREMA-D's clips are"):
        CremaD(fake_root)
