"""What is told of a wrong command line, without torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from amr.cli import main
from amr.cli.keys import schema
from amr.cli.keys.check import check
from amr.cli.keys.help import text
from amr.cli.main import COMMANDS
from amr.utils.errors import UserError
from amr.utils.names.configs import shipped
from amr.utils.names.places import checkpoint_of
from tests.conftest import REPOSITORY


def test_the_schema_is_that_of_the_code() -> None:
    assert schema.build() == schema.read(), "run python -m amr.cli.keys.schema"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trainer.max_epoch", "3"], r"--trainer\.max_epoch: unknown key; did you mean max_epochs\?"),
        (["--trainr.max_epochs", "3"], r"--trainr\.max_epochs: unknown key; did you mean trainer\?"),
        (["--nam", "x"], r"--nam: unknown key; did you mean name\?"),
        (["--model.amr.wieght=1"], r"--model\.amr\.wieght: unknown key; did you mean weight\?"),
        (["--model.amr.init_args.wieght=1"], r"--model\.amr\.wieght: unknown key; did you mean weight\?"),
        (["--model.zzz", "1"], r"--model\.zzz: unknown key; must be one of .*amr, .*umt"),
        (
            ["--data", "amr.datamodules.CremaDD"],
            r"--data=amr\.datamodules\.CremaDD: no such class; did you mean CremaD\?",
        ),
        (["--data", "amr.datamodules.Clips", "--data.csvv", "x"], r"--data\.csvv: unknown key; did you mean csv\?"),
        (["--data.decode.fpss", "1"], r"--data\.decode\.fpss: unknown key; did you mean fps\?"),
        (["--model.fusion", "amr.fusion.Conkat"], r"no such class; did you mean Concat\?"),
        (["--model.encoders.audio", "amr.encoders.SmalCNN"], r"did you mean SmallCNN\?"),
        (["--model.encoders.audio.init_args.widht", "4"], r"--model\.encoders\.audio\.widht: unknown key.*width"),
        (["--config", "resnet81"], r"--config=resnet81: no such file.*resnet18"),
        (["--config=nope.yaml"], r"--config=nope\.yaml: no such file"),
    ],
)
def test_mistakes(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trainer.max_epochs", "3", "--model.amr.weight=-1", "--data.batch_size", "4"],
        ["--trainer.callbacks+=pytorch_lightning.callbacks.Timer", "--trainer.callbacks.duration", "00:01:00:00"],
        ["--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", "1", "--model.optimizer.anything=2"],
        ["--data", "mine.Data", "--data.whatever", "1"],
        ["--model.extra+=mine.Method", "--model.extra.strength", "2"],
        ["--model.umt.teachers", "{audio: a.ckpt}", "--model.umt.teachers.video", "b.ckpt"],
        ["--model.encoders.depth", "mine.Encoder", "--model.encoders.depth.init_args.x", "1"],
        ["--model.amr", "null", "--print_config", "--model.amr.ratio.audio", "0.3"],
        ["--data.help", "Clips", "--model.fusion", "Concat"],
    ],
)
def test_what_is_right_passes(arguments: list[str]) -> None:
    assert check(arguments) == arguments


def test_names_of_configurations_become_paths() -> None:
    assert check(["--config", "amr", "--config=model/small"]) == [
        *("--config", str(shipped()["methods/amr"])),
        f"--config={shipped()['model/small']}",
    ]


@pytest.mark.parametrize("command", ["prepare", "benchmark", "fit"])
def test_every_command_that_takes_configurations_finds_them_by_name(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--data", "synthetic", "--out", "nowhere"] if command == "benchmark" else []
    assert main([command, "--config", "resnet81", *more]) == 2
    assert "amr: --config=resnet81: no such file, and no configuration of amr has this name" in capsys.readouterr().err


@pytest.mark.parametrize("name", [n for n in shipped() if n.split("/")[0] in ("data", "model", "methods", "trainer")])
def test_every_shipped_configuration_passes(name: str) -> None:
    check(["--config", name])


def test_a_file_with_a_wrong_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model:\n  amr: {weigth: 1}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: model\.amr\.weigth: unknown key; did you mean weight\?"):
        check(["--config", str(file)])
    file.write_text("modle: {}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: modle: unknown key; did you mean model\?"):
        check(["--config", str(file)])
    file.write_text("- 1\n")
    with pytest.raises(UserError, match=r"mine\.yaml: must be a mapping"):
        check(["--config", str(file)])
    file.write_text(yaml.safe_dump({"data": {"class_path": "mine.Data", "init_args": {"anything": 1}}}))
    check(["--config", str(file)])


def test_help_shows_ours_first_and_the_trainer_last() -> None:
    shown = text("fit")
    places = [shown.index(title) for title in ("The run", "Data:", "Model", "Methods:", "Lightning's Trainer")]
    assert places == sorted(places)
    for path in schema.read()["keys"]["data"]["classes"]:
        assert path in shown
    assert "teachers, features_weight, predictions_weight" in shown
    assert "--trainer.gradient_clip_val" not in shown
    assert "--trainer.gradient_clip_val" in text("fit", "all")
    assert "--weight float" in text("fit", "AMR")
    with pytest.raises(UserError, match=r"--help AMT: no such class; did you mean"):
        text("fit", "AMT")
    assert max(map(len, text("fit", "all").splitlines())) <= 112


def test_a_run_or_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--ckpt=.*nope\.ckpt does not exist"):
        checkpoint_of(tmp_path / "nope.ckpt", "--ckpt")
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"no checkpoint in this folder; must have .*checkpoints/best\.ckpt"):
        checkpoint_of(tmp_path / "run", "--ckpt")
    (folder / "last.ckpt").touch()
    assert checkpoint_of(tmp_path / "run", "--ckpt") == folder / "last.ckpt"
    (folder / "best.ckpt").touch()
    for given in (tmp_path / "run", folder, folder / "best.ckpt"):
        assert checkpoint_of(given, "--ckpt") == folder / "best.ckpt"
    with pytest.raises(UserError, match=r"did you mean .*best\.ckpt\?"):
        checkpoint_of(folder / "bset.ckpt", "--ckpt")


def test_neither_help_nor_checks_import_torch() -> None:
    code = """
