"""Shapley values from sampled orders, and from all coalitions."""

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from amr.attribution import orders, shapley_shares, shapley_values


def by_orders(scores: Tensor) -> Tensor:
    """Mean over all orders of what each modality adds, (N, M)."""
    count = int(math.log2(len(scores)))
    total = torch.zeros(count, scores.shape[1], dtype=scores.dtype)
    for order in permutations(range(count)):
        joined = 0
        for m in order:
            total[m] += scores[joined | 1 << m] - scores[joined]
            joined |= 1 << m
    return (total / math.factorial(count)).T


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shapley_values_are_means_over_orders(count: int) -> None:
    scores = torch.randn(1 << count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    torch.testing.assert_close(shapley_values(scores), by_orders(scores))


def test_a_modality_that_adds_nothing_has_a_value_of_exactly_zero() -> None:
    scores = torch.randn(8, 5).repeat_interleave(2, 0)  # modality 0 changes nothing
    assert torch.equal(shapley_values(scores)[:, 0], torch.zeros(5))


def head(e: dict[str, Tensor]) -> Tensor:
    """Two classes; modalities interact, and the last counts for nothing."""
    x = torch.stack([*e.values()])[:-1]
    first = torch.stack([(k + 1) * row.sum(1) for k, row in enumerate(x)]).sum(0) + 0.1 * (x[0] * x[1]).sum(1)
    return torch.stack([first, -first], 1)


def test_many_modalities_are_sampled_and_the_error_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Against all 2^8 coalitions; the rows of the head are counted."""
    orders._said.clear()
    generator = torch.Generator().manual_seed(0)
    encodings = {f"m{k}": torch.randn(16, 3, dtype=torch.float64, generator=generator) for k in range(8)}
    baseline = {m: e.mean(0, keepdim=True) for m, e in encodings.items()}
    seen: list[int] = []

    def counted(e: dict[str, Tensor]) -> Tensor:
        seen.append(len(e["m0"]))
        return head(e)

    shares = shapley_shares(counted, encodings, baseline, score="logit")
    again = shapley_shares(counted, encodings, baseline, score="logit")
    assert torch.equal(shares, again)
    assert capsys.readouterr().err.count("Shapley shares of 8 modalities are sampled from 16 orders") == 1
    assert max(seen) <= 16 * (2 * orders.PAIRS * 7 + 2) < 16 * 256
    rows = {
        m: torch.cat([e if kept >> bit & 1 else baseline[m].expand_as(e) for kept in range(256)])
        for bit, (m, e) in enumerate(encodings.items())
    }
    whole = head(encodings).argmax(1).repeat(256)
    exact = shapley_values(head(rows).gather(1, whole[:, None]).view(256, 16)).abs()
    expected = exact / exact.sum(1, keepdim=True)
    torch.testing.assert_close(shares.sum(1), torch.ones(16, dtype=torch.float64))
    assert torch.equal(shares[:, -1], torch.zeros(16, dtype=torch.float64))
    assert (shares - expected).abs().max() < 0.02


def test_the_error_covers_the_truth() -> None:
    """Of a game without structure: nine in ten estimates lie within three standard errors."""
    scores = torch.randn(256, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sampled = orders.sampled_orders(8)
    values = sampled.values(scores[list(sampled.coalitions)])
    error = values.std(0) / orders.PAIRS**0.5
    off = (values.mean(0) - shapley_values(scores)).abs() / error
    assert (off < 3).double().mean() > 0.9
    assert off.mean() > 0.3  # nor is it far too wide
