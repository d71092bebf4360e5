"""All scores of a method's map together, and what speaks against it in words."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.evaluation.statistics import mean_interval
from amr.model.protocol import Explained
from amr.multiviz.base import Target
from amr.multiviz.trust.areas import Area, areas_of
from amr.multiviz.trust.explain import Explain, held_with_map
from amr.multiviz.trust.randomised import RankCorrelation, randomisation_of
from amr.multiviz.trust.stability import Stability, max_sensitivity_of, stability_of
from amr.multiviz.trust.sums import infidelity_of, sensitivity_n_of
from amr.multiviz.unimodal.importance import Importance

_SAME = math.sqrt(0.5)
"""Rank correlation at which two maps share half of their ranks' variance."""
_NOISY = 0.5
"""Relative change under small noise from which on a map is called unsteady."""


@dataclass(frozen=True, eq=False)
class Trust:
    """Trust scores that a page shows beside a map.

    Args:
        importance: The map.
        insertion: See `insertion`.
        deletion: See `deletion`.
        infidelity: See `infidelity`, normalised, (N,).
        sensitivity_n: See `sensitivity_n`.
        max_sensitivity: See `max_sensitivity`, (N,).
        randomisation: See `randomisation_test`.
        stability: See `stability`.
        warnings: Evidence against the map, in words; empty if nothing does.
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


def trust(
    model: Explained,
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
        target: Target of `explain`; see `Explain` on "predicted".
        explain: The method. Its map must be of atoms.
        baseline: As in `insertion`.
        orders: As in `insertion`.
        steps: As in `insertion`.
        samples: Sets of `infidelity`, and of `sensitivity_n` for each n.
        radius: As in `max_sensitivity`.
        draws: As in `max_sensitivity`.
        seeds: As in `stability`.
        seed: Seed of everything that is drawn.
        batch: As in `insertion`.

    Raises:
        UserError: As in the single functions.
    """
    with undisturbed(model):
        importance = explain(model, inputs, seed)
        fixed, values, atoms = held_with_map(model, inputs, modality, target, importance, batch)
        areas = areas_of(fixed, values, baseline, orders, steps, seed, ("insertion", "deletion"))
        unfaithful = infidelity_of(fixed, values, atoms, baseline, samples, True, seed)
        correlations = sensitivity_n_of(fixed, values, atoms, baseline, None, samples, seed)
    values = values.cpu()
    steadiness = max_sensitivity_of(model, inputs, modality, explain, values, radius, draws, seed)
    randomised = randomisation_of(model, inputs, explain, values, seed)
    stable = stability_of(model, inputs, explain, values, seeds, None, seed)
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
    """Evidence against a map, in words."""
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
