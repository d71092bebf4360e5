"""`import amr`: its names, how little it loads, and the names of version 0.1."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import amr
from amr.utils.names.moved import MOVED, current
from tests.conftest import REPOSITORY


def test_importing_amr_loads_nothing_heavy() -> None:
    code = "import sys, amr; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pytorch_lightning", "av", "pyarrow", "wandb", "sklearn", "yaml"} & set(loaded)


@pytest.mark.parametrize("name", amr.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(amr, name) is not None
    assert name in dir(amr)


def test_every_method_is_a_public_name() -> None:
    from amr import regularizers

    found = {name: getattr(regularizers, name) for name in regularizers.__all__}
    methods = {n for n, m in found.items() if isinstance(m, type) and issubclass(m, regularizers.Regularizer)}
    assert methods <= set(amr.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'amr' has no attribute 'nope'"):
        _ = amr.nope


@pytest.mark.parametrize("old", MOVED)
def test_names_of_version_0_1_still_import(old: str) -> None:
    new = import_module(MOVED[old])
    spec = new.__spec__
    module = import_module(old)
    assert new.__spec__ is spec
    name = next(n for n in vars(new) if not n.startswith("_"))
    assert getattr(module, name) is getattr(new, name)


def test_a_module_within_a_package_that_moved() -> None:
    assert current("amr.compare.table") == "amr.report.table"
    assert current("amr.fusion") is None
    assert import_module("amr.compare.table") is import_module("amr.report.table")
    assert import_module("amr.multiviz.site.pack") is import_module("amr.report.site.pack")


def test_the_command_finds_a_class_in_the_current_folder(tmp_path: Path) -> None:
    """As docs/extending.md has it, with the installed command, whose own folder is first on the path."""
    (tmp_path / "mine.py").write_text("print('imported')\n")
    (tmp_path / "yaml.py").write_text("raise SystemExit('a package is hidden')\n")
    code = "import sys; sys.argv[1:] = ['--version']; from amr.cli import main; main(); import mine, yaml"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout.split()) == (0, [amr.__version__, "imported"]), done.stderr


def test_the_installed_command_builds_extendings_method_from_any_folder(tmp_path: Path) -> None:
    """The first example of docs/extending.md, in a folder of its own, by the installed script."""
    script = Path(sys.executable).with_name("amr")
    if not script.is_file():
        pytest.skip(f"{script} is not there: amr is not installed beside this Python")
    page = (REPOSITORY / "docs/extending.md").read_text(encoding="utf-8")
    for name, block in re.findall(r"```\w+\n# (norm_penalty\.\w+)\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(block)
    files = ["model/small", "norm_penalty.yaml", "amr"]
    configs = [word for file in files for word in ("--config", file)]
    done = subprocess.run(
        [str(script), "fit", "--data", "synthetic", *configs, "--print_config"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load(done.stdout)
    assert resolved["data"]["class_path"] == "amr.datamodules.Synthetic"
    assert resolved["model"]["extra"] == [{"class_path": "norm_penalty.NormPenalty", "init_args": {"weight": 0.001}}]


def test_python_m_amr_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "amr", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == amr.__version__
