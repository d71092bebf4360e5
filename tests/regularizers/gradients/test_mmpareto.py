"""MMPareto: the geometry of two gradients, and what each parameter really gets in training."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam

from amr.classifier import FusionClassifier
from amr.fusion import Concat, Gated
from amr.fusion.base import pool_tokens
from amr.regularizers import Regularizer, Step
from amr.regularizers.gradients.mmpareto import MMPareto, combine, min_norm_weights
from amr.regularizers.shared import Window
from amr.utils.errors import UserError
from tests.ranks import assert_ranks_equal, fit_on, on_one_and_two_ranks
from tests.toy import Linear, Tokens, Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|logging interval|exists and is not empty)")


# ------------------------------------------------------------------------------------------------- the pure functions


def pairs(count: int = 60) -> list[tuple[Tensor, Tensor]]:
    """Pairs in double precision, some of very different lengths, about half of them in conflict."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(count):
        a, b = torch.randn(2, 2 + i % 5, generator=generator, dtype=torch.double)
        made.append((a, b * 10.0 ** (i % 7 - 3)))
    return made


def by_projection(a: Tensor, b: Tensor, gamma: float) -> Tensor:
    """`combine` by Gram-Schmidt: in conflict, the foot of the perpendicular on the line through both."""
    if F.cosine_similarity(a, b, dim=0) > 0:
        return gamma * (a + b)
    along = F.normalize(a - b, dim=0)
    foot = a - (a @ along) * along
    merged: Tensor = gamma * (a + b).norm() * F.normalize(foot, dim=0)
    return merged


def test_min_norm_weights_are_the_best_of_a_fine_grid() -> None:
    grid = torch.linspace(0, 1, 20_001, dtype=torch.double).unsqueeze(1)
    interior = 0
    for a, b in [*pairs(), (torch.ones(3).double(), 3 * torch.ones(3).double())]:
        lengths = (grid * a + (1 - grid) * b).norm(dim=1)
        found = min_norm_weights(a, b)
        assert found.sum() == pytest.approx(1)
        assert found[0].item() == pytest.approx(grid[lengths.argmin()].item(), abs=1e-4)
        assert (found[0] * a + found[1] * b).norm() <= lengths.min() + 1e-12
        interior += int(0 < found[0] < 1)
    assert 20 < interior < 61
    assert min_norm_weights(torch.ones(2), torch.ones(2)).tolist() == [0.5, 0.5]


def test_combine_equals_the_projection() -> None:
    conflicts = 0
    for a, b in pairs():
        torch.testing.assert_close(combine(a, b, 1.3), by_projection(a, b, 1.3), rtol=1e-9, atol=0)
        torch.testing.assert_close(combine(b, a, 1.3), by_projection(a, b, 1.3), rtol=1e-9, atol=0)
        conflicts += int(a @ b <= 0)
    assert 20 < conflicts < 40


