import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import captum.attr
import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import pairwise_distances
from torch import Tensor, nn
from torch.nn import functional as F

from amr.datamodules.atoms import Atoms, flat_atoms, spectrogram_atoms, video_atoms, waveform_atoms
from amr.encoders.base import Encoder
from amr.fusion import Attention, Concat
from amr.model import FusionModel
from amr.multiviz.base import Unit
from amr.multiviz.unimodal import (
    Importance,
    efficient_regression,
    grad_cam,
    gradient,
    gradient_input,
    gradient_shap,
    guided_backprop,
    integrated_gradients,
    kernel_shap,
    lime,
    lime_kernel,
    occlusion,
    shapley_kernel,
    weighted_ridge,
)
from amr.utils.errors import UserError
from tests import toy
from tests.multiviz.nets import Bilinear, Counter, Flat, Net, clips, linear_model, model_of, score_of

ATOMS = flat_atoms(6)
METHODS: dict[str, Callable[..., Importance]] = {
    "gradient": gradient,
    "gradient_input": gradient_input,
    "integrated_gradients": integrated_gradients,
    "gradient_shap": gradient_shap,
    "guided_backprop": guided_backprop,
    "occlusion": occlusion,
    "lime": lime,
    "kernel_shap": kernel_shap,
}


def exact_shapley(score: Callable[[Tensor], Tensor], x: Tensor, atoms: Atoms, baseline: Tensor | float) -> Tensor:
    """What each atom adds to every set of the others, weighted by |S|! (A - |S| - 1)! / A! (Shapley 1953)."""
    size = len(atoms)
    scores = {}
    for keep in itertools.product((False, True), repeat=size):
        scores[keep] = score(torch.where(torch.tensor(keep)[atoms.label], x, baseline)).detach()
    values = torch.zeros(len(x), size, dtype=x.dtype)
    for keep, without in scores.items():
        weight = math.factorial(sum(keep)) * math.factorial(size - sum(keep) - 1) if not all(keep) else 0
        for atom in (a for a in range(size) if not keep[a]):
            within = (*keep[:atom], True, *keep[atom + 1 :])
            values[:, atom] += weight / math.factorial(size) * (scores[within] - without)
    return values


# Gradients


@pytest.mark.parametrize("target", [1, Unit(3)])
def test_gradients_equal_captum_and_autograd(target: int | Unit) -> None:
    model, inputs = model_of().eval(), clips()
    x, score = inputs["one"], score_of(model, inputs, target)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(score(leaf).sum(), leaf)
    torch.testing.assert_close(gradient(model, inputs, "one", target).values, expected)
    got = gradient_input(model, inputs, "one", target, ATOMS, batch=2)
    torch.testing.assert_close(got.values, captum.attr.InputXGradient(score).attribute(leaf).detach())
    got = integrated_gradients(model, inputs, "one", target, ATOMS, baseline=0.3, steps=7, batch=3)
    reference = captum.attr.IntegratedGradients(score).attribute(x, baselines=0.3, n_steps=7)
    torch.testing.assert_close(got.values, reference)


def test_integrated_gradients_are_complete() -> None:
    model, inputs = model_of(hidden=None), clips()  # smooth: a kink costs digits
    baseline = inputs["one"].mean(0)
    got = integrated_gradients(model, inputs, "one", 2, waveform_atoms((6,), 4, 1.0), baseline=baseline).values
    score = score_of(model, inputs, 2)
    difference = score(inputs["one"]) - score(baseline.expand_as(inputs["one"]))
    torch.testing.assert_close(got.sum(1), difference.detach(), rtol=1e-8, atol=1e-10)


def test_gradient_shap_has_the_expectation_and_the_error_it_states() -> None:
    """Of f = w·x²: ∂f = 2 w (b + α (x − b)), so the mean over α is w (x² − b²), here also over two baselines."""
    model = model_of({"one": Flat(6, lambda x: x**2), "two": toy.Linear()}, Concat, hidden=None)
    inputs = clips(40, ("one", "two"))
    weight = model.head.classifier.weight[1, :6].detach()
    baselines = torch.stack((torch.full((6,), 0.5), torch.full((6,), -2.0))).double()
    expected = weight * (inputs["one"] ** 2 - (baselines**2).mean(0))
    got = {s: gradient_shap(model, inputs, "one", 1, ATOMS, baselines=baselines, samples=s) for s in (50, 800)}
    errors = {s: i.error for s, i in got.items() if i.error is not None}
    z = (got[800].values - expected) / errors[800]
    assert 0.8 < z.square().mean().sqrt() < 1.2
    torch.testing.assert_close(errors[50].mean() / errors[800].mean(), torch.tensor(4.0).double(), rtol=0.1, atol=0)


