"""What strangers may put into a checkpoint or a run's folder, and what comes of it: one line, and nothing is run."""

import copy
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from amr.classifier import FusionClassifier
from amr.cli import main
from amr.encoders import SmallCNN
from amr.load import load_model
from amr.regularizers import UMT
from amr.report.card import write_card
from amr.utils.errors import UserError
from amr.utils.trust import check, only_trusted, packages, take_trust, trusting

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's and W&B's own; ours are tested where they arise
IMPORTED = "amr.cli.runs.slurm.subprocess"  # a module within a module of ours
ENCODER = {"class_path": "amr.encoders.SmallCNN", "init_args": {"width": 4, "out_dim": 8}}
CODE = """
from pathlib import Path

from amr.encoders import SmallCNN

Path({proof!r}).write_text("imported")


class Encoder(SmallCNN):
    pass


def make(*args, **kwargs):
    Path({proof!r}).write_text("called")
"""


@pytest.fixture
def proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is there once anything of the stranger's package has been imported; or a shell's command has run."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/stranger.py").write_text(CODE.format(proof=str(tmp_path / "proof")))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield tmp_path / "proof"
    sys.modules.pop("stranger", None)


def model_of(names: Mapping[str, Any] | tuple[str, ...] = ("audio",)) -> FusionClassifier:
    return FusionClassifier({name: SmallCNN(width=4, out_dim=8) for name in names}, num_classes=4)


def checkpoint(path: Path, section: Any, names: tuple[str, ...] = ("audio",)) -> Path:
    """A checkpoint with sound weights and the given `model` section."""
    model = model_of(names)
    facts = {"modalities": list(names), "num_classes": 4, "model": section, "seed": 0, "methods": {}}
    torch.save({"amr": facts, "state_dict": model.state_dict()}, path)
    return path


SECTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a function": ({"fusion": "stranger.make"}, "model.fusion: stranger.make may not be built"),
    "a function of Python's": ({"fusion": "subprocess.call"}, "subprocess.call may not be built"),
    "a class": ({"encoders": {"audio": {"class_path": "stranger.Encoder"}}}, "--trust stranger"),
    "a class, in short": ({"encoders": {"audio": "stranger.Encoder"}}, "--trust stranger"),
    "without a package": ({"fusion": "Concat"}, "must be a class's whole import path"),
    "a class in an argument": (
        {"fusion": {"class_path": "amr.fusion.Concat", "init_args": {"hidden": {"class_path": "stranger.make"}}}},
        "model.fusion.init_args.hidden.class_path: stranger.make may not",
    ),
    "a class in a further argument": (
        {"fusion": {"class_path": "amr.fusion.Concat", "dict_kwargs": {"x": [{"class_path": "stranger.make"}]}}},
        "model.fusion.dict_kwargs.x.0.class_path: stranger.make may not",
    ),
    "under a dotted key": ({"encoders": {"audio": ENCODER}, "mmcosine": {"a.class_path": "os.system"}}, "os.system"),
    "a method": ({"extra": ["stranger.make"]}, "model.extra.0: stranger.make may not"),
    "a list of methods that is none": ({"extra": {"class_path": "stranger.make"}}, "stranger.make may not"),
    "mmcosine": ({"mmcosine": "stranger.make"}, "model.mmcosine: stranger.make may not"),
    "through a module of ours": ({"fusion": f"{IMPORTED}.call"}, f"there is no {IMPORTED}.call"),
    "a module that ours imports": ({"fusion": IMPORTED}, f"{IMPORTED} is not a class"),
    "a class that ours imports": ({"fusion": "amr.cli.fit.WandbLogger"}, "WandbLogger"),
    "a function of ours": ({"fusion": "amr.load.load_model"}, "amr.load.load_model is not a class"),
    "a method of a class of ours": ({"fusion": "amr.fusion.Concat.combine"}, "there is no amr.fusion.Concat.combine"),
    "a class of ours of another base": (
        {"fusion": "amr.encoders.SmallCNN"},
        "not a subclass of amr.fusion.base.Fusion",
    ),
    "a method for an encoder": ({"encoders": {"audio": "amr.regularizers.AMR"}}, "not a subclass of amr.encoders"),
    "a path that is no path": ({"fusion": "amr.fusion.Concat; import os"}, "must be a class's whole import path"),
    "a path of a file": ({"fusion": "/home/stranger.yaml"}, "must be a class's whole import path"),
    "a number": ({"fusion": {"class_path": 3}}, "class_path=a value of type int: must be"),
    "arguments in a file": (
        {"fusion": {"class_path": "amr.fusion.Concat", "init_args": "stranger.yaml"}},
        "model.fusion.init_args is not a mapping",
    ),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_checkpoint_builds_nothing_but_ours(name: str, tmp_path: Path, proof: Path) -> None:
    section, message = SECTIONS[name]
    path = checkpoint(tmp_path / "a.ckpt", {"encoders": {"audio": ENCODER}, **section})
    with pytest.raises(UserError) as caught:
        load_model(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not proof.exists()


def test_modalities_names_come_first(tmp_path: Path, proof: Path) -> None:
    """`subprocess.call({"sh": 8, "-c": 8, ...}, 4)` would be a command."""
    words = ("sh", "-c", f"id > {proof}")
    section = {"encoders": dict.fromkeys(words, ENCODER), "fusion": "subprocess.call"}
    facts = {"modalities": list(words), "num_classes": 4, "model": section}
    torch.save({"amr": facts, "state_dict": {}}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="'-c' cannot name a modality"):
        load_model(tmp_path / "a.ckpt")
    assert not proof.exists()


def test_what_the_user_trusts_is_built(tmp_path: Path, proof: Path) -> None:
    theirs = {"audio": {**ENCODER, "class_path": "stranger.Encoder"}}
    path = checkpoint(tmp_path / "a.ckpt", {"encoders": theirs, "fusion": "amr.fusion.Concat"})
    for other in ((), ("strange",), ("stranger.Encode",)):
        with pytest.raises(UserError, match=r"--trust stranger, in Python load_model\(path, trust=\('stranger',\)\)"):
            load_model(path, trust=other)
    assert not proof.exists()
    encoder = load_model(path, trust=("stranger",)).encoders["audio"]
    assert type(encoder).__module__ == "stranger"
    with trusting(["stranger.Encoder"]):
        load_model(path)
    with pytest.raises(UserError):
        load_model(path)  # trust ends with its block
    function = checkpoint(tmp_path / "b.ckpt", {"encoders": {"audio": ENCODER}, "fusion": "stranger.make"})
    with pytest.raises(UserError, match=r"stranger\.make is not a class"):
        load_model(function, trust=("stranger",))
    assert proof.read_text() == "imported"


def test_a_teacher_is_a_checkpoint_as_any_other(tmp_path: Path, proof: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", {"encoders": {"audio": ENCODER}, "fusion": "stranger.make"})
    method = UMT({"audio": str(path)})
    with pytest.raises(UserError, match=r"model\.umt\.teachers\.audio=.*stranger\.make may not be built"):
        method.setup(model_of().model)
    assert not proof.exists()


def test_jsonargparse_itself_imports_nothing_else(proof: Path) -> None:
    """The second fence, for a place that the first does not know."""
    from amr.utils.parser import OneLineParser

    parser = OneLineParser()
    parser.add_class_arguments(FusionClassifier, "model")
    given = {"encoders": {"audio": ENCODER}, "num_classes": 4}
    for name in ("stranger.make", f"{IMPORTED}.call", "subprocess.call"):
        with only_trusted(), pytest.raises(UserError, match="neither of amr nor under a --trust|subprocess"):
            parser.parse_object({"model": {**given, "fusion": name}})
    with pytest.raises(UserError, match="denylist"):  # for what the user types, its own list holds
        parser.parse_object({"model": {**given, "fusion": "subprocess.call"}})
    assert not proof.exists()
    with pytest.raises(UserError, match="Expected 'stranger.make' to be a function that returns"):
        parser.parse_object({"model": {**given, "fusion": "stranger.make"}})
    assert proof.exists()  # the fence is gone again


def test_messages_import_nothing(proof: Path) -> None:
    from amr.utils.parser import OneLineParser

    message = (
        "Option 'x' is not accepted <class 'stranger.Encoder'> Errors:\n - Option 'x' is not accepted\nGiven value"
    )
    assert "Option 'x'" in OneLineParser()._explain(message)
    assert not proof.exists()


def test_take_trust() -> None:
    arguments = ["fit", "--trust", "a", "--name", "x", "--trust=b.C", "--trust"]
    assert take_trust(arguments) == (["fit", "--name", "x"], ["a", "b.C", ""])
    for prefix in ("", "-x", "a..b", "a b", "a.", "a/b", "*"):
        with pytest.raises(UserError, match="--trust="), trusting([prefix]):
            pass


def test_packages_of_the_users_own_grid() -> None:
    section = {
        "model": {
            "encoders": {"audio": ENCODER, "video": {"class_path": "mine.Encoder"}},
            "optimizer": {"class_path": "torch.optim.SGD"},
            "extra": ["other.package.Method"],
        },
        "trainer": {"strategy": "auto", "callbacks": [{"class_path": "pytorch_lightning.callbacks.Timer"}]},
    }
    assert packages(section) == {"mine", "other"}


def test_bounds() -> None:
    deep: Any = {}
    for _ in range(100):
        deep = {"a": deep}
    with pytest.raises(UserError, match="more than 40 deep"):
        check(deep, "f")
    bomb: Any = ["x"] * 10
    for _ in range(9):
        bomb = [bomb] * 10
    with pytest.raises(UserError, match="more than 10000 values"):
        check({"data": {"class_path": "amr.datamodules.Clips", "init_args": {"x": bomb}}}, "f")
    itself: dict[str, Any] = {}
    itself["a"] = itself
    with pytest.raises(UserError, match="deep"):
        check(itself, "f")


# ------------------------------------------------------------------------------------------------------- run folders


@pytest.fixture(scope="module")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    arguments = ["--runs_dir", str(folder), "--name", "run", "--wandb", "disabled", "--trainer.max_epochs", "1"]
    assert main(["fit", *tiny, *arguments]) == 0
    return folder / "run"


def strangers(run: Path, to: Path, key: str, value: Any) -> Path:
    """A copy of a run whose config.yaml has one other value."""
    shutil.copytree(run, to)
    config = yaml.safe_load((to / "config.yaml").read_text())
    section, (*path, last) = config, key.split(".")
    for part in path:
        section = section[part]
    section[last] = value
    (to / "config.yaml").write_text(yaml.safe_dump(config))
    return to


PLACES = {
    "data": {"class_path": "stranger.Encoder"},
    "data.init_args.audio": {"class_path": "stranger.make"},
    "model.fusion": {"class_path": "stranger.make"},
    "model.optimizer": {"class_path": "stranger.make"},
    "model.lr_scheduler": "stranger.make",
    "model.amr": {"class_path": "stranger.make"},
    "model.extra": [{"class_path": "stranger.make"}],
    "trainer.callbacks": ["stranger.make"],
    "trainer.logger": {"class_path": "stranger.make"},
    "trainer.profiler": {"class_path": "stranger.make"},
    "trainer.plugins": [{"class_path": "stranger.make"}],
    "trainer.strategy": "stranger.make",
    "best": {"class_path": "stranger.make"},
    "model": "stranger.yaml",
}


@pytest.mark.parametrize("key", PLACES)
def test_a_strangers_run_builds_nothing_but_ours(key: str, run: Path, tmp_path: Path, proof: Path, capsys: Any) -> None:
    folder = strangers(run, tmp_path / "run", key, PLACES[key])
    path = str(folder / "checkpoints/best.ckpt")
    commands = [[command, "--ckpt_path", path, "--wandb", "disabled"] for command in ("test", "validate", "predict")]
    if key.startswith("data"):
        commands += [[command, "--ckpt", path, "--out", str(tmp_path / "out")] for command in ("export", "analyze")]
    for command in commands:
        capsys.readouterr()
        assert main(command) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amr: ")]
        assert "config.yaml: " + key.partition(".")[0] in line
    assert main(["compare", str(folder), "--out", str(tmp_path / "page.html")]) in (0, 2)
    write_card(folder)  # reads, and builds nothing
    assert not proof.exists()


def test_a_callback_that_calls_what_it_is_told_is_refused(run: Path, tmp_path: Path, proof: Path, capsys: Any) -> None:
    callback = {
        "class_path": "pytorch_lightning.callbacks.LambdaCallback",
        "init_args": {"on_test_start": "stranger.make"},
    }
    folder = strangers(run, tmp_path / "run", "trainer.callbacks", [callback])
    arguments = ["test", "--ckpt_path", str(folder / "checkpoints/best.ckpt"), "--wandb", "disabled"]
    assert main(arguments) == 2
    assert "LambdaCallback may not be built" in capsys.readouterr().err
    assert main([*arguments, "--trust", "pytorch_lightning"]) == 2  # whose function is still nobody's
    assert "stranger.make" in capsys.readouterr().err
    assert not proof.exists()


def test_lightnings_own_callbacks_and_optimizers_are_known(run: Path, tmp_path: Path) -> None:
    stopping = {"class_path": "pytorch_lightning.callbacks.EarlyStopping", "init_args": {"monitor": "val/acc"}}
    folder = strangers(run, tmp_path / "run", "trainer.callbacks", [stopping])
    schedule = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 3}}
    folder = strangers(folder, tmp_path / "again", "model.lr_scheduler", schedule)
    assert main(["test", "--ckpt_path", str(folder / "checkpoints/best.ckpt"), "--wandb", "disabled"]) == 0


