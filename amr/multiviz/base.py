"""Types that all analyses share: the explained target, and its clips."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from amr.model import head_of
from amr.model.protocol import Explained
from amr.utils.errors import UserError


@dataclass(frozen=True)
class Unit:
    """A unit of the penultimate features: one column of `model.penultimate(encodings)`, from 0."""

    index: int


@dataclass(frozen=True, eq=False)
class Several:
    """Several scores of each clip, from the same rows: the logits of K classes, then the activations of V units.

    Functions that take it say so; their values have one dimension more, (N, K + V, ...).

    Args:
        classes: (N, K) int64.
        units: (N, V) int64; None for none.
    """

    classes: Tensor
    units: Tensor | None = None

    def __len__(self) -> int:
        """Number of scores of each clip, K + V."""
        return self.classes.shape[1] + (0 if self.units is None else self.units.shape[1])


Target = Literal["predicted"] | int | Tensor | Unit
"""Explained target: the logit of the predicted class, of one class for all clips or one each (N,), or a unit."""

Fixed = Tensor | Unit | Several
"""A target without names to look up: one class per clip."""


def fixed_target(model: Explained, encodings: Mapping[str, Tensor], target: Target | Several) -> Tensor | Unit:
    """The target with "predicted" looked up on these, unperturbed, encodings: perturbed clips keep it.

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, ...).
        target: Explained class or unit.

    Returns:
        Class of each clip, (N,) int64, or the unit.

    Raises:
        UserError: The class or unit does not exist, or the classes are not one per clip, or the target is `Several`.
    """
    count = len(next(iter(encodings.values())))
    device = next(iter(encodings.values())).device
    if isinstance(target, Several):
        raise UserError("target: one score at a time is explained here, got Several")
    if isinstance(target, Unit):
        _require_units(model, encodings, target.index, target.index)
        return target
    if isinstance(target, str):
        if target != "predicted":
            raise UserError(f"target={target!r}: must be 'predicted', a class, a class per clip, or a Unit")
        with torch.no_grad():
            return head_of(model)(dict(encodings)).argmax(1)
    classes = torch.as_tensor(target, device=device).long().reshape(-1)
    if len(classes) not in (1, count):
        raise UserError(f"target: {len(classes)} classes for {count} clips")
    if classes.min() < 0 or classes.max() >= model.num_classes:
        raise UserError(f"target: classes {classes.tolist()[:5]}; must be 0 to {model.num_classes - 1}")
    return classes.expand(count)


def fixed_targets(model: Explained, encodings: Mapping[str, Tensor], target: Target | Several) -> Fixed:
    """`fixed_target`, and several scores per clip as they are, checked."""
    if not isinstance(target, Several):
        return fixed_target(model, encodings, target)
    device, count = next(iter(encodings.values())).device, len(next(iter(encodings.values())))
    classes = target.classes.to(device).long()
    units = classes.new_empty(count, 0) if target.units is None else target.units.to(device).long()
    if {classes.ndim, units.ndim} != {2} or {len(classes), len(units)} != {count}:
        raise UserError(f"target: {tuple(classes.shape)} classes and {tuple(units.shape)} units for {count} clips")
    for extreme in classes.aminmax() if classes.numel() else ():
        fixed_target(model, encodings, extreme)
    if units.numel():
        _require_units(model, encodings, int(units.min()), int(units.max()))
    return Several(classes, units)


def targets_of(target: Fixed, clips: Tensor) -> Fixed:
    """The target of each of the clips (R,), positions among those that it was fixed for."""
    match target:
        case Unit():
            return target
        case Several(classes, units):
            return Several(classes[clips], None if units is None else units[clips])
    return target[clips]


def target_scores(model: Explained, encodings: Mapping[str, Tensor], target: Fixed) -> Tensor:
    """The explained number of each clip: (N,), a logit or a unit's activation; (N, T) of several. Only the head runs.

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, ...), of the clips or of perturbed copies.
        target: As `fixed_target` gives it; classes are one per row of `encodings`.
    """
    if isinstance(target, Unit):
        return model.penultimate(encodings)[:, target.index]
    if isinstance(target, Several):
        features = model.penultimate(encodings)
        scores = model.classify(features).gather(1, target.classes)
        return scores if target.units is None else torch.cat([scores, features.gather(1, target.units)], dim=1)
    logits = head_of(model)(dict(encodings))
    return logits.gather(1, target[:, None])[:, 0]


def at_least(function: str, **options: tuple[int, int]) -> None:
    """Raises UserError, naming the option, if a (value, minimum) is below its minimum."""
    for key, (value, minimum) in options.items():
        if value < minimum:
            raise UserError(f"{function}: {key}={value}: must be at least {minimum}")


def _require_units(model: Explained, encodings: Mapping[str, Tensor], least: int, most: int) -> None:
    with torch.no_grad():
        width = model.penultimate({m: e[:1] for m, e in encodings.items()}).shape[1]
    if not 0 <= least <= most < width:
        raise UserError(f"target: unit {least if least < 0 else most}; must be 0 to {width - 1}")
