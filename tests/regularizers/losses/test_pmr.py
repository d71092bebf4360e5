"""PMR: its prototypes and factors, and what they do to the gradients of a real training."""

import copy
import math
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
from amr.regularizers.losses import pmr as pmr_module
from amr.regularizers.losses.pmr import (
    PMR,
    imbalance_ratios,
    prototype_cross_entropy,
    prototype_entropy,
    prototype_log_probabilities,
    strengths,
)
from amr.utils.errors import UserError
from tests.ranks import fit_on, on_one_and_two_ranks
from tests.toy import Blind, Linear, Tokens, Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty|Average precision)"
)


def everything(model: FusionClassifier) -> dict[str, Tensor]:
    """The model's weights and the method's buffers."""
    state = model.regularizers.methods["pmr"].state_dict()
    return {**weights(model), **{f"pmr.{key}": value.clone() for key, value in state.items()}}


# ------------------------------------------------------------------------------------------------------ pure functions


def by_hand(z: Tensor, prototypes: Tensor, known: list[int]) -> Tensor:
    """Probabilities by loops, in double precision; zero for classes without prototype."""
    out = torch.zeros(len(z), len(prototypes), dtype=torch.float64)
    for i, row in enumerate(z.double().tolist()):
        terms = {}
        for k in known:
            squares = sum((a - b) ** 2 for a, b in zip(row, prototypes[k].double().tolist(), strict=True))
            terms[k] = torch.tensor(-(squares**0.5), dtype=torch.float64).exp().item()
        for k, term in terms.items():
            out[i, k] = term / sum(terms.values())
    return out


@pytest.mark.parametrize("known", [[0, 1, 2, 3], [1, 3], [2]])
def test_probabilities_entropy_and_cross_entropy_against_loops(known: list[int]) -> None:
    torch.manual_seed(0)
    z, prototypes = torch.randn(20, 5), torch.randn(4, 5)
    mask = torch.tensor([k in known for k in range(4)])
    label = torch.tensor([known[i % len(known)] for i in range(20)])
    expected = by_hand(z, prototypes, known)
    logs = prototype_log_probabilities(z, prototypes, mask)
    assert torch.isfinite(logs).all()
    torch.testing.assert_close(logs.exp().double(), expected, rtol=1e-5, atol=1e-7)
    entropy = torch.special.entr(expected).sum(1)
    torch.testing.assert_close(prototype_entropy(z, prototypes, mask).double(), entropy, rtol=1e-5, atol=1e-6)
    error = prototype_cross_entropy(z, prototypes, label, mask)
    torch.testing.assert_close(error.double(), -expected[torch.arange(20), label].log(), rtol=1e-5, atol=1e-6)
    if len(known) == 4:
        assert torch.equal(error, prototype_cross_entropy(z, prototypes, label))


def test_gradient_against_finite_differences() -> None:
    torch.manual_seed(0)
    z = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    prototypes, label = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 3, 3, 0, 2])
    known = torch.tensor([True, False, True, True])
    assert torch.autograd.gradcheck(lambda z: prototype_cross_entropy(z, prototypes, label, known), z)
    assert torch.autograd.gradcheck(lambda z: prototype_entropy(z, prototypes, known), z)


def test_no_distance_no_gradient() -> None:
    """At a prototype the distance has a kink: 0 for that class, the others' still there, never NaN."""
    prototypes = torch.tensor([[1.0, 2.0], [4.0, 6.0]])
    z = prototypes[:1].clone().requires_grad_()
    loss = prototype_cross_entropy(z, prototypes, torch.tensor([0])) + prototype_entropy(z, prototypes)
    assert torch.isfinite(torch.autograd.grad(loss.sum(), z)[0]).all()
    error = prototype_cross_entropy(z, prototypes, torch.tensor([0]))
    p = torch.sigmoid(torch.tensor(-5.0))  # of class 1, at distance 5
    away = -(prototypes[:1] - prototypes[1:]) / 5
    torch.testing.assert_close(torch.autograd.grad(error.sum(), z)[0], p * away)
    same = torch.zeros(3, 4, requires_grad=True)
    dead = prototype_cross_entropy(same, torch.zeros(2, 4), torch.zeros(3, dtype=torch.long))
    assert torch.autograd.grad(dead.sum(), same)[0].abs().max() == 0


