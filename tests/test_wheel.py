"""The wheel, installed into a clean environment and used in an empty folder: nothing of the checkout takes part."""

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from amr.utils.names.configs import shipped
from tests.conftest import REPOSITORY

COMMANDS = """
import json, sys
from pathlib import Path

checkout, ours = sys.argv[1], sys.argv[2]
opened = set()

def note(event, arguments):
    if event == "open" and str(arguments[0]).startswith(checkout) and not str(arguments[0]).startswith(ours):
        opened.add(str(arguments[0]))

sys.addaudithook(note)
import amr
from amr.cli import main

for command in json.loads(Path("commands.json").read_text()):
    command = [str(next(Path().glob(word))) if "*" in word else word for word in command]
    assert main(command) == 0, command
files = sorted({str(m.__file__) for name, m in sys.modules.items() if name.partition(".")[0] == "amr" and m.__file__})
Path("outcome.json").write_text(json.dumps({"amr": files, "opened": sorted(opened)}))
"""
"""Runs commands in a process, whose start is what takes long, and notes what of the checkout was opened."""

OWN_DATA = re.search(r"## Your own clips.*?```sh\n(.*?)```", (REPOSITORY / "docs/data.md").read_text(), re.DOTALL)
AFTERWARDS = re.search(
    r"## Test, predict, export.*?```sh\n(.*?)```", (REPOSITORY / "docs/runs.md").read_text(), re.DOTALL
)


def commands_of(block: re.Match[str] | None) -> list[list[str]]:
    """A document's commands, without `amr`."""
    assert block is not None
    lines = block[1].replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment's programs, with the wheel; its dependencies are those of the tests' environment."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = folder.glob("amr_fusion-*.whl")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--disable-pip-version-check", str(wheel)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # not its .pth files: amr is ours alone
    return python.parent


def run(command: Sequence[str], folder: Path) -> str:
    """Runs a program in the folder, which is its home, too; returns what it printed."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "WANDB_"))}
    done = subprocess.run(command, cwd=folder, env={**own, "HOME": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_file_of_the_package_is_in_the_wheel(installed: Path) -> None:
    """Pages' scripts and styles, the help's text, `py.typed`."""
    folders = {"amr": REPOSITORY / "amr", "amr/configs": REPOSITORY / "configs"}
    paths = {f"{name}/{file.relative_to(top)}": file for name, top in folders.items() for file in top.rglob("*")}
    expected = {name for name, file in paths.items() if file.is_file() and "__pycache__" not in file.parts}
    (wheel,) = installed.parents[1].glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.startswith("amr/")} == expected


def test_configurations_are_found_by_name(installed: Path, tmp_path: Path) -> None:
    listed = run([str(installed / "amr"), "configs"], tmp_path)
    folder, *lines = listed.splitlines()
    assert Path(folder.removesuffix(":")).is_relative_to(installed.parent)
    assert [line.split()[0] for line in lines] == list(shipped())
    run([str(installed / "amr"), "configs", "copy", "resnet18"], tmp_path)
    assert (tmp_path / "resnet18.yaml").read_bytes() == shipped()["model/resnet18"].read_bytes()


def test_the_demo_and_own_clips(installed: Path, tmp_path: Path) -> None:
    """The demo on few clips, then the documents' commands for one's own, on the demo's clips."""
    _, fit = commands_of(OWN_DATA)
    fit[fit.index("own")] = "naive"
    small = ["--data.video.size", "16", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    small += ["--trainer.accelerator", "cpu", "--data.num_workers", "0", "--data.prepare_workers", "1"]
    after = [command for command in commands_of(AFTERWARDS) if command[0] != "export"]  # tests/test_export.py
    assert [command[0] for command in after] == ["test", "predict"]
    demo = ["demo", "--clips", "60", "--epochs", "1", "--explained", "0"]
    clips = {"clips.csv": "demo/clips/*/clips.csv"}
    by_name = [clips.get(word, word.removeprefix("configs/").removesuffix(".yaml")) for word in fit]
    commands = [demo, [*by_name, *small], *after]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    run([str(installed / "python"), "-c", COMMANDS, str(REPOSITORY), sys.prefix], tmp_path)
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert all(Path(file).is_relative_to(installed.parent) for file in outcome["amr"])
    assert outcome["opened"] == []
    for made in ("demo/report.html", "demo/runs/amr/run.json", "runs/naive/predictions.parquet"):
        assert (tmp_path / made).is_file(), made
