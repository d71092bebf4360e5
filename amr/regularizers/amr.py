"""Attribution regularization: the modalities' shares are driven to a chosen ratio."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import SGD, Adam, Optimizer

from amr.attribution import Score, attributed_rows, attribution_shares, normalised_ratio, shapley_shares
from amr.model import FusionModel, complete_rows
from amr.regularizers.base import Regularizer, Step
from amr.utils.checkpoints import unimodal_accuracy
from amr.utils.distributed import all_reduce_sum, mean_over_ranks
from amr.utils.errors import UserError

Level = Literal["batch", "sample"]
Attribution = Literal["shapley"]
OptimizerName = Literal["sgd", "adam", "main"]


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

    With `optimizer: main` there is no second optimizer: the penalty's gradient joins the main one, on which clipping
    and the main optimizer then act, as if weight · R had been added to the loss with encodings detached.

    Args:
        ratio: Target ratio, a positive number a modality; None for equal shares, or for `ratio_from`'s.
        weight: Factor of the penalty, >= 0; 0 switches the method off.
        lr: Learning rate of the second optimizer, multiplied by the main schedule's relative rate (`follow_schedule`).
            Without that decay the penalty, whose gradient does not shrink near its goal, tears at the classifier to the
            end.
        optimizer: `sgd`; `adam` is allowed with a warning, since its unit-size steps make the weight meaningless;
            `main` for the main one, where `lr` and `follow_schedule` mean nothing and `weight` is the strength.
        momentum: Momentum of sgd, in [0, 1).
        start_epoch: First epoch in which it acts.
        end_epoch: First epoch in which it acts no more; None for never.
        score: What is attributed: see `amr.attribution.attribution_shares`.
        level: `batch`: the mean share is to have the ratio (the paper); `sample`: every clip's.
        follow_schedule: Whether the rate follows the main schedule.
        ratio_from: In place of `ratio`, the path of a checkpoint with that modality alone, by modality: the target is
            the ratio of their best validation accuracies.
        ratio_epochs: Epochs, from `start_epoch` on, over which the target moves linearly to the ratio, a step an epoch;
            None for the ratio at once.
        ratio_start: Where it moves from, a positive number a modality; None for the shares of the first batch.
        ig_steps: Points of integrated gradients, in place of gradient⊙input: see `amr.attribution.attribution_shares`.
        attribution: `shapley`: exact Shapley values, in place of either; a modality outside the coalition has the
            batch's mean encoding: see `amr.attribution.shapley_shares`.

    Raises:
        UserError: If an argument is out of its range, or two exclude each other.
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
        ratio_from: dict[str, str] | None = None,
        ratio_epochs: int | None = None,
        ratio_start: dict[str, float] | None = None,
        ig_steps: int | None = None,
        attribution: Attribution | None = None,
    ) -> None:
        super().__init__()
        for key, value, allowed in (
            ("optimizer", optimizer, OptimizerName),
            ("score", score, Score),
            ("level", level, Level),
        ):
            if value not in get_args(allowed):
                raise UserError(f"model.amr.{key}={value!r}: allowed are {', '.join(get_args(allowed))}")
        for key, given in (("ratio", ratio), ("ratio_start", ratio_start)):
            for modality, share in (given or {}).items():
                if not (share > 0 and math.isfinite(share)):
                    raise UserError(f"model.amr.{key}.{modality}={share}: allowed are positive, finite numbers")
        if ratio is not None and ratio_from is not None:
            raise UserError("model.amr: ratio and ratio_from exclude each other; set one of them to null")
        if attribution not in (None, *get_args(Attribution)):
            raise UserError(f"model.amr.attribution={attribution!r}: allowed is shapley, or null")
        if attribution is not None and ig_steps is not None:
            raise UserError("model.amr: attribution shapley and ig_steps exclude each other; set ig_steps to null")
        if ratio_start is not None and ratio_epochs is None:
            raise UserError("model.amr.ratio_start: it needs ratio_epochs, over which to leave it")
        for key, number in (("ratio_epochs", ratio_epochs), ("ig_steps", ig_steps)):
            if number is not None and number < 1:
                raise UserError(f"model.amr.{key}={number}: allowed are integers >= 1, or null")
        if not (weight >= 0 and math.isfinite(weight)):
            raise UserError(f"model.amr.weight={weight}: allowed are finite numbers >= 0")
        if not (lr > 0 and math.isfinite(lr)):
            raise UserError(f"model.amr.lr={lr}: allowed are positive, finite numbers")
        if not 0 <= momentum < 1:
            raise UserError(f"model.amr.momentum={momentum}: allowed are values in [0, 1)")
        if momentum and optimizer == "main":
            raise UserError(
                f"model.amr.momentum={momentum}: with optimizer main, momentum is the main optimizer's; set 0"
            )
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
        self.ratio_from, self.ratio_epochs, self.ratio_start = ratio_from, ratio_epochs, ratio_start
        self.ig_steps = ig_steps
        self.attribution = attribution
        self._accuracies: dict[str, float] | None = None  # by which ratio_from sets the ratio
        self._measured: Tensor | None = None  # shares (M,), in float64, from which the target moves
        self._reported: dict[str, float] = {}
        self._optimizer: Optimizer | None = None
        self._restored: Mapping[str, Any] | None = None

    def setup(self, model: FusionModel) -> None:
        """Refuses a ratio whose names are not exactly the model's modalities, and reads `ratio_from`'s checkpoints."""
        for key, given in (
            ("ratio", self.ratio),
            ("ratio_from", self.ratio_from),
            ("ratio_start", self.ratio_start),
        ):
            if given is not None and set(given) != set(model.modalities):
                raise UserError(
                    f"model.amr.{key}: names {', '.join(map(repr, given))}; needed are exactly the model's modalities "
                    f"{', '.join(map(repr, model.modalities))}"
                )
        if self.ratio_from is not None:
            self._accuracies = {
                name: unimodal_accuracy(
                    Path(path), name, model.head.num_classes, where=f"model.amr.ratio_from.{name}: "
                )
                for name, path in self.ratio_from.items()
            }

    def active(self, epoch: int) -> bool:
        """Whether the method acts in this epoch."""
        return self.weight > 0 and self.start_epoch <= epoch and (self.end_epoch is None or epoch < self.end_epoch)

    def target(self, model: FusionModel, epoch: int, shares: Tensor) -> Tensor:
        """Normalised target ratio of an epoch, (M,), in the model's order and the shares' device and type.

        Args:
            model: The model.
            epoch: Epoch, from 0, in which the method acts.
            shares: This rank's shares, (B, M): of the first batch that has any, where the target is to move from them.
        """
        end = _normalised(self.ratio or self._accuracies, model)
        if self.ratio_epochs is None:
            return end.to(shares)
        done = min((epoch - self.start_epoch) / self.ratio_epochs, 1.0)
        if self.ratio_start is not None:
            start = _normalised(self.ratio_start, model)
        else:
            if self._measured is None:
                self._measured = _mean_share(shares)
            start = end if self._measured is None else self._measured  # without any share there is no penalty either
        target = start + done * (end - start)
        self._reported = {
            f"target/{name}": share for name, share in zip(model.modalities, target.tolist(), strict=True)
        }
        return target.to(shares)

    def on_gradients(self, steps: Sequence[Step]) -> None:
        """With `optimizer: main`, adds the penalty's gradient to the head's."""
        if self.optimizer_name != "main" or (found := self._penalty_gradient(steps)) is None:
            return
        for parameter, piece in _pieces(*found):
            if parameter.grad is not None:
                parameter.grad += piece
            elif piece.any():  # a parameter that nothing uses keeps no gradient
                parameter.grad = piece

    def after_step(self, steps: Sequence[Step]) -> None:
        """Takes one step of the second optimizer, over the head's parameters, on clean and detached encodings."""
        if self.optimizer_name == "main" or (found := self._penalty_gradient(steps)) is None:
            return
        self._step(*found, lr=self.lr * (steps[-1].lr_factor if self.follow_schedule else 1.0))

    def report(self) -> dict[str, float]:
        """The epoch's target, where it moves."""
        return self._reported

    def checkpoint_state(self) -> dict[str, object]:
        """The second optimizer's state, and the shares from which the target moves."""
        state: dict[str, object] = {"optimizer_name": self.optimizer_name}
        if self._optimizer is not None:
            state["optimizer"] = self._optimizer.state_dict()
        elif self._restored is not None:
            state["optimizer"] = dict(self._restored)
        if self._measured is not None:
            state["measured"] = self._measured
        return state

    def restore_state(self, state: Mapping[str, object]) -> None:
        """Keeps the second optimizer's state for its first step, when the parameters are where they will stay.

        Raises:
            UserError: If the state is another optimizer's.
        """
        self._restored = state.get("optimizer")  # type: ignore[assignment]
        before = state.get("optimizer_name", self.optimizer_name)
        if "optimizer_name" not in state and self._restored is not None:  # of an earlier version
            before = "adam" if "betas" in self._restored["param_groups"][0] else "sgd"
        if before != self.optimizer_name:
            raise UserError(
                f"model.amr.optimizer={self.optimizer_name}: the checkpoint's is {before}; training can resume with "
                f"{before} alone, whose state the checkpoint holds"
            )
        measured = state.get("measured")
        self._measured = measured.cpu() if isinstance(measured, Tensor) else None

    def _penalty_gradient(self, steps: Sequence[Step]) -> tuple[list[nn.Parameter], Tensor] | None:
        """The head's trained parameters and, over the global batch, the gradient (P,) of weight · R by them.

        None if nothing is to be done: out of its epochs, a frozen head, or a gradient that is not finite.
        """
        if not steps or not self.active(steps[0].epoch):
            return None
        model = steps[0].model
        parameters = [parameter for parameter in model.head_parameters() if parameter.requires_grad]
        if not parameters:
            return None
        with torch.enable_grad():
            shares = self._shares(model, [_complete(step) for step in steps])
            target = self.target(model, steps[0].epoch, shares)
            surrogate = self.weight * penalty_surrogate(shares, target, self.level)
            if surrogate.requires_grad:
                gradients = torch.autograd.grad(surrogate, parameters, materialize_grads=True)
            else:  # no clip of this rank counts; the others' still do
                gradients = tuple(torch.zeros_like(parameter) for parameter in parameters)
        gradient = all_reduce_sum(parameters_to_vector(gradients))
        if not bool(torch.isfinite(gradient).all()):
            done = "the main step goes without it" if self.optimizer_name == "main" else "no step is taken"
            warnings.warn(f"amr: the penalty's gradient is not finite; {done}", stacklevel=2)
            return None
        return parameters, gradient

    def _shares(self, model: FusionModel, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """This rank's shares (B, M), with their graph."""
        options: dict[str, Any] = {"score": self.score, "create_graph": True}
        if self.attribution == "shapley":
            whole = {name: torch.cat([batch[name] for batch in batches]).float() for name in batches[0]}
            mean = {name: mean_over_ranks(encoding)[0].unsqueeze(0) for name, encoding in whole.items()}
            return torch.cat([shapley_shares(model.head, batch, mean, **options) for batch in batches])
        options["ig_steps"] = self.ig_steps
        return torch.cat([attribution_shares(model.head, batch, **options) for batch in batches])

    def _step(self, parameters: list[nn.Parameter], gradient: Tensor, lr: float) -> None:
        """Steps down a flat gradient, and leaves the main optimizer's `.grad` as it was."""
        if self._optimizer is None:
            if self.optimizer_name == "sgd":
                self._optimizer = SGD(parameters, lr=self.lr, momentum=self.momentum)
            else:
                self._optimizer = Adam(parameters, lr=self.lr)
            if self._restored is not None:
                asked = [{k: v for k, v in group.items() if k != "params"} for group in self._optimizer.param_groups]
                self._optimizer.load_state_dict(dict(self._restored))
                for group, settings in zip(self._optimizer.param_groups, asked, strict=True):
                    group.update(settings)  # this run's, not the checkpoint's
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        kept = [parameter.grad for parameter in parameters]
        for parameter, piece in _pieces(parameters, gradient):
            parameter.grad = piece
        self._optimizer.step()
        for parameter, grad in zip(parameters, kept, strict=True):
            parameter.grad = grad


def _pieces(parameters: list[nn.Parameter], flat: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter with its part of a flat gradient."""
    pieces = [torch.empty_like(parameter) for parameter in parameters]
    vector_to_parameters(flat, pieces)
    return list(zip(parameters, pieces, strict=True))


def _normalised(ratio: Mapping[str, float] | None, model: FusionModel) -> Tensor:
    """A ratio (equal if None) in the model's order, summing to 1, (M,) in float64."""
    entries = [1.0 if ratio is None else ratio[name] for name in model.modalities]
    return normalised_ratio(torch.tensor(entries, dtype=torch.float64), len(entries))


def _mean_share(shares: Tensor) -> Tensor | None:
    """Mean over all ranks' rows with any attribution, (M,) in float64 on the CPU; None if there is no such row."""
    rows = attributed_rows(shares)
    sums = all_reduce_sum(torch.cat([shares.detach().sum(0), rows.sum().unsqueeze(0).to(shares)])).cpu().double()
    return sums[:-1] / sums[-1] if sums[-1] > 0 else None


def _complete(step: Step) -> dict[str, Tensor]:
    """Encodings of the clips that have every modality of the model."""
    rows = complete_rows(step.encodings, step.present)
    if rows is None:
        return step.encodings
    return {name: encoding[rows] for name, encoding in step.encodings.items()}
