"""`amr ensemble`: a run out of unimodal runs, whose metrics are those of their added predictions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from scipy.special import softmax
from sklearn.metrics import average_precision_score

import amr
from amr.cli import main
from amr.report import read_run
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def runs(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`audio` and `video`, each alone."""
    folder = tmp_path_factory.mktemp("runs")
    content = yaml.safe_load((REPOSITORY / "tests/conf/tiny.yaml").read_text())
    for name, encoder in content["model"]["encoders"].items():
        hidden = {"class_path": "amr.fusion.Concat", "init_args": {"hidden": 5}}
        model = {"encoders": {name: encoder}, **({"fusion": hidden} if name == "video" else {})}
        (folder / "c.yaml").write_text(yaml.safe_dump({**content, "model": model}))
        options = ["--data.init_args.modalities", f"[{name}]", "--runs_dir", str(folder), "--name", name]
        options += ["--wandb", "disabled", "--trainer.max_epochs", "1"]
        assert main(["fit", "--config", str(folder / "c.yaml"), *tiny[2:], *options]) == 0
    return folder


@pytest.fixture(scope="module")
def predictions(runs: Path) -> dict[str, Any]:
    """Labels (N,) and each modality's logits (N, C) of the test split, by `amr predict`."""
    given: dict[str, Any] = {}
    for name in ("audio", "video"):
        out = runs / f"{name}.parquet"
        assert main(["predict", "--ckpt_path", str(runs / name / "checkpoints/best.ckpt"), "--out", str(out)]) == 0
        table = pq.read_table(out)
        names = json.loads(table.schema.metadata[b"labels"])
        order = np.argsort(table["id"].to_pylist())
        given["label"] = np.array([names.index(label) for label in table["label"].to_pylist()])[order]
        given[name] = np.array(table["logits"].to_pylist())[order]
    return given


@pytest.mark.parametrize(
    ("combination", "method"), [("logits", "ensemble"), ("probabilities", "ensemble_probabilities")]
)
def test_its_metrics_are_of_the_combined_predictions(
    combination: str, method: str, runs: Path, predictions: dict[str, Any], tmp_path: Path
) -> None:
    """Accuracy, mAP and loss by numpy and sklearn, from what each run predicts by itself."""
    out = amr.ensemble([runs / "audio", runs / "video"], tmp_path / "both", combination=combination)
    run = read_run(out)
    assert (run.method, run.fusion, run.seed, run.modalities) == (method, "Ensemble", 0, ("audio", "video"))
    audio, video, label = (predictions[key] for key in ("audio", "video", "label"))
    p = softmax(audio + video, axis=1)
    if combination == "probabilities":
        p = (softmax(audio, axis=1) + softmax(video, axis=1)) / 2
    assert run.test["test/acc"] == pytest.approx(np.mean(p.argmax(1) == label))
    assert run.test["test/loss"] == pytest.approx(-np.log(p[np.arange(len(p)), label]).mean(), rel=1e-5)
    each = [average_precision_score(label == c, p[:, c]) for c in range(p.shape[1])]
    assert run.test["test/mAP"] == pytest.approx(np.mean(each), rel=1e-5)


def test_it_is_a_run_like_any_other(runs: Path, tmp_path: Path, capsys: Any) -> None:
    """By the command; its model is the members' parts, and the table has it by its name."""
    out = tmp_path / "both"
    command = ["ensemble", str(runs / "audio"), str(runs / "video"), "--out", str(out), "--wandb", "disabled"]
    assert main(command) == 0
    model, alone = amr.load_model(out / "checkpoints/best.ckpt"), amr.load_model(runs / "video/checkpoints/best.ckpt")
    assert model.modalities == ("audio", "video")
    parts = {key.replace("head.", "head.heads.video."): value for key, value in alone.state_dict().items()}
    assert all(torch.equal(model.state_dict()[key], value) for key, value in parts.items())
    capsys.readouterr()
    assert main(["compare", str(runs / "audio"), str(out), "--out", str(tmp_path / "a.html")]) == 0
    assert "| Ensemble" in capsys.readouterr().out
    assert main(command) == 2
    assert f"--out={out}: must be a new folder, it holds a run already" in capsys.readouterr().err


def test_what_does_not_fit_is_named(runs: Path, tmp_path: Path, capsys: Any) -> None:
    def refused(*given: str | Path) -> str:
        assert main(["ensemble", *map(str, given), "--out", str(tmp_path / "x"), "--wandb", "disabled"]) == 2
        assert not (tmp_path / "x").exists()
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("amr: "))
        return str(line)

    assert "must be two runs at least" in refused(runs / "audio")
    assert "'audio' is there already; must be of another modality" in refused(runs / "audio", runs / "audio")
    assert "RUN=nope does not exist" in refused(runs / "audio", "nope")
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    (other / "checkpoints/best.ckpt").hardlink_to(runs / "video/checkpoints/best.ckpt")
    assert "must lie in a run's folder" in refused(runs / "audio", other)
    facts = json.loads((runs / "video/run.json").read_text())
    (other / "run.json").write_text(json.dumps({**facts, "labels": ["a", "b", "c", "d"]}))
    (other / "config.yaml").write_text((runs / "video/config.yaml").read_text())
    assert "must have the labels of" in refused(runs / "audio", other)
    (other / "run.json").write_text(json.dumps(facts))
    config = yaml.safe_load((runs / "video/config.yaml").read_text())
    config["data"]["init_args"]["clips"] = 61
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    assert "data.clips must be that of" in refused(runs / "audio", other)
