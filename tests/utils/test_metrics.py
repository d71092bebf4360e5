"""Against scikit-learn."""

from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score

from amr.utils.metrics import BinnedPrecision, label_metrics, split_metrics


def test_accuracy_and_map_equal_sklearn() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(200, 5).softmax(1), torch.randint(0, 5, (200,))
    metrics = split_metrics(5, "val/")
    for rows in torch.split(torch.arange(200), 64):
        metrics.update(scores[rows], labels[rows])
    values = metrics.compute()
    one_hot = torch.nn.functional.one_hot(labels, 5).numpy()
    assert values.keys() == {"val/acc", "val/mAP"}
    assert values["val/acc"].item() == pytest.approx(accuracy_score(labels, scores.argmax(1)))
    assert values["val/mAP"].item() == pytest.approx(average_precision_score(one_hot, scores.numpy(), average="macro"))


def test_classes_without_clips_are_left_out() -> None:
    torch.manual_seed(1)
    scores, labels = torch.randn(50, 4).softmax(1), torch.randint(0, 3, (50,))  # class 3 has none
    metrics = split_metrics(4, "test/")
    metrics.update(scores, labels)
    expected = [average_precision_score(labels == c, scores[:, c].numpy()) for c in range(3)]
    assert metrics.compute()["test/mAP"].item() == pytest.approx(sum(expected) / 3)


@pytest.mark.parametrize("task", ["classes", "labels"])
def test_the_training_map_is_that_of_rounded_scores(task: str) -> None:
    """Class 3 has no clip; certain scores, 0 and 1, are in the outer bins."""
    torch.manual_seed(2)
    logits = 3 * torch.randn(300, 4)
    logits[:2] = torch.tensor([[400.0, 0, 0, -400], [-400, 0, 400, 0]])
    scores = logits.softmax(1) if task == "classes" else logits.sigmoid()
    hard = torch.randint(0, 3, (300,))
    truth = torch.nn.functional.one_hot(hard, 4)
    labels = hard if task == "classes" else truth
    make: Any = split_metrics if task == "classes" else label_metrics
    metrics = make(4, "train/", exact=False)
    assert isinstance(metrics["mAP"], BinnedPrecision)
    for rows in torch.split(torch.arange(300), 64):
        metrics.update(scores[rows], labels[rows])
    rounded = torch.floor(torch.logit(scores).clamp(-16, 15.99) * 32)
    expected = [average_precision_score(truth[:, c], rounded[:, c].numpy()) for c in range(3)]
    assert metrics.compute()["train/mAP"].item() == pytest.approx(sum(expected) / 3)
    assert metrics["mAP"].counts.sum() == 300 * 4
    exact = [average_precision_score(truth[:, c], scores[:, c].numpy()) for c in range(3)]
    assert metrics.compute()["train/mAP"].item() == pytest.approx(sum(exact) / 3, abs=0.01)
