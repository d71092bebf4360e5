"""Explanations during training: what is logged, that nothing else changes, and that time is kept."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning.loggers import WandbLogger

from amr.callbacks import MultiVizCallback
from amr.cli import main
from amr.load import load_model
from amr.multiviz.analysis.analysis import datamodule
from amr.multiviz.crossmodal import emap_gap
from amr.utils.errors import UserError


def fit(tiny: list[str], folder: Path, name: str, *more: str) -> Path:
    run = ["--runs_dir", str(folder), "--name", name, "--trainer.max_epochs", "4", "--wandb", "disabled"]
    assert main(["fit", *tiny, *run, *more]) == 0
    return folder / name


WITH = ["--trainer.callbacks+", "amr.callbacks.MultiVizCallback", "--trainer.callbacks.every_n_epochs", "2"]
WITH += ["--trainer.callbacks.clips", "2"]


@pytest.fixture(scope="module")
def runs(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, images, tables = tmp_path_factory.mktemp("multiviz"), [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultiVizCallback, "clock", staticmethod(lambda: 0.0))  # time stands still: nothing is left out
        patch.setattr(WandbLogger, "log_image", lambda self, key, images_, **kw: images.append((key, images_, kw)))
        patch.setattr(
            WandbLogger, "log_table", lambda self, key, columns, data, **kw: tables.append((key, columns, data))
        )
        explained = fit(tiny, folder, "explained", *WITH, "--wandb", "offline")
    (folder / "images").mkdir()
    for step, (key, pictures, options) in enumerate(images):
        assert key == "val/multiviz/maps"
        assert len(pictures) == len(options["caption"]) == 2
        for n, picture in enumerate(pictures):
            picture.save(folder / f"images/{step}-{n}.png")
    assert len(images) == 2  # epochs 1 and 3
    tables = [table for table in tables if table[0].startswith("val/multiviz")]
    assert [table[:2] for table in tables] == [("val/multiviz/sparse", ["class", "unit", "coefficient"])] * 2
    assert all(table[2] for table in tables)
    return {"plain": fit(tiny, folder, "plain"), "explained": explained}


def rows(run: Path) -> list[dict[str, str]]:
    with next((run / "metrics").rglob("metrics.csv")).open() as file:
        return [row for row in csv.DictReader(file) if row.get("val/multiviz/emap_gap")]


def test_it_changes_nothing_that_is_trained(runs: dict[str, Path]) -> None:
    plain, explained = (load_model(runs[name] / "checkpoints/last.ckpt").state_dict() for name in runs)
    assert plain.keys() == explained.keys()
    assert all(torch.equal(plain[key], explained[key]) for key in plain)


def test_what_is_logged_is_what_the_functions_say(runs: dict[str, Path]) -> None:
    found = rows(runs["explained"])
    assert [int(row["epoch"]) for row in found] == [1, 3]

    data = datamodule(yaml.safe_load((runs["explained"] / "config.yaml").read_text())["data"])
    data.setup()
    model = load_model(runs["explained"] / "checkpoints/last.ckpt")
    batches = list(data.val_dataloader())
    with torch.no_grad():
        parts = [model.encode(batch["inputs"]) for batch in batches]
    encodings = {m: torch.cat([part[m] for part in parts]) for m in model.modalities}
    gap = emap_gap(model, encodings, torch.cat([batch["label"] for batch in batches]))
    assert float(found[-1]["val/multiviz/emap_gap"]) == pytest.approx(gap, abs=1e-6)
    assert float(found[-1]["val/multiviz/interaction"]) >= 0


def test_time_is_kept(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    ticks = iter(range(0, 10**6, 10))  # ten seconds from one look at the clock to the next
    monkeypatch.setattr(MultiVizCallback, "clock", staticmethod(lambda: float(next(ticks))))
    run = fit(tiny, tmp_path, "hurried", *WITH)
    assert "left out at epoch 1: prediction" in capsys.readouterr().err
    assert len(rows(run)) == 2  # the first piece is always logged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": []}, "stages=.*must be at least one of unimodal, crossmodal, prediction"),
        ({"stages": ["x"]}, "stages=.*must be at least one of unimodal, crossmodal, prediction"),
        ({"every_n_epochs": 0}, "every_n_epochs=0: must be 1 or more"),
        ({"clips": 0}, "clips=0: must be 1 or more"),
        ({"budget": 0.0}, "budget=0.0: must be above 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MultiVizCallback(**options)
