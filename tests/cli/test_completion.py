"""Words for the shell."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from amr.cli.keys.completion import SCRIPTS, words

COMMANDS = {"fit": [], "analyze": ["--ckpt", "--clips"], "compare": ["--out"], "completion": [], "configs": []}


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (["co"], ["compare", "completion", "configs"]),
        (["analyze", "--c"], ["--ckpt", "--clips"]),
        (["fit", "--config", "resn"], ["resnet18"]),
        (["fit", "--config", "model/sm"], ["model/small"]),
        (["fit", "--model.amr.wei"], ["--model.amr.weight"]),
        (["fit", "--data", "amr.datamodules.Cr"], ["amr.datamodules.CremaD"]),
        (["fit", "--data", "amr.datamodules.CremaD", "--data.ogm"], ["--data.ogm_split"]),
        (["fit", "--wandb", "o"], ["offline", "online"]),
        (["fit", "--dominance.train", ""], ["false", "true"]),
        (["completion", "z"], ["zsh"]),
        (["methods", "mm"], ["mmcosine", "mmpareto"]),
        (["analyze", "runs/"], []),
    ],
)
def test_words(typed: list[str], found: list[str]) -> None:
    assert words(typed, COMMANDS) == found


def test_keys_of_the_trainer_are_offered() -> None:
    assert "--trainer.max_epochs" in words(["fit", "--trainer.max"], COMMANDS)


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_is_one_that_the_shell_reads(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    file = tmp_path / "amr.completion"
    file.write_text(SCRIPTS[shell])
    subprocess.run([shell, "-n", str(file)], check=True)


def test_bash_completes_by_asking_amr(tmp_path: Path) -> None:
    command = tmp_path / "amr"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m amr "$@"\n')
    command.chmod(0o755)
    script = f"""{SCRIPTS["bash"]}
PATH={tmp_path}:$PATH
COMP_WORDS=(amr fit --config resn); COMP_CWORD=3
_amr; echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "resnet18"
