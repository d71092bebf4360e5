"""Changes of the output when a modality is another clip's: against loops, closed forms and finite differences."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn

from amr.attribution import (
    change_shares,
    jensen_shannon,
    other_clips,
    output_change,
    output_shares,
    ratio_penalty,
)
from amr.fusion import Attention, Concat, Fusion, Gated

CLIPS, DIM, CLASSES = 5, 4, 3


def encodings_of(modalities: int, tokens: bool = False, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    torch.manual_seed(modalities)
    shape = (CLIPS, 2, DIM) if tokens else (CLIPS, DIM)
    return {name: torch.randn(shape, dtype=dtype) for name in "abcd"[:modalities]}


def head_of(fusion: Any, modalities: int = 2) -> Fusion:
    torch.manual_seed(0)
    head: Fusion = fusion(dict.fromkeys("abcd"[:modalities], DIM), CLASSES).double()
    return head


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(-1)


def written_out(
    head: Any, reference: Any, clips: Mapping[str, Tensor], donors: Mapping[str, Tensor], picks: Tensor
) -> Tensor:
    """D by loops, one clip at a time, the divergence by its entropies; `reference` gives p(e)."""
    rows = []
    for i, others in enumerate(picks.tolist()):
        whole = {name: e[i : i + 1] for name, e in clips.items()}
        p, row = reference(whole).softmax(1), []
        for name in clips:
            each = []
            for j in [j for j in others if j >= 0]:
                q = head({**whole, name: donors[name][j : j + 1]}).softmax(1)
                each.append(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2)
            row.append(torch.cat(each).mean() if each else p.new_zeros(()))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_divergence_against_scipy() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 4, dtype=torch.float64) * 5
    expected = jensenshannon(a.softmax(1).numpy(), b.softmax(1).numpy(), axis=1) ** 2  # its root is the distance
    torch.testing.assert_close(jensen_shannon(a, b), torch.from_numpy(expected))
    assert jensen_shannon(a, a).abs().max() < 1e-12
    far = jensen_shannon(torch.tensor([[100.0, -100.0]]), torch.tensor([[-100.0, 100.0]]))
    assert far.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("modalities", [1, 2, 3])
@pytest.mark.parametrize("fusion", [Concat, Gated, Attention])
def test_changes_equal_loops(fusion: Any, modalities: int, tokens: bool) -> None:
    head, encodings = head_of(fusion, modalities).eval(), encodings_of(modalities, tokens)
    donors = {name: e.flip(0)[:4] + 0.3 for name, e in encodings.items()}
    picks = torch.tensor([[1, 2, 3], [0, -1, 2], [-1, -1, -1], [0, 0, 1], [3, 2, -1]])
    change = output_change(head, encodings, picks, donors=donors)
    expected = written_out(head, head, encodings, donors, picks)
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-12)
    assert not change.requires_grad
    assert not change[2].any()
    assert 0 < change.max() <= math.log(2)
    shares = output_shares(head, encodings, picks, donors=donors)
    rows = [0, 1, 3, 4]
    torch.testing.assert_close(shares[rows], expected[rows] / expected[rows].sum(1, keepdim=True))
    assert not shares[2].any()
    own = output_change(head, encodings, picks)
    torch.testing.assert_close(own, written_out(head, head, encodings, encodings, picks), rtol=0, atol=1e-12)


def test_a_head_that_ignores_a_modality_has_no_change_of_it() -> None:
    encodings, picks = encodings_of(2, dtype=torch.float32), torch.tensor([[1, 2], [2, 3], [3, 4], [4, 0], [0, 1]])
    linear = nn.Linear(DIM, CLASSES)
    change = output_change(lambda e: linear(e["a"]), encodings, picks)
    assert (change[:, 0] > 1e-4).all()
    assert change[:, 1].abs().max() < 1e-12
    torch.testing.assert_close(change_shares(change), torch.tensor([[1.0, 0.0]] * CLIPS))


def test_an_additive_head_has_the_split_of_its_parts() -> None:
    """Two classes, log-odds a + v. Clip i's partner has other values, so D is the divergence of two known coins."""
    a, v = np.array([2.0, -1.0]), np.array([0.5, -0.25])
    encodings = {"a": torch.from_numpy(a).view(2, 1), "v": torch.from_numpy(v).view(2, 1)}

    def head(e: Mapping[str, Tensor]) -> Tensor:
        odds = e["a"] + e["v"]
        return torch.cat([odds, torch.zeros_like(odds)], dim=1)

    def coin(odds: float) -> list[float]:
        p = 1 / (1 + math.exp(-odds))
        return [p, 1 - p]

    expected = [
        [
            jensenshannon(coin(a[i] + v[i]), coin(a[1 - i] + v[i])) ** 2,
            jensenshannon(coin(a[i] + v[i]), coin(a[i] + v[1 - i])) ** 2,
        ]
        for i in range(2)
    ]
    change = output_change(head, encodings, torch.tensor([[1], [0]]))
    torch.testing.assert_close(change, torch.tensor(expected, dtype=torch.float64))
    equal = {"a": encodings["a"], "v": encodings["a"]}
    torch.testing.assert_close(output_shares(head, equal, torch.tensor([[1], [0]])), torch.full((2, 2), 0.5).double())


