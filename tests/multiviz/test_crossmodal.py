"""Cross-modal interactions against closed forms, brute force and what was planted; rows are counted."""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import scipy.stats
import torch
from captum.attr import ShapleyValues
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from amr.datamodules.atoms import Atoms, flat_atoms
from amr.encoders.base import Encoder
from amr.evaluation.emap import closed_form, emap, projection
from amr.fusion import Attention, Concat, FiLM, Gated, Late, LowRank
from amr.fusion.base import Fusion, pool_all
from amr.model import FusionModel
from amr.multiviz.base import Target, Unit
from amr.multiviz.crossmodal import (
    ablation,
    contributions,
    dime,
    emap_estimate,
    emap_gap,
    interaction_error,
    interaction_index,
    joint_lime,
    joint_shap,
    modality_shapley,
    second_order,
)
from amr.multiviz.crossmodal.second_order import _refuse
from amr.utils.errors import UserError

NAMES = ("a", "b", "c", "d")
close = torch.testing.assert_close


class Same(Encoder):
    """The encoding is the input."""

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim

    def forward(self, x: Tensor) -> Tensor:
        return x * 1


class Smooth(Encoder):
    """One tanh layer over the flattened input; draws random numbers and keeps statistics unless in eval mode."""

    def __init__(self, in_dim: int, out_dim: int = 4) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(in_dim, out_dim), nn.Dropout(0.5), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Bilinear(Fusion):
    """f_c = aᵀ W_c b + u_c·a + v_c·b of pooled encodings."""

    def __init__(self, dims: dict[str, int], num_classes: int = 3) -> None:
        super().__init__(dims, num_classes, sum(dims.values()))
        one, two = dims.values()
        self.weight = nn.Parameter(torch.randn(num_classes, one, two))

    def combine(self, encodings: Any) -> Tensor:
        return torch.cat([*pool_all(encodings, self.dims).values()], dim=1)

    def forward(self, encodings: Any) -> Tensor:
        a, b = pool_all(encodings, self.dims).values()
        logits: Tensor = self.classifier(self.fuse(encodings)) + torch.einsum("ni,cij,nj->nc", a, self.weight, b)
        return logits


def pairs_of(model: FusionModel) -> Tensor:
    """W, (C, D_a, D_b), of a bilinear head."""
    assert isinstance(model.head, Bilinear)
    return model.head.weight.detach()


class Game(Fusion):
    """One logit, any function of the encodings."""

    def __init__(self, dims: dict[str, int], game: Callable[..., Tensor]) -> None:
        super().__init__(dims, 1, 1)
        self.game = game

    def forward(self, encodings: Any) -> Tensor:
        return self.game(*(encodings[name] for name in self.dims)).reshape(-1, 1)


def build(
    fusion: Any, modalities: int = 2, clips: int = 6, dim: int = 4, tokens: int = 0
) -> tuple[FusionModel, dict[str, Tensor]]:
    """A model in double precision whose encodings are its inputs."""
    torch.manual_seed(modalities)
    dims = dict.fromkeys(NAMES[:modalities], dim)
    head = fusion(dims, 3) if isinstance(fusion, type) else fusion(dims)
    model = FusionModel({name: Same(dim) for name in dims}, head).double()
    shape = (tokens, dim) if tokens else (dim,)
    return model, {name: torch.randn(clips, *shape, dtype=torch.float64) for name in dims}


def smooth(fusion: Any, clips: int = 4, size: tuple[int, ...] = (2, 3)) -> tuple[FusionModel, dict[str, Tensor]]:
    """A model with encoders of different sizes."""
    torch.manual_seed(1)
    encoders = {"a": Smooth(math.prod(size)), "b": Smooth(5)}
    model = FusionModel(encoders, fusion({"a": 4, "b": 4}, 3)).double()
    return model, {
        "a": torch.randn(clips, *size, dtype=torch.float64),
        "b": torch.randn(clips, 5, dtype=torch.float64),
    }


@contextmanager
def counting(model: FusionModel) -> Iterator[dict[str, int]]:
    """Rows that each encoder and the head have run."""
    rows = dict.fromkeys([*model.modalities, "head"], 0)

    def hook(key: str) -> Callable[..., None]:
        def count(module: nn.Module, args: Any, output: Tensor) -> None:  # noqa: ARG001
            rows[key] += len(output)

        return count

    handles = [encoder.register_forward_hook(hook(name)) for name, encoder in model.encoders.items()]
    handles.append(model.head.register_forward_hook(hook("head")))
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def brute_emap(model: FusionModel, e: dict[str, Tensor]) -> Tensor:
    """The definition, an N^M table averaged axis by axis."""
    n, names = len(next(iter(e.values()))), list(e)
    table = torch.stack(
        [
            model.head({m: e[m][i : i + 1] for m, i in zip(names, index, strict=True)})[0].detach()
            for index in itertools.product(range(n), repeat=len(names))
        ]
    ).reshape(*[n] * len(names), -1)
    axes = range(len(names))
    total = sum(table.mean([a for a in axes if a != m]) if len(names) > 1 else table for m in axes)
    return torch.as_tensor(total - (len(names) - 1) * table.mean(list(axes)))


