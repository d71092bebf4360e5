"""Gradient-Blending: the weights' formula, which clips train and which are measured, and the estimates over epochs."""

import copy
import hashlib
import itertools
import math
import warnings
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from amr.classifier import FusionClassifier
from amr.fusion import Concat, Gated, Late
from amr.model import FusionModel
from amr.regularizers import AMR, Dropout, Regularizer, Step
from amr.regularizers.losses.gradient_blending import GradientBlending, blend_weights, held_out_rows
from amr.utils.errors import UserError
from tests import training
from tests.ranks import fit_on, on_one_and_two_ranks
from tests.toy import Linear, Tokens, Toy
from tests.training import assert_equal, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty)"
)
MODALITIES = ("audio", "video", "touch")
build: Any = partial(training.build, fusion=Gated)


def held(name: str, fraction: float) -> bool:
    """The rule, written another way."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 16**16 < fraction


# ------------------------------------------------------------------------------------------------ the pure functions


@pytest.mark.parametrize("seed", range(5))
def test_weights_are_the_ratios_in_exact_arithmetic(seed: int) -> None:
    torch.manual_seed(seed)
    gain, growth = torch.rand(4) + 0.01, torch.randn(4)
    exact = [Fraction(g) / Fraction(o) ** 2 for g, o in zip(gain.tolist(), growth.tolist(), strict=True)]
    expected = [float(w / sum(exact)) for w in exact]
    assert blend_weights(gain, growth).tolist() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(blend_weights(7 * gain, -3 * growth), blend_weights(gain, growth))
    order = torch.randperm(4)
    torch.testing.assert_close(blend_weights(gain[order], growth[order]), blend_weights(gain, growth)[order])


def test_weights_minimize_the_overfitting_to_generalization_ratio() -> None:
    """What the formula is derived from: of all blends, the least Σ (w_k O_k)² / (Σ w_k G_k)², by brute force."""
    gain, growth = torch.tensor([0.3, 0.1, 0.6]), torch.tensor([0.2, 0.05, 0.5])

    def ratio(w: Tensor) -> Tensor:
        return (w * growth).square().sum(-1) / (w * gain).sum(-1).square()

    steps = torch.linspace(0, 1, 101)
    grid = torch.tensor([(a, b, 1 - a - b) for a, b in itertools.product(steps.tolist(), repeat=2) if a + b <= 1])
    best = blend_weights(gain, growth)
    assert ratio(best) <= ratio(grid).min() + 1e-6
    assert (grid[ratio(grid).argmin()] - best).abs().max() < 0.02


@pytest.mark.parametrize(
    ("gain", "growth", "expected"),
    [
        ([1.0, -5.0, 1.0], [1.0, 1.0, 1.0], [0.5, 0, 0.5]),  # a held-out loss that rose
        ([-1.0, -2.0, 0.0], [1.0, 0.0, 2.0], [1 / 3, 1 / 3, 1 / 3]),  # all of them
        ([1.0, 3.0, 9.0], [0.0, 0.0, 1.0], [0.25, 0.75, 0]),  # no growth: the limit
        ([1.0, -3.0, 9.0], [1.0, 0.0, 1.0], [0.1, 0, 0.9]),  # no growth, but no gain either
        ([1.0, 1.0], [1e-30, 1.0], [1, 0]),
        ([1.0, 4.0], [1e-30, 2e-30], [0.5, 0.5]),  # whose squares are 0 in float32
        ([1e-30, 1e-30], [1e30, 1e30], [0.5, 0.5]),
        ([3e38, 3e38, 1e-38], [1e-38, 1e-38, 1.0], [0.5, 0.5, 0]),
        ([2.0], [3.0], [1]),
    ],
)
def test_weights_at_the_edges(gain: list[float], growth: list[float], expected: list[float]) -> None:
    result = blend_weights(torch.tensor(gain), torch.tensor(growth))
    assert result.dtype == torch.float32
    assert result.tolist() == pytest.approx(expected, abs=1e-6)
    assert result.sum().item() == pytest.approx(1)


def test_weights_approach_the_limit_of_no_growth() -> None:
    gain = torch.tensor([1.0, 3.0, 9.0])
    limit = blend_weights(gain, torch.tensor([0.0, 0.0, 1.0]))
    near = blend_weights(gain, torch.tensor([1e-20, -1e-20, 1.0]))
    torch.testing.assert_close(limit, near)


def test_weights_refuse_what_has_no_meaning() -> None:
    for gain, growth in (([1.0, 2.0], [1.0]), ([[1.0]], [[1.0]]), ([], [])):
        with pytest.raises(ValueError, match="shapes"):
            blend_weights(torch.tensor(gain), torch.tensor(growth))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            blend_weights(torch.tensor([1.0, bad]), torch.tensor([1.0, 1.0]))


def test_the_same_clips_are_held_out_everywhere() -> None:
    names = [f"clip{i}" for i in range(20_000)]
    rows = held_out_rows(names, 0.1)
    assert rows == [held(name, 0.1) for name in names]
    assert sum(rows) / len(rows) == pytest.approx(0.1, abs=0.01)  # 4.7 standard errors
    assert all(more or not less for less, more in zip(rows, held_out_rows(names, 0.3), strict=True))  # nested
    assert held_out_rows(["1001_DFA_ANG_XX", "1001_IEO_HAP_HI", "ünï"], 0.5) == [False, True, False]  # for good


# -------------------------------------------------------------------------------------------------------- one step


class Probe(Regularizer):
    """Keeps the last step, with the model, the heads and the weights as they were."""

    name = "probe"
    order = 99

    def __init__(self, blending: GradientBlending) -> None:
        super().__init__()
        self.blending = [blending]  # in a list, so that it is not a submodule

    def losses(self, step: Step) -> dict[str, Tensor]:
        self.step, self.model = step, copy.deepcopy(step.model)
        self.heads = copy.deepcopy(self.blending[0].heads)
        self.weights = self.blending[0].report()
        return {}


def clip_losses(model: FusionModel, heads: Any, step: Step) -> dict[str, Tensor]:
    """Cross-entropy of each head, (B,), from the equations."""
    encodings = model.encode(step.inputs, step.present)
    logits = {"fused": model.head(encodings)}
    for name, e in encodings.items():
        pooled = e.mean(1) if e.ndim == 3 else e
        logits[name] = pooled @ heads.heads[name].weight.T + heads.heads[name].bias
    return {name: f.logsumexp(1) - f[torch.arange(len(f)), step.label] for name, f in logits.items()}


def plain(parameters: Any) -> SGD:
    return SGD(parameters, lr=0.1)


@pytest.mark.parametrize(
    ("options", "epochs", "holds"),
    [
        ({}, 1, True),
        ({"super_epoch": 2}, 3, True),
        ({"super_epoch": 2, "mode": "offline"}, 1, True),
        ({"super_epoch": 2, "mode": "offline"}, 3, False),
        ({"weights": {"touch": 0.1, "audio": 0.2, "fused": 0.5, "video": 1.2}}, 1, False),
    ],
    ids=["equal", "online", "offline, before", "offline, after", "given"],
)
@pytest.mark.parametrize(("encoder", "fusion"), [(Linear, Gated), (Tokens, partial(Concat, hidden=7))])
def test_the_step_is_down_the_blended_loss(
    options: dict[str, Any], epochs: int, holds: bool, encoder: Any, fusion: Any
) -> None:
    """The last step against autograd on Σ_k w_k mean L_k over the clips that train and have the modality."""
    blending = GradientBlending(held_out=0.5, **options)
    probe = Probe(blending)
    model = build(fusion=fusion, encoder=encoder, modalities=MODALITIES, extra=[blending, probe], optimizer=plain)
    fit(model, Toy(modalities=MODALITIES, lacking=True), max_epochs=epochs)
    step = probe.step
    out = torch.tensor([holds and held(name, 0.5) for name in step.id])
    assert out.any() == holds
    assert step.present is not None
    total = torch.tensor(0.0)
    for name, losses in clip_losses(probe.model, probe.heads, step).items():
        rows = ~out & (step.present[name] if name == "video" else ~out)
        total = total + probe.weights[name] * losses[rows].sum() / rows.sum()
    if epochs == 3:
        assert max(probe.weights.values()) > 0.4  # no more the equal ones
        assert sum(probe.weights.values()) == pytest.approx(1)
    parameters = [*probe.model.parameters(), *probe.heads.parameters()]
    after = [*model.model.parameters(), *blending.heads.parameters()]
    for before, now, gradient in zip(parameters, after, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(now, before - 0.1 * gradient, rtol=0, atol=1e-6)


def test_held_out_clips_teach_nothing() -> None:
    """Whatever they contain: the weights are the same to the last bit, until the losses are compared."""

    def trained(change: bool | None) -> tuple[dict[str, Tensor], Tensor]:
        blending = GradientBlending(super_epoch=3, held_out=0.3)
        model, data = build(extra=[blending]), Toy()
        rows = torch.tensor([held(f"clip{i}", 0.3) is change for i in range(32)])
        assert change is None or 5 < rows.sum() < 27
        data.label = torch.where(rows, (data.label + 1) % 3, data.label)
        data.inputs = {name: torch.where(rows.unsqueeze(1), -3 * x, x) for name, x in data.inputs.items()}
        fit(model, data, max_epochs=2)
        return {
            **weights(model),
            **{k: v.clone() for k, v in blending.heads.state_dict().items()},
        }, blending.get_buffer("reference")

    clean, reference = trained(None)
    other, measured = trained(True)
    assert_equal(clean, other)
    assert torch.equal(reference[0], measured[0])
    assert not torch.equal(reference[1], measured[1])
    assert any(not torch.equal(value, clean[key]) for key, value in trained(False)[0].items())


@pytest.mark.parametrize("flags", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}])
def test_all_weight_on_the_fused_head_equals_naive_bit_for_bit(flags: dict[str, Any]) -> None:
    blending = GradientBlending(weights={"audio": 0.0, "video": 0.0, "fused": 1.0})
    naive, inactive = build(dropout=Dropout(0.5)), build(dropout=Dropout(0.5), extra=[blending])
    acting = build(dropout=Dropout(0.5), extra=[GradientBlending()])
    for model in (naive, inactive, acting):
        fit(model, Toy(lacking=True), **flags)
    assert_equal(weights(naive), weights(inactive))
    assert any(not torch.equal(a, b) for a, b in zip(weights(naive).values(), weights(acting).values(), strict=True))


def test_accumulated_micro_batches_equal_one_batch() -> None:
    """Where no clip is left out of a loss; else the mean over micro-batches is of means over unequal numbers."""
    given = {"audio": 0.3, "video": 0.2, "fused": 0.5}
    big, small = (build(extra=[GradientBlending(weights=given)]) for _ in range(2))
    fit(big, Toy(batch_size=16))
    fit(small, Toy(batch_size=8), accumulate_grad_batches=2)
    assert_equal(weights(big), weights(small), atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions(precision: Any) -> None:
    reference, other = (GradientBlending(super_epoch=2, held_out=0.3) for _ in range(2))
    expected, model, data = build(extra=[reference]), build(extra=[other]), Toy()
    fit(expected)
    if precision == "64-true":
        data.inputs = {name: x.double() for name, x in data.inputs.items()}
    fit(model, data, precision=precision)
    atol = 1e-5 if precision == "64-true" else 0.03
    assert_equal(
        {key: value.double() for key, value in weights(expected).items()},
        {key: value.double() for key, value in weights(model).items()},
        atol=atol,
    )
    assert other.reference.dtype == (torch.float64 if precision == "64-true" else torch.float32)
    torch.testing.assert_close(reference.reference.double(), other.reference.double(), rtol=0, atol=atol)


@pytest.mark.parametrize("fraction", [0.25, 0.75])
def test_batches_without_a_part_and_dead_encoders_stay_finite(fraction: float) -> None:
    blending = GradientBlending(super_epoch=2, held_out=fraction)
    model = build(fusion=Late, encoder=Tokens, extra=[blending])
    for parameter in model.model.encoders["video"].parameters():
        nn.init.zeros_(parameter)
    fit(model, Toy(clips=20, batch_size=1, lacking=True), max_epochs=3)
    state = {**weights(model), **blending.state_dict()}
    assert [key for key, value in state.items() if not torch.isfinite(value).all()] == []


# ---------------------------------------------------------------------------------------------------- over the epochs


class Ledger(Regularizer):
    """Every clip's losses in every epoch, in Python numbers, and what was reported after it."""

    name = "ledger"
    order = 99

    def __init__(self, blending: GradientBlending) -> None:
        super().__init__()
        self.blending = [blending]
        self.epochs: list[dict[tuple[str, bool], list[float]]] = []
        self.reports: list[dict[str, float]] = []
        self.now: dict[tuple[str, bool], list[float]] = {}

    def losses(self, step: Step) -> dict[str, Tensor]:
        blending = self.blending[0]
        with torch.no_grad():
            for head, losses in clip_losses(step.model, blending.heads, step).items():
                for i, name in enumerate(step.id):
                    if head == "fused" or step.present is None or bool(step.present.get(head, [True] * 99)[i]):
                        self.now.setdefault((head, held(name, blending.held_out)), []).append(losses[i].item())
        return {}

    def on_epoch_end(self, metrics: Any) -> None:
        self.epochs.append(self.now)
        self.reports.append(self.blending[0].report())
        self.now = {}

    def mean(self, epoch: int, head: str, part: bool) -> float:
        return sum(self.epochs[epoch][head, part]) / len(self.epochs[epoch][head, part])

    def weights(self, first: int, last: int) -> dict[str, float]:
        """The paper's weights between two epochs."""
        raw = {}
        for head in {head for head, _ in self.epochs[0]}:
            (train, out), (train_n, out_n) = (
                [self.mean(e, head, part) for part in (False, True)] for e in (first, last)
            )
            raw[head] = max(out - out_n, 0) / ((out_n - train_n) - (out - train)) ** 2
        return {head: w / sum(raw.values()) for head, w in raw.items()}


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_weights_follow_the_losses(mode: Any) -> None:
    """Against losses noted clip by clip: super-epochs of two epochs, the first from its own first epoch."""
    blending = GradientBlending(mode=mode, super_epoch=2, held_out=0.3)
    ledger = Ledger(blending)
    trainer = fit(build(extra=[blending, ledger]), Toy(clips=48, lacking=True), max_epochs=6)
    first = ledger.weights(0, 1)
    second, third = (ledger.weights(1, 3), ledger.weights(3, 5)) if mode == "online" else (first, first)
    equal = dict.fromkeys(first, 1 / 3)
    for reported, expected in zip(ledger.reports, [equal, first, first, second, second, third], strict=True):
        assert reported == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert len({round(w["audio"], 4) for w in (equal, first, second, third)}) == (4 if mode == "online" else 2)
    for head, weight in blending.report().items():
        assert trainer.callback_metrics[f"train/gradient_blending/{head}"].item() == pytest.approx(weight)
    assert not blending.get_buffer("sums").any()
    assert blending.measuring == (mode == "online")


