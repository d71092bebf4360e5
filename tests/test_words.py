"""Phrases that made readers stop, and may not come back into the lines on arguments."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.conftest import REPOSITORY

FILES = sorted((REPOSITORY / "amr").rglob("*.py"))
PHRASES = {
    r"^Of (?!course)": "say what it is: `Seed of the draws`, not `Of the draws`",
    r"\b(rows?|frames?|numbers?|images?|vectors?|once|one|\)) a (clip|class|modality|row|batch|step|unit)\b": (
        "`per clip`, not `a clip`"
    ),
    r"\banew\b": "again",
    r"\blest\b": "otherwise",
    r"\bgoes on\b": "continues, or resumes",
    r"\bwhich is told\b": "which is reported",
}


def argument_lines(text: str) -> Iterator[str]:
    """What each documented argument, attribute, result and error is said to be: the text after `name: `."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            for line in (ast.get_docstring(node) or "").splitlines():
                if match := re.match(r"\s+\*{0,2}\w+: (.*)", line):
                    yield match[1]


DIALECT = r"\b(anew|lest|goes on|went on|which is told|what there is)\b"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def test_no_dialect_in_pages() -> None:
    """In prose; code and titles of cited works are left out."""
    found = []
    for page in PAGES:
        prose = re.sub(r"```.*?```|`[^`]*`|\"[^\"]*\"", "", page.read_text(), flags=re.DOTALL)
        found += [f"{page.relative_to(REPOSITORY)}: {match[0]}" for match in re.finditer(DIALECT, prose)]
    assert found == []


def test_phrases_that_may_not_come_back() -> None:
    found = [
        f"{file.relative_to(REPOSITORY)}: {line!r}: {instead}"
        for file in FILES
        for line in argument_lines(file.read_text())
        for phrase, instead in PHRASES.items()
        if re.search(phrase, line)
    ]
    assert found == []


@pytest.mark.parametrize(("line", "phrase"), [("Of the noise.", "^Of "), ("Rows a clip, one a class.", " a ")])
def test_the_search_finds_them(line: str, phrase: str) -> None:
    (text,) = argument_lines(f'def f(x):\n    """What.\n\n    Args:\n        x: {line}\n    """\n')
    assert any(phrase in pattern and re.search(pattern, text) for pattern in PHRASES)
