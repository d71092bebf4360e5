"""Accuracy, mAP and further metrics of a split: torchmetrics."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAveragePrecision,
    MulticlassF1Score,
    MulticlassRecall,
    MultilabelAccuracy,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)
from torchmetrics.utilities.data import dim_zero_cat

Extra = Literal["f1", "uar", "top3", "top5", "top10"]
"""Metrics that are logged on request: F1 and recall as unweighted means over classes, and top-k accuracy."""
BIN, BINS = 1 / 32, 1024  # of a score's log-odds: from -16, below which a score is less than 1.2e-7, to 16


class Correlation(Metric):
    """Pearson's correlation of outputs and true numbers; synchronized over ranks. NaN where one of them is constant."""

    sums: Tensor
    """Σ 1, x, y, x², y² and xy, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, target: Tensor) -> None:
        """Adds clips, (B, 1) each."""
        x, y = outputs.double().flatten(), target.double().flatten()
        self.sums += torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y]).sum(1)

    def compute(self) -> Tensor:
        """The correlation, in [-1, 1]."""
        n, x, y, xx, yy, xy = self.sums
        found: Tensor = ((n * xy - x * y) / ((n * xx - x * x) * (n * yy - y * y)).clamp_min(0).sqrt()).float()
        return found


class WeightedMean(Metric):
    """Mean of scalars, each of a batch and weighted by its clips; synchronized over ranks unless told otherwise.

    torchmetrics' own looks for NaN in every update, for which the CPU must wait for the GPU.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        for name in ("total", "weight"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value: Tensor, clips: int) -> None:
        """Adds the value of a batch, a scalar without graph."""
        self.total += value * clips
        self.weight += clips

    def compute(self) -> Tensor:
        """The mean."""
        return self.total / self.weight


class BinnedPrecision(Metric):
    """mAP of scores that are rounded to 1/32 of their log-odds: it counts clips by bin, and keeps no scores.

    The exact one keeps every score of the epoch and sorts them, class by class: for VGGSound's training split 227 MB
    and a quarter of a minute per epoch. This one keeps 2,048 counts per class.

    Args:
        num_classes: Number of classes or labels C.
    """

    counts: Tensor
    """Clips with and without the class, by the bin of their score: (2 C BINS,) int64."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("counts", torch.zeros(2 * num_classes * BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, label: Tensor) -> None:
        """Adds clips: scores (B, C) in [0, 1], and class indices (B,) or labels (B, C) of 0 and 1."""
        true = F.one_hot(label, self.num_classes) if label.ndim == 1 else label
        bins = (torch.logit(scores) / BIN + BINS / 2).clamp(0, BINS - 1).nan_to_num(0).long()
        place = torch.arange(self.num_classes, device=scores.device) * (2 * BINS)
        index = place + true * BINS + bins
        self.counts.index_add_(0, index.flatten(), torch.ones_like(index).flatten())

    def compute(self) -> Tensor:
        """Unweighted mean of the average precision of the classes that any clip has; NaN if there is none."""
        without, with_class = self.counts.view(self.num_classes, 2, BINS).flip(2).double().unbind(1)
        hits, seen = with_class.cumsum(1), (with_class + without).cumsum(1)
        each = (with_class * hits / seen.clamp_min(1)).sum(1) / hits[:, -1]
        return each[hits[:, -1] > 0].mean().float()


def split_metrics(
    num_classes: int, prefix: str, extra: Sequence[Extra] = (), *, exact: bool = True
) -> MetricCollection:
    """Accuracy (fraction of clips) and mAP of a split, logged as `<prefix>acc` and `<prefix>mAP`, both in [0, 1].

    mAP is the unweighted mean over classes of the one-against-rest average precision of the softmax scores; classes
    that have no clip in the split have none and are left out.

    Args:
        num_classes: Number of classes C; updates take scores (B, C) and labels (B,).
        prefix: E.g. `val/`.
        extra: Further ones, by their names.
        exact: Whether mAP is that of the scores; otherwise that of rounded scores, see `BinnedPrecision`.
    """
    # Labels are checked in `as_batch`; torchmetrics would do so again, metric by metric.
    unchecked: dict[str, Any] = {"validate_args": False}
    metrics: dict[str, Metric] = {
        "acc": MulticlassAccuracy(num_classes, average="micro", **unchecked),
        "mAP": MeanClassPrecision(num_classes, average="macro", **unchecked) if exact else BinnedPrecision(num_classes),
    }
    for name in extra:
        if name == "f1":
            metrics[name] = MulticlassF1Score(num_classes, average="macro", **unchecked)
        elif name == "uar":
            metrics[name] = MulticlassRecall(num_classes, average="macro", **unchecked)
        else:
            k = int(name.removeprefix("top"))
            metrics[name] = MulticlassAccuracy(num_classes, average="micro", top_k=k, **unchecked)
    return MetricCollection(dict(metrics), prefix=prefix, compute_groups=False)


class MeanClassPrecision(MulticlassAveragePrecision):
    """Unweighted mean of the classes' average precision; a class that no clip has is left out without a warning."""

    def compute(self) -> Tensor:  # type: ignore[override]  # torchmetrics' own, as declared, is of its curve
        """The mean; NaN if there is no clip."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Average precision score for one or more classes was `nan`")
            mean: Tensor = super().compute()
        return mean


class MeanLabelPrecision(MultilabelAveragePrecision):
    """Unweighted mean of the labels' average precision; a label that no clip has has none, and is left out."""

    target: list[Tensor]

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average="none", validate_args=False)

    def compute(self) -> Tensor:  # type: ignore[override]  # torchmetrics' own, as declared, is of its curve
        """The mean; NaN if no clip has a label."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No positive samples")
            each: Tensor = super().compute()
        return each[(dim_zero_cat(self.target) > 0).any(0)].mean()


def label_metrics(num_labels: int, prefix: str, extra: Sequence[Extra] = (), *, exact: bool = True) -> MetricCollection:
    """The same for several labels per clip: accuracy per label at a score of one half, and mAP.

    Args:
        num_labels: Number of labels C; updates take scores (B, C) and labels (B, C) of 0 and 1, integers.
        prefix: E.g. `val/`.
        extra: `f1`, the unweighted mean over labels at a score of one half.
        exact: As in `split_metrics`.
    """
    metrics: dict[str, Metric] = {
        "acc": MultilabelAccuracy(num_labels, average="micro", validate_args=False),
        "mAP": MeanLabelPrecision(num_labels) if exact else BinnedPrecision(num_labels),
    }
    if "f1" in extra:
        metrics["f1"] = MultilabelF1Score(num_labels, average="macro", validate_args=False)
    return MetricCollection(dict(metrics), prefix=prefix, compute_groups=False)


def regression_metrics(prefix: str) -> MetricCollection:
    """Mean absolute error, in the label's unit, and Pearson's correlation; updates take outputs and labels, (B, 1)."""
    found: dict[str, Metric] = {"mae": MeanAbsoluteError(), "pearson": Correlation()}
    return MetricCollection(dict(found), prefix=prefix, compute_groups=False)
