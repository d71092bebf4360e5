"""Linear surrogates of a score in which atoms are present: their kernels and their fit."""

import math

import torch
from torch import Tensor

from amr.utils.errors import UserError


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


def size_weights(size: int) -> Tensor:
    """The Shapley kernel's weight of all coalitions of a size together, (A + 1,) float64."""
    return shapley_kernel(size) * torch.tensor([math.comb(size, s) for s in range(size + 1)], dtype=torch.float64)
