"""Intervals by resampling clips, and the statistics that they are taken of."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GROUPS = 32
"""Groups that a jackknife leaves out at most: more make its error no better to speak of."""
_ENTRIES = 2**22  # of a block of resamples: 32 MB

Statistic = Callable[[Tensor], Tensor]
"""Maps weights (R, N), how often each clip was drawn, to one number per row, (R,); NaN if it is not defined."""


@dataclass(frozen=True)
class Interval:
    """A number and the ends of its interval; all three NaN where the number is not defined."""

    value: float
    low: float
    high: float


class Bootstrap:
    """Percentile intervals over resamples of N clips with replacement (Efron 1979).

    Every statistic sees the same resamples, so those of differences are paired. They say how much a number would move
    with other clips of the kind; nothing of other seeds, for the model is taken as it is.

    Args:
        clips: N.
        resamples: How many.
        seed: Seed of the resamples.
        level: Part of the resamples that lies within an interval.
    """

    def __init__(self, clips: int, *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> None:
        self.clips, self.level = clips, level
        generator = torch.Generator().manual_seed(seed)
        self._counts = torch.zeros(resamples, clips, dtype=torch.int16)
        for rows in self._blocks():
            drawn = torch.randint(clips, rows.shape, generator=generator)
            rows.scatter_add_(1, drawn, torch.ones_like(rows))

    def __call__(self, statistic: Statistic) -> Interval:
        """The statistic of the clips as they are, and its interval over the resamples in which it is defined."""
        return self.each(lambda weights: statistic(weights)[:, None])[0]

    def each(self, statistics: Statistic) -> list[Interval]:
        """The same of K statistics that are computed together, (R, K)."""
        values, drawn = self.draws(statistics)
        tail = (1 - self.level) / 2
        low, high = (torch.nanquantile(drawn, q, dim=0) for q in (tail, 1 - tail))
        low, high = (torch.where(values.isnan(), torch.nan, end) for end in (low, high))
        return [Interval(*ends) for ends in zip(values.tolist(), low.tolist(), high.tolist(), strict=True)]

    def draws(self, statistics: Statistic) -> tuple[Tensor, Tensor]:
        """K statistics (R, K) of the clips as they are, (K,), and of each resample, (resamples, K)."""
        values = statistics(torch.ones(1, self.clips, dtype=torch.float64))[0]
        return values, torch.cat([statistics(block.double()) for block in self._blocks()])

    def _blocks(self) -> list[Tensor]:
        """Views of the counts, (r, N) each."""
        size = max(1, _ENTRIES // self.clips)
        return [self._counts[start : start + size] for start in range(0, len(self._counts), size)]

    def means(self, values: Tensor, among: Tensor | None = None) -> list[Interval]:
        """Means of the columns of (N, K), over the clips where `among`, boolean (N,), is true."""
        return self.each(lambda weights: weighted_means(values, weights, among))

    def mean(self, values: Tensor, among: Tensor | None = None) -> Interval:
        """Mean of values (N,)."""
        return self.means(values[:, None], among)[0]


def weighted_means(values: Tensor, weights: Tensor, among: Tensor | None = None) -> Tensor:
    """Means (R, K) of the columns of values (N, K) under weights (R, N), over the clips of `among`; NaN without any."""
    if among is not None:
        weights, values = weights[:, among], values[among]
    return weights @ values.double() / weights.sum(1, keepdim=True)


def left_out(count: int, device: torch.device | str = "cpu") -> Tensor:
    """Which of `count` draws stay when each of min(count, `GROUPS`) groups is left out in turn, boolean (G, count)."""
    groups = min(count, GROUPS)
    return torch.arange(count, device=device) % groups != torch.arange(groups, device=device)[:, None]


def jackknife_error(values: Tensor) -> Tensor:
    """Standard error (...) of a statistic from its values (G, ...) without each of G groups (Tukey 1958).

    √((G − 1) / G · Σ_g (θ_g − θ̄)²), with G − 1 degrees of freedom. It holds for smooth functions of means; of the mean
    of G draws it is s / √G.
    """
    groups = len(values)
    return ((groups - 1) / groups * (values - values.mean(0)).square().sum(0)).sqrt()


def ranks(values: Tensor, weights: Tensor) -> Tensor:
    """Ranks of K values of which each is there `weights` times; equal values share the mean of their ranks.

    Args:
        values: (R, K), or (1, K) for the same in every row.
        weights: (R, K), at least 0.

    Returns:
        (R, K), from 1.
    """
    order = values.argsort(1)
    ordered = values.gather(1, order)
    group = torch.nn.functional.pad((ordered[:, 1:] != ordered[:, :-1]).long().cumsum(1), (1, 0))
    order, group = order.expand_as(weights), group.expand_as(weights)
    sizes = torch.zeros_like(weights).scatter_add_(1, group, weights.gather(1, order))
    middle = sizes.cumsum(1) - sizes / 2 + 0.5
    return torch.empty_like(weights).scatter_(1, order, middle.gather(1, group))


def spearman(first: Tensor, second: Tensor, weights: Tensor | None = None) -> Tensor:
    """Spearman's rank correlation of values of which each is there `weights` times.

    Args:
        first: (R, K), or (1, K) for the same in every row.
        second: The same.
        weights: (R, K), at least 0; None: each is there once.

    Returns:
        (R,) in [-1, 1]; NaN where fewer than two values differ.
    """
    if weights is None:
        weights = torch.ones(first.shape, dtype=torch.float64, device=first.device)
    x, y = ranks(first.double(), weights), ranks(second.double(), weights)
    total = weights.sum(1, keepdim=True)
    x, y = (rank - (weights * rank).sum(1, keepdim=True) / total for rank in (x, y))
    spread = ((weights * x * x).sum(1) * (weights * y * y).sum(1)).sqrt()
    # What is left of equal ranks is rounding: ranks are multiples of a half.
    return torch.where(spread > 1e-6, (weights * x * y).sum(1) / spread.clamp_min(1e-12), torch.nan)
