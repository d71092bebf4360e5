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
    r"^(What|That|Which) (?!the store has)": "name the thing: `Score that is attributed`, not `What is attributed`",
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


DIALECT = (
    r"\b(anew|lest|goes on|went on|which is told|what there is|refused beside|not at hand|commonest|for want of"
    r"|[Uu]nder load|[Oo]racles?|in the place of|that there (is|are)(?=[.,;:)]))\b"
)
PER = (  # "per clip", not "a clip"
    r"\b([Oo]ne|[Aa] (row|line|mark|map|script|record|list|token|value|score|part|trial|number)|prototype|classifier"
    r"|threads?|columns?|seconds) a (clip|modality|class|seed|row|run|step|unit|batch|method|core|fusion|text|number"
    r"|group|reason|value|problem)\b"
)
HEADLINE = r"\A\s*Of (?!course)"  # a headline says what a thing is: `Seed of the draws`, not `Of the draws`
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def test_no_dialect_in_pages() -> None:
    """In prose; code and titles of cited works are left out."""
    found = []
    for page in PAGES:
        prose = re.sub(r"```.*?```|`[^`]*`|\"[^\"]*\"", "", page.read_text(), flags=re.DOTALL)
        patterns = [DIALECT, PER]
        found += [
            f"{page.relative_to(REPOSITORY)}: {m[0]}" for pattern in patterns for m in re.finditer(pattern, prose)
        ]
    assert found == []


def test_no_dialect_in_docstrings() -> None:
    """In headlines and paragraphs, of classes, functions and documented constants."""
    found = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    prose = re.sub(r"`[^`]*`|\"[^\"]*\"", "", text)
                    found += [
                        f"{file.relative_to(REPOSITORY)}: {match[0]}"
                        for pattern in (DIALECT, PER, HEADLINE)
                        for match in re.finditer(pattern, prose)
                    ]
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


@pytest.mark.parametrize(
    ("line", "phrase"),
    [("Of the noise.", "^Of "), ("Rows a clip, one a class.", " a "), ("What is explained.", "What")],
)
def test_the_search_finds_them(line: str, phrase: str) -> None:
    (text,) = argument_lines(f'def f(x):\n    """What.\n\n    Args:\n        x: {line}\n    """\n')
    assert any(phrase in pattern and re.search(pattern, text) for pattern in PHRASES)


@pytest.mark.parametrize(
    ("pattern", "found", "not_found"),
    [
        (DIALECT, "DGL is refused beside it.", "A refused file lies beside it."),
        (DIALECT, "All masks that there are.", "It finds that there are two."),
        (DIALECT, "*Oracles.* XOR.", "An oracular word."),
        (PER, "A row a problem, one prototype a class.", "One row of a class, a row per class, one at a time."),
        (HEADLINE, "Of the predicted class.", "Of course it is."),
    ],
)
def test_the_patterns_find_what_they_should(pattern: str, found: str, not_found: str) -> None:
    assert re.search(pattern, found)
    assert not re.search(pattern, not_found)
