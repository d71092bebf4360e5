"""GGE: its targets, and what they do to the gradients of a real training."""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F

from amr.classifier import FusionClassifier
from amr.fusion import Concat, Gated
from amr.fusion.base import pool_tokens
from amr.model import FusionModel
from amr.regularizers import AMR, Dropout, ModalityDropout, Regularizer, Step
from amr.regularizers.losses.gge import GGE, residual_targets
from amr.utils.errors import UserError
from tests.ranks import fit_on, on_one_and_two_ranks
from tests.toy import Blind, Linear, Tokens, Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty)"
)


def method(model: FusionClassifier) -> GGE:
    found = model.regularizers.methods["gge"]
    assert isinstance(found, GGE)
    return found


def everything(model: FusionClassifier) -> dict[str, Tensor]:
    """The model's weights, the biased branches' and the buffers."""
    return {**weights(model), **{f"gge.{key}": value.clone() for key, value in method(model).state_dict().items()}}


# ------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_targets_are_the_positive_part_of_the_biased_branchs_negative_gradient(smoothing: float) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(50, 4, dtype=torch.float64)).requires_grad_()
    label = torch.randint(4, (50,))
    loss = F.cross_entropy(logits, label, label_smoothing=smoothing, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, logits)
    labels = F.one_hot(label, 4).double() * (1 - smoothing) + smoothing / 4
    targets = residual_targets(labels, logits.softmax(1))
    torch.testing.assert_close(targets, (-gradient).relu(), rtol=0, atol=1e-14)
    assert not targets.requires_grad
    # Its mass is the distance in total variation, for any two distributions.
    torch.testing.assert_close(targets.sum(1), (labels - logits.softmax(1)).abs().sum(1) / 2, rtol=0, atol=1e-14)


def test_edges_of_the_targets() -> None:
    label = torch.tensor([[0.0, 1.0, 0.0]])
    assert torch.equal(residual_targets(label, label), torch.zeros(1, 3))  # explained: nothing is left
    assert torch.equal(residual_targets(label, torch.tensor([[1.0, 0.0, 0.0]])), label)
    torch.testing.assert_close(residual_targets(label, torch.full((1, 3), 1 / 3)), label * 2 / 3)


def test_the_loss_is_the_released_softmax_form() -> None:
    """GreedyGradient_softmaxCE of github.com/GeraldHan/GGE at d3acd23, vqa_debias_loss_functions.py, by its formula."""
    torch.manual_seed(0)
    model = FusionModel({"one": Linear(3, 4), "two": Linear(3, 4)}, Concat({"one": 4, "two": 4}, 5))
    gge = GGE(bias="one")
    gge.setup(model)
    encodings = model.encode({"one": torch.randn(6, 3), "two": torch.randn(6, 3)})
    logits, label = model.head(encodings), torch.randint(5, (6,))
    main = F.cross_entropy(logits, label)
    loss = gge.main_loss(Step(model, {}, [""] * 6, encodings, logits, main, label, None, 0, 1.0, 0))
    bias = gge.heads["one"](encodings["one"].detach())
    y_gradient = torch.clamp(F.one_hot(label, 5) - bias.softmax(1), min=0, max=1.0).detach()
    released = -(logits.log_softmax(-1) * y_gradient).sum(1).mean(0)
    torch.testing.assert_close(loss - F.cross_entropy(bias, label), released)
    ours, theirs = (torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (loss, released))
    torch.testing.assert_close(ours, theirs)


# ------------------------------------------------------------------------------------------------------------- training