def test_neither_objective_gets_worse_and_the_length_is_the_sums() -> None:
    """And the stretch never shrinks: the min-norm point is no longer than the middle, which is half the sum."""
    for a, b in pairs():
        merged = combine(a, b)
        assert merged @ a >= 0
        assert merged @ b >= 0
        assert merged.norm().item() == pytest.approx(1.5 * (a + b).norm().item())
        if a @ b <= 0:
            assert (2 * (min_norm_weights(a, b)[:, None] * torch.stack([a, b])).sum(0)).norm() <= (a + b).norm() + 1e-12


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_any_size_shape_and_type(size: float) -> None:
    for a, b in pairs(12):
        expected = by_projection(a, b, 1.5)
        a32, b32 = (a * size).float(), (b * size).float()
        torch.testing.assert_close(
            combine(a32, b32).double() / size, expected, rtol=1e-5, atol=1e-5 * expected.norm().item()
        )
    shaped = combine(torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    assert shaped.shape == (2, 3, 4)
    assert combine(torch.tensor(-1.0), torch.tensor(2.0)).shape == ()
    assert combine(torch.ones(3).bfloat16(), torch.ones(3).bfloat16()).dtype == torch.bfloat16


def test_zero_and_opposed_gradients() -> None:
    zero, a = torch.zeros(5), torch.tensor([1.0, -2.0, 0.3, 0.7, 1e-3])
    torch.testing.assert_close(combine(a, zero), 1.5 * a)
    torch.testing.assert_close(combine(zero, a), 1.5 * a)
    torch.testing.assert_close(combine(a, -1e-9 * a), 1.5 * a)
    assert not combine(zero, zero).any()
    for factor in (-1.0, -0.3, -7.0, -1 / 3, -1e-4):
        assert not combine(a, factor * a).any()
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(10_000, generator=generator)
    b = -0.7 * a + 0.01 * torch.randn(10_000, generator=generator)  # nearly opposed, by more than rounding
    torch.testing.assert_close(combine(a, b).double(), by_projection(a.double(), b.double(), 1.5), rtol=0.02, atol=1e-3)


# ------------------------------------------------------------------------------------------------------- the method


def opposed(method: Any) -> None:
    """Makes the unimodal heads confident, and mostly wrong, so that gradients conflict."""
    with torch.no_grad():
        for parameter in method.heads.parameters():
            parameter.mul_(-20)


class Probe(Regularizer):
    """Model, heads and batches before each step, and the gradients that the optimizer gets."""

    name = "probe"
    order = 99
    needs_steps = True

    def __init__(self, method: MMPareto | None = None) -> None:
        super().__init__()
        self.method = [method]  # in a list: not a part of this module
        self.batches: list[tuple[Any, nn.Module, dict[str, Tensor], Tensor, Any]] = []
        self.seen: list[tuple[list[Any], dict[str, Tensor], dict[str, Tensor]]] = []

    def losses(self, step: Step) -> dict[str, Tensor]:
        heads = self.method[0].heads if self.method[0] else nn.Identity()
        kept = copy.deepcopy((step.model, heads))
        self.batches.append((*kept, dict(step.inputs), step.label, step.present))
        return {}

    def on_gradients(self, steps: Any) -> None:
        batches, self.batches = self.batches, []
        gradients = {key: p.grad.clone() for key, p in steps[0].model.named_parameters() if p.grad is not None}
        heads = self.method[0].heads.named_parameters() if self.method[0] else []
        self.seen.append((batches, gradients, {key: p.grad.clone() for key, p in heads if p.grad is not None}))


def probed(
    fusion: Any = Concat, encoder: Any = Linear, names: tuple[str, ...] = ("audio", "video"), **options: Any
) -> Any:
    pl.seed_everything(0)
    method = MMPareto(**options)
    probe = Probe(method)
    encoders = {name: encoder() for name in names}
    model = FusionClassifier(encoders, fusion, 3, extra=[probe, method], optimizer=lambda p: SGD(p, lr=0.05))
    opposed(method)
    return model, probe


def expected(batches: list[Any], name: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Gradients from the objectives' definitions: of a unimodal head, and of its encoder, fused and unimodal."""
    head_total: dict[str, Tensor] = {}
    multi_total, uni_total = torch.zeros(()), torch.zeros(())
    for model, heads, inputs, label, present in batches:
        encoder, head = model.encoders[name], heads.heads[name]
        rows = present[name] if present and name in present else torch.ones(len(label), dtype=torch.bool)
        multi = torch.autograd.grad(F.cross_entropy(model(inputs, present), label), [*encoder.parameters()])
        logits = head(pool_tokens(encoder(inputs[name][rows])))
        uni = F.cross_entropy(logits, label[rows], reduction="sum") / len(label)
        own = torch.autograd.grad(uni, [*encoder.parameters(), *head.parameters()])
        split = len([*encoder.parameters()])
        multi_total = multi_total + torch.cat([g.flatten() for g in multi]).double() / len(batches)
        uni_total = uni_total + torch.cat([g.flatten() for g in own[:split]]).double() / len(batches)
        for (key, _), g in zip(head.named_parameters(), own[split:], strict=True):
            head_total[key] = head_total.get(key, torch.zeros(())) + g / len(batches)
    return head_total, multi_total, uni_total


@pytest.mark.parametrize(
    ("options", "data", "flags"),
    [
        ({}, {}, {}),
        ({"fusion": Gated, "gamma": 0.8}, {"lacking": True}, {}),
        ({"fusion": partial(Concat, hidden=7), "encoder": Tokens}, {"lacking": True}, {"accumulate_grad_batches": 2}),
        ({"names": ("audio", "video", "text")}, {"modalities": ("audio", "video", "text")}, {}),
    ],
    ids=["concat", "gated-lacking", "hidden-tokens-lacking-accumulated", "three"],
)
def test_what_every_parameter_gets(options: dict[str, Any], data: dict[str, Any], flags: dict[str, Any]) -> None:
    model, probe = probed(**options)
    trainer = fit(model, Toy(**data), **flags)
    signs: dict[str, list[bool]] = {}
    for batches, gradients, head_gradients in probe.seen:
        loss = torch.stack([F.cross_entropy(b[0](b[2], b[4]), b[3]) for b in batches]).mean()
        fused = torch.autograd.grad(loss, [p for b in batches for p in b[0].head.parameters()])
        for i, (key, _) in enumerate(batches[0][0].head.named_parameters()):
            per = len(fused) // len(batches)
            torch.testing.assert_close(
                gradients[f"head.{key}"], torch.stack(fused[i::per]).sum(0), rtol=1e-4, atol=1e-7
            )
        for name in model.model.modalities:
            head, multi, uni = expected(batches, name)
            got = torch.cat([g.flatten() for key, g in gradients.items() if key.startswith(f"encoders.{name}.")])
            merged = by_projection(multi, uni, options.get("gamma", 1.5))
            torch.testing.assert_close(got.double(), merged, rtol=1e-3, atol=1e-5 * merged.abs().max().item())
            for key, gradient in head.items():
                torch.testing.assert_close(head_gradients[f"heads.{name}.{key}"], gradient, rtol=1e-4, atol=1e-7)
            signs.setdefault(name, []).append(bool(multi @ uni <= 0))
    assert {True, False} == {sign for each in signs.values() for sign in each}
    for name, each in signs.items():
        logged = trainer.callback_metrics[f"train/mmpareto/conflict/{name}"].item()
        last = each[len(each) // 2 :]  # the second epoch's
        assert logged == pytest.approx(sum(last) / len(last))


@pytest.mark.parametrize("flags", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}])
def test_inactive_equals_naive_bit_for_bit(flags: dict[str, Any]) -> None:
    naive, never, later = build(), build(extra=[MMPareto(start_epoch=9)]), build(extra=[MMPareto(end_epoch=1)])
    fit(naive, **flags)
    heads = copy.deepcopy(never.regularizers.state_dict())
    fit(never, **flags)
    assert_equal(weights(naive), weights(never))
    for key, value in never.regularizers.state_dict().items():  # no loss reaches them, only weight decay
        torch.testing.assert_close(value, heads[key], rtol=1e-3, atol=0)
    fit(later, **flags, max_epochs=1)
    assert any(not torch.equal(a, b) for a, b in zip(weights(naive).values(), weights(later).values(), strict=True))
    once, late = build(), build(extra=[MMPareto(start_epoch=1)])
    fit(once, **flags, max_epochs=1)
    fit(late, **flags, max_epochs=1)
    assert_equal(weights(once), weights(late))


@pytest.mark.parametrize("lacking", [False, True])
def test_accumulated_micro_batches_equal_one_batch(lacking: bool) -> None:
    big, small = build(fusion=Gated, extra=[MMPareto()]), build(fusion=Gated, extra=[MMPareto()])
    for model in (big, small):
        opposed(model.regularizers.methods["mmpareto"])
    fit(big, Toy(batch_size=16, lacking=lacking))
    fit(small, Toy(batch_size=8, lacking=lacking), accumulate_grad_batches=2)
    assert_equal(weights(big), weights(small), atol=1e-6)


class Stop(Callback):
    """Breaks off between two micro-batches."""

    def on_train_batch_end(self, *args: Any) -> None:
        if args[-1] == 2:
            raise RuntimeError("broken off")


@pytest.mark.parametrize("then", [0, 9])
def test_what_an_interrupted_fit_left_is_forgotten(then: int) -> None:
    """By the steps of a fit that starts again, and, where it then does not act, by naive ones."""
    method = MMPareto()
    model, clean = build(extra=[method]), build(extra=[MMPareto(start_epoch=then)])
    start = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="broken off"):
        fit(model, callbacks=[Stop()], accumulate_grad_batches=2)
    assert model._steps[-1].apart["mmpareto/audio"]  # there is something to forget
    method.window = Window("mmpareto", then)
    model.load_state_dict(start)
    fit(model, accumulate_grad_batches=2)
    fit(clean, accumulate_grad_batches=2)
    assert_equal(weights(model), weights(clean))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "64-true"])
