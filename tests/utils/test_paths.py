"""A run's paths hold in any folder, and after a move."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from amr.cli import main
from amr.datamodules import Clips, CremaD
from amr.load import data_section
from amr.utils.paths import differing, found_again, made_absolute
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("ignore")


def test_paths_become_absolute_and_other_texts_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clips.csv", "audio", "weights.pt", "runs/a/best.ckpt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    data = {"csv": "clips.csv", "root": "not/there", "store": None, "labels": ["audio"], "name": "audio"}
    config: dict[str, Any] = {
        "data": {"class_path": "amr.datamodules.Clips", "init_args": data},
        "model": {
            "encoders": {
                "audio": {"init_args": {"weights": "weights.pt"}},
                "video": {"init_args": {"weights": "K400"}},
            },
            "umt": {"teachers": {"audio": "runs/a/best.ckpt"}},
        },
        "robustness": {"unimodal": {"audio": "runs/a/best.ckpt", "video": "~/best.ckpt"}},
        "name": "audio",
    }
    made = made_absolute(config, Clips)
    assert dict(differing(config, made)) == {
        "data.init_args.csv": str(tmp_path / "clips.csv"),
        "data.init_args.root": str(tmp_path / "not/there"),
        "model.encoders.audio.init_args.weights": str(tmp_path / "weights.pt"),
        "model.umt.teachers.audio": str(tmp_path / "runs/a/best.ckpt"),
        "robustness.unimodal.audio": str(tmp_path / "runs/a/best.ckpt"),
    }
    below_the_root = {"data": {"init_args": {"root": "r", "ogm_split": "lists"}}}
    assert dict(differing(below_the_root, made_absolute(below_the_root, CremaD))) == {
        "data.init_args.root": str(tmp_path / "r")
    }


def test_what_moved_with_the_run_is_found_again(tmp_path: Path) -> None:
    run = tmp_path / "after/runs/a"
    run.mkdir(parents=True)
    (tmp_path / "after/store").mkdir()
    (tmp_path / "elsewhere").mkdir()
    facts = {"folder": str(tmp_path / "before/runs/a"), "store": str(tmp_path / "before/store")}
    (run / "run.json").write_text(json.dumps(facts))
    arguments = {"root": str(tmp_path / "elsewhere"), "csv": str(tmp_path / "before/lost.csv"), "store": None}
    config = {"data": {"init_args": arguments}}
    found = found_again(config, run)["data"]["init_args"]
    assert found == {**arguments, "store": str(tmp_path / "after/store")}
    (tmp_path / "after/lost.csv").touch()
    assert found_again(config, run)["data"]["init_args"]["csv"] == str(tmp_path / "after/lost.csv")
    assert arguments["store"] is None


@pytest.fixture
def place(tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, a store where it lies by default, and a run, all named by relative paths."""
    folder = tmp_path / "place"
    folder.mkdir()
    shutil.copytree(tiny[3], folder / "clips")
    config = yaml.safe_load((REPOSITORY / "tests/conf/tiny.yaml").read_text())
    config["data"]["init_args"]["root"] = "clips"
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(folder)
    assert (
        main(["fit", "--config", "tiny.yaml", "--name", "run", "--wandb", "disabled", "--trainer.max_epochs", "1"]) == 0
    )
    return folder


def test_commands_work_from_another_folder_and_after_a_move(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for command in ("test", "predict", "export"):
        if command == "export":
            monkeypatch.chdir(tmp_path)
            place = place.rename(tmp_path / "moved")
        monkeypatch.chdir(here)
        checkpoint = Path(os.path.relpath(place / "runs/run/checkpoints/best.ckpt"))
        (store,) = (path.name for path in (place / "stores").iterdir())
        section = data_section(checkpoint)["init_args"]
        assert (section["root"], section["store"]) == (str(place / "clips"), str(place / "stores" / store))
        options = ["--ckpt", str(checkpoint), "--out", "exported"] if command == "export" else []
        assert main([command, *(options or ["--ckpt_path", str(checkpoint)])]) == 0
        assert list(here.iterdir()) == ([here / "exported"] if options else [])  # no clips or store a second time
    assert main(["test", "--ckpt_path", str(checkpoint)]) == 0
    assert [path.name for path in here.iterdir()] == ["exported"]
    assert (here / "exported/model.onnx").is_file()