class Record(Regularizer):
    """Keeps what each step started from, and the gradients that came of it."""

    name = "record"
    order = 99
    needs_steps = True

    def __init__(self, gge: GGE) -> None:
        super().__init__()
        self.gge = [gge]  # in a list: not a submodule of this one
        self.starts: list[tuple[Any, GGE, Step]] = []
        self.gradients: list[dict[str, Tensor]] = []

    def losses(self, step: Step) -> dict[str, Tensor]:
        self.starts.append((copy.deepcopy(step.model), copy.deepcopy(self.gge[0]), step))
        return {}

    def on_gradients(self, steps: Sequence[Step]) -> None:
        named = [*steps[0].model.named_parameters(), *((f"gge.{n}", p) for n, p in self.gge[0].named_parameters())]
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "measured": ({}, {}, {}),
    "named": ({"bias": "video"}, {}, {"fusion": Gated}),
    "lacking": ({"bias": "video"}, {"lacking": True}, {}),
    "measured, lacking": ({"momentum": 1.0}, {"lacking": True}, {"fusion": partial(Concat, hidden=5)}),
    "smoothed": ({}, {}, {"label_smoothing": 0.2, "fusion": Gated}),
    "tokens": ({"bias": "audio"}, {}, {"encoder": Tokens}),
    "three": ({}, {"modalities": ("audio", "video", "text")}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_residual_loss(case: str) -> None:
    """Against loops over clips and classes, with the biased branch and the running losses kept by hand."""
    options, data, more = CASES[case]
    gge = GGE(**options, start_epoch=1)
    record = Record(gge)
    model_options = {"fusion": Concat, "encoder": Linear, "label_smoothing": 0.0, **more}
    encoder, smoothing = model_options.pop("encoder"), model_options["label_smoothing"]
    pl.seed_everything(0)
    encoders = {name: encoder() for name in data.get("modalities", ("audio", "video"))}
    fit(FusionClassifier(encoders, num_classes=3, extra=[gge, record], **model_options), Toy(**data))
    momentum = options.get("momentum", 0.1)
    running: dict[str, float] = {}
    for (model, branches, step), gradients in zip(record.starts, record.gradients, strict=True):
        encodings = model.encode(step.inputs, step.present)
        logits = model.head(encodings)
        guesses: dict[str, Tensor] = {}
        bias_loss = torch.zeros(())
        for name, branch in branches.heads.items():
            rows = (step.present or {}).get(name, torch.ones(8, dtype=torch.bool))
            guesses[name] = branch(pool_tokens(encodings[name].detach()))
            error = F.cross_entropy(guesses[name][rows], step.label[rows], label_smoothing=smoothing)
            bias_loss = bias_loss + error
            former = running.get(name, error.item())
            running[name] = former + momentum * (error.item() - former)
        bias = min(running, key=lambda name: running[name])
        probabilities = guesses[bias].softmax(1)
        loss = F.cross_entropy(logits, step.label, label_smoothing=smoothing)
        if step.epoch >= 1:
            loss = torch.zeros(())
            for i, label in enumerate(step.label.tolist()):
                for c in range(3):
                    y = (1 - smoothing) * (c == label) + smoothing / 3
                    if (step.present or {}).get(bias, torch.ones(8))[i]:
                        y = min(max(y - probabilities[i, c].item(), 0.0), 1.0)
                    loss = loss - y * (logits[i, c] - torch.logsumexp(logits[i], 0)) / 8
        named = [*model.named_parameters(), *((f"gge.{n}", p) for n, p in branches.named_parameters())]
        expected = torch.autograd.grad(loss + bias_loss, [p for _, p in named], materialize_grads=True)
        assert gradients.keys() == dict(named).keys()
        for (name, _), value in zip(named, expected, strict=True):
            torch.testing.assert_close(gradients[name], value, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("flags", [{}, {"accumulate_grad_batches": 2}])
@pytest.mark.parametrize("epochs", [{"start_epoch": 2}, {"start_epoch": 1, "end_epoch": 2}])
def test_inactive_equals_naive_bit_for_bit(flags: dict[str, Any], epochs: dict[str, Any]) -> None:
    naive, waiting = build(dropout=Dropout(0.5)), build(dropout=Dropout(0.5), extra=[GGE(**epochs)])
    before = everything(waiting)
    fit(naive, **flags)
    fit(waiting, **flags)
    acted = epochs["start_epoch"] < 2
    assert all(torch.equal(weights(naive)[key], value) for key, value in weights(waiting).items()) != acted
    assert not torch.equal(before["gge.heads.audio.weight"], everything(waiting)["gge.heads.audio.weight"])  # warm-up


def test_it_is_naive_again_after_its_last_epoch() -> None:
    gge = GGE(bias="audio", end_epoch=1)
    record = Record(gge)
    fit(build(extra=[gge, record]))
    for (model, _, step), gradients in zip(record.starts[4:], record.gradients[4:], strict=True):
        loss = F.cross_entropy(model(step.inputs), step.label)
        for (name, _), value in zip(
            model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            assert torch.equal(gradients[name], value)


@pytest.mark.parametrize("strong", ["audio", "video"])
def test_the_modality_that_learns_fast_becomes_the_bias(strong: str) -> None:
    order = (strong, "video" if strong == "audio" else "audio")  # the toy's first carries the class well
    model = build(extra=[GGE()])
    trainer = fit(model, Toy(modalities=order), max_epochs=6)
    metrics = trainer.callback_metrics
    assert metrics[f"train/gge/bias/{strong}"] == 1
    assert metrics[f"train/gge/bias/{order[1]}"] == 0
    assert 0 < metrics["train/gge/residual"] < 0.6
    assert method(model).report() == {
        key.removeprefix("train/gge/"): pytest.approx(value.item())
        for key, value in metrics.items()
        if key.startswith("train/gge/")
    }


def test_clips_that_the_bias_explains_weigh_less() -> None:
    """A branch that is sure and right takes the gradient from every clip: the model stands still."""
    gge = GGE(bias="audio")
    record = Record(gge)
    model = build(extra=[gge, record])
    data = Toy(num_classes=3)
    for p in gge.heads.parameters():
        torch.nn.init.zeros_(p)
    with torch.no_grad():  # audio's encoding becomes the class itself
        data.inputs["audio"] = F.one_hot(data.label, 6).float()
        model.model.get_parameter("encoders.audio.net.0.weight").copy_(100 * torch.eye(8, 6))
        model.model.get_parameter("encoders.audio.net.0.bias").zero_()
        gge.get_parameter("heads.audio.weight").copy_(100 * torch.eye(3, 8))
    fit(model, data, max_epochs=1)
    assert all(not gradient.any() for name, gradient in record.gradients[0].items() if not name.startswith("gge."))


def test_accumulated_micro_batches_equal_one_batch() -> None:
    big, small = (build(fusion=Gated, extra=[GGE(bias="audio")]) for _ in range(2))
    fit(big, Toy(batch_size=16))
    fit(small, Toy(batch_size=8), accumulate_grad_batches=2)
    assert_equal(weights(big), weights(small), atol=1e-6)


def test_without_any_clip_of_the_bias_it_is_naive() -> None:
    naive, gge = build(), build(extra=[GGE(bias="video")])
    before = everything(gge)
    for model in (naive, gge):
        fit(model, Blind())
    assert_equal(weights(naive), weights(gge), atol=1e-6)
    decay = 1 - 1e-2 * 1e-4 * 8 * 5  # more than weight decay and momentum can do in eight steps
    after, head = everything(gge), "gge.heads.video.weight"
    assert (after[head] / before[head]).min() > decay
    assert torch.isnan(after["gge.running"]).all()


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "64-true"])
def test_precisions(precision: Any) -> None:
    flags: dict[str, Any] = {"precision": precision}
    data = Toy(lacking=True)
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # type: ignore[attr-defined]
        flags = {"plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}
    if precision == "64-true":
        data.inputs = {name: x.double() for name, x in data.inputs.items()}
    reference, model = build(extra=[GGE(bias="video")]), build(extra=[GGE(bias="video")])
    fit(reference, Toy(lacking=True))
    fit(model, data, **flags)
    for key, value in everything(model).items():
        torch.testing.assert_close(value.float(), everything(reference)[key], rtol=0.02, atol=0.02, msg=key)


def test_no_nan_from_dead_encoders_or_single_clips() -> None:
    dead = build(extra=[GGE()])
    for p in dead.model.encoder_parameters():
        torch.nn.init.zeros_(p)
    single = build(extra=[GGE()], amr=AMR(), modality_dropout=ModalityDropout(0.3))
    for model, data in ((dead, Toy()), (single, Toy(clips=6, batch_size=1, lacking=True))):
        fit(model, data)
        assert all(torch.isfinite(value).all() for value in everything(model).values())


@pytest.mark.parametrize("late", [False, True])
def test_resuming_equals_going_on(tmp_path: Path, late: bool) -> None:
    """From a checkpoint of epoch 1, written before or after the epoch's end."""

    def checkpoint() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=late)

    whole, resumed = build(extra=[GGE(start_epoch=1)]), build(seed=1, extra=[GGE(start_epoch=1)])
    trainer = fit(whole, max_epochs=4, enable_checkpointing=True, callbacks=[checkpoint()])
    again = fit(
        resumed, max_epochs=4, ckpt=tmp_path / "epoch=1.ckpt", enable_checkpointing=True, callbacks=[checkpoint()]
    )
    assert_equal(everything(whole), everything(resumed))
    for key in ("train/gge/residual", "train/gge/bias/audio", "train/loss"):
        assert trainer.callback_metrics[key] == again.callback_metrics[key]


class GradientBlending(Regularizer):
    name = "gradient_blending"

    def main_loss(self, step: Step) -> Tensor | None:
        return step.loss


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GGE(momentum=0), "model.gge.momentum=0: must be a value in (0, 1]"),
        (lambda: GGE(start_epoch=-1), "model.gge: start_epoch=-1, end_epoch=None: must be 0 <= start < end"),
        (lambda: GGE(start_epoch=3, end_epoch=3), "start_epoch=3, end_epoch=3"),
        (lambda: build(extra=[GGE(bias="smell")]), "model.gge.bias='smell': must be null or one of 'audio', 'video'"),
        (lambda: FusionClassifier({"audio": Linear()}, extra=[GGE()]), "model.gge: needs at least 2 modalities"),
        (lambda: build(extra=[GradientBlending(), GGE()]), "cannot be combined with 'gradient_blending'"),
    ],
)
def test_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------------ DDP

RANKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "measured": ({}, {}),
    "lacking": ({"bias": "video", "start_epoch": 1}, {"lacking": True}),
    "measured-lacking": ({"momentum": 1.0}, {"lacking": True}),
}


def train(world: int, case: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    options, data = RANKS[case]
    model = build(fusion=Gated, extra=[GGE(**options)])
    fit_on(world, model, Toy(batch_size=16, **data))
    return everything(model), model.regularizers.report()


@pytest.fixture(scope="module")
def ddp() -> dict[str, Any]:
    """Final state of each case, by one process and by each of two gloo ranks."""
    return on_one_and_two_ranks(train, RANKS)


@pytest.mark.parametrize("case", RANKS)
def test_two_ranks_equal_one_process_on_the_joined_batch(ddp: dict[str, Any], case: str) -> None:
    one, *ranks = ddp[case]
    assert_equal(ranks[0][0], ranks[1][0])
    assert_equal(one[0], ranks[0][0], atol=1e-6)
    assert ranks[0][1] == ranks[1][1]
    assert one[1] == pytest.approx(ranks[0][1], abs=1e-6)
