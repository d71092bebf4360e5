"""Unimodal teachers: every encoder is drawn to what its modality teaches alone."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from amr.attribution import at_least_float32
from amr.model import FusionModel, complete_masks, fusion_model
from amr.regularizers.base import Regularizer, Step
from amr.utils.errors import UserError, listed
from amr.utils.names.places import checkpoint_of
from amr.utils.names.ranges import Range


def distillation_loss(encodings: Mapping[str, Tensor], teacher_encodings: Mapping[str, Tensor]) -> Tensor:
    """Σ_m MSE(e^m, teacher's e^m), each a mean over all its elements (Du et al. 2023).

    Args:
        encodings: Encoding of each modality, (B, D_m) or (B, T, D_m).
        teacher_encodings: The teachers', of the same names and shapes; no gradient goes into them.

    Returns:
        Scalar, in float32 or better.

    Raises:
        UserError: If names or shapes differ.
    """
    if encodings.keys() != teacher_encodings.keys():
        raise UserError(f"umt: encodings of {listed(encodings)}, but teachers' of {listed(teacher_encodings)}")
    terms = []
    for name, encoding in encodings.items():
        target = teacher_encodings[name].detach()
        if encoding.shape != target.shape:
            raise UserError(
                f"umt: the encoding of {name!r} has shape {tuple(encoding.shape)}, its teacher's {tuple(target.shape)}"
            )
        terms.append((at_least_float32(encoding) - at_least_float32(target)).square().mean())
    return torch.stack(terms).sum()


def teacher_divergences(
    logits: Tensor, teacher_logits: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """KL(teacher's prediction ‖ student's) by teacher and clip, at temperature 1.

    Args:
        logits: The student's fused logits, (B, C).
        teacher_logits: Logits of each teacher, (B, C), by modality; no gradient goes into them.
        present: Boolean (B,) of the modalities that some clips lack; their teachers have nothing to say there.

    Returns:
        Divergences (M, B), in float32 or better and 0 where the clip lacks the modality, and boolean (M, B): where it
        has it.
    """
    own = at_least_float32(logits).log_softmax(1)
    masks = complete_masks(teacher_logits, present, logits)
    targets = [at_least_float32(target.detach()).log_softmax(1) for target in teacher_logits.values()]
    each = [F.kl_div(own, target, reduction="none", log_target=True).sum(1) for target in targets]
    return torch.stack(each).masked_fill(~masks, 0.0), masks


def prediction_loss(
    logits: Tensor, teacher_logits: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Mean over clips of the mean over their teachers of KL(teacher's prediction ‖ student's), at temperature 1.

    The mean over teachers, not the sum: the student that minimizes it predicts what the teachers do on average, and the
    term does not grow with their number.

    Args:
        logits: The student's fused logits, (B, C).
        teacher_logits: Logits of each teacher, (B, C), by modality; no gradient goes into them.
        present: Boolean (B,) of the modalities that some clips lack; their teachers have nothing to say there.

    Returns:
        Scalar >= 0, in float32 or better; clips without any teacher add 0 to the mean over B.
    """
    divergences, has = teacher_divergences(logits, teacher_logits, present)
    return (divergences.sum(0) / has.sum(0).clamp_min(1)).mean()


class UMT(Regularizer):
    """Distils unimodal teachers into the encoders (Du et al. 2023) and, if asked, into the fused prediction.

    Teachers are frozen and in eval mode, always: they are kept out of the module tree, where neither `.train()` nor the
    optimizer, DDP or the checkpoint finds them. They see the inputs that the student sees.

    Args:
        teachers: A run with that modality alone, its folder or a checkpoint, by modality; `~` is the home folder. In
            Python also the model itself, of which a copy teaches. A modality without a teacher is left alone.
        features_weight: Factor of `distillation_loss`, >= 0.
        predictions_weight: Factor of `prediction_loss`, >= 0.

    Raises:
        UserError: If there is no teacher or a weight is out of its range.
    """

    name = "umt"
    title = "UMT"
    signal = "distance of each encoding, or of the prediction, to that of unimodal teachers"
    ranges: ClassVar = {"features_weight": Range(0.1, 10, "log")}
    min_modalities = 2

    def __init__(self, teachers: dict[str, Any], features_weight: float = 1.0, predictions_weight: float = 0.0) -> None:
        super().__init__()
        if not teachers:
            raise UserError(
                f"model.{self.name}.teachers={{}}: must have the path of a checkpoint for at least one modality"
            )
        for key, value in (("features_weight", features_weight), ("predictions_weight", predictions_weight)):
            self.check(key, value, value >= 0, "a finite number >= 0")
        self.teachers = teachers
        self.features_weight, self.predictions_weight = features_weight, predictions_weight
        self._models: dict[str, FusionModel] = {}  # a plain dict: see the class's docstring

    def setup(self, model: FusionModel) -> None:
        """Loads the teachers, and refuses by name those that do not fit."""
        for name in self.teachers:
            if name not in model.modalities:
                raise UserError(
                    f"model.{self.name}.teachers.{name}: no such modality; must be one of {listed(model.modalities)}"
                )
        self._models = {name: self._load(name, model) for name in self.teachers}

    def losses(self, step: Step) -> dict[str, Tensor]:
        """`features` and `predictions`, those whose weight is positive."""
        terms: dict[str, Tensor] = {}
        if self.features_weight > 0 or self.predictions_weight > 0:
            encodings, logits = self.teach(step, predictions=self.predictions_weight > 0)
        if self.features_weight > 0:
            own = {name: step.encodings[name] for name in encodings}
            terms["features"] = self.features_weight * distillation_loss(own, encodings)
        if self.predictions_weight > 0:
            terms["predictions"] = self.predictions_weight * prediction_loss(step.logits, logits, step.present)
        return terms

    @torch.no_grad()
    def teach(self, step: Step, *, predictions: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Each teacher's encoding, (B, ..., D_m) and zero where the modality is absent, and if asked logits, (B, C)."""
        like = next(step.model.parameters())
        encodings, logits = {}, {}
        for name, teacher in self._models.items():
            encoded = teacher.to(like.device, like.dtype).encode(step.inputs, step.present)
            encodings[name] = encoded[name]
            if predictions:
                logits[name] = teacher.head(encoded)
        return encodings, logits

    def _load(self, name: str, model: FusionModel) -> FusionModel:
        from amr.load import load_model  # imported late, because it imports the methods

        key, given = f"model.{self.name}.teachers.{name}", self.teachers[name]
        if not isinstance(given, str | Path):
            where, teacher = key, copy.deepcopy(fusion_model(given, key))
        else:
            path = checkpoint_of(given, key)
            where = f"{key}={path}"
            try:
                teacher = load_model(path)
            except UserError as error:
                reason = str(error).removeprefix(str(path)).lstrip(": ")
                raise UserError(f"{where}: {reason}") from error
        if teacher.modalities != (name,):
            raise UserError(f"{where} is a model of {listed(teacher.modalities)}; must be one of {name!r} alone")
        if (theirs := teacher.head.num_classes) != (ours := model.head.num_classes):
            raise UserError(f"{where} has {theirs} classes; must have the data's {ours}")
        if (theirs := teacher.head.dims[name]) != (ours := model.head.dims[name]) and self.features_weight > 0:
            raise UserError(f"{where} has encodings of size {theirs}; must be the model's {ours}, or features_weight 0")
        return teacher.requires_grad_(False).eval()
