"""AGM: Shapley values against permutations, and gradients read before and after it."""

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD

from amr.fusion import Attention, Concat, Gated, Late, Sum
from amr.fusion.base import Fusion
from amr.model import FusionModel
from amr.regularizers import AMR, Dropout, ModalityDropout, Step
from amr.regularizers.gradients.agm import (
    AGM,
    attributed_logits,
    competition_ratios,
    modulation_factors,
    shapley_logits,
)
from amr.regularizers.gradients.ogm import OGM
from amr.utils.errors import UserError
from tests.ranks import assert_ranks_equal, fit_on, on_one_and_two_ranks
from tests.regularizers.probes import Convolution, ConvolutionTokens, Probe, build, hidden_concat, plain, probed
from tests.toy import Linear, Tokens, Toy
from tests.training import assert_equal, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty)"
)


# ------------------------------------------------------------------------------------------------------ the formulas


def random_game(modalities: int, seed: int = 0) -> dict[frozenset[str], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = "abcdef"[:modalities]
    sets = [frozenset(s) for size in range(1, modalities + 1) for s in itertools.combinations(names, size)]
    return {members: torch.randn(4, 3, generator=generator, dtype=torch.float64) for members in sets}


def by_permutations(game: Mapping[frozenset[str], Tensor], name: str) -> Tensor:
    """Mean of what `name` adds when the modalities join one after the other, over all orders."""
    orders = list(itertools.permutations(sorted(frozenset[str]().union(*game))))
    gains = []
    for order in orders:
        before = frozenset(order[: order.index(name)])
        gains.append(game[before | {name}] - (game[before] if before else 0))
    return torch.stack(gains).mean(0)


@pytest.mark.parametrize("modalities", [1, 2, 3, 4, 5])
def test_shapley_values_equal_the_mean_over_permutations(modalities: int) -> None:
    game = random_game(modalities)
    parts = shapley_logits(game)
    assert sorted(parts) == list("abcdef"[:modalities])
    for name, part in parts.items():
        torch.testing.assert_close(part, by_permutations(game, name), rtol=1e-12, atol=1e-12)
    total = sum(parts.values(), torch.zeros(4, 3, dtype=torch.float64))
    torch.testing.assert_close(total, game[frozenset(parts)], rtol=1e-12, atol=1e-12)


def test_two_modalities_have_the_papers_formula() -> None:
    game = random_game(2)
    full, a, b = game[frozenset("ab")], game[frozenset("a")], game[frozenset("b")]
    parts = attributed_logits(full, {"a": b, "b": a})  # without a there is b
    torch.testing.assert_close(parts["a"], 0.5 * (full - b + a))
    torch.testing.assert_close(parts["b"], 0.5 * (full - a + b))
    for name, part in shapley_logits(game).items():
        torch.testing.assert_close(parts[name], part)


def test_three_modalities_have_the_released_formula() -> None:
    game = {"".join(sorted(members)): value for members, value in random_game(3).items()}
    parts = shapley_logits(random_game(3))
    expected = (game["abc"] - game["bc"] + game["a"]) / 3 + (game["ab"] - game["b"] + game["ac"] - game["c"]) / 6
    torch.testing.assert_close(parts["a"], expected)


def test_a_linear_head_is_split_like_its_weights() -> None:
    head = Concat({"a": 4, "b": 5}, 3)
    encodings = {"a": torch.randn(6, 4), "b": torch.randn(6, 5)}
    only = {name: head({n: e * (n == name) for n, e in encodings.items()}) for name in encodings}
    parts = attributed_logits(head(encodings), {"a": only["b"], "b": only["a"]})
    for name, logits in head.unimodal_logits(encodings).items():
        torch.testing.assert_close(parts[name], logits)


def test_other_numbers_of_modalities_and_missing_coalitions_are_refused() -> None:
    x = torch.zeros(1, 2)
    for without in ({}, {"a": x}, {"a": x, "b": x, "c": x}):
        with pytest.raises(ValueError, match=f"without: {len(without)} modalities, expected 2"):
            attributed_logits(x, without)
    game = random_game(3)
    del game[frozenset("ac")]
    with pytest.raises(ValueError, match="{a, c} is missing"):
        shapley_logits(game)


def loop(scores: list[float], past: list[float], alpha: float) -> list[float]:
    """The definition in Python's own numbers: ratios of probabilities, not differences of logarithms."""

    def ratio(values: list[float], m: int) -> float:
        geometric = math.prod(math.exp(-v) for j, v in enumerate(values) if j != m) ** (1 / (len(values) - 1))
        return math.exp(-values[m]) / geometric

    return [math.exp(alpha * min(ratio(past, m) - ratio(scores, m), 10.0)) for m in range(len(scores))]


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("alpha", [0.0, 1.5, 4.0])
def test_factors_equal_a_loop(modalities: int, alpha: float) -> None:
    generator = torch.Generator().manual_seed(modalities)
    for _ in range(50):
        scores, past = (4 * torch.rand(modalities, generator=generator, dtype=torch.float64) for _ in range(2))
        expected = torch.tensor(loop(scores.tolist(), past.tolist(), alpha), dtype=torch.float64)
        torch.testing.assert_close(modulation_factors(scores, past, alpha), expected, rtol=1e-9, atol=0)
        shifted = modulation_factors(scores + 3, past - 2, alpha)  # only differences between modalities count
        torch.testing.assert_close(shifted, expected, rtol=1e-9, atol=0)


def test_a_modality_further_ahead_than_before_is_slowed_and_the_other_sped_up() -> None:
    past = torch.tensor([1.0, 1.2])
    factors = [modulation_factors(torch.tensor([lead, 1.2]), past, 1.5) for lead in (0.6, 1.0, 1.4)]
    assert factors[0][0] < 1 < factors[0][1]
    assert factors[1].tolist() == [1, 1]
    assert factors[2][0] > 1 > factors[2][1]
    assert competition_ratios(past).tolist() == pytest.approx([math.exp(0.2), math.exp(-0.2)])


def test_factors_are_bounded_and_finite_at_the_extremes() -> None:
    worst = -math.log(1e-8)
    for scores, past in itertools.product(itertools.product((0.0, worst), repeat=2), repeat=2):
        factors = modulation_factors(torch.tensor(scores), torch.tensor(past), 8.0)
        assert torch.isfinite(factors).all()
        assert (factors >= 0).all()
        assert (factors <= math.exp(80.1)).all()


# ------------------------------------------------------------------------------------------- the gradients of training


def cross_entropies(head: Fusion, step: Step, rows: Tensor | None = None) -> list[float]:
    """s_m of one step, by permutations and in double precision."""
    kept = torch.ones(len(step.label), dtype=torch.bool) if rows is None else rows
    encodings = {name: e[kept].double() for name, e in step.encodings.items()}
    head = head.double().eval()
    sets = [frozenset(s) for size in range(1, 4) for s in itertools.combinations(encodings, size)]
    game = {members: head({n: e * (n in members) for n, e in encodings.items()}).detach() for members in sets}
    scores = []
    for name in encodings:
        probabilities = by_permutations(game, name).softmax(1)
        scores.append(-math.log(math.prod(p[y].item() for p, y in zip(probabilities, step.label[kept], strict=True))))
    return [score / int(kept.sum()) for score in scores]


def expected_factors(probe: Probe, alpha: float) -> Iterator[list[float]]:
    """Factors of each step, from the mean of all scores before it (0 before the first)."""
    history: list[list[float]] = []
    for head, (step,) in zip(probe.heads, probe.steps, strict=True):
        rows = None if step.present is None else step.present["video"]
        scores = cross_entropies(head, step, rows)
        past = [sum(column) / len(history) for column in zip(*history, strict=True)] if history else [0.0] * len(scores)
        yield loop(scores, past, alpha)
        history.append(scores)


def assert_encoders_are_scaled(before: Probe, after: Probe, modalities: tuple[str, ...], alpha: float) -> None:
    moved = 0.0
    steps = zip(before.gradients, after.gradients, expected_factors(before, alpha), strict=True)
    for was, now, factors in steps:
        k = dict(zip(modalities, factors, strict=True))
        moved = max(moved, *(abs(factor - 1) for factor in factors))
        for name, gradient in was.items():
            if name.startswith("encoders."):
                torch.testing.assert_close(now[name], k[name.split(".")[1]] * gradient, rtol=1e-4, atol=1e-9)
            else:
                assert torch.equal(now[name], gradient), name
    assert moved > 0.02


@pytest.mark.parametrize("encoder", [Convolution, ConvolutionTokens])
@pytest.mark.parametrize("fusion", [Concat, Sum, Late, hidden_concat, Gated, Attention])
def test_the_encoders_gradients_are_scaled_and_the_heads_are_not(fusion: Any, encoder: Any) -> None:
    before, after, _ = probed(AGM(alpha=4.0), fusion=fusion, encoder=encoder)
    assert len(before.gradients) == 4
    assert_encoders_are_scaled(before, after, ("audio", "video"), 4.0)


def test_three_modalities() -> None:
    modalities = ("a", "b", "c")
    data = Toy(batch_size=16, modalities=modalities)
    before, after, trainer = probed(AGM(alpha=4.0), data, encoder=Linear, modalities=modalities, fusion=Gated)
    assert_encoders_are_scaled(before, after, modalities, 4.0)
    assert {f"train/agm/k/{name}" for name in modalities} <= trainer.callback_metrics.keys()


def test_clips_that_lack_a_modality_do_not_count() -> None:
    before, after, _ = probed(AGM(alpha=4.0), Toy(batch_size=16, lacking=True), encoder=plain)
    assert all(0 < step.present["video"].sum() < 16 for (step,) in before.steps if step.present)
    assert_encoders_are_scaled(before, after, ("audio", "video"), 4.0)
    head, (step,) = before.heads[0], before.steps[0]
    assert step.present is not None
    assert cross_entropies(head, step) != pytest.approx(cross_entropies(head, step, step.present["video"]), rel=1e-3)


def test_scores_are_of_clean_encodings_beside_other_methods() -> None:
    options: dict[str, Any] = {"modality_dropout": ModalityDropout(0.9), "amr": AMR()}
    before, after, _ = probed(AGM(alpha=4.0), encoder=Tokens, **options)
    assert_encoders_are_scaled(before, after, ("audio", "video"), 4.0)


def test_its_factors_multiply_those_of_ogm() -> None:
    between = Probe(60)
    between.__dict__["order"] = 60.5
    before, after = Probe(59), Probe(70)
    fit(build(AGM(alpha=4.0), OGM(alpha=0.5), before, between, after), Toy(batch_size=16))
    assert any(not torch.equal(a[n], b[n]) for a, b in zip(before.gradients, between.gradients, strict=True) for n in a)
    assert_encoders_are_scaled(between, after, ("audio", "video"), 4.0)


def test_the_past_is_remembered_before_it_acts() -> None:
    """From `start_epoch` on the factors are those of a method that saw every step; after `end_epoch` there are none."""
    before, after, trainer = probed(AGM(alpha=4.0, start_epoch=1, end_epoch=2), flags={"max_epochs": 3})
    steps = zip(before.gradients, after.gradients, expected_factors(before, 4.0), strict=True)
    for index, (was, now, factors) in enumerate(steps):
        for m, name in enumerate(("audio", "video")):
            weight = f"encoders.{name}.project.weight"
            factor = factors[m] if index in (2, 3) else 1.0
            torch.testing.assert_close(now[weight], factor * was[weight], rtol=1e-4, atol=1e-9)
        if index in (2, 3):
            assert max(abs(factor - 1) for factor in factors) > 1e-3
    assert trainer.callback_metrics["train/agm/k/audio"] == 1


def test_report_is_the_epochs_mean() -> None:
    before, _, trainer = probed(AGM(alpha=4.0), Toy(clips=64, batch_size=16))
    means = [sum(column) / 4 for column in zip(*list(expected_factors(before, 4.0))[4:], strict=True)]
    reported = [trainer.callback_metrics[f"train/agm/k/{name}"].item() for name in ("audio", "video")]
    assert reported == pytest.approx(means, rel=1e-4)


@pytest.mark.parametrize("flags", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}])
def test_alpha_zero_equals_naive_bit_for_bit(flags: dict[str, Any]) -> None:
    models = [build(dropout=Dropout(0.5)), *(build(AGM(alpha=alpha), dropout=Dropout(0.5)) for alpha in (0.0, 2.0))]
    for model in models:
        fit(model, **flags)
    naive, zero, acting = (weights(model) for model in models)
    assert_equal(naive, zero)
    assert any(not torch.equal(naive[key], acting[key]) for key in naive)


