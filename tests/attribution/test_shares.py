"""Shares against captum, finite differences and closed forms; the penalty against its own formula."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, ShapleyValues
from torch import Tensor, nn

from amr.attribution import attribution_shares, ratio_penalty, shapley_shares
from amr.attribution.shares import _integrated_gradients
from amr.fusion import Attention, Concat, FiLM, Fusion, Gated, Late, LowRank, Shared, Sum

FUSIONS: list[type[Fusion]] = [Concat, Sum, FiLM, Gated, LowRank, Attention, Late, Shared]
NAMES = ("a", "b", "c", "d")


def case(fusion: type[Fusion], modalities: int, tokens: bool, dtype: torch.dtype) -> tuple[Fusion, dict[str, Tensor]]:
    torch.manual_seed(modalities)
    dims = dict.fromkeys(NAMES[:modalities], 4)
    head = fusion(dims, 5, hidden=16).to(dtype)  # type: ignore[call-arg]
    shape = (3,) if tokens else ()
    return head, {name: torch.randn(6, *shape, 4, dtype=dtype) for name in dims}


def reference(products: list[Tensor]) -> Tensor:
    """Shares from g⊙e, one (B, ...) a modality, by numpy."""
    norms = np.stack([np.sqrt((p.detach().numpy() ** 2).reshape(len(p), -1).sum(1)) for p in products], axis=1)
    return torch.from_numpy(norms / norms.sum(1, keepdims=True))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("score", ["logit", "probability"])
def test_shares_equal_captum(fusion: type[Fusion], modalities: int, tokens: bool, score: Any) -> None:
    head, encodings = case(fusion, modalities, tokens, torch.float64)
    head.eval()
    names = list(encodings)

    def forward(*parts: Tensor) -> Tensor:
        logits: Tensor = head(dict(zip(names, parts, strict=True)))
        return logits if score == "logit" else logits.softmax(1)

    target = head(encodings).argmax(1)
    inputs = tuple(e.clone().requires_grad_() for e in encodings.values())
    products = InputXGradient(forward).attribute(inputs, target=target)
    torch.testing.assert_close(attribution_shares(head, encodings, score=score), reference(list(products)))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("modalities", "tokens"), [(1, False), (2, True), (3, False)])
@pytest.mark.parametrize("score", ["logit", "probability"])
def test_integrated_gradients_equal_captum(fusion: type[Fusion], modalities: int, tokens: bool, score: Any) -> None:
    head, encodings = case(fusion, modalities, tokens, torch.float64)
    head.eval()
    names = list(encodings)

    def forward(*parts: Tensor) -> Tensor:
        logits: Tensor = head(dict(zip(names, parts, strict=True)))
        return logits if score == "logit" else logits.softmax(1)

    target = head(encodings).argmax(1)
    integrated = IntegratedGradients(forward)
    products = integrated.attribute(tuple(encodings.values()), target=target, n_steps=7, method="gausslegendre")
    shares = attribution_shares(head, encodings, score=score, ig_steps=7)
    torch.testing.assert_close(shares, reference(list(products)))


@pytest.mark.parametrize("score", ["logit", "probability"])
def test_integrated_gradients_are_complete(score: Any) -> None:
    """They sum to f(e) - f(0), for the class predicted at e; the row's factor is what it is said to be."""
    _, encodings = case(Gated, 3, False, torch.float64)
    head = Gated(dict.fromkeys(encodings, 4), 5).double()  # without a hidden ReLU layer, whose kinks no sum gets right
    top = head(encodings).argmax(1, keepdim=True)
    leaves = {name: e.clone().requires_grad_() for name, e in encodings.items()}
    products, log_factor = _integrated_gradients(head, leaves, score, False, 40)
    at = [head(e) for e in (encodings, {name: torch.zeros_like(e) for name, e in encodings.items()})]
    f, f0 = ((x if score == "logit" else x.softmax(1)).gather(1, top).squeeze(1) for x in at)
    torch.testing.assert_close(torch.cat(products, 1).sum(1) * log_factor.exp(), f - f0, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("score", ["logit", "probability"])
def test_shares_equal_finite_differences(score: Any) -> None:
    head, encodings = case(Gated, 3, False, torch.float64)
    top = head(encodings).argmax(1, keepdim=True)

    def f(e: dict[str, Tensor]) -> Tensor:
        logits: Tensor = head(e)
        return (logits if score == "logit" else logits.softmax(1)).gather(1, top).squeeze(1)

    products = []
    for name, e in encodings.items():
        gradient = torch.empty_like(e)
        for d in range(e.shape[1]):
            step = torch.zeros_like(e)
            step[:, d] = 1e-6
            gradient[:, d] = (f({**encodings, name: e + step}) - f({**encodings, name: e - step})) / 2e-6
        products.append(gradient * e)
    torch.testing.assert_close(
        attribution_shares(head, encodings, score=score), reference(products), rtol=1e-6, atol=1e-8
    )


def assert_finite_differences(head: Fusion, penalty: Callable[[], Tensor]) -> None:
    """The gradient of a function of the head's parameters is that of its central differences."""
    parameters = list(head.parameters())
    gradients = torch.autograd.grad(penalty(), parameters, materialize_grads=True)
    checked = 0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for i in range(0, parameter.numel(), 7):
            flat = parameter.data.view(-1)
            before = flat[i].item()
            values = []
            for sign in (1, -1):
                flat[i] = before + sign * 1e-6
                values.append(penalty().item())
            flat[i] = before
            assert (values[0] - values[1]) / 2e-6 == pytest.approx(gradient.view(-1)[i].item(), abs=1e-7)
            checked += 1
    assert checked > 10


@pytest.mark.parametrize(("score", "ig_steps"), [("probability", None), ("probability", 5), ("logit", 5)])
def test_the_penalty_gradient_equals_finite_differences(score: Any, ig_steps: int | None) -> None:
    head, encodings = case(Gated, 3, False, torch.float64)
    ratio = torch.tensor([1.0, 2.0, 3.0])

    def penalty() -> Tensor:
        shares = attribution_shares(head, encodings, score=score, create_graph=True, ig_steps=ig_steps)
        return ratio_penalty(shares, ratio)

    assert_finite_differences(head, penalty)


def test_linear_head_in_closed_form() -> None:
    head = nn.Linear(5, 3, bias=False).double()
    e = {"a": torch.randn(4, 2).double(), "b": torch.randn(4, 3).double()}

    def f(parts: dict[str, Tensor]) -> Tensor:
        logits: Tensor = head(torch.cat(list(parts.values()), 1))
        return logits

    rows = head.weight[f(e).argmax(1)]
    expected = reference([rows[:, :2] * e["a"], rows[:, 2:] * e["b"]])
    torch.testing.assert_close(attribution_shares(f, e, score="logit"), expected)


@pytest.mark.parametrize("score", ["logit", "probability"])
@pytest.mark.parametrize("ig_steps", [None, 4])
def test_shares_do_not_change_when_an_encoding_and_its_weights_are_rescaled(score: Any, ig_steps: int | None) -> None:
    head, encodings = case(Concat, 2, False, torch.float64)
    before = attribution_shares(head, encodings, score=score, ig_steps=ig_steps)
    with torch.no_grad():
        head.get_parameter("hidden.0.weight")[:, :4] /= 1000
    scaled = {"a": encodings["a"] * 1000, "b": encodings["b"]}
    after = attribution_shares(head, scaled, score=score, ig_steps=ig_steps)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("ig_steps", [None, 4])
def test_probability_shares_survive_saturation(ig_steps: int | None) -> None:
    """Where p rounds to 1 in single precision, shares equal those of a double-precision softmax."""
    head, encodings = case(Concat, 2, False, torch.float32)
    with torch.no_grad():
        head.classifier.weight *= 300
    confident = head(encodings).softmax(1).amax(1)
    assert (confident == 1).any()
    double = Concat({"a": 4, "b": 4}, 5, hidden=16).double()
    double.load_state_dict({key: value.double() for key, value in head.state_dict().items()})
    shares = attribution_shares(head, encodings, ig_steps=ig_steps)
    expected = attribution_shares(double, {name: e.double() for name, e in encodings.items()}, ig_steps=ig_steps)
    torch.testing.assert_close(shares.double(), expected, rtol=1e-3 if ig_steps else 1e-4, atol=1e-5)
    torch.testing.assert_close(shares.sum(1), torch.ones(6))


@pytest.mark.parametrize("ig_steps", [None, 3])
def test_only_parameters_of_the_head_are_reached_and_nothing_else_is_touched(ig_steps: int | None) -> None:
    head = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    head[1].eval()  # a mode of its own, to be put back
    head.requires_grad_(True)
    e = torch.randn(5, 4, requires_grad=True)
    upstream = e * 2
    wrapped = _Wrapped(head)
    statistics, rng = head.get_buffer("0.running_mean").clone(), torch.get_rng_state()
    shares = attribution_shares(wrapped, {"a": upstream}, create_graph=True, ig_steps=ig_steps)
    torch.autograd.backward(shares.sum())
    assert e.grad is None
    assert torch.equal(head.get_buffer("0.running_mean"), statistics)
    assert torch.equal(torch.get_rng_state(), rng)
    assert head[0].training
    assert not head[1].training
    again = attribution_shares(wrapped, {"a": upstream}, ig_steps=ig_steps)
    assert torch.equal(shares.detach(), again)


class _Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, encodings: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.net(encodings["a"])
        return out


@pytest.mark.parametrize("ig_steps", [None, 3])
def test_under_inference_mode_and_autocast(ig_steps: int | None) -> None:
    head, encodings = case(Gated, 2, False, torch.float32)
    expected = attribution_shares(head, encodings, ig_steps=ig_steps)
    with torch.inference_mode():
        inside = {name: e.clone() for name, e in encodings.items()}
        torch.testing.assert_close(attribution_shares(head, inside, ig_steps=ig_steps), expected, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(attribution_shares(head, encodings, ig_steps=ig_steps), expected, rtol=0, atol=0)
    low = {name: e.bfloat16() for name, e in encodings.items()}
    assert attribution_shares(head, low, ig_steps=ig_steps).dtype == torch.float32


@pytest.mark.parametrize("score", ["logit", "probability"])
@pytest.mark.parametrize("ig_steps", [None, 3])
def test_dead_encodings_constant_heads_and_single_rows_give_no_nan(score: Any, ig_steps: int | None) -> None:
    head, encodings = case(Concat, 2, False, torch.float32)
    dead = {"a": torch.zeros(3, 4), "b": torch.zeros(3, 4)}
    one_dead = {"a": torch.zeros(1, 4), "b": encodings["b"][:1]}
    options = {"score": score, "ig_steps": ig_steps}
    shares = attribution_shares(head, dead, **options, create_graph=True)
    assert torch.equal(shares, torch.zeros(3, 2))
    penalty = ratio_penalty(shares, torch.ones(2))
    assert penalty == 0
    for gradient in torch.autograd.grad(penalty, list(head.parameters()), materialize_grads=True):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    assert attribution_shares(head, one_dead, **options).tolist() == [[0.0, 1.0]]
    mixed = {name: torch.cat([dead[name], encodings[name]]) for name in dead}
    penalty = ratio_penalty(attribution_shares(head, mixed, **options, create_graph=True), torch.ones(2))
    alone = ratio_penalty(attribution_shares(head, encodings, **options), torch.ones(2))
    torch.testing.assert_close(penalty.detach(), alone)
    for gradient in torch.autograd.grad(penalty, list(head.parameters()), materialize_grads=True):
        assert torch.isfinite(gradient).all()
    for constant in (
        lambda e: torch.ones(len(e["a"]), 3),
        lambda e: torch.ones(len(e["a"]), 3) + 0 * e["a"].sum(),
        lambda e: e["a"][:, :1],
    ):
        assert torch.isfinite(attribution_shares(constant, encodings, **options)).all()
    tiny = {name: e * 1e-30 for name, e in encodings.items()}
    huge = {name: e * 1e25 for name, e in encodings.items()}
    linear = Concat({"a": 4, "b": 4}, 5)
    for extreme in (tiny, huge):
        sums = attribution_shares(linear, extreme, score="logit", ig_steps=ig_steps).sum(1)
        torch.testing.assert_close(sums, torch.ones(6))


def test_ratio_penalty_by_hand() -> None:
    shares = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.0, 0.0]])  # the mean of the first two is 0.7, 0.3
    assert ratio_penalty(shares, torch.tensor([1.0, 1.0])).item() == pytest.approx(0.4)
    assert ratio_penalty(shares, torch.tensor([7.0, 3.0])).item() == pytest.approx(0.0, abs=1e-7)
    assert ratio_penalty(shares, torch.tensor([1.0, 4.0])).item() == pytest.approx(1.0)