# EMAP


@pytest.mark.parametrize("fusion", [Concat, Late])
@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
@pytest.mark.parametrize("tokens", [0, 3])
def test_additive_models_are_their_own_projection(fusion: type[Fusion], modalities: int, tokens: int) -> None:
    model, e = build(fusion, modalities, tokens=tokens)
    close(emap(model, e), model.head(e).detach())
    unimodal, multimodal = contributions(model, e, "predicted")
    close(unimodal, model.head(e).detach().amax(1))
    close(multimodal, torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("fusion", [LowRank, FiLM, Attention])
@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_projection_equals_the_definition(fusion: type[Fusion], modalities: int) -> None:
    model, e = build(fusion, modalities, clips=4)
    close(emap(model, e), brute_emap(model, e))


def test_projection_of_a_bilinear_head() -> None:
    model, e = build(Bilinear)
    a, b = e["a"] - e["a"].mean(0), e["b"] - e["b"].mean(0)
    residual = torch.einsum("ni,cij,nj->nc", a, pairs_of(model), b)
    close(model.head(e).detach() - emap(model, e), residual)
    unimodal, multimodal = contributions(model, e, 1)
    close(multimodal, residual[:, 1])
    close(unimodal, emap(model, e)[:, 1])


def test_projection_of_a_unit() -> None:
    model, e = build(LowRank)
    whole = model.penultimate(e).detach()
    unimodal, multimodal = contributions(model, e, Unit(2))
    close(unimodal + multimodal, whole[:, 2])
    columns = [model.penultimate({"a": e["a"], "b": e["b"].roll(k, 0)}).detach()[:, 2] for k in range(6)]
    table = torch.stack([columns[(i - j) % 6][i] for i in range(6) for j in range(6)]).reshape(6, 6)
    close(unimodal, table.mean(1) + table.mean(0) - table.mean())


def test_pairings_estimate_the_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    model, e = build(lambda dims: LowRank(dims, 3, hidden=8), 3, clips=8)
    exact = emap_estimate(model, e)
    assert exact.error is not None
    assert not exact.error.any()
    monkeypatch.setattr("amr.evaluation.emap._EXACT_ROWS", 0)
    assert torch.equal(emap(model, e), exact.values), "512 rows are fewer than 8 pairings' 1,600"
    with counting(model) as rows:
        one = emap_estimate(model, e, pairings=2)
    assert rows == {"a": 0, "b": 0, "c": 0, "head": 2 * (3 * 8 + 1) * 8}
    assert one.error is not None
    # Standardised errors of single pairings: no bias, and the spread that the standard error says.
    runs = torch.stack([emap_estimate(model, e, pairings=2, seed=seed).values for seed in range(150)])
    close(runs.mean(0), exact.values, atol=4 * float(runs.std(0).max()) / 150**0.5, rtol=0)
    estimates = [emap_estimate(model, e, pairings=2, seed=seed).error for seed in range(150)]
    variance = torch.stack([error for error in estimates if error is not None]).square().mean()
    assert 0.7 < variance / runs.var(0).mean() < 1.4
    additive, e = build(lambda dims: Game(dims, lambda *x: torch.stack([v.exp().sum(1) for v in x]).sum(0)), 4, 40)
    found = emap_estimate(additive, e, pairings=1)
    assert found.error is None
    close(found.values, additive.head(e).detach())


FORMS: dict[str, tuple[Any, int]] = {  # head, and head rows for 3 modalities of 5 clips but for the check
    "additive": (lambda dims: Late(dims, 3, hidden=8), 5),
    "multiaffine": (lambda dims: LowRank(dims, 3), 15),
    "multiaffine of one conditioner": (lambda dims: FiLM(dims, 3), 15),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("modalities", [1, 2, 3])
@pytest.mark.parametrize("tokens", [0, 2])
def test_closed_forms_equal_the_definition(name: str, modalities: int, tokens: int) -> None:
    fusion, rows_of_three = FORMS[name]
    model, e = build(fusion, modalities, clips=5, tokens=tokens)
    with counting(model) as rows:
        found = emap_estimate(model, e)
    close(found.values, brute_emap(model, e))
    assert found.error is not None
    assert not found.error.any()
    if modalities == 3:  # the check has 5 clips: two rows each, and two or three for every modality
        assert rows["head"] == rows_of_three + 5 * (2 + 3 * (2 if name == "additive" else 3))
    whole = model.penultimate(e).detach()
    unimodal, multimodal = contributions(model, e, Unit(2))
    close(unimodal + multimodal, whole[:, 2])
    with torch.no_grad():
        undeclared = projection(model.penultimate, e, 8, 0, 4096)
    close(unimodal, undeclared.values[:, 2])


class Squared(Concat):
    """Inherits what Concat declares, and is neither."""

    def combine(self, encodings: Any) -> Tensor:
        a, *others = pool_all(encodings, self.dims).values()
        return torch.cat([a * others[0], *others], dim=1)


def test_a_wrong_declaration_is_not_followed() -> None:
    model, e = build(Squared, 3, clips=5)
    assert closed_form(model) == "additive"
    close(emap(model, e), brute_emap(model, e))


def test_rows_of_emap_and_its_gap() -> None:
    model, e = build(Bilinear, clips=9)
    with counting(model) as rows:
        emap(model, e)
    assert rows == {"a": 0, "b": 0, "head": 81}
    xor, e = build(lambda dims: Bilinear(dims, 2), clips=64, dim=1)
    for p in xor.head.parameters():
        p.data.zero_()
    pairs_of(xor)[1] = 1.0
    e = {name: x.sign() for name, x in e.items()}
    labels = (e["a"] * e["b"] > 0).long()[:, 0]
    e = {m: torch.cat([x, x * (1 if m == "a" else -1)]) for m, x in e.items()}  # balanced: no modality tells anything
    labels = torch.cat([labels, 1 - labels])
    gap = emap_gap(xor, e, labels)
    projected = (emap(xor, e).argmax(1) == labels).double().mean()
    assert gap == pytest.approx(1 - float(projected))
    assert gap > 0.3


# DIME


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_dime_of_additive_models(modalities: int) -> None:
    model, e = build(Concat, modalities)
    found = dime(model, e, e, 0, "a", samples=40, repeats=2, ridge=0.0)
    weight = model.head.classifier.weight.detach()[0, :4]
    close(found.unimodal.values, weight * e["a"])
    close(found.multimodal.values, torch.zeros(6, 4, dtype=torch.float64))
    assert found.clips == tuple(range(6))


def test_dime_of_a_bilinear_head() -> None:
    model, e = build(Bilinear)
    found = dime(model, e, e, torch.tensor([0, 1, 2, 0, 1, 2]), "a", clips=[4, 2], samples=40, repeats=2, ridge=0.0)
    for row, (clip, c) in enumerate([(4, 1), (2, 2)]):
        own = model.head.classifier.weight.detach()[c, :4]
        w = pairs_of(model)[c]
        close(found.unimodal.values[row], e["a"][clip] * (own + w @ e["b"].mean(0)))
        close(found.multimodal.values[row], e["a"][clip] * (w @ (e["b"][clip] - e["b"].mean(0))))
    assert found.unimodal.error is not None
    assert float(found.unimodal.error.max()) < 1e-12


def different_masks(repeats: int, samples: int, atoms: int) -> int:
    """Of those that DIME draws with seed 0: equal ones are encoded once."""
    masks = torch.rand(repeats, samples, atoms, generator=torch.Generator().manual_seed(0)) < 0.5
    masks[:, 0] = True
    return len(torch.unique(masks.flatten(0, 1), dim=0))


def test_dime_parts_add_up_and_rows() -> None:
    model, x = smooth(FiLM)
    with torch.no_grad():
        e = model.eval().encode(x)
    with counting(model) as rows:
        found = dime(model, x, e, 1, ("a", flat_atoms((2, 3))), clips=[1, 3], samples=20, repeats=3)
    encoded = different_masks(3, 20, 6)
    assert encoded < 60, "equal masks are encoded once"
    assert rows == {"a": 2 * encoded, "b": 0, "head": 2 * 3 * 20 * 4}
    assert found.unimodal.error is not None
    assert (found.unimodal.error > 0).all()
    again = dime(
        model, x, e, 1, ("a", flat_atoms((2, 3))), clips=[1, 3], samples=20, repeats=3, batch=7, encoder_batch=3
    )
    close(again.unimodal.values, found.unimodal.values)
    close(again.multimodal.values, found.multimodal.values)
    model3, e3 = build(LowRank, 3)
    with counting(model3) as rows:
        dime(model3, e3, e3, 1, "b", clips=[0], samples=20, repeats=1, pairings=2)
    atoms = e3["b"].shape[1]
    assert rows == {"a": 0, "b": different_masks(1, 20, atoms), "c": 0, "head": 20 * (6 * 2 + 1)}


# Second derivatives


def test_second_order_of_a_bilinear_head_is_its_weight() -> None:
    model, e = build(Bilinear)
    w = pairs_of(model)
    found = second_order(model, e, 1, "a", "b")
    close(found.as_subclass(Tensor), w[1].expand(6, 4, 4))
    close(second_order(model, e, 1, "b", "a").as_subclass(Tensor), w[1].T.expand(6, 4, 4))
    classes = torch.tensor([0, 1, 2, 2, 1, 0])
    close(second_order(model, e, classes, "a", "b", batch=4).as_subclass(Tensor), w[classes])
    predicted = model.head(e).argmax(1)
    close(second_order(model, e, "predicted", "a", "b", space="encodings").as_subclass(Tensor), w[predicted])
    assert found.reason == ""


def test_second_order_of_tokens() -> None:
    model, e = build(Bilinear, tokens=3)
    found = second_order(model, e, 1, "a", "b")
    assert found.shape == (6, 12, 12)
    close(found.as_subclass(Tensor), (pairs_of(model)[1] / 9).repeat(3, 3).expand(6, 12, 12))


@pytest.mark.parametrize("fusion", [LowRank, FiLM, Gated, Attention])
@pytest.mark.parametrize("target", [1, Unit(2)])
def test_second_order_equals_finite_differences(fusion: type[Fusion], target: Any) -> None:
    model, x = smooth(fusion)
    found = second_order(model, x, target, ("a", flat_atoms((2, 3))), "b")
    assert found.shape == (4, 6, 5)
    model.eval()

    def f(clip: int, p: int, dp: float, q: int, dq: float) -> float:
        part = {m: v[clip : clip + 1].clone() for m, v in x.items()}
        part["a"].view(-1)[p] += dp
        part["b"].view(-1)[q] += dq
        with torch.no_grad():
            e = model.encode(part)
            out = model.penultimate(e)[0, 2] if isinstance(target, Unit) else model.head(e)[0, target]
        return float(out)

    h = 1e-4
    for clip, p, q in [(0, 0, 0), (1, 5, 2), (3, 2, 4)]:
        corners = [s * t * f(clip, p, s * h, q, t * h) for s in (1, -1) for t in (1, -1)]
        assert float(found[clip, p, q]) == pytest.approx(sum(corners) / (4 * h * h), abs=1e-6)


def test_second_order_sums_over_atoms_and_sets() -> None:
    model, x = smooth(LowRank)
    full = second_order(model, x, 0, ("a", flat_atoms((2, 3))), "b").as_subclass(Tensor)
    halves = Atoms(torch.tensor([[0, 0, 0], [1, 1, 1]]), ({}, {}), (2,))
    close(second_order(model, x, 0, ("a", halves), "b").as_subclass(Tensor), full.reshape(4, 2, 3, 5).sum(2))
    chosen = torch.zeros(2, 3, dtype=torch.bool)
    chosen[0, 1] = chosen[1, 2] = True
    one = second_order(model, x, 0, ("a", chosen), "b")
    close(one.as_subclass(Tensor), (full[:, 1] + full[:, 5])[:, None])
    close(second_order(model, x, 0, "b", ("a", chosen)).as_subclass(Tensor), one.as_subclass(Tensor).transpose(1, 2))
    everything = second_order(model, x, 0, ("a", torch.ones(2, 3, dtype=torch.bool)), "b")
    close(everything.as_subclass(Tensor), full.sum(1, keepdim=True))


def test_backward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = smooth(LowRank)
    calls, plain = [], torch.autograd.grad

    def grad(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    second_order(model, x, 0, ("a", flat_atoms((2, 3))), "b")
    assert len(calls) == 1 + 5


def test_piecewise_linear_heads_are_told() -> None:
    relu, x = smooth(lambda dims, classes: Concat(dims, classes, hidden=16))
    found = second_order(relu, x, "predicted", "a", "b")
    assert not found.any()
    assert "use ablation" in found.reason
    assert "ReLU" in found.reason
    assert ablation(relu, x, 0, "a", "b").abs().max() > 1e-3
    additive, x = smooth(Concat)
    found = second_order(additive, x, "predicted", "a", "b")
    assert not found.any()
    assert "do not interact" in found.reason
    for p in additive.parameters():  # nothing depends on a leaf twice, nor on a parameter
        p.requires_grad_(False)
    assert "do not interact" in second_order(additive, x, 0, "a", "b").reason


class Fused(Fusion):
    """Attention as torch runs it, whose fused kernels have no second derivative."""

    def __init__(self, dims: dict[str, int], num_classes: int) -> None:
        super().__init__(dims, num_classes, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def combine(self, encodings: Any) -> Tensor:
        tokens = torch.stack([encodings[name] for name in self.dims], dim=1)
        out: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)
        return out


def test_torchs_own_attention_and_recurrent_layers() -> None:
    model, e = build(Fused)
    found = second_order(model, e, 0, "a", "b")
    with sdpa_kernel(SDPBackend.MATH):
        hessian: Any = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
            lambda a, b: model.head({"a": a[None], "b": b[None]})[0, 0], (e["a"][2], e["b"][2])
        )
    close(found[2].as_subclass(Tensor), hessian[0][1])

    class Recurrent(Same):
        def __init__(self) -> None:
            super().__init__(4)
            self.net = nn.GRU(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x)[0][:, -1]
            return out

    encoders = {"a": Recurrent(), "b": Same(4)}
    recurrent = FusionModel(encoders, LowRank({"a": 4, "b": 4}, 2))
    x = {"a": torch.randn(2, 5, 3), "b": torch.randn(2, 4)}
    assert second_order(recurrent, x, 0, "a", "b").shape == (2, 15, 4)
    with pytest.raises(UserError, match=r"encoders\.a\.net \(GRU\).*ablation"):
        _refuse(recurrent, x, ["a", "b"], "inputs", cudnn=True)
    _refuse(recurrent, x, ["a", "b"], "encodings", cudnn=True)
    object.__setattr__(recurrent.encoders["b"], "_compiled_call_impl", lambda x: x)
    with pytest.raises(UserError, match=r"encoders\.b is compiled"):
        second_order(recurrent, x, 0, "a", "b")


# Ablation


@pytest.mark.parametrize("baseline", ["zeros", "mean"])
def test_ablation_of_a_bilinear_head(baseline: Any) -> None:
    model, e = build(Bilinear)
    base = {m: x.mean(0) * (baseline == "mean") for m, x in e.items()}
    left, right = e["a"] - base["a"], e["b"] - base["b"]
    expected = left[:, :, None] * pairs_of(model)[2] * right[:, None, :]
    close(ablation(model, e, 2, "a", "b", baseline), expected)
    close(ablation(model, e, 2, "b", "a", base), expected.transpose(1, 2))
    close(ablation(model, e, 2, "a", "b", base, space="encodings", batch=5, encoder_batch=1), expected)


def test_ablation_equals_four_runs_of_the_model() -> None:
    model, x = smooth(Gated)
    x["b"] = x["b"].float().double()
    atoms = Atoms(torch.tensor([[0, 1, 1], [2, 0, 2]]), ({}, {}, {}), (3,))
    with counting(model) as rows:
        found = ablation(model, x, "predicted", ("a", atoms), "b", "mean")
    assert rows == {"a": 4 * (3 + 1), "b": 4 * (5 + 1), "head": 4 + 4 * 4 * 6}
    model.eval()
    with torch.no_grad():
        classes = model(x).argmax(1)

        def f(i: int | None, j: int | None) -> Tensor:
            a, b = x["a"].clone(), x["b"].clone()
            if i is not None:
                a = torch.where(atoms.label == i, x["a"].mean(0), a)
            if j is not None:
                b[:, j] = x["b"][:, j].mean()
            out: Tensor = model({"a": a, "b": b}).gather(1, classes[:, None])[:, 0]
            return out

        expected = torch.stack(
            [torch.stack([f(None, None) - f(i, None) - f(None, j) + f(i, j) for j in range(5)], 1) for i in range(3)], 1
        )
    close(found, expected)


# LIME and SHAP with a joint mask


def planted() -> tuple[FusionModel, dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Inputs of ones, so that masks are the inputs: f = 2 + u·z1 + v·z2 + z1ᵀ P z2 with two pairs in P."""
    u, v, p = torch.randn(3).double(), torch.randn(3).double(), torch.zeros(3, 3).double()
    p[0, 2], p[2, 1] = 1.5, -2.0
    game = lambda a, b: 2 + a @ u + b @ v + ((a @ p) * b).sum(1)  # noqa: E731
    head = Game({"a": 3, "b": 3}, game)
    model = FusionModel({"a": Same(3), "b": Same(3)}, head).double()
    return model, {"a": torch.ones(2, 3).double(), "b": torch.ones(2, 3).double()}, u, v, p


@pytest.mark.parametrize("method", [joint_lime, joint_shap])
@pytest.mark.parametrize("samples", [40, 62])  # drawn, and (SHAP) all masks
def test_joint_surrogates_recover_what_was_planted(method: Any, samples: int) -> None:
    model, x, u, v, p = planted()
    options = {"ridge": 0.0} if method is joint_lime else {}
    found = method(model, x, 0, "a", "b", samples=samples, repeats=3, **options)
    close(found.first.values, u.expand(2, 3))
    close(found.second.values, v.expand(2, 3))
    close(found.pairs.values, p.expand(2, 3, 3))
    close(found.fit, torch.ones(2).double())
    assert float(found.pairs.error.max()) < 1e-9


def test_joint_shap_shares_are_shapley_values() -> None:
    """With pairs within no modality, a_i + ½ Σ p_ij is the exact Shapley value, and all add up."""
    model, x, *_ = planted()
    found = joint_shap(model, x, 0, "a", "b", samples=62)  # all masks of 6 atoms
    exact = ShapleyValues(lambda z: model.head({"a": z[:, :3], "b": z[:, 3:]})[:, 0])
    expected = exact.attribute(torch.ones(1, 6).double())
    shares = torch.cat(
        [
            found.first.values + found.pairs.values.sum(2) / 2,
            found.second.values + found.pairs.values.sum(1) / 2,
        ],
        dim=1,
    )
    close(shares, expected.expand(2, 6).double(), atol=1e-5, rtol=1e-5)  # captum adds up in single precision
    assert found.first.error is not None
    assert not found.first.error.any()
    mlp, x = smooth(lambda dims, classes: Concat(dims, classes, hidden=8))
    for samples in (400, 4000):  # drawn, and all 2^11 masks
        found = joint_shap(mlp, x, 1, ("a", flat_atoms((2, 3))), "b", "mean", samples=samples)
        total = found.first.values.sum(1) + found.second.values.sum(1) + found.pairs.values.sum((1, 2))
        mlp.eval()
        with torch.no_grad():
            base = {m: v.mean(0, keepdim=True).expand_as(v) for m, v in x.items()}
            close(total, (mlp(x) - mlp(base))[:, 1])


def test_joint_rows_errors_and_chunks() -> None:
    model, x = smooth(lambda dims, classes: Concat(dims, classes, hidden=8))
    side = ("a", flat_atoms((2, 3)))
    with counting(model) as rows:
        found = joint_lime(model, x, 0, side, "b", samples=60, repeats=2)
    keep = torch.rand(2, 60, 11, generator=torch.Generator().manual_seed(0)) < 0.5
    keep[:, 0] = True
    parts = torch.split(keep.flatten(0, 1), [6, 5], dim=1)
    once = [1 + len(torch.unique(part, dim=0)) for part in parts]  # and the clip as it is
    assert once[1] <= 33, "no more than the sets of five atoms"
    assert rows == {"a": 4 * once[0], "b": 4 * once[1], "head": 4 * 120}
    again = joint_lime(model, x, 0, side, "b", samples=60, repeats=2, batch=11, encoder_batch=7)
    close(again.pairs.values, found.pairs.values)
    other = joint_lime(model, x, 0, side, "b", samples=60, repeats=2, seed=1)
    assert not torch.allclose(other.pairs.values, found.pairs.values)
    assert found.first.error is not None
    assert (found.first.error > 0).all()
    assert joint_lime(model, x, 0, side, "b", samples=60, repeats=1).first.error is None
    with counting(model) as rows:
        joint_shap(model, x, 0, side, "b", samples=400, repeats=2)
    assert rows == {"a": 4 * 65, "b": 4 * 33, "head": 4 * 780}, "every set of six and of five atoms, once"
    with counting(model) as rows, pytest.raises(UserError, match="do not determine"):
        joint_shap(model, x, 0, side, "b", samples=42, repeats=1)
    assert set(rows.values()) == {0}


def test_integer_inputs() -> None:
    """Words, say: atoms are replaced by the word 0, and results are not rounded to the inputs' type."""

    class Words(Encoder):
        out_dim = 4

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Embedding(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x)
            return out

    torch.manual_seed(0)
    encoder = Words()
    model = FusionModel({"a": encoder, "b": Same(4)}, Bilinear({"a": 4, "b": 4}))
    x = {"a": torch.randint(1, 5, (3, 2)), "b": torch.randn(3, 4)}
    with torch.no_grad():
        e = model.encode(x)
        words = (encoder.net(x["a"]) - encoder.net(torch.zeros(1).long())) / 2  # the head takes the mean of two
    expected = torch.einsum("ntd,dj,nj->ntj", words, pairs_of(model)[1], x["b"])
    close(ablation(model, x, 1, "a", "b"), expected, atol=1e-5, rtol=1e-4)
    for method in (joint_lime, joint_shap):
        found: Any = method(model, x, 1, "a", "b", samples=62)
        close(found.pairs.values.float(), expected, atol=1e-4, rtol=1e-4)
    weights = dime(model, x, e, 1, "a", samples=40).multimodal.values
    deviation = torch.einsum("ntd,dj,nj->nt", words, pairs_of(model)[1], x["b"] - x["b"].mean(0))
    close(weights.float(), deviation, atol=1e-4, rtol=1e-4)
    slopes = (pairs_of(model)[1].sum(0) / 2).expand(3, 2, -1)  # by each word's vector, its dimensions summed
    close(second_order(model, x, 1, "a", "b").as_subclass(Tensor), slopes)
    with pytest.raises(UserError, match="inputs.a=torch.int64: must be floating-point"):
        second_order(model, {**e, "a": x["a"]}, 1, "a", "b", space="encodings")


# Shapley


def permutations_shapley(v: Callable[[frozenset[int]], Tensor], count: int) -> Tensor:
    """The mean marginal contribution over all orders."""
    orders = list(itertools.permutations(range(count)))
    values = []
    for m in range(count):
        gains = [v(frozenset([*o[: o.index(m)], m])) - v(frozenset(o[: o.index(m)])) for o in orders]
        values.append(torch.stack(gains).mean(0))
    return torch.stack(values, 1)


@pytest.mark.parametrize("fusion", [Attention, LowRank])
@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
@pytest.mark.parametrize("baseline", ["zeros", "mean"])
def test_shapley_values_equal_all_orders(fusion: type[Fusion], modalities: int, baseline: Any) -> None:
    model, e = build(fusion, modalities, tokens=2)
    base = {m: x.mean(0) * (baseline == "mean") for m, x in e.items()}
    names = list(e)
    classes = model.head(e).argmax(1)

    def v(kept: frozenset[int]) -> Tensor:
        mixed = {m: e[m] if i in kept else base[m].expand_as(e[m]) for i, m in enumerate(names)}
        out: Tensor = model.head(mixed).detach().gather(1, classes[:, None])[:, 0]
        return out

    with counting(model) as rows:
        found = modality_shapley(model, e, baseline, "predicted")
    assert rows["head"] == 2**modalities * 6
    close(found, permutations_shapley(v, modalities))
    close(found, modality_shapley(model, e, base, classes, batch=5))
    close(found.sum(1), v(frozenset(range(modalities))) - v(frozenset()))
    index = interaction_index(model, e, baseline, "predicted")
    close(index.diagonal(dim1=1, dim2=2), found)
    close(index, index.transpose(1, 2))


def game(function: Callable[..., Tensor], *values: float) -> tuple[FusionModel, dict[str, Tensor]]:
    dims = dict.fromkeys(NAMES[: len(values)], 1)
    model = FusionModel({name: Same(1) for name in dims}, Game(dims, function)).double()
    return model, {name: torch.full((2, 1), value).double() for name, value in zip(dims, values, strict=True)}


def test_closed_forms_of_products() -> None:
    model, e = game(lambda a, b, c, d: a * b * c + a * d + 3 * d, 2.0, 3.0, 5.0, 7.0)
    # A product of t players' values is a unanimity game: 1/t of it to each, and to each pair 1/(t - 1).
    close(modality_shapley(model, e, "zeros", 0)[0], torch.tensor([10 + 7.0, 10, 10, 7 + 21]).double())
    index = interaction_index(model, e, "zeros", 0)[0]
    expected = torch.tensor([[17, 15, 15, 14], [15, 10, 15, 0], [15, 15, 10, 0], [14, 0, 0, 28]]).double()
    close(index, expected)


@pytest.mark.parametrize("count", [20, 100])
def test_the_interval_of_a_baseline_covers_the_value_of_its_true_mean(count: int) -> None:
    """Donors are drawn around a known mean, 150 times; 100 of them are left out in 32 groups of 3 or 4."""
    model, e = game(lambda a, b, c: (a * b / 4).tanh() + a * c + b, 2.0, 1.5, -1.0)
    mean = {"a": 0.4, "b": -0.3, "c": 0.2}
    exact = interaction_index(model, e, {m: torch.tensor([[v]]) for m, v in mean.items()}, 0)
    generator = torch.Generator().manual_seed(count)
    donors = {m: v + torch.randn(150, count, 1, generator=generator).double() for m, v in mean.items()}
    clip = {m: x[:1] for m, x in e.items()}
    got = [interaction_error(model, clip, {m: x[i] for m, x in donors.items()}, 0) for i in range(150)]
    values = interaction_index(
        model, {m: x.expand(150, 1) for m, x in clip.items()}, {m: x.mean(1) for m, x in donors.items()}, 0
    )
    assert {one.freedom for one in got} == {min(count, 32) - 1}
    close(got[0].half, scipy.stats.t.ppf(0.975, got[0].freedom) * got[0].error)
    covered = ((values - exact[:1]).abs() <= torch.cat([one.half for one in got])).double().mean(0)
    drawn = values.std(0) > 1e-9  # b and c do not interact, whatever the baseline
    assert drawn.sum() == 7
    assert ((covered >= 0.9) & (covered <= 0.99))[drawn].all()
    assert covered[1, 2] == covered[2, 1] == 1
    close(torch.cat([one.error for one in got]).mean(0)[drawn], values.std(0)[drawn], rtol=0.15, atol=0)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    """An additive score's Shapley value is linear in the baseline: s / √D, of every donor's own value."""
    model, e = game(lambda a, b: 3 * a - b, 2.0, 1.0)
    donors = {m: torch.randn(12, 1, generator=torch.Generator().manual_seed(i)).double() for i, m in enumerate("ab")}
    with counting(model) as rows:
        error = interaction_error(model, e, donors, 0).error[0]
    assert rows["head"] == 12 * 4 * 2
    spread = torch.stack([3 * donors["a"].std(), donors["b"].std()]) / math.sqrt(12)
    close(error, torch.diag(spread))
    with pytest.raises(UserError, match="1 donors; must be at least 2"):
        interaction_error(model, e, {m: x[:1] for m, x in donors.items()}, 0)
    close(error, interaction_error(model, e, donors, 0, batch=1).error[0])
    with counting(model) as rows:
        interaction_error(model, e, donors, "predicted")
    assert rows["head"] == (12 * 4 + 1) * 2


def test_symmetry_and_dummy() -> None:
    model, e = game(lambda a, b, c: (a * b).tanh() + a + b + 0 * c, 2.0, 2.0, 9.0)
    values = modality_shapley(model, e, "zeros", 0)
    close(values[:, 0], values[:, 1])
    close(values[:, 2], torch.zeros(2).double())
    index = interaction_index(model, e, "zeros", 0)
    assert not index[:, 2].any()
    assert (index[:, 0, 1] > 0).all()


def test_shapley_of_a_unit() -> None:
    model, e = build(LowRank, 3)
    values = modality_shapley(model, e, "zeros", Unit(1))
    whole, none = model.penultimate(e), model.penultimate({m: x * 0 for m, x in e.items()})
    close(values.sum(1), (whole - none)[:, 1].detach())


# All of them


def everything(model: FusionModel, x: dict[str, Tensor], e: dict[str, Tensor]) -> list[Any]:
    side: tuple[str, Atoms] = ("a", flat_atoms((2, 3)))
    target: Target = "predicted"
    return [
        emap(model, e),
        contributions(model, e, target)[1],
        dime(model, x, e, target, side, samples=20).multimodal.values,
        second_order(model, x, target, side, "b"),
        ablation(model, x, target, side, "b"),
        joint_lime(model, x, target, side, "b", samples=60).pairs.values,
        joint_shap(model, x, target, side, "b", samples=400).pairs.values,
        modality_shapley(model, e, "mean", target),
        interaction_index(model, e, "mean", target),
    ]


def test_no_trace_is_left() -> None:
    model, x = smooth(FiLM)
    with torch.no_grad():
        e = model.eval().encode(x)
    model.train()
    model.encoders["b"].eval()
    modes = [m.training for m in model.modules()]
    before = [{m: v.clone() for m, v in part.items()} for part in (x, e)]
    torch.manual_seed(7)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    first = everything(model, x, e)
    assert torch.equal(torch.rand(3), drawn)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(part[m], old[m]) for part, old in zip((x, e), before, strict=True) for m in part)
    assert all(p.grad is None for p in model.parameters())
    with torch.inference_mode():
        second = everything(model, x, e)
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)
        assert not one.requires_grad


def test_refusals() -> None:
    model, e = build(Bilinear)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("modality='z': must be different ones of 'a', 'b'", lambda: second_order(model, e, 0, "z", "b")),
        ("must be different ones", lambda: ablation(model, e, 0, "a", "a")),
        ("target", lambda: emap_gap(model, e, torch.zeros(6)) and contributions(model, e, 3)),
        ("target", lambda: second_order(model, e, [0, 1], "a", "b")),  # type: ignore[arg-type]
        ("baseline='median'", lambda: modality_shapley(model, e, "median", 0)),  # type: ignore[arg-type]
        ("baseline: none for the modality 'b'", lambda: modality_shapley(model, e, {"a": e["a"]}, 0)),
        ("baseline: 'b' has the shape", lambda: interaction_index(model, e, {**e, "b": torch.zeros(3)}, 0)),
        ("samples=10: must be 25 or more", lambda: joint_lime(model, e, 0, "a", "b", samples=10)),
        ("samples=10: must be 24 or more", lambda: joint_shap(model, e, 0, "a", "b", samples=10)),
        ("repeats", lambda: joint_lime(model, e, 0, "a", "b", repeats=0)),
        ("width", lambda: joint_lime(model, e, 0, "a", "b", width=0)),
        ("clips", lambda: dime(model, e, e, 0, "a", clips=[6])),
        ("clips", lambda: dime(model, e, e, 0, "a", clips=[])),
        ("samples of 6", lambda: dime(model, e, e, 0, "a", samples=5)),
        ("same 6 clips", lambda: dime(model, e, {**e, "b": e["b"][:3]}, 0, "a")),
        ("clips; all must be", lambda: ablation(model, {**e, "b": e["b"][:3]}, 0, "a", "b")),
        ("pairings", lambda: emap(model, e, pairings=0)),
        ("batch", lambda: emap(model, e, batch=0)),
        ("encoder_batch", lambda: ablation(model, e, 0, "a", "b", encoder_batch=0)),
        ("space", lambda: ablation(model, e, 0, "a", "b", space="x")),  # type: ignore[arg-type]
        ("inputs: none for the modality 'b'", lambda: second_order(model, {"a": e["a"], "c": e["b"]}, 0, "a", "c")),
        ("set of elements", lambda: second_order(model, e, 0, ("a", torch.zeros(4, dtype=torch.bool)), "b")),
        ("set of elements", lambda: second_order(model, e, 0, ("a", torch.ones(3, dtype=torch.bool)), "b")),
    ]
    for message, call in calls:
        with pytest.raises(UserError, match=message):
            call()
