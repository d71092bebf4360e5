"""OGM and OGM-GE: coefficients against a loop, and gradients read before and after them."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD, Adam

from amr.classifier import FusionClassifier
from amr.encoders.base import Encoder
from amr.fusion import Attention, Concat, Gated, Late, Sum
from amr.fusion.base import Fusion
from amr.model import FusionModel
from amr.regularizers import AMR, Dropout, ModalityDropout, Step
from amr.regularizers.gradients.ogm import OGM, OGMGE, EncoderModulation, gradient_noise, modulation_coefficients
from amr.utils.errors import UserError
from tests.ranks import assert_ranks_equal, fit_on, on_one_and_two_ranks
from tests.regularizers.probes import Convolution, ConvolutionTokens, build, hidden_concat, plain, probed
from tests.toy import Linear, Tokens, Toy
from tests.training import assert_equal, fit, weights

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty)"
)


# ------------------------------------------------------------------------------------------------------ the formula


def loop(scores: list[float], alpha: float) -> list[float]:
    """The definition, one modality at a time, in Python's own numbers."""
    coefficients = []
    for m, score in enumerate(scores):
        rest = [other for j, other in enumerate(scores) if j != m]
        ratio = score * len(rest) / math.fsum(rest)
        # 1 - tanh(x) = 2 / (1 + exp(2 x))
        coefficients.append(2 / (1 + math.exp(2 * alpha * ratio)) if ratio > 1 else 1.0)
    return coefficients


@pytest.mark.parametrize("modalities", [2, 3, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.8, 3.0])
def test_coefficients_equal_a_loop(modalities: int, alpha: float) -> None:
    generator = torch.Generator().manual_seed(modalities)
    for _ in range(50):
        scores = torch.rand(modalities, generator=generator, dtype=torch.float64) * 64 + 1e-3
        expected = torch.tensor(loop(scores.tolist(), alpha), dtype=torch.float64)
        torch.testing.assert_close(modulation_coefficients(scores, alpha), expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(modulation_coefficients(scores.float(), alpha), expected.float(), rtol=0, atol=1e-5)
        assert torch.equal(modulation_coefficients(scores * 8, alpha), modulation_coefficients(scores, alpha))
        reversed_ = modulation_coefficients(scores.flip(0), alpha).flip(0)
        torch.testing.assert_close(reversed_, expected, rtol=1e-9, atol=1e-12)


def test_with_two_modalities_only_the_one_ahead_is_slowed_the_more_the_further_it_is() -> None:
    leads = torch.stack([modulation_coefficients(torch.tensor([lead, 1.0]), 0.8) for lead in (0.5, 1.0, 1.1, 2.0, 4.0)])
    assert (leads[:, 1] == torch.tensor([2 / (1 + math.exp(3.2)), 1, 1, 1, 1])).tolist() == [False, *[True] * 4]
    assert leads[0].tolist() == pytest.approx([1, 1 - math.tanh(1.6)])
    assert leads[:2, 0].tolist() == [1, 1]  # equal scores: nobody is ahead
    assert leads[2:, 0].tolist() == pytest.approx([1 - math.tanh(0.8 * lead) for lead in (1.1, 2.0, 4.0)], abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "alpha", "expected"),
    [
        ([0.0, 0.0], 0.8, [1.0, 1.0]),
        ([0.0, 0.0, 0.0], 0.8, [1.0, 1.0, 1.0]),
        ([3.0, 0.0], 0.8, [0.0, 1.0]),  # infinitely far ahead
        ([3.0, 0.0], 0.0, [1.0, 1.0]),
        ([0.0, 2.0, 2.0], 0.5, [1.0, 1 - math.tanh(1.0), 1 - math.tanh(1.0)]),
        ([1e30, 1e-30], 0.1, [0.0, 1.0]),
        ([math.nan, 1.0], 0.1, [1.0, 1.0]),  # an overflowed step: left alone, and skipped by the scaler
    ],
)
def test_coefficients_at_the_edges(scores: list[float], alpha: float, expected: list[float]) -> None:
    assert modulation_coefficients(torch.tensor(scores), alpha).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(), (1,), (2, 2)])
def test_scores_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(M,\) with M >= 2"):
        modulation_coefficients(torch.ones(shape), 0.1)


