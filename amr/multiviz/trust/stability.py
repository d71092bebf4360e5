"""Whether a map stays when little changes: small noise on the input, other seeds of the method."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.model import require_modality
from amr.model.protocol import Explained
from amr.multiviz.base import at_least
from amr.multiviz.trust.explain import Explain, explained_map, require, spearman


@dataclass(frozen=True, eq=False)
class Stability:
    """How alike maps of different seeds are, means over all pairs of seeds.

    Args:
        correlation: Spearman's rank correlation, (N,).
        overlap: Part of the most important atoms that two maps have in common, (N,).
        top: Number of those atoms.
    """

    correlation: Tensor
    overlap: Tensor
    top: int


def max_sensitivity(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    explain: Explain,
    *,
    radius: float = 0.02,
    draws: int = 8,
    seed: int = 0,
) -> Tensor:
    """How much a map changes at most when its modality's input gets a little noise (Yeh et al. 2019, def. 3.1).

        max over draws of ‖φ(x + ε) − φ(x)‖₂ / ‖φ(x)‖₂,   ε uniform in ± radius · (standard deviation of the input)

    The division is captum's, the definition has none. The draws give a lower bound of the maximum. The method has the
    same seed in all calls, so its own noise does not count; `stability` is about that. 1 + draws explanations.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality whose input is disturbed.
        explain: The method.
        radius: Radius of the noise; positive. The standard deviation is over all elements of all clips.
        draws: Draws of the noise, at least 1.
        seed: Seed of the noise and of the method.

    Returns:
        (N,) float64, 0 or more; a map of zeros is not divided by its norm.

    Raises:
        UserError: The modality does not exist, an option is not allowed, or a map is not finite.
    """
    return max_sensitivity_of(
        model, inputs, modality, explain, explained_map(explain, model, inputs, seed), radius, draws, seed
    )


def stability(
    model: Explained,
    inputs: Mapping[str, Tensor],
    explain: Explain,
    *,
    seeds: int = 5,
    top: int | None = None,
    seed: int = 0,
) -> Stability:
    """How alike the maps of different seeds are: mean rank correlation and top-k overlap over all pairs of seeds.

    A method that draws nothing has 1 and 1. `seeds` explanations.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        explain: The method.
        seeds: How many, at least 2.
        top: The k atoms of the largest values that are compared; None for a tenth of them, at least 1.
        seed: The first of the seeds.

    Raises:
        UserError: `seeds` or `top` is not allowed, or a map is not finite.
    """
    return stability_of(model, inputs, explain, explained_map(explain, model, inputs, seed), seeds, top, seed)


def max_sensitivity_of(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    explain: Explain,
    reference: Tensor,
    radius: float,
    draws: int,
    seed: int,
) -> Tensor:
    """`max_sensitivity` of a map (N, K) that is there already."""
    require_modality(model, modality)
    at_least("max_sensitivity", draws=(draws, 1))
    require(radius > 0, f"radius={radius}: must be positive")
    if not inputs[modality].is_floating_point():
        return reference.new_full((len(reference),), torch.nan)
    generator, norm = torch.Generator().manual_seed(seed), reference.norm(dim=1)
    largest = torch.zeros_like(norm)
    with undisturbed(model):
        x = inputs[modality].clone()
        reach = radius * float(x.double().std(correction=0))
        for _ in range(draws):
            noise = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
            noisy = {**inputs, modality: x + (reach * noise).to(x)}
            change = (explained_map(explain, model, noisy, seed) - reference).norm(dim=1)
            largest = torch.maximum(largest, change / torch.where(norm > 0, norm, 1.0))
    return largest


def stability_of(
    model: Explained,
    inputs: Mapping[str, Tensor],
    explain: Explain,
    reference: Tensor,
    seeds: int,
    top: int | None,
    seed: int,
) -> Stability:
    """`stability` with the first seed's map (N, K) there already."""
    size = reference.shape[1]
    at_least("stability", seeds=(seeds, 2))
    top = max(size // 10, 1) if top is None else top
    require(1 <= top <= size, f"top={top}: must be 1 to {size}")
    maps = [reference, *(explained_map(explain, model, inputs, seed + s) for s in range(1, seeds))]
    best = [torch.zeros_like(m).scatter(1, m.topk(top, 1).indices, 1.0) for m in maps]
    pairs = list(itertools.combinations(range(seeds), 2))
    correlation = torch.stack([spearman(maps[a], maps[b]) for a, b in pairs]).mean(0)
    overlap = torch.stack([(best[a] * best[b]).sum(1) / top for a, b in pairs]).mean(0)
    return Stability(correlation, overlap, top)
