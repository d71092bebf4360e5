"""What methods share: epochs, masks, means over ranks and epochs, and logits of changed encodings."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amr.attribution import at_least_float32
from amr.fusion import Attention, Concat, FiLM, Gated, Late, LowRank, MulT, Shared, Sum
from amr.model import FusionModel, complete_masks
from amr.regularizers import EpochMeans, Window, recombined
from amr.regularizers.shared import global_means, set_gradient
from amr.utils.errors import UserError
from tests.ranks import on_one_and_two_ranks
from tests.toy import Linear


def test_a_window_is_half_open() -> None:
    assert [epoch for epoch in range(6) if epoch in Window("x", 1, 3)] == [1, 2]
    assert [epoch for epoch in range(6) if epoch in Window("x", 4)] == [4, 5]
    for start, end in ((-1, None), (2, 2), (3, 1)):
        with pytest.raises(
            UserError, match=f"^model.x: start_epoch={start}, end_epoch={end}: must be 0 <= start < end"
        ):
            Window("x", start, end)


def test_masks_are_complete() -> None:
    video = torch.tensor([True, False])
    masks = complete_masks(("audio", "video"), {"video": video, "touch": ~video}, torch.zeros(2, 5))
    assert masks.tolist() == [[True, True], [True, False]]
    assert complete_masks(("audio",), None, torch.zeros(3)).tolist() == [[True] * 3]


def test_precision_is_raised_and_never_lowered() -> None:
    for given, kept in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert at_least_float32(torch.ones(1, dtype=given)).dtype == kept


def test_means_of_an_epoch_leave_out_what_is_not_finite_and_are_in_the_state() -> None:
    means = EpochMeans(["a", "b", "c"])
    assert means.named() == {}
    means.update(torch.tensor([1.0, torch.nan, torch.inf]))
    means.update(torch.tensor([3.0, 5.0, torch.nan]), torch.tensor([3.0, 2.0, 1.0]))
    assert means.named() == {"a": 2.5, "b": 5.0}
    other = EpochMeans(["a", "b", "c"])
    other.load_state_dict(means.state_dict())
    assert other.named() == means.named()
    assert means.compute()[:2].tolist() == [2.5, 5.0]
    means.reset()
    assert means.named() == {}


def test_a_gradient_is_set_only_where_there_is_something() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1, 2))]
    set_gradient(parameters, torch.tensor([1.0, 2.0, 0.0, 0.0]))
    assert parameters[0].grad is not None
    assert parameters[0].grad.tolist() == [1, 2]
    assert parameters[1].grad is None


# ------------------------------------------------------------------------------------------------------ over ranks

VALUES = torch.arange(12.0).view(2, 6).requires_grad_()
COUNTED = torch.tensor([[True, True, False, True, False, False], [False] * 6])


def means_and_gradients(world: int, _: str) -> tuple[Tensor, ...]:
    """Of this rank's part of the clips; the first rank has four of them, the second two."""
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank() if world > 1 else 0
    part = slice(None) if world == 1 else (slice(0, 4), slice(4, 6))[rank]
    values = VALUES.detach()[:, part].clone().requires_grad_()
    terms, sums, counts = global_means(values, COUNTED[:, part])
    (gradient,) = torch.autograd.grad(terms.sum(), values)
    return terms.detach(), sums, counts, gradient


def test_the_average_over_ranks_is_the_mean_over_all_clips() -> None:
    one, first, second = on_one_and_two_ranks(means_and_gradients, ["means"])["means"]
    assert one[0].tolist() == pytest.approx([(0 + 1 + 3) / 3, 0])
    assert one[1].tolist() == first[1].tolist() == second[1].tolist() == [4, 0]
    assert one[2].tolist() == first[2].tolist() == second[2].tolist() == [3, 0]
    torch.testing.assert_close((first[0] + second[0]) / 2, one[0])
    torch.testing.assert_close(torch.cat([first[3], second[3]], dim=1) / 2, one[3])


