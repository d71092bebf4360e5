"""A run's folder: who may write into it, and what is left of a start that is refused."""

import os
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import WandbLogger

from amr.callbacks.tables import log_table
from amr.cli import main
from amr.utils.distributed import is_first_process
from tests.processes import other_process_holds

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def command(tiny: list[str], tmp_path: Path) -> list[str]:
    options = ["--runs_dir", str(tmp_path), "--name", "same", "--wandb", "disabled", "--trainer.max_epochs", "1"]
    return ["fit", *tiny, *options]


def refusal(capsys: Any) -> str:
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("amr: "))
    return str(line)


@pytest.mark.parametrize("more", [[], ["--ckpt_path", "last"]], ids=["start", "resume"])
def test_a_second_fit_is_refused_while_the_first_is_at_work(
    command: list[str], more: list[str], tmp_path: Path, capsys: Any
) -> None:
    with other_process_holds(tmp_path / "same") as process:
        assert main([*command, *more]) == 2
        assert f"same is in use by process {process} on " in refusal(capsys)
        assert [path.name for path in (tmp_path / "same").iterdir()] == [".lock"]
        assert main([*command, "--trainer.fast_dev_run", "true"]) == 0  # it writes nothing
        assert [path.name for path in (tmp_path / "same").iterdir()] == [".lock"]
    assert main(command) == 0  # the lock is free, and was not left by the refused start


def test_a_refused_start_leaves_no_folder(command: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main([*command, "--trainer.accelerator", "gpu"]) == 2
    assert "gpu" in refusal(capsys)
    assert list(tmp_path.iterdir()) == []


def test_wandb_needs_no_home(tiny: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that is a file can be written by no user, root included."""
    home = tmp_path / "home"
    home.touch()
    for name, value in {"HOME": home, "XDG_DATA_HOME": home, "XDG_CACHE_HOME": home, "XDG_CONFIG_HOME": home}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    command = ["fit", *tiny, "--runs_dir", str(tmp_path / "runs"), "--trainer.max_epochs", "1"]
    assert main([*command, "--name", "run"]) == 0
    assert "WANDB_DATA_DIR" not in os.environ  # the process's next run has another place
    assert {"per_class.csv", "card.md"} <= {path.name for path in (tmp_path / "runs/run").iterdir()}
    assert list((tmp_path / "runs/run/wandb").glob("offline-run-*/files/media/table/per_class*.json"))
    assert "was not logged" not in capsys.readouterr().err
    monkeypatch.setenv("WANDB_DATA_DIR", str(home))
    assert main([*command, "--name", "other"]) == 2
    assert f"WANDB_DATA_DIR={home}: Not a directory; must be a folder to write to" in refusal(capsys)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]


def test_a_table_that_wandb_refuses_ends_no_run(capsys: Any) -> None:
    class Refusing(WandbLogger):
        def __init__(self) -> None:
            pass

        def log_table(self, *_: Any, **__: Any) -> None:
            raise PermissionError("no place for it")

    log_table(Refusing(), "per_class", ["class"], [["a"]])
    assert refusal(capsys) == "amr: W&B's table per_class was not logged: no place for it"


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),  # torchrun, first of the second node
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "0"}, False),  # Lightning's launcher in an interactive job
        ({"NODE_RANK": "1"}, False),  # Lightning's launcher on the second node
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0"}, True),
    ],
)
def test_the_first_process_is_known_by_its_launcher(
    variables: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first
