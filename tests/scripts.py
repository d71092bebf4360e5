"""Scripts of docs/ as modules, and rows of the tables that they write."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.conftest import REPOSITORY

STUDY = REPOSITORY / "docs" / "study"


def script(path: Path) -> ModuleType:
    """A Python file as a module, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}".replace("-", "_"), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def line(row: str, seed: int, measure: str, value: float, grid: str = "methods", **more: Any) -> dict[str, Any]:
    """A line of the table that docs/study/measure.py writes."""
    at = {"dataset": "letters", "grid": grid, "row": row, "seed": seed, "measure": measure, "value": value}
    return {"modality": "", "corruption": "", "severity": None, "epoch": None, **at, **more}
