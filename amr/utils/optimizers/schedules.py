"""Learning rates that follow the run's length, whatever it is."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from amr.utils.errors import UserError

Interval = Literal["epoch", "step"]


class Schedule(LRScheduler):
    """A learning rate that depends on the fraction of the run that is done.

    Nothing in it counts epochs, so `--trainer.max_epochs 10` keeps the decay. Subclasses define `fraction`. Until
    `follow` gives the run's length, the rate is the configured one.

    Args:
        optimizer: Optimizer whose rates are set, each group's as a fraction of its own rate.
        warmup: Fraction of the run, in [0, 1), over which the rate first rises linearly from near 0.

    Raises:
        UserError: If `warmup` is out of its range.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.0) -> None:
        _check("warmup", warmup, 0 <= warmup < 1, "in [0, 1), a fraction of the run")
        self.warmup = warmup
        self.total: int | None = None
        super().__init__(optimizer)

    def fraction(self, done: int, total: int) -> float:
        """Fraction of the configured rate after the warm-up.

        Args:
            done: Number of epochs or steps that are done, in [0, total].
            total: Number of epochs or steps of the run, >= 1.
        """
        raise NotImplementedError

    def follow(self, total: int) -> None:
        """Sets the run's length, and the rates to what they are at this place of such a run.

        Args:
            total: Number of epochs or steps of the run, >= 1.
        """
        self.total = total
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = self.get_lr()

    def get_lr(self) -> list[float | Tensor]:
        """Rate of each group at the schedule's place; past the run's end, the rate at its end."""
        if self.total is None:
            return list(self.base_lrs)
        done, rising = min(self.last_epoch, self.total), self.warmup * self.total
        factor = (done + 1) / (math.ceil(rising) + 1) if done < rising else self.fraction(done, self.total)
        return [rate * factor for rate in self.base_lrs]


class Cosine(Schedule):
    """Half a cosine from the configured rate to a fraction of it, after a linear warm-up.

    Args:
        optimizer: Optimizer whose rates are set.
        warmup: Fraction of the run, in [0, 1), over which the rate first rises linearly from near 0.
        final: Fraction of the rate at the run's end, in [0, 1].

    Raises:
        UserError: If an argument is out of its range.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.0, final: float = 0.0) -> None:
        _check("final", final, 0 <= final <= 1, "in [0, 1], a fraction of the rate")
        self.final = final
        super().__init__(optimizer, warmup)

    def fraction(self, done: int, total: int) -> float:
        """See `Schedule`."""
        rising = self.warmup * total
        progress = (done - rising) / (total - rising)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


class Steps(Schedule):
    """The configured rate, multiplied by a factor at each of some fractions of the run.

    Args:
        optimizer: Optimizer whose rates are set.
        at: Fractions of the run, in (0, 1) and ascending; none for a constant rate after the warm-up.
        factor: Factor at each of them, in (0, 1).
        warmup: Fraction of the run, in [0, 1), over which the rate first rises linearly from near 0.

    Raises:
        UserError: If an argument is out of its range.
    """

    def __init__(
        self, optimizer: Optimizer, at: Sequence[float] = (0.7,), factor: float = 0.1, warmup: float = 0.0
    ) -> None:
        ascending = list(at) == sorted(set(at)) and all(0 < point < 1 for point in at)
        _check("at", list(at), ascending, "ascending fractions of the run, in (0, 1)")
        _check("factor", factor, 0 < factor < 1, "in (0, 1)")
        self.at, self.factor = list(at), factor
        super().__init__(optimizer, warmup)

    def fraction(self, done: int, total: int) -> float:
        """See `Schedule`."""
        return float(self.factor ** sum(done / total >= point for point in self.at))


def run_length(trainer: Any, interval: Interval) -> int:
    """Number of epochs or optimizer steps of a run.

    Args:
        trainer: Lightning's Trainer, with its data loaded.
        interval: Unit to count.

    Raises:
        UserError: If the run has no end.
    """
    if interval == "step":
        length = trainer.estimated_stepping_batches
    else:
        length = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
        if trainer.max_steps != -1:
            per_epoch = math.ceil(
                min(trainer.num_training_batches, trainer.max_steps * trainer.accumulate_grad_batches)
            )
            length = min(length, math.ceil(trainer.max_steps * trainer.accumulate_grad_batches / per_epoch))
    if not 1 <= length < math.inf:
        raise _endless(trainer)
    return int(length)


def check_end(trainer: Any) -> None:
    """Raises `UserError` if the run has no end by epochs or steps, before its data are loaded."""
    if trainer.max_epochs in (None, -1) and trainer.max_steps == -1:
        raise _endless(trainer)


def _endless(trainer: Any) -> UserError:
    ends = "must be positive" if trainer.max_epochs in (None, -1) else "cannot end a run on data without an end"
    return UserError(
        f"trainer.max_epochs={trainer.max_epochs}: {ends}, for model.lr_scheduler follows the run's length; set it or "
        "trainer.max_steps, or take one of torch's schedules"
    )


def _check(key: str, value: object, ok: bool, allowed: str) -> None:
    if not ok:
        raise UserError(f"model.lr_scheduler.{key}={value}: must be {allowed}")
