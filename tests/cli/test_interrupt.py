"""Ctrl-C in every command: one line that says how to continue, status 130, no traceback."""

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amr.cli import main
from tests.conftest import REPOSITORY

COMMANDS = {
    "compare": ("amr.cli.compare", "run", ["RUN"], "repeat the command"),
    "analyze": ("amr.cli.analyze", "run", ["--ckpt", "x", "--out", "y"], "the same command resumes"),
    "export": ("amr.cli.export", "run", ["--ckpt", "x", "--out", "y"], "repeat the command"),
    "site": ("amr.cli.site", "run", ["x", "--out", "y"], "the same command resumes"),
    "demo": ("amr.cli.demo", "run", [], "the same command resumes"),
    "prepare": ("amr.cli.runs.commands", "run_prepare", [], "the same command resumes"),
    "benchmark": ("amr.cli.benchmark.command", "run", [], "the same command resumes"),
    "test": ("amr.cli.fit", "run", [], "repeat the command"),
}


@pytest.fixture
def _handler() -> Iterator[None]:
    """Lightning leaves Ctrl-C without effect."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("command", COMMANDS)
def test_one_line_and_130(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module, name, arguments, hint = COMMANDS[command]

    def interrupted(_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(module), name, interrupted)
    assert main([command, *arguments]) == 130
    assert capsys.readouterr().err.strip().splitlines() == [f"amr: {command} was interrupted; {_whole(hint)}"]


def _whole(hint: str) -> str:
    return hint if "resumes" in hint else f"nothing is half written; {hint}"


@pytest.mark.usefixtures("_handler")
@pytest.mark.filterwarnings("ignore")
def test_in_the_middle_of_test(tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Lightning turns Ctrl-C into an exit with status 1."""
    few = ["--trainer.max_epochs", "1", "--wandb", "disabled", "--runs_dir", str(tmp_path), "--name", "r"]
    assert main(["fit", *tiny, *few]) == 0
    capfd.readouterr()
    act = '{"class_path": "tests.faults.Signal", "init_args": {"hook": "on_test_batch_start", "call": 1, "number": 2}}'
    given = ["--ckpt_path", str(tmp_path / "r/checkpoints/last.ckpt"), f"--trainer.callbacks+={act}"]
    assert main(["test", *given, "--wandb", "disabled", "--trust", "tests"]) == 130
    printed = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert printed[-1] == "amr: test was interrupted; nothing is half written; repeat the command"
    assert not any("Traceback" in line or "KeyboardInterrupt" in line for line in printed)


@pytest.mark.parametrize("group", [True, False], ids=["terminal", "process"])
def test_workers_end_at_once_and_silently(group: bool) -> None:
    """As a terminal's Ctrl-C, which all processes get, and as one that only the first gets."""
    code = (
        "import amr.cli, importlib, sys\n"
        "from amr.utils.work import run_tasks\n"
        "from tests.datamodules.store import deadly\n"
        "if __name__ == '__main__':\n"
        "    main = importlib.import_module('amr.cli.main')\n"
        "    main._dispatch = lambda _: list(run_tasks(deadly.sleep, [(600.0,)] * 4, workers=2))\n"
        "    sys.argv[1:] = ['prepare']\n"
        "    sys.exit(amr.cli.main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "asleep\n"
    os.killpg(process.pid, signal.SIGINT) if group else process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.strip().splitlines() == ["amr: prepare was interrupted; the same command resumes"]