def test_distances_near_a_prototype_are_exact() -> None:
    """Far from the origin, where products of matrices would cancel; 26 rows are where torch starts to use them."""
    prototypes = torch.full((30, 8), 1000.0) + torch.eye(30, 8)
    logs = prototype_log_probabilities(prototypes[:26] + 0.25, prototypes)
    shifted = prototype_log_probabilities(prototypes[:26] - 1000 + 0.25, prototypes - 1000)
    torch.testing.assert_close(logs, shifted, rtol=0, atol=1e-3)


def test_two_modalities_have_the_papers_factors() -> None:
    """Fan et al. 2023, eq. 11: β for the first and γ for the second."""
    torch.manual_seed(0)
    for s in [*torch.rand(200, 2).tolist(), [0.3, 0.3], [0.2, 0.4], [0.9, 0.1]]:
        rho = s[0] / s[1]
        beta = min(max(1 / rho - 1, 0), 1) if rho < 1 else 0
        gamma = min(max(rho - 1, 0), 1) if rho >= 1 else 0
        assert strengths(torch.tensor(s)).tolist() == pytest.approx([beta, gamma], abs=1e-5)
        assert imbalance_ratios(torch.tensor(s)).tolist() == pytest.approx([rho, 1 / rho], rel=1e-5)


def test_more_modalities_are_compared_with_the_others_mean() -> None:
    torch.manual_seed(0)
    for s in torch.rand(50, 4).tolist():
        ratios = [s[m] / (sum(s[j] for j in range(4) if j != m) / 3) for m in range(4)]
        factors = strengths(torch.tensor(s))
        assert imbalance_ratios(torch.tensor(s)).tolist() == pytest.approx(ratios, rel=1e-5)
        assert factors.tolist() == pytest.approx([min(max(1 / r - 1, 0), 1) for r in ratios], abs=1e-5)
        torch.testing.assert_close(strengths(7 * torch.tensor(s)), factors)  # only proportions count
        assert factors[int(torch.tensor(s).argmax())] == 0


def test_edges_of_the_factors() -> None:
    nan = float("nan")
    assert strengths(torch.tensor([0.0, 0.0])).tolist() == [0, 0]
    assert strengths(torch.tensor([0.0, 0.5])).tolist() == [1, 0]
    assert strengths(torch.tensor([nan, 0.5])).tolist() == [0, 0]  # nothing to compare with
    assert strengths(torch.tensor([nan, nan])).tolist() == [0, 0]
    two, three = torch.tensor([0.3, 0.5]), torch.tensor([0.3, nan, 0.5])
    assert strengths(three)[[0, 2]].tolist() == strengths(two).tolist()  # one that has no score counts for none
    assert not strengths(torch.tensor([0.3, 0.5], requires_grad=True)).requires_grad


# ------------------------------------------------------------------------------------------------------------- training


