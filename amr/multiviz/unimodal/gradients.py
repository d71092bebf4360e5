"""Methods that follow the score's gradient by the input: gradient, times input, integrated, in expectation."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.datamodules.atoms import Atoms
from amr.model.protocol import Explained
from amr.multiviz.base import Several, Target, at_least
from amr.multiviz.held import hold, of_clips
from amr.multiviz.unimodal.importance import Importance
from amr.utils.errors import UserError


def gradient(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target | Several = "predicted",
    atoms: Atoms | None = None,
    *,
    batch: int = 64,
) -> Importance:
    """Gradient ∂f/∂x of the score by the input (Simonyan et al. 2014, section 3), with its sign. 2 rows per clip.

    Ids (integers) are explained by the vectors of their embedding layer: values are summed over a vector's dimensions,
    so that each id has one.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality that is explained.
        target: The score f: a logit or a penultimate unit. "predicted" is the class of the unperturbed clip. `Several`
            share the forward pass.
        atoms: Sum the elements' values by atom; None leaves them as they are.
        batch: Rows that the encoder and the head take at once.

    Returns:
        Importance, without error.

    Raises:
        UserError: The modality or target does not exist, the input has no gradient (ids without a known embedding
            layer), or the atoms are of another shape.
    """
    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch, several=True, gradient=True)
        values = [fixed.slopes(fixed.leaf[clip], clip) for _, clip in fixed.rows(1)]
        return Importance(torch.cat(values), None, atoms, "gradient")


def gradient_input(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target | Several = "predicted",
    atoms: Atoms | None = None,
    *,
    batch: int = 64,
) -> Importance:
    """Gradient times input, x ⊙ ∂f/∂x (Shrikumar et al. 2016). 2 rows per clip.

    Arguments, return value and errors are those of `gradient`.
    """
    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch, several=True, gradient=True)
        values = [fixed.slopes(fixed.leaf[clip], clip, fixed.leaf[clip]) for _, clip in fixed.rows(1)]
        return Importance(torch.cat(values), None, atoms, "gradient_input")


def integrated_gradients(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target | Several = "predicted",
    atoms: Atoms | None = None,
    *,
    baseline: Tensor | float = 0.0,
    steps: int = 32,
    batch: int = 64,
) -> Importance:
    """Integrated gradients, (x − x̄) ⊙ ∫₀¹ ∂f/∂x(x̄ + α (x − x̄)) dα (Sundararajan et al. 2017, eq. 1).

    The integral is a Gauss-Legendre sum, exact where the score is a polynomial of degree 2 · steps or less along the
    path. The values then add up to f(x) − f(x̄); how far they do is the test of `steps`. 1 + steps rows per clip.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality that is explained.
        target: As in `gradient`.
        atoms: As in `gradient`.
        baseline: The input x̄ that counts as nothing: a number, or a tensor that broadcasts to one input, such as the
            data's mean, or one input for each clip, such as a blurred copy. Of ids: a float or float tensor is a vector
            of the embedding, an id or ids are embedded.
        steps: Points of the sum, at least 1.
        batch: As in `gradient`.

    Returns:
        Importance, without error.

    Raises:
        UserError: As in `gradient`, or `steps` or the baseline's shape is not allowed.
    """
    at_least("integrated_gradients", steps=(steps, 1))
    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch, several=True, gradient=True)
        start = fixed.leaf_baseline(baseline)
        nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
        alphas = torch.as_tensor((1 + nodes) / 2).to(fixed.leaf)
        parts = torch.as_tensor(weights / 2).to(fixed.leaf)
        total = fixed.zeros(fixed.leaf.dtype)
        for step, clip in fixed.rows(steps):
            begin = of_clips(start, fixed.leaf, clip)
            path = fixed.leaf[clip] - begin
            at = begin + _column(alphas[step], path) * path
            total.index_add_(0, clip, fixed.slopes(at, clip, _column(parts[step], path) * path))
        return Importance(total, None, atoms, "integrated_gradients")


def gradient_shap(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target | Several = "predicted",
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
    draws the values add up to f(x) minus the mean of f over the baselines. 1 + samples rows per clip.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality that is explained.
        target: As in `gradient`.
        atoms: As in `gradient`.
        baselines: Inputs to draw from, (K, *input shape), such as other clips'; or a number for a constant one. Of ids
            as in `integrated_gradients`.
        noise: Standard deviation of normal noise that is added to x in each draw, which smooths the result; 0 for none.
        samples: Draws a clip, at least 2.
        seed: Seed of the draws, which do not depend on `batch`.
        batch: As in `gradient`.

    Returns:
        Importance; the error is that of the mean over the draws.

    Raises:
        UserError: As in `gradient`, or `samples`, `noise` or the baselines' shape is not allowed.
    """
    at_least("gradient_shap", samples=(samples, 2))
    if not noise >= 0:
        raise UserError(f"gradient_shap: noise={noise}: must be 0 or more")
    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch, several=True, gradient=True)
        shape = fixed.leaf.shape[1:]
        baselines = fixed.leaf_baselines(baselines) if isinstance(baselines, Tensor) else baselines
        if not isinstance(baselines, Tensor):
            baselines = fixed.leaf_baseline(baselines).expand(1, *shape)
        if baselines.shape[1:] != shape or not len(baselines):
            raise UserError(
                f"gradient_shap: baselines must have the shape (K, {', '.join(map(str, shape))}) with K at least 1, "
                f"got {tuple(baselines.shape)}"
            )
        generator = torch.Generator().manual_seed(seed)
        draws = samples, len(fixed.leaf)
        alphas = torch.rand(draws, generator=generator, dtype=torch.float64).to(fixed.leaf)
        chosen = torch.randint(len(baselines), draws, generator=generator)
        sums, squares = fixed.zeros(torch.float64), fixed.zeros(torch.float64)
        for draw, clip in fixed.rows(samples):
            start = baselines[chosen[draw.cpu(), clip.cpu()].to(baselines.device)].to(fixed.leaf)
            x = fixed.leaf[clip]
            if noise:  # a row at a time: one large draw would depend on the batch
                x = x + noise * torch.stack([torch.randn(shape, generator=generator) for _ in clip]).to(x)
            at = start + _column(alphas[draw, clip], x) * (x - start)
            values = fixed.slopes(at, clip, x - start).double()
            sums.index_add_(0, clip, values)
            squares.index_add_(0, clip, values**2)
        variance = (squares - sums**2 / samples).clamp_min(0) / (samples - 1)
        return Importance(sums / samples, (variance / samples).sqrt(), atoms, "gradient_shap", samples - 1)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """A number per row, (R,), with as many dimensions as `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