@pytest.mark.parametrize("std", [0.0, 1e-4, 3.0])
def test_noise_has_the_gradients_spread(std: float) -> None:
    gradient = 7 + std * torch.randn(4, 50_000, generator=torch.Generator().manual_seed(0))
    noise = gradient_noise(gradient, torch.Generator().manual_seed(1))
    assert noise.shape == gradient.shape
    spread = gradient.std().item() + 1e-8
    assert noise.mean().item() == pytest.approx(0, abs=5 * spread / 200_000**0.5)  # five standard errors
    assert noise.std().item() == pytest.approx(spread, rel=5 / 400_000**0.5)
    assert torch.equal(noise, gradient_noise(gradient, torch.Generator().manual_seed(1)))
    assert not torch.equal(noise, gradient_noise(gradient, torch.Generator().manual_seed(2)))


def test_a_single_number_has_no_spread() -> None:
    noise = gradient_noise(torch.tensor([[5.0]]), torch.Generator().manual_seed(0))
    assert 0 < noise.abs().item() < 1e-7


# ------------------------------------------------------------------------------------------- the gradients of training


def expected_scores(head: Fusion, step: Step) -> Tensor:
    """s_m, another way: from the weights' columns, or the head with the others' encodings multiplied by 0."""
    encodings = {name: e.double() for name, e in step.encodings.items()}
    pooled = {name: e if e.ndim == 2 else e.sum(1) / e.shape[1] for name, e in encodings.items()}
    head = head.double().eval()
    scores = []
    for m, name in enumerate(encodings):
        if isinstance(head, Late):
            logits = head.classifiers[name](pooled[name])
        elif type(head) is Concat and isinstance(head.hidden, nn.Identity):
            columns = head.classifier.weight[:, 8 * m : 8 * m + 8]
            logits = torch.einsum("bd,cd->bc", pooled[name], columns) + head.classifier.bias / len(encodings)
        elif isinstance(head, Sum):
            logits = head.classifier(head.projections[name](pooled[name]))
            logits = logits - head.classifier.bias * (1 - 1 / len(encodings))
        else:
            logits = head({other: e * (other == name) for other, e in encodings.items()})
        probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)
        scores.append(sum(probabilities[i, y] for i, y in enumerate(step.label.tolist())))
    return torch.stack([torch.as_tensor(score) for score in scores]).detach()


@pytest.mark.parametrize("encoder", [Convolution, ConvolutionTokens])
@pytest.mark.parametrize("fusion", [Concat, Sum, Late, hidden_concat, Gated, Attention])
def test_convolutions_gradients_are_scaled_and_nothing_else(fusion: Any, encoder: Any) -> None:
    before, after, _ = probed(OGM(alpha=0.6), fusion=fusion, encoder=encoder)
    assert len(before.gradients) == 4
    slowed = 0
    for was, now, head, (step,) in zip(before.gradients, after.gradients, before.heads, before.steps, strict=True):
        k = loop(expected_scores(head, step).tolist(), 0.6)
        assert min(k) < 0.5
        assert max(k) == 1
        for name, gradient in was.items():
            m = {"encoders.audio.conv.weight": 0, "encoders.video.conv.weight": 1}.get(name)
            if m is None or k[m] == 1:
                assert torch.equal(now[name], gradient), name
            else:
                torch.testing.assert_close(now[name], k[m] * gradient, rtol=1e-4, atol=1e-9)
                slowed += 1
    assert slowed == 4


def test_all_parameters_of_three_encoders_may_be_scaled() -> None:
    modalities = ("a", "b", "c")
    method = OGM(alpha=0.3, parameters="all")
    data = Toy(batch_size=16, modalities=modalities)
    before, after, _ = probed(method, data, encoder=Linear, modalities=modalities)
    seen = set()
    for was, now, head, (step,) in zip(before.gradients, after.gradients, before.heads, before.steps, strict=True):
        k = dict(zip(modalities, loop(expected_scores(head, step).tolist(), 0.3), strict=True))
        assert sum(value < 1 for value in k.values()) in (1, 2)
        for name, gradient in was.items():
            factor = k[name.split(".")[1]] if name.startswith("encoders.") else 1.0
            torch.testing.assert_close(now[name], factor * gradient, rtol=1e-4, atol=1e-9)
            seen.add(name)
    assert len(seen) == 3 * 2 + 2


