"""DGL: who learns from which loss, read off the gradients."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from amr.fusion import Attention, Concat, Gated
from amr.regularizers import DGL
from amr.regularizers.losses.dgl import frozen_unimodal_logits
from tests.regularizers.recorded import one_step
from tests.toy import Toy
from tests.training import build


@pytest.mark.parametrize("fusion", [Concat, Gated, lambda d, c: Attention(d, c, dim=8, heads=2)])
def test_gradients_are_those_of_two_separate_trainings(fusion: Any) -> None:
    """Encoders: α Σ CE of the head's logits with the others zeroed; head: the fused CE; each by plain autograd."""
    model = build(fusion=fusion, dgl=DGL(3.0))
    batch = Toy(lacking=True).collate([*range(8)])
    encodings = model.model.encode(batch["inputs"], batch["present"])
    has = {"audio": torch.ones(8, dtype=torch.bool), **batch["present"]}
    expected = {}
    for name in encodings:
        zeroed = {n: e if n == name else torch.zeros_like(e) for n, e in encodings.items()}
        loss = F.cross_entropy(model.model.head(zeroed)[has[name]], batch["label"][has[name]])
        parameters = [*model.model.encoders[name].parameters()]
        expected[name] = torch.autograd.grad(3.0 * loss, parameters, retain_graph=True)
    fused = F.cross_entropy(model.model.head({n: e.detach() for n, e in encodings.items()}), batch["label"])
    head = torch.autograd.grad(fused, [*model.model.head.parameters()], allow_unused=True)

    gradients = one_step(model, batch)
    for name, pieces in expected.items():
        for (key, _), piece in zip(model.model.encoders[name].named_parameters(), pieces, strict=True):
            torch.testing.assert_close(gradients[f"encoders.{name}.{key}"], piece)
    for (key, _), piece in zip(model.model.head.named_parameters(), head, strict=True):
        if piece is not None:
            torch.testing.assert_close(gradients[f"head.{key}"], piece)


def test_out_of_its_epochs_it_is_naive() -> None:
    batch = Toy().collate([*range(8)])
    late, naive = build(dgl=DGL(start_epoch=1)), build()
    for (key, a), b in zip(one_step(late, batch).items(), one_step(naive, batch).values(), strict=True):
        assert torch.equal(a, b), key


def test_no_gradient_reaches_the_frozen_head() -> None:
    model = build()
    encodings = {n: torch.randn(4, 8, requires_grad=True) for n in ("audio", "video")}
    logits = frozen_unimodal_logits(model.model.head, encodings)
    logits["audio"].sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in model.model.head.parameters())
    assert encodings["audio"].grad is not None
    assert encodings["video"].grad is None or not encodings["video"].grad.any()
