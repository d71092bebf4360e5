"""Ranges of a method's options, over which `amr benchmark --tune` draws its trials."""

import math
from dataclasses import dataclass
from typing import Literal

Value = float | int | str | bool


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`.

    Attributes:
        low: Smallest value; with scale `epochs` a fraction of the run's epochs.
        high: Largest value, above `low`.
        scale: `linear`; `log`: equal factors are as likely; `epochs`: a whole number of epochs, linear in the fraction.
        least: Smallest number of epochs that the option allows; of scale `epochs` only.
    """

    low: float
    high: float
    scale: Literal["linear", "log", "epochs"] = "linear"
    least: int = 0

    def at(self, position: float, epochs: int) -> Value:
        """The value at a position in (0, 1), with three digits; `epochs` is the length of the run."""
        if self.scale == "log":
            exact = self.low * math.exp(position * math.log(self.high / self.low))
        else:
            exact = self.low + position * (self.high - self.low)
        if self.scale == "epochs":
            return max(self.least, round(exact * epochs))
        return float(f"{exact:.3g}")

    def __str__(self) -> str:
        end = {"linear": "", "log": ", log scale", "epochs": " of the run's epochs"}[self.scale]
        return f"{self.low:g} to {self.high:g}{end}"


@dataclass(frozen=True)
class Choices:
    """A few values, none of them likelier than another."""

    values: tuple[Value, ...]

    def at(self, position: float, epochs: int) -> Value:
        """The value at a position in (0, 1)."""
        return self.values[int(position * len(self.values))]

    def __str__(self) -> str:
        return " or ".join(map(str, self.values))


def radical_inverse(number: int, base: int) -> float:
    """The digits of a whole number from 1, mirrored at the point: van der Corput's sequence, in (0, 1).

    The first n of them are spread evenly for any n, so that more trials keep the earlier ones.
    """
    value, weight = 0.0, 1 / base
    while number:
        number, digit = divmod(number, base)
        value, weight = value + digit * weight, weight / base
    return value
