"""Attribution regularization: a second optimizer drives the modalities' shares to a chosen ratio."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import SGD, Adam, Optimizer

from amr.attribution import Score, attributed_rows, attribution_shares, normalised_ratio
from amr.distributed import all_reduce_sum
from amr.errors import UserError
from amr.model import FusionModel, complete_rows
from amr.regularizers.base import Regularizer, Step

Level = Literal["batch", "sample"]
OptimizerName = Literal["sgd", "adam"]


def penalty_surrogate(shares: Tensor, ratio: Tensor, level: Level) -> Tensor:
    """This rank's part of the penalty over the global batch, as a scalar with the right gradient.

    Summed over ranks, the gradient is that of R over the joined batch: of Σ_m |a^m − r^m| with a the mean share
    (`batch`; Yerramilli et al. 2024, eq. 1), or of the mean over clips of Σ_m |a_i^m − r^m| (`sample`). Only the mean
    needs the other ranks' clips: R's derivative by the mean is the same on every rank, and each rank applies it to its
    own rows.

    Args:
        shares: This rank's shares, (B, M), with their graph; rows of zeros do not count.
        ratio: Normalised target ratio, (M,).
        level: Whether the batch's mean or every clip is to have the ratio.

    Returns:
        Scalar; its value, too, sums over ranks to R for `sample`.
    """
    rows = attributed_rows(shares)
    sums = all_reduce_sum(torch.cat([shares.detach().sum(0), rows.sum().unsqueeze(0).to(shares)]))
    count = sums[-1].clamp_min(1)
    if level == "sample":
        return ((shares - ratio).abs().sum(1) * rows).sum() / count
    mean = (sums[:-1] / count).requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad((mean - ratio).abs().sum(), mean)
    return (slope * shares.sum(0)).sum() / count


class AMR(Regularizer):
    """Drives the modalities' attribution shares to a ratio, by an optimizer of its own (Yerramilli et al. 2024).

    After each step of the main optimizer, the shares of the same clips are recomputed from their stored encodings with
    the head alone, and one step over the head's parameters is taken down the penalty. Encoders cannot be reached. The
    batch is the whole one: all accumulated micro-batches of all ranks. Clips that lack a modality have no ratio to
    choose and are left out.

    Args:
        ratio: Target ratio, a positive number a modality; None for equal shares.
        weight: Factor of the penalty, >= 0; 0 switches the method off.
        lr: Learning rate of the second optimizer, multiplied by the main schedule's relative rate (`follow_schedule`).
            Without that decay the penalty, whose gradient does not shrink near its goal, tears at the classifier to the
            end.
        optimizer: `sgd`; `adam` is allowed with a warning, since its unit-size steps make the weight meaningless.
        momentum: Momentum of sgd, in [0, 1).
        start_epoch: First epoch in which it acts.
        end_epoch: First epoch in which it acts no more; None for never.
        score: What is attributed: see `amr.attribution.attribution_shares`.
        level: `batch`: the mean share is to have the ratio (the paper); `sample`: every clip's.
        follow_schedule: Whether the rate follows the main schedule.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "amr"
    title = "AMR"
    order = 90
    min_modalities = 2
    needs_steps = True

    def __init__(
        self,
        ratio: dict[str, float] | None = None,
        weight: float = 1.0,
        lr: float = 0.1,
        optimizer: OptimizerName = "sgd",
        momentum: float = 0.0,
        start_epoch: int = 0,
        end_epoch: int | None = None,
        score: Score = "probability",
        level: Level = "batch",
        follow_schedule: bool = True,
    ) -> None:
        super().__init__()
        for key, value, allowed in (
            ("optimizer", optimizer, OptimizerName),
            ("score", score, Score),
            ("level", level, Level),
        ):
            if value not in get_args(allowed):
                raise UserError(f"model.amr.{key}={value!r}: allowed are {', '.join(get_args(allowed))}")
        for modality, share in (ratio or {}).items():
            if not (share > 0 and math.isfinite(share)):
                raise UserError(f"model.amr.ratio.{modality}={share}: allowed are positive, finite numbers")
        if not (weight >= 0 and math.isfinite(weight)):
            raise UserError(f"model.amr.weight={weight}: allowed are finite numbers >= 0")
        if not (lr > 0 and math.isfinite(lr)):
            raise UserError(f"model.amr.lr={lr}: allowed are positive, finite numbers")
        if not 0 <= momentum < 1:
            raise UserError(f"model.amr.momentum={momentum}: allowed are values in [0, 1)")
        if start_epoch < 0 or (end_epoch is not None and end_epoch <= start_epoch):
            raise UserError(f"model.amr: start_epoch={start_epoch}, end_epoch={end_epoch}: 0 <= start < end is needed")
        if optimizer == "adam":
            warnings.warn(
                "model.amr.optimizer=adam: its steps have unit size whatever the penalty's weight, and can destroy the "
                "classifier; sgd is recommended",
                stacklevel=2,
            )
        self.ratio, self.weight, self.lr = ratio, weight, lr
        self.optimizer_name, self.momentum = optimizer, momentum
        self.start_epoch, self.end_epoch = start_epoch, end_epoch
        self.score: Score = score
        self.level: Level = level
        self.follow_schedule = follow_schedule
        self._optimizer: Optimizer | None = None
        self._restored: Mapping[str, Any] | None = None

    def setup(self, model: FusionModel) -> None:
        """Refuses a ratio whose names are not exactly the model's modalities."""
        if self.ratio is not None and set(self.ratio) != set(model.modalities):
            raise UserError(
                f"model.amr.ratio: names {', '.join(map(repr, self.ratio))}; needed are exactly the model's modalities "
                f"{', '.join(map(repr, model.modalities))}"
            )

    def active(self, epoch: int) -> bool:
        """Whether the method acts in this epoch."""
        return self.weight > 0 and self.start_epoch <= epoch and (self.end_epoch is None or epoch < self.end_epoch)

    def target(self, model: FusionModel, like: Tensor) -> Tensor:
        """Normalised target ratio, (M,), in the model's order and `like`'s device and type."""
        entries = [1.0 if self.ratio is None else self.ratio[name] for name in model.modalities]
        return normalised_ratio(torch.tensor(entries, dtype=torch.float64), len(entries)).to(like)

    def after_step(self, steps: Sequence[Step]) -> None:
        """Takes one step of the second optimizer, over the head's parameters, on clean and detached encodings."""
        if not steps or not self.active(steps[0].epoch):
            return
        model = steps[0].model
        parameters = [parameter for parameter in model.head_parameters() if parameter.requires_grad]
        if not parameters:  # a frozen head
            return
        with torch.enable_grad():
            shares = torch.cat(
                [attribution_shares(model.head, _complete(step), score=self.score, create_graph=True) for step in steps]
            )
            surrogate = self.weight * penalty_surrogate(shares, self.target(model, shares), self.level)
            if surrogate.requires_grad:
                gradients = torch.autograd.grad(surrogate, parameters, materialize_grads=True)
            else:  # no clip of this rank counts; the others' still do
                gradients = tuple(torch.zeros_like(parameter) for parameter in parameters)
        gradient = all_reduce_sum(parameters_to_vector(gradients))
        if not bool(torch.isfinite(gradient).all()):
            warnings.warn("amr: the penalty's gradient is not finite; no step is taken", stacklevel=2)
            return
        self._step(parameters, gradient, lr=self.lr * (steps[-1].lr_factor if self.follow_schedule else 1.0))

    def checkpoint_state(self) -> dict[str, object]:
        """The second optimizer's state."""
        if self._optimizer is None:
            return {} if self._restored is None else {"optimizer": dict(self._restored)}
        return {"optimizer": self._optimizer.state_dict()}

    def restore_state(self, state: Mapping[str, object]) -> None:
        """Keeps the second optimizer's state for its first step, when the parameters are where they will stay."""
        self._restored = state.get("optimizer")  # type: ignore[assignment]

    def _step(self, parameters: list[nn.Parameter], gradient: Tensor, lr: float) -> None:
        """Steps down a flat gradient, and leaves the main optimizer's `.grad` as it was."""
        if self._optimizer is None:
            if self.optimizer_name == "sgd":
                self._optimizer = SGD(parameters, lr=self.lr, momentum=self.momentum)
            else:
                self._optimizer = Adam(parameters, lr=self.lr)
            if self._restored is not None:
                self._optimizer.load_state_dict(dict(self._restored))
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        kept = [parameter.grad for parameter in parameters]
        pieces = [torch.empty_like(parameter) for parameter in parameters]
        vector_to_parameters(gradient, pieces)
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece
        self._optimizer.step()
        for parameter, grad in zip(parameters, kept, strict=True):
            parameter.grad = grad


def _complete(step: Step) -> dict[str, Tensor]:
    """Encodings of the clips that have every modality of the model."""
    rows = complete_rows(step.encodings, step.present)
    if rows is None:
        return step.encodings
    return {name: encoding[rows] for name, encoding in step.encodings.items()}
