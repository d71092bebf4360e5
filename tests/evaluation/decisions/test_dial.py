"""The decision-time dial: exact on additive heads, Shapley parts elsewhere, the model itself at w = 1."""

from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amr.evaluation.decisions.dial import Dial, dial_matrix, settings
from amr.evaluation.head import coalition_outputs
from amr.evaluation.metrics import measure_encodings
from amr.model import FusionModel
from tests.evaluation.decisions.heads import clips, known


def draw(names: str, count: int = 30, classes: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(len(names))
    return {m: torch.randn(count, classes, generator=generator) + 0.3 for m in names}


def interacting(names: str) -> FusionModel:
    def logits(**e: Tensor) -> Tensor:
        first, second, *rest = e.values()
        return first * second.roll(1, 1) + first - 0.3 * second + sum(x.square() * first for x in rest)

    return known(logits, 3, False, **dict.fromkeys(names, 3))


def means(encodings: dict[str, Tensor]) -> dict[str, Tensor]:
    return {m: e.mean(0, keepdim=True) for m, e in encodings.items()}


def test_the_lines_go_through_the_model() -> None:
    two = settings(["a", "b"])
    assert [one.name for one in two] == ["a=0", *(f"a=0.{tenths}" for tenths in range(1, 10)), "a=1"]
    assert two[0].weights.tolist() == [0, 2]
    assert two[5].weights.tolist() == [1, 1]
    three = settings(["a", "b", "c"], steps=2)
    assert [one.name for one in three] == [f"{m}={r}" for m in "abc" for r in ("0", "0.333", "0.5", "1")]
    assert all(float(one.weights.sum()) == pytest.approx(3) for one in three)
    assert three[1].weights.tolist() == [1, 1, 1]
    assert three[-1].weights.tolist() == [0, 0, 3]
    assert three[6].weights.tolist() == [0.75, 1.5, 0.75]


@pytest.mark.parametrize("names", ["ab", "abc"])
@pytest.mark.parametrize("additive", [True, False])
def test_no_weight_is_the_model_to_the_bit(names: str, additive: bool) -> None:
    encodings = draw(names)
    weights = {m: 1.0 + n for n, m in enumerate(names)}
    sums = known(lambda **e: sum(weights[m] * x for m, x in e.items()), 3, True, **dict.fromkeys(names, 3))
    model = sums if additive else interacting(names)
    logits = coalition_outputs(model, encodings, means(encodings)).double()
    dial = Dial.of(model, means(encodings))
    assert dial.exact == additive
    neutral = [n for n, one in enumerate(dial.settings) if one.part == 1 / len(names)]
    assert len(neutral) == (1 if len(names) == 2 else 3)
    for position in neutral:
        assert torch.equal(dial.logits(position, logits), logits)
    labels = torch.arange(30) % 3
    rows = {row.name: row.value for row in measure_encodings(model, clips(labels, **encodings), resamples=20)}
    assert rows["dial_exact"] == additive
    for position in neutral:
        name = dial.settings[position].name
        own = dial.settings[position].modality
        assert rows[f"dial_acc@{name}"] == rows["acc"]
        assert rows[f"dial_share@{name}/{own}"] == rows[f"shapley_share_odds/{own}"]
        for m in names:
            assert rows[f"dial_missing@{name}/{m}"] == rows[f"acc_missing_mean/{m}"]


def test_an_additive_head_is_dialled_exactly() -> None:
    """Its parts, an offset each, times the weights; and the split of the log-odds, of two classes, is known."""
    encodings = draw("ab")
    parts = {"a": lambda e: 2 * e + 1, "b": lambda e: e.roll(1, 1) - 3}
    model = known(lambda a, b: parts["a"](a) + parts["b"](b), 3, a=3, b=3)
    # additive_logits of the test head takes f_m(e) + the others' offsets; give it the true parts.
    model.head.additive_logits = lambda e: {m: parts[m](x) for m, x in e.items()}  # type: ignore[method-assign, assignment]
    mean = means(encodings)
    logits = coalition_outputs(model, encodings, mean).double()
    dial = Dial.of(model, mean)
    labels = torch.arange(30) % 3
    right = dial.right(logits, labels)
    for position, one in enumerate(dial.settings):
        w_a, w_b = 2 * one.part, 2 - 2 * one.part
        expected = w_a * parts["a"](encodings["a"]) + w_b * parts["b"](encodings["b"])
        found = dial.logits(position, logits)
        torch.testing.assert_close(found[3], expected.double(), atol=1e-5, rtol=1e-5)
        without_b = w_a * parts["a"](encodings["a"]) + w_b * parts["b"](mean["b"])
        torch.testing.assert_close(found[1], without_b.double(), atol=1e-5, rtol=1e-5)
        assert torch.equal(right[position], found[3].argmax(1) == labels)


def test_a_dial_at_its_ends_is_one_modality() -> None:
    """a is right for the first half of the clips and b for the other; shares of a known split, 3 w_a : w_b."""
    labels = torch.arange(12) % 2
    code, wrong = F.one_hot(labels, 2).float() - 0.5, F.one_hot(1 - labels, 2).float() - 0.5
    half = (torch.arange(12) < 6)[:, None]
    model = known(lambda a, b: 3 * a + b, 2, True, a=2, b=2)
    data = clips(labels, a=torch.where(half, code, wrong), b=torch.where(half, wrong, code))
    rows = {row.name: row for row in measure_encodings(model, data, resamples=20)}
    for r in range(11):
        a, b = 3 * r / 10, 1 - r / 10
        assert rows[f"dial_acc@a={r / 10:g}"].value == 0.5
        assert rows[f"dial_share@a={r / 10:g}/a"].value == pytest.approx(a / (a + b))
    said = {r: rows[f"dial_missing@a={r}/b"].value for r in ("0", "1")}
    assert said == {"0": 0.5, "1": 0.5}
    strong = clips(labels, a=torch.where(half, code, wrong), b=code)  # b is right for all
    rows = {row.name: row for row in measure_encodings(model, strong, resamples=20)}
    assert [rows[f"dial_acc@a={r / 10:g}"].value for r in range(11)] == [1.0] * 3 + [0.5] * 8  # 3 w_a < w_b


def test_a_modality_that_the_head_ignores_has_no_share_at_any_weight() -> None:
    """With all weight on it nothing decides, and there is no row: rounding is no decision."""
    encodings = {m: e.double() / 3 for m, e in draw("abc").items()}  # in double precision, where sums are rounded
    model = known(lambda a, b, c: b.pow(3) - 0.1 * c.roll(1, 1) * b + 0.7, 3, a=3, b=3, c=3)
    rows = {row.name: row.value for row in measure_encodings(model, clips(torch.arange(30) % 3, **encodings))}
    assert [rows.get(f"dial_share@a={r / 10:g}/a") for r in range(11)] == [pytest.approx(0, abs=1e-9)] * 10 + [None]
    means_alone = model.head(means(encodings)).argmax()
    assert rows["dial_acc@a=1"] == float((torch.arange(30) % 3 == means_alone).double().mean())


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_other_heads_are_dialled_by_shapley_values_of_each_logit(names: str) -> None:
    """Against the mean over orders, of every coalition as a game of its own."""
    encodings = draw(names, count=5)
    model, mean = interacting(names), means(encodings)
    logits = coalition_outputs(model, encodings, mean).double()
    weights = torch.tensor([0.4, 1.7, 0.9][: len(names)]).double()
    found = torch.tensordot(dial_matrix(weights), logits, 1)

    def value(kept: tuple[int, ...]) -> Tensor:
        with torch.no_grad():
            shown = {m: e if n in kept else mean[m].expand_as(e) for n, (m, e) in enumerate(encodings.items())}
            return model.head(shown).double()  # type: ignore[no-any-return]

    for coalition in range(1 << len(names)):
        members = [m for m in range(len(names)) if coalition >> m & 1]
        orders = list(permutations(members))
        expected = value(())
        for m in members:
            gains = [value((*o[: o.index(m)], m)) - value(o[: o.index(m)]) for o in orders]
            expected = expected + weights[m] * torch.stack(gains).mean(0)
        torch.testing.assert_close(found[coalition], expected, atol=1e-5, rtol=1e-5)