def test_too_few_held_out_clips_leave_the_weights_with_one_warning() -> None:
    blending = GradientBlending(super_epoch=2, held_out=1e-9)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(build(extra=[blending]), max_epochs=6)
    messages = [str(w.message) for w in caught if "gradient_blending" in str(w.message)]
    assert len(messages) == 1
    assert "held_out too small" in messages[0]
    assert blending.report() == pytest.approx({"audio": 1 / 3, "video": 1 / 3, "fused": 1 / 3})


class Saver(ModelCheckpoint):
    @property
    def state_key(self) -> str:
        return str(self.filename)


class Resumable(DataLoader[Any]):
    """Goes on in the middle of an epoch."""

    done = skip = 0

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skip = state["done"] % len(self)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        skip, self.skip = self.skip, 0
        for self.done, batch in enumerate(super().__iter__(), 1):
            if self.done > skip:
                yield batch


class ResumableToy(Toy):
    def loader(self, shuffle: bool) -> Any:
        plain = super().loader(shuffle)
        indices: Any = range(32)
        return Resumable(indices, batch_size=8, sampler=plain.sampler, collate_fn=self.collate)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_resuming_equals_going_on(tmp_path: Path, mode: Any) -> None:
    """From the end of an epoch within a super-epoch and at its end, from within an epoch, and after a validation."""

    def run(seed: int, ckpt: Path | None = None) -> dict[str, Tensor]:
        blending = GradientBlending(mode=mode, super_epoch=2, held_out=0.3)
        model = build(seed=seed, extra=[blending], dropout=Dropout(0.5))
        saves = [
            Saver(tmp_path, filename="end-{epoch}", save_top_k=-1, save_on_train_epoch_end=True),
            Saver(tmp_path, filename="mid-{step}", save_top_k=-1, every_n_train_steps=3),
            Saver(tmp_path, filename="val-{epoch}", save_top_k=-1, save_on_train_epoch_end=False),
        ]
        data = ResumableToy(lacking=True)
        fit(model, data, max_epochs=5, ckpt=ckpt, enable_checkpointing=True, callbacks=saves)
        return {**weights(model), **{k: v.clone() for k, v in blending.state_dict().items()}}

    whole = run(seed=0)
    names = ["end-epoch=0", "mid-step=6", "mid-step=9"]
    for name in names if mode == "offline" else [*names, "end-epoch=1", "mid-step=3", "val-epoch=1"]:
        resumed = run(seed=1, ckpt=tmp_path / f"{name}.ckpt")
        assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == [], name


