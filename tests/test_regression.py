"""A number per clip: mean squared error, shares of the output; what needs classes refuses by name in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amr.attribution import shapley_shares
from amr.callbacks import Dominance, MultiVizCallback
from amr.classifier import FusionClassifier, method_slots
from amr.cli import main
from amr.datamodules import Tensors
from amr.encoders.base import Encoder
from amr.evaluation.robustness import measure
from amr.exporting import export
from amr.load import load_model, save_model
from amr.multiviz.analysis.whole import analyze
from amr.multiviz.errors import classify_errors
from amr.multiviz.unimodal import integrated_gradients, occlusion
from amr.regularizers import AMR
from amr.utils.errors import UserError
from tests import test_several_labels, toy
from tests.datamodules.tensors.columns import write_npz
from tests.ranks import assert_ranks_equal, fit_on, on_one_and_two_ranks
from tests.test_several_labels import WORKING, with_method
from tests.training import assert_equal, fit, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX)")
MODALITIES = ("audio", "video")


def arrays(clips: int = 32) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    x = {m: draw.normal(size=(clips, 6)).astype(np.float32) for m in MODALITIES}
    y = 3 + x["audio"][:, 0] - 0.5 * x["video"][:, 1]
    return {**x, "y": y, "split": np.array(["train"] * 24 + ["val"] * 4 + ["test"] * 4)}


def data(**options: Any) -> Tensors:
    given = {"label": "y", "split": "split", "regression": True, "batch_size": 8, **options}
    return Tensors(arrays(), dict.fromkeys(MODALITIES, "vector"), **given)


def build(**options: Any) -> FusionClassifier:
    torch.manual_seed(0)
    encoders: dict[str, Encoder] = {m: toy.Linear() for m in MODALITIES}
    return FusionClassifier(encoders, **{"num_classes": 1, "task": "regression", **options})


@pytest.mark.parametrize("name", method_slots())
def test_every_method_trains_or_refuses_by_name(name: str) -> None:
    kind = method_slots()[name]
    if name not in WORKING:
        with pytest.raises(UserError, match=rf"model\.{kind.name}: is not defined for regression \(model.task=regr"):
            build(**with_method(name, kind))
        return
    model = build(**with_method(name, kind))
    before = weights(model)
    fit(model, data(), limit_train_batches=2, limit_val_batches=1, max_epochs=1)
    assert any(not torch.equal(value, before[key]) for key, value in weights(model).items())
    assert all(bool(value.isfinite().all()) for value in weights(model).values())


def test_a_step_is_the_squared_errors() -> None:
    """One step of SGD on the whole data, by torch alone."""
    model = build(optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
    own = nn.ModuleDict({"model": model.model})
    start = {key: value.clone() for key, value in own.state_dict().items()}
    module = data(batch_size=24)
    fit(model, module, max_epochs=1, limit_val_batches=0)
    after = weights(model)
    own.load_state_dict(start)
    inputs = {m: torch.stack([module.clips_of("train")[i]["inputs"][m] for i in range(24)]) for m in MODALITIES}
    loss = F.mse_loss(model.model(inputs)[:, 0], torch.from_numpy(arrays()["y"][:24]).float())
    gradients = torch.autograd.grad(loss, list(model.model.parameters()))
    expected = {
        name: p.detach() - 0.05 * g for (name, p), g in zip(model.model.named_parameters(), gradients, strict=True)
    }
    assert_equal(after, expected, atol=1e-5)


def test_metrics_and_shares_are_those_of_the_output() -> None:
    callback = Dominance()
    model, module = build(amr=AMR(weight=0.5)), data(batch_size=3)
    trainer = fit(model, module, callbacks=[callback], max_epochs=2)
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    model.eval()
    batch = next(iter(data().val_dataloader()))
    said, truth = model(batch["inputs"]).detach().numpy()[:, 0], arrays()["y"][24:28]
    assert logged["val/mae"] == pytest.approx(np.abs(said - truth).mean(), abs=1e-5)
    assert logged["val/pearson"] == pytest.approx(np.corrcoef(said, truth)[0, 1], abs=1e-5)
    assert logged["val/loss"] == pytest.approx(((said - truth) ** 2).mean(), abs=1e-5)
    assert not {"val/acc", "val/mAP"} & set(logged)
    encodings = {m: e.detach().requires_grad_() for m, e in model.model.encode(batch["inputs"]).items()}
    gradients = torch.autograd.grad(model.model.head(encodings).sum(), [*encodings.values()])
    norms = torch.stack([(g * e).norm(dim=1) for g, e in zip(gradients, encodings.values(), strict=True)], 1)
    expected = (norms / norms.sum(1, keepdim=True)).detach()
    torch.testing.assert_close(model.shares(batch), expected)
    assert logged["val/dominance/audio"] == pytest.approx(float(expected[:, 0].mean()), abs=1e-5)
    plain = {m: e.detach() for m, e in encodings.items()}
    mean = {m: e.mean(0, keepdim=True) for m, e in plain.items()}
    owed = shapley_shares(model.model.head, plain, mean, score="logit").mean(0)
    assert logged["val/decision_share/audio"] == pytest.approx(float(owed[0]), abs=1e-5)
    x, atoms = batch["inputs"], module.atoms("audio")
    with torch.no_grad():
        without = [model({**x, "audio": x["audio"] * (1 - piece)})[:, 0] for piece in torch.eye(6)]
        silent = model({**x, "audio": torch.zeros_like(x["audio"])})[:, 0]
    found = occlusion(model.model, x, "audio", 0, atoms).values.float()
    torch.testing.assert_close(found, torch.from_numpy(said)[:, None] - torch.stack(without, 1), atol=1e-5, rtol=1e-4)
    parts = integrated_gradients(model.model, x, "audio", 0, atoms).values.float()
    torch.testing.assert_close(parts.sum(1), torch.from_numpy(said) - silent, atol=1e-3, rtol=1e-3)  # completeness


def test_weight_zero_is_naive_bit_for_bit_and_a_model_keeps_its_task(tmp_path: Path) -> None:
    naive, amr = build(), build(amr=AMR(weight=0.0))
    fit(naive, data())
    fit(amr, data())
    assert_equal(weights(naive), weights(amr))
    assert load_model(save_model(naive, tmp_path / "model.pt"), trust=("tests",)).task == "regression"


def trained(world: int, task: str) -> dict[str, Tensor]:
    if task == "labels":
        return test_several_labels.trained(world)
    model = build(amr=AMR(weight=0.5))
    fit_on(world, model, data(batch_size=8 // world))
    return weights(model)


def test_two_ranks_are_one_process() -> None:
    """Of several labels, too: the processes are started once for both."""
    for result in on_one_and_two_ranks(trained, ["regression", "labels"]).values():
        assert_ranks_equal(result, atol=1e-5)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, half, rest = (build(amr=AMR(weight=0.5)) for _ in range(3))
    fit(whole, data(), max_epochs=2)
    fit(half, data(), max_epochs=2, limit_train_batches=3, max_steps=3).save_checkpoint(tmp_path / "half.ckpt")
    fit(rest, data(), max_epochs=2, ckpt=tmp_path / "half.ckpt")
    assert_equal(weights(whole), weights(rest))
    with pytest.raises(AssertionError):
        assert_equal(weights(whole), weights(half))


def test_what_needs_classes_refuses_by_name(tmp_path: Path) -> None:
    model, message = build(), r"is not defined for regression \(model.task=regression\)$"
    encodings = {m: torch.zeros(2, toy.Linear().out_dim) for m in MODALITIES}
    labels = torch.zeros(2, dtype=torch.int64)
    refusals: dict[str, Any] = {
        "robustness": lambda: measure(model, data()),
        "analyze": lambda: analyze(model, tmp_path / "out", data=data()),
        "MultiVizCallback": lambda: fit(model, data(), callbacks=[MultiVizCallback(["crossmodal"])]),
        "model.amr.attribution=output": lambda: build(amr=AMR(attribution="output")),
        "model.amr.guard=true": lambda: build(amr=AMR(guard=True)),
        "classify_errors": lambda: classify_errors(model.model, encodings, labels),
        "export": lambda: export(model, tmp_path / "exported", data=data()),
    }
    for what, call in refusals.items():
        with pytest.raises(UserError, match=f"^{what}: {message}"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 2}, "model.num_classes=2: must be 1 with model.task=regression"),
        ({"label_smoothing": 0.1}, "model.label_smoothing=0.1: must be left out with model.task=regression"),
        ({"class_weights": [1.0]}, "model.class_weights=.* must be left out"),
        ({"metrics": ["f1"]}, "model.metrics=.* must be "),
    ],
)
def test_options_of_classes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)


def test_labels_of_another_form_are_refused() -> None:
    for options, message in (
        ({"balance": True}, "data.balance: must be left out with data.regression=true"),
        ({"labels": ["a"]}, "data.labels: must be left out"),
        ({"label": ["y", "split"]}, r"data.label=\['y', 'split'\]: must be one column"),
        ({"label": "split"}, r"data.label: clip '000000' .* has 'train'; must be a finite number"),
    ):
        with pytest.raises(UserError, match=message):
            data(**options)
    model = build()
    for label, message in (
        (torch.zeros(2, 2), r"batch: label is .*; must be numbers, \(B,\), for model.task=regression"),
        (torch.tensor([0.0, torch.nan]), "batch: label has a number that is not finite"),
    ):
        with pytest.raises(UserError, match=message):
            model.predict_step({"inputs": {m: torch.zeros(2, 6) for m in MODALITIES}, "label": label}, 0)
    assert data(split={"val": 0.25}).split_kind == "val 0.25, seed 0"


RUN = """
data:
  class_path: amr.datamodules.Tensors
  init_args:
    {source: x.npz, modalities: {audio: vector, video: vector}, label: y, split: split, regression: true}
