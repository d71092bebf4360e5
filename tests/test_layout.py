"""Imports go down, files and folders stay small. `python -m tests.test_layout` prints the floor plan.

The imports are read from the source, those in functions and under TYPE_CHECKING too: an arrow is an arrow.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import pytest

from tests.conftest import LONG, REPOSITORY

ROOT = Path(__file__).parents[1]
FLOORS = (  # lowest first; a room may import from its own floor and from those below
    ("utils",),
    ("attribution", "encoders", "fusion", "datamodules"),
    ("model",),
    ("regularizers", "load"),
    ("classifier",),
    ("evaluation",),
    ("multiviz",),
    ("callbacks",),
    ("report", "exporting"),
    ("cli",),
)
LEVELS = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
LINES, FILES, ENTRIES = 400, 15, 15
NOT_ROOMS = {"py.typed", "configs"}  # entries of amr/ that nobody imports
EXCEPTIONS: set[str] = set()  # which go soon: "importer -> imported", or a file that is too long


def module_name(path: Path) -> str:
    """Dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package in a folder, by its dotted name."""
    files = {module_name(path): path for path in sorted((root / "amr").rglob("*.py"))}
    return {name: path for name, path in files.items() if name not in ("amr", "amr.__main__")}  # the doors


def imports(source: str, known: Mapping[str, Path]) -> Iterator[str]:
    """The package's modules that a source names in an import, wherever the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known or node.module in known:
                    yield whole if whole in known else str(node.module)


def arrows(known: Mapping[str, Path]) -> dict[str, set[str]]:
    """The modules that each module imports. What a package's own __init__ gathers is an arrow to its file."""
    return {name: set(imports(path.read_text(encoding="utf-8"), known)) - {name} for name, path in known.items()}


def room(module: str) -> str:
    """The part of the package directly under amr/ that a module belongs to; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def upward(graph: Mapping[str, set[str]]) -> list[str]:
    """The arrows that go up; those of amr/__init__, which is the door to all rooms, and to it are none."""
    return [
        f"{importer} -> {imported}"
        for importer, targets in sorted(graph.items())
        for imported in sorted(targets)
        if room(importer) and room(imported) and LEVELS[room(imported)] > LEVELS[room(importer)]
    ]


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected sets of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            members: list[str] = []
            while not members or members[-1] != node:
                members.append(stack.pop())
            if len(members) > 1:
                found.append(sorted(members))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def without(graph: Mapping[str, set[str]], known: set[str]) -> dict[str, set[str]]:
    """The graph without the arrows that are listed."""
    return {
        node: {target for target in targets if f"{node} -> {target}" not in known} for node, targets in graph.items()
    }


def floor_plan(root: Path) -> str:
    """The rooms from the top floor down, each with its files, its lines and the rooms that it imports from."""
    known = modules(root)
    graph = arrows(known)
    lines = []
    for level in range(len(FLOORS) - 1, -1, -1):
        for name in FLOORS[level]:
            members = [module for module in known if room(module) == name]
            total = sum(len(known[module].read_text(encoding="utf-8").splitlines()) for module in members)
            below = {room(target) for target in chain.from_iterable(graph[module] for module in members)} - {name, ""}
            order = sorted(below, key=lambda other: (-LEVELS[other], other))
            lines.append(f"{level}  {name:<13}{len(members):>3} files {total:>6} lines  -> {', '.join(order) or '-'}")
    return "\n".join(lines)


MODULES = modules(ROOT)
GRAPH = arrows(MODULES)


def test_every_room_has_a_floor() -> None:
    assert {room(module) for module in MODULES} - {""} == set(LEVELS)


def test_arrows_go_down() -> None:
    assert [arrow for arrow in upward(GRAPH) if arrow not in EXCEPTIONS] == []


def test_no_circle_of_files() -> None:
    assert circles(without(GRAPH, EXCEPTIONS)) == []


def test_files_are_short() -> None:
    counts = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values()
    }
    assert {file: count for file, count in counts.items() if count > LINES and file not in EXCEPTIONS} == {}


def test_folders_are_small() -> None:
    files: defaultdict[str, int] = defaultdict(int)
    for path in MODULES.values():
        files[str(path.parent.relative_to(ROOT))] += 1
    assert {folder: count for folder, count in files.items() if count > FILES} == {}


def test_the_front_door_is_narrow() -> None:
    entries = {path.name for path in (ROOT / "amr").iterdir() if not path.name.startswith("_")} - NOT_ROOMS
    assert len(entries) <= ENTRIES, sorted(entries)


def test_only_data_modules_know_which_modalities_there_are() -> None:
    """No code outside datamodules/ names the modality audio or video; docstrings and messages may give examples."""
    named = []
    for module, path in MODULES.items():
        if room(module) == "datamodules":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in ("audio", "video"):
                named.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert [place for place in named if not re.match(r"amr/cli/demo\.py", place)] == []  # the demo has data of its own


def test_exceptions_are_still_needed() -> None:
    long = {str(path.relative_to(ROOT)) for path in MODULES.values() if len(path.read_text().splitlines()) > LINES}
    tied = {f"{importer} -> {imported}" for importer, targets in GRAPH.items() for imported in targets}
    assert EXCEPTIONS - long - tied == set()


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ({"amr.model": {"amr.cli.main"}}, ["amr.model -> amr.cli.main"]),
        ({"amr.cli.main": {"amr.model"}, "amr.classifier": {"amr.load"}}, []),
    ],
)
def test_an_upward_arrow_is_seen(graph: dict[str, set[str]], found: list[str]) -> None:
    assert upward(graph) == found


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_an_import_in_a_function_is_seen() -> None:
    known = {"amr.load": Path("load.py"), "amr.report": Path("report")}
    source = "def f():\n    from amr.load import load_model\n    import amr.report\n    from amr import load\n"
    assert list(imports(source, known)) == ["amr.load", "amr.report", "amr.load"]


if __name__ == "__main__":
    print(floor_plan(ROOT))


def test_files_that_are_tested_first_exist() -> None:
    assert [name for name in LONG if not (REPOSITORY / "tests" / name).is_file()] == []