# ------------------------------------------------------------------------------------------------------ recombined


def model_and_encodings(fusion: Any = Gated) -> tuple[FusionModel, dict[str, Tensor]]:
    torch.manual_seed(0)
    names = ("a", "v", "t")
    model = FusionModel({name: Linear() for name in names}, fusion(dict.fromkeys(names, 8), 3))
    return model, {name: torch.randn(5, 8, requires_grad=True) for name in names}


@pytest.mark.parametrize("fusion", [Attention, Concat, FiLM, Gated, Late, LowRank, MulT, Shared, Sum])
def test_logits_of_other_pairs_are_those_of_clips_made_so(fusion: Any) -> None:
    model, e = model_and_encodings(fusion)
    zero, order = torch.zeros(5, 8), torch.tensor([3, 1, 0, 4, 2])
    expected: dict[str, Any] = {
        "as they are": ({}, e),
        "zeroed": ({"v": None}, {**e, "v": zero}),
        "re-paired": ({"v": order}, {**e, "v": e["v"][order]}),
        "both": ({"v": order, "t": None}, {**e, "v": e["v"][order], "t": zero}),
    }
    for name, (picks, encodings) in expected.items():
        torch.testing.assert_close(recombined(model, e, picks), model.head(encodings), msg=name)
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    logits = recombined(model, e, {"a": pairs[:, 0], "v": pairs[:, 1], "t": None})
    for n in (0, 7, 24):
        j, k = pairs[n].tolist()
        clip = {"a": e["a"][j : j + 1], "v": e["v"][k : k + 1], "t": torch.zeros(1, 8)}
        torch.testing.assert_close(logits[n : n + 1], model.head(clip))
    some = recombined(model, e, {"v": torch.tensor([0, -1, 2, -1, 4])})
    torch.testing.assert_close(some[[0, 2, 4]], model.head(e)[[0, 2, 4]])
    torch.testing.assert_close(some[[1, 3]], model.head({**e, "v": zero})[[1, 3]])


def test_tokens_are_picked_whole() -> None:
    model, e = model_and_encodings(Concat)
    e["v"] = torch.randn(5, 4, 8)
    order = torch.tensor([1, 0, -1, 2, 3])
    pooled = {**e, "v": torch.cat([e["v"].mean(1), torch.zeros(1, 8)])[order]}
    torch.testing.assert_close(recombined(model, e, {"v": order}), model.head(pooled))


def test_what_is_detached_gets_no_gradient_and_the_head_always_does() -> None:
    model, e = model_and_encodings()
    order = torch.tensor([4, 3, 2, 1, 0])
    F.cross_entropy(recombined(model, e, {"v": order}, detach=["a", "t"]), torch.zeros(5, dtype=torch.long)).backward()  # type: ignore[no-untyped-call]
    assert e["a"].grad is None
    assert e["t"].grad is None
    assert e["v"].grad is not None
    reference, same = copy.deepcopy(model), {name: x.detach().clone().requires_grad_() for name, x in e.items()}
    reference.zero_grad()
    logits = reference.head({**same, "v": same["v"][order]})
    F.cross_entropy(logits, torch.zeros(5, dtype=torch.long)).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(e["v"].grad, same["v"].grad)
    for ours, theirs in zip(model.head.parameters(), reference.head.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("picks", "detach", "message"),
    [
        ({"x": None}, [], "'x': must be modalities of 'a', 'v', 't'"),
        ({}, ["x"], "'x': must be"),
        ({"v": torch.arange(4)}, [], "modalities of 4, 5 places"),
        ({"v": torch.arange(4), "a": torch.arange(3), "t": None}, [], "modalities of 3, 4 places"),
    ],
)
def test_what_does_not_fit_is_refused(picks: Any, detach: list[str], message: str) -> None:
    model, e = model_and_encodings()
    with pytest.raises(ValueError, match=message):
        recombined(model, e, picks, detach=detach)