def test_kernels_of_every_dimension_and_reparametrized_ones_are_convolutions() -> None:
    class Kernels(Encoder):
        out_dim = 1

        def __init__(self) -> None:
            super().__init__()
            self.flat, self.solid = nn.Conv2d(1, 2, 3), nn.Conv3d(1, 2, 3)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 2, 3))
            self.linear = nn.Linear(2, 2)

    encoder = Kernels()
    chosen = {id(p) for p in OGM().modulated(encoder)}
    names = {name for name, p in encoder.named_parameters() if id(p) in chosen}
    assert names == {"flat.weight", "solid.weight"} | {f"normed.parametrizations.weight.original{i}" for i in (0, 1)}


@pytest.mark.parametrize("make", [OGM, OGMGE])
def test_it_acts_in_its_epochs_alone(make: Any) -> None:
    before, after, trainer = probed(make(alpha=0.5, start_epoch=1, end_epoch=2), flags={"max_epochs": 3})
    name = f"train/{make.name}/k/audio"
    changed = [
        any(not torch.equal(was[name], now[name]) for name in was)
        for was, now in zip(before.gradients, after.gradients, strict=True)
    ]
    assert changed == [False] * 2 + [True] * 2 + [False] * 2
    assert trainer.callback_metrics[name] == 1  # of the last epoch


@pytest.mark.parametrize("make", [OGM, OGMGE])
@pytest.mark.parametrize("flags", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}])
def test_alpha_zero_equals_naive_bit_for_bit(make: Any, flags: dict[str, Any]) -> None:
    models = [build(dropout=Dropout(0.5)), *(build(make(alpha=alpha), dropout=Dropout(0.5)) for alpha in (0.0, 0.5))]
    for model in models:
        fit(model, **flags)
    naive, zero, acting = (weights(model) for model in models)
    assert_equal(naive, zero)
    assert any(not torch.equal(naive[key], acting[key]) for key in naive)


def test_clipping_comes_after_it() -> None:
    model = build(OGMGE(alpha=0.5), optimizer=lambda p: SGD(p, lr=1.0))
    start = weights(model)
    fit(model, max_epochs=1, gradient_clip_val=1e-6)
    moved = [(weights(model)[name] - start[name]).norm() for name, _ in model.model.named_parameters()]
    assert 0 < torch.stack(moved).norm() < 4 * 1.01e-6


def test_accumulated_micro_batches_equal_one_batch() -> None:
    """With the same scores, and so the same coefficients, to rounding. OGM-GE's noise has another seed."""
    big, small = (build(OGM(alpha=0.5), fusion=Gated, encoder=plain) for _ in range(2))
    fit(big, Toy(batch_size=16))
    fit(small, Toy(batch_size=8), accumulate_grad_batches=2)
    assert_equal(weights(big), weights(small), atol=1e-6)


def test_report_is_the_epochs_mean() -> None:
    before, _, trainer = probed(OGM(alpha=0.4), Toy(clips=64, batch_size=16))
    k = [loop(expected_scores(h, s).tolist(), 0.4) for h, (s,) in zip(before.heads, before.steps, strict=True)][4:]
    means = [sum(column) / 4 for column in zip(*k, strict=True)]
    reported = [trainer.callback_metrics[f"train/ogm/k/{name}"].item() for name in ("audio", "video")]
    assert reported == pytest.approx(means, rel=1e-4)
    assert min(means) < 1


def test_clips_that_lack_a_modality_do_not_count() -> None:
    before, after, _ = probed(OGM(alpha=0.6), Toy(batch_size=16, lacking=True), encoder=plain)
    for was, now, head, (step,) in zip(before.gradients, after.gradients, before.heads, before.steps, strict=True):
        assert step.present is not None
        rows = step.present["video"]
        assert 0 < rows.sum() < len(rows)
        scores = []
        for kept in (rows, torch.ones_like(rows)):
            logits = head.unimodal_logits({name: e[kept] for name, e in step.encodings.items()})
            label = step.label[kept]
            scores.append([z.softmax(1)[torch.arange(len(label)), label].sum().item() for z in logits.values()])
        k, of_all = (loop(score, 0.6) for score in scores)
        assert k != pytest.approx(of_all, rel=1e-3)
        for m, name in enumerate(("audio", "video")):
            weight = f"encoders.{name}.conv.weight"
            torch.testing.assert_close(now[weight], k[m] * was[weight], rtol=1e-4, atol=1e-9)


