"""Explanations for the trust scores: a method with its options filled in, and its maps as tensors."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.datamodules.atoms import Atoms
from amr.evaluation.bootstrap import spearman as rank_correlation
from amr.model.protocol import Explained
from amr.multiviz.base import Target
from amr.multiviz.held import Held, hold
from amr.multiviz.unimodal.importance import Importance
from amr.utils.errors import UserError

Explain = Callable[[Explained, Mapping[str, Tensor], int], Importance]
"""A method with its options filled in: model, inputs and seed to a map. The seed is ignored by methods that draw none.

Fill in the target as classes: "predicted" would be looked up again for every noisy clip and re-drawn model. Parts of a
model, such as Grad-CAM's layer, must be taken from the model that is passed.
"""
SILENT = 1e-6
"""Changes below this part of the score's size are taken for rounding."""


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of each row, ties having their mean rank: (N, A) and (N, A) to (N,) float64.

    Two equal rows have 1, even constant ones; a constant one and another have 0.
    """
    correlation = rank_correlation(first, second).nan_to_num(0.0).clamp(-1, 1)
    return torch.where((first == second).all(1), 1.0, correlation)


def held_with_map(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target,
    importance: Importance,
    batch: int,
) -> tuple[Held, Tensor, Atoms]:
    """The score of the modality's input, the map (N, A) in float64, and its atoms."""
    atoms = importance.atoms
    if atoms is None:
        raise UserError(f"importance: must be a map of atoms; pass atoms to {importance.method}")
    fixed = hold(model, inputs, modality, target, atoms, batch)
    shape = (len(fixed.x), len(atoms))
    given = tuple(importance.values.shape)
    require(given == shape, f"importance: values of shape {given}, expected {shape}: clips and atoms")
    return fixed, finite_values(importance).to(fixed.x.device), atoms


def explained_map(explain: Explain, model: Explained, inputs: Mapping[str, Tensor], seed: int) -> Tensor:
    """A map, one row per clip, (N, K) float64, on the CPU: maps of one method may lie on different devices."""
    with undisturbed(model):
        return finite_values(explain(model, inputs, seed)).flatten(1).cpu()


def finite_values(importance: Importance) -> Tensor:
    """A map's values in float64; a UserError if one is not finite."""
    values = importance.values.detach().double()
    require(bool(values.isfinite().all()), f"importance: {importance.method} has values that are not finite")
    return values


def ordered(values: Tensor, shuffled: Tensor) -> Tensor:
    """Atoms by falling value, equal ones in the order of a permutation: (N, A) and (N, A) to (N, A) int64."""
    largest = values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    return shuffled.gather(1, largest)


def pearson(first: Tensor, second: Tensor, scale: Tensor | None) -> Tensor:
    """Pearson's correlation of rows (N, S); 0 where one is constant, the second up to rounding at a scale (N,)."""
    a, b = (x.double() - x.double().mean(1, keepdim=True) for x in (first, second))
    flat = a.abs().amax(1) <= SILENT * first.abs().amax(1)
    flat |= b.abs().amax(1) <= SILENT * (second.abs().amax(1) if scale is None else scale)
    norms = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(flat, 0.0, (a * b).sum(1) / torch.where(flat, 1.0, norms)).clamp(-1, 1)


def require(allowed: bool, message: str) -> None:
    """Raises UserError with the message unless it is allowed."""
    if not allowed:
        raise UserError(message)
