"""Attribution regularization: the modalities' shares are driven to a chosen ratio."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, Adam, Optimizer

from amr.attribution import (
    Gradient,
    Score,
    attributed_rows,
    attribution_shares,
    change_shares,
    normalised_ratio,
    shapley_shares,
)
from amr.model import FusionModel
from amr.model.task import check_classes
from amr.regularizers.base import EpochState, Regularizer, Step
from amr.regularizers.harm import DoNoHarm
from amr.regularizers.output import Output, Push, Replacement
from amr.regularizers.penalty import Level, Measured, decision_share, mean_encodings, penalty_surrogate
from amr.regularizers.shared import EpochMeans, Window, flat_gradient, pieces, set_gradient, trained
from amr.utils.checkpoints import unimodal_accuracy
from amr.utils.distributed import all_reduce_sum, mean_over_ranks, rank_and_world
from amr.utils.errors import UserError
from amr.utils.names.ranges import Range

Attribution = Literal["gradient_input", "integrated_gradients", "shapley", "output"]
OptimizerName = Literal["sgd", "adam", "main"]
IG_STEPS = 8
GUARD_MARGIN = 0.1


class AMR(Regularizer):
    """Drives the modalities' attribution shares to a ratio, with a second optimizer (Yerramilli et al. 2024).

    After each step of the main optimizer, the shares of the same clips are recomputed from their stored encodings with
    the head alone, and one step over the head's parameters is taken down the penalty. Encoders cannot be reached. The
    batch is the whole one: all accumulated micro-batches of all ranks. Clips that lack a modality have no ratio to
    choose and are left out.

    With `optimizer: main` there is no second optimizer: the penalty's gradient joins the main one, on which clipping
    and the main optimizer then act, as if weight · R had been added to the loss with encodings detached.

    With `attribution: output` and `gradient: encoder` or `all`, weight · R is a term of the main loss and reaches the
    encoders. There is no second optimizer, and each micro-batch has a penalty of its own, over all ranks' clips.

    Args:
        ratio: Target ratio, a positive number per modality; None for equal shares, or for `ratio_from`'s.
        weight: Factor of the penalty, >= 0; 0 switches the method off.
        lr: Learning rate of the second optimizer, multiplied by the main schedule's relative rate (`follow_schedule`).
            Without that decay the penalty, whose gradient does not shrink near its goal, keeps perturbing the
            classifier until training ends.
        optimizer: `sgd`; `adam` is allowed with a warning, since its unit-size steps make the weight meaningless;
            `main` for the main one, where `lr` and `follow_schedule` mean nothing and `weight` is the strength.
        momentum: Momentum of sgd, in [0, 1).
        start_epoch: First epoch in which it acts.
        end_epoch: First epoch in which it acts no more; None for never.
        score: Score that is attributed: see `amr.attribution.attribution_shares`.
        level: `batch`: the mean share is to have the ratio (the paper); `sample`: every clip's.
        follow_schedule: Whether the rate follows the main schedule.
        ratio_from: In place of `ratio`, the path of a checkpoint with that modality alone, by modality: the target is
            the ratio of their best validation accuracies.
        ratio_epochs: Epochs, from `start_epoch` on, over which the target moves linearly to the ratio, a step an epoch;
            None for the ratio at once.
        ratio_start: Ratio from which it moves, a positive number per modality; None for the shares of the first batch.
        ig_steps: Number of points of integrated gradients, >= 1; None for 8. Given without `attribution`, it stands
            for `integrated_gradients`, with a warning.
        attribution: Basis of the shares: `gradient_input` (the paper), `integrated_gradients` from zero encodings
            (see `amr.attribution.attribution_shares` for both), `shapley`: exact Shapley values, where a modality
            outside the coalition has the batch's mean encoding (see `amr.attribution.shapley_shares`), or `output`: how
            far the prediction moves when a modality is another clip's (see `amr.attribution.output_change`). None, as
            in configurations of 0.1, for `gradient_input`.
        gradient: With `output`, what its gradient trains. `head`, the default: the head alone; `encoder`: also the
            encoder of modality m, by the encodings that replace it in D^m; `all`: everything that D depends on.
        push: With `output`, whose D moves. `both`, the default: every modality's; `weak`: it only rises, for modalities
            whose share is below their target.
        replacement: With `output`, what replaces a modality. `permutation`, the default: other clips' encodings;
            `mean`: the mean encoding of the global batch; or `zeros`.
        permutations: With `output`, number of other clips per clip, K >= 1; None for 4. A clip costs K M + 1 rows of
            the head.
        different_label: With `output`, whether only clips of another class replace a clip's encodings; a clip without
            any such clip in the global batch does not count. None for false.
        guard: Whether the method is weakened, and in the end stopped, where the main loss rises, and waits where
            nothing is learnt; see `DoNoHarm`. None for false.
        guard_margin: By which part of the lowest mean main loss before it may rise, > 0; None for 0.1.

    Raises:
        UserError: If an argument is out of its range, or two exclude each other.
    """

    name = "amr"
    title = "AMR"
    signal = "attribution share of each modality"
    ranges: ClassVar = {"lr": Range(0.02, 0.5, "log")}
    reads = Regularizer.reads | {"losses", "on_gradients"}  # unless options take the penalty there
    suffix = True
    order = 90
    min_modalities = 2
    several_labels = True

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
        gradient: Gradient | None = None,
        push: Push | None = None,
        replacement: Replacement | None = None,
        permutations: int | None = None,
        different_label: bool | None = None,
        guard: bool | None = None,
        guard_margin: float | None = None,
    ) -> None:
        super().__init__()
        if ig_steps is not None and attribution in (None, "gradient_input"):
            new = "attribution=integrated_gradients"
            old = f"ig_steps={ig_steps} without attribution"
            warnings.warn(f"model.amr: {old} is an old spelling of {new}; write that", stacklevel=2)
            attribution = "integrated_gradients"
        if attribution is None:
            attribution = "gradient_input"
        names = {"optimizer": OptimizerName, "score": Score, "level": Level, "attribution": Attribution}
        for key, choice in zip(names, (optimizer, score, level, attribution), strict=True):
            self.check_choice(key, choice, names[key])
        for key, given in (("ratio", ratio), ("ratio_start", ratio_start)):
            for modality, share in (given or {}).items():
                self.check(f"{key}.{modality}", share, share > 0, "a positive, finite number")
        for key, number in (("ratio_epochs", ratio_epochs), ("ig_steps", ig_steps)):
            self.check(key, number, number is None or number >= 1, "an integer >= 1, or null")
        self.check("weight", weight, weight >= 0, "a finite number >= 0")
        self.check("lr", lr, lr > 0, "a positive, finite number")
        self.check("momentum", momentum, 0 <= momentum < 1, "a value in [0, 1)")
        guard_margin = GUARD_MARGIN if guard_margin is None else guard_margin
        self.check("guard_margin", guard_margin, guard_margin > 0, "a positive, finite number")
        if ratio is not None and ratio_from is not None:
            raise UserError("model.amr: ratio and ratio_from exclude each other; set one of them to null")
        if attribution in ("shapley", "output") and ig_steps is not None:
            raise UserError(
                f"model.amr: attribution {attribution} and ig_steps exclude each other; set ig_steps to null"
            )
        if ratio_start is not None and ratio_epochs is None:
            raise UserError("model.amr.ratio_start: it needs ratio_epochs, over which to leave it")
        if momentum and optimizer == "main":
            raise UserError(f"model.amr.momentum={momentum}: with optimizer main, it is the main optimizer's; set 0")
        of_output = (gradient, push, replacement, permutations, bool(different_label))
        self.output = None if attribution != "output" else Output.checked(self, *of_output)
        if self.output is None:
            keys = ("gradient", "push", "replacement", "permutations", "different_label")
            for key, value in zip(keys, of_output, strict=True):
                other = f"with attribution {attribution}: it is an option of output"
                self.check(key, value, value is None or value is False, f"left out {other}")
        elif score != "probability":
            self.check("score", score, False, "probability with attribution output")
        elif self.output.in_loss:
            alone = f"with gradient {gradient}, which has no second optimizer"
            self.check("optimizer", optimizer, optimizer != "adam", f"main or left out {alone}")
            self.check("momentum", momentum, not momentum, f"0 {alone}")
        if optimizer == "adam":
            reason = "its steps have unit size whatever the weight, and can destroy the classifier"
            warnings.warn(f"model.amr.optimizer=adam: {reason}; sgd is recommended", stacklevel=2)
        self.ratio, self.weight, self.lr = ratio, weight, lr
        self.optimizer_name, self.momentum = optimizer, momentum
        self.window = Window(self.name, start_epoch, end_epoch)
        self.score, self.level, self.follow_schedule = score, level, follow_schedule
        self.ratio_from, self.ratio_epochs, self.ratio_start = ratio_from, ratio_epochs, ratio_start
        self.attribution = attribution
        self.ig_steps = (ig_steps or IG_STEPS) if attribution == "integrated_gradients" else None
        self.harm = DoNoHarm(bool(guard), guard_margin)
        self._accuracies: dict[str, float] | None = None  # by which ratio_from sets the ratio
        self._measured: Tensor | None = None  # shares (M,), in float64, from which the target moves
        self._optimizer: Optimizer | None = None
        self._restored: Mapping[str, Any] | None = None

    def setup(self, model: FusionModel) -> None:
        """Refuses a ratio whose names are not exactly the model's modalities, and reads `ratio_from`'s checkpoints."""
        for key, given in {"attribution=output": self.attribution == "output", "guard=true": self.harm.guard}.items():
            if given:
                check_classes(model, f"model.amr.{key}")
        for key in ("ratio", "ratio_from", "ratio_start"):
            self.check_names(key, getattr(self, key), model.modalities)
        if self.ratio_from is not None:
            classes, where = model.head.num_classes, "model.amr.ratio_from"
            paths = self.ratio_from.items()
            self._accuracies = {m: unimodal_accuracy(Path(path), m, classes, f"{where}.{m}=") for m, path in paths}
        self.means = EpochMeans(f"target/{name}" for name in model.modalities)
        kinds = ("share", "decision_share")
        shares = [f"{kind}/{name}" for kind in kinds for name in model.modalities]
        self.measures = EpochMeans(["penalty", "lr", *shares])

    def needs_decay(self) -> bool:
        """The penalty's gradient is sign-like: its steps get smaller by their rate alone, unless an epoch ends them."""
        return self.weight > 0 and self.window.end is None

    def active(self, epoch: int) -> bool:
        """Whether the method acts in this epoch."""
        return self.weight > 0 and epoch in self.window and self.harm.allowed > 0

    def rate(self, step: Step) -> float:
        """The rate at which the penalty acts: the second optimizer's or, where there is none, the main one's."""
        if self.optimizer_name == "main" or self._in_loss:
            return step.lr
        return self.harm.allowed * self.lr * (step.lr_factor if self.follow_schedule else 1.0)

    @property
    def strength(self) -> float:
        """The penalty's factor: the weight; where no rate is its own, `guard` lowers this."""
        joined = self.optimizer_name == "main" or self._in_loss
        return self.weight * self.harm.allowed if joined else self.weight

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
        done = min((epoch - self.window.start) / self.ratio_epochs, 1.0)
        start = None if self.ratio_start is None else _normalised(self.ratio_start, model)
        if start is None:
            start = self._measured = _mean_share(shares) if self._measured is None else self._measured
        target = end if start is None else start + done * (end - start)  # without any share there is no penalty either
        self.means.update(target)
        return target.to(shares)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """With `gradient: encoder` or `all`, weight · R of the micro-batch, over all ranks' clips."""
        if not self._in_loss or not self.active(step.epoch):
            return {}
        surrogate, measured = self._penalty([step])
        part = surrogate * rank_and_world()[1]  # DDP averages gradients over ranks
        return {"penalty": part - part.detach() + self.strength * measured.penalty}

    def on_gradients(self, steps: Sequence[Step]) -> None:
        """With `optimizer: main`, adds the penalty's gradient to the head's."""
        if self.optimizer_name != "main" or (found := self._penalty_gradient(steps)) is None:
            return
        parameters, gradient = found
        set_gradient(parameters, flat_gradient(parameters) + gradient)

    def after_step(self, steps: Sequence[Step]) -> None:
        """Takes one step of the second optimizer, over the head's parameters, on clean and detached encodings."""
        self.harm.observe(steps)
        if self.optimizer_name == "main" or (found := self._penalty_gradient(steps)) is None:
            return
        with self.harm.stepping(steps, found[0]):
            self._step(*found, lr=self.rate(steps[-1]))

    def on_epoch_start(self, state: EpochState) -> None:
        """Starts the epoch's count of steps."""
        self.harm.begin()

    def on_epoch_end(self, state: EpochState) -> None:
        """Measures what each modality knows, and perhaps weakens the method."""
        if self.weight > 0:
            epochs = state.epoch - self.window.start + 1
            self.harm.judge(state, partial(self.final_target, state.model), epochs, self.active(state.epoch))

    def report(self) -> dict[str, float]:
        """The target, what each modality knows alone, and the guard's factor."""
        return super().report() | self.harm.report()

    def checkpoint_state(self) -> dict[str, object]:
        """The second optimizer's state, and the shares from which the target moves."""
        optimizer = self._restored if self._optimizer is None else self._optimizer.state_dict()
        state = {"optimizer_name": self.optimizer_name, "optimizer": optimizer, "measured": self._measured}
        state["harm"] = self.harm.state() if self.weight > 0 else None
        return {key: value for key, value in state.items() if value is not None}

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
        self.harm.restore(state.get("harm", {}))  # type: ignore[arg-type]
        measured = state.get("measured")
        self._measured = measured.cpu() if isinstance(measured, Tensor) else None

    @property
    def _in_loss(self) -> bool:
        return self.output is not None and self.output.in_loss

    def final_target(self, model: FusionModel) -> dict[str, float]:
        """The target share of each modality, in [0, 1]; where it moves, its end."""
        return dict(zip(model.modalities, _normalised(self.ratio or self._accuracies, model).tolist(), strict=True))

    def _penalty_gradient(self, steps: Sequence[Step]) -> tuple[list[nn.Parameter], Tensor] | None:
        """The head's trained parameters and, over the global batch, the gradient (P,) of weight · R by them.

        None if nothing is to be done: the penalty is in the main loss, out of its epochs, a frozen head, no clip with
        a share, or a gradient that is not finite.
        """
        model, epoch = steps[0].model, steps[0].epoch
        if self._in_loss or not self.active(epoch) or not (parameters := trained(model.head)):
            return None
        with torch.enable_grad():
            surrogate, measured = self._penalty(steps)
            if not measured.clips > 0:
                return None
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

    def _penalty(self, steps: Sequence[Step]) -> tuple[Tensor, Measured]:
        """This rank's part of weight · R over the global batch (see `penalty_surrogate`), and the values to log."""
        model, epoch = steps[0].model, steps[0].epoch
        batches = [step.complete()[0] for step in steps]
        change = self.output.change(steps) if self.output else None
        shares = self._shares(model, batches) if change is None else change_shares(change)
        target = self.target(model, epoch, shares)
        measured = Measured.of(shares, target, self.level)
        if self.output and change is not None:
            shares = self.output.shares(change, target, measured.share if self.level == "batch" else None)
        if self.attribution == "shapley" and self.score == "probability":
            decision = measured.share
        else:
            decision = decision_share(model.head, batches, model.score_of("probability"))
        if measured.clips > 0:
            rate = shares.new_tensor([self.rate(steps[-1])])
            self.measures.update(torch.cat([measured.penalty.view(1), rate, measured.share, decision]))
        return self.strength * penalty_surrogate(shares, target, self.level), measured

    def _shares(self, model: FusionModel, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """This rank's shares (B, M), with their graph."""
        score, shares = model.score_of(self.score), partial(attribution_shares, ig_steps=self.ig_steps)
        if self.attribution == "shapley":
            shares = partial(shapley_shares, baseline=mean_encodings(batches))
        return torch.cat([shares(model.head, batch, score=score, create_graph=True) for batch in batches])

    def _step(self, parameters: list[nn.Parameter], gradient: Tensor, lr: float) -> None:
        """Steps down a flat gradient, and leaves the main optimizer's `.grad` as it was."""
        if self._optimizer is None:
            make = partial(SGD, momentum=self.momentum) if self.optimizer_name == "sgd" else Adam
            self._optimizer = make(parameters, lr=self.lr)
            if self._restored is not None:
                asked = [{k: v for k, v in group.items() if k != "params"} for group in self._optimizer.param_groups]
                self._optimizer.load_state_dict(dict(self._restored))
                for group, settings in zip(self._optimizer.param_groups, asked, strict=True):
                    group.update(settings)  # this run's, not the checkpoint's
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        kept = [parameter.grad for parameter in parameters]
        for parameter, piece in pieces(parameters, gradient):
            parameter.grad = piece
        self._optimizer.step()
        for parameter, grad in zip(parameters, kept, strict=True):
            parameter.grad = grad


def _normalised(ratio: Mapping[str, float] | None, model: FusionModel) -> Tensor:
    """A ratio (equal if None) in the model's order, summing to 1, (M,) in float64."""
    entries = [1.0 if ratio is None else ratio[name] for name in model.modalities]
    return normalised_ratio(torch.tensor(entries, dtype=torch.float64), len(entries))


def _mean_share(shares: Tensor) -> Tensor | None:
    """Mean over all ranks' rows with any attribution, (M,) in float64 on the CPU; None if there is no such row."""
    mean, count = mean_over_ranks(shares.detach()[attributed_rows(shares)])
    return mean.cpu().double() if count > 0 else None
