"""The conflict test: whose class a model gives when its modalities come from clips of two classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from amr.evaluation.head import repaired_answers
from amr.evaluation.table import Table
from amr.model.protocol import Explained
from amr.utils.errors import UserError

BINS = 4
"""Bins of equal width of a pair's confidence."""


@dataclass(frozen=True, eq=False)
class Conflicts:
    """Predictions for clips that combine two clips of different classes.

    Entry (m, r, i) is about the clip with modality m of clip i and all other modalities of clip `partners[r, i]`.

    Attributes:
        partners: Clip that the other modalities are taken from, (R, N) int64, on the CPU as all of these.
        wins: Whether the output is the class of the clip that modality m comes from, (M, R, N) bool.
        rest: Whether the output is the class of the clip that the others come from, (M, R, N) bool.
    """

    partners: Tensor
    wins: Tensor
    rest: Tensor

    @property
    def neither(self) -> Tensor:
        """Whether the output is a third class, (M, R, N) bool."""
        return ~(self.wins | self.rest)


def partners_of_other_classes(labels: Tensor, repeats: int = 10, seed: int = 0) -> Tensor:
    """A clip of another class for each clip, in each repeat.

    In each repeat the clips stand in a random cycle. A clip's partner is the next clip on the cycle that has another
    class. So every clip of another class is as likely.

    Args:
        labels: Class of each clip, (N,) int64.
        repeats: Number of cycles, R, at least 1.
        seed: Seed of the cycles.

    Returns:
        Positions of the partners, (R, N) int64, on the CPU.

    Raises:
        UserError: All clips are of one class, so that no clip has a partner.
    """
    labels, count = labels.cpu(), len(labels)
    if not _several(labels):
        only = f"every clip is of class {int(labels[0])}" if count else "there is no clip"
        raise UserError(f"conflict: {only}; must be clips of at least 2 classes")
    generator = torch.Generator().manual_seed(seed)
    partners = torch.empty(repeats, count, dtype=torch.long)
    for row in partners:
        cycle = torch.randperm(count, generator=generator)
        twice = labels[cycle].repeat(2)
        ends = torch.where(twice[1:] != twice[:-1], torch.arange(2 * count - 1), 2 * count)
        last = ends.flip(0).cummin(0).values.flip(0)[:count]  # the last of each clip's stretch of one class
        row[cycle] = cycle[(last + 1) % count]
    return partners


def conflicts(
    model: Explained,
    encodings: Mapping[str, Tensor],
    labels: Tensor,
    *,
    repeats: int = 10,
    seed: int = 0,
    batch: int = 4096,
) -> Conflicts:
    """Whose class the model gives when one modality comes from another clip than the rest, of another class.

    The head sees repeats · M · N rows. No encoder runs.

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, ...), of clips that have every modality; at least 2 modalities.
        labels: Class of each clip, (N,) int64.
        repeats: Number of partners of each clip.
        seed: Seed of the partners; see `partners_of_other_classes`.
        batch: Head rows at a time.

    Raises:
        UserError: All clips are of one class, or there is one modality.
    """
    if len(encodings) < 2:
        raise UserError(f"conflict: the model has {len(encodings)} modality; must be at least 2")
    partners, count = partners_of_other_classes(labels, repeats, seed), len(labels)
    others = partners.flatten().to(next(iter(encodings.values())).device)
    each = torch.arange(count, device=others.device).repeat(repeats)
    given = repaired_answers(model, encodings, each, others, batch).view(-1, repeats, count).cpu()
    truth = labels.cpu()
    return Conflicts(partners, given == truth, given == truth[partners])


def conflict_rows(
    table: Table,
    model: Explained,
    encodings: Mapping[str, Tensor],
    labels: Tensor,
    logits: Tensor,
    seed: int,
    details: bool,
) -> None:
    """Adds the conflict test to a table: no row where all clips are of one class.

    Args:
        table: Table of the N clips.
        model: The model.
        encodings: Encoding of each modality, (N, ...).
        labels: Class of each clip, (N,) int64.
        logits: Logits of the unchanged clips, (N, C), on the CPU.
        seed: Seed of the partners.
        details: Whether to add the rows by class, by confidence, and of the pairs that are right.
    """
    if not _several(labels):
        return
    found = conflicts(model, encodings, labels, seed=seed)
    labels, names, classes = labels.cpu(), list(encodings), logits.shape[1]
    kinds = {"conflict": found.wins, "conflict_rest": found.rest, "conflict_neither": found.neither}
    rates = {kind: said.double().mean(1) for kind, said in kinds.items()}  # (M, N)
    for kind, rate in rates.items():
        table.means([(kind, name, "") for name in names], rate.T)
    table.mean("conflict_neither", "", rates["conflict_neither"].mean(0))
    for m, name in enumerate(names):
        table.add("conflict_share", name, partial(_ratio, rates["conflict"][m], rates["conflict"].sum(0)))
    if not details:
        return
    confidence, answer = logits.softmax(1).max(1)
    lower = torch.minimum(confidence, confidence[found.partners])
    place, right = (lower * BINS).long().clamp_max(BINS - 1), answer == labels
    among = {f"confidence={b / BINS:g}-{(b + 1) / BINS:g}": place == b for b in range(BINS)}
    among["right"] = right & right[found.partners]
    for kind in ("conflict", "conflict_neither"):
        for m, name in enumerate(names):
            table.class_means(kind, name, rates[kind][m], labels, classes)
            for condition, pairs in among.items():
                counts = pairs.double().sum(0)
                hits = (kinds[kind][m] & pairs).double().sum(0)
                table.add(f"{kind}@{condition}", name, partial(_ratio, hits, counts), int((counts > 0).sum()))


def _several(labels: Tensor) -> bool:
    """Whether there are clips of at least two classes."""
    return bool((labels != labels[:1]).any())


def _ratio(top: Tensor, bottom: Tensor, weights: Tensor) -> Tensor:
    return (weights @ top) / (weights @ bottom)
