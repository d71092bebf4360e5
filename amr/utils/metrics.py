"""Accuracy, mAP and further metrics of a split: torchmetrics."""

import warnings
from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torchmetrics import Metric, MetricCollection
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


def split_metrics(num_classes: int, prefix: str, extra: Sequence[Extra] = ()) -> MetricCollection:
    """Accuracy (fraction of clips) and mAP of a split, logged as `<prefix>acc` and `<prefix>mAP`, both in [0, 1].

    mAP is the unweighted mean over classes of the one-against-rest average precision of the softmax scores; classes
    that have no clip in the split have none and are left out.

    Args:
        num_classes: Number of classes C; updates take scores (B, C) and labels (B,).
        prefix: E.g. `val/`.
        extra: Further ones, by their names.
    """
    metrics: dict[str, Metric] = {
        "acc": MulticlassAccuracy(num_classes, average="micro"),
        "mAP": MulticlassAveragePrecision(num_classes, average="macro"),
    }
    for name in extra:
        if name == "f1":
            metrics[name] = MulticlassF1Score(num_classes, average="macro")
        elif name == "uar":
            metrics[name] = MulticlassRecall(num_classes, average="macro")
        else:
            metrics[name] = MulticlassAccuracy(num_classes, average="micro", top_k=int(name.removeprefix("top")))
    return MetricCollection(dict(metrics), prefix=prefix, compute_groups=False)


class MeanLabelPrecision(MultilabelAveragePrecision):
    """Unweighted mean of the labels' average precision; a label that no clip has has none, and is left out."""

    target: list[Tensor]

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average="none")

    def compute(self) -> Tensor:  # type: ignore[override]  # torchmetrics' own, as declared, is of its curve
        """The mean; NaN if no clip has a label."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No positive samples")
            each: Tensor = super().compute()
        return each[(dim_zero_cat(self.target) > 0).any(0)].mean()


def label_metrics(num_labels: int, prefix: str, extra: Sequence[Extra] = ()) -> MetricCollection:
    """The same for several labels per clip: accuracy per label at a score of one half, and mAP.

    Args:
        num_labels: Number of labels C; updates take scores (B, C) and labels (B, C) of 0 and 1, integers.
        prefix: E.g. `val/`.
        extra: `f1`, the unweighted mean over labels at a score of one half.
    """
    metrics: dict[str, Metric] = {
        "acc": MultilabelAccuracy(num_labels, average="micro"),
        "mAP": MeanLabelPrecision(num_labels),
    }
    if "f1" in extra:
        metrics["f1"] = MultilabelF1Score(num_labels, average="macro")
    return MetricCollection(dict(metrics), prefix=prefix, compute_groups=False)
