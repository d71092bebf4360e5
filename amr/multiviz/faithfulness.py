"""Trust: how far a map of one modality's atoms can be believed.

Scores that perturb inputs encode the clips once and then run nothing but that modality's encoder and the head; scores
of a method call it again: on noisy clips, on copies of the model with other parameters, with other seeds.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amr.attribution import undisturbed
from amr.datamodules.atoms import Atoms
from amr.evaluation.head import Baseline, baseline_values
from amr.evaluation.statistics import mean_interval, wilson
from amr.model import FusionModel
from amr.multiviz.base import Target, at_least, fixed_target, target_scores, targets_of
from amr.multiviz.held import Held, hold, masked_scores, one_baseline
from amr.multiviz.joint import Side, Space, encode, sides
from amr.multiviz.unimodal import Importance
from amr.utils.errors import UserError

Explain = Callable[[FusionModel, Mapping[str, Tensor], int], Importance]
"""A method with its options filled in: model, inputs and seed to a map. The seed is ignored by methods that draw none.

Fill in the target as classes: "predicted" would be looked up anew on every noisy clip and re-drawn model. What belongs
to a model, such as Grad-CAM's layer, must be taken from the model that is passed.
"""

_SILENT = 1e-6
"""Changes below this part of the score's size are taken for rounding."""

_SAME = math.sqrt(0.5)
"""Rank correlation at which two maps share half of their ranks' variance."""

_NOISY = 0.5
"""Relative change under small noise from which on a map is called unsteady."""


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


@dataclass(frozen=True, eq=False)
class Pointing:
    """Whether maps are largest where the evidence is known to be.

    Args:
        hits: 1 or 0 a clip, (N,) float64; between the two where several atoms are the largest and some of them count.
        chance: What an atom at random scores, a clip, (N,): the share of atoms that count.
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


@dataclass(frozen=True, eq=False)
class RankCorrelation:
    """Spearman's rank correlation of two maps, one a clip, in [-1, 1]: 1 if they are equal, 0 if one is constant.

    Args:
        signed: Of the values, (N,).
        absolute: Of their absolute values, (N,).
    """

    signed: Tensor
    absolute: Tensor

    @property
    def likeness(self) -> float:
        """The larger of the two means over clips."""
        return max(float(self.signed.mean()), float(self.absolute.mean()))


@dataclass(frozen=True, eq=False)
class Stability:
    """How alike maps of different seeds are, means over all pairs of seeds.

    Args:
        correlation: Spearman's rank correlation, (N,).
        overlap: Part of the most important atoms that two maps have in common, (N,).
        top: How many atoms those are.
    """

    correlation: Tensor
    overlap: Tensor
    top: int


@dataclass(frozen=True, eq=False)
class Trust:
    """What a page shows beside a map.

    Args:
        importance: The map.
        insertion: See `insertion`.
        deletion: See `deletion`.
        infidelity: See `infidelity`, normalised, (N,).
        sensitivity_n: See `sensitivity_n`.
        max_sensitivity: See `max_sensitivity`, (N,).
        randomisation: See `randomisation_test`.
        stability: See `stability`.
        warnings: What speaks against the map, in words; empty if nothing does.
    """

    importance: Importance
    insertion: Area
    deletion: Area
    infidelity: Tensor
    sensitivity_n: dict[int, Tensor]
    max_sensitivity: Tensor
    randomisation: dict[str, RankCorrelation]
    stability: Stability
    warnings: tuple[str, ...]

    def summary(self) -> dict[str, float]:
        """Each score's mean over clips, by name; a clip without a value is left out."""
        return {
            "insertion_gain": float(self.insertion.gain.mean()),
            "deletion_gain": float(self.deletion.gain.mean()),
            "infidelity": float(self.infidelity.nanmean()),
            **{f"sensitivity_{n}": float(r.mean()) for n, r in self.sensitivity_n.items()},
            "max_sensitivity": float(self.max_sensitivity.mean()),
            **{f"randomised/{part}": r.likeness for part, r in self.randomisation.items()},
            "stability": float(self.stability.correlation.mean()),
            "top_overlap": float(self.stability.overlap.mean()),
        }


