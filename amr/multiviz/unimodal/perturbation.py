"""Methods that replace atoms and look at the score: occlusion, LIME, KernelSHAP."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.datamodules.atoms import Atoms
from amr.evaluation.bootstrap import jackknife_error, left_out
from amr.model.protocol import Explained
from amr.multiviz.base import Several, Target, at_least
from amr.multiviz.held import hold, masked_scores
from amr.multiviz.unimodal.importance import Importance
from amr.multiviz.unimodal.surrogate import (
    efficient_regression,
    lime_kernel,
    shapley_kernel,
    size_weights,
    weighted_ridge,
)
from amr.utils.errors import UserError


def occlusion(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target | Several,
    atoms: Atoms,
    *,
    baseline: Tensor | float = 0.0,
    batch: int = 64,
) -> Importance:
    """Occlusion, f(x) − f(x with the atom replaced) (Zeiler & Fergus 2014, section 4.2). 1 + A rows per clip.

    Arguments, return value and errors are those of `integrated_gradients`; `Several` targets share the rows.
    """
    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch, several=True)
        scores = masked_scores(fixed, atoms, ~torch.eye(len(atoms), dtype=torch.bool), baseline)
        return Importance((fixed.unperturbed() - scores).movedim(0, -1), None, atoms, "occlusion")


def lime(
    model: Explained,
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
    them all. 1 + repeats · (samples − 1) rows per clip.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality that is explained.
        target: As in `gradient`, or `Several`, which share the rows.
        atoms: The atoms.
        baseline: Replacement of an absent atom: a number, or a tensor that broadcasts to one input.
        samples: Points a fit, at least A + 2.
        repeats: Independent draws; their mean is returned.
        width: Width of the kernel, positive; smaller is more local.
        ridge: Penalty on the surrogate's squared weights, relative to the variance of the draws; 0 or more.
        seed: Seed of the draws.
        batch: As in `gradient`.

    Returns:
        Importance in float64; the error is the standard error over repeats.

    Raises:
        UserError: As in `gradient`, or an option has a value that is not allowed.
    """
    at_least("lime", samples=(samples, len(atoms) + 2), repeats=(repeats, 1))
    if not (width > 0 and ridge >= 0):
        raise UserError(f"lime: width={width}, ridge={ridge}: must be a positive width and a ridge of 0 or more")
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
    model: Explained,
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
    possible, each is taken once: the values are exact. All clips share the draws.
    2 (A + 1) + repeats · (samples − 2 A) rows per clip, or 2^A.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality that is explained.
        target: As in `gradient`, or `Several`, which share the rows.
        atoms: The atoms.
        baseline: Replacement of an absent atom: a number, or a tensor that broadcasts to one input.
        samples: Coalitions a fit besides the empty and the full one; even, at least 2 A + 2.
        repeats: Independent draws; their mean is returned.
        seed: Seed of the draws.
        batch: As in `gradient`.

    Returns:
        Importance in float64. The error is that of the draws, by a jackknife over the pairs of complements of every
        fit (32 groups of them at most), or over repeats where a fit draws a single pair; 0 where the values are exact.

    Raises:
        UserError: As in `gradient`, or an option has a value that is not allowed.
    """
    size = len(atoms)
    exact = 2**size - 2 <= samples
    if not exact and (samples % 2 or samples < 2 * size + 2):
        raise UserError(f"kernel_shap: samples={samples}: must be even and at least 2 A + 2 = {2 * size + 2}")
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
            weight = float(size_weights(size)[2:-2].sum()) / drawn.shape[1]  # the draws stand for all the other sizes
        fits = len(drawn)
        keep = torch.cat((torch.zeros(1, size, dtype=torch.bool), once, drawn.flatten(0, 1)))
        scores = masked_scores(fixed, atoms, keep, baseline)
        shape, scores = scores.shape[1:], scores.flatten(1)  # (N,) or (N, T)
        empty, shared = scores[0], scores[1 : 1 + len(once)]
        own = scores[1 + len(once) :].reshape(fits, -1, len(empty))
        scores = torch.cat((shared.expand(fits, -1, -1), own), dim=1) - empty  # (repeats, samples, N · T)
        keep = torch.cat((once.expand(fits, -1, -1), drawn), dim=1)
        total = fixed.unperturbed().flatten() - empty
        shared_weights = kernel[once.sum(1)].expand(fits, -1).to(scores)

        def fit(stay: Tensor) -> Tensor:
            """Values (R, N, ..., A) of the shared coalitions and the drawn ones that stay, boolean (draws,)."""
            of_drawn = weight * stay.to(scores) * (len(stay) / stay.sum()) if len(stay) else stay.to(scores)
            weights = torch.cat((shared_weights, of_drawn.expand(fits, -1)), dim=1)
            return efficient_regression(keep.to(scores), weights, scores, total).mT.reshape(fits, *shape, -1)

        values = fit(torch.ones(drawn.shape[1], dtype=torch.bool))
        if exact:
            return Importance(values[0], torch.zeros_like(values[0]), atoms, "kernel_shap", len(once))
        pairs = drawn.shape[1] // 2
        if pairs < 2:
            return _over_repeats(values, atoms, "kernel_shap")
        stays = left_out(pairs)
        error = jackknife_error(torch.stack([fit(stay.repeat(2)) for stay in stays])).square().sum(0).sqrt() / fits
        return Importance(values.mean(0), error, atoms, "kernel_shap", fits * (len(stays) - 1))


def _coalitions(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Coalitions of 2 to A − 2 atoms drawn with the Shapley kernel's probability, boolean (count, A)."""
    sizes = 2 + torch.multinomial(size_weights(size)[2:-2], count, replacement=True, generator=generator)
    ranks = torch.rand(count, size, generator=generator, dtype=torch.float64).argsort(1).argsort(1)
    return ranks < sizes[:, None]


def _over_repeats(values: Tensor, atoms: Atoms, method: str) -> Importance:
    """Mean of (repeats, N, ..., A) and its standard error."""
    repeats = len(values)
    error = values.std(0) / math.sqrt(repeats) if repeats > 1 else None
    return Importance(values.mean(0), error, atoms, method, repeats - 1 if repeats > 1 else None)
