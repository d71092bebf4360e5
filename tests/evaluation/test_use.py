"""Measures of modality use on heads whose use is known: additive, deaf to one modality, and in need of both."""

import math
from collections.abc import Mapping
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassCalibrationError

from amr.attribution import absolute_shares
from amr.evaluation import use
from amr.evaluation.head import coalition_outputs
from amr.evaluation.metrics import measure_encodings
from amr.model import FusionModel
from amr.model.encoded import Encoded
from tests.evaluation.planted import Planted, Same, clips, found, planted

ZERO_MEAN = clips([0], a=[0.0], b=[0.0])
# An additive head: clips by what a and b say. "?" is a tie at zero, which is class 0.
LABELS = [1, 1, 1, 1, 0, 0, 0, 0]
A = [2.0, 2.0, 2.0, -0.5, -2.0, -2.0, 0.5, -2.0]
B = [1.0, 1.0, -1.0, 1.0, -1.0, -1.0, -1.0, 3.0]
# right with both: 1 1 1 1 | 1 1 1 0 = 7/8; with a: 1 1 1 0 | 1 1 0 1 = 6/8; with b: 1 1 0 1 | 1 1 1 0 = 6/8; none: 4/8


def additive() -> FusionModel:
    return planted(lambda e: e["a"] + e["b"], "a", "b")


def test_an_additive_head_with_a_known_split() -> None:
    values = found(measure_encodings(additive(), clips(LABELS, a=A, b=B), ZERO_MEAN))
    for kind in ("zeros", "mean"):
        assert values[f"acc_missing_{kind}/a"] == values[f"acc_missing_{kind}/b"] == 6 / 8
        assert values[f"drop_{kind}/a"] == values[f"drop_{kind}/b"] == 1 / 8
        assert values[f"worst_missing_{kind}"] == 6 / 8
    assert values["acc"] == 7 / 8
    assert values["acc_alone/a"] == values["acc_alone/b"] == 6 / 8
    assert values["utilisation/a"] == pytest.approx((7 / 8 - 6 / 8) / (7 / 8))
    assert values["shapley/a"] == values["shapley/b"] == (7 / 8 - 4 / 8) / 2
    assert values["cooperation/a+b"] == 7 / 8 - 6 / 8 - 6 / 8 + 4 / 8
    assert values["confusion/a"] == 1 / 8  # the last clip
    assert values["confusion/b"] == 0
    assert values["emap_gap"] == 0  # an additive head is its own projection, but for a constant of 0 here
    shares = [abs(a) / (abs(a) + abs(b)) for a, b in zip(A, B, strict=True)]
    assert values["share/a"] == pytest.approx(sum(shares) / 8)
    assert values["shapley_share/a"] == values["shapley_share_odds/a"] == pytest.approx(sum(shares) / 8)
    assert values["agreement_share_shapley/a"] == pytest.approx(1)
    assert values["agreement_class_share_shapley/a"] == pytest.approx(1)
    assert values["same_leader"] == 1


def test_a_constant_part_of_an_encoding_has_a_share_but_no_use() -> None:
    """b never changes: dominance and zeros see it, the mean does not, and nothing is lost without it."""
    model = planted(lambda e: e["a"] + e["b"] - 3, "a", "b")
    data = clips([1, 1, 0, 0], a=[1.0, 1.0, -1.0, -1.0], b=[3.0] * 4)
    values = found(measure_encodings(model, data))
    assert values["share/b"] == values["shapley_share_zeros/b"] == pytest.approx(3 / 4)
    assert values["share_centred/b"] == values["shapley_share/b"] == values["drop_mean/b"] == 0
    assert values["share_centred/a"] == values["shapley_share/a"] == 1
    assert values["drop_zeros/b"] == 0.5


def test_a_part_that_all_classes_get_counts_in_a_logit_and_not_in_the_log_odds() -> None:
    """b shifts all three logits alike, which decides nothing."""

    class Shifted(Planted):
        def fuse(self, encodings: Mapping[str, Tensor]) -> Tensor:
            return torch.cat([encodings["a"], encodings["b"]], dim=1)

        def classify(self, fused: Tensor) -> Tensor:
            a, b = fused[:, :1], fused[:, 1:]
            return b + torch.cat([a, -a, 0 * a - 1], dim=1)

    model = FusionModel({name: Same() for name in "ab"}, Shifted(("a", "b"), lambda e: e["a"])).eval()
    values = found(measure_encodings(model, clips([0, 0, 1, 1], a=[3.0, 1.0, -1.0, -3.0], b=[-6.0, 2.0, -2.0, 6.0])))
    assert values["shapley_share_odds/a"] == pytest.approx(1)
    assert values["shapley_share_odds/b"] == pytest.approx(0)
    assert values["drop_mean/b"] == 0
    assert values["shapley_share/a"] == pytest.approx(1 / 3)  # |a| and |b|, 3 : 6 and 1 : 2