def test_gradient_shap_of_one_baseline_tends_to_integrated_gradients_and_noise_to_its_mean() -> None:
    model, inputs = model_of(), clips(3)
    exact = integrated_gradients(model, inputs, "one", 0).values
    got = gradient_shap(model, inputs, "one", 0, samples=4000, batch=4000)
    assert got.error is not None
    assert ((got.values - exact).abs() < 4.5 * got.error + 1e-12).all()
    linear, weight = linear_model(6)  # E[(x + ε) w] = x w, with error sd · |w| / sqrt(S)
    some = clips(3, ("one", "two"))
    got = gradient_shap(linear, some, "one", 0, noise=0.1, samples=400, batch=7)
    assert got.error is not None
    torch.testing.assert_close(got.error, (0.1 * weight[0].abs() / 20).expand(3, 6), rtol=0.15, atol=0)
    again = gradient_shap(linear, some, "one", 0, noise=0.1, samples=400, batch=64)
    torch.testing.assert_close(again.values, got.values, rtol=1e-12, atol=1e-14)


# Guided backpropagation


class Reused(nn.Module):
    """x -> relu(W2 relu(W1 x)), with one ReLU for both, or functions."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.kind, self.spoil = nn.Linear(2, 2), nn.Linear(2, 2), kind, False
        self.relu, self.inplace = nn.ReLU(), nn.ReLU(inplace=True)

    def activate(self, x: Tensor) -> Tensor:
        match self.kind:
            case "module":
                return self.relu(x)  # type: ignore[no-any-return]
            case "inplace":
                self.inplace(x)  # its result is in x
                return x
            case "function":
                return F.relu(x)
            case "function inplace":
                return F.relu(x, True)
            case "torch":
                return torch.relu(x)
            case "method":
                return x.relu_()
        return torch.ops.aten.relu(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activate(self.first(x))
        if self.spoil:
            hidden += 0  # what is saved for the backward pass must not be the output
        return self.activate(self.second(hidden))


def reused(kind: str) -> FusionModel:
    model = model_of({"one": Net(Reused(kind), 2), "two": toy.Linear()}, Concat, hidden=None)
    net: Any = model.encoders["one"].net
    for layer, weight in ((net.first, [[1.0, 2.0], [3.0, -1.0]]), (net.second, [[1.0, -2.0], [-1.0, 2.0]])):
        layer.weight.data, layer.bias.data = torch.tensor(weight).double(), torch.zeros(2).double()
    model.head.classifier.weight.data[0, :2] = torch.tensor([-1.0, 4.0])
    return model


@pytest.mark.parametrize("kind", ["module", "inplace", "function", "function inplace", "torch", "method"])
def test_guided_backprop_by_hand(kind: str) -> None:
    """x = (1, 1): hidden (3, 2), then (-1, 1) -> (0, 1). Backwards: logit 0 gives (-1, 4), the last ReLU (0, 4), W2ᵀ
    (-4, 8), the first ReLU (0, 8), W1ᵀ (24, -8). The gradient would be (-4, 8) through W1ᵀ: (20, -16).
    """
    inputs = {"one": torch.ones(1, 2).double(), "two": torch.zeros(1, 6).double()}
    model = reused(kind)
    assert gradient(model, inputs, "one", 0).values.tolist() == [[20.0, -16.0]]
    assert guided_backprop(model, inputs, "one", 0).values.tolist() == [[24.0, -8.0]]
    reused_net: Any = model.encoders["one"].net
    reused_net.spoil = True
    assert guided_backprop(model, inputs, "one", 0).values.tolist() == [[24.0, -8.0]]


def test_guided_backprop_equals_captum_through_encoder_and_head() -> None:
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU())
    model, inputs = model_of({"one": Net(net, 8), "two": toy.Linear()}, Concat).eval(), clips(names=("one", "two"))

    class Score(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return score_of(self.model, inputs)(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = captum.attr.GuidedBackprop(Score()).attribute(inputs["one"].clone().requires_grad_())
    torch.testing.assert_close(guided_backprop(model, inputs, "one", 1).values, reference.detach())


def test_guided_backprop_refuses_what_it_cannot_guide() -> None:
    inputs = {"one": torch.ones(1, 2).double(), "two": torch.zeros(1, 6).double()}
    both = model_of({"one": Net(nn.Sequential(Reused("aten"), nn.ReLU()), 2), "two": toy.Linear()}, Concat)
    with pytest.raises(UserError, match="ReluBackward0 is out of reach"):
        guided_backprop(both, inputs, "one", 0)
    with pytest.raises(UserError, match="no ReLU in the encoder of 'one' or the head"):
        guided_backprop(linear_model(2)[0], inputs, "one", 0)


# Grad-CAM


class Conv(Encoder):
    """A 1×1 convolution (or a strided one), then the mean over positions."""

    def __init__(self, conv: nn.Module, fold: bool = False, inplace: bool = False) -> None:
        super().__init__()
        self.conv, self.fold, self.out_dim = conv, fold, 2
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[1] if self.fold else 1
        features: Tensor = self.relu(self.conv(x.flatten(0, 1) if self.fold else x))
        return features.flatten(2).mean(2).reshape(-1, frames, 2).mean(1)


def conv_model(encoder: Conv) -> FusionModel:
    model = model_of({"one": encoder, "two": toy.Linear()}, Concat, hidden=None)
    model.head.classifier.weight.data[0, :2] = torch.tensor([1.0, -1.0])
    return model


@pytest.mark.parametrize("inplace", [False, True])
def test_grad_cam_by_hand(inplace: bool) -> None:
    """Channels A1 = x and A2 = 2 - x, both positive: each w = ±1/4, so the map is ReLU((x - (2 - x)) / 4)."""
    conv = nn.Conv2d(1, 2, 1)
    model = conv_model(Conv(conv, inplace=inplace))
    with torch.no_grad():
        conv.weight[:, 0, 0, 0], conv.get_parameter("bias")[:] = torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0])
    inputs = {"one": torch.tensor([[[[0.5, 1.0], [1.5, 1.75]]]]).double(), "two": torch.zeros(1, 6).double()}
    got = grad_cam(model, inputs, "one", 0, layer=conv)
    assert got.values.tolist() == [[[[0.0, 0.0], [0.25, 0.375]]]]
    atoms = spectrogram_atoms((1, 2, 2), 2, 1, seconds=1.0, hz=(0, 1))
    assert grad_cam(model, inputs, "one", 0, atoms, layer=conv).values.tolist() == [[0.0, 0.625]]


def test_grad_cam_keeps_the_layer_s_output_before_what_follows_in_place() -> None:
    """A1 is -1 at one position: the ReLU after it zeroes it, in place or not, but the map is of the layer's output."""
    values = {}
    for inplace in (False, True):
        conv = nn.Conv1d(1, 2, 1)
        model = conv_model(Conv(conv, inplace=inplace))
        with torch.no_grad():
            conv.weight[:], conv.get_parameter("bias")[:] = 1.0, torch.tensor([0.0, -5.0])
        inputs = {"one": torch.tensor([[[-1.0, 4.0]]]).double(), "two": torch.zeros(1, 6).double()}
        values[inplace] = grad_cam(model, inputs, "one", 0, layer=conv).values.tolist()
    assert values[True] == values[False] == [[[0.0, 1.0]]]


