"""Objectives of a classifier: a class, several labels or a number per clip, with loss, scores and metrics."""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from amr.model.task import Task as Task
from amr.model.task import check_task
from amr.utils.errors import UserError
from amr.utils.metrics import Extra as Extra
from amr.utils.metrics import label_metrics, regression_metrics, split_metrics


class Objective(nn.Module):
    """The main loss of logits (B, C), and the metrics of a split.

    With `classes`, the loss is the cross-entropy and a label is a class index. With `labels`, a clip has any number of
    labels, (B, C) of 0 and 1: the loss is the binary cross-entropy of each label, its mean over labels, and the score
    of a label is the sigmoid of its logit.

    Args:
        task: Which.
        num_classes: Number of classes or labels C.
        label_smoothing: ε in [0, 1): the target is (1 − ε) y + ε / C of classes, (1 − ε) y + ε / 2 of labels.
        class_weights: Weight of each class's clips in the loss, or of each label's term, C numbers >= 0. They are used
            as they are: with a mean of 1 over the clips the loss keeps its size. None for 1.
        metrics: Further metrics to log.

    Raises:
        UserError: If an argument is out of its range.
    """

    weights: Tensor | None

    def __init__(
        self,
        task: Task,
        num_classes: int,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        metrics: Sequence[Extra] = (),
    ) -> None:
        super().__init__()
        if num_classes < (2 if task == "classes" else 1):
            raise UserError(f"model.num_classes={num_classes}: must be at least 2; are all the data's labels the same?")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.label_smoothing={label_smoothing}: must be a value in [0, 1)")
        check_task(task)
        if task == "regression":
            given = {"label_smoothing": label_smoothing, "class_weights": class_weights, "metrics": [*metrics]}
            if num_classes != 1:
                raise UserError(f"model.num_classes={num_classes}: must be 1 with model.task=regression")
            if wrong := [key for key, value in given.items() if value]:
                raise UserError(f"model.{wrong[0]}={given[wrong[0]]}: must be left out with model.task=regression")
        for name in metrics:
            if name not in get_args(Extra) or (name.startswith("top") and int(name[3:]) >= num_classes):
                fitting = [n for n in get_args(Extra) if not n.startswith("top") or int(n[3:]) < num_classes]
                raise UserError(f"model.metrics={name}: must be of {', '.join(fitting)}, with {num_classes} classes")
            if task == "labels" and name != "f1":
                raise UserError(f"model.metrics={name}: must be of f1 with model.task=labels")
        if class_weights is not None:
            if len(class_weights) != num_classes or any(not 0 <= w < float("inf") for w in class_weights):
                raise UserError(f"model.class_weights={list(class_weights)}: must be {num_classes} finite numbers >= 0")
            if not sum(class_weights):
                raise UserError("model.class_weights: must not all be 0")
        self.task, self.num_classes, self.label_smoothing, self.extra = task, num_classes, label_smoothing, [*metrics]
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weights", weights, persistent=False)

    def loss(self, logits: Tensor, label: Tensor, reduction: str = "mean", *, smooth: bool = True) -> Tensor:
        """The loss of logits (B, C).

        Args:
            logits: Logits.
            label: Class indices (B,), labels (B, C), or numbers (B, 1).
            reduction: `mean` for a scalar, or `none` for one value per clip, (B,).
            smooth: Whether labels are smoothed and weighted, as in training.
        """
        smoothing, weights = (self.label_smoothing, self.weights) if smooth else (0.0, None)
        if self.task == "regression":
            each = (logits.float() - label).square().mean(1)
        elif self.task == "classes":
            if weights is None:
                return F.cross_entropy(logits, label, label_smoothing=smoothing, reduction=reduction)
            each = F.cross_entropy(logits, label, label_smoothing=smoothing, reduction="none") * weights[label]
        else:
            target = label.to(logits.dtype) * (1 - smoothing) + smoothing / 2
            terms = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            each = (terms if weights is None else terms * weights).mean(1)
        return each.mean() if reduction == "mean" else each

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities (B, C), or the numbers of a regression (B, 1), of at least single precision."""
        if self.task == "regression":
            return logits.float()
        return logits.float().softmax(1) if self.task == "classes" else logits.float().sigmoid()

    def metrics(self, prefix: str) -> MetricCollection:
        """The metrics of a split, updated with `scores` and labels; the training split's mAP is of rounded scores."""
        if self.task == "regression":
            return regression_metrics(prefix)
        make = split_metrics if self.task == "classes" else label_metrics
        return make(self.num_classes, prefix, self.extra, exact=prefix != "train/")

    def target(self, label: Tensor) -> Tensor:
        """Labels as the metrics take them."""
        return label if self.task == "regression" else label.long()

    @property
    def logged(self) -> list[str]:
        """Names of the metrics, without split."""
        return ["mae", "pearson"] if self.task == "regression" else ["acc", "mAP", *self.extra]
