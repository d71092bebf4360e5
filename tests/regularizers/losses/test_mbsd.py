"""MBSD: the gradients of a step against loops over clips and pairs, and the teacher that learns nothing."""

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from amr.fusion import Concat, Gated
from amr.regularizers import MBSD
from amr.regularizers.losses.mbsd import gap_weights, taught_divergence
from tests.regularizers.recorded import one_step
from tests.toy import Toy
from tests.training import build


def test_values_by_hand() -> None:
    """p_a = (.8, .2), p_b = (.4, .6); of class 0 a is the stronger, of class 1 b; of class 2 neither is right."""
    a, b = torch.tensor([[0.8, 0.2, 0.0]] * 3).log().clamp_min(-50), torch.tensor([[0.4, 0.6, 0.0]] * 3).log()
    b, label = b.clamp_min(-50), torch.tensor([0, 1, 2])
    torch.testing.assert_close(gap_weights(a, b, label), torch.tensor([0.4, 0.4, 0.0]))
    expected = [0.8 * math.log(2) + 0.2 * math.log(1 / 3), 0.4 * math.log(0.5) + 0.6 * math.log(3)]
    torch.testing.assert_close(taught_divergence(a, b, label, "distribution")[:2], torch.tensor(expected))
    released = [0.4 * (math.log(0.4) - 0.8), 0.2 * (math.log(0.2) - 0.6)]
    torch.testing.assert_close(taught_divergence(a, b, label, "released")[:2], torch.tensor(released))


def test_released_is_torchs_kl_div_of_probabilities() -> None:
    """`F.kl_div` takes log-probabilities as its input; the released code gives it probabilities."""
    torch.manual_seed(0)
    a, b, label = torch.randn(9, 4), torch.randn(9, 4), torch.randint(4, (9,))
    p, q = (f.softmax(1)[torch.arange(9), label] for f in (a, b))
    expected = F.kl_div(torch.maximum(p, q), torch.minimum(p, q), reduction="none")
    torch.testing.assert_close(taught_divergence(a, b, label, "released"), expected)


def test_the_stronger_modality_is_not_moved_by_the_divergence() -> None:
    torch.manual_seed(0)
    a, b, label = torch.randn(9, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True), torch.randint(4, (9,))
    taught_divergence(a, b, label, "distribution").sum().backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None
    assert b.grad is not None
    rows = torch.arange(9)
    leads = a.softmax(1)[rows, label] >= b.softmax(1)[rows, label]
    assert torch.equal(a.grad.any(1), ~leads)
    assert torch.equal(b.grad.any(1), leads)


@pytest.mark.parametrize(("fusion", "names"), [(Gated, ("audio", "video")), (Concat, ("audio", "video", "text"))])
def test_gradients_against_loops(fusion: Any, names: Any) -> None:
    model = build(fusion=fusion, modalities=names, mbsd=MBSD(0.3, 2.0, 5.0))
    batch = Toy(modalities=names, lacking=True).collate([*range(8)])
    has = {name: batch["present"].get(name, torch.ones(8, dtype=torch.bool)) for name in names}
    encodings, label = model.model.encode(batch["inputs"], batch["present"]), batch["label"]
    logits = model.model.head.unimodal_logits(encodings)
    loss = F.cross_entropy(model.model.head(encodings), label)
    for name in names:
        loss = loss + 0.3 * F.cross_entropy(logits[name][has[name]], label[has[name]])
    pairs = [*combinations(names, 2)]
    for pair in pairs:
        terms = []
        for i in range(8):
            f, g = (logits[m][i] for m in pair)
            if not all(has[m][i] for m in pair):
                continue
            strong, weak = (f, g) if f.softmax(0)[label[i]] >= g.softmax(0)[label[i]] else (g, f)
            p, q = strong.softmax(0).detach(), weak.softmax(0)
            right = label[i] in (f.argmax(), g.argmax())
            gap = float(p[label[i]] - q[label[i]].detach()) if right else 0.0
            terms.append(gap * (2.0 * ((f - g) ** 2).mean() + 5.0 * (p * (p / q).log()).sum()))
        loss = loss + sum(terms) / len(terms) / len(pairs)
    parameters = dict(model.model.named_parameters())
    expected = torch.autograd.grad(loss, [*parameters.values()])
    gradients = one_step(model, batch)
    for key, piece in zip(parameters, expected, strict=True):
        torch.testing.assert_close(gradients[key], piece, rtol=1e-4, atol=1e-6, msg=key)


def test_weights_of_0_are_naive() -> None:
    batch = Toy().collate([*range(8)])
    off, naive = build(mbsd=MBSD(0.0, 0.0, 0.0)), build()
    for (key, a), b in zip(one_step(off, batch).items(), one_step(naive, batch).values(), strict=True):
        assert torch.equal(a, b), key
