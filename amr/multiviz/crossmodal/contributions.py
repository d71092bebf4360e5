"""A score as the sum of what modalities bring alone and what they bring together."""

from collections.abc import Mapping

import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.evaluation.emap import clip_rows, closed_form, projection
from amr.model import head_of, rows_at_once
from amr.model.protocol import Explained
from amr.multiviz.base import Target, Unit, fixed_target


def contributions(
    model: Explained,
    encodings: Mapping[str, Tensor],
    target: Target,
    *,
    pairings: int = 8,
    seed: int = 0,
    batch: int = 4096,
) -> tuple[Tensor, Tensor]:
    """Splits each clip's score into f = UC + MC (Lyu et al. 2022, eqs. 1 and 2).

    UC is the additive projection of the score, MC what is left of it. The head rows of `emap`, and N more.

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, ...).
        target: Explained class or unit.
        pairings: See `emap_estimate`.
        seed: Seed of the pairings.
        batch: Head rows at a time.

    Returns:
        Unimodal and multimodal contribution, each (N,), in the unit of the score.
    """
    with undisturbed(model), torch.no_grad():
        function = model.penultimate if isinstance(target, Unit) else head_of(model)
        batch = rows_at_once(model, batch)
        whole = clip_rows(function, encodings, batch)
        known = whole.argmax(1) if isinstance(target, str) and target == "predicted" else target
        fixed = fixed_target(model, encodings, known)
        index = torch.full_like(whole[:, 0], fixed.index).long() if isinstance(fixed, Unit) else fixed
        score = whole.gather(1, index[:, None])[:, 0]
        projected = projection(function, encodings, pairings, seed, batch, closed_form(model)).values
        unimodal = projected.gather(1, index[:, None])[:, 0]
    return unimodal, score - unimodal