def test_precisions(precision: Any) -> None:
    """16-mixed on the CPU, where Lightning only allows it by a plugin: the loss's scale must not be left in."""
    flags: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # type: ignore[attr-defined]
        flags = {"plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}
    data, gradients = Toy(), []
    for chosen in ({}, flags):
        model, probe = probed(fusion=Gated)
        if chosen and precision == "64-true":
            data.inputs = {name: x.double() for name, x in data.inputs.items()}
        fit(model, data, max_epochs=1, **chosen)
        gradients.append(probe.seen[0][1])
        assert all(value.isfinite().all() for value in weights(model).values())
    for key, gradient in gradients[0].items():
        assert F.cosine_similarity(gradient.flatten(), gradients[1][key].float().flatten(), dim=0) > 0.99
        assert gradients[1][key].norm() / gradient.norm() == pytest.approx(1, abs=0.05)


def test_unimodal_gradients_that_overflow_skip_the_step() -> None:
    """16-mixed: the main gradients are finite, so only the heads' can tell the scaler."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=10**6)  # type: ignore[attr-defined]
    model, _ = probed()
    method = model.regularizers.methods["mmpareto"]
    with torch.no_grad():
        method.heads.heads["video"].weight.copy_(1e4 * torch.randn(3, 8))  # beyond 65504 once scaled
    parameters = [*model.model.parameters(), *method.parameters()]
    start = [parameter.detach().clone() for parameter in parameters]
    trainer = fit(model, max_epochs=1, plugins=[pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)])
    assert all(torch.equal(parameter, before) for parameter, before in zip(parameters, start, strict=True))
    assert scaler.get_scale() == 2.0**10  # four steps, all skipped
    assert trainer.callback_metrics["train/loss/mmpareto/video"].isfinite()


def test_frozen_parameters_stay_and_the_rest_is_one_vector() -> None:
    model, probe = probed()
    audio = model.model.encoders["audio"].net[0]
    audio.weight.requires_grad_(False)
    for parameter in model.model.encoders["video"].parameters():
        parameter.requires_grad_(False)
    start = weights(model)
    fit(model, max_epochs=1)
    changed = {key for key, value in weights(model).items() if not torch.equal(value, start[key])}
    assert changed == {"encoders.audio.net.0.bias", "head.classifier.weight", "head.classifier.bias"}
    batches, gradients, _ = probe.seen[0]
    for parameter in batches[0][0].parameters():
        parameter.requires_grad_(True)
    assert set(probe.method[0].report()) == {"conflict/audio"}
    _, multi, uni = expected(batches, "audio")
    merged = by_projection(multi[-8:], uni[-8:], 1.5)
    torch.testing.assert_close(gradients["encoders.audio.net.0.bias"].double(), merged, rtol=1e-3, atol=1e-6)


def test_no_nan_from_dead_encoders_lone_rows_or_absent_modalities() -> None:
    dead = build(extra=[MMPareto()])
    for parameter in dead.model.encoders["video"].parameters():
        nn.init.zeros_(parameter)
    fit(dead)
    lone = build(extra=[MMPareto()])
    fit(lone, Toy(clips=8, batch_size=1, lacking=True))
    for model in (dead, lone):
        assert all(value.isfinite().all() for value in model.state_dict().values())


def test_resuming_equals_going_on(tmp_path: Path) -> None:
    def checkpoint() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)

    flags: dict[str, Any] = {"max_epochs": 3, "enable_checkpointing": True}
    whole, resumed = build(extra=[MMPareto()]), build(seed=1, extra=[MMPareto()])
    fit(whole, callbacks=[checkpoint()], **flags)
    fit(resumed, ckpt=tmp_path / "epoch=0.ckpt", callbacks=[checkpoint()], **flags)
    states = (whole.regularizers.state_dict(), resumed.regularizers.state_dict())
    assert_equal({**weights(whole), **states[0]}, {**weights(resumed), **states[1]})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MMPareto(gamma=0), "model.mmpareto.gamma=0: must be a positive, finite number"),
        (lambda: MMPareto(gamma=float("nan")), "model.mmpareto.gamma=nan"),
        (lambda: MMPareto(start_epoch=2, end_epoch=2), "model.mmpareto: start_epoch=2, end_epoch=2"),
        (lambda: FusionClassifier({"audio": Linear()}, extra=[MMPareto()]), "model.mmpareto: needs at least 2"),
    ],
)
def test_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_adam_warns() -> None:
    with pytest.warns(UserWarning, match="what mmpareto does by scaling"):
        fit(build(extra=[MMPareto()], optimizer=lambda p: Adam(p, lr=1e-3)), max_epochs=1)


# --------------------------------------------------------------------------------------------------------------- DDP

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "lacking": {"lacking": True, "fusion": Gated},
    "accumulated": {"accumulate": 2},
    "later": {"start_epoch": 1},
}


def train(world: int, case: str) -> dict[str, Tensor]:
    options = CASES[case]
    method = MMPareto(start_epoch=options.get("start_epoch", 0))
    model = build(fusion=options.get("fusion", Concat), extra=[method])
    opposed(method)
    data = Toy(batch_size=16, lacking=options.get("lacking", False))
    fit_on(world, model, data, accumulate_grad_batches=options.get("accumulate", 1))
    return {**weights(model), **method.state_dict(), "report": torch.tensor([*method.report().values()])}


@pytest.fixture(scope="module")
def ddp() -> dict[str, Any]:
    """Final state of each case, by one process and by each of two gloo ranks."""
    return on_one_and_two_ranks(train, CASES)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process_on_the_joined_batch(ddp: dict[str, Any], case: str) -> None:
    """So a gradient taken by hand in the middle of a step leaves DDP's reducer alone."""
    assert_ranks_equal(ddp[case], atol=1e-6)
