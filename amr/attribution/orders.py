"""Shapley values of many modalities, from sampled orders in which these join."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from amr.utils.distributed import rank_and_world
from amr.utils.streams import note

EXACT_MODALITIES = 6
"""Up to so many modalities all 2^M coalitions are scored."""
PAIRS = 8
"""Pairs of sampled orders, each an order and its reverse: they need at most 2 · PAIRS · (M − 1) + 2 coalitions."""


@dataclass(frozen=True, eq=False)
class Orders:
    """Sampled orders, the same in every step, process and run.

    Attributes:
        coalitions: The K coalitions that they pass through, ascending: the first has no modality and the last all. Bit
            m says whether modality m is in.
        before: Place in `coalitions` of the modalities that each modality joins, (2 · PAIRS, M).
        after: Place in `coalitions` of these modalities and itself, (2 · PAIRS, M).
    """

    coalitions: tuple[int, ...]
    before: Tensor
    after: Tensor

    def values(self, scores: Tensor) -> Tensor:
        """Estimates of the Shapley values, one per pair of orders, (PAIRS, N, M), of the coalitions' scores (K, N)."""
        before, after = self.before.to(scores.device), self.after.to(scores.device)
        added = scores[after] - scores[before]  # (2 · PAIRS, M, N)
        pairs: Tensor = added.view(-1, 2, *added.shape[1:]).mean(1)
        return pairs.mT


@lru_cache
def sampled_orders(count: int, pairs: int = PAIRS) -> Orders:
    """Orders of `count` modalities."""
    generator = torch.Generator().manual_seed(count)
    orders = [torch.randperm(count, generator=generator) for _ in range(pairs)]
    steps: list[list[tuple[int, int]]] = []
    for order in (each for pair in orders for each in (pair.tolist(), pair.flip(0).tolist())):
        joined, step = 0, [(0, 0)] * count
        for modality in order:
            step[modality] = joined, joined | 1 << modality
            joined |= 1 << modality
        steps.append(step)
    coalitions = tuple(sorted({coalition for step in steps for both in step for coalition in both}))
    place = {coalition: k for k, coalition in enumerate(coalitions)}
    before, after = (torch.tensor([[place[both[end]] for both in step] for step in steps]) for end in (0, 1))
    return Orders(coalitions, before, after)


_said: set[int] = set()


def say_error(count: int, values: Tensor) -> None:
    """Says once per number of modalities, on the first rank, how far sampled shares may be off.

    Args:
        count: Number of modalities M.
        values: Estimates of the Shapley values, one per pair of orders, (PAIRS, N, M).
    """
    if count in _said or rank_and_world()[0] or not values.numel():
        return
    _said.add(count)
    error = share_error(values)
    each, mean = float(error.mean()), float(_of_mean(values).mean())
    note(
        f"Shapley shares of {count} modalities are sampled from {2 * len(values)} orders, not all: the standard error "
        f"of a clip's share is about {each:.3f}, of the mean over these {values.shape[1]} clips {mean:.3f}"
    )


def share_error(values: Tensor) -> Tensor:
    """Standard error of each share, (N, M), from the estimates (PAIRS, N, M): that of a value by their absolute sum."""
    total = values.mean(0).abs().sum(1, keepdim=True)
    error: Tensor = values.std(0) / len(values) ** 0.5 / torch.where(total > 0, total, 1.0)
    return error


def _of_mean(values: Tensor) -> Tensor:
    """Standard error of the mean share over clips, (M,): clips share the orders, so their errors do not average out."""
    total = values.mean(0).abs().sum(1, keepdim=True)
    shares = (values * values.mean(0).sign() / torch.where(total > 0, total, 1.0)).mean(1)
    error: Tensor = shares.std(0) / len(values) ** 0.5
    return error