def test_nothing_is_scaled_where_no_clip_is_complete() -> None:
    data = Toy(batch_size=16, lacking=True)
    collate = data.collate

    def disjoint(indices: list[int]) -> dict[str, Any]:
        batch = collate(indices)
        has = torch.tensor([i % 2 == 0 for i in indices])
        return {**batch, "present": {"audio": has, "video": ~has}}

    data.collate = disjoint  # type: ignore[method-assign]
    before, after, _ = probed(OGM(alpha=0.6), data, encoder=plain)
    for was, now in zip(before.gradients, after.gradients, strict=True):
        assert_equal(was, now)


def test_scores_are_of_clean_encodings() -> None:
    options: dict[str, Any] = {"modality_dropout": ModalityDropout(0.9), "amr": AMR()}
    before, after, trainer = probed(OGM(alpha=0.6), **options)
    for was, now, head, (step,) in zip(before.gradients, after.gradients, before.heads, before.steps, strict=True):
        k = loop(expected_scores(head, step).tolist(), 0.6)
        for m, name in enumerate(("audio", "video")):
            weight = f"encoders.{name}.conv.weight"
            torch.testing.assert_close(now[weight], k[m] * was[weight], rtol=1e-4, atol=1e-9)
    module = trainer.lightning_module
    assert isinstance(module, FusionClassifier)
    assert module.method == "modality_dropout+probe59+ogm+probe70+amr"


def test_noise_is_added_to_every_modality_from_the_unscaled_gradient() -> None:
    """In units of that gradient's std it is standard normal, whatever k; the same gradients give the same noise."""
    runs = [probed(OGMGE(alpha=0.6, parameters="all"), Toy(clips=160, batch_size=16), encoder=plain) for _ in range(2)]
    draws: dict[str, list[Tensor]] = {"audio": [], "video": []}
    (before, after, _), (_, again, _) = runs
    for was, now, repeated, head, (step,) in zip(
        before.gradients, after.gradients, again.gradients, before.heads, before.steps, strict=True
    ):
        k = dict(zip(draws, loop(expected_scores(head, step).tolist(), 0.6), strict=True))
        assert_equal(now, repeated)
        for name, gradient in was.items():
            if name.startswith("encoders."):
                noise = now[name] - k[name.split(".")[1]] * gradient
                draws[name.split(".")[1]].append((noise / gradient.std()).flatten())
            else:
                assert torch.equal(now[name], gradient)
    for name, parts in draws.items():
        standard = torch.cat(parts)
        assert len(standard) == 20 * 152
        assert standard.mean().item() == pytest.approx(0, abs=5 / len(standard) ** 0.5), name
        assert standard.std().item() == pytest.approx(1, abs=5 / (2 * len(standard)) ** 0.5), name
    every = torch.stack([torch.cat(draws["audio"]), torch.cat(draws["video"])])
    assert torch.corrcoef(every)[0, 1].abs() < 5 / every.shape[1] ** 0.5  # the modalities do not share theirs
    first, second = draws["audio"][0], draws["audio"][len(draws["audio"]) // 2]
    assert not torch.allclose(first, second)  # nor do steps


@pytest.mark.parametrize("make", [OGM, OGMGE])
@pytest.mark.parametrize("case", ["bf16-mixed", "16-mixed", "64-true", "dead", "one-row", "lacking"])
def test_nothing_becomes_nan(make: Any, case: str) -> None:
    model = build(make(alpha=0.8), modality_dropout=ModalityDropout(0.3), fusion=Gated, encoder=plain)
    data = Toy(
        clips=8 if case == "one-row" else 32, batch_size=1 if case == "one-row" else 8, lacking=case == "lacking"
    )
    flags: dict[str, Any] = {}
    if case == "dead":
        for parameter in model.model.encoders.parameters():
            nn.init.zeros_(parameter)
    elif case == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # type: ignore[attr-defined]
        flags = {"plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}
    elif case in ("bf16-mixed", "64-true"):
        flags = {"precision": case}
    if case == "64-true":
        data.inputs = {name: x.double() for name, x in data.inputs.items()}
    start = weights(model)
    fit(model, data, **flags)
    end = weights(model)
    assert all(torch.isfinite(value).all() for value in end.values())
    assert any(not torch.equal(start[key].to(end[key]), end[key]) for key in end)


def test_scores_are_computed_in_single_precision_under_autocast() -> None:
    before, after, _ = probed(OGM(alpha=0.6), encoder=plain, flags={"precision": "bf16-mixed"})
    for was, now, head, (step,) in zip(before.gradients, after.gradients, before.heads, before.steps, strict=True):
        assert step.encodings["audio"].dtype == torch.bfloat16
        k = loop(expected_scores(head, step).tolist(), 0.6)
        weight = f"encoders.{'audio' if k[0] < 1 else 'video'}.conv.weight"
        torch.testing.assert_close(now[weight], min(k) * was[weight], rtol=1e-5, atol=1e-9)


def test_frozen_convolutions_are_left_alone() -> None:
    model = build(OGMGE(alpha=0.8))
    frozen: Any = model.model.encoders["audio"]
    frozen.conv.weight.requires_grad_(False)
    kernel = frozen.conv.weight.clone()
    fit(model)
    assert torch.equal(frozen.conv.weight, kernel)


@pytest.mark.parametrize("make", [OGM, OGMGE])
def test_resuming_equals_going_on(make: Any, tmp_path: Path) -> None:
    """From the checkpoint of epoch 1, in the report as in the weights."""
    options: dict[str, Any] = {"max_epochs": 3, "enable_checkpointing": True}
    states = []
    for seed, checkpoint in ((0, None), (1, tmp_path / "epoch=1.ckpt")):
        model = build(make(alpha=0.5), seed=seed, dropout=Dropout(0.5))
        saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = fit(model, ckpt=checkpoint, callbacks=[saver], **options)
        reported = {key: value for key, value in trainer.callback_metrics.items() if f"{make.name}/k/" in key}
        assert len(reported) == 2
        states.append({**weights(model), **reported})
    assert_equal(states[0], states[1])


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OGM(alpha=-1), "model.ogm.alpha=-1: must be a finite number >= 0"),
        (lambda: OGMGE(alpha=math.inf), "model.ogm_ge.alpha=inf"),
        (lambda: OGM(start_epoch=-1), "model.ogm: start_epoch=-1"),
        (lambda: OGMGE(start_epoch=3, end_epoch=3), "model.ogm_ge: start_epoch=3, end_epoch=3"),
        (lambda: OGM(parameters="some"), "model.ogm.parameters='some': must be one of conv, all"),  # type: ignore[arg-type]
        (lambda: build(OGM(), encoder=Linear), "encoder of 'audio' has no convolution; set parameters: all"),
        (lambda: build(OGMGE(), encoder=Tokens), "model.ogm_ge.parameters=conv"),
        (lambda: build(OGM(), OGMGE()), "model.ogm: cannot be combined with 'ogm_ge'"),
        (lambda: build(OGM(), modalities=("audio",)), "model.ogm: needs at least 2 modalities"),
    ],
)
def test_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_adam_warns() -> None:
    model = build(OGM(), optimizer=lambda p: Adam(p, lr=1e-3))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec")
        with pytest.warns(UserWarning, match="what ogm does by scaling"):
            fit(model, max_epochs=1)


