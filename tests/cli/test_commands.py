"""Commands as functions: a run's folder is enough, and what a run's own file says of W&B is not followed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import amr
from amr.cli import fit as fit_module
from amr.cli import main
from amr.utils.errors import UserError
from tests.processes import other_process_holds

QUIET = {"wandb": "disabled", "trainer.max_epochs": 1}


@pytest.fixture(scope="module")
def trained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, made from Python."""
    _, config, *data = tiny
    places = dict(zip((key.removeprefix("--") for key in data[::2]), data[1::2], strict=True))
    runs = tmp_path_factory.mktemp("commands")
    return amr.fit(config, name="one", options={**QUIET, **places, "runs_dir": runs})


def test_fit_gives_the_runs_folder(trained: Path) -> None:
    assert trained.name == "one"
    assert (trained / "checkpoints/best.ckpt").is_file()


def test_a_runs_folder_is_its_checkpoint_everywhere(trained: Path, tmp_path: Path) -> None:
    best = trained / "checkpoints/best.ckpt"
    one, other = amr.load_model(trained).state_dict(), amr.load_model(best).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in other)
    assert amr.compare([best], tmp_path / "a.html") == amr.compare([trained], tmp_path / "b.html")
    measured = amr.test(trained, options={"wandb": "disabled"})
    assert {"test/acc", "test/loss"} <= set(measured)
    written = amr.predict(trained, tmp_path / "predictions.parquet")
    assert written == tmp_path / "predictions.parquet"
    assert written.is_file()


def test_other_data_than_the_runs_own(trained: Path, tmp_path: Path) -> None:
    """By a file, over the run's own model and trainer: a split that has other clips gives another loss."""
    content = yaml.safe_load((trained / "config.yaml").read_text())["data"]
    content["init_args"]["clips_seed"] = 1
    content["init_args"]["root"], content["init_args"]["store"] = str(tmp_path / "clips"), str(tmp_path / "store")
    file = tmp_path / "other.yaml"
    file.write_text(yaml.safe_dump({"data": content}))
    options = {"wandb": "disabled"}
    own, other = amr.validate(trained, options=options), amr.validate(trained, data=file, options=options)
    assert own.keys() == other.keys()
    assert own["val/loss"] != other["val/loss"]
    assert amr.verify(file) == amr.verify("amr.datamodules.Synthetic", options=content["init_args"])


def test_a_runs_folder_by_position_and_by_option(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(trained), "--ckpt", str(trained), "--out", "x"]) == 2
    assert "--ckpt: is given twice" in capsys.readouterr().err
    assert main(["analyze", "--out", "x"]) == 2
    assert "--ckpt: must be given" in capsys.readouterr().err


def test_a_teacher_is_a_runs_folder(trained: Path) -> None:
    with pytest.raises(UserError, match=r"model\.umt\.teachers\.audio=.*best\.ckpt is a model of 'audio', 'video'"):
        amr.fit(
            trained / "config.yaml",
            name="taught",
            options={**QUIET, "runs_dir": trained.parent, "model.umt.teachers": {"audio": str(trained)}},
        )


def test_an_export_is_alone_in_its_folder_and_leaves_no_lock(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    with other_process_holds(out, beside=True), pytest.raises(UserError, match="is in use by process"):
        amr.export(trained, out, format="torch")
    assert amr.export(trained, out, format="torch") == ["model.pt2"]
    assert not [path.name for path in (*out.iterdir(), *tmp_path.iterdir()) if "lock" in path.name]


class AskedError(UserError):
    """Raised in place of a W&B run."""


@pytest.mark.parametrize("more", [[], ["--wandb", "online"]], ids=["the file's", "the user's"])
def test_only_the_user_sends_to_wandb(
    more: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stranger's run says `wandb: online`; its test is recorded offline unless the user says online, too."""
    folder = tmp_path / "stranger"
    shutil.copytree(trained, folder)
    config = folder / "config.yaml"
    assert "wandb: disabled" in config.read_text()
    config.write_text(config.read_text().replace("wandb: disabled", "wandb: online"))

    def logger(**given: Any) -> None:
        raise AskedError(f"offline={given['offline']} mode={given['mode']}")

    monkeypatch.setattr(fit_module, "WandbLogger", logger)
    assert main(["test", str(folder), *more]) == 2
    said = capsys.readouterr().err
    assert ("offline=False mode=None" if more else "offline=True mode=offline") in said