@pytest.mark.parametrize(
    ("shape", "conv", "fold"),
    [
        ((3, 12), nn.Conv1d(3, 2, 3, stride=2), False),
        ((3, 9, 12), nn.Conv2d(3, 2, 3, stride=2), False),
        ((4, 3, 9, 12), nn.Conv2d(3, 2, 3, stride=2), True),
        ((3, 4, 9, 12), nn.Conv3d(3, 2, (1, 3, 3), stride=2), False),
    ],
)
def test_grad_cam_equals_captum_at_any_rank(shape: tuple[int, ...], conv: nn.Module, fold: bool) -> None:
    """A 3-D convolution takes (C, N, H, W) and the clips here are (N, C, H, W)."""
    encoder = Conv(conv, fold)
    swapped = isinstance(conv, nn.Conv3d)
    if swapped:
        encoder.register_forward_pre_hook(lambda _, args: args[0].transpose(1, 2))
    model = conv_model(encoder).eval()
    clip = (4, 3, 9, 12) if swapped else shape
    inputs = {"one": torch.randn(3, *clip).double(), "two": torch.zeros(3, 6).double()}
    got = grad_cam(model, inputs, "one", 0, layer=conv, batch=2).values
    cam = captum.attr.LayerGradCam(score_of(model, inputs, 0), conv).attribute(
        inputs["one"].clone().requires_grad_(), relu_attributions=True
    )
    size = (4, 9, 12) if swapped else shape[-(cam.ndim - 2) :]
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[cam.ndim]
    expected = captum.attr.LayerAttribution.interpolate(cam, size, interpolate_mode=mode).detach()
    assert got.shape == inputs["one"].shape
    if cam.ndim == 5:
        expected = expected.transpose(1, 2)  # (B, N, 1, H, W)
    elif fold:
        expected = expected.reshape(3, 4, 1, 9, 12)
    torch.testing.assert_close(got, (expected / 3).expand_as(got))


