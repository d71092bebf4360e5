"""The model card: made by `fit`, brought up to date by `test`, of what the run's files say and nothing else."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from amr.cli import main
from amr.datamodules import VGGSound
from amr.evaluation.runs import SHARES
from amr.evaluation.table import Row, write_rows
from amr.report.card import write_card

pytestmark = pytest.mark.filterwarnings("ignore")

HEADINGS = [  # of Mitchell et al. 2019
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Ethical considerations",
    "Caveats and recommendations",
]


@pytest.fixture(scope="module")
def cards(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run, its card after `fit`, and after `test`."""
    folder = tmp_path_factory.mktemp("card")
    amr = ["--model.amr.weight", "0.5", "--trainer.max_epochs", "1", "--seed_everything", "3"]
    assert main(["fit", *tiny, *amr, "--runs_dir", str(folder), "--name", "run", "--wandb", "disabled"]) == 0
    first = (folder / "run/card.md").read_text()
    assert main(["test", "--ckpt_path", str(folder / "run/checkpoints/best.ckpt"), "--wandb", "disabled"]) == 0
    return folder / "run", first, (folder / "run/card.md").read_text()


def sections(card: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)\n", card, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def table(text: str, index: int = 0) -> list[list[str]]:
    """Cells of the index-th table, without the line below its head."""
    blocks = [block for block in text.split("\n\n") if block.strip().startswith("|")]
    lines = blocks[index].strip().splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [cells[0], *cells[2:]]


def last_values(run: Path) -> dict[str, float]:
    values: dict[str, float] = {}
    for file in sorted(run.glob("metrics/version_*/metrics.csv")):
        for row in csv.DictReader(file.open()):
            values |= {key: float(value) for key, value in row.items() if value}
    return values


def test_fit_makes_it_and_its_numbers_are_the_metrics(cards: tuple[Path, str, str]) -> None:
    run, first, tested = cards
    for card in (first, tested):
        assert list(sections(card)) == HEADINGS
    values = last_values(run)
    assert table(sections(first)["Quantitative analyses"])[0] == ["", "validation"]
    head, *rows = table(sections(tested)["Quantitative analyses"])
    assert head == ["", "validation", "test"]
    rows = [[name.replace("\\_", "_"), *numbers] for name, *numbers in rows]
    shares = [f"{kind}/{m}" for kind in SHARES for m in ("audio", "video")]
    assert [row[0] for row in rows] == ["acc", "mAP", "loss", *shares]
    for name, val, test in rows:
        assert val == f"{values[f'val/{name}']:.4f}"
        assert test == f"{values[f'test/{name}']:.4f}"
    _, *by_class = table(sections(tested)["Quantitative analyses"], 1)
    with (run / "per_class.csv").open() as file:
        expected = {row["class"]: row for row in csv.DictReader(file) if row["split"] == "test"}
    assert len(by_class) == 4
    for name, clips, accuracy, *_ in by_class:
        assert (int(clips), float(accuracy)) == (int(expected[name]["clips"]), float(expected[name]["acc"]))


def test_it_says_what_was_trained_on_what(cards: tuple[Path, str, str]) -> None:
    run, first, _ = cards
    details = dict(table(sections(first)["Model details"]))
    assert details["method"] == r"Naive fusion w/ AMR \(amr\)"
    assert details["model.amr.weight"] == "0.5"
    assert (details["seed"], details["epochs"], details["fusion"]) == ("3", "1 of 1", "Concat")
    assert details["encoder of audio"] == "amr.encoders.SmallCNN"
    assert f"torch {torch.__version__.partition('+')[0]}" in details["versions"].replace("\\", "")
    facts = json.loads((run / "run.json").read_text())
    assert facts["clips"] == {"train": 44, "val": 8, "test": 8}
    assert "44 training clips, of 60 listed in all. Splits: 70, 15 and 15 % of each class" in first
    assert "8 validation clips, 8 test clips, of 60" in first


