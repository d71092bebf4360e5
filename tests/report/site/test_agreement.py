"""`amr agreement`: of two people who named units."""

import json
from pathlib import Path
from typing import Any

import pytest

from amr.cli import main


def export(path: Path, names: Any, checkpoint: str = "a" * 64, format: str = "amr-concepts-1") -> str:
    path.write_text(
        json.dumps({"format": format, "checkpoint": checkpoint, "run": "a", "names": names}), encoding="utf-8"
    )
    return str(path)


def nominal(pairs: list[tuple[str, str]]) -> float:
    """Alpha of two raters without gaps, by definition: disagreement within units against that among all."""
    values = [value for pair in pairs for value in pair]
    within = sum(a != b for a, b in pairs) / len(pairs)
    n = len(values)
    among = sum(values[i] != values[j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return 1 - within / among


def test_alpha(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = {"1": "Plosive", "2": "fricative", "3": "  lips   closed", "4": "Cafe\u0301", "5": "vowel", "9": "only mine"}
    other = {
        "1": "plosive ",
        "2": "nasal",
        "3": "Lips closed",
        "4": "CAFÉ",
        "5": "plosive",
        "7": "only yours",
        "8": " ",
    }
    assert main(["agreement", export(tmp_path / "a.json", one), export(tmp_path / "b.json", other)]) == 0
    said = capsys.readouterr().out
    pairs = [("p", "p"), ("f", "n"), ("l", "l"), ("c", "c"), ("v", "p")]
    assert "6 and 6 units named, 5 of them by both; 3 of these alike" in said
    assert f"{nominal(pairs):.3f}" in said
    assert "unit 2: 'fricative' / 'nasal'" in said
    assert "unit 1:" not in said


def test_one_name_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agreement", export(tmp_path / "a.json", {"1": "x"}), export(tmp_path / "b.json", {"1": "X"})]) == 0
    assert "undefined, for all have one name" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": {"2": "x"}}, "no unit has a name in both (1 and 1 have one)"),
        ({"names": {"1": "x"}, "checkpoint": "b"}, "it names units of another checkpoint"),
        ({"names": {"1": "x"}, "format": "else"}, "it is no export of the site (format 'amr-concepts-1')"),
        ({"names": {"one": "x"}}, "names must map units' numbers to text"),
        ({"names": ["x"]}, "it is no export of the site"),
    ],
)
def test_bad_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any], message: str) -> None:
    good = export(tmp_path / "a.json", {"1": "x"})
    assert main(["agreement", good, export(tmp_path / "b.json", **content)]) == 2
    assert message in capsys.readouterr().err


def test_no_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = export(tmp_path / "a.json", {"1": "x"})
    (tmp_path / "b.json").write_text("{")
    assert main(["agreement", good, str(tmp_path / "b.json")]) == 2
    assert main(["agreement", good, str(tmp_path / "c.json")]) == 2
    said = capsys.readouterr().err
    assert "not JSON" in said
    assert "No such file" in said
