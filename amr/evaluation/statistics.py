"""Means of few numbers with their intervals. Nothing here imports torch, and scipy is imported to compute only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """Mean of `n` paired differences and half the width of its 95 % interval, both fractions."""

    mean: float
    half: float
    n: int

    @classmethod
    def of(cls, differences: Sequence[float]) -> Difference | None:
        """The t-interval with n - 1 degrees of freedom; None for fewer than two differences, or one not finite."""
        n = len(differences)
        if n < 2 or not all(map(math.isfinite, differences)):
            return None
        half = t_quantile(n - 1) * statistics.stdev(differences) / math.sqrt(n)
        return cls(statistics.fmean(differences), half, n)

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half

    def __str__(self) -> str:
        mean, low, high = (round(100 * value, 1) + 0.0 for value in (self.mean, self.low, self.high))  # no "-0.0"
        return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % t-interval of the mean of independent values; infinite for one."""
    found = Difference.of(values)
    return (-math.inf, math.inf) if found is None else (found.low, found.high)


def t_quantile(freedom: int, probability: float = 0.95) -> float:
    """The t with P(|T| < t) = `probability`, for T of Student's distribution with `freedom` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + probability) / 2))


def wilson(rate: float, count: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927).

    Args:
        rate: The share, 0 to 1.
        count: Out of how many, at least 1.
    """
    from scipy.special import ndtri

    z = float(ndtri(0.975))
    middle = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)