def test_no_reference_to_the_model_is_kept() -> None:
    """A method that held the model would save it twice."""
    for method in (OGM(), OGMGE()):
        model = build(method)
        assert not list(method.parameters())
        assert set(method.state_dict()) == {"means.sums", "means.counts"}
        assert not any(isinstance(value, FusionModel) for value in vars(method).values())
        assert isinstance(method, EncoderModulation)
        assert model.regularizers.scaling == [method.name]


# --------------------------------------------------------------------------------------------------------------- DDP

CASES: dict[str, tuple[Any, Any, bool]] = {
    "ogm": (lambda: OGM(alpha=0.5), Concat, False),
    "ogm_ge": (lambda: OGMGE(alpha=0.5), Gated, False),
    "lacking": (lambda: OGM(alpha=0.5), Concat, True),
}


def train(world: int, case: str) -> dict[str, Tensor]:
    make, fusion, lacking = CASES[case]
    model = build(make(), fusion=fusion, encoder=plain)
    fit_on(world, model, Toy(batch_size=16, lacking=lacking))
    return weights(model)


@pytest.fixture(scope="module")
def ddp() -> dict[str, Any]:
    """Final weights of each case, by one process and by each of two gloo ranks."""
    return on_one_and_two_ranks(train, CASES)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process_on_the_joined_batch(ddp: dict[str, Any], case: str) -> None:
    assert_ranks_equal(ddp[case], atol=1e-6)