def test_predict_writes_where_the_user_says(run: Path, tmp_path: Path) -> None:
    folder = strangers(run, tmp_path / "run", "out", str(tmp_path / "profile"))
    assert main(["predict", "--ckpt_path", str(folder / "checkpoints/best.ckpt")]) == 0
    assert not (tmp_path / "profile").exists()
    assert (folder / "predictions.parquet").is_file()


def test_what_is_typed_is_as_before(tmp_path: Path, proof: Path, tiny: list[str]) -> None:
    """`fit` takes any class; the run it leaves is tested with --trust, or with its configuration named."""
    theirs = copy.deepcopy(ENCODER) | {"class_path": "stranger.Encoder"}
    more = ["--runs_dir", str(tmp_path), "--name", "own", "--wandb", "disabled", "--trainer.max_epochs", "1"]
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump({"model": {"encoders": {"audio": theirs}}}))
    assert main(["fit", *tiny, *more, "--config", str(config)]) == 0
    assert proof.exists()
    best = str(tmp_path / "own/checkpoints/best.ckpt")
    test = ["test", "--ckpt_path", best, "--wandb", "disabled"]
    assert main(test) == 2
    assert main([*test, "--trust", "stranger"]) == 0
    assert main([*test, "--config", str(tmp_path / "own/config.yaml")]) == 0
    assert main(["export", "--ckpt", best, "--out", str(tmp_path / "out"), "--format", "torch"]) == 2
    trusted = ["--trust", "other", "--trust=stranger"]
    assert main(["export", "--ckpt", best, "--out", str(tmp_path / "out"), "--format", "torch", *trusted]) == 0
    assert "trust" not in yaml.safe_load((tmp_path / "own/config.yaml").read_text())


