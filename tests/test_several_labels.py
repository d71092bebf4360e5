"""Several labels per clip: every method and every analysis works, or refuses by name in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amr.attribution import attribution_shares, shapley_shares
from amr.callbacks import Dominance, MultiVizCallback, Robustness
from amr.classifier import method_slots
from amr.cli import main
from amr.datamodules import Tensors
from amr.evaluation.robustness import measure
from amr.load import load_model, save_model
from amr.multiviz import explained
from amr.multiviz.analysis.whole import analyze
from amr.regularizers import AMR, GGE, Regularizer
from amr.report.site import write_site
from amr.report.site.source import Source
from amr.utils.errors import UserError
from amr.utils.readers import read_arrays
from tests.datamodules.tensors.columns import write_npz
from tests.ranks import fit_on
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX)")

WORKING = {"amr", "dropout", "modality_dropout", "multi_loss", "gradient_blending", "dgl", "mmpareto", "pdmp"}


def arrays(clips: int = 32) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    label = draw.random((clips, 3)) < 0.4
    x = {m: draw.normal(size=(clips, 6)).astype(np.float32) for m in ("audio", "video")}
    x["audio"][:, :3] += 2 * label
    return {**x, "y": label, "split": np.array(["train"] * 24 + ["val"] * 4 + ["test"] * 4)}


def data(**options: Any) -> Tensors:
    return Tensors(
        arrays(), {"audio": "vector", "video": "vector"}, label="y", split="split", **{"batch_size": 8, **options}
    )


def with_method(name: str, kind: type[Regularizer]) -> dict[str, Any]:
    needed: dict[str, dict[str, Any]] = {
        "umt": {"teachers": {"audio": "a.ckpt"}},
        "g2d": {"teachers": {"audio": "a.ckpt"}},
        "pdmp": {"dominant": "audio"},
    }
    return {name: kind(**needed.get(name, {}))}


@pytest.mark.parametrize("name", method_slots())
def test_every_method_trains_or_refuses_by_name(name: str) -> None:
    kind = method_slots()[name]
    assert kind.several_labels == (name in WORKING)
    if not kind.several_labels:
        with pytest.raises(
            UserError, match=rf"model\.{kind.name}: is not defined for several labels per clip"
        ) as error:
            build(task="labels", **with_method(name, kind))
        assert "\n" not in str(error.value)
        return
    model = build(task="labels", **with_method(name, kind))
    before = weights(model)
    fit(model, data(), limit_train_batches=2, limit_val_batches=1, max_epochs=1)
    assert any(not torch.equal(value, before[key]) for key, value in weights(model).items())
    assert all(bool(value.isfinite().all()) for value in weights(model).values())


def test_a_step_is_binary_cross_entropys() -> None:
    """One step of SGD on the whole data, by torch alone."""
    model = build(task="labels", optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    own = nn.ModuleDict({"model": model.model})
    start = {key: value.clone() for key, value in own.state_dict().items()}
    module = data(batch_size=24)
    fit(model, module, max_epochs=1, limit_val_batches=0)
    after = weights(model)
    own.load_state_dict(start)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0)).tolist()
    clips = [module.clips_of("train")[i] for i in order]
    logits = model.model({m: torch.stack([clip["inputs"][m] for clip in clips]) for m in ("audio", "video")})
    loss = F.binary_cross_entropy_with_logits(logits, torch.stack([clip["label"] for clip in clips]))
    gradients = torch.autograd.grad(loss, list(model.model.parameters()))
    expected = {
        name: p.detach() - 0.5 * g for (name, p), g in zip(model.model.named_parameters(), gradients, strict=True)
    }
    assert_equal(after, expected, atol=1e-6)


def test_shares_explain_the_logit_of_the_likeliest_label() -> None:
    model = build(task="labels").eval()
    batch = next(iter(data().val_dataloader()))
    encodings = model.model.encode(batch["inputs"])
    leaves = {m: e.detach().requires_grad_() for m, e in encodings.items()}
    top = model.model.head(leaves).max(1).values.sum()
    norms = [
        (g * leaves[m]).norm(dim=1) for m, g in zip(leaves, torch.autograd.grad(top, [*leaves.values()]), strict=True)
    ]
    expected = torch.stack(norms, 1) / torch.stack(norms, 1).sum(1, keepdim=True)
    torch.testing.assert_close(model.shares(batch), expected.detach())
    torch.testing.assert_close(model.model.shares(batch, score="logit"), expected.detach())
    assert not torch.allclose(attribution_shares(model.model.head, encodings), expected)  # of softmax's log-odds


def test_logged_shares_metrics_and_predictions() -> None:
    callback = Dominance()
    model = build(task="labels", metrics=["f1"], amr=AMR(weight=0.5))
    trainer = fit(model, data(), callbacks=[callback], max_epochs=1)
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert {"val/acc", "val/mAP", "val/f1", "val/loss", "val/dominance/audio", "val/decision_share/audio"} <= set(
        logged
    )
    batch = next(iter(data().val_dataloader()))
    model.eval()
    assert logged["val/dominance/audio"] == pytest.approx(float(model.shares(batch)[:, 0].mean()), abs=1e-5)
    encodings = {m: e.detach() for m, e in model.model.encode(batch["inputs"]).items()}
    mean = {m: e.mean(0, keepdim=True) for m, e in encodings.items()}
    owed = shapley_shares(model.model.head, encodings, mean, score="logit").mean(0)
    assert logged["val/decision_share/audio"] == pytest.approx(float(owed[0]), abs=1e-5)
    right = batch["label"].gather(1, model(batch["inputs"]).argmax(1, keepdim=True)).sum()
    assert float(callback.totals["val"][:, 1].sum()) == float(right)


def test_weight_zero_is_naive_bit_for_bit() -> None:
    naive, amr = build(task="labels"), build(task="labels", amr=AMR(weight=0.0))
    fit(naive, data())
    fit(amr, data())
    assert_equal(weights(naive), weights(amr))


def trained(world: int) -> dict[str, Tensor]:
    """Weights after two epochs; test_regression.py compares ranks, where both tasks share the processes."""
    model = build(task="labels", class_weights=[1.0, 2.0, 0.5], amr=AMR(weight=0.5))
    fit_on(world, model, data(batch_size=8 // world))
    return weights(model)


def test_a_saved_model_keeps_its_task(tmp_path: Path) -> None:
    model = build(task="labels")
    loaded = load_model(save_model(model, tmp_path / "model.pt"), trust=("tests",))
    assert loaded.task == "labels"
    assert "task" not in build().model.facts()
    batch = next(iter(data().val_dataloader()))
    torch.testing.assert_close(loaded.shares(batch), model.eval().shares(batch))


def test_analyses_refuse_by_name() -> None:
    model = build(task="labels")
    message = r"is not defined for several labels per clip \(model.task=labels\)$"
    with pytest.raises(UserError, match=f"robustness: {message}"):
        measure(model, data())
    with pytest.raises(UserError, match=f"robustness: {message}"):
        fit(model, data(), callbacks=[Robustness(every_n_epochs=1)])
    with pytest.raises(UserError, match=f"MultiVizCallback: {message}"):
        fit(model, data(), callbacks=[MultiVizCallback(["crossmodal"])])
    with pytest.raises(UserError, match=f"model.amr.attribution=output: {message}"):
        build(task="labels", amr=AMR(attribution="output"))
    with pytest.raises(UserError, match=f"model.amr.guard=true: {message}"):
        build(task="labels", amr=AMR(guard=True))


LEFT_OUT = {
    "prediction": "no sparse classifiers",
    "errors": "no causes of errors",
    "simulation": "no simulated user",
    "selection": "no selection of clips",
    "confusion": "no confusion matrix",
}


def test_each_labels_logit_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, module = build(task="labels").eval(), data()
    out = analyze(model, tmp_path / "out", data=module, split="train", clips=6, classes=3, units=2, samples=16)
    said = capsys.readouterr().err
    for what in LEFT_OUT.values():
        assert said.count(f"{what}: not defined for several labels per clip (model.task=labels)") == 1
    summary, source = json.loads((out / "summary.json").read_text()), Source(out)
    assert {"representation", "clips", "trust"} == set(summary["stages"])
    assert (summary["task"], summary["confusion"]) == ("labels", None)
    with torch.no_grad():
        clips = module.clips_of("train")
        batch = {m: torch.stack([clips[i]["inputs"][m] for i in range(24)]) for m in ("audio", "video")}
        truth, logits = torch.from_numpy(arrays()["y"][:24]), model(batch)
    assert summary["accuracy"] == pytest.approx(float(((logits > 0) == truth).double().mean()))
    top = logits.argmax(1)
    right = truth.gather(1, top[:, None])[:, 0]
    shares = model.shares({"inputs": batch})
    rows = [source.rows[f"{i:06d}"] for i in range(24)]
    assert [row["predicted"] for row in rows] == [str(int(c)) for c in top]
    assert [row["correct"] for row in rows] == right.tolist()
    assert [row["share_audio"] for row in rows] == pytest.approx(shares[:, 0].tolist(), abs=1e-5)
    assert [row["confidence"] for row in rows] == pytest.approx(logits.amax(1).sigmoid().tolist(), abs=1e-5)
    assert [sorted(map(int, row["labels"])) for row in rows] == [t.nonzero().flatten().tolist() for t in truth]
    assert [row["label"] for row in rows if not row["labels"]] == ["none"] * int((~truth.any(1)).sum())
    for c in range(3):
        assert summary["dominance_by_class"].get(str(c), {}).get("clips", 0) == int((top == c).sum())
    for path in (out / "clips").iterdir():
        maps, i = read_arrays(path), int(path.stem)
        assert sorted(maps["classes"].tolist()) == [0, 1, 2]
        assert maps["classes"][0] == top[i]
        assert sorted(maps["labels"].tolist()) == truth[i].nonzero().flatten().tolist()
        x = {m: values[i : i + 1] for m, values in batch.items()}
        for k, c in enumerate(maps["classes"].tolist()):  # occlusion of one label's logit, by hand
            without = x["audio"].clone()
            without[0, 0] = float(module.baseline("audio", without)[0])
            with torch.no_grad():
                expected = model(x)[0, c] - model({**x, "audio": without})[0, c]
            assert float(maps["U/audio/occlusion"][k, 0]) == pytest.approx(float(expected), abs=1e-4)
    other = analyze(model, tmp_path / "other", data=module, split="train", clips=2, samples=8, stages=["clips"])
    write_site([out, other], tmp_path / "both")


def test_a_module_of_ones_own_has_several_labels(tmp_path: Path) -> None:
    model = explained(nn.Linear(6, 3), modalities=("audio",), num_classes=3, task="labels")
    x, y = torch.randn(6, 6), torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]] * 2).float()
    batches: Any = {
        "test": [{"inputs": {"audio": x}, "label": y, "id": list("abcdef")}],
        "labels": ["cat", "dog", "emu"],
    }
    out = analyze(model, tmp_path / "out", data=batches, clips=2, samples=8, stages=["clips"])
    assert {row["label"] for row in Source(out).rows.values()} == {"cat, emu", "none", "dog"}
    with pytest.raises(UserError, match=r"model.task='label': must be one of classes, labels"):
        explained(nn.Linear(6, 3), modalities=("audio",), num_classes=3, task="label")  # type: ignore[arg-type]


def test_labels_of_another_form_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"batch: label is a tensor \(8, 3\) of float32; must be class indices.*task=labels"
    ):
        fit(build(), data())
    one = Tensors(
        {**arrays(), "y": np.arange(32) % 3}, dict.fromkeys(("audio", "video"), "vector"), label="y", split="split"
    )
    with pytest.raises(UserError, match=r"batch: label is .*; must be 0 and 1, \(B, 3\), for model.task=labels"):
        fit(build(task="labels"), one)
    loader = [{"inputs": {m: torch.zeros(2, 6) for m in ("audio", "video")}, "label": torch.full((2, 3), 0.5)}]
    with pytest.raises(UserError, match="label has other values than 0 and 1"):
        build(task="labels").predict_step(loader[0], 0)


def test_class_weights_go_with_no_main_loss_of_a_methods_own() -> None:
    with pytest.raises(UserError, match=r"model.class_weights: must be null with model.gge"):
        build(class_weights=[1.0, 1.0, 2.0], gge=GGE())


RUN = """
data:
  class_path: amr.datamodules.Tensors
  init_args:
    {source: x.npz, modalities: {audio: vector, video: vector}, label: y, labels: [cat, dog, emu], split: split}
