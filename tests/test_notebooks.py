"""The notebooks of examples/ run from top to bottom, as they stand there, and are as short as they claim."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("ignore")
NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def code(path: Path) -> list[str]:
    """Lines of code."""
    lines = [line for cell in read(path).cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def test_there_are_two() -> None:
    assert [path.name for path in NOTEBOOKS] == ["three_modalities.ipynb", "torchvision_encoder.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_short_and_holds_no_results(path: Path) -> None:
    assert len(code(path)) < 60
    assert [cell for cell in read(path).cells if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    notebook = read(path)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    assert "test/acc" in text or "Naive fusion w/ AMR" in text
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert pictures == (2 if path.stem == "three_modalities" else 0)
