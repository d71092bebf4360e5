"""CML: the gradients of a step against loops over clips."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from amr.fusion import Concat, Gated
from amr.regularizers import CML
from amr.regularizers.losses.cml import removals
from amr.utils.errors import UserError
from tests.regularizers.recorded import one_step
from tests.toy import Toy
from tests.training import build


@pytest.mark.parametrize("hinge", ["clip", "batch"])
@pytest.mark.parametrize(("fusion", "names"), [(Gated, ("audio", "video")), (Concat, ("audio", "video", "text"))])
def test_gradients_against_loops(hinge: Any, fusion: Any, names: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The modalities disappear in the order of their names; clip by clip, with what each of them has."""
    monkeypatch.setattr("amr.regularizers.losses.cml.removals", lambda given, _: [*given[:-1]])
    model = build(fusion=fusion, modalities=names, cml=CML(3.0, 0.5, hinge))
    batch = Toy(modalities=names, lacking=True).collate([*range(8)])
    present = {name: batch["present"].get(name, torch.ones(8, dtype=torch.bool)) for name in names}
    encodings = model.model.encode(batch["inputs"], batch["present"])

    def without(gone: set[str]) -> torch.Tensor:
        logits: torch.Tensor = model.model.head(
            {n: torch.zeros_like(e) if n in gone else e for n, e in encodings.items()}
        )
        return logits

    loss = F.cross_entropy(without(set()), batch["label"])
    for k, name in enumerate(names[:-1]):
        before, after = without(set(names[:k])), without(set(names[: k + 1]))
        entropies, gains = [], []
        for i in range(8):
            if present[name][i] and any(present[m][i] for m in names[k + 1 :]):
                entropies.append(-torch.log_softmax(after[i], 0)[batch["label"][i]])
                gains.append(after[i].softmax(0).max() - before[i].softmax(0).max())
        assert min(gains) < 0 < max(gains)  # otherwise the two hinges are the same
        rises = [gain for gain in gains if gain > 0] if hinge == "clip" else [gain for gain in gains if sum(gains) > 0]
        loss = loss + 0.5 * sum(entropies) / len(entropies) + 3.0 * sum(rises) / len(gains)
    parameters = dict(model.model.named_parameters())
    expected = torch.autograd.grad(loss, [*parameters.values()])
    gradients = one_step(model, batch)
    for key, piece in zip(parameters, expected, strict=True):
        torch.testing.assert_close(gradients[key], piece, rtol=1e-4, atol=1e-6, msg=key)


def test_one_modality_stays_and_every_order_comes_up() -> None:
    orders = {tuple(removals(("a", "b", "c"), torch.Generator().manual_seed(s))) for s in range(60)}
    assert len(orders) == 6
    assert all(len(set(order)) == 2 for order in orders)


def test_weights_of_0_are_naive() -> None:
    batch = Toy().collate([*range(8)])
    off, naive = build(cml=CML(0.0, 0.0)), build()
    for (key, a), b in zip(one_step(off, batch).items(), one_step(naive, batch).values(), strict=True):
        assert torch.equal(a, b), key
    with pytest.raises(UserError, match=r"model\.cml\.weight=-1\.0: must be a finite number >= 0"):
        CML(-1.0)