def test_a_head_that_ignores_a_modality() -> None:
    model = planted(lambda e: e["a"] + 0 * e["b"], "a", "b")
    rows = measure_encodings(model, clips(LABELS, a=A, b=B), ZERO_MEAN)
    values = found(rows)
    for measure in ("drop_zeros", "drop_mean", "drop_other", "perceptual", "utilisation", "shapley", "share"):
        assert values[f"{measure}/b"] == 0
        assert values[f"{measure}/a"] > 0
    assert values["shapley_share/b"] == values["cooperation/a+b"] == values["emap_gap"] == 0
    assert values["acc_missing_other/b"] == values["acc"] == values["acc_alone/a"]
    assert values["acc_alone/b"] == values["acc_missing_mean/a"] == values["worst_missing_mean"] == 0.5
    assert values["same_leader"] == 1
    assert values["confusion/a"] == 0
    assert not [row for row in rows if row.measure.startswith("agreement_share")]  # a constant ranks nothing
    assert not any(math.isnan(row.value) for row in rows)


def test_a_head_that_needs_both() -> None:
    """XOR: each modality alone says nothing."""
    a, b = [1.0, 1.0, -1.0, -1.0] * 8, [1.0, -1.0, 1.0, -1.0] * 8
    labels = [int(x * y > 0) for x, y in zip(a, b, strict=True)]
    model, data = planted(lambda e: e["a"] * e["b"], "a", "b"), clips(labels, a=a, b=b)
    values = found(measure_encodings(model, data, ZERO_MEAN))
    assert values["acc"] == 1
    assert values["acc_missing_zeros/a"] == values["acc_missing_mean/b"] == 0.5
    assert values["shapley/a"] == values["shapley/b"] == 0.25
    assert values["cooperation/a+b"] == values["emap_gap"] == 0.5
    assert values["confusion/a"] == 0
    assert values["share/a"] == pytest.approx(0.5)
    many = use.shuffled(model, data.encodings, data.labels, repeats=2000).mean(0)
    torch.testing.assert_close(many, torch.full((2,), 15 / 31).double(), atol=0.01, rtol=0)  # 15 of 31 others agree


def test_another_clips_encoding_is_never_the_own_one() -> None:
    """A head that tells whether it got the encodings of one clip."""
    values = [float(i) for i in range(6)]
    model = planted(lambda e: 0.5 - (e["a"] - e["b"]).abs(), "a", "b")
    data = clips([1] * 6, a=values, b=values)
    assert use.shuffled(model, data.encodings, data.labels, repeats=300).sum() == 0
    assert found(measure_encodings(model, data))["perceptual/a"] == 1
    partners = planted(lambda e: 1.5 - (e["a"] - e["b"]).abs(), "a", "b")  # right if the partner is a neighbour
    many = use.shuffled(partners, data.encodings, data.labels, repeats=3000)
    expected = torch.tensor([1, 2, 2, 2, 2, 1]) / 5  # each other clip is as likely
    torch.testing.assert_close(many, expected[:, None].expand(6, 2).double(), atol=0.04, rtol=0)


def test_three_modalities_by_hand() -> None:
    """Shapley values from all orders; the interaction index from its definition."""
    generator = torch.Generator().manual_seed(0)
    encodings = {name: torch.randn(40, 1, generator=generator) for name in "abc"}
    labels = torch.randint(2, (40,), generator=generator)
    model = planted(lambda e: e["a"] * e["b"] + e["c"] - 0.3 * e["a"], *"abc")
    correct = use.right(coalition_outputs(model, encodings, "zeros"), labels)

    def value(kept: set[str]) -> float:
        given = {name: e if name in kept else e * 0 for name, e in encodings.items()}
        with torch.no_grad():
            return float((model.head(given).argmax(1) == labels).double().mean())

    orders = list(permutations("abc"))
    for m, name in enumerate("abc"):
        gains = [value({*o[: o.index(name)], name}) - value({*o[: o.index(name)]}) for o in orders]
        assert float(use.accuracy_shapley(correct)[:, m].mean()) == pytest.approx(sum(gains) / 6)
    together = [value({*s, "a", "b"}) - value({*s, "a"}) - value({*s, "b"}) + value({*s}) for s in ("", "c")]
    assert float(use.cooperation(correct, 0, 1).mean()) == pytest.approx(sum(together) / 2)
    means = {name: e.mean(0, keepdim=True) for name, e in encodings.items()}
    rows = found(measure_encodings(model, Encoded([f"{i:03d}" for i in range(40)], labels, encodings)))
    given = {**encodings, "b": means["b"].expand(40, 1)}
    with torch.no_grad():
        assert rows["acc_missing_mean/b"] == pytest.approx(
            float((model.head(given).argmax(1) == labels).double().mean())
        )
        alone = {name: means[name].expand(40, 1) for name in "abc"} | {"c": encodings["c"]}
        assert rows["acc_alone/c"] == pytest.approx(float((model.head(alone).argmax(1) == labels).double().mean()))
    assert rows["worst_missing_mean"] == min(rows[f"acc_missing_mean/{name}"] for name in "abc")
    assert {"cooperation/a+b", "cooperation/a+c", "cooperation/b+c"} <= rows.keys()