import sys, json
from amr.cli.keys.check import check
from amr.cli.keys.help import text
from amr.cli.main import COMMANDS
text("fit"); check(["--config", "amr", "--trainer.max_epochs", "1"])
heavy = ("torch", "pytorch_lightning", "jsonargparse", "pyarrow", "matplotlib")
print(json.dumps([m for m in heavy if m in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


MISTAKES = (
    "fit --model.zzz 1",
    "fit --wandb onlin",
    "fit --config nope",
    "fit --data synthetik",
    "validate runs/nope",
    "test --ckpt_path nope.ckpt",
    "predict --ckpt nope",
    "prepare --data Nope",
    "prepare --config nope",
    "prepare --data synthetic --data.task nope",
    "prepare --verifi true",
    "benchmark --config nope --data synthetic --out x",
    "benchmark --config table1 --data nope --out x",
    "benchmark --config table1 --data synthetic --out x --only nope",
    "benchmark --config table1 --data synthetic --out x --trainer.max_epoch 3",
    "benchmark --config table1 --data synthetic --out x --wandb onlin",
    "compare nowhere",
    "compare nowhere --oot x",
    "analyze runs/nope --out x",
    "analyze --split zz --out x",
    "export runs/nope --out x",
    "export --format z --out x",
    "site nowhere --out x",
    "agreement nowhere.json nor.json",
    "dashboard --zzz",
    "demo --oot x",
    "demo --epochs 0",
    "configs copy nope",
    "configs lisst",
    "completion zz",
    "methods nope",
    "ensemble nope.ckpt nor.ckpt --out x",
    "fitt",
)


def test_no_command_imports_torch_before_a_mistake_is_told(tmp_path: Path) -> None:
    assert {line.split()[0] for line in MISTAKES} >= set(COMMANDS)
    code = """
import contextlib, io, json, sys
from amr.cli import main
for line in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(line.split())
    print(json.dumps([line, status, said.getvalue(), "torch" in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(MISTAKES),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line for line, *_ in told] == list(MISTAKES)
    for line, status, said, torch_is_there in told:
        assert (status, said.count("\n"), torch_is_there) == (2, 1, False), (line, said)
    assert list(tmp_path.iterdir()) == []