def test_both_modalities_of_an_exclusive_or_change_the_output_alike() -> None:
    signs = {"a": torch.tensor([[1.0], [1], [-1], [-1]]), "v": torch.tensor([[1.0], [-1], [1], [-1]])}

    def head(e: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([3 * e["a"] * e["v"], -3 * e["a"] * e["v"]], dim=1)

    picks = torch.tensor([[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2]])
    torch.testing.assert_close(output_shares(head, signs, picks), torch.full((4, 2), 0.5))


@pytest.mark.parametrize("gradient", ["head", "encoder", "all"])
def test_the_gradient_of_the_penalty_equals_finite_differences(gradient: Any) -> None:
    """By every parameter of the head and every number of the clips' and the donors' encodings."""
    head, picks = head_of(Gated).eval(), torch.tensor([[1, 2], [2, -1], [3, 4], [4, 0], [0, 1]])
    frozen, ratio = copy.deepcopy(head), torch.tensor([0.9, 0.1], dtype=torch.float64)
    clips = {name: (3 * e).requires_grad_() for name, e in encodings_of(2).items()}
    donors = {name: (e.detach() * 0.7 + 0.1).requires_grad_() for name, e in clips.items()}
    change = output_change(head, clips, picks, donors=donors, gradient=gradient)
    ratio_penalty(change_shares(change), ratio).backward()  # type: ignore[no-untyped-call]
    assert all((e.grad is not None) == (gradient == "all") for e in clips.values())
    assert all((e.grad is not None) == (gradient != "head") for e in donors.values())

    def penalty() -> float:
        with torch.no_grad():
            d = written_out(head, head if gradient == "all" else frozen, clips, donors, picks)
            share = (d / d.sum(1, keepdim=True)).mean(0)
            return float((share - ratio).abs().sum())

    for leaf in [*head.parameters(), *clips.values(), *donors.values()]:
        if leaf.grad is None:
            continue
        flat, step = leaf.data.view(-1), 3e-5
        for index in range(0, len(flat), 5):
            values = []
            for sign in (1, -1):
                flat[index] += sign * step
                values.append(penalty())
                flat[index] -= sign * step
            slope = (values[0] - values[1]) / (2 * step)
            assert leaf.grad.view(-1)[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)
    assert any(leaf.grad is not None and leaf.grad.abs().max() > 1e-3 for leaf in head.parameters())


def test_nothing_changes_without_a_head_that_decides_or_clips_that_differ() -> None:
    encodings, picks = encodings_of(2, dtype=torch.float32), torch.tensor([[1], [2], [3], [4], [0]])
    constant = Concat(dict.fromkeys("ab", DIM), CLASSES)
    for parameter in constant.parameters():
        nn.init.zeros_(parameter)
    assert not output_shares(constant, encodings, picks).any()
    alike = {name: e[:1].expand_as(e) for name, e in encodings.items()}
    torch.manual_seed(0)
    assert not output_shares(Gated(dict.fromkeys("ab", DIM), CLASSES), alike, picks).any()
    certain = {name: 1e4 * e for name, e in encodings.items()}
    shares = output_shares(Concat(dict.fromkeys("ab", DIM), CLASSES), certain, picks)
    assert shares.isfinite().all()
    assert output_change(constant, {name: e[:0] for name, e in encodings.items()}, picks[:0]).shape == (0, 2)
    assert not output_change(constant, encodings, picks[:, :0]).any()


def test_under_inference_mode_and_autocast_and_in_training() -> None:
    """Precision, mode and random state are those of a call by itself."""
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(DIM, CLASSES))

    def expected(e: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.linear(e["a"] + e["b"], head[1].weight, head[1].bias)  # type: ignore[arg-type]

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = head

        def forward(self, e: Mapping[str, Tensor]) -> Tensor:
            out: Tensor = self.net(e["a"] + e["b"])
            return out

    module, encodings = Sum().train(), encodings_of(2, dtype=torch.float32)
    picks = torch.tensor([[1], [2], [3], [4], [0]])
    reference, state = output_change(expected, encodings, picks), torch.get_rng_state()
    with torch.inference_mode():
        inside = output_change(module, {name: e * 1 for name, e in encodings.items()}, picks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = output_change(module, encodings, picks, gradient="head")
    for change in (inside, cast.detach()):
        torch.testing.assert_close(change, reference, rtol=1e-5, atol=1e-9)
    assert cast.requires_grad
    assert torch.equal(state, torch.get_rng_state())
    assert all(part.training for part in module.modules())


def test_unknown_arguments() -> None:
    with pytest.raises(ValueError, match="gradient='body': must be one of head, encoder, all"):
        output_change(head_of(Concat), encodings_of(2), torch.zeros(CLIPS, 1).long(), gradient="body")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one modality"):
        output_change(head_of(Concat), {}, torch.zeros(CLIPS, 1).long())


# ------------------------------------------------------------------------------------------------------- other clips


def draw(clips: Tensor, count: int, **options: Any) -> Tensor:
    return other_clips(clips, count, torch.Generator().manual_seed(3), **options)


def test_every_repairing_is_a_permutation_without_a_clip_in_its_place() -> None:
    clips = torch.tensor([40, 10, 30, 20, 60, 50])
    picks = draw(clips, 4)
    assert picks.shape == (6, 4)
    for k in range(4):
        assert sorted(picks[:, k].tolist()) == list(range(6))
    assert all(i not in row and len(set(row)) == 4 for i, row in enumerate(picks.tolist()))
    assert not torch.equal(picks, other_clips(clips, 4, torch.Generator().manual_seed(4)))
    assert draw(clips, 99).shape == (6, 5)


def test_the_draw_does_not_depend_on_the_clips_order() -> None:
    clips, labels = torch.tensor([40, 10, 30, 20, 60, 50]), torch.tensor([0, 1, 0, 1, 2, 0])
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    for options in ({}, {"labels": labels}):
        picks = draw(clips, 3, **options)
        moved = draw(clips[order], 3, **{key: value[order] for key, value in options.items()})
        expected = torch.where(picks >= 0, clips[picks], -1)[order]
        assert torch.equal(torch.where(moved >= 0, clips[order][moved], -1), expected)
        assert torch.equal(draw(clips, 3, rows=slice(2, 4), **options), picks[2:4])


def test_only_clips_of_another_class_and_never_a_copy() -> None:
    labels = torch.tensor([0, 0, 1, 0, 0])
    picks = draw(torch.arange(5), 3, labels=labels)
    assert picks[[0, 1, 3, 4]].tolist() == [[2, -1, -1]] * 4
    assert sorted(picks[2].tolist()) in [[0, 1, 3], [0, 1, 4], [0, 3, 4], [1, 3, 4]]
    assert (draw(torch.arange(4), 2, labels=torch.ones(4)) == -1).all()
    copies = torch.tensor([7, 7, 8])
    assert draw(copies, 2).tolist()[:2] == [[2, -1], [2, -1]]
    assert draw(torch.tensor([1]), 4).shape == (1, 0)
    assert draw(torch.zeros(0, dtype=torch.int64), 4).shape == (0, 0)
