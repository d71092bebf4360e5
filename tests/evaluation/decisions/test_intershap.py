"""InterSHAP: all orders of three modalities, additive and XOR heads, what a mean over clips does."""

import math
from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor

from amr.evaluation.decisions.intershap import (
    global_intershap,
    interaction_matrix,
    local_intershap,
    predicted_scores,
)
from amr.evaluation.head import coalition_outputs
from amr.evaluation.metrics import measure_encodings
from tests.evaluation.planted import clips, found, planted


def shapley(players: tuple[frozenset[int], ...], value: Callable[[frozenset[int]], float], player: int) -> float:
    """Mean gain of a player over all orders; a player is a set of modalities that come together."""
    gains = []
    for order in permutations(range(len(players))):
        before: frozenset[int] = frozenset().union(*(players[p] for p in order[: order.index(player)]))
        gains.append(value(before | players[player]) - value(before))
    return sum(gains) / len(gains)


def test_three_modalities_from_all_orders() -> None:
    """The interaction of two is what they bring as one player less what each brings without the other."""
    scores = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).double()
    matrix = interaction_matrix(scores)
    for clip in range(5):
        value = lambda kept, clip=clip: float(scores[sum(1 << m for m in kept), clip])  # noqa: E731
        single = [frozenset([m]) for m in range(3)]
        expected = torch.zeros(3, 3).double()
        for i in range(3):
            for j in range(3):
                if i != j:
                    (k,) = {0, 1, 2} - {i, j}
                    joined = shapley((frozenset([i, j]), single[k]), value, 0)
                    apart = shapley((single[i], single[k]), value, 0) + shapley((single[j], single[k]), value, 0)
                    expected[i, j] = (joined - apart) / 2
        for i in range(3):
            expected[i, i] = shapley(tuple(single), value, i) - expected[i].sum()
        torch.testing.assert_close(matrix[clip], expected)
        sizes = expected.abs()
        ratio = 1 - float(sizes.diagonal().sum() / sizes.sum())
        assert float(local_intershap(matrix)[clip]) == pytest.approx(ratio)
    torch.testing.assert_close(matrix.sum((1, 2)), scores[-1] - scores[0])
    assert bool(((local_intershap(matrix) >= 0) & (local_intershap(matrix) <= 1)).all())


def test_two_modalities_by_hand() -> None:
    """v = 0, 3, 1, 8: 4 of 8 is interaction, half of it each one's."""
    matrix = interaction_matrix(torch.tensor([[0.0], [3.0], [1.0], [8.0]]))
    assert matrix[0].tolist() == [[3, 2], [2, 1]]
    assert local_intershap(matrix).tolist() == [0.5]


def test_the_mean_comes_before_the_size() -> None:
    """Interactions of opposite signs cancel globally, and not clip by clip; resamples weigh clips."""
    scores = torch.tensor([[0.0, 0], [1, 1], [1, 1], [4, 0]])  # interaction 2 and −2, main effects 1
    matrix = interaction_matrix(scores)
    assert local_intershap(matrix).tolist() == [0.5, 0.5]
    assert global_intershap(matrix).tolist() == [0]
    weights = torch.tensor([[1.0, 1], [2, 0], [3, 1]])
    assert global_intershap(matrix, weights).tolist() == pytest.approx([0, 0.5, 1 / 3])


def test_scale_order_and_an_offset_change_nothing() -> None:
    scores = torch.randn(8, 9, generator=torch.Generator().manual_seed(1)).double()
    expected = local_intershap(interaction_matrix(scores))
    torch.testing.assert_close(local_intershap(interaction_matrix(-3 * scores + 2)), expected)
    swapped = scores[[0, 2, 1, 3, 4, 6, 5, 7]]  # the first two modalities
    torch.testing.assert_close(local_intershap(interaction_matrix(swapped)), expected)
    torch.testing.assert_close(
        global_intershap(interaction_matrix(swapped)), global_intershap(interaction_matrix(scores))
    )
    idle = torch.cat([scores[:4], scores[:4]])  # the third changes nothing
    torch.testing.assert_close(
        local_intershap(interaction_matrix(idle)), local_intershap(interaction_matrix(scores[:4]))
    )


def test_a_clip_on_which_nothing_changes_has_no_value() -> None:
    scores = torch.tensor([[2.0, 0], [2, 1], [2, 0], [2, 1]])
    values = local_intershap(interaction_matrix(scores))
    assert values[0].isnan()
    assert values[1] == 0
    assert local_intershap(interaction_matrix(scores + torch.tensor([1e-7]) * torch.arange(4)[:, None]))[0].isnan()


A, B = [1.0, 1, -1, -1] * 3, [1.0, -1, 1, -1] * 3
XOR = [int(a * b > 0) for a, b in zip(A, B, strict=True)]


@pytest.mark.parametrize(
    ("odds", "expected"),
    [
        (lambda e: e["a"] * e["b"], 1.0),
        (lambda e: e["a"] + 0.3 * e["b"] + 0.1, 0.0),
        (lambda e: e["a"] + 0 * e["b"], 0.0),
        (lambda e: e["a"] + e["a"] * e["b"], None),
    ],
    ids=["xor", "additive", "deaf", "mixed"],
)
def test_rows_of_planted_heads(odds: Callable[[dict[str, Tensor]], Tensor], expected: float | None) -> None:
    model, data = planted(odds, "a", "b"), clips(XOR, a=A, b=B)
    rows = {row.name: row for row in measure_encodings(model, data, resamples=40)}
    row = rows["intershap"]
    assert row.low <= row.value <= row.high
    if expected is not None:
        assert row.value == rows["intershap_local"].value == pytest.approx(expected, abs=1e-6)
    means = {m: e.mean(0, keepdim=True) for m, e in data.encodings.items()}
    logits = coalition_outputs(model, data.encodings, means).double()
    matrix = interaction_matrix(predicted_scores(logits))
    assert row.value == pytest.approx(float(global_intershap(matrix)))
    values = found(list(rows.values()))
    assert values["interaction/a+b"] == pytest.approx(float((matrix[:, 0, 1] + matrix[:, 1, 0]).mean()))
    assert values["main_effect/a"] == pytest.approx(float(matrix[:, 0, 0].mean()))
    probability = logits.softmax(-1)
    own = torch.stack([probability[s, torch.arange(12), logits[-1].argmax(1)] for s in range(4)])
    torch.testing.assert_close(predicted_scores(logits, None), own)
    both = abs(float((own[3] - own[1] - own[2] + own[0]).mean()))
    alone = sum(abs(float((own[s] - own[0]).mean())) for s in (1, 2))  # M = 2: the main effect is v(m) − v(none)
    assert values["intershap_probability"] == pytest.approx(both / (both + alone), abs=1e-9)


def test_the_only_modality_has_no_rows() -> None:
    rows = measure_encodings(planted(lambda e: e["a"], "a"), clips([0, 1], a=[-1.0, 1.0]), resamples=10)
    assert not [row for row in rows if "intershap" in row.measure]
    assert math.isnan(float(global_intershap(interaction_matrix(torch.zeros(4, 3)))))