def test_grad_cam_of_merged_frames_is_the_same_for_all() -> None:
    conv = nn.Conv2d(8, 2, 3)
    model = model_of(
        {"one": Net(nn.Sequential(nn.Flatten(1, 2), conv, nn.Flatten(), nn.Linear(2 * 12, 2)), 2), "two": toy.Linear()}
    )
    inputs = {"one": torch.randn(2, 4, 2, 5, 6).double(), "two": torch.zeros(2, 6).double()}
    values = grad_cam(model, inputs, "one", 0, layer=conv).values
    assert torch.equal(values, values[:, :1, :1].expand_as(values))
    by_atom = grad_cam(model, inputs, "one", 0, video_atoms((4, 2, 5, 6), (2, 2), 2), layer=conv).values
    torch.testing.assert_close(by_atom.sum(1), values.flatten(1).sum(1))


def test_grad_cam_s_rows_and_traces() -> None:
    conv = nn.Conv1d(1, 2, 1)
    model = conv_model(Conv(conv, inplace=True)).requires_grad_(False).train()
    counter = Counter(model)
    inputs = {"one": torch.randn(5, 1, 6).double(), "two": torch.zeros(5, 6).double()}
    before, state = inputs["one"].clone(), torch.get_rng_state()
    with torch.inference_mode():
        inference = grad_cam(model, {m: x.clone() for m, x in inputs.items()}, "one", 1, layer=conv, batch=2).values
    assert counter.rows == {"one": 10, "two": 5, "head": 5}
    assert counter.largest == 2
    assert torch.equal(inference, grad_cam(model, inputs, "one", 1, layer=conv).values)
    assert torch.equal(before, inputs["one"])
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert not conv._forward_hooks


def test_grad_cam_refuses_layers_that_have_no_map() -> None:
    inputs = {"one": torch.randn(2, 1, 4).double(), "two": torch.randn(2, 6).double()}
    conv, linear = nn.Conv1d(1, 2, 1), nn.Linear(8, 3)
    twice, pool = nn.Identity(), nn.AdaptiveMaxPool1d(2, return_indices=True)
    first = Net(nn.Sequential(conv, twice, twice, nn.Flatten(), linear), 3)
    model = model_of({"one": first, "two": toy.Linear()})
    for layer, message in (
        (twice, "it ran 2 times"),
        (linear, "one to three dimensions"),
        (nn.ReLU(), "must be a mod"),
    ):
        with pytest.raises(UserError, match=message):
            grad_cam(model, inputs, "one", 0, layer=layer)

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = pool

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(x)[0].flatten(1)  # type: ignore[no-any-return]

    with pytest.raises(UserError, match="one tensor"):
        grad_cam(model_of({"one": Net(First(), 2), "two": toy.Linear()}), inputs, "one", 0, layer=pool)
    unflatten = nn.Unflatten(0, (-1, 2))  # a map for each pair of clips
    paired = model_of({"one": Net(nn.Sequential(unflatten, nn.Flatten(0, 1), nn.Flatten()), 4), "two": toy.Linear()})
    with pytest.raises(UserError, match="do not fit"):
        grad_cam(paired, inputs, "one", 0, layer=unflatten)
    assert not conv._forward_hooks
    assert not linear._forward_hooks


# Perturbations


def test_occlusion_in_closed_form_and_as_captum() -> None:
    model, weight = linear_model(6)
    inputs, atoms = clips(names=("one", "two")), waveform_atoms((6,), 4, 1.0)
    got = occlusion(model, inputs, "one", 2, atoms, baseline=0.5).values
    torch.testing.assert_close(got, atoms.sum(weight[2] * (inputs["one"] - 0.5)))
    model = model_of().eval()
    score = score_of(model, clips())
    expected = captum.attr.FeatureAblation(score).attribute(clips()["one"], 0.5, feature_mask=atoms.label[None])
    got = occlusion(model, clips(), "one", 1, atoms, baseline=0.5, batch=3).values
    torch.testing.assert_close(got[:, atoms.label], expected.detach())


@pytest.mark.parametrize("size", [1, 3, 40])
def test_lime_and_kernel_shap_recover_a_linear_model_at_any_length(size: int) -> None:
    model, weight = linear_model(size)
    inputs = clips(names=("one", "two"), size=size)
    baseline = torch.linspace(-1, 1, size).double()
    expected = weight[1] * (inputs["one"] - baseline)
    options: dict[str, Any] = {"baseline": baseline, "samples": 120, "repeats": 2}
    got = lime(model, inputs, "one", 1, flat_atoms(size), ridge=0.0, **options)
    torch.testing.assert_close(got.values, expected)
    got = lime(model, inputs, "one", 1, flat_atoms(size), **options)
    torch.testing.assert_close(got.values, expected, rtol=1e-3, atol=1e-3)
    assert got.error is not None
    assert got.error.max() < 1e-3
    torch.testing.assert_close(kernel_shap(model, inputs, "one", 1, flat_atoms(size), **options).values, expected)


