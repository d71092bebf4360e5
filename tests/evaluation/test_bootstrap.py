"""Intervals cover, and weighted statistics are those of the clips written out as often as they were drawn."""

import math

import pytest
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from amr.evaluation.bootstrap import Bootstrap, Interval, ranks, spearman, weighted_means


def written_out(values: Tensor, weights: Tensor) -> Tensor:
    return values.repeat_interleave(weights.long())


def test_intervals_of_a_mean_are_those_of_normal_theory() -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0)).double() * 3 + 1
    found = Bootstrap(2000, resamples=4000)
    interval = found.mean(values)
    half = 1.96 * float(values.std()) / math.sqrt(2000)
    assert interval.value == pytest.approx(float(values.mean()))
    assert interval.low == pytest.approx(interval.value - half, abs=0.1 * half)
    assert interval.high == pytest.approx(interval.value + half, abs=0.1 * half)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator, covered = torch.Generator().manual_seed(1), 0
    resamples = Bootstrap(80, resamples=400)
    draws = (torch.rand(400, 80, generator=generator) < 0.7).double()
    for interval in resamples.means(draws.T.contiguous()):
        covered += interval.low <= 0.7 <= interval.high
    assert 0.90 <= covered / 400 <= 0.975  # percentile intervals of 80 clips are a little short


def test_the_same_seed_gives_the_same_intervals_and_measures_share_the_resamples() -> None:
    values = torch.rand(30, generator=torch.Generator().manual_seed(2)).double()
    state = torch.get_rng_state()
    first, again, other = Bootstrap(30), Bootstrap(30), Bootstrap(30, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert first.mean(values) == again.mean(values) != other.mean(values)
    paired = first(lambda w: (w @ values - w @ (values - 0.25)) / 30)
    assert (paired.value, paired.low, paired.high) == pytest.approx((0.25, 0.25, 0.25))  # unpaired ones would spread


def test_every_resample_has_n_clips_in_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Bootstrap(7, resamples=20)
    counts: list[Tensor] = []

    def keep(weights: Tensor) -> Tensor:
        counts.append(weights)
        return weights.sum(1)

    assert whole(keep) == Interval(7, 7, 7)
    monkeypatch.setattr("amr.evaluation.bootstrap._ENTRIES", 21)
    blocks: list[Tensor] = []

    def keep_blocks(weights: Tensor) -> Tensor:
        blocks.append(weights)
        return weights.sum(1)

    Bootstrap(7, resamples=20)(keep_blocks)
    assert max(map(len, blocks)) == 3
    assert {len(row) for row in blocks[-1]} == {7}
    assert all(float(block.sum()) == 7 * len(block) for block in blocks)


def test_means_among_some_clips() -> None:
    values, among = torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.tensor([True, False, True, False])
    weights = torch.tensor([[2.0, 5.0, 1.0, 0.0], [0.0, 4.0, 0.0, 0.0]]).double()
    found = weighted_means(values[:, None], weights, among)[:, 0]
    assert float(found[0]) == pytest.approx((1 + 1 + 3) / 3)
    assert found[1].isnan()
    assert math.isnan(Bootstrap(4).mean(values, among & False).value)
    interval = Bootstrap(4).mean(values, among)
    assert (interval.value, interval.low, interval.high) == (2, 1, 3)  # resamples without such a clip are left out


@pytest.mark.parametrize("levels", [3, 50])
def test_ranks_and_correlations_are_scipys_on_clips_written_out(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    x, y = (torch.randint(levels, (25,), generator=generator).double() for _ in range(2))
    weights = torch.randint(4, (12, 25), generator=generator).double()
    found, ranked = spearman(x[None], y[None], weights), ranks(x[None], weights)
    own = spearman(x.expand(12, -1), y.expand(12, -1), weights)
    for r, row in enumerate(weights):
        a, b = written_out(x, row), written_out(y, row)
        assert float(found[r]) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
        assert float(own[r]) == float(found[r])
        expected = rankdata(a)
        torch.testing.assert_close(written_out(ranked[r], row), torch.from_numpy(expected))


def test_a_constant_has_no_correlation() -> None:
    ones, weights = torch.ones(1, 9), torch.ones(1, 9).double()
    assert spearman(ones, torch.rand(1, 9), weights).isnan().all()
    assert math.isnan(Bootstrap(9)(lambda w: spearman(ones, torch.rand(1, 9), w)).low)
