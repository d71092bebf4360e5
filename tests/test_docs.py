"""The documents' examples run, and their links lead somewhere."""

import json
import re
from pathlib import Path

import pytest

from amr.cli import main
from tests.conftest import REPOSITORY

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", prose):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_named_in_commands_exist(page: Path) -> None:
    for path in re.findall(r"\b(?:configs|benchmarks|docs|tests)/[\w./-]*\w\.\w+", page.read_text()):
        assert any((folder / path).exists() for folder in (REPOSITORY, page.parent)), path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("example", "name"), [("norm_penalty", "norm_penalty+amr"), ("mean_pixel", "amr"), ("product", "amr")]
)
def test_extending(example: str, name: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / "docs/extending.md").read_text()
    for _, block in re.findall(r"```(python|yaml)\n(.*?)```", text, re.DOTALL):
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    files = ["--config", str(tmp_path / f"{example}.yaml"), "--config", str(REPOSITORY / "configs/methods/amr.yaml")]
    run = ["--runs_dir", str(tmp_path), "--name", "run", "--wandb", "disabled", "--trainer.max_epochs", "1"]
    assert main(["fit", *tiny, *files, *run]) == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["method"] == name
