"""`amr demo`: its mistakes, and that what it prints is true; tests/test_wheel.py runs it from the wheel."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from amr.cli import main
from amr.report import read_run


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


def test_the_printed_lines_train_the_same_model_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both models are tested and stand in the table; a line that the demo prints repeats a model bit for bit."""
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", "my demo", "--clips", "60", "--epochs", "1", "--explained", "0"]) == 0
    printed, said = capsys.readouterr()
    assert "demo: 60 clips and 1 epochs; with fewer than 1200 and 10 the models may stay near chance" in said
    lines = [shlex.split(line)[1:] for line in printed.splitlines() if line.startswith("  amr fit ")]
    assert [line[-1] for line in lines] == ["naive-again", "amr-again"]
    runs = tmp_path / "my demo/runs"
    assert [bool(read_run(runs / name).test) for name in ("naive", "amr")] == [True, True]
    assert main(lines[1]) == 0
    first, again = (torch.load(runs / name / "checkpoints/last.ckpt")["state_dict"] for name in ("amr", "amr-again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(".hidden." in key for key in first)  # stage C explains this layer's units
    assert json.loads((runs / "amr/run.json").read_text())["labels"][:2] == ["300 Hz, 0°", "424 Hz, 30°"]