def test_clipping_comes_after_it() -> None:
    model = build(AGM(alpha=8.0), optimizer=lambda p: SGD(p, lr=1.0))
    start = weights(model)
    fit(model, max_epochs=1, gradient_clip_val=1e-6)
    moved = [(weights(model)[name] - start[name]).norm() for name, _ in model.model.named_parameters()]
    assert 0 < torch.stack(moved).norm() < 4 * 1.01e-6


def test_accumulated_micro_batches_equal_one_batch() -> None:
    big, small = (build(AGM(alpha=2.0), fusion=Gated, encoder=plain) for _ in range(2))
    fit(big, Toy(batch_size=16))
    fit(small, Toy(batch_size=8), accumulate_grad_batches=2)
    assert_equal(weights(big), weights(small), atol=1e-6)


@pytest.mark.parametrize("case", ["bf16-mixed", "16-mixed", "64-true", "dead", "one-row", "lacking", "sure"])
def test_nothing_becomes_nan(case: str) -> None:
    method = AGM(alpha=4.0)
    model = build(method, modality_dropout=ModalityDropout(0.3), fusion=Gated, encoder=plain)
    one = case == "one-row"
    data = Toy(clips=8 if one else 32, batch_size=1 if one else 8, lacking=case == "lacking")
    flags: dict[str, Any] = {"gradient_clip_val": 1.0}
    if case == "dead":
        for parameter in model.model.encoders.parameters():
            nn.init.zeros_(parameter)
    elif case == "sure":  # probabilities underflow to 0
        model.model.head.classifier.weight.data.mul_(1e4)
    elif case == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # type: ignore[attr-defined]
        flags["plugins"] = [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]
    elif case in ("bf16-mixed", "64-true"):
        flags["precision"] = case
    if case == "64-true":
        data.inputs = {name: x.double() for name, x in data.inputs.items()}
    start = weights(model)
    fit(model, data, **flags)
    end = {**weights(model), **dict(method.named_buffers())}
    assert all(torch.isfinite(value).all() for value in end.values())
    assert any(not torch.equal(value.to(end[key]), end[key]) for key, value in start.items())
    assert method.past_steps == (16 if one else 8)