@pytest.mark.parametrize("ratio", [[1.0], [1.0, -1.0], [0.0, 1.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_ratio_penalty_refuses(ratio: list[float]) -> None:
    with pytest.raises(ValueError, match="ratio"):
        ratio_penalty(torch.full((3, 2), 0.5), torch.tensor(ratio))


def test_unknown_score_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of probability, logit"):
        attribution_shares(lambda e: e["a"], {"a": torch.ones(1, 2)}, score="margin")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ig_steps=0: must be an integer >= 1"):
        attribution_shares(lambda e: e["a"], {"a": torch.ones(1, 2)}, ig_steps=0)


def test_integrated_gradients_see_what_the_gradient_alone_does_not() -> None:
    """f = a + relu(b - 1) + relu(1 - b): at b = 2 its slope by b is 1, and on the whole way there f has not moved."""

    def head(e: dict[str, Tensor]) -> Tensor:
        f = e["a"] + (e["b"] - 1).relu() + (1 - e["b"]).relu()
        return torch.cat([f, f - 1], 1)

    encodings = {"a": torch.full((1, 1), 2.0), "b": torch.full((1, 1), 2.0)}
    assert attribution_shares(head, encodings, score="logit").tolist() == [[0.5, 0.5]]
    integrated = attribution_shares(head, encodings, score="logit", ig_steps=8)
    torch.testing.assert_close(integrated, torch.tensor([[1.0, 0.0]]), rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ Shapley values


def mean_of(encodings: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: e.mean(0, keepdim=True) for name, e in encodings.items()}


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("modalities", "tokens"), [(1, False), (2, True), (3, False), (4, True)])
@pytest.mark.parametrize("score", ["logit", "probability"])
def test_shapley_shares_equal_captum(fusion: type[Fusion], modalities: int, tokens: bool, score: Any) -> None:
    """Captum's values come from all orders of the modalities, one mask a modality."""
    head, encodings = case(fusion, modalities, tokens, torch.float64)
    head.eval()
    names, top = list(encodings), head(encodings).argmax(1)

    def forward(*parts: Tensor) -> Tensor:
        logits: Tensor = head(dict(zip(names, parts, strict=True)))
        rows = range(len(logits))
        return logits[rows, top] if score == "logit" else torch.logit(logits.softmax(1)[rows, top])

    masks = tuple(torch.full_like(e[:1], m, dtype=torch.long) for m, e in enumerate(encodings.values()))
    base = mean_of(encodings)
    found = ShapleyValues(forward).attribute(tuple(encodings.values()), tuple(base.values()), feature_mask=masks)
    values = torch.stack([part.flatten(1)[:, 0] for part in found], dim=1).abs()
    shares = shapley_shares(head, encodings, base, score=score).float()  # captum's are in single precision
    torch.testing.assert_close(shares, values / values.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("score", ["logit", "probability"])
def test_the_gradient_of_shapley_shares_equals_finite_differences(score: Any) -> None:
    head, encodings = case(Gated, 3, False, torch.float64)
    ratio = torch.tensor([1.0, 2.0, 3.0])

    def penalty() -> Tensor:
        return ratio_penalty(shapley_shares(head, encodings, mean_of(encodings), score=score, create_graph=True), ratio)

    assert_finite_differences(head, penalty)


def test_what_decides_nothing_has_no_shapley_share() -> None:
    """A constant encoding; and a part that every class gets alike, but for the logit."""
    head = Concat({"a": 2, "b": 2}, 3)
    a, b = torch.randn(8, 2), torch.randn(8, 2)
    constant = {"a": a, "b": torch.ones(8, 2)}
    only = torch.tensor([1.0, 0.0]).expand(8, 2)
    torch.testing.assert_close(shapley_shares(head, constant, mean_of(constant)), only)
    assert attribution_shares(head, constant)[:, 1].min() > 0.01
    with torch.no_grad():
        head.classifier.weight[:, 2:] = torch.tensor([1.0, -2.0])  # the same for each class
    alike = {"a": a, "b": b}
    torch.testing.assert_close(shapley_shares(head, alike, mean_of(alike)), only, rtol=0, atol=1e-5)
    assert shapley_shares(head, alike, mean_of(alike), score="logit")[:, 1].min() > 0.01


def test_shapley_shares_reach_the_head_alone() -> None:
    head = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    e = torch.randn(5, 4, requires_grad=True)
    statistics, rng = head.get_buffer("0.running_mean").clone(), torch.get_rng_state()
    wrapped, upstream = _Wrapped(head), {"a": e * 2, "b": e * 3}
    shares = shapley_shares(wrapped, upstream, mean_of(upstream), create_graph=True)
    torch.autograd.backward(shares.sum())
    assert e.grad is None
    assert head[2].weight.grad is not None
    assert torch.equal(head.get_buffer("0.running_mean"), statistics)
    assert torch.equal(torch.get_rng_state(), rng)
    assert head[0].training
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(shapley_shares(wrapped, upstream, mean_of(upstream)), shares.detach())
    low = {name: encoding.detach().bfloat16() for name, encoding in upstream.items()}
    assert shapley_shares(wrapped, low, mean_of(low)).dtype == torch.float32


@pytest.mark.parametrize("score", ["logit", "probability"])
def test_shapley_shares_of_one_clip_of_none_and_of_a_constant_head_are_zeros(score: Any) -> None:
    head, encodings = case(Concat, 2, False, torch.float32)
    for rows in (0, 1):  # a single clip is its own mean
        few = {name: e[:rows] for name, e in encodings.items()}
        base = mean_of(few) if rows else mean_of(encodings)
        shares = shapley_shares(head, few, base, score=score, create_graph=True)
        assert torch.equal(shares, torch.zeros(rows, 2))
        gradients = torch.autograd.grad(shares.sum(), [*head.parameters()], materialize_grads=True)
        assert all(bool(torch.isfinite(g).all()) for g in gradients)
    with torch.no_grad():
        head.classifier.weight.zero_()
    assert torch.equal(shapley_shares(head, encodings, mean_of(encodings), score=score), torch.zeros(6, 2))


def test_unknown_arguments_of_shapley_shares() -> None:
    with pytest.raises(ValueError, match="score='odds': must be one of probability, logit"):
        shapley_shares(lambda e: e["a"], {"a": torch.ones(1, 2)}, {"a": torch.ones(1, 2)}, score="odds")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one modality"):
        shapley_shares(lambda e: e["a"], {}, {})