model:
  task: regression
  encoders:
    audio: {class_path: amr.encoders.MLPEncoder, init_args: {in_dim: 6, out_dim: 8}}
    video: {class_path: amr.encoders.MLPEncoder, init_args: {in_dim: 6, out_dim: 8}}
best: {monitor: val/mae, mode: min}
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false}
"""


def test_a_run_is_trained_tested_and_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "x.npz", arrays())
    (tmp_path / "run.yaml").write_text(RUN)
    fit_run = ["fit", "--config", "run.yaml", "--wandb", "disabled", "--name"]
    assert main([*fit_run, "one", "--config", "amr", "--model.amr.guard", "false"]) == 0
    assert main([*fit_run, "two", "--model.task", "classes"]) == 2
    assert "must be" in capsys.readouterr().err
    assert main([*fit_run, "two", "--best.monitor", "val/acc"]) == 2
    assert "best.monitor=val/acc: must be one of val/loss, val/mae, val/pearson" in capsys.readouterr().err
    best = "runs/one/checkpoints/best.ckpt"
    assert main(["test", "--ckpt_path", best, "--wandb", "disabled"]) == 0
    assert main(["predict", "--ckpt_path", best, "--out", "said.parquet", "--wandb", "disabled"]) == 0
    rows = pq.read_table("said.parquet").to_pylist()
    np.testing.assert_allclose([row["label"] for row in rows], arrays()["y"][-4:], rtol=1e-6)
    assert [row["prediction"] for row in rows] == [row["logits"][0] for row in rows]
    capsys.readouterr()
    assert main(["compare", "runs", "--out", "page.html"]) == 0
    assert "runs/one: it is of regression (model.task=regression), which has no accuracy" in capsys.readouterr().out
