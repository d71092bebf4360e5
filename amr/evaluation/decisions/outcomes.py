"""The right/wrong table: with which modalities alone, and whether together, each clip is right."""

from collections.abc import Sequence

import torch
from torch import Tensor

from amr.evaluation.table import Table
from amr.evaluation.use import Correct, alone


def outcomes(correct: Correct) -> Tensor:
    """Cell of each clip in the right/wrong table.

    Args:
        correct: Whether each clip is right with every set of modalities, (2^M, N) of 0 and 1.

    Returns:
        Cell of each clip, (N,) int64 below 2^(M+1): bit m says whether the clip is right with modality m alone, bit M
        whether it is right with all modalities together.
    """
    bits = torch.cat([alone(correct), correct[-1:]]).long()
    return (bits << torch.arange(len(bits), device=bits.device)[:, None]).sum(0)


def outcome_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Name of each cell, as (measure, modalities joined by +), in the order of the cells.

    Right together: `outcome_synergistic` (with none alone), `outcome_unique` (with one alone), `outcome_redundant`
    (with several alone). Wrong together: `outcome_neither` (with none alone), `outcome_lost` (with some alone).
    """
    cells = []
    for together in (False, True):
        for members in range(1 << len(names)):
            label = "+".join(name for m, name in enumerate(names) if members >> m & 1)
            count = members.bit_count()
            if together:
                kind = ("synergistic", "unique")[count] if count < 2 else "redundant"
            else:
                kind = "lost" if count else "neither"
            cells.append((f"outcome_{kind}", label))
    return cells


def outcome_counts(correct: Correct, labels: Tensor, classes: int) -> Tensor:
    """Number of clips in each cell of each class, (C, 2^(M+1)) int64.

    Args:
        correct: Whether each clip is right with every set of modalities, (2^M, N) of 0 and 1.
        labels: Class of each clip, (N,) int64.
        classes: Number of classes C.
    """
    cells = 2 * len(correct)
    return torch.bincount(labels * cells + outcomes(correct), minlength=classes * cells).view(classes, cells)


def outcome_rows(
    table: Table, names: Sequence[str], correct: Correct, labels: Tensor, classes: int, details: bool
) -> None:
    """Adds the right/wrong table to a table of measures, as parts of the clips.

    A row's value times its clips is the count.

    Args:
        table: Table of the N clips.
        names: Modalities, in the order of the bits of `correct`.
        correct: Whether each clip is right with every set of modalities, (2^M, N) of 0 and 1.
        labels: Class of each clip, (N,) int64.
        classes: Number of classes.
        details: Whether to add the rows by class.
    """
    member = torch.nn.functional.one_hot(outcomes(correct), 2 * len(correct)).double()
    parts = {name: member[:, cell] for cell, name in enumerate(outcome_names(names))}
    for kind in ("outcome_redundant", "outcome_lost"):
        several = [part for (measure, _), part in parts.items() if measure == kind]
        parts = {key: part for key, part in parts.items() if key[0] != kind or len(several) > 1}
        parts[kind, ""] = torch.stack(several).sum(0)
    table.means([(measure, label, "") for measure, label in parts], torch.stack([*parts.values()], dim=1))
    for (measure, label), part in parts.items() if details else ():
        table.class_means(measure, label, part, labels, classes)
