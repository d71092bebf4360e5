"""TCMax against the double sum, and against the cross-entropy where they are the same."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from amr.fusion import Concat, Gated, Late, Sum
from amr.regularizers import MMCosine, TCMax
from amr.regularizers.losses.tcmax import additive_log_partition, log_partition, tuples
from tests.regularizers.recorded import one_step
from tests.toy import Toy
from tests.training import build


def pick(encodings: dict[str, torch.Tensor], clips: Sequence[int]) -> dict[str, torch.Tensor]:
    return {name: e[i : i + 1] for (name, e), i in zip(encodings.items(), clips, strict=True)}


def by_hand(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """−mean_i F_ii[y_i] + log of the mean over all tuples of Σ_c exp F[c], by loops over the tuples."""
    encodings = model.model.encode(batch["inputs"])
    names, size = [*encodings], len(batch["label"])
    right = torch.stack(
        [model.model.head(pick(encodings, [i] * len(names)))[0, y] for i, y in enumerate(batch["label"])]
    )
    total = []
    for picks in itertools.product(range(size), repeat=len(names)):
        total.append(model.model.head(pick(encodings, picks))[0])
    return -right.mean() + torch.logsumexp(torch.cat(total), 0) - len(names) * math.log(size)


@pytest.mark.parametrize("fusion", [Concat, Sum, Late, lambda d, c: Late(d, c, hidden=5), Gated])
@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio", "video", "text")], ids=len)
def test_gradients_are_those_of_the_sum_over_all_tuples(fusion: Any, modalities: tuple[str, ...]) -> None:
    model = build(fusion=fusion, modalities=modalities, tcmax=TCMax(samples=5**3))
    batch = Toy(modalities=modalities).collate([*range(5)])
    parameters = dict(model.model.named_parameters())
    expected = torch.autograd.grad(by_hand(model, batch), [*parameters.values()], materialize_grads=True)
    gradients = one_step(model, batch)
    for key, piece in zip(parameters, expected, strict=True):
        torch.testing.assert_close(gradients[key], piece, rtol=1e-4, atol=1e-6, msg=key)


def test_a_batch_of_one_clip_has_its_cross_entropy() -> None:
    batch = Toy().collate([3])
    for options in ({}, {"fusion": Gated}, {"mmcosine": MMCosine()}):
        bound, plain = one_step(build(tcmax=TCMax(), **options), batch), one_step(build(**options), batch)
        for key, value in plain.items():
            torch.testing.assert_close(bound[key], value, msg=key)


def test_clips_that_lack_a_modality_keep_their_cross_entropy() -> None:
    model = build(tcmax=TCMax())
    batch = Toy(lacking=True).collate([0, 1, 2, 4, 5])  # 0 and 4 have no video
    encodings = model.model.encode(batch["inputs"], batch["present"])
    logits = model.model.head(encodings)
    kept = [1, 2, 4]
    parts = model.model.head.additive_logits({n: e[kept] for n, e in encodings.items()})
    assert parts is not None
    pairs = torch.stack([parts["audio"][i] + parts["video"][j] for i in range(3) for j in range(3)])
    bound = -logits[kept, batch["label"][kept]].sum() + 3 * (torch.logsumexp(pairs.flatten(), 0) - math.log(9))
    loss = (bound + F.cross_entropy(logits[[0, 3]], batch["label"][[0, 3]], reduction="sum")) / 5
    parameters = dict(model.model.named_parameters())
    expected = torch.autograd.grad(loss, [*parameters.values()])
    gradients = one_step(model, batch)
    for key, piece in zip(parameters, expected, strict=True):
        torch.testing.assert_close(gradients[key], piece, rtol=1e-4, atol=1e-6, msg=key)


def test_large_logits_do_not_overflow() -> None:
    parts = {"a": torch.full((3, 2), 500.0), "b": torch.tensor([[500.0, -500.0]] * 3)}
    assert additive_log_partition(parts).item() == pytest.approx(1000.0)
    assert log_partition(torch.tensor([[1000.0, 0.0]])).item() == pytest.approx(1000.0)


def test_tuples_are_all_or_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    assert sorted(map(tuple, tuples(3, 2, 9, generator).tolist())) == [*itertools.product(range(3), repeat=2)]
    drawn = tuples(3, 2, 8, generator)
    assert drawn.shape == (8, 2)
    many = tuples(100, 3, 4000, generator)
    assert many.float().mean(0).sub(49.5).abs().max() < 3


def test_the_sampled_mean_estimates_the_full_one() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 40, 3).flatten(0, 1)
    generator = torch.Generator().manual_seed(1)
    picks = tuples(40, 2, 1000, generator)
    sample = log_partition(logits.view(40, 40, 3)[picks[:, 0], picks[:, 1]])
    assert abs(sample - log_partition(logits)) < 0.1
