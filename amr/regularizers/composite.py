"""Several methods in one run: their order, and which exclude each other."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from amr.datamodules.selected import Copies, copies_of
from amr.fusion.base import Fusion
from amr.model import FusionModel
from amr.model.passes import Scores
from amr.model.task import WHAT, Task
from amr.regularizers.base import EpochState, Regularizer, Step
from amr.regularizers.shared import EpochMeans, trained
from amr.utils.distributed import all_reduce_sum, rank_and_world
from amr.utils.errors import UserError

Apart = dict[str, dict[str, Tensor]]
"""Gradients of objectives by encoders; see `Step.apart`."""
SINGLE = {
    "main_loss": "replace the main loss",
    "turns": "alternate the optimizer's steps",
    "select": "choose the clips of an epoch",
}
"""Hooks of which a run can have one, and what the methods do that override them."""


class Composite(nn.Module):
    """Calls each hook of every method, in ascending `order` (ties keep the given sequence).

    Args:
        methods: The run's methods; none of them is naive fusion.

    Raises:
        UserError: If two methods have one name or exclude each other.
    """

    def __init__(self, methods: Iterable[Regularizer] = ()) -> None:
        super().__init__()
        self.methods = nn.ModuleDict()
        for method in sorted(methods, key=lambda method: method.order):
            if method.name in self.methods:
                raise UserError(f"model: the method {method.name!r} is given twice")
            self.methods[method.name] = method
        for method in self:
            for other in sorted(method.conflicts & set(self.methods)):
                raise UserError(f"model.{method.name}: cannot be combined with {other!r}; set one of them to null")
        for hook, both in SINGLE.items():
            for first, second in zip(self.overriding(hook), self.overriding(hook)[1:], strict=False):
                raise UserError(
                    f"model.{second.name}: cannot be combined with {first.name!r}, since both {both}; "
                    "set one of them to null"
                )

    def __iter__(self) -> Iterator[Regularizer]:
        """The methods, in order."""
        return cast(Iterator[Regularizer], iter(self.methods.values()))

    def overriding(self, *hooks: str) -> list[Regularizer]:
        """The methods that override any of the hooks."""
        return [method for method in self if any(method.overrides(hook) for hook in hooks)]

    @property
    def name(self) -> str:
        """Name of the combination: `naive`, `amr`, `modality_dropout+amr`, ..."""
        return "+".join(self.methods) or "naive"

    @property
    def title(self) -> str:
        """The combination for people: `Naive fusion`, `Naive fusion w/ AMR`, `UMT w/ AMR`, ..."""
        titles = {suffix: [m.title or m.name for m in self if m.suffix == suffix] for suffix in (False, True)}
        return " w/ ".join([" + ".join(titles[False]) or "Naive fusion", *titles[True]])

    @property
    def scaling(self) -> list[str]:
        """Names of the methods that act by the size of gradients."""
        return [method.name for method in self if method.scales_gradients]

    @property
    def needing_decay(self) -> list[str]:
        """Names of the methods that disturb the model until the rate has decayed."""
        return [method.name for method in self if method.needs_decay()]

    @property
    def needs_steps(self) -> bool:
        """Whether detached steps must be kept until the optimizer's."""
        return bool(self.overriding("objectives", "on_gradients", "after_step"))

    def wrap_head(self, head: Fusion) -> Fusion:
        """The head after every method."""
        for method in self:
            head = method.wrap_head(head)
        return head

    def check(self, task: Task, *, weighted: bool) -> None:
        """Refuses, by name, the methods that do not go with the main loss.

        Args:
            task: Whether a clip has one class, several labels or a number.
            weighted: Whether classes have weights, which a main loss of a method's own would leave out.
        """
        for method in self:
            if method.several_labels:
                continue
            if task != "classes":
                raise UserError(
                    f"model.{method.name}: is not defined for {WHAT[task]} (model.task={task}); set it to null"
                )
            if weighted and method.overrides("main_loss"):
                raise UserError(
                    f"model.class_weights: must be null with model.{method.name}, which has a main loss of its own"
                )

    def setup(self, model: FusionModel) -> None:
        """Sets every method up; refuses, by name, those that cannot work with this model."""
        for method in self:
            if len(model.modalities) < method.min_modalities:
                raise UserError(
                    f"model.{method.name}: needs at least {method.min_modalities} modalities, "
                    f"the model has {len(model.modalities)} ({', '.join(model.modalities)}); set it to null"
                )
            method.setup(model)

    @torch.no_grad()
    def on_epoch_start(self, state: EpochState) -> None:
        """Resets the methods' means, and calls every method's hook."""
        for module in self.modules():
            if isinstance(module, EpochMeans):
                module.reset()
        for method in self:
            method.on_epoch_start(state)

    @torch.no_grad()
    def select(self, epoch: int, scores: Scores) -> Copies | None:
        """The clips of an epoch; None for every clip once.

        Raises:
            UserError: If what the method chose is not a choice of these clips.
        """
        for method in self.overriding("select"):
            chosen = method.select(epoch, scores)
            try:
                return None if chosen is None else copies_of(chosen, len(scores), scores.generator.initial_seed())
            except ValueError as error:
                raise UserError(f"model.{method.name}: select of epoch {epoch}: {error}") from error
        return None

    def turns(self, epoch: int) -> list[tuple[str, ...] | None]:
        """The turns of a batch; a single None where no method alternates."""
        turns = [tuple(turn) for method in self for turn in method.turns(epoch)]
        return [*turns] or [None]

    def on_encodings(self, encodings: dict[str, Tensor], present: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Encodings after every method."""
        for method in self:
            encodings = method.on_encodings(encodings, present)
        return encodings

    def on_fused(self, fused: Tensor) -> Tensor:
        """Penultimate features after every method."""
        for method in self:
            fused = method.on_fused(fused)
        return fused

    def train_on(self, step: Step, before: Apart) -> tuple[Tensor, dict[str, Tensor], Step]:
        """The loss of a step and its parts.

        Args:
            step: The step, with the cross-entropy as its loss.
            before: `Step.apart` of the micro-batch before, if one was accumulated; its tensors are added to.

        Returns:
            The loss; its parts without graph, as `<method>/<key>` (`main` for one that replaces the cross-entropy);
            and the step as `on_gradients` and `after_step` see it, detached.
        """
        parts: dict[str, Tensor] = {}
        for method in self.overriding("main_loss"):
            if (main := method.main_loss(step)) is not None:
                parts[f"{method.name}/main"] = main
                step = replace(step, loss=main)
        terms = {f"{method.name}/{key}": term for method in self for key, term in method.losses(step).items()}
        objectives, apart = self.objectives(step, before)
        loss = step.loss
        for term in (*terms.values(), *objectives.values()):
            loss = loss + term
        parts = {key: part.detach() for key, part in (parts | terms | objectives).items()}
        return loss, parts, replace(step.detached(), apart=apart)

    def objectives(self, step: Step, before: Apart) -> tuple[dict[str, Tensor], Apart]:
        """All objectives, as `<method>/<key>`, detached from the encoders, and their gradients for the encoders.

        Args:
            step: The step, with its graph, which is kept.
            before: The gradients of the micro-batches before.

        Returns:
            The objectives, and the sums of their gradients as in `Step.apart`.
        """
        methods = self.overriding("objectives")
        leaves = {name: e.detach().requires_grad_() for name, e in step.encodings.items()} if methods else {}
        cut = replace(step, encodings=leaves)
        terms = {f"{method.name}/{key}": term for method in methods for key, term in method.objectives(cut).items()}
        apart: Apart = {}
        for key, term in terms.items():
            slopes: Iterable[Tensor | None] = [None] * len(leaves)
            if term.requires_grad:
                with torch.autocast(term.device.type, enabled=False):
                    slopes = torch.autograd.grad(
                        term * step.loss_scale, [*leaves.values()], retain_graph=True, allow_unused=True
                    )
            apart[key] = {}
            for name, slope in zip(leaves, slopes, strict=True):
                parameters = trained(step.model.encoders[name])
                if slope is None or not parameters or not step.encodings[name].requires_grad:
                    continue
                with torch.autocast(slope.device.type, enabled=False):
                    gradients = torch.autograd.grad(
                        step.encodings[name], parameters, slope, retain_graph=True, materialize_grads=True
                    )
                flat = torch.cat([g.flatten() for g in gradients]) / (step.loss_scale * step.micro_batches)
                earlier = before.get(key, {}).get(name)
                apart[key][name] = flat if earlier is None else earlier.add_(flat)
        return terms, apart

    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Gradients after every method."""
        world = rank_and_world()[1]
        for gradients in steps[-1].apart.values() if steps else ():
            for flat in gradients.values():
                flat.copy_(all_reduce_sum(flat) / world)
        for method in self:
            method.on_gradients(steps)

    def after_step(self, steps: Sequence[Step]) -> None:
        """Every method's action after the main step."""
        for method in self:
            method.after_step(steps)

    @torch.no_grad()
    def on_epoch_end(self, state: EpochState) -> None:
        """Every method's action at the end of an epoch."""
        for method in self:
            method.on_epoch_end(state)

    def report(self) -> dict[str, float]:
        """All scalars to log, as `<method>/<key>`."""
        return {f"{method.name}/{key}": value for method in self for key, value in method.report().items()}

    def checkpoint_state(self) -> dict[str, dict[str, object]]:
        """State of the methods that have any, by name."""
        return {method.name: state for method in self if (state := method.checkpoint_state())}

    def restore_state(self, states: Mapping[str, Mapping[str, object]]) -> None:
        """Takes what `checkpoint_state` gave; methods that the checkpoint lacks start afresh."""
        for method in self:
            if method.name in states:
                method.restore_state(states[method.name])


def wrapping_methods() -> dict[str, type[Regularizer]]:
    """The built-in methods that shape the model, by name: those that override `wrap_head`."""
    kinds: list[type[Regularizer]] = []
    left = Regularizer.__subclasses__()
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if kind.__module__.startswith("amr.") and kind.overrides("wrap_head"):
            kinds.append(kind)
    return {kind.name: kind for kind in sorted(kinds, key=lambda kind: kind.name) if "name" in vars(kind)}


def wrapping_section(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How the methods that wrap the head were made, as a configuration's `model` section.

    Args:
        arguments: The classifier's, by name: methods, the list `extra`, and others.

    Returns:
        A description per name; None in place of one that a configuration cannot give.
    """
    given = {name: value for name, value in arguments.items() if isinstance(value, Regularizer)}
    section: dict[str, Any] = {name: m.description for name, m in given.items() if m.overrides("wrap_head")}
    extra = [method.description for method in arguments.get("extra") or () if method.overrides("wrap_head")]
    return section | ({"extra": extra} if extra else {})


def backward_loss(loss: Tensor, step: Step) -> Tensor:
    """The loss, of a value and a graph that the trainer's machinery needs.

    DDP waits for the gradient of every parameter, also of the encoders that do not move in a turn. And in 16-mixed the
    scaler sees the main gradients only, so a gradient apart that overflowed makes the loss NaN, which skips the step.

    Args:
        loss: The loss, with its graph.
        step: Its step.
    """
    if step.turn is not None and rank_and_world()[1] > 1:
        others = [p for name, e in step.model.encoders.items() if name not in step.turn for p in trained(e)]
        loss = loss + sum((0 * parameter.sum() for parameter in others), loss.new_zeros(()))
    flats = [flat.sum() for gradients in step.apart.values() for flat in gradients.values()]
    if flats:
        loss = loss * (1 + 0 * torch.stack(flats).sum())
    return loss
