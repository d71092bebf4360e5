"""Whether a map's sums over sets of atoms follow what the score does when these are replaced."""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.datamodules.atoms import Atoms
from amr.model.protocol import Explained
from amr.multiviz.base import Target, at_least
from amr.multiviz.held import Held, masked_scores
from amr.multiviz.trust.explain import SILENT, held_with_map, pearson, require
from amr.multiviz.unimodal.importance import Importance


def infidelity(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target,
    importance: Importance,
    *,
    baseline: Tensor | float = 0.0,
    samples: int = 64,
    normalise: bool = False,
    seed: int = 0,
    batch: int = 64,
) -> Tensor:
    """Infidelity: mean squared error of a map's sums as predictions of the score's changes (Yeh et al. 2019, def. 2.1).

        E_S [ (Σ_{a in S} φ_a − (f(x) − f(x with S replaced)))² ]

    Their perturbation I is x − x̄ on the atoms of S, and φ_a stands for (x − x̄)·Φ summed over the atom: a map in the
    unit of the score, as all but plain gradients, guided backpropagation and Grad-CAM are. The number of atoms in S is
    uniform in 1 to A, and S uniform among the sets of that size; all clips share the draws. 1 + samples rows per clip.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality whose atoms the map is of.
        target: As in `insertion`.
        importance: Map of atoms, (N, A).
        baseline: As in `insertion`; that of the map, if it has one.
        samples: Sets S, at least 1.
        normalise: First scale each clip's map by the factor that serves it best, and divide by E[(f(x) − f)²]: 0 is
            perfect, 1 says nothing, the map's and the score's units do not matter.
        seed: Seed of the sets.
        batch: As in `insertion`.

    Returns:
        (N,) float64, 0 or more. NaN with `normalise` where the score never changes.

    Raises:
        UserError: As in `insertion`.
    """
    with undisturbed(model):
        fixed, values, atoms = held_with_map(model, inputs, modality, target, importance, batch)
        return infidelity_of(fixed, values, atoms, baseline, samples, normalise, seed)


def sensitivity_n(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target,
    importance: Importance,
    *,
    baseline: Tensor | float = 0.0,
    sizes: Sequence[int] | None = None,
    subsets: int = 64,
    seed: int = 0,
    batch: int = 64,
) -> dict[int, Tensor]:
    """Sensitivity-n: correlation of a map's sums with the score's changes over sets of n atoms (Ancona et al. 2018).

        corr over S, |S| = n, of  Σ_{a in S} φ_a  and  f(x) − f(x with S replaced)

    Their definition asks for equality, their figures show this correlation, which does not depend on a map's scale.
    All sets of a size are taken if there are no more than `subsets`. All clips share them. 1 + subsets rows per clip
    and size, at most.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality whose atoms the map is of.
        target: As in `insertion`.
        importance: Map of atoms, (N, A).
        baseline: As in `insertion`.
        sizes: The numbers n, 1 to A − 1; None for 1 and about A/4, A/2 and 3A/4.
        subsets: Sets of each size, at least 2.
        seed: Seed of the sets.
        batch: As in `insertion`.

    Returns:
        Correlation of each clip, (N,) float64, by n; 0 where the map's sums or the scores are all the same.

    Raises:
        UserError: As in `insertion`, or there is one atom only.
    """
    with undisturbed(model):
        fixed, values, atoms = held_with_map(model, inputs, modality, target, importance, batch)
        return sensitivity_n_of(fixed, values, atoms, baseline, sizes, subsets, seed)


def infidelity_of(
    fixed: Held, values: Tensor, atoms: Atoms, baseline: Tensor | float, samples: int, normalise: bool, seed: int
) -> Tensor:
    """`infidelity` of a map (N, A) whose score is held already."""
    at_least("infidelity", samples=(samples, 1))
    generator, size = torch.Generator().manual_seed(seed), len(atoms)
    numbers = torch.randint(1, size + 1, (samples,), generator=generator)
    drop = random_sets(size, numbers, generator)
    scores = masked_scores(fixed, atoms, ~drop, baseline)  # (S, N)
    changes = fixed.unperturbed() - scores
    sums = drop.to(values) @ values.T
    if not normalise:
        return (sums - changes).square().mean(0)
    squares, products, size_of_map = changes.square().sum(0), (sums * changes).sum(0), sums.square().sum(0)
    explained = products.square() / torch.where(size_of_map > 0, size_of_map, 1.0)
    share = (1 - explained / torch.where(squares > 0, squares, 1.0)).clamp_min(0)
    silent = changes.abs().amax(0) <= SILENT * scores.abs().amax(0)
    return torch.where(silent, torch.nan, share)


def sensitivity_n_of(
    fixed: Held,
    values: Tensor,
    atoms: Atoms,
    baseline: Tensor | float,
    sizes: Sequence[int] | None,
    subsets: int,
    seed: int,
) -> dict[int, Tensor]:
    """`sensitivity_n` of a map (N, A) whose score is held already."""
    size, generator = len(atoms), torch.Generator().manual_seed(seed)
    require(size > 1, "sensitivity_n: must have at least 2 atoms")
    at_least("sensitivity_n", subsets=(subsets, 2))
    numbers = sorted({max(size * q // 4, 1) for q in range(4)}) if sizes is None else list(sizes)
    require(all(1 <= n < size for n in numbers), f"sizes={numbers}: must be 1 to {size - 1}")
    sets = [sets_of(size, n, subsets, generator) for n in numbers]
    scores = torch.split(masked_scores(fixed, atoms, ~torch.cat(sets), baseline), [len(drop) for drop in sets])
    return {
        n: pearson((drop.to(values) @ values.T).T, -part.T, part.abs().amax(0))
        for n, drop, part in zip(numbers, sets, scores, strict=True)
    }


def sets_of(size: int, number: int, count: int, generator: torch.Generator) -> Tensor:
    """Sets of `number` of `size` atoms, boolean (S, A): all of them, or `count` random ones if there are more."""
    if math.comb(size, number) <= count:
        members = torch.tensor([*itertools.combinations(range(size), number)])
        return torch.zeros(len(members), size, dtype=torch.bool).scatter(1, members, True)
    return random_sets(size, torch.full((count,), number), generator)


def random_sets(size: int, numbers: Tensor, generator: torch.Generator) -> Tensor:
    """A random set of each number (S,) of atoms, boolean (S, A)."""
    places = torch.rand(len(numbers), size, generator=generator, dtype=torch.float64).argsort(1).argsort(1)
    return places < numbers[:, None]
