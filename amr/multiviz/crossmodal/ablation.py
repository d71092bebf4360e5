"""4-point ablation: the joint effect of two atoms beyond what each brings alone."""

from collections.abc import Mapping

import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.evaluation.head import Baseline, baseline_values, head_rows
from amr.model import rows_at_once
from amr.model.protocol import Explained
from amr.multiviz.base import Several, Target, fixed_targets
from amr.multiviz.crossmodal.joint import Side, Space, encode, perturbed, scorer, sides


def ablation(
    model: Explained,
    inputs: Mapping[str, Tensor],
    target: Target | Several,
    first: Side,
    second: Side,
    baseline: Baseline = "zeros",
    *,
    space: Space = "inputs",
    batch: int = 4096,
    encoder_batch: int = 64,
) -> Tensor:
    """4-point ablation: the joint effect of two atoms beyond what each brings alone.

        map[n, i, j] = f(x) − f(x−i) − f(x−j) + f(x−ij)

    x−i is clip n with atom i of `first` replaced, x−j with atom j of `second`, x−ij with both. It is the finite form of
    `second_order`, with the same sign, and right for piecewise linear networks too. An atom is encoded once, whatever
    it is paired with: A1 + A2 + M encoder rows per clip, and (A1 + 1)(A2 + 1) head rows.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...); their encodings with space="encodings".
        target: Explained class or unit, fixed on the clips as they are; `Several` share all rows.
        first: A modality and its atoms.
        second: Another one.
        baseline: Replacement of an atom.
        space: Space that is perturbed.
        batch: Head rows at a time.
        encoder_batch: Encoder rows at a time.

    Returns:
        Map (N, A1, A2), or (N, T, A1, A2), in the unit of the score.

    Raises:
        UserError: A modality, the target or the baseline does not exist.
    """
    one, two = sides(inputs, first, second)
    replacement, maps = baseline_values({name: inputs[name] for name, _ in (one, two)}, baseline), []
    height, width = len(one[1]) + 1, len(two[1]) + 1

    def picks(rows: Tensor) -> dict[str, Tensor]:
        return {**dict.fromkeys(model.modalities, rows * 0), one[0]: rows // width, two[0]: rows % width}

    rows = rows_at_once(model, batch)
    with undisturbed(model), torch.no_grad():
        encodings = encode(model, inputs, space, encoder_batch)
        fixed = fixed_targets(model, encodings, target)
        for clip in range(len(inputs[one[0]])):
            pools = {name: e[clip : clip + 1] for name, e in encodings.items()}
            for name, atoms in (one, two):  # the last row of a pool is the clip as it is
                x, base, keep = inputs[name][clip], replacement[name][clip], ~torch.eye(len(atoms), dtype=torch.bool)
                without = perturbed(model, name, x, atoms.of(clip), keep, base, space, encoder_batch)
                pools[name] = torch.cat([without, pools[name]])
            scores = torch.cat([*head_rows(scorer(model, fixed, clip), pools, picks, height * width, rows)])
            f = scores.reshape(height, width, *scores.shape[1:]).movedim((0, 1), (-2, -1))  # ([T,] A1 + 1, A2 + 1)
            maps.append(f[..., -1:, -1:] - f[..., :-1, -1:] - f[..., -1:, :-1] + f[..., :-1, :-1])
    return torch.stack(maps)
