"""Whether a cross-modal map's sums follow what sets of atoms of two modalities bring together."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.evaluation.head import Baseline, baseline_values
from amr.model import encode_alone
from amr.model.protocol import Explained
from amr.multiviz.base import Target, at_least, fixed_target, target_scores, targets_of
from amr.multiviz.crossmodal.joint import Side, Space, encode, sides
from amr.multiviz.held import row_blocks
from amr.multiviz.trust.explain import pearson, require
from amr.multiviz.trust.sums import random_sets, sets_of


def interaction_sensitivity_n(
    model: Explained,
    inputs: Mapping[str, Tensor],
    target: Target,
    interactions: Tensor,
    first: Side,
    second: Side,
    baseline: Baseline = "zeros",
    *,
    sizes: Sequence[tuple[int, int]] | None = None,
    subsets: int = 64,
    space: Space = "inputs",
    seed: int = 0,
    batch: int = 64,
) -> dict[tuple[int, int], Tensor]:
    """Sensitivity-n of a cross-modal map, over sets S of n1 atoms of one modality and T of n2 of another.

        corr over (S, T) of  Σ_{i in S} Σ_{j in T} map_ij  and  f(x) − f(x−S) − f(x−T) + f(x−ST)

    x−S has the atoms of S replaced, x−ST also those of T: the right side is what S and T bring together. An extension
    of Ancona et al. 2018 to pairs. All pairs of sets are taken if there are no more than `subsets`. A clip and pair
    costs a row of each of the two encoders and 3 of the head; a clip, one more of each encoder and of the head.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...); their encodings with space="encodings".
        target: As in `insertion`.
        interactions: Map (N, A1, A2) in the unit of the score: of `ablation` or `joint_shap`, or `second_order`'s times
            the two inputs' distances from the baseline.
        first: A modality and its atoms, the map's rows.
        second: Another one, the map's columns.
        baseline: Replacement of an atom.
        sizes: Pairs (n1, n2); None for (1, 1) and about a quarter, half and three quarters of both.
        subsets: Pairs of sets of each size, at least 2.
        space: Space that is perturbed.
        seed: Seed of the sets, which all clips share.
        batch: Rows at a time.

    Returns:
        Correlation of each clip, (N,) float64, by (n1, n2); 0 where one side is constant.

    Raises:
        UserError: The map's shape is another, or a modality, the target or an option is not allowed.
    """
    one, two = sides(inputs, first, second)
    shape = (len(inputs[one[0]]), len(one[1]), len(two[1]))
    require(interactions.shape == shape, f"interactions: shape {tuple(interactions.shape)}, expected {shape}")
    require(bool(interactions.isfinite().all()), "interactions: not all values are finite")
    if sizes is None:
        sizes = list(dict.fromkeys((max(shape[1] * q // 4, 1), max(shape[2] * q // 4, 1)) for q in range(4)))
    allowed = all(1 <= a <= shape[1] and 1 <= b <= shape[2] for a, b in sizes)
    require(allowed, f"sizes={list(sizes)}: must be pairs of 1 to {shape[1]} and 1 to {shape[2]}")
    at_least("interaction_sensitivity_n", subsets=(subsets, 2), batch=(batch, 1))
    generator, found = torch.Generator().manual_seed(seed), {}
    replacement = baseline_values({name: inputs[name] for name, _ in (one, two)}, baseline)
    with undisturbed(model), torch.no_grad():
        encodings = encode(model, inputs, space, batch)
        fixed = fixed_target(model, encodings, target)

        def scores(clip: Tensor, changed: Mapping[str, Tensor]) -> Tensor:
            encoded = {name: e[clip] for name, e in encodings.items()} | dict(changed)
            return target_scores(model, encoded, targets_of(fixed, clip))

        device = inputs[one[0]].device
        whole = torch.cat([scores(clip, {}) for _, clip in row_blocks(1, shape[0], batch, device)]).double()
        for n1, n2 in sizes:
            dropped = _set_pairs((shape[1], n1), (shape[2], n2), subsets, generator)
            parts = []
            for pair, clip in row_blocks(len(dropped[0]), shape[0], batch, device):
                without = []
                for (name, atoms), drop in zip((one, two), dropped, strict=True):
                    keep = ~drop.to(device)[pair]
                    x = atoms.of(clip).replace(inputs[name][clip], keep, replacement[name][clip])
                    without.append({name: encode_alone(model, name, x) if space == "inputs" else x})
                changes = (*without, without[0] | without[1])
                parts.append(torch.stack([scores(clip, change) for change in changes]))
            first_gone, second_gone, both_gone = torch.cat(parts, dim=1).double().reshape(3, -1, shape[0])
            together = (whole - first_gone - second_gone + both_gone).T
            s, t = (drop.to(interactions.device, torch.float64) for drop in dropped)
            sums = torch.einsum("si,nij,sj->ns", s, interactions.as_subclass(Tensor).double(), t)
            found[n1, n2] = pearson(sums.to(device), together, whole.abs())
    return found


def _set_pairs(
    first: tuple[int, int], second: tuple[int, int], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pairs of sets, given (size, number) of each: all of them, or `count` random ones if there are more."""
    one, two = math.comb(*first), math.comb(*second)
    if one * two <= count:
        s, t = sets_of(*first, one, generator), sets_of(*second, two, generator)
        return s.repeat_interleave(two, 0), t.repeat(one, 1)
    s, t = (random_sets(size, torch.full((count,), number), generator) for size, number in (first, second))
    return s, t