def test_a_step_without_a_usable_score_is_forgotten() -> None:
    """One in which 16-mixed overflowed, or in which no clip is complete: its gradients stay, and so does the past."""
    method = AGM(alpha=4.0)
    before, after, _ = probed(method)
    model, (step,) = before.steps[0][0].model, before.steps[0]
    past, count = method.past.clone(), int(method.past_steps)
    broken = {**step.encodings, "audio": step.encodings["audio"] * math.nan}
    nobody = {"video": torch.zeros(len(step.label), dtype=torch.bool)}
    for changes in ({"encodings": broken}, {"present": nobody}):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        method.on_gradients([Step(**{**vars(step), **changes})])
        assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters() if parameter.grad is not None)
        assert torch.equal(method.past, past)
        assert method.past_steps == count == len(after.gradients)


def test_resuming_equals_going_on(tmp_path: Path) -> None:
    """From the checkpoint of epoch 1: the past goes on where it was."""
    states = []
    for seed, checkpoint in ((0, None), (1, tmp_path / "epoch=1.ckpt")):
        method = AGM(alpha=4.0)
        model = build(method, seed=seed, dropout=Dropout(0.5))
        saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fit(model, ckpt=checkpoint, callbacks=[saver], max_epochs=3, enable_checkpointing=True)
        states.append({**weights(model), **dict(method.named_buffers())})
    assert_equal(states[0], states[1])
    assert states[0]["past_steps"] == 12
    assert states[0]["past"].min() > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AGM(alpha=-0.1), "model.agm.alpha=-0.1: must be a value in [0, 8]"),
        (lambda: AGM(alpha=8.1), "model.agm.alpha=8.1"),
        (lambda: AGM(alpha=math.nan), "model.agm.alpha=nan"),
        (lambda: AGM(start_epoch=2, end_epoch=1), "model.agm: start_epoch=2, end_epoch=1"),
        (lambda: build(AGM(), modalities=("audio",)), "model.agm: needs at least 2 modalities"),
        (lambda: build(AGM(), AGM()), "'agm' is given twice"),
    ],
)
def test_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_reference_to_the_model_is_kept() -> None:
    method = AGM()
    model = build(method)
    assert not list(method.parameters())
    assert set(method.state_dict()) == {"means.sums", "means.counts", "past", "past_steps"}
    assert not any(isinstance(value, FusionModel) for value in vars(method).values())
    assert model.regularizers.scaling == ["agm"]


# --------------------------------------------------------------------------------------------------------------- DDP

CASES: dict[str, tuple[Any, bool]] = {"concat": (Concat, False), "gated": (Gated, False), "lacking": (Concat, True)}


def train(world: int, case: str) -> dict[str, Tensor]:
    fusion, lacking = CASES[case]
    model = build(AGM(alpha=2.0), fusion=fusion, encoder=plain)
    fit_on(world, model, Toy(batch_size=16, lacking=lacking))
    return weights(model)


@pytest.fixture(scope="module")
def ddp() -> dict[str, Any]:
    """Final weights of each case, by one process and by each of two gloo ranks."""
    return on_one_and_two_ranks(train, CASES)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process_on_the_joined_batch(ddp: dict[str, Any], case: str) -> None:
    assert_ranks_equal(ddp[case], atol=1e-6)