class Record(Regularizer):
    """Keeps what each step started from, and the gradients that came of it."""

    name = "record"
    order = 99
    needs_steps = True

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[tuple[Any, Step]] = []
        self.gradients: list[dict[str, Tensor]] = []

    def losses(self, step: Step) -> dict[str, Tensor]:
        self.starts.append((copy.deepcopy(step.model), step))
        return {}

    def on_gradients(self, steps: Sequence[Step]) -> None:
        parameters = steps[0].model.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "entropy": ({"alpha": 0.5, "entropy_weight": 0.3, "entropy_epochs": 2}, {}, {"fusion": Gated}),
    "lacking": ({"alpha": 2.0, "momentum": 0.6}, {"lacking": True}, {"fusion": partial(Concat, hidden=5)}),
    "tokens": ({}, {}, {"encoder": Tokens, "fusion": Gated}),
    "three": (
        {"entropy_weight": 0.3, "entropy_epochs": 3},
        {"modalities": ("audio", "video", "text"), "lacking": True},
        {},
    ),
    "later": ({"start_epoch": 2}, {}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_prototypical_loss(case: str) -> None:
    """Against the paper's equations, with class means from lists; one class of four never appears."""
    options, data, more = CASES[case]
    pmr, record = PMR(**options), Record()
    model_options = {"fusion": Concat, "encoder": Linear, **more}
    encoder = model_options.pop("encoder")
    names = data.get("modalities", ("audio", "video"))
    pl.seed_everything(0)
    encoders = {name: encoder() for name in names}
    fit(FusionClassifier(encoders, num_classes=4, extra=[pmr, record], **model_options), Toy(**data), max_epochs=3)
    prototypes: dict[tuple[str, int], Tensor] = {}
    seen: dict[tuple[str, int], list[Tensor]] = {}
    epoch, acted = 0, 0
    momentum, alpha = options.get("momentum", 0.2), options.get("alpha", 1.0)
    for (model, step), gradients in zip(record.starts, record.gradients, strict=True):
        if step.epoch > epoch:
            for key, rows in seen.items():
                new = torch.stack(rows).mean(0)
                prototypes[key] = momentum * prototypes[key] + (1 - momentum) * new if key in prototypes else new
            epoch, seen = step.epoch, {}
        encodings = model.encode(step.inputs, step.present)
        loss = F.cross_entropy(model.head(encodings), step.label)
        errors, entropies, scores = {}, {}, {}
        for name in names:
            z = pool_tokens(encodings[name])
            has = (step.present or {}).get(name, torch.ones(8, dtype=torch.bool)).tolist()
            error, entropy, score = [], [], []
            for i, label in enumerate(step.label.tolist()):
                if not has[i]:
                    continue
                seen.setdefault((name, label), []).append(z[i].detach())
                if prototypes:
                    p = torch.softmax(torch.stack([-(z[i] - prototypes[name, k]).norm() for k in range(3)]), 0)
                    error.append(-p[label].log())
                    entropy.append(torch.special.entr(p).sum())
                    score.append(p[label].item())
            if prototypes:
                errors[name], entropies[name] = torch.stack(error).mean(), torch.stack(entropy).mean()
                scores[name] = sum(score) / len(score)
        if prototypes and step.epoch >= options.get("start_epoch", 0):
            acted += 1
            for name in names:
                others = [scores[other] for other in names if other != name]
                rho = scores[name] / (sum(others) / len(others))
                loss = loss + alpha * min(max(1 / rho - 1, 0), 1) * errors[name]
                if step.epoch < options.get("entropy_epochs", 0):
                    loss = loss - options["entropy_weight"] * min(max(rho - 1, 0), 1) * entropies[name]
        expected = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        for (name, _), value in zip(model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-6, msg=f"{step.epoch} {name}")
    assert acted == 4 * (3 - max(1, options.get("start_epoch", 0)))


@pytest.mark.parametrize("flags", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}])
@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"start_epoch": 2}, {"end_epoch": 1}])
def test_inactive_equals_naive_bit_for_bit(options: dict[str, Any], flags: dict[str, Any]) -> None:
    """In its first epoch it has no prototypes; then epochs or the weight may keep it from acting."""
    naive, waiting, acting = (
        build(dropout=Dropout(0.5), extra=extra) for extra in ([], [PMR(**options)], [PMR(alpha=2.0)])
    )
    for model in (naive, waiting, acting):
        fit(model, **flags)
    assert_equal(weights(naive), weights(waiting))
    assert not torch.equal(
        weights(naive)["encoders.video.net.0.weight"], weights(acting)["encoders.video.net.0.weight"]
    )


def test_the_entropy_term_alone() -> None:
    options: dict[str, Any] = {"alpha": 0.0, "entropy_weight": 1.0}
    naive, alone, over = (
        build(extra=extra) for extra in ([], [PMR(**options, entropy_epochs=2)], [PMR(**options, entropy_epochs=1)])
    )
    for model in (naive, alone, over):
        fit(model)
    assert_equal(weights(naive), weights(over))
    assert not torch.equal(weights(naive)["encoders.audio.net.0.weight"], weights(alone)["encoders.audio.net.0.weight"])


def test_the_modality_that_lags_is_pulled_to_its_prototypes() -> None:
    """The toy's video says little: it is the one with a strength, and its clips end nearer to their class means."""
    data = Toy(clips=96, batch_size=12)
    apart = {}
    for name, extra in {"naive": [], "pmr": [PMR(alpha=5.0)]}.items():
        model = build(extra=extra)
        metrics = fit(model, data, max_epochs=8).callback_metrics
        z = model.model.encode(data.inputs)["video"].detach()
        means = torch.stack([z[data.label == k].mean(0) for k in range(3)])
        apart[name] = prototype_cross_entropy(z, means, data.label).mean()
    assert math.log(3) - apart["pmr"] > 1.15 * (math.log(3) - apart["naive"])  # log 3: all classes as near
    assert metrics["train/pmr/strength/audio"] == 0
    assert 0 < metrics["train/pmr/strength/video"] <= 1
    assert metrics["train/pmr/score/audio"] > metrics["train/pmr/score/video"] > 1 / 3
    assert "train/loss/pmr/prototype" in metrics


