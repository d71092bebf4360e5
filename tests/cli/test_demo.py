"""`amr demo`'s own mistakes; tests/test_wheel.py runs it."""

from pathlib import Path

import pytest

from amr.cli import main


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("epochs", "0", "must be at least 1"),
        ("clips", "59", "must be at least 60, ten for each class"),
        ("explained", "1", "must be at least 2, or 0 for no site"),
        ("explained", "-1", "must be at least 2, or 0 for no site"),
    ],
)
def test_sizes_are_checked_first(
    option: str, value: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), f"--{option}={value}"]) == 2
    assert capsys.readouterr().err == f"amr: --{option}={value}: {said}\n"
    assert not (tmp_path / "demo").exists()
