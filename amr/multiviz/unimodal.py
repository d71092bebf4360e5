"""Unimodal importance (U): which atoms of one modality's input a score rests on, the other modalities held fixed.

Every method encodes the clips once, keeps the other modalities' encodings, and then runs nothing but one encoder and
the head. What that costs is counted in rows of that encoder a clip, the first encoding included.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from amr.attribution import undisturbed
from amr.datamodules.atoms import Atoms
from amr.model import FusionModel
from amr.multiviz.base import Several, Target, at_least
from amr.multiviz.held import encoder_of, hold, input_gradient, masked_scores, one_baseline
from amr.utils.errors import UserError


@dataclass(frozen=True, eq=False)
class Importance:
    """What a method says about N clips.

    Args:
        values: Importance of each atom, (N, A), or of each element, (N, *input shape), where no atoms were given; of
            several targets (N, T, A).
        error: Standard error of `values` of the methods that draw samples, the same shape; None of the others, and of
            one repeat.
        atoms: The atoms, with their coordinates.
        method: The function's name.
    """

    values: Tensor
    error: Tensor | None
    atoms: Atoms | None
    method: str


def gradient(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target = "predicted",
    atoms: Atoms | None = None,
    *,
    batch: int = 64,
) -> Importance:
    """Gradient ∂f/∂x of the score by the input (Simonyan et al. 2014, section 3), with its sign. 2 rows a clip.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality that is explained.
        target: The score f: a logit or a penultimate unit. "predicted" is the class of the unperturbed clip.
        atoms: Sum the elements' values by atom; None leaves them as they are.
        batch: Rows that the encoder and the head take at once.

    Returns:
        Importance, without error.

    Raises:
        UserError: The modality or target does not exist, the input is not floating-point, or the atoms are of another
            shape.
    """
    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch)
        values = [fixed.by_atom(fixed.gradients(fixed.x[clip], clip)) for _, clip in fixed.rows(1)]
        return Importance(torch.cat(values), None, atoms, "gradient")


def gradient_input(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target = "predicted",
    atoms: Atoms | None = None,
    *,
    batch: int = 64,
) -> Importance:
    """Gradient times input, x ⊙ ∂f/∂x (Shrikumar et al. 2016). 2 rows a clip.

    Arguments, return value and errors are those of `gradient`.
    """
    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch)
        values = [fixed.by_atom(fixed.x[clip] * fixed.gradients(fixed.x[clip], clip)) for _, clip in fixed.rows(1)]
        return Importance(torch.cat(values), None, atoms, "gradient_input")


def integrated_gradients(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target = "predicted",
    atoms: Atoms | None = None,
    *,
    baseline: Tensor | float = 0.0,
    steps: int = 32,
    batch: int = 64,
) -> Importance:
    """Integrated gradients, (x − x̄) ⊙ ∫₀¹ ∂f/∂x(x̄ + α (x − x̄)) dα (Sundararajan et al. 2017, eq. 1).

    The integral is a Gauss-Legendre sum, exact where the score is a polynomial of degree 2 · steps or less along the
    path. The values then add up to f(x) − f(x̄); how far they do is the test of `steps`. 1 + steps rows a clip.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality that is explained.
        target: As in `gradient`.
        atoms: As in `gradient`.
        baseline: The input x̄ that counts as nothing: a number, or a tensor that broadcasts to one input, such as the
            data's mean.
        steps: Points of the sum, at least 1.
        batch: As in `gradient`.

    Returns:
        Importance, without error.

    Raises:
        UserError: As in `gradient`, or `steps` or the baseline's shape is not allowed.
    """
    at_least("integrated_gradients", steps=(steps, 1))
    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch)
        start = one_baseline(fixed.x, baseline)
        nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
        alphas = torch.as_tensor((1 + nodes) / 2).to(fixed.x)
        parts = torch.as_tensor(weights / 2).to(fixed.x)
        total = fixed.zeros(fixed.x.dtype)
        for step, clip in fixed.rows(steps):
            path = fixed.x[clip] - start
            gradients = fixed.gradients(start + _column(alphas[step], path) * path, clip)
            total.index_add_(0, clip, fixed.by_atom(_column(parts[step], path) * path * gradients))
        return Importance(total, None, atoms, "integrated_gradients")


def gradient_shap(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target = "predicted",
    atoms: Atoms | None = None,
    *,
    baselines: Tensor | float = 0.0,
    noise: float = 0.0,
    samples: int = 32,
    seed: int = 0,
    batch: int = 64,
) -> Importance:
    """GradientSHAP: integrated gradients in expectation over baselines (Lundberg & Lee 2017; Erion et al. 2021).

    The mean of (x − x̄) ⊙ ∂f/∂x(x̄ + α (x − x̄)) over draws of α in [0, 1) and of x̄ from the baselines. Given enough
    draws the values add up to f(x) minus the mean of f over the baselines. 1 + samples rows a clip.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality that is explained.
        target: As in `gradient`.
        atoms: As in `gradient`.
        baselines: Inputs to draw from, (K, *input shape), such as other clips'; or a number for a constant one.
        noise: Standard deviation of normal noise that is added to x in each draw, which smooths the result; 0 for none.
        samples: Draws a clip, at least 2.
        seed: Of the draws, which do not depend on `batch`.
        batch: As in `gradient`.

    Returns:
        Importance; the error is that of the mean over the draws.

    Raises:
        UserError: As in `gradient`, or `samples`, `noise` or the baselines' shape is not allowed.
    """
    at_least("gradient_shap", samples=(samples, 2))
    if not noise >= 0:
        raise UserError(f"gradient_shap: noise must be 0 or more, got {noise}")
    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch)
        shape = fixed.x.shape[1:]
        if not isinstance(baselines, Tensor):
            baselines = fixed.x.new_full((1, *shape), baselines)
        if baselines.shape[1:] != shape or not len(baselines):
            raise UserError(
                f"gradient_shap: baselines must have the shape (K, {', '.join(map(str, shape))}) with K at least 1, "
                f"got {tuple(baselines.shape)}"
            )
        generator = torch.Generator().manual_seed(seed)
        draws = samples, len(fixed.x)
        alphas = torch.rand(draws, generator=generator, dtype=torch.float64).to(fixed.x)
        chosen = torch.randint(len(baselines), draws, generator=generator)
        sums, squares = fixed.zeros(torch.float64), fixed.zeros(torch.float64)
        for draw, clip in fixed.rows(samples):
            start = baselines[chosen[draw.cpu(), clip.cpu()].to(baselines.device)].to(fixed.x)
            x = fixed.x[clip]
            if noise:  # a row at a time: one large draw would depend on the batch
                x = x + noise * torch.stack([torch.randn(shape, generator=generator) for _ in clip]).to(x)
            gradients = fixed.gradients(start + _column(alphas[draw, clip], x) * (x - start), clip)
            values = fixed.by_atom((x - start) * gradients).double()
            sums.index_add_(0, clip, values)
            squares.index_add_(0, clip, values**2)
        variance = (squares - sums**2 / samples).clamp_min(0) / (samples - 1)
        return Importance(sums / samples, (variance / samples).sqrt(), atoms, "gradient_shap")


def guided_backprop(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target = "predicted",
    atoms: Atoms | None = None,
    *,
    batch: int = 64,
) -> Importance:
    """Guided backpropagation: a ReLU passes positive gradients only (Springenberg et al. 2015, figure 1).

    R_in = 1[x > 0] · 1[R_out > 0] · R_out at every ReLU of the encoder and the head: modules, also in-place ones and
    such as run several times, and functions. Other activations keep their derivative. 2 rows a clip.

    Arguments, return value and errors are those of `gradient`.

    Raises:
        UserError: Also if no ReLU runs (the result would be the gradient), or one is out of reach: compiled or
            scripted.
    """
    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch)
        values = []
        for _, clip in fixed.rows(1):
            x = fixed.x[clip].requires_grad_()
            with _GuidedReLUs() as guided:
                score = fixed.scores(x, clip).sum()
            if not guided.calls:
                raise UserError(f"guided_backprop: no ReLU in the encoder of {modality!r} or the head; use gradient")
            _refuse_unguided(score)
            values.append(fixed.by_atom(input_gradient(score, x)))
        return Importance(torch.cat(values), None, atoms, "guided_backprop")


def grad_cam(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target = "predicted",
    atoms: Atoms | None = None,
    *,
    layer: nn.Module,
    batch: int = 64,
) -> Importance:
    """Grad-CAM at one layer of the modality's encoder (Selvaraju et al. 2017, eqs. 1 and 2). 2 rows a clip.

    With A the layer's output and k its channels, w_k is the mean of ∂f/∂A_k over positions, and the map
    ReLU(Σ_k w_k A_k) is interpolated linearly to the input's resolution. Every channel of the input gets an equal part
    of it, so that they add up to the map; a dimension that the layer no longer has (frames merged into channels) gets
    it all over.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...): (N, C, T), (N, C, H, W) or (N, frames, C, H, W).
        modality: The modality that is explained.
        target: As in `gradient`.
        atoms: As in `gradient`.
        layer: A module in that encoder that runs once a forward pass and returns (rows, channels, positions...) with
            one, two or three dimensions of positions: those of time, of height and width, or of frames, height and
            width. Rows are clips, or clips × frames.
        batch: As in `gradient`.

    Returns:
        Importance, 0 or more, without error.

    Raises:
        UserError: As in `gradient`, or the layer is not such a module.
    """
    if all(layer is not module for module in encoder_of(model, modality).modules()):
        raise UserError(f"grad_cam: layer must be a module in the encoder of {modality!r}, got {type(layer).__name__}")
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Any) -> Tensor:  # noqa: ARG001 - a hook's signature
        if not isinstance(output, Tensor):
            raise UserError(f"grad_cam: layer must return one tensor, {type(layer).__name__} returns {type(output)}")
        outputs.append(output.detach().requires_grad_())
        return outputs[-1].clone()  # what follows in place would change what was kept

    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch)
        values = []
        handle = layer.register_forward_hook(keep)
        try:
            for _, clip in fixed.rows(1):
                outputs.clear()
                score = fixed.scores(fixed.x[clip], clip).sum()
                if len(outputs) != 1:
                    raise UserError(f"grad_cam: layer must run once a forward pass, it ran {len(outputs)} times")
                cam = _cam(outputs[0].detach(), input_gradient(score, outputs[0]))
                values.append(fixed.by_atom(_upsample(cam, fixed.x[clip].shape)))
        finally:
            handle.remove()
        return Importance(torch.cat(values), None, atoms, "grad_cam")


def occlusion(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target | Several,
    atoms: Atoms,
    *,
    baseline: Tensor | float = 0.0,
    batch: int = 64,
) -> Importance:
    """Occlusion, f(x) − f(x with the atom replaced) (Zeiler & Fergus 2014, section 4.2). 1 + A rows a clip.

    Arguments, return value and errors are those of `integrated_gradients`; `Several` targets share the rows.
    """
    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch, several=True)
        scores = masked_scores(fixed, atoms, ~torch.eye(len(atoms), dtype=torch.bool), baseline)
        return Importance((fixed.unperturbed() - scores).movedim(0, -1), None, atoms, "occlusion")


def lime(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target | Several,
    atoms: Atoms,
    *,
    baseline: Tensor | float = 0.0,
    samples: int = 256,
    repeats: int = 4,
    width: float = 0.25,
    ridge: float = 1e-6,
    seed: int = 0,
    batch: int = 64,
) -> Importance:
    """LIME: weights of a linear surrogate on which atoms are present (Ribeiro et al. 2016, eqs. 1 and 2).

    z is the clip itself, then samples − 1 draws in which each atom stays with probability ½. `weighted_ridge` is fitted
    to f(z) with the weights π(z) = exp(−D(z)² / width²) of `lime_kernel`. All clips share the draws, so one solve gives
    them all. 1 + repeats · (samples − 1) rows a clip.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality that is explained.
        target: As in `gradient`, or `Several`, which share the rows.
        atoms: The atoms.
        baseline: What an absent atom becomes: a number, or a tensor that broadcasts to one input.
        samples: Points a fit, at least A + 2.
        repeats: Independent draws; their mean is returned.
        width: Width of the kernel, positive; smaller is more local.
        ridge: Penalty on the surrogate's squared weights, relative to the variance of the draws; 0 or more.
        seed: Of the draws.
        batch: As in `gradient`.

    Returns:
        Importance in float64; the error is the standard error over repeats.

    Raises:
        UserError: As in `gradient`, or an option has a value that is not allowed.
    """
    at_least("lime", samples=(samples, len(atoms) + 2), repeats=(repeats, 1))
    if not (width > 0 and ridge >= 0):
        raise UserError(f"lime: width must be positive and ridge 0 or more, got {width} and {ridge}")
    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch, several=True)
        generator = torch.Generator().manual_seed(seed)
        keep = torch.rand(repeats, samples, len(atoms), generator=generator) < 0.5
        keep[:, 0] = True
        drawn = masked_scores(fixed, atoms, keep[:, 1:].flatten(0, 1), baseline)
        whole = fixed.unperturbed()
        first = whole.flatten().expand(repeats, 1, -1)
        scores = torch.cat((first, drawn.reshape(repeats, samples - 1, -1)), dim=1)  # (repeats, samples, N · T)
        weights = weighted_ridge(keep.to(scores), lime_kernel(keep, width).to(scores), scores, ridge)
        return _over_repeats(weights.mT.reshape(repeats, *whole.shape, -1), atoms, "lime")


def kernel_shap(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target | Several,
    atoms: Atoms,
    *,
    baseline: Tensor | float = 0.0,
    samples: int = 256,
    repeats: int = 4,
    seed: int = 0,
    batch: int = 64,
) -> Importance:
    """KernelSHAP: Shapley values of the atoms by weighted regression (Lundberg & Lee 2017, theorem 2).

    The surrogate is held to φ_1 + ... + φ_A = f(x) − f(x̄), so the values add up exactly. Every fit has the coalitions
    of one atom and of all but one, which alone determine every value and weigh most; the others are drawn with the
    kernel's probability, each with its complement (Covert & Lee 2021). Where `samples` reaches the 2^A − 2 coalitions
    that there are, each is taken once: the values are exact. All clips share the draws.
    2 (A + 1) + repeats · (samples − 2 A) rows a clip, or 2^A.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality that is explained.
        target: As in `gradient`, or `Several`, which share the rows.
        atoms: The atoms.
        baseline: What an absent atom becomes: a number, or a tensor that broadcasts to one input.
        samples: Coalitions a fit besides the empty and the full one; even, at least 2 A + 2.
        repeats: Independent draws; their mean is returned.
        seed: Of the draws.
        batch: As in `gradient`.

    Returns:
        Importance in float64; the error is the standard error over repeats, 0 where the values are exact.

    Raises:
        UserError: As in `gradient`, or an option has a value that is not allowed.
    """
    size = len(atoms)
    exact = 2**size - 2 <= samples
    if not exact and (samples % 2 or samples < 2 * size + 2):
        raise UserError(f"kernel_shap: samples must be even and at least 2 A + 2 = {2 * size + 2}, got {samples}")
    at_least("kernel_shap", repeats=(repeats, 1))
    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch, several=True)
        kernel = shapley_kernel(size)
        if exact:
            once = (torch.arange(1, 2**size - 1)[:, None] >> torch.arange(size) & 1).bool()
            drawn, weight = torch.empty(1, 0, size, dtype=torch.bool), 0.0
        else:
            once = torch.cat((torch.eye(size), 1 - torch.eye(size))).bool()
            generator = torch.Generator().manual_seed(seed)
            half = torch.stack([_coalitions((samples - 2 * size) // 2, size, generator) for _ in range(repeats)])
            drawn = torch.cat((half, ~half), dim=1)
            weight = float(_size_weights(size)[2:-2].sum()) / drawn.shape[1]  # the draws stand for all the other sizes
        fits = len(drawn)
        keep = torch.cat((torch.zeros(1, size, dtype=torch.bool), once, drawn.flatten(0, 1)))
        scores = masked_scores(fixed, atoms, keep, baseline)
        shape, scores = scores.shape[1:], scores.flatten(1)  # (N,) or (N, T)
        empty, shared = scores[0], scores[1 : 1 + len(once)]
        own = scores[1 + len(once) :].reshape(fits, -1, len(empty))
        scores = torch.cat((shared.expand(fits, -1, -1), own), dim=1) - empty  # (repeats, samples, N · T)
        keep = torch.cat((once.expand(fits, -1, -1), drawn), dim=1)
        weights = torch.cat((kernel[once.sum(1)].expand(fits, -1), torch.full(drawn.shape[:2], weight)), dim=1)
        total = fixed.unperturbed().flatten() - empty
        values = efficient_regression(keep.to(scores), weights.to(scores), scores, total).mT.reshape(fits, *shape, -1)
        if exact:
            return Importance(values[0], torch.zeros_like(values[0]), atoms, "kernel_shap")
        return _over_repeats(values, atoms, "kernel_shap")


def lime_kernel(keep: Tensor, width: float) -> Tensor:
    """Weight of a perturbed clip, exp(−D² / width²) (Ribeiro et al. 2016, section 3.4).

    D is the cosine distance between z and the clip itself, all ones: 1 − √(kept / A), and 1 where no atom is kept. The
    `lime` package takes the square root of this kernel: its width w is w√2 here.

    Args:
        keep: Atoms that stay, boolean (..., A).
        width: Width, positive.

    Returns:
        Weights in (0, 1], (...), float64.
    """
    distance = 1 - keep.double().mean(-1).sqrt()
    return torch.exp(-((distance / width) ** 2))


def shapley_kernel(size: int) -> Tensor:
    """Weight of one coalition by its number of atoms, (A + 1,) float64 (Lundberg & Lee 2017, theorem 2).

    π(s) = (A − 1) / (C(A, s) s (A − s)). The empty and the full coalition, whose weight is infinite, get 0: the
    regression meets them as constraints.
    """
    inner = [(size - 1) / (math.comb(size, s) * s * (size - s)) for s in range(1, size)]
    return torch.tensor([0.0, *inner, 0.0], dtype=torch.float64)


def weighted_ridge(z: Tensor, weights: Tensor, scores: Tensor, ridge: float) -> Tensor:
    """Linear surrogates with an intercept for many clips at once: one solve.

    Minimises Σ_s π_s (f_s − c − z_s·β)² / Σ_s π_s + ridge · v ‖β‖², where v is the weighted variance of the columns of
    z, averaged over them, so that the penalty means the same for any kernel. The intercept c is free.

    Args:
        z: Points, (..., S, A), shared by the clips.
        weights: Their weights π, (..., S), 0 or more.
        scores: Scores f, (..., S, N).
        ridge: Penalty, 0 or more.

    Returns:
        β, (..., A, N), in float64.

    Raises:
        UserError: The points do not determine the weights.
    """
    pi = (weights / weights.sum(-1, keepdim=True)).double()[..., None]  # (..., S, 1)
    z, scores = z.double(), scores.double()
    z = z - (pi * z).sum(-2, keepdim=True)
    scores = scores - (pi * scores).sum(-2, keepdim=True)
    gram = (pi * z).mT @ z
    penalty = ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    gram = gram + penalty * torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    return _solve(gram, (pi * z).mT @ scores)


def efficient_regression(z: Tensor, weights: Tensor, scores: Tensor, total: Tensor) -> Tensor:
    """Weighted least squares of scores (R, S, N) on z (R, S, A) whose A weights add up to `total` (N,): (R, A, N).

    The constraint eliminates the last atom: φ_A = total − Σ_{a<A} φ_a.
    """
    last = z[..., -1:]
    free = z[..., :-1] - last
    weighted = weights[..., None] * free
    rest = _solve(weighted.mT @ free, weighted.mT @ (scores - last * total))
    return torch.cat((rest, total - rest.sum(-2, keepdim=True)), dim=-2)


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """Solution of gram · β = right for positive definite matrices, refused where they are singular."""
    factor, info = torch.linalg.cholesky_ex(gram)
    # Rounding can leave a singular matrix with a tiny positive pivot.
    pivots = factor.diagonal(dim1=-2, dim2=-1)
    if info.any() or bool((pivots**2 < 1e-12 * gram.diagonal(dim1=-2, dim2=-1)).any()):
        raise UserError("surrogate: the samples do not determine every atom's weight; take more samples or fewer atoms")
    return torch.cholesky_solve(right, factor)


def _size_weights(size: int) -> Tensor:
    """The Shapley kernel's weight of all coalitions of a size together, (A + 1,) float64."""
    return shapley_kernel(size) * torch.tensor([math.comb(size, s) for s in range(size + 1)], dtype=torch.float64)


