"""Insertion and deletion: the score while atoms are put in or taken out, most important first."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.evaluation.statistics import mean_interval
from amr.model.protocol import Explained
from amr.multiviz.base import Target, at_least
from amr.multiviz.held import Held, masked_scores, of_clips, one_baseline
from amr.multiviz.trust.explain import held_with_map, ordered
from amr.multiviz.unimodal.importance import Importance


@dataclass(frozen=True, eq=False)
class Area:
    """Scores while atoms are put in or taken out, in the order of importance and in random orders.

    Args:
        fraction: Part of the atoms that has been put in or taken out, (P,), ascending from 0 to 1.
        curve: Scores in the order of importance, (N, P).
        random: Scores in R random orders of each clip, (R, N, P).
        sign: 1 where a larger area is better, -1 where a smaller one is.
    """

    fraction: Tensor
    curve: Tensor
    random: Tensor
    sign: int

    @property
    def area(self) -> Tensor:
        """Area under each clip's curve by the trapezoid rule, (N,): a mean score."""
        return torch.trapezoid(self.curve, self.fraction)

    @property
    def random_area(self) -> Tensor:
        """Areas of the random orders, (R, N)."""
        return torch.trapezoid(self.random, self.fraction)

    @property
    def gain(self) -> Tensor:
        """How much better than the clip's random orders are on average, (N,); above 0 is better."""
        return self.sign * (self.area - self.random_area.mean(0))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % t-interval of the mean gain, over clips; infinite for one clip."""
        return mean_interval(self.gain.tolist())


def insertion(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target,
    importance: Importance,
    *,
    baseline: Tensor | float = 0.0,
    orders: int = 8,
    steps: int = 16,
    seed: int = 0,
    batch: int = 64,
) -> Area:
    """Insertion: the score while a clip's atoms are put into the baseline, most important first (Petsiuk et al. 2018).

    The score is the explained logit or unit, not a probability as in the paper: a probability that has reached 1 does
    not move until most of the evidence is gone, so its area would tell how sure the model is rather than how good the
    order; and the other scores and the maps themselves are in logits. Atoms of equal importance come in random order,
    so a constant map is a random order. 2 + (1 + R)(P − 2) rows per clip, P = min(steps, A) + 1.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality whose atoms the map is of.
        target: Class or unit that was explained; "predicted" is the class of the unperturbed clip.
        importance: Map of atoms, (N, A). Its sign counts: what speaks against the target comes last.
        baseline: Replacement of an absent atom: a number, or a tensor that broadcasts to one input.
        orders: Random orders of each clip, R, at least 1.
        steps: Steps from the baseline to the clip, whose numbers of atoms differ by at most one; between 1 and A.
        seed: Seed of the random orders.
        batch: Rows that the encoder and the head take at once.

    Returns:
        Curves; a larger area is better.

    Raises:
        UserError: The map is not one of atoms of these clips or not finite, or the modality, the target or an option
            is not allowed.
    """
    with undisturbed(model):
        fixed, values, _ = held_with_map(model, inputs, modality, target, importance, batch)
        return areas_of(fixed, values, baseline, orders, steps, seed, ("insertion",))["insertion"]


def deletion(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target,
    importance: Importance,
    *,
    baseline: Tensor | float = 0.0,
    orders: int = 8,
    steps: int = 16,
    seed: int = 0,
    batch: int = 64,
) -> Area:
    """Deletion: the score while a clip's atoms are replaced, most important first (Samek et al. 2017).

    Arguments, return value, errors and cost are those of `insertion`, but a smaller area is better.
    """
    with undisturbed(model):
        fixed, values, _ = held_with_map(model, inputs, modality, target, importance, batch)
        return areas_of(fixed, values, baseline, orders, steps, seed, ("deletion",))["deletion"]


def areas_of(
    fixed: Held,
    values: Tensor,
    baseline: Tensor | float,
    orders: int,
    steps: int,
    seed: int,
    wanted: tuple[str, ...],
) -> dict[str, Area]:
    """Curves of insertion, deletion or both. All are scores with the first k atoms of an order kept."""
    at_least("insertion and deletion", orders=(orders, 1), steps=(steps, 1))
    count, size = values.shape
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.stack([torch.randperm(size, generator=generator) for _ in range((orders + 1) * count)])
    shuffled = shuffled.reshape(orders + 1, count, size).to(values.device)
    best = ordered(values, shuffled[0])
    own = {"insertion": best, "deletion": best.flip(1)}  # what is deleted last is what was there first
    counts = torch.arange(min(steps, size) + 1, device=values.device) * size // min(steps, size)
    ranks = torch.stack([*(own[name] for name in wanted), *shuffled[1:]]).argsort(2)  # place of an atom in an order
    curves = _kept_scores(fixed, ranks, counts, baseline)  # (orders, N, P)
    fraction, found = counts.double() / size, {}
    for name, curve in zip(wanted, curves, strict=False):
        if name == "insertion":
            found[name] = Area(fraction, curve, curves[len(wanted) :], 1)
        else:
            found[name] = Area(1 - fraction.flip(0), curve.flip(1), curves[len(wanted) :].flip(2), -1)
    return found


def _kept_scores(fixed: Held, ranks: Tensor, counts: Tensor, baseline: Tensor | float) -> Tensor:
    """Scores with the atoms of rank below k kept: ranks (O, N, A), counts (P,) from 0 to A; (O, N, P) float64."""
    atoms, start = fixed.atoms, one_baseline(fixed.x, baseline)
    assert atoms is not None
    inner, scores = counts[1:-1], [fixed.x.new_zeros(0)]
    with torch.no_grad():
        for copies, clip in fixed.rows(len(ranks) * len(inner)):
            keep = ranks[copies // len(inner), clip] < inner[copies % len(inner), None]
            scores.append(
                fixed.scores(atoms.of(clip).replace(fixed.x[clip], keep, of_clips(start, fixed.x, clip)), clip)
            )
        empty = masked_scores(fixed, atoms, torch.zeros(1, len(atoms), dtype=torch.bool), baseline)[0]
    between = torch.cat(scores).double().reshape(len(ranks), len(inner), len(empty)).transpose(1, 2)
    ends = [end.expand(len(ranks), -1)[..., None] for end in (empty, fixed.unperturbed())]
    return torch.cat([ends[0], between, ends[1]], dim=2)