@pytest.mark.parametrize("width", [0.1, 0.25, 10.0])
def test_weighted_ridge_equals_sklearn(width: float) -> None:
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(2, 50, 7, generator=generator) < 0.5
    scores, pi = torch.randn(2, 50, 4, generator=generator).double(), lime_kernel(keep, width)
    got = weighted_ridge(keep, pi, scores, 0.01)
    for r in range(2):
        z, p = keep[r].double(), pi[r] / pi[r].sum()
        variance = ((p[:, None] * z**2).sum(0) - (p[:, None] * z).sum(0) ** 2).mean()
        reference = Ridge(alpha=0.01 * float(variance)).fit(z, scores[r], sample_weight=p)
        torch.testing.assert_close(got[r], torch.as_tensor(reference.coef_.T).double(), rtol=1e-6, atol=1e-8)


def test_lime_kernel_by_hand() -> None:
    keep = torch.tensor([[True] * 4, [True, False, False, False], [False] * 4])
    expected = torch.tensor([1.0, math.exp(-((0.5 / 0.25) ** 2)), math.exp(-16)]).double()
    torch.testing.assert_close(lime_kernel(keep, 0.25), expected)
    cosine = F.cosine_similarity(keep.double()[:2], torch.ones(1, 4).double())
    torch.testing.assert_close(lime_kernel(keep, 0.3)[:2], torch.exp(-((1 - cosine) ** 2) / 0.3**2))


