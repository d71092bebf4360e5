"""The pointing game: is a map largest where the evidence is known to be?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from amr.evaluation.statistics import wilson
from amr.multiviz.trust.explain import require


@dataclass(frozen=True, eq=False)
class Pointing:
    """Whether maps are largest where the evidence is known to be.

    Args:
        hits: 1 or 0 per clip, (N,) float64; between the two where several atoms are the largest and some of them count.
        chance: Score of a random atom, per clip, (N,): the share of atoms that count.
    """

    hits: Tensor
    chance: Tensor

    @property
    def rate(self) -> float:
        """Mean of the hits."""
        return float(self.hits.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the rate, for clips that are independent of each other."""
        return wilson(self.rate, len(self.hits))


def pointing_game(values: Tensor, counts: Tensor) -> Pointing:
    """Pointing game: is a map's largest absolute value where the evidence is (Zhang et al. 2016, section 4.2)?

    Args:
        values: Maps, (N, ...): of atoms, or of pairs of them. The sign does not matter.
        counts: Whether each atom or pair is a hit, boolean of the same shape; at least one per clip.

    Returns:
        Hits and what chance is. Of atoms that tie for the largest value each has an equal part, so a constant map is
        at chance.

    Raises:
        UserError: The shapes differ, there is no clip, a clip has nothing that counts, or a value is not finite.
    """
    same = values.shape == counts.shape and values.ndim >= 2 and len(values) > 0 and counts.dtype == torch.bool
    require(
        same,
        f"pointing_game: maps (N, ...) and a boolean for each value, got {tuple(values.shape)} and {counts.dtype} "
        f"{tuple(counts.shape)}",
    )
    size, inside = values.flatten(1).abs().double(), counts.flatten(1).to(values.device).double()
    require(bool(inside.any(1).all()), "pointing_game: a clip has no atom that counts; take finer atoms")
    require(bool(size.isfinite().all()), "pointing_game: a map has values that are not finite")
    largest = (size == size.amax(1, keepdim=True)).double()
    return Pointing((largest * inside).sum(1) / largest.sum(1), inside.mean(1))
