"""The notebooks of this folder: executes them and stores their outputs, and shows them as pages of the documentation.

    python -m examples.notebooks

executes all of them in one kernel and stores what they print and draw. mkdocs.yml names this file as a hook,
which turns each notebook into a page `notebooks/NAME` and executes nothing.
"""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

FOLDER = Path(__file__).parent
NOTEBOOKS = ("first_run", "balance_your_data", "explain_a_model", "your_own_method", "transformers_model")
"""Their names, in the order in which they are read."""


def read(name: str) -> Any:
    """A notebook by its name."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]


def executed(folder: Path) -> Mapping[str, Any]:
    """Executes every notebook, in a folder of its own within `folder`.

    One kernel runs them all, so that libraries are imported once; names are cleared in between.

    Returns:
        Each notebook with its outputs, by name. What goes to stderr (progress, logs) is left out.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    from nbclient import NotebookClient

    notebooks = {name: read(name) for name in NOTEBOOKS}
    cells = []
    for name, notebook in notebooks.items():
        (folder / name).mkdir()
        cells += [nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {folder / name}"), *notebook.cells]  # type: ignore[no-untyped-call]
    metadata = notebooks[NOTEBOOKS[0]].metadata
    merged = nbformat.v4.new_notebook(cells=cells, metadata=metadata)  # type: ignore[no-untyped-call]
    NotebookClient(merged, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    for notebook in notebooks.values():
        for cell in notebook.cells:
            cell.metadata = {}
            if cell.cell_type == "code":
                cell.execution_count = None
                cell.outputs = _stored(cell.outputs)
    return notebooks


def _stored(outputs: list[Any]) -> list[Any]:
    """Outputs without stderr. What was printed before and after a line of it is one again: slow machines have more."""
    kept: list[Any] = []
    for output in (output for output in outputs if output.get("name") != "stderr"):
        if output.output_type == "execute_result":
            output.execution_count = None
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


# -------------------------------------------------------------------------------- as pages of the documentation


class NotebookFile(File):
    """A notebook, which the site shows as a page."""

    def is_documentation_page(self) -> bool:
        """True: it has a page, as a Markdown file has."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds `notebooks/NAME.ipynb` to the files of the site; mkdocs calls it."""
    for name in NOTEBOOKS:
        path = f"notebooks/{name}.ipynb"
        file = NotebookFile(path, None, config.site_dir, config.use_directory_urls, inclusion=InclusionLevel.INCLUDED)
        file.abs_src_path = str(FOLDER / f"{name}.ipynb")
        files.append(file)
    return files


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:  # noqa: ARG001
    """A notebook's page in Markdown, None for every other page; mkdocs calls it."""
    return as_markdown(read(Path(page.file.src_uri).stem)) if isinstance(page.file, NotebookFile) else None


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Makes links between docs/ and examples/ lead to the site's pages; mkdocs calls it."""
    if isinstance(page.file, NotebookFile):
        return markdown.replace("](../docs/", "](../")
    return re.sub(r"\]\(((?:\.\./)*)\.\./examples/(\w+\.ipynb)", r"](\1notebooks/\2", markdown)


def as_markdown(notebook: Any) -> str:
    """Text, code and outputs of a notebook, in order."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(_fenced("python", cell.source))
        parts += [_shown(output) for output in cell.outputs]
    return "\n\n".join(parts) + "\n"


def _shown(output: Any) -> str:
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        return f"![What the cell above draws](data:image/png;base64,{''.join(data['image/png'].split())})"
    return str(data["text/markdown"]) if "text/markdown" in data else _fenced("text", data["text/plain"].rstrip("\n"))


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for name, notebook in executed(Path(scratch)).items():
            nbformat.write(notebook, FOLDER / f"{name}.ipynb")  # type: ignore[no-untyped-call]