@pytest.mark.parametrize("width", [0.25, 0.7])
def test_lime_kernel_against_the_papers_and_the_packages(width: float) -> None:
    """The paper's exp(−D²/σ²). The `lime` package takes the square root of it: its width w is w√2 here."""
    keep = torch.rand(40, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    keep[0] = True
    distance = pairwise_distances(keep.double(), np.ones((1, 9)), metric="cosine").ravel()  # as lime_image does
    paper = np.exp(-(distance**2) / width**2)
    package = np.sqrt(np.exp(-(distance**2) / width**2))  # lime 0.2.0.1, lime_image.py
    torch.testing.assert_close(lime_kernel(keep, width), torch.from_numpy(paper))
    torch.testing.assert_close(lime_kernel(keep, width * 2**0.5), torch.from_numpy(package))


def test_lime_fits_its_own_draws_as_sklearn_does() -> None:
    """The draws are read off the inputs that reach the encoder."""
    model, inputs = model_of(), clips(1)
    seen: list[Tensor] = []
    handle = model.encoders["one"].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    got = lime(model, inputs, "one", 1, ATOMS, baseline=9.0, samples=40, repeats=1, ridge=1e-3)
    handle.remove()
    x = torch.cat(seen)  # the clip, then the draws
    assert len(x) == 40
    assert got.error is None
    z = (x != 9.0).double()
    pi = lime_kernel(z.bool(), 0.25)
    with torch.no_grad():
        scores = score_of(model, inputs)(x)
    torch.testing.assert_close(got.values[0], weighted_ridge(z, pi, scores[:, None], 1e-3)[:, 0])


@pytest.mark.parametrize("target", [1, Unit(3)])
def test_kernel_shap_of_all_coalitions_is_exact(target: int | Unit) -> None:
    model, inputs = model_of(), clips(2)
    atoms = Atoms(torch.tensor([0, 3, 1, 2, 2, 4]), ({},) * 5, (5,))
    baseline = torch.full((6,), 0.2).double()
    got = kernel_shap(model, inputs, "one", target, atoms, baseline=baseline, samples=30)
    expected = exact_shapley(score_of(model, inputs, target), inputs["one"], atoms, baseline)
    torch.testing.assert_close(got.values, expected)
    assert got.error is not None
    assert not got.error.any()
    eight = kernel_shap(model, clips(2), "one", target, ATOMS, samples=62).values
    torch.testing.assert_close(eight, exact_shapley(score_of(model, clips(2), target), clips(2)["one"], ATOMS, 0.0))


@pytest.mark.parametrize("samples", [20, 62])
def test_shapley_axioms(samples: int) -> None:
    """f = x0 x1 + g(x2) with x3 a dummy: drawn (20) or all (62) of the 62 coalitions of six atoms."""
    function = lambda x: torch.stack((x[:, 0] * x[:, 1], x[:, 2].exp() + x[:, 4] * x[:, 5]), 1)  # noqa: E731
    model = model_of({"one": Flat(2, function), "two": toy.Linear()}, Concat, hidden=None)
    inputs = clips(4, ("one", "two"))
    got = kernel_shap(model, inputs, "one", 0, ATOMS, samples=samples, repeats=3).values
    score = score_of(model, inputs, 0)
    difference = score(inputs["one"]) - score(torch.zeros_like(inputs["one"]))
    torch.testing.assert_close(got.sum(1), difference.detach())  # efficiency, of every draw
    if samples == 62:
        torch.testing.assert_close(got[:, 0], got[:, 1])  # symmetry
        torch.testing.assert_close(got[:, 4], got[:, 5])
        torch.testing.assert_close(got[:, 3], torch.zeros(4).double())  # dummy


def test_shapley_kernel_by_hand() -> None:
    assert shapley_kernel(4).tolist() == [0, 3 / (4 * 1 * 3), 3 / (6 * 2 * 2), 3 / (4 * 3 * 1), 0]
    assert shapley_kernel(1).tolist() == [0, 0]


@pytest.mark.parametrize("method", [lime, kernel_shap])
def test_standard_errors_are_honest_and_shrink(method: Callable[..., Importance]) -> None:
    """Four times the repeats halve the error, and the mean is as far from the truth as the error says."""
    model, inputs = model_of(), clips(6)
    atoms = flat_atoms(6)
    got = {r: method(model, inputs, "one", 1, atoms, samples=24, repeats=r, batch=4096) for r in (60, 960)}
    few, many = (i.error for i in got.values())
    assert few is not None
    assert many is not None
    assert 3.4 < few.mean() / many.mean() < 4.6
    z = (got[60].values - got[960].values) / (few**2 - many**2).sqrt()
    assert 0.6 < z.square().mean().sqrt() < 1.6
    if method is kernel_shap:  # the ratio of sums has a bias, small beside this error
        exact = kernel_shap(model, inputs, "one", 1, atoms).values
        assert ((got[60].values - exact).abs() < 5 * few).all()
    wide = method(model, inputs, "one", 1, atoms, samples=60, repeats=240, batch=4096).error
    assert wide is not None
    assert wide.mean() < 0.5 * few.mean()


@pytest.mark.parametrize(("samples", "repeats"), [(48, 1), (60, 2)])
def test_kernel_shap_s_intervals_cover_the_exact_values(samples: int, repeats: int) -> None:
    """95 % intervals of 10 atoms in 120 repetitions. A game whose values are known by all 1,022 coalitions."""
    generator = torch.Generator().manual_seed(3)
    weight, shift = (torch.randn(size, generator=generator).double() for size in ((10, 8), (8,)))
    function = lambda x: torch.stack([(x @ weight / 2 + shift).tanh().sum(1) + 2 * x[:, 0] * x[:, 1]], 1)  # noqa: E731
    model = model_of({"one": Flat(1, function), "two": toy.Linear()}, Concat, hidden=None)
    inputs, atoms = {"one": torch.ones(1, 10).double(), "two": torch.zeros(1, 6).double()}, flat_atoms(10)
    exact = kernel_shap(model, inputs, "one", 0, atoms, samples=1022)
    assert exact.half is not None
    assert not exact.half.any()
    options: dict[str, Any] = {"samples": samples, "repeats": repeats, "batch": 4096}
    got = [kernel_shap(model, inputs, "one", 0, atoms, seed=seed, **options) for seed in range(120)]
    values, half = torch.cat([one.values for one in got]), torch.cat([torch.as_tensor(one.half) for one in got])
    assert 0.9 <= float(((values - exact.values).abs() <= half).double().mean()) <= 0.99
    errors = torch.cat([torch.as_tensor(one.error) for one in got])
    assert float(errors.mean() / values.std(0).mean()) == pytest.approx(1.1, abs=0.15)
    assert {one.freedom for one in got} == {repeats * ((samples - 20) // 2 - 1)}


def test_kernel_shap_s_error_is_the_jackknife_of_its_pairs() -> None:
    """Against a loop over fits without each pair of complements, its weights as the first fit's."""
    model, inputs = model_of(), clips(2)
    seen: list[Tensor] = []
    handle = model.encoders["one"].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    got = kernel_shap(model, inputs, "one", 1, ATOMS, baseline=9.0, samples=22, repeats=1, batch=999)
    handle.remove()
    z = (seen[1] != 9.0).double().reshape(-1, 2, 6)[:, 0]  # the empty one, 12 that all fits have, 5 pairs
    with torch.no_grad():
        scores = score_of(model, inputs)(seen[1]).reshape(-1, 2)
        total = score_of(model, inputs)(inputs["one"]) - scores[0]
    kernel, draws = shapley_kernel(6), 10
    left = []
    for pair in range(5):
        rows = [row for row in range(1, 23) if row not in (13 + pair, 18 + pair)]
        drawn = torch.stack([math.comb(6, s) * kernel[s] for s in (2, 3, 4)]).sum() / (draws - 2)
        weights = torch.stack([kernel[int(z[row].sum())] if row < 13 else drawn for row in rows])
        left.append(efficient_regression(z[rows][None], weights[None], (scores[rows] - scores[0])[None], total)[0].mT)
    spread = torch.stack(left)
    expected = (4 / 5 * (spread - spread.mean(0)).square().sum(0)).sqrt()
    torch.testing.assert_close(got.error, expected)
    assert got.freedom == 4
    torch.testing.assert_close(got.half, scipy.stats.t.ppf(0.975, 4) * expected)
    single = kernel_shap(model, inputs, "one", 1, ATOMS, samples=14, repeats=3)  # one pair a fit: over repeats
    assert single.freedom == 2
    assert kernel_shap(model, inputs, "one", 1, ATOMS, samples=14, repeats=1).half is None
    assert occlusion(model, inputs, "one", 1, ATOMS).half is None


# All methods


def call(name: str, model: FusionModel, inputs: dict[str, Tensor], target: Any = 1, **options: Any) -> Importance:
    options |= {"samples": 16} if name in ("lime", "kernel_shap", "gradient_shap") else {}
    return METHODS[name](model, inputs, "one", target, ATOMS, **options)


@pytest.mark.parametrize("name", METHODS)
def test_rows(name: str) -> None:
    """Of the explained encoder as its docstring says, of the others one a clip, and never more than `batch` at once."""
    model, inputs = model_of(), clips(5)
    counter = Counter(model)
    call(name, model, inputs, batch=4)
    a_clip = {
        "integrated_gradients": 1 + 32,
        "gradient_shap": 1 + 16,
        "occlusion": 1 + 6,
        "lime": 1 + 4 * 15,
        "kernel_shap": 2 + 2 * 6 + 4 * (16 - 2 * 6),
    }.get(name, 2)
    unperturbed = name in ("occlusion", "lime", "kernel_shap")  # the head runs on the cached encodings
    assert counter.rows == {
        "one": 5 * a_clip,
        "two": 5,
        "three": 5,
        "head": 5 * (a_clip - 1 + unperturbed),
    }
    assert counter.largest <= 4


@pytest.mark.parametrize("name", METHODS)
def test_leaves_no_trace(name: str) -> None:
    model, inputs = model_of(), clips()
    model.train()
    model.encoders["two"].eval()
    modes = [m.training for m in model.modules()]
    before, state = {m: x.clone() for m, x in inputs.items()}, torch.get_rng_state()
    first = call(name, model, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(inputs[m], x) and not inputs[m].requires_grad for m, x in before.items())
    assert all(p.grad is None for p in model.parameters())
    torch.manual_seed(5)
    with torch.inference_mode():
        inference = call(name, model, {m: x.clone() for m, x in inputs.items()}, batch=3)
    torch.testing.assert_close(inference.values, first.values, rtol=1e-10, atol=1e-12)
    assert (first.method, first.atoms, first.values.shape) == (name, ATOMS, (5, 6))
    assert not first.values.requires_grad
    assert (first.error is not None) == (name in ("gradient_shap", "lime", "kernel_shap"))


@pytest.mark.parametrize("name", ["lime", "kernel_shap", "gradient_shap"])
def test_seeds(name: str) -> None:
    model, inputs = model_of(), clips(3)
    first, again, other = (call(name, model, inputs, seed=seed).values for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other, rtol=1e-6).all()


@pytest.mark.parametrize("name", METHODS)
def test_the_predicted_class_is_that_of_the_unperturbed_clip(name: str) -> None:
    model, inputs = model_of(), clips(8)
    model.head.classifier.bias.data -= model.eval()(inputs).mean(0).detach()
    predicted = model.eval()(inputs).argmax(1)
    assert len(predicted.unique()) > 1
    expected = torch.stack([call(name, model, inputs, c).values for c in range(3)])[predicted, torch.arange(8)]
    for target in ("predicted", predicted):
        torch.testing.assert_close(call(name, model, inputs, target).values, expected)


@pytest.mark.parametrize("name", METHODS)
def test_tokens_and_one_modality(name: str) -> None:
    torch.manual_seed(0)
    encoders: dict[str, Encoder] = {"one": toy.Tokens(), "two": toy.Linear()}
    head = Attention({"one": 8, "two": 8}, 3, hidden=8)
    model = FusionModel(encoders, head)
    inputs = {m: x.float() for m, x in clips(3, ("one", "two")).items()}
    got = call(name, model, inputs, batch=2)
    assert got.values.isfinite().all()
    assert got.values.abs().sum() > 0
    alone = FusionModel({"one": toy.Linear()}, Concat({"one": 8}, 3, hidden=4))
    assert call(name, alone, {"one": inputs["one"]}).values.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_a_first_layer_in_place_and_one_that_ignores_its_input(name: str) -> None:
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 8))
    model, inputs = model_of({"one": Net(net, 8), "two": toy.Linear()}), clips(3, ("one", "two"))
    before = inputs["one"].clone()
    call(name, model, inputs)
    assert torch.equal(inputs["one"], before)
    constant = model_of({"one": Flat(2, lambda x: x.new_ones(len(x), 2)), "two": toy.Linear()}).requires_grad_(False)
    torch.testing.assert_close(call(name, constant, inputs).values, torch.zeros(3, 6).double(), check_dtype=False)


def test_bilinear_head_in_closed_form() -> None:
    """f = xᵀ W b: every method that is complete gives x ⊙ W b, with b the other modality held fixed."""
    torch.manual_seed(0)
    model = FusionModel({"one": Flat(6), "two": Flat(6)}, Bilinear({"one": 6, "two": 6})).double()
    inputs = clips(4, ("one", "two"))
    weight: Tensor = model.head.weight  # type: ignore[assignment]
    expected = inputs["one"] * (inputs["two"] @ weight.detach().T)
    for name in set(METHODS) - {"gradient", "guided_backprop"}:
        got = call(name, model, inputs, 0).values
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, x: gradient(m, x, "four"), "modality='four': must be one of one, two, three"),
        (lambda m, x: grad_cam(m, x, "four", layer=m), "modality='four'"),
        (lambda m, x: gradient(m, x, "one", 3), "target"),
        (lambda m, x: gradient(m, x, "one", 0, flat_atoms(5)), "made for inputs of shape"),
        (lambda m, x: gradient(m, x, "one", batch=0), "batch=0: must be at least 1"),
        (
            lambda m, x: gradient(m, {k: v for k, v in x.items() if k != "two"}, "one"),
            "no input for the modality 'two'",
        ),
        (
            lambda m, x: gradient(m, {k: v for k, v in x.items() if k != "one"}, "one"),
            "no input for the modality 'one'",
        ),
        (lambda m, x: gradient(m, {}, "one"), "at least one"),
        (lambda m, x: gradient(m, {**x, "two": x["two"][:2]}, "one"), "same clips"),
        (lambda m, x: gradient(m, {k: v[:0] for k, v in x.items()}, "one"), "at least one"),
        (lambda m, x: integrated_gradients(m, x, "one", steps=0), "steps=0: must be at least 1"),
        (lambda m, x: integrated_gradients(m, x, "one", baseline=torch.zeros(5)), "baseline"),
        (lambda m, x: occlusion(m, x, "one", 0, ATOMS, baseline=torch.zeros(7, 6)), "baseline"),
        (lambda m, x: gradient_shap(m, x, "one", samples=1), "samples=1: must be at least 2"),
        (lambda m, x: gradient_shap(m, x, "one", noise=-1.0), "noise"),
        (lambda m, x: gradient_shap(m, x, "one", baselines=torch.zeros(6)), "baselines"),
        (lambda m, x: lime(m, x, "one", 0, ATOMS, samples=7), "samples=7: must be at least 8"),
        (lambda m, x: lime(m, x, "one", 0, ATOMS, repeats=0), "repeats=0: must be at least 1"),
        (lambda m, x: lime(m, x, "one", 0, ATOMS, width=0.0), "width"),
        (lambda m, x: lime(m, x, "one", 0, ATOMS, ridge=-1.0), "ridge"),
        (lambda m, x: lime(m, x, "one", 0, ATOMS, samples=8, repeats=60, ridge=0.0), "more samples"),
        (lambda m, x: kernel_shap(m, x, "one", 0, ATOMS, samples=15), "even and at least 2 A . 2 = 14"),
        (lambda m, x: kernel_shap(m, x, "one", 0, ATOMS, samples=12), "even and at least 2 A . 2 = 14"),
        (lambda m, x: kernel_shap(m, x, "one", 0, ATOMS, samples=14, repeats=0), "repeats=0: must be at least 1"),
    ],
)
def test_impossible_options_are_refused(change: Callable[..., Importance], message: str) -> None:
    with pytest.raises(UserError, match=message):
        change(model_of(), clips())


def test_integers_cannot_be_explained() -> None:
    model = model_of({"one": Flat(6, lambda x: x.double()), "two": toy.Linear()})
    inputs = clips(2, ("one", "two"))
    with pytest.raises(UserError, match="floating-point"):
        gradient(model, {**inputs, "one": inputs["one"].long()}, "one")
