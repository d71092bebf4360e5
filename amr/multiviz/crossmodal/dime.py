"""DIME: LIME on the two parts of a score."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.evaluation.emap import Estimate, over_repeats
from amr.evaluation.head import Baseline, baseline_values, head_rows
from amr.model import rows_at_once
from amr.model.protocol import Explained
from amr.multiviz.base import Several, Target, fixed_targets
from amr.multiviz.crossmodal.joint import Side, Space, perturbed, scorer, sides
from amr.multiviz.unimodal.surrogate import lime_kernel, weighted_ridge
from amr.utils.errors import UserError


@dataclass(frozen=True, eq=False)
class Dime:
    """LIME weights of the two parts of a score, K clips and the A atoms of one modality.

    Args:
        unimodal: Weights for the additive part, (K, A); (K, T, A) of several targets.
        multimodal: Weights for the rest, (K, A). The two add up to LIME's weights for the score.
        clips: Positions of the clips among the N.
    """

    unimodal: Estimate
    multimodal: Estimate
    clips: tuple[int, ...]


def dime(
    model: Explained,
    inputs: Mapping[str, Tensor],
    encodings: Mapping[str, Tensor],
    target: Target | Several,
    side: Side,
    baseline: Baseline = "zeros",
    *,
    clips: Iterable[int] | None = None,
    space: Space = "inputs",
    samples: int = 256,
    repeats: int = 4,
    width: float = 0.25,
    ridge: float = 1e-6,
    pairings: int = 8,
    seed: int = 0,
    batch: int = 4096,
    encoder_batch: int = 64,
) -> Dime:
    """DIME: LIME on the unimodal and on the multimodal part of a score (Lyu et al. 2022, section 3).

    Of the terms of UC only E[f | e^m = e'] changes when atoms of modality m are replaced; what stays falls into the
    surrogate's constant. So a mask costs one encoder row of m, and one head row for each of the N clips that lend it
    their other modalities: S·N head rows per clip and repeat for M = 2. For M > 2 the others are put together at random
    as in `emap_estimate`: S·(N · pairings + 1). "predicted" costs N head rows more.

    Args:
        model: The model.
        inputs: Input of the explained modality, (N, ...); others are not used.
        encodings: Encoding of each modality, (N, ...), of the same clips: what UC is a mean over.
        target: Explained class or unit; `Several` share all rows.
        side: The explained modality and its atoms.
        baseline: Replacement of an atom that is not kept.
        clips: Positions of the clips to explain; None for all.
        space: Space that is perturbed.
        samples: Masks a repeat, S; the first keeps all atoms, the others each with probability ½.
        repeats: Independent sets of masks; values are their mean, and their spread gives the errors.
        width: Width of `lime_kernel`.
        ridge: Penalty on the surrogate's squared weights.
        pairings: For M > 2.
        seed: Seed of masks and pairings; all clips share them.
        batch: Head rows at a time.
        encoder_batch: Encoder rows at a time.

    Returns:
        Weights in float64.

    Raises:
        UserError: A modality, a clip, the target or the baseline does not exist, or an option has a value that is not
            allowed.
    """
    ((name, atoms),) = sides(inputs, side)
    count = len(inputs[name])
    if name not in encodings or any(len(e) != count for e in encodings.values()):
        raise UserError(f"encodings: must be of the same {count} clips as the inputs, {name!r} among them")
    chosen = tuple(range(count) if clips is None else clips)
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        raise UserError(f"clips={list(chosen)[:5]}: must be 0 to {count - 1}, at least one")
    if repeats < 1 or pairings < 1 or samples < len(atoms) + 2 or not (width > 0 and ridge >= 0):
        allowed = f"repeats and pairings of 1 or more, samples of {len(atoms) + 2} or more, width > 0 and ridge >= 0"
        raise UserError(f"dime: must be {allowed}")
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(repeats, samples, len(atoms), generator=generator) < 0.5
    keep[:, 0] = True
    replacement, parts = baseline_values({name: inputs[name]}, baseline)[name], []
    others = [m for m in encodings if m != name]
    rounds = pairings if len(others) > 1 else min(len(others), 1)
    drawn = {m: _permutations(count, rounds, generator).flatten() for m in others}
    at_once = rows_at_once(model, batch)
    with undisturbed(model), torch.no_grad():
        fixed = fixed_targets(model, encodings, target)
        for clip in chosen:
            row = perturbed(
                model,
                name,
                inputs[name][clip],
                atoms.of(clip),
                keep.flatten(0, 1),
                replacement[clip],
                space,
                encoder_batch,
            )
            if len(others) == 1:  # its own clip is one of the N
                partners, own = {others[0]: torch.arange(count)}, clip
            else:
                partners, own = {m: torch.cat([p, torch.tensor([clip])]) for m, p in drawn.items()}, rounds * count
            span = max(rounds * count + (len(others) != 1), 1)
            pools, table = {**encodings, name: row}, {m: p.to(row.device) for m, p in partners.items()}

            def picks(rows: Tensor, table: dict[str, Tensor] = table, span: int = span) -> dict[str, Tensor]:
                return {name: rows // span, **{m: p[rows % span] for m, p in table.items()}}

            scores = torch.cat([*head_rows(scorer(model, fixed, clip), pools, picks, len(row) * span, at_once)])
            scores = scores.reshape(repeats, samples, span, *scores.shape[1:]).double().cpu()  # (R, S, span[, T])
            unimodal = scores[:, :, : rounds * count].mean(2) if others else scores[:, :, 0]
            parts.append(torch.stack([unimodal, scores[:, :, own] - unimodal], dim=2))
    values = torch.stack(parts, dim=3)  # (R, S, 2, K), or (R, S, 2, K, T)
    weights = weighted_ridge(keep.double(), lime_kernel(keep, width), values.flatten(2), ridge).transpose(1, 2)
    weights = weights.reshape(repeats, *values.shape[2:], -1)  # (R, 2, K, A), or (R, 2, K, T, A)
    like = replacement.new_empty(0, dtype=torch.float64)
    return Dime(over_repeats(weights[:, 0], like), over_repeats(weights[:, 1], like), chosen)


def _permutations(count: int, rounds: int, generator: torch.Generator) -> Tensor:
    """Random permutations, (rounds, count)."""
    drawn = [torch.randperm(count, generator=generator) for _ in range(rounds)]
    return torch.stack(drawn) if drawn else torch.empty(0, count, dtype=torch.long)
