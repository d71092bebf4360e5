"""The loss and the metrics of one class per clip and of several labels, against sklearn and by hand."""

import math
from typing import Any

import pytest
import torch
from sklearn import metrics as reference
from torch.nn import functional as F

from amr.model.objective import Objective
from amr.utils.errors import UserError

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(40, 4, generator=GENERATOR)
LABELS = (torch.rand(40, 4, generator=GENERATOR) < 0.4).float()
CLASSES = torch.arange(40) % 4


def test_the_plain_loss_of_classes_is_torchs_to_the_last_bit() -> None:
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(LOGITS, CLASSES, label_smoothing=smoothing)
        assert torch.equal(Objective("classes", 4, smoothing).loss(LOGITS, CLASSES), expected)


def test_loss_and_gradient_of_labels_by_hand() -> None:
    logits = LOGITS.clone().requires_grad_()
    weights, smoothing = [1.0, 2.0, 0.0, 0.5], 0.2
    objective = Objective("labels", 4, smoothing, weights)
    loss = objective.loss(logits, LABELS)
    loss.backward()  # type: ignore[no-untyped-call]
    total = 0.0
    for z, y in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        for a, t, w in zip(z, y, weights, strict=True):
            p, target = 1 / (1 + math.exp(-a)), t * (1 - smoothing) + smoothing / 2
            total -= w * (target * math.log(p) + (1 - target) * math.log(1 - p))
    assert float(loss.detach()) == pytest.approx(total / LABELS.numel(), rel=1e-5)
    target = LABELS * (1 - smoothing) + smoothing / 2
    expected = torch.tensor(weights) * (LOGITS.sigmoid() - target) / LABELS.numel()
    torch.testing.assert_close(logits.grad, expected)
    each = objective.loss(LOGITS, LABELS, "none")
    assert each.shape == (40,)
    torch.testing.assert_close(each.mean(), loss.detach())
    plain = F.binary_cross_entropy(LOGITS.sigmoid(), LABELS)
    torch.testing.assert_close(objective.loss(LOGITS, LABELS, smooth=False), plain)


def test_class_weights_are_those_of_the_clips() -> None:
    weights = torch.tensor([1.0, 3.0, 0.0, 0.5])
    each = -LOGITS.log_softmax(1).gather(1, CLASSES[:, None])[:, 0] * weights[CLASSES]
    objective = Objective("classes", 4, 0.0, weights.tolist())
    torch.testing.assert_close(objective.loss(LOGITS, CLASSES), each.mean())
    torch.testing.assert_close(objective.loss(LOGITS, CLASSES, "none"), each)
    halves = [objective.loss(LOGITS[rows], CLASSES[rows]) for rows in (slice(0, 20), slice(20, 40))]
    torch.testing.assert_close(sum(halves) / 2, objective.loss(LOGITS, CLASSES))  # as two ranks have it


def measured(objective: Objective, label: torch.Tensor) -> dict[str, float]:
    metrics = objective.metrics("val/")
    for rows in (slice(0, 15), slice(15, 40)):
        metrics.update(objective.scores(LOGITS[rows]), label[rows])
    return {name: float(value) for name, value in metrics.compute().items()}


def test_metrics_of_labels_are_sklearns() -> None:
    found = measured(Objective("labels", 4, metrics=["f1"]), LABELS.long())
    scores, said = LOGITS.sigmoid().numpy(), (LOGITS > 0).numpy()
    expected = {
        "val/acc": (torch.from_numpy(said) == LABELS.bool()).double().mean().item(),
        "val/mAP": reference.average_precision_score(LABELS.numpy(), scores, average="macro"),
        "val/f1": reference.f1_score(LABELS.numpy(), said, average="macro"),
    }
    assert found == pytest.approx(expected, abs=1e-5)


def test_further_metrics_of_classes_are_sklearns() -> None:
    found = measured(Objective("classes", 4, metrics=["f1", "uar", "top3"]), CLASSES)
    said, scores = LOGITS.argmax(1).numpy(), LOGITS.softmax(1).numpy()
    assert list(found) == ["val/acc", "val/f1", "val/mAP", "val/top3", "val/uar"]
    assert found["val/f1"] == pytest.approx(reference.f1_score(CLASSES.numpy(), said, average="macro"), abs=1e-5)
    assert found["val/uar"] == pytest.approx(reference.balanced_accuracy_score(CLASSES.numpy(), said), abs=1e-5)
    assert found["val/top3"] == pytest.approx(reference.top_k_accuracy_score(CLASSES.numpy(), scores, k=3), abs=1e-5)
    assert list(measured(Objective("classes", 4), CLASSES)) == ["val/acc", "val/mAP"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("class", 4), "model.task='class': must be one of classes, labels"),
        (("classes", 1), "model.num_classes=1"),
        (("classes", 4, 1.0), "model.label_smoothing=1.0"),
        (("classes", 4, 0.0, [1.0]), r"model.class_weights=\[1.0\]: must be 4 finite numbers"),
        (("classes", 2, 0.0, [1.0, -1.0]), "must be 2 finite numbers"),
        (("classes", 2, 0.0, [1.0, float("nan")]), "must be 2 finite numbers"),
        (("classes", 2, 0.0, [0.0, 0.0]), "must not all be 0"),
        (("classes", 4, 0.0, None, ["top5"]), "model.metrics=top5: must be of f1, uar, top3, with 4 classes"),
        (("classes", 4, 0.0, None, ["auc"]), "model.metrics=auc: must be of f1, uar, top3"),
        (("labels", 4, 0.0, None, ["uar"]), "model.metrics=uar: must be of f1 with model.task=labels"),
    ],
)
def test_options_that_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Objective(*arguments)
    assert "\n" not in str(error.value)