model:
  task: labels
  metrics: [f1]
  encoders:
    audio: {class_path: amr.encoders.MLPEncoder, init_args: {in_dim: 6, out_dim: 8}}
    video: {class_path: amr.encoders.MLPEncoder, init_args: {in_dim: 6, out_dim: 8}}
  fusion: {class_path: amr.fusion.Concat}
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false}
"""


def test_a_run_is_trained_predicted_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "x.npz", arrays())
    (tmp_path / "run.yaml").write_text(RUN)
    fit_run = ["fit", "--config", "run.yaml", "--wandb", "disabled", "--name"]
    assert main([*fit_run, "one", "--best.monitor", "val/f1"]) == 0
    assert main([*fit_run, "two", "--model.task", "classes"]) == 2
    assert "model.task=classes: must be labels, for data.label has several labels per clip" in capsys.readouterr().err
    best = "runs/one/checkpoints/best.ckpt"
    assert main(["test", "--ckpt_path", best, "--wandb", "disabled", "--robustness.test", "true"]) == 2
    assert "robustness: is not defined for several labels per clip" in capsys.readouterr().err
    assert main(["predict", "--ckpt_path", best, "--out", "said.parquet", "--wandb", "disabled"]) == 0
    rows = pq.read_table("said.parquet").to_pylist()
    names = json.loads((tmp_path / "runs/one/run.json").read_text())["labels"]
    assert names == ["cat", "dog", "emu"]
    for row, truth in zip(rows, arrays()["y"][-4:], strict=True):
        assert row["label"] == [name for name, on in zip(names, truth, strict=True) if on]
        assert row["prediction"] == [name for name, z in zip(names, row["logits"], strict=True) if z > 0]
    assert main(["compare", "runs", "--out", "page.html"]) == 0
    assert main(["analyze", "--ckpt", best, "--out", "maps", "--clips", "2", "--samples", "8"]) == 0