def _coalitions(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Coalitions of 2 to A − 2 atoms drawn with the Shapley kernel's probability, boolean (count, A)."""
    sizes = 2 + torch.multinomial(_size_weights(size)[2:-2], count, replacement=True, generator=generator)
    ranks = torch.rand(count, size, generator=generator, dtype=torch.float64).argsort(1).argsort(1)
    return ranks < sizes[:, None]


def _over_repeats(values: Tensor, atoms: Atoms, method: str) -> Importance:
    """Mean of (repeats, N, ..., A) and its standard error."""
    repeats = len(values)
    error = values.std(0) / math.sqrt(repeats) if repeats > 1 else None
    return Importance(values.mean(0), error, atoms, method)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """A number a row, (R,), with as many dimensions as `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class _GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        out = x.relu_() if inplace else x.relu()
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(out > 0)  # not the output, which the next layer may change in place
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (positive,) = ctx.saved_tensors
        return grads[0].clamp_min(0) * positive, None


class _GuidedReLUs(TorchFunctionMode):
    """Replaces every ReLU that runs within: modules come down to these functions, too."""

    functions = (F.relu, torch.relu, Tensor.relu)
    inplace_functions = (torch.relu_, Tensor.relu_)  # F.relu_ is torch.relu_

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.functions + self.inplace_functions:
            return func(*args, **kwargs)
        self.calls += 1
        values = dict(zip(("input", "inplace"), args, strict=False)) | kwargs
        apply: Any = _GuidedReLU.apply
        return apply(values["input"], func in self.inplace_functions or values.get("inplace", False))


def _refuse_unguided(score: Tensor) -> None:
    """Raises UserError if the score's graph has a ReLU that was not replaced, or a part that cannot be looked into."""
    seen: set[Node] = set()
    stack = [score.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name()
        if name == "ReluBackward0" or "DifferentiableGraph" in name or "CompiledFunction" in name:
            raise UserError(
                f"guided_backprop: {name} is out of reach; use nn.ReLU or F.relu, neither compiled nor scripted"
            )
        stack.extend(following for following, _ in node.next_functions)


def _cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """ReLU(Σ_k w_k A_k), w_k the mean of the gradient over positions: (R, K, positions...) to (R, positions...)."""
    if not 3 <= activations.ndim <= 5:
        raise UserError(
            "grad_cam: layer must return (rows, channels, positions...) with one to three dimensions of positions, "
            f"got {tuple(activations.shape)}"
        )
    weights = gradients.flatten(2).mean(2)
    return torch.einsum("rk,rk...->r...", weights, activations).relu()


def _upsample(cam: Tensor, shape: torch.Size) -> Tensor:
    """Maps (rows, positions...) interpolated to inputs of `shape` (B, ...), each channel with an equal part."""
    count, *element = shape
    positions = cam.ndim - 1
    if positions == 3 and len(element) == 4:  # (frames, H, W) of (frames, C, H, W)
        size, lead = [element[0], 1, *element[2:]], []
        target = [element[0], *element[2:]]
    elif positions < 3 and positions <= len(element):
        target = element[len(element) - positions :]
        frames = positions == 2 and len(element) == 4 and len(cam) == count * element[0]
        size, lead = target, [element[0], 1] if frames else [1] * (len(element) - positions)
    else:
        target, size, lead = [], [], []
    if not target or len(cam) * math.prod(target) != count * math.prod(lead) * math.prod(size):
        raise UserError(f"grad_cam: the layer's maps, {tuple(cam.shape)}, do not fit inputs of {tuple(shape)}")
    mode = ("linear", "bilinear", "trilinear")[positions - 1]
    full = F.interpolate(cam[:, None], size=target, mode=mode, align_corners=False).reshape(count, *lead, *size)
    channels = 1 if positions == len(element) else element[max(len(element) - 3, 0)]
    return (full / channels).expand(shape)