# ---------------------------------------------------------------------------------------------------------- refused


class Rival(Regularizer):
    name = "gge"

    def main_loss(self, step: Step) -> Tensor | None:
        return step.loss


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientBlending(mode="of"), "model.gradient_blending.mode='of': must be one of online, offline"),  # type: ignore[arg-type]
        (lambda: GradientBlending(super_epoch=1), "model.gradient_blending.super_epoch=1: must be an integer >= 2"),
        (lambda: GradientBlending(held_out=0.0), "model.gradient_blending.held_out=0.0: must be a value in (0, 1)"),
        (lambda: GradientBlending(held_out=1.0), "model.gradient_blending.held_out=1.0"),
        (lambda: GradientBlending(weights={"audio": -1.0}), "model.gradient_blending.weights.audio=-1.0: must be"),
        (
            lambda: build(extra=[GradientBlending(weights={"audio": 1.0, "video": 1.0})]),
            "names 'audio', 'video'; must be exactly 'audio', 'video', 'fused'",
        ),
        (lambda: build(extra=[GradientBlending(weights={})]), "names none; must be exactly"),
        (lambda: build(modalities=["audio"], extra=[GradientBlending()]), "model.gradient_blending: needs at least 2"),
        (
            lambda: FusionClassifier({"fused": Linear(), "b": Linear()}, extra=[GradientBlending()]),
            "'fused' is the fused head; give that modality another name",
        ),
        (lambda: build(extra=[Rival(), GradientBlending()]), "cannot be combined with 'gge'"),
    ],
)
def test_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names() -> None:
    model = build(extra=[GradientBlending()], amr=AMR())
    assert (model.method, model.title) == ("gradient_blending+amr", "G-Blend w/ AMR")