def test_a_class_counts_from_the_epoch_after_its_first_clip() -> None:
    """Step by step, by hand: what has no prototype is neither pulled nor a rival, and old prototypes stay."""
    torch.manual_seed(0)
    model = FusionModel({"a": Linear(6, 4), "b": Linear(6, 4)}, Concat({"a": 4, "b": 4}, 4))
    pmr = PMR(momentum=0.5)
    pmr.setup(model)

    def run(label: list[int], epoch: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        encodings = {name: torch.randn(len(label), 4, requires_grad=True) for name in ("a", "b")}
        zero = torch.zeros(())
        step = Step(model, {}, [""] * len(label), encodings, zero, zero, torch.tensor(label), None, epoch, 1.0, 0)
        return encodings, pmr.losses(step)

    first, terms = run([0, 0, 1], 0)
    assert terms == {}
    pmr.on_epoch_end({})
    torch.testing.assert_close(pmr.prototypes[0, :4], first["a"][:2].mean(0).detach())
    assert pmr.known.tolist() == [[True, True], [True, True], [False, False], [False, False]]
    second, terms = run([0, 2, 2], 1)
    errors, scores = [], []
    for name, columns in (("a", slice(0, 4)), ("b", slice(4, 8))):
        distances = (second[name][:1] - pmr.prototypes[:2, columns]).norm(dim=1)
        errors.append(-torch.log_softmax(-distances, 0)[0])
        scores.append(torch.softmax(-distances, 0)[0].item())
    low = scores.index(min(scores))
    expected = min(max(scores) / min(scores) - 1, 1) * errors[low]
    torch.testing.assert_close(terms["prototype"], expected)
    (gradient,) = torch.autograd.grad(terms["prototype"], second["ab"[low]])
    assert gradient[0].abs().sum() > 0
    assert not gradient[1:].any()
    pmr.on_epoch_end({})
    torch.testing.assert_close(pmr.prototypes[1, :4], first["a"][2].detach())  # no clip: as it was
    torch.testing.assert_close(pmr.prototypes[2, :4], second["a"][1:].mean(0).detach())
    torch.testing.assert_close(pmr.prototypes[0, :4], (first["a"][:2].mean(0) + second["a"][0]).detach() / 2)
    assert torch.equal(pmr.prototypes[3], torch.zeros(8))


def test_an_overflow_does_not_reach_the_prototypes() -> None:
    model = FusionModel({"a": Linear(6, 4), "b": Linear(6, 4)}, Concat({"a": 4, "b": 4}, 2))
    pmr = PMR()
    pmr.setup(model)
    encodings = {name: torch.ones(3, 4) for name in ("a", "b")}
    encodings["a"][0, 0] = torch.inf
    encodings["b"][1, 2] = torch.nan
    zero = torch.zeros(())
    pmr.losses(Step(model, {}, ["x"] * 3, encodings, zero, zero, torch.tensor([0, 0, 1]), None, 0, 1.0, 0))
    pmr.on_epoch_end({})
    assert torch.equal(pmr.prototypes, torch.ones(2, 8))


def test_accumulated_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prototypes are the epoch's; factors are the micro-batch's own, so equality needs fixed ones."""
    monkeypatch.setattr(pmr_module, "strengths", lambda scores: torch.tensor([0.25, 0.75]).to(scores))
    big, small = (build(fusion=Gated, extra=[PMR()]) for _ in range(2))
    fit(big, Toy(batch_size=16), max_epochs=3)
    fit(small, Toy(batch_size=8), max_epochs=3, accumulate_grad_batches=2)
    assert_equal(weights(big), weights(small), atol=1e-6)
    key = "pmr.prototypes"
    torch.testing.assert_close(everything(big)[key], everything(small)[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "64-true"])
def test_precisions(precision: Any) -> None:
    flags: dict[str, Any] = {"precision": precision}
    data = Toy(lacking=True)
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # type: ignore[attr-defined]
        flags = {"plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}
    if precision == "64-true":
        data.inputs = {name: x.double() for name, x in data.inputs.items()}
    options: dict[str, Any] = {"entropy_weight": 0.3, "entropy_epochs": 3}
    reference, model = build(extra=[PMR(**options)]), build(extra=[PMR(**options)])
    fit(reference, Toy(lacking=True), max_epochs=3)
    fit(model, data, max_epochs=3, **flags)
    for key, value in everything(model).items():
        torch.testing.assert_close(value.float(), everything(reference)[key].float(), rtol=0.05, atol=0.05, msg=key)


def test_no_nan_from_dead_encoders_single_clips_or_an_absent_modality() -> None:
    options: dict[str, Any] = {"entropy_weight": 0.5, "entropy_epochs": 9}
    dead, single, blind = (build(extra=[PMR(**options)]) for _ in range(3))
    naive = build()
    for p in dead.model.encoder_parameters():
        torch.nn.init.zeros_(p)
    both = build(extra=[PMR(**options)], amr=AMR(), modality_dropout=ModalityDropout(0.3))
    one = Toy(clips=6, batch_size=1, lacking=True)
    for model, data in ((dead, Toy()), (single, one), (both, one), (blind, Blind()), (naive, Blind())):
        fit(model, data, max_epochs=3)
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert_equal(weights(blind), weights(naive))  # nothing to balance


@pytest.mark.parametrize("late", [False, True])
def test_resuming_equals_going_on(tmp_path: Path, late: bool) -> None:
    """From a checkpoint of epoch 1, written before or after the epoch's end, when the prototypes move."""

    def checkpoint() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=late)

    whole, resumed = build(extra=[PMR(momentum=0.5)]), build(seed=1, extra=[PMR(momentum=0.5)])
    trainer = fit(whole, max_epochs=4, enable_checkpointing=True, callbacks=[checkpoint()])
    again = fit(
        resumed, max_epochs=4, ckpt=tmp_path / "epoch=1.ckpt", enable_checkpointing=True, callbacks=[checkpoint()]
    )
    assert_equal(everything(whole), everything(resumed))
    for key in ("train/pmr/strength/video", "train/pmr/score/audio", "train/loss"):
        assert trainer.callback_metrics[key] == again.callback_metrics[key]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PMR(alpha=-1), "model.pmr.alpha=-1: must be a finite number >= 0"),
        (lambda: PMR(alpha=float("inf")), "model.pmr.alpha=inf"),
        (lambda: PMR(entropy_weight=-1), "model.pmr.entropy_weight=-1: must be a finite number >= 0"),
        (lambda: PMR(entropy_epochs=-1), "model.pmr.entropy_epochs=-1: must be a whole number >= 0"),
        (lambda: PMR(momentum=1), "model.pmr.momentum=1: must be a value in [0, 1)"),
        (lambda: PMR(start_epoch=3, end_epoch=3), "start_epoch=3, end_epoch=3: must be 0 <= start < end"),
        (lambda: FusionClassifier({"audio": Linear()}, extra=[PMR()]), "model.pmr: needs at least 2 modalities"),
    ],
)
def test_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------------ DDP

RANKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "lacking": ({"alpha": 2.0, "entropy_weight": 0.3, "entropy_epochs": 3}, {"lacking": True}),
}


def train(world: int, case: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    options, data = RANKS[case]
    model = build(fusion=Gated, extra=[PMR(**options)])
    fit_on(world, model, Toy(batch_size=16, **data), max_epochs=3)
    return everything(model), model.regularizers.report()


@pytest.fixture(scope="module")
def ddp() -> dict[str, Any]:
    """Final state of each case, by one process and by each of two gloo ranks."""
    return on_one_and_two_ranks(train, RANKS)


@pytest.mark.parametrize("case", RANKS)
def test_two_ranks_equal_one_process_on_the_joined_batch(ddp: dict[str, Any], case: str) -> None:
    one, *ranks = ddp[case]
    assert_equal(ranks[0][0], ranks[1][0])
    for key, value in one[0].items():
        # The epoch's sums add up 32 encodings in another order.
        torch.testing.assert_close(ranks[0][0][key], value, rtol=1e-6, atol=1e-6, msg=key)
    assert ranks[0][1] == ranks[1][1]
    assert one[1] == pytest.approx(ranks[0][1], abs=1e-6)
    assert one[1]["pmr/strength/video"] > 0
