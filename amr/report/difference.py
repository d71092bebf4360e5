"""Paired differences over seeds, with Student's t-interval. The quantile is computed here: scipy is slow to import."""

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


def t_quantile(freedom: int, probability: float = 0.95) -> float:
    """The t with P(|T| < t) = `probability` for `freedom` (whole, positive) degrees of freedom, by bisection."""
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _central(middle, freedom) < probability else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _central(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle)): the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    term = total = 0.0
    for power in range(freedom % 2, freedom - 1, 2):
        term = cosine**power if power < 2 else term * cosine**2 * (power - 1) / power
        total += term
    return (angle + sine * total) * 2 / math.pi if freedom % 2 else sine * total