def test_a_damaged_checkpoint_is_refused_by_every_command(
    run: Path, tmp_path: Path, tiny: list[str], capsys: Any
) -> None:
    """An edit that leaves the archive sound; the checksum is of the tensors."""
    damaged = tmp_path / "runs/run"
    shutil.copytree(run, damaged)
    for name in ("best", "last"):
        path = damaged / f"checkpoints/{name}.ckpt"
        content = torch.load(path, weights_only=True)
        assert "checksum" in content
        content["state_dict"]["model.head.classifier.bias"][0] += 1e-6
        torch.save(content, path)
    best, quiet = str(damaged / "checkpoints/best.ckpt"), ["--wandb", "disabled"]
    again = ["fit", *tiny, "--runs_dir", str(tmp_path / "runs"), *quiet]
    for command in (
        *([name, "--ckpt_path", best, *quiet] for name in ("test", "validate", "predict")),
        *([name, "--ckpt", best, "--out", str(tmp_path / "out")] for name in ("export", "analyze")),
        [*again, "--name", "run", "--ckpt_path", "last"],
        [*again, "--name", "student", "--model.umt.teachers", f"{{audio: {best}}}"],
    ):
        capsys.readouterr()
        assert main(command) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amr: ")]
        assert "is damaged: its tensors have another checksum; use another checkpoint" in line
