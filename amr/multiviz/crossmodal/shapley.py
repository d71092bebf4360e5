"""Exact Shapley values and interaction indices of modalities: a coalition is those that are not replaced."""

from collections.abc import Mapping

import torch
from torch import Tensor

from amr.attribution import coalition_index, shapley_values, undisturbed
from amr.evaluation.head import Baseline, coalition_outputs
from amr.model import FusionModel
from amr.multiviz.base import Target, Unit, fixed_target


def modality_shapley(
    model: FusionModel, encodings: Mapping[str, Tensor], baseline: Baseline, target: Target, *, batch: int = 4096
) -> Tensor:
    """Shapley value of each modality in the target's score.

    With v(S) the score when the modalities outside S have the baseline's encoding (Shapley 1953),

        φ_m = Σ_{S ∌ m} |S|! (M − |S| − 1)! / M! · [v(S + m) − v(S)].

    Exact: all 2^M coalitions, 2^M · N head rows. Σ_m φ_m = v(all) − v(none).

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, ...).
        baseline: What a modality outside the coalition becomes.
        target: What is explained; "predicted" is the class predicted with all modalities.
        batch: Head rows at a time.

    Returns:
        Values in the unit of the score (logits or a unit's activation), (N, M), modalities in the order of `encodings`.

    Raises:
        UserError: The target or the baseline does not exist.
    """
    return shapley_values(_coalition_scores(model, encodings, baseline, target, batch))


def interaction_index(
    model: FusionModel, encodings: Mapping[str, Tensor], baseline: Baseline, target: Target, *, batch: int = 4096
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
    scores, count = _coalition_scores(model, encodings, baseline, target, batch), len(encodings)
    rows = [torch.stack([coalition_index(scores, sorted({i, j})) for j in range(count)], dim=1) for i in range(count)]
    return torch.stack(rows, dim=1)


def _coalition_scores(
    model: FusionModel, encodings: Mapping[str, Tensor], baseline: Baseline, target: Target, batch: int
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
