"""Exact Shapley values and interaction indices of modalities: a coalition is those that are not replaced."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amr.attribution import coalition_index, shapley_values, undisturbed
from amr.evaluation.bootstrap import jackknife_error, left_out
from amr.evaluation.head import Baseline, coalition_outputs
from amr.evaluation.statistics import t_quantile
from amr.model.protocol import Explained
from amr.multiviz.base import Target, Unit, fixed_target
from amr.utils.errors import UserError


@dataclass(frozen=True, eq=False)
class SamplingError:
    """How far values may be off because their baseline is the mean over a sample of clips.

    Args:
        error: Standard error, of the values' shape.
        freedom: Its degrees of freedom.
    """

    error: Tensor
    freedom: int

    @property
    def half(self) -> Tensor:
        """Half the width of the 95 % interval (Student's t)."""
        return t_quantile(self.freedom) * self.error


def modality_shapley(
    model: Explained,
    encodings: Mapping[str, Tensor],
    target: Target | Baseline,
    baseline: Baseline | Target = "zeros",
    *,
    batch: int = 4096,
) -> Tensor:
    """Shapley value of each modality in the target's score.

    With v(S) the score when the modalities outside S have the baseline's encoding (Shapley 1953),

        φ_m = Σ_{S ∌ m} |S|! (M − |S| − 1)! / M! · [v(S + m) − v(S)].

    Exact: all 2^M coalitions, 2^M · N head rows. Σ_m φ_m = v(all) − v(none).

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, ...).
        target: Explained class or unit; "predicted" is the class predicted with all modalities.
        baseline: Replacement of a modality outside the coalition. Before the target, as in 0.1, it is understood, too.
        batch: Head rows at a time.

    Returns:
        Values in the unit of the score (logits or a unit's activation), (N, M), modalities in the order of `encodings`.

    Raises:
        UserError: The target or the baseline does not exist.
    """
    return shapley_values(_coalition_scores(model, encodings, *_in_order(target, baseline), batch))


def interaction_index(
    model: Explained,
    encodings: Mapping[str, Tensor],
    target: Target | Baseline,
    baseline: Baseline | Target = "zeros",
    *,
    batch: int = 4096,
) -> Tensor:
    """Shapley interaction index of each pair of modalities (Grabisch & Roubens 1999).

        I_ij = Σ_{S ∌ i, j} |S|! (M − |S| − 2)! / (M − 1)! · [v(S + ij) − v(S + i) − v(S + j) + v(S)]

    Positive where the two bring more together than alone, 0 where the score is additive in them. The same 2^M · N head
    rows as `modality_shapley`, and the same arguments.

    Returns:
        Symmetric matrices (N, M, M), modalities in the order of `encodings`. On the diagonal is the index of a single
        modality, which is its Shapley value.

    Raises:
        UserError: The target or the baseline does not exist.
    """
    return _indices(_coalition_scores(model, encodings, *_in_order(target, baseline), batch))


def interaction_error(
    model: Explained,
    encodings: Mapping[str, Tensor],
    donors: Mapping[str, Tensor],
    target: Target,
    *,
    batch: int = 4096,
) -> SamplingError:
    """Sampling error of `interaction_index`, on its diagonal of `modality_shapley`, against the donors' mean encoding.

    The values are exact for one baseline, but the mean over D clips is itself a sample: other clips of the kind have
    another mean. The donors are left out in min(D, 32) groups in turn, and the spread of the values against the means
    of the rest gives the error (jackknife). It covers the choice of the donors alone: not the choice of a mean as the
    baseline, not the model, and nothing of the explained clip. G · 2^M · N head rows for G groups, and N with target
    "predicted".

    Args:
        model: The model.
        encodings: Encoding of each modality of the explained clips, (N, ...).
        donors: Encodings of the clips whose mean is the baseline, (D, ...), D at least 2.
        target: Explained class or unit; "predicted" is the class predicted with all modalities.
        batch: Head rows at a time.

    Returns:
        Errors, (N, M, M), with G − 1 degrees of freedom.

    Raises:
        UserError: There are fewer than two donors, or the target does not exist.
    """
    first, clips = next(iter(donors.values())), len(next(iter(encodings.values())))
    if len(first) < 2:
        raise UserError(f"interaction_error: {len(first)} donors; must be at least 2")
    with undisturbed(model), torch.no_grad():
        fixed = fixed_target(model, encodings, target)
    values = []
    for stays in torch.split(left_out(len(first), first.device), max(1, batch // (clips << len(encodings)))):
        means = {name: torch.stack([e[stay].mean(0) for stay in stays]) for name, e in donors.items()}
        copies = {name: e.repeat(len(stays), *[1] * (e.ndim - 1)) for name, e in encodings.items()}
        baseline = {name: means[name].repeat_interleave(clips, dim=0) for name in encodings}
        classes = fixed if isinstance(fixed, Unit) else fixed.repeat(len(stays))
        found = _indices(_coalition_scores(model, copies, classes, baseline, batch))
        values.append(found.reshape(len(stays), clips, *found.shape[1:]))
    every = torch.cat(values)
    return SamplingError(jackknife_error(every), len(every) - 1)


def _in_order(target: Any, baseline: Any) -> tuple[Target, Baseline]:
    """Target and baseline, which 0.1 took in the other order: no target is a mapping, and only one is a word."""
    other = isinstance(target, Mapping) or (isinstance(target, str) and target != "predicted")
    return (baseline, target) if other else (target, baseline)


def _indices(scores: Tensor) -> Tensor:
    """Interaction index of each pair of modalities, (N, M, M), from the scores (2^M, N) of all coalitions."""
    count = (len(scores) - 1).bit_length()
    rows = [torch.stack([coalition_index(scores, sorted({i, j})) for j in range(count)], dim=1) for i in range(count)]
    return torch.stack(rows, dim=1)


def _coalition_scores(
    model: Explained, encodings: Mapping[str, Tensor], target: Target, baseline: Baseline, batch: int
) -> Tensor:
    """Scores (2^M, N); bit m of the first index says whether modality m is kept."""
    function = model.penultimate if isinstance(target, Unit) else None
    outputs = coalition_outputs(model, encodings, baseline, function=function, batch=batch)
    with undisturbed(model):
        # The last coalition is the whole: it costs no further row to see what was predicted.
        known = outputs[-1].argmax(1) if isinstance(target, str) and target == "predicted" else target
        fixed = fixed_target(model, encodings, known)
    index = fixed.index if isinstance(fixed, Unit) else fixed.expand(len(outputs), -1)
    scores: Tensor = outputs[..., index] if isinstance(index, int) else outputs.gather(2, index[..., None])[..., 0]
    return scores
