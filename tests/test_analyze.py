"""`amr analyze` from the command line: what it writes, how it goes on, what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from amr import analyze
from amr.analyze import STAGES, Analysis, _slug
from amr.cli import main
from amr.load import load_model
from amr.multiviz.crossmodal import modality_shapley
from amr.multiviz.unimodal import occlusion


@pytest.fixture(scope="module")
def checkpoint(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analyzed")
    run = ["--runs_dir", str(folder), "--name", "run", "--wandb", "disabled", "--trainer.max_epochs", "2"]
    assert main(["fit", *tiny, *run]) == 0
    return folder / "run/checkpoints/best.ckpt"


def command(checkpoint: Path, out: Path, *more: str) -> list[str]:
    return ["analyze", "--ckpt", str(checkpoint), "--out", str(out), "--clips", "3", "--samples", "16", *more]


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(command(checkpoint, out)) == 0
    return out


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def test_every_analysis_is_written(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    tables = ["unimodal", "crossmodal", "modalities", "representation", "prediction", "units", "errors", "trust"]
    assert {f"{name}.parquet" for name in tables} <= names
    assert {"summary.md", "plan.json", "images", "encodings-test.pt"} <= names
    assert "parts" not in names
    found = rows(whole / "unimodal.parquet")
    assert {row["modality"] for row in found} == {"audio", "video"}
    assert len({row["id"] for row in found}) == 3
    methods = {
        "gradient",
        "gradient_input",
        "integrated_gradients",
        "gradient_shap",
        "occlusion",
        "lime",
        "kernel_shap",
    }
    assert methods <= {row["method"] for row in found}
    assert {"start_s", "end_s", "low_hz", "high_hz"} == set(json.loads(found[0]["where"]))
    pairs = {row["method"] for row in rows(whole / "crossmodal.parquet")}
    assert pairs == {"ablation", "second_order", "joint_lime", "joint_shap", "dime_unimodal", "dime_multimodal"}
    page = (whole / "summary.md").read_text()
    assert all(part in page for part in ("Accuracy", "EMAP", "Errors", "insertion gain"))


def test_what_is_written_is_what_the_functions_say(whole: Path, checkpoint: Path) -> None:
    model = load_model(checkpoint)
    kept = torch.load(whole / "encodings-test.pt", weights_only=True)
    found = rows(whole / "modalities.parquet")
    chosen = [kept["ids"].index(row["id"]) for row in found]
    encodings = {m: e[chosen] for m, e in kept["encodings"].items()}
    expected = modality_shapley(model, encodings, "mean", "predicted")
    np.testing.assert_allclose([[row["shapley_audio"], row["shapley_video"]] for row in found], expected, atol=1e-5)
    config = yaml.safe_load((checkpoint.parents[1] / "config.yaml").read_text())
    data = analyze._datamodule(config["data"])
    data.setup()
    dataset = data.clips_of("test")
    place = next(i for i, clip in enumerate(dataset.clips) if clip.id == found[0]["id"])
    inputs = {m: x[None] for m, x in dataset[place]["inputs"].items()}
    values = occlusion(model, inputs, "video", "predicted", data.atoms("video")).values[0]
    written = [
        row["value"]
        for row in rows(whole / "unimodal.parquet")
        if (row["id"], row["modality"], row["method"]) == (found[0]["id"], "video", "occlusion")
    ]
    np.testing.assert_allclose(written, values, atol=1e-5)


def test_pictures_can_be_looked_at(whole: Path) -> None:
    pictures = sorted((whole / "images").iterdir())
    assert len(pictures) == 3
    image = np.asarray(Image.open(pictures[0]).convert("RGB")).astype(int)
    assert image.shape[1] > 1000
    colourful = np.abs(image - image.mean(2, keepdims=True)).max(2) > 20  # maps are coloured, inputs here as well
    assert colourful.mean() > 0.05


def test_it_goes_on_where_it_stopped(
    whole: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    draw = Analysis._draw

    def stop(self: Analysis, position: int, *args: Any) -> None:
        calls.append(position)
        if len(calls) == 3:
            raise KeyboardInterrupt
        draw(self, position, *args)

    monkeypatch.setattr(Analysis, "_draw", stop)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        main(command(checkpoint, out))
    assert len(list((out / "parts").iterdir())) == 2
    assert main(command(checkpoint, out)) == 0
    assert len(calls) == 4  # the third clip again, the first two not
    for name in ("unimodal", "crossmodal", "modalities", "errors", "trust"):
        assert (out / f"{name}.parquet").read_bytes() == (whole / f"{name}.parquet").read_bytes(), name


def test_a_finished_analysis_is_left_alone(whole: Path, checkpoint: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in whole.glob("*.parquet")}
    assert main(command(checkpoint, whole)) == 0
    assert {path.name: path.stat().st_mtime_ns for path in whole.glob("*.parquet")} == before


def test_one_modality(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--runs_dir", str(tmp_path), "--name", "a", "--wandb", "disabled", "--trainer.max_epochs", "1"]
    alone = ["--model.encoders", '{"audio": {"class_path": "amr.encoders.SmallCNN"}}']
    assert main(["fit", *tiny, *alone, "--data.init_args.modalities", "[audio]", *run]) == 0
    out = tmp_path / "out"
    stages = ["--stages", "unimodal", "crossmodal", "errors"]
    assert main(command(tmp_path / "a/checkpoints/best.ckpt", out, *stages)) == 0
    assert "one modality has nothing to interact with" in capsys.readouterr().err
    assert {row["modality"] for row in rows(out / "unimodal.parquet")} == {"audio"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clips", "1"], "--clips=1: at least 2 are needed"),
        (["--clips", "2"], "it holds an analysis of another clips; name another folder"),
        (["--seed", "1", "--split", "val"], "it holds an analysis of another split, seed; name another folder"),
        (["--data", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--ckpt", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["--stages", "x"], f"invalid choice: 'x' (choose from {', '.join(map(repr, STAGES))})"),
    ],
)
def test_bad_input(whole: Path, checkpoint: Path, capsys: Any, arguments: list[str], message: str) -> None:
    assert main([*command(checkpoint, whole), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_names_of_files() -> None:
    assert _slug("-abc_000030") == "-abc_000030"
    assert _slug("../../etc") != _slug("../../etd")
    assert "/" not in _slug("a/b")
    assert "." not in _slug("../x")
