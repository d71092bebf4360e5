"""The notebooks of examples/ run from top to bottom, and their stored outputs are those of an execution."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from mkdocs.config import load_config
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from examples import notebooks
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """All notebooks, executed by one kernel: its start and the imports are most of the time."""
    folder = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "jupyter"))
        return notebooks.executed(folder)


def outputs(notebook: Any) -> list[tuple[str, str]]:
    """Each output's kind, and its text with every number as `#`: last digits differ between machines."""
    kinds = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            kind = next(kind for kind in ("image/png", "text/markdown", "text/plain") if kind in data)
            text = "" if kind == "image/png" else re.sub(r"[-+±]?\d[\d.]*", "#", "".join(data[kind]))
            kinds.append((kind, re.sub(r"[ -]{2,}", " ", text)))
    return kinds


def test_every_notebook_is_known() -> None:
    assert {path.stem for path in (REPOSITORY / "examples").glob("*.ipynb")} == set(notebooks.NOTEBOOKS)


@pytest.mark.parametrize("name", notebooks.NOTEBOOKS)
def test_it_is_short(name: str) -> None:
    sources = [cell.source for cell in notebooks.read(name).cells if cell.cell_type == "code"]
    lines = [line for source in sources for line in source.splitlines()]
    assert len([line for line in lines if line.strip() and not line.lstrip().startswith("#")]) < 80


@pytest.mark.parametrize("name", notebooks.NOTEBOOKS)
def test_stored_outputs_are_those_of_an_execution(name: str, executed: Mapping[str, Any]) -> None:
    stored = outputs(notebooks.read(name))
    assert any(kind != "text/plain" for kind, _ in stored)  # a picture or a table
    assert outputs(executed[name]) == stored, "python -m examples.notebooks stores what has changed"


def test_what_is_printed_around_a_line_of_progress_is_one_output() -> None:
    def printed(name: str, text: str) -> Any:
        return nbformat.v4.new_output("stream", name=name, text=text)  # type: ignore[no-untyped-call]

    drawn = nbformat.v4.new_output("display_data", data={"image/png": ""})  # type: ignore[no-untyped-call]
    given = [
        printed("stdout", "a\n"),
        printed("stderr", "50 %"),
        printed("stdout", "b\n"),
        drawn,
        printed("stdout", "c\n"),
    ]
    assert [output.get("text") for output in notebooks._stored(given)] == ["a\nb\n", None, "c\n"]


def test_pages_of_the_site(tmp_path: Path) -> None:
    config = load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(tmp_path))
    files = notebooks.on_files(Files([]), config)
    assert [file.src_uri for file in files.documentation_pages()] == [
        f"notebooks/{n}.ipynb" for n in notebooks.NOTEBOOKS
    ]
    first = Page(None, files.src_uris["notebooks/first_run.ipynb"], config)
    page = notebooks.on_page_read_source(first, config)
    assert page is not None
    assert page.startswith("# First run\n")
    assert page.count("```python\n") == sum(cell.cell_type == "code" for cell in notebooks.read("first_run").cells)
    assert "(data:image/png;base64,iVBOR" in page
    assert "```text\nnaive: accuracy" in page
    assert "](../concepts.md)" in notebooks.on_page_markdown(page, first, config, files)


def test_links_to_notebooks_lead_to_their_pages() -> None:
    class Elsewhere:
        file = None

    def linked(text: str) -> str:
        return notebooks.on_page_markdown(text, Elsewhere(), None, None)  # type: ignore[arg-type]

    assert linked("[a](../examples/first_run.ipynb)") == "[a](notebooks/first_run.ipynb)"
    assert linked("[a](../../examples/first_run.ipynb)") == "[a](../notebooks/first_run.ipynb)"
    assert linked("`examples/train.sbatch`") == "`examples/train.sbatch`"