def pointing_game(values: Tensor, counts: Tensor) -> Pointing:
    """Pointing game: is a map's largest absolute value where the evidence is (Zhang et al. 2016, section 4.2)?

    Args:
        values: Maps, (N, ...): of atoms, or of pairs of them. The sign does not matter.
        counts: Which atoms or pairs are a hit, boolean of the same shape; at least one a clip.

    Returns:
        Hits and what chance is. Of atoms that tie for the largest value each has an equal part, so a constant map is
        at chance.

    Raises:
        UserError: The shapes differ, there is no clip, a clip has nothing that counts, or a value is not finite.
    """
    same = values.shape == counts.shape and values.ndim >= 2 and len(values) > 0 and counts.dtype == torch.bool
    _require(
        same,
        f"pointing_game: maps (N, ...) and a boolean for each value, got {tuple(values.shape)} and {counts.dtype} "
        f"{tuple(counts.shape)}",
    )
    size, inside = values.flatten(1).abs().double(), counts.flatten(1).to(values.device).double()
    _require(bool(inside.any(1).all()), "pointing_game: a clip has no atom that counts; take finer atoms")
    _require(bool(size.isfinite().all()), "pointing_game: a map has values that are not finite")
    largest = (size == size.amax(1, keepdim=True)).double()
    return Pointing((largest * inside).sum(1) / largest.sum(1), inside.mean(1))


