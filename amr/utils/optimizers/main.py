"""How the main optimizer and its schedule are made, and where the schedule is."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from amr.utils.errors import UserError
from amr.utils.optimizers.groups import ParameterGroups
from amr.utils.optimizers.schedules import Interval, Schedule, check_end, run_length
from amr.utils.resume import recipe

ADAPTIVE = (Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop)


class MainOptimizer:
    """Makes the main optimizer and its schedule, and remembers what the rates were configured to be.

    Args:
        optimizer: Makes the optimizer of parameters or groups.
        scheduler: Makes the schedule of the optimizer; None for a constant rate.
        interval: Unit that the schedule counts.
        groups: Settings by parameter.
    """

    def __init__(
        self,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], Any] | None,
        interval: Interval,
        groups: ParameterGroups,
    ) -> None:
        self.optimizer, self.scheduler, self.interval, self.groups = optimizer, scheduler, interval, groups
        self._rates: list[float] = []
        self._leading = 0

    def make(self, parameters: Mapping[str, nn.Parameter]) -> tuple[Optimizer, Any, dict[str, Any]]:
        """A fresh optimizer, its schedule (None for a constant rate), and the `recipe` of both.

        Args:
            parameters: Trained parameters by name, see `trained_parameters`.

        Raises:
            UserError: If the optimizer or the schedule refuses its arguments.
        """
        groups = self.groups.split(parameters)
        if not groups:
            raise UserError("model.param_groups: must leave something to train; every parameter is frozen")
        try:
            optimizer = self.optimizer(groups)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"model.optimizer: {error}") from error
        self.groups.check(optimizer)
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]  # before a schedule changes them
        head = {id(parameter) for name, parameter in parameters.items() if name.startswith("model.head.")}
        having = [i for i, g in enumerate(optimizer.param_groups) if not head.isdisjoint(map(id, g["params"]))]
        self._leading = having[0] if having else 0
        try:
            scheduler = None if self.scheduler is None else self.scheduler(optimizer)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"model.lr_scheduler: {error}") from error
        return optimizer, scheduler, recipe(optimizer, scheduler, self.interval, parameters)

    def factor(self, optimizer: Optimizer) -> float:
        """Rate of the head's group over what it was configured to be: the peak of a cycle, or the rate given."""
        group = optimizer.param_groups[self._leading]
        reference = float(group.get("max_lr", self._rates[self._leading]))
        return float(group["lr"]) / reference if reference else 1.0

    def lightning(self, optimizer: Optimizer, scheduler: Any, trainer: Any) -> OptimizerLRScheduler:
        """Return value for `configure_optimizers`.

        Args:
            optimizer: The optimizer.
            scheduler: Its schedule; None for a constant rate.
            trainer: Lightning's Trainer.

        Raises:
            UserError: If the schedule follows the run's length, and the run has no end.
        """
        if scheduler is None:
            return optimizer
        if isinstance(scheduler, Schedule):
            check_end(trainer)
        schedule: Any = {
            "scheduler": scheduler,
            "interval": self.interval,
            "monitor": getattr(scheduler, "monitor", None),
        }
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def warn(self, optimizer: Optimizer, scaling: Sequence[str], needing_decay: Sequence[str]) -> None:
        """Warns of what does not go together.

        Args:
            optimizer: The optimizer.
            scaling: Names of the methods that act by the size of gradients.
            needing_decay: Names of the methods that disturb the model until the rate has decayed.
        """
        if scaling and isinstance(optimizer, ADAPTIVE):
            warnings.warn(
                f"model.optimizer={type(optimizer).__name__}: it divides gradients by their size, which undoes most of "
                f"what {', '.join(scaling)} does by scaling them; torch.optim.SGD is recommended",
                stacklevel=3,
            )
        if needing_decay and self.scheduler is None:
            warnings.warn(
                f"model.lr_scheduler=null: at a constant rate {', '.join(needing_decay)} keeps perturbing the head "
                "until training ends; set --model.lr_scheduler amr.Cosine",
                stacklevel=3,
            )


def trained_parameters(**modules: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are not frozen, by their module's name and theirs, in the modules' order."""
    return {
        f"{part}.{name}": parameter
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def follow_run(trainer: Any) -> None:
    """Gives the run's length to the schedules that follow it; the Trainer has loaded its data."""
    configs: Iterable[Any] = trainer.lr_scheduler_configs
    for config in configs:
        if isinstance(config.scheduler, Schedule):
            config.scheduler.follow(run_length(trainer, config.interval))