# --------------------------------------------------------------------------------------------------------------- DDP

CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "online": ({"super_epoch": 2, "held_out": 0.3}, False),
    "offline": ({"super_epoch": 2, "held_out": 0.3, "mode": "offline"}, True),
    "given": ({"weights": {"audio": 0.2, "video": 0.3, "fused": 0.4}}, True),
}


def train(world: int, case: str) -> dict[str, Tensor]:
    options, lacking = CASES[case]
    blending = GradientBlending(**options)
    model = build(extra=[blending])
    fit_on(world, model, Toy(clips=48, batch_size=12, lacking=lacking), max_epochs=4)
    return {**weights(model), **blending.state_dict()}


def test_two_ranks_equal_one_process_on_the_joined_batch() -> None:
    """Although the ranks' parts are of different size: the heads, the measured losses and the weights, too."""
    for case, (one, *ranks) in on_one_and_two_ranks(train, CASES).items():
        assert [
            key for key in ranks[0] if not torch.equal(ranks[0][key].nan_to_num(), ranks[1][key].nan_to_num())
        ] == []
        for key, value in one.items():
            atol = 1e-4 if key == "weights" else 1e-6  # a quotient of small differences
            torch.testing.assert_close(ranks[0][key], value, rtol=0, atol=atol, equal_nan=True, msg=f"{case} {key}")
