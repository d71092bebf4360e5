"""Learning rates that follow the length of the run, whatever it is."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from amr.utils.errors import UserError

Shape = Literal["cosine", "linear", "steps", "constant"]


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a fraction of the configured one, by the fraction of the run that is done.

    Nothing in it counts epochs, so `--trainer.max_epochs 10` keeps the decay.

    Args:
        shape: `cosine`: half a cosine from 1 to `final`. `linear`: a line from 1 to `final`. `steps`: times `factor` at
            each of `at`. `constant`: 1.
        warmup: Fraction of the run, in [0, 1), over which the rate first rises linearly from 0.
        final: Fraction of the rate at the end, in [0, 1], of `cosine` and `linear`.
        at: Fractions of the run, in (0, 1) and ascending, of `steps`.
        factor: Factor at each of them, in (0, 1).

    Raises:
        UserError: A value is out of its range.
    """

    shape: Shape = "cosine"
    warmup: float = 0.0
    final: float = 0.0
    at: Sequence[float] = (0.7,)
    factor: float = 0.1

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            raise UserError(f"model.schedule.shape={self.shape}: must be one of {', '.join(get_args(Shape))}")
        if not 0 <= self.warmup < 1:
            raise UserError(f"model.schedule.warmup={self.warmup}: must be in [0, 1), a fraction of the run")
        if not 0 <= self.final <= 1:
            raise UserError(f"model.schedule.final={self.final}: must be in [0, 1], a fraction of the rate")
        if not 0 < self.factor < 1:
            raise UserError(f"model.schedule.factor={self.factor}: must be in (0, 1)")
        if list(self.at) != sorted(set(self.at)) or not all(0 < point < 1 for point in self.at):
            raise UserError(f"model.schedule.at={list(self.at)}: must be ascending fractions of the run, in (0, 1)")

    def rate(self, done: int, total: int) -> float:
        """Fraction of the configured rate.

        Args:
            done: Epochs, or steps, that are over.
            total: Epochs, or steps, of the run, >= 1.
        """
        rising = self.warmup * total
        if done < rising:
            return (done + 1) / (math.ceil(rising) + 1)
        progress = min(max((done - rising) / (total - rising), 0.0), 1.0)
        match self.shape:
            case "cosine":
                return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2
            case "linear":
                return self.final + (1 - self.final) * (1 - progress)
            case "steps":
                return float(self.factor ** bisect_right(self.at, min(done / total, 1.0)))
            case "constant":
                return 1.0
