"""Accuracy and mAP of a split: torchmetrics."""

from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAveragePrecision


def split_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Accuracy (fraction of clips) and mAP of a split, logged as `<prefix>acc` and `<prefix>mAP`, both in [0, 1].

    mAP is the unweighted mean over classes of the one-against-rest average precision of the softmax scores; classes
    that have no clip in the split have none and are left out.

    Args:
        num_classes: Number of classes C; updates take scores (B, C) and labels (B,).
        prefix: E.g. `val/`.
    """
    return MetricCollection(
        {
            "acc": MulticlassAccuracy(num_classes, average="micro"),
            "mAP": MulticlassAveragePrecision(num_classes, average="macro"),
        },
        prefix=prefix,
        compute_groups=False,
    )