def test_it_says_what_was_not_measured(cards: tuple[Path, str, str]) -> None:
    _, first, tested = cards
    untested, unmeasured = "It was not tested", "when a modality is missing or goes wrong was not measured"
    assert untested in first
    assert unmeasured in first
    assert untested not in tested
    assert unmeasured in tested
    assert "One run, of seed 3" in tested


def test_its_command_trains_the_same_model(cards: tuple[Path, str, str]) -> None:
    run, first, _ = cards
    (command,) = re.findall(r"```sh\namr (.*)\n```", first)
    assert main([*shlex.split(command), "--wandb", "disabled"]) == 0
    a, b = (
        torch.load(run.parent / f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("run", "run-again")
    )
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for key, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][key]), key


def test_robustness_of_the_last_test_alone(cards: tuple[Path, str, str], tmp_path: Path) -> None:
    run = shutil.copytree(cards[0], tmp_path / "run")
    rows = [
        Row("auc", "audio", "mean", None, 0.4, 0.3, 0.5, 8),
        Row("acc_missing_zeros", "video", "", None, 0.625, 0.25, 0.875, 8),
        Row("acc_corrupted", "audio", "noise", 3, 0.1, 0.0, 0.2, 8),
        Row("probe", "audio", "", None, 0.2, 0.1, 0.3, 8),
    ]
    write_rows(run / "robustness.parquet", rows)
    write_card(run)
    card = (run / "card.md").read_text()
    assert table(sections(card)["Quantitative analyses"], 2)[1:] == [
        [r"acc\_missing\_zeros", "video", "", "0.6250", "0.2500", "0.8750", "8"],
        ["auc", "audio", "mean", "0.4000", "0.3000", "0.5000", "8"],
    ]
    assert "was not measured" not in card
    later = run / "metrics/version_9"
    later.mkdir()
    (later / "metrics.csv").write_text("epoch,step,train/loss,val/acc\n1,9,0.5,\n1,9,,0.75\n")
    write_card(run)
    card = (run / "card.md").read_text()
    assert "0.6250" not in card
    assert "It was not tested" in card
    assert "epoch 1, the first with the highest accuracy" in card


def test_labels_are_text(cards: tuple[Path, str, str], tmp_path: Path) -> None:
    run = shutil.copytree(cards[0], tmp_path / "run")
    evil = "<img src=x onerror=alert(1)>|`a`[b](http://c)\n# d"
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "labels": [evil, *facts["labels"][1:]], "dataset": evil}))
    lines = (run / "per_class.csv").read_text().splitlines()
    quoted = '"' + evil + '"'
    (run / "per_class.csv").write_text("\n".join([lines[0], *(line.replace("class0", quoted) for line in lines[1:])]))
    write_card(run)
    card = (run / "card.md").read_text()
    assert list(sections(card)) == HEADINGS
    assert "<" not in card
    assert "](http" not in card
    assert r"\|\`a\`\[b\]\(http" in card
    head, *rows = table(sections(card)["Quantitative analyses"], 1)
    assert all(len(row) == len(head) for row in rows)


def test_a_card_that_cannot_be_written_spoils_no_run(cards: tuple[Path, str, str], tmp_path: Path, capsys: Any) -> None:
    run = shutil.copytree(cards[0], tmp_path / "run")
    (run / "robustness.parquet").write_text("half")
    assert main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), "--wandb", "disabled"]) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("amr: "))
    assert line.startswith(f"amr: no model card: {run}/robustness.parquet: cannot be read")


def test_every_data_module_says_how_it_splits(tmp_path: Path) -> None:
    (tmp_path / "vggsound.csv").write_text("a,0,x,train\nb,0,x,train\nc,0,y,test\n")
    data = VGGSound(tmp_path, val_fraction=0.5)
    assert data.split_kind == "the official test list; 0.5 of the training videos, split_seed 0, validate"