def test_the_mean_is_that_of_the_training_clips() -> None:
    model = additive()
    train = clips([0, 0], a=[4.0, 6.0], b=[-2.0, -4.0])  # means 5 and -3
    values = found(measure_encodings(model, clips(LABELS, a=A, b=B), train))
    assert values["acc_missing_mean/a"] == 0.5  # 5 + b > 0: always class 1
    with_a = [a - 3 > 0 for a in A]
    assert values["acc_missing_mean/b"] == sum(w == bool(y) for w, y in zip(with_a, LABELS, strict=True)) / 8


@pytest.mark.parametrize("classes", [2, 7])
def test_calibration_is_torchmetrics(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    probabilities = (torch.randn(300, classes, generator=generator) * 3).softmax(1)
    probabilities[0] = F.one_hot(torch.tensor(1), classes)  # certainty has a bin of its own
    labels = torch.randint(classes, (300,), generator=generator)
    bins, gap = use.calibration_bins(probabilities, (probabilities.argmax(1) == labels).double())
    weights = torch.stack([torch.ones(300), torch.randint(3, (300,), generator=generator)]).double()
    for row, error in zip(weights.long(), use.calibration_error(bins, gap, weights), strict=True):
        metric = MulticlassCalibrationError(classes, n_bins=15, norm="l1")
        expected = metric(probabilities.repeat_interleave(row, 0), labels.repeat_interleave(row))
        assert float(error) == pytest.approx(float(expected), abs=1e-6)


def test_the_probe_is_a_penalised_logistic_regression() -> None:
    """Against its objective, minimised here: Σ cross-entropy + ½ ‖W‖²."""
    generator = torch.Generator().manual_seed(0)
    train, labels = torch.randn(60, 4, generator=generator), torch.randint(3, (60,), generator=generator)
    train[:, 0] += labels
    test, truth = torch.randn(200, 4, generator=generator) * 2, torch.randint(3, (200,), generator=generator)
    right = use.linear_probe(train, labels, test, truth)
    mean, spread = train.double().mean(0), train.double().std(0, correction=0)
    weight, bias = nn.Parameter(torch.zeros(3, 4).double()), nn.Parameter(torch.zeros(3).double())
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        logits = ((train - mean) / spread) @ weight.T + bias
        loss = F.cross_entropy(logits, labels, reduction="sum") + weight.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        logits = ((test - mean) / spread) @ weight.T + bias
    expected = (logits.argmax(1) == truth).double()
    close = logits.topk(2).values.diff().abs()[:, 0] < 0.02  # sklearn stops earlier
    assert torch.equal(right[~close], expected[~close])
    tokens = torch.stack([train - 1, train + 1], dim=1)  # whose mean is `train`
    assert torch.equal(use.linear_probe(tokens, labels, test, truth), right)


def test_the_probe_on_what_is_and_is_not_there() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(120) % 3
    told = F.one_hot(labels, 3).float() + 0.01 * torch.randn(120, 3, generator=generator)
    assert use.linear_probe(told[:60], labels[:60], told[60:], labels[60:]).mean() == 1
    noise = torch.randn(120, 3, generator=generator)
    assert use.linear_probe(noise[:60], labels[:60], noise[60:], labels[60:]).mean() < 0.6


def test_class_means_under_weights() -> None:
    labels, values = torch.tensor([0, 0, 2, 2]), torch.tensor([1.0, 3.0, 5.0, 7.0])
    means, there = use.class_means(values, labels, torch.tensor([[1.0, 3, 0, 1], [0, 0, 2, 2]]).double(), 3)
    assert means.tolist() == [[2.5, 0, 7], [0, 0, 6]]
    assert there.tolist() == [[1, 0, 1], [0, 0, 1]]


def test_absolute_shares_of_nothing_are_zero() -> None:
    assert absolute_shares(torch.tensor([[3.0, -1.0], [0.0, 0.0]])).tolist() == [[0.75, 0.25], [0.0, 0.0]]