def insertion(
    model: FusionModel,
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
    so a constant map is a random order. 2 + (1 + R)(P − 2) rows a clip, P = min(steps, A) + 1.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality whose atoms the map is of.
        target: What was explained; "predicted" is the class of the unperturbed clip.
        importance: Map of atoms, (N, A). Its sign counts: what speaks against the target comes last.
        baseline: What an atom is that is not there: a number, or a tensor that broadcasts to one input.
        orders: Random orders of each clip, R, at least 1.
        steps: Steps from the baseline to the clip, of equal numbers of atoms but for one; at least 1, A at most.
        seed: Of the random orders.
        batch: Rows that the encoder and the head take at once.

    Returns:
        Curves; a larger area is better.

    Raises:
        UserError: The map is not one of atoms of these clips or not finite, or the modality, the target or an option
            is not allowed.
    """
    with undisturbed(model):
        fixed, values, _ = _start(model, inputs, modality, target, importance, batch)
        return _areas(fixed, values, baseline, orders, steps, seed, ("insertion",))["insertion"]


def deletion(
    model: FusionModel,
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
        fixed, values, _ = _start(model, inputs, modality, target, importance, batch)
        return _areas(fixed, values, baseline, orders, steps, seed, ("deletion",))["deletion"]


def infidelity(
    model: FusionModel,
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
    uniform in 1 to A, and S uniform among the sets of that size; all clips share the draws. 1 + samples rows a clip.

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
        seed: Of the sets.
        batch: As in `insertion`.

    Returns:
        (N,) float64, 0 or more. NaN with `normalise` where the score never changes.

    Raises:
        UserError: As in `insertion`.
    """
    with undisturbed(model):
        fixed, values, atoms = _start(model, inputs, modality, target, importance, batch)
        return _infidelity(fixed, values, atoms, baseline, samples, normalise, seed)


def max_sensitivity(
    model: FusionModel,
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
        radius: Of the noise; positive. The standard deviation is over all elements of all clips.
        draws: Of the noise, at least 1.
        seed: Of the noise and of the method.

    Returns:
        (N,) float64, 0 or more; a map of zeros is not divided by its norm.

    Raises:
        UserError: The modality does not exist, an option is not allowed, or a map is not finite.
    """
    return _max_sensitivity(
        model, inputs, modality, explain, _explained(explain, model, inputs, seed), radius, draws, seed
    )


def sensitivity_n(
    model: FusionModel,
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
    All sets of a size are taken if there are no more than `subsets`. All clips share them. 1 + subsets rows a clip and
    size, at most.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality whose atoms the map is of.
        target: As in `insertion`.
        importance: Map of atoms, (N, A).
        baseline: As in `insertion`.
        sizes: The numbers n, 1 to A − 1; None for 1 and about A/4, A/2 and 3A/4.
        subsets: Sets of each size, at least 2.
        seed: Of the sets.
        batch: As in `insertion`.

    Returns:
        Correlation of each clip, (N,) float64, by n; 0 where the map's sums or the scores are all the same.

    Raises:
        UserError: As in `insertion`, or there is one atom only.
    """
    with undisturbed(model):
        fixed, values, atoms = _start(model, inputs, modality, target, importance, batch)
        return _sensitivity_n(fixed, values, atoms, baseline, sizes, subsets, seed)


def interaction_sensitivity_n(
    model: FusionModel,
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
        baseline: What a replaced atom becomes.
        sizes: Pairs (n1, n2); None for (1, 1) and about a quarter, half and three quarters of both.
        subsets: Pairs of sets of each size, at least 2.
        space: What is perturbed.
        seed: Of the sets, which all clips share.
        batch: Rows at a time.

    Returns:
        Correlation of each clip, (N,) float64, by (n1, n2); 0 where one side is constant.

    Raises:
        UserError: The map's shape is another, or a modality, the target or an option is not allowed.
    """
    one, two = sides(inputs, first, second)
    shape = (len(inputs[one[0]]), len(one[1]), len(two[1]))
    _require(interactions.shape == shape, f"interactions: shape {tuple(interactions.shape)}, expected {shape}")
    _require(bool(interactions.isfinite().all()), "interactions: not all values are finite")
    if sizes is None:
        sizes = list(dict.fromkeys((max(shape[1] * q // 4, 1), max(shape[2] * q // 4, 1)) for q in range(4)))
    allowed = all(1 <= a <= shape[1] and 1 <= b <= shape[2] for a, b in sizes)
    _require(allowed, f"sizes: {list(sizes)}; allowed are pairs of 1 to {shape[1]} and 1 to {shape[2]}")
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
        whole = torch.cat([scores(clip, {}) for _, clip in _rows(1, shape[0], batch, device)]).double()
        for n1, n2 in sizes:
            dropped = _set_pairs((shape[1], n1), (shape[2], n2), subsets, generator)
            parts = []
            for pair, clip in _rows(len(dropped[0]), shape[0], batch, device):
                without = []
                for (name, atoms), drop in zip((one, two), dropped, strict=True):
                    keep = ~drop.to(device)[pair]
                    x = atoms.replace(inputs[name][clip], keep, replacement[name][clip])
                    without.append({name: model.encoders[name](x) if space == "inputs" else x})
                changes = (*without, without[0] | without[1])
                parts.append(torch.stack([scores(clip, change) for change in changes]))
            first_gone, second_gone, both_gone = torch.cat(parts, dim=1).double().reshape(3, -1, shape[0])
            together = (whole - first_gone - second_gone + both_gone).T
            s, t = (drop.to(interactions.device, torch.float64) for drop in dropped)
            sums = torch.einsum("si,nij,sj->ns", s, interactions.as_subclass(Tensor).double(), t)
            found[n1, n2] = _correlation(sums.to(device), together, whole.abs())
    return found


def randomisation_test(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    explain: Explain,
    *,
    seed: int = 0,
) -> dict[str, RankCorrelation]:
    """Rank correlation of the model's maps with those of copies whose parameters were re-drawn (Adebayo et al. 2018).

    A map that stays as it was does not show what the model has learned. Re-drawn are the head alone, each encoder
    alone, and everything; the model itself is never changed. Another modality's encoder may rightly leave a map alone:
    in an additive head it has no part in it.

    Parameters are re-drawn by their module's `reset_parameters`, and those that this leaves as they were (class tokens,
    position embeddings, weight norms) from a normal distribution of their own mean and standard deviation; constant
    ones, such as a fresh norm layer's, stay. Running statistics of batch norms start anew. M + 3 explanations, less the
    parts without parameters, which are left out.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        explain: The method.
        seed: Of the parameters, and of the method in all calls.

    Returns:
        By part: "head", "encoders.<modality>", and "model" for everything.

    Raises:
        UserError: A map is not finite.
    """
    return _randomisation(model, inputs, explain, _explained(explain, model, inputs, seed), seed)


def cascading_randomisation(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    modality: str,
    explain: Explain,
    *,
    seed: int = 0,
) -> dict[str, RankCorrelation]:
    """`randomisation_test` from the top down: the head, then one layer of the encoder more at a time.

    The cascading form of Adebayo et al. 2018, section 3. Layers are the modules of the modality's encoder that have
    parameters of their own, from last to first in the order in which they were defined, which is taken for the order
    in which they run. 2 + layers explanations.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality that `explain` explains.
        explain: The method.
        seed: As in `randomisation_test`.

    Returns:
        By the part that was re-drawn last: "head", then "encoders.<modality>..." downwards.

    Raises:
        UserError: The modality does not exist, or a map is not finite.
    """
    _known(model, modality)
    reference, found = _explained(explain, model, inputs, seed), {}
    with undisturbed(model):
        other = copy.deepcopy(model)
    prefix = f"encoders.{modality}"
    layers = [
        path
        for path, module in other.named_modules()
        if (path == prefix or path.startswith(f"{prefix}.")) and any(True for _ in module.parameters(recurse=False))
    ]
    for step, path in enumerate(["head", *reversed(layers)]):
        _redraw(other.get_submodule(path), seed + step, recurse=path == "head")
        found[path] = _rank_correlation(reference, _explained(explain, other, inputs, seed))
    return found


def stability(
    model: FusionModel,
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
    return _stability(model, inputs, explain, _explained(explain, model, inputs, seed), seeds, top, seed)


def trust(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target,
    explain: Explain,
    *,
    baseline: Tensor | float = 0.0,
    orders: int = 8,
    steps: int = 16,
    samples: int = 64,
    radius: float = 0.02,
    draws: int = 8,
    seeds: int = 3,
    seed: int = 0,
    batch: int = 64,
) -> Trust:
    """All scores of a method's map, with warnings in words.

    Warned of is: a modality that the score does not depend on; insertion or deletion whose gain over random orders has
    a 95 % interval (t, over clips) that reaches 0; sensitivity-n whose correlation, averaged over n, has one; a rank
    correlation above √½ (half of the ranks' variance is shared) after the head, the modality's encoder or everything
    was randomised; one below √½ between seeds; a map that small noise changes by more than half of its norm.

    insertion and deletion share their random orders, because deleting in one is inserting in the reverse. Rows a clip:
    2 + (2 + R)(P − 2), with `samples` more for infidelity and up to 4 · samples for sensitivity-n; and
    1 + draws + (M + 2) + (seeds − 1) explanations.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        modality: The modality that is explained.
        target: What `explain` explains; see `Explain` on "predicted".
        explain: The method. Its map must be of atoms.
        baseline: As in `insertion`.
        orders: As in `insertion`.
        steps: As in `insertion`.
        samples: Sets of `infidelity`, and of `sensitivity_n` for each n.
        radius: As in `max_sensitivity`.
        draws: As in `max_sensitivity`.
        seeds: As in `stability`.
        seed: Of everything that is drawn.
        batch: As in `insertion`.

    Raises:
        UserError: As in the single functions.
    """
    with undisturbed(model):
        importance = explain(model, inputs, seed)
        fixed, values, atoms = _start(model, inputs, modality, target, importance, batch)
        areas = _areas(fixed, values, baseline, orders, steps, seed, ("insertion", "deletion"))
        unfaithful = _infidelity(fixed, values, atoms, baseline, samples, True, seed)
        correlations = _sensitivity_n(fixed, values, atoms, baseline, None, samples, seed)
    values = values.cpu()
    steadiness = _max_sensitivity(model, inputs, modality, explain, values, radius, draws, seed)
    randomised = _randomisation(model, inputs, explain, values, seed)
    stable = _stability(model, inputs, explain, values, seeds, None, seed)
    warnings = _warnings(modality, areas, unfaithful, correlations, steadiness, radius, randomised, stable)
    return Trust(
        importance,
        areas["insertion"],
        areas["deletion"],
        unfaithful,
        correlations,
        steadiness,
        randomised,
        stable,
        warnings,
    )


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of each row, ties having their mean rank: (N, A) and (N, A) to (N,) float64.

    Two equal rows have 1, even constant ones; a constant one and another have 0.
    """
    correlation = _correlation(_ranks(first), _ranks(second), None)
    return torch.where((first == second).all(1), 1.0, correlation)


def _start(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target,
    importance: Importance,
    batch: int,
) -> tuple[Held, Tensor, Atoms]:
    """The score of the modality's input, the map (N, A) in float64, and its atoms."""
    atoms = importance.atoms
    if atoms is None:
        raise UserError(f"importance: a map of atoms is needed; pass atoms to {importance.method}")
    fixed = hold(model, inputs, modality, target, atoms, batch)
    shape = (len(fixed.x), len(atoms))
    given = tuple(importance.values.shape)
    _require(given == shape, f"importance: values of shape {given}, expected {shape}: clips and atoms")
    return fixed, _finite(importance).to(fixed.x.device), atoms


def _areas(
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
    # Sorting shuffled values, and stably, leaves ties in random order.
    largest = values.gather(1, shuffled[0]).argsort(dim=1, descending=True, stable=True)
    best = shuffled[0].gather(1, largest)
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
            scores.append(fixed.scores(atoms.replace(fixed.x[clip], keep, start), clip))
        empty = masked_scores(fixed, atoms, torch.zeros(1, len(atoms), dtype=torch.bool), baseline)[0]
    between = torch.cat(scores).double().reshape(len(ranks), len(inner), len(empty)).transpose(1, 2)
    ends = [end.expand(len(ranks), -1)[..., None] for end in (empty, fixed.unperturbed())]
    return torch.cat([ends[0], between, ends[1]], dim=2)


def _infidelity(
    fixed: Held, values: Tensor, atoms: Atoms, baseline: Tensor | float, samples: int, normalise: bool, seed: int
) -> Tensor:
    at_least("infidelity", samples=(samples, 1))
    generator, size = torch.Generator().manual_seed(seed), len(atoms)
    numbers = torch.randint(1, size + 1, (samples,), generator=generator)
    drop = _random_sets(size, numbers, generator)
    scores = masked_scores(fixed, atoms, ~drop, baseline)  # (S, N)
    changes = fixed.unperturbed() - scores
    sums = drop.to(values) @ values.T
    if not normalise:
        return (sums - changes).square().mean(0)
    squares, products, size_of_map = changes.square().sum(0), (sums * changes).sum(0), sums.square().sum(0)
    explained = products.square() / torch.where(size_of_map > 0, size_of_map, 1.0)
    share = (1 - explained / torch.where(squares > 0, squares, 1.0)).clamp_min(0)
    silent = changes.abs().amax(0) <= _SILENT * scores.abs().amax(0)
    return torch.where(silent, torch.nan, share)


def _sensitivity_n(
    fixed: Held,
    values: Tensor,
    atoms: Atoms,
    baseline: Tensor | float,
    sizes: Sequence[int] | None,
    subsets: int,
    seed: int,
) -> dict[int, Tensor]:
    size, generator = len(atoms), torch.Generator().manual_seed(seed)
    _require(size > 1, "sensitivity_n: at least 2 atoms are needed")
    at_least("sensitivity_n", subsets=(subsets, 2))
    numbers = sorted({max(size * q // 4, 1) for q in range(4)}) if sizes is None else list(sizes)
    _require(all(1 <= n < size for n in numbers), f"sizes: {numbers}; allowed are 1 to {size - 1}")
    sets = [_sets(size, n, subsets, generator) for n in numbers]
    scores = torch.split(masked_scores(fixed, atoms, ~torch.cat(sets), baseline), [len(drop) for drop in sets])
    return {
        n: _correlation((drop.to(values) @ values.T).T, -part.T, part.abs().amax(0))
        for n, drop, part in zip(numbers, sets, scores, strict=True)
    }


def _max_sensitivity(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    modality: str,
    explain: Explain,
    reference: Tensor,
    radius: float,
    draws: int,
    seed: int,
) -> Tensor:
    _known(model, modality)
    at_least("max_sensitivity", draws=(draws, 1))
    _require(radius > 0, f"radius: must be positive, got {radius}")
    generator, norm = torch.Generator().manual_seed(seed), reference.norm(dim=1)
    largest = torch.zeros_like(norm)
    with undisturbed(model):
        x = inputs[modality].clone()
        reach = radius * float(x.double().std(correction=0))
        for _ in range(draws):
            noise = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
            noisy = {**inputs, modality: x + (reach * noise).to(x)}
            change = (_explained(explain, model, noisy, seed) - reference).norm(dim=1)
            largest = torch.maximum(largest, change / torch.where(norm > 0, norm, 1.0))
    return largest


def _randomisation(
    model: FusionModel, inputs: Mapping[str, Tensor], explain: Explain, reference: Tensor, seed: int
) -> dict[str, RankCorrelation]:
    found = {}
    for name in ("head", *(f"encoders.{m}" for m in model.modalities), "model"):
        with undisturbed(model):
            other = copy.deepcopy(model)
        part: nn.Module = other if name == "model" else other.get_submodule(name)
        if any(True for _ in part.parameters()):
            _redraw(part, seed)
            found[name] = _rank_correlation(reference, _explained(explain, other, inputs, seed))
    return found


def _stability(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    explain: Explain,
    reference: Tensor,
    seeds: int,
    top: int | None,
    seed: int,
) -> Stability:
    size = reference.shape[1]
    at_least("stability", seeds=(seeds, 2))
    top = max(size // 10, 1) if top is None else top
    _require(1 <= top <= size, f"top: {top}; allowed are 1 to {size}")
    maps = [reference, *(_explained(explain, model, inputs, seed + s) for s in range(1, seeds))]
    best = [torch.zeros_like(m).scatter(1, m.topk(top, 1).indices, 1.0) for m in maps]
    pairs = list(itertools.combinations(range(seeds), 2))
    correlation = torch.stack([spearman(maps[a], maps[b]) for a, b in pairs]).mean(0)
    overlap = torch.stack([(best[a] * best[b]).sum(1) / top for a, b in pairs]).mean(0)
    return Stability(correlation, overlap, top)


def _warnings(
    modality: str,
    areas: Mapping[str, Area],
    unfaithful: Tensor,
    correlations: Mapping[int, Tensor],
    steadiness: Tensor,
    radius: float,
    randomised: Mapping[str, RankCorrelation],
    stable: Stability,
) -> tuple[str, ...]:
    """What speaks against a map, in words."""
    found = []
    silent = int(unfaithful.isnan().sum())
    if silent:
        found.append(f"the score of {silent} of {len(unfaithful)} clips does not depend on {modality!r}")
    if len(unfaithful) == 1:
        found.append("one clip: there are no intervals over clips")
    else:
        for name, area in areas.items():
            low, high = area.interval
            if low <= 0:
                mean = float(area.gain.mean())
                found.append(f"{name}: not better than a random order (gain {mean:.3g}, 95 % {low:.3g} to {high:.3g})")
        mean_correlation = torch.stack([*correlations.values()]).mean(0)
        low, high = mean_interval(mean_correlation.tolist())
        if low <= 0:
            mean = float(mean_correlation.mean())
            found.append(
                "sensitivity-n: sums of importance do not follow the score "
                f"(correlation {mean:.2f}, 95 % {low:.2f} to {high:.2f})"
            )
    named = {"head": "the head", f"encoders.{modality}": f"the encoder of {modality!r}", "model": "the whole model"}
    for part, words in named.items():
        if part in randomised and randomised[part].likeness > _SAME:
            found.append(
                f"hardly changes when {words} is randomised (rank correlation {randomised[part].likeness:.2f})"
            )
    likeness = float(stable.correlation.mean())
    if likeness < _SAME:
        found.append(f"differs between seeds (rank correlation {likeness:.2f}): take more samples")
    change = float(steadiness.mean())
    if change > _NOISY:
        found.append(f"noise of {radius:g} standard deviations changes it by {change:.2f} of its size")
    return tuple(found)


def _explained(explain: Explain, model: FusionModel, inputs: Mapping[str, Tensor], seed: int) -> Tensor:
    """A map, one row a clip, (N, K) float64, on the CPU: maps of one method may lie on different devices."""
    with undisturbed(model):
        return _finite(explain(model, inputs, seed)).flatten(1).cpu()


def _finite(importance: Importance) -> Tensor:
    values = importance.values.detach().double()
    _require(bool(values.isfinite().all()), f"importance: {importance.method} has values that are not finite")
    return values


def _redraw(module: nn.Module, seed: int, *, recurse: bool = True) -> None:
    """Re-draws a module's parameters in place, as `randomisation_test` says: on the CPU, so alike on every device."""
    modules = [*module.modules()] if recurse else [module]
    parameters = list(dict.fromkeys(p for each in modules for p in each.parameters(recurse=False)))
    if not parameters:
        return
    device = parameters[0].device
    module.to("cpu")
    with torch.random.fork_rng([]), torch.no_grad():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs, which are not forked
        former = [p.clone() for p in parameters]
        for each in modules:
            reset = getattr(each, "reset_parameters", None)
            if callable(reset):
                reset()
        for parameter, value in zip(parameters, former, strict=True):
            if torch.equal(parameter, value):  # nothing covers it
                noise = torch.randn(value.shape, dtype=torch.float64)
                drawn = value.double().mean() + value.double().std(correction=0) * noise
                parameter.copy_(drawn)
    module.to(device)


def _rank_correlation(first: Tensor, second: Tensor) -> RankCorrelation:
    return RankCorrelation(spearman(first, second), spearman(first.abs(), second.abs()))


def _ranks(values: Tensor) -> Tensor:
    """Rank of each value in its row from 0, ties at their mean: (N, A) to (N, A) float64."""
    values = values.contiguous()
    ordered = values.sort(1).values.contiguous()
    below, up_to = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (below + up_to - 1).double() / 2


def _correlation(first: Tensor, second: Tensor, scale: Tensor | None) -> Tensor:
    """Pearson's correlation of rows (N, S); 0 where one is constant, the second up to rounding at a scale (N,)."""
    a, b = (x.double() - x.double().mean(1, keepdim=True) for x in (first, second))
    flat = a.abs().amax(1) <= _SILENT * first.abs().amax(1)
    flat |= b.abs().amax(1) <= _SILENT * (second.abs().amax(1) if scale is None else scale)
    norms = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(flat, 0.0, (a * b).sum(1) / torch.where(flat, 1.0, norms)).clamp(-1, 1)


def _sets(size: int, number: int, count: int, generator: torch.Generator) -> Tensor:
    """Sets of `number` of `size` atoms, boolean (S, A): all of them, or `count` random ones if there are more."""
    if math.comb(size, number) <= count:
        members = torch.tensor([*itertools.combinations(range(size), number)])
        return torch.zeros(len(members), size, dtype=torch.bool).scatter(1, members, True)
    return _random_sets(size, torch.full((count,), number), generator)


def _random_sets(size: int, numbers: Tensor, generator: torch.Generator) -> Tensor:
    """A random set of each number (S,) of atoms, boolean (S, A)."""
    places = torch.rand(len(numbers), size, generator=generator, dtype=torch.float64).argsort(1).argsort(1)
    return places < numbers[:, None]


def _set_pairs(
    first: tuple[int, int], second: tuple[int, int], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pairs of sets, given (size, number) of each: all of them, or `count` random ones if there are more."""
    one, two = math.comb(*first), math.comb(*second)
    if one * two <= count:
        s, t = _sets(*first, one, generator), _sets(*second, two, generator)
        return s.repeat_interleave(two, 0), t.repeat(one, 1)
    s, t = (_random_sets(size, torch.full((count,), number), generator) for size, number in (first, second))
    return s, t


def _rows(copies: int, count: int, batch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of copy and clip of copies × N rows, `batch` at a time."""
    for start in range(0, copies * count, batch):
        rows = torch.arange(start, min(start + batch, copies * count), device=device)
        yield rows // count, rows % count


def _known(model: FusionModel, modality: str) -> None:
    _require(modality in model.modalities, f"modality: {modality!r}; allowed are {', '.join(model.modalities)}")


def _require(allowed: bool, message: str) -> None:
    if not allowed:
        raise UserError(message)
