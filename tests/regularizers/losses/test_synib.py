"""SynIB: what is spoilt, the divergence, and the gradients."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch.nn import functional as F

from amr.fusion import Gated
from amr.regularizers import SynIB
from amr.regularizers.losses.synib import spoilt, surplus
from amr.utils.errors import UserError
from tests.regularizers.recorded import one_step
from tests.toy import Toy
from tests.training import build


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(6, 400), (6, 20, 20)])
def test_features_are_those_of_one_other_clip(shape: tuple[int, ...]) -> None:
    number = torch.arange(6.0).view(-1, *[1] * (len(shape) - 1)).expand(shape)  # each clip's features say which it is
    changed = spoilt(number, 0.3, 0.7, draw())
    for clip, features in enumerate(changed):
        others = set(features.unique().tolist()) - {float(clip)}
        assert len(others) == 1
        assert 0.2 < (features != clip).float().mean().item() < 0.8
    assert (spoilt(number, 1.0, 1.0, draw()) != number).all()  # no clip stands in for itself
    assert torch.equal(spoilt(number, 0.0, 0.0, draw()), number)


def test_the_divergence_is_scipy_s() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(4, 5)
    expected = entropy(logits.double().softmax(1).numpy(), np.full((4, 5), 0.2), axis=1)
    np.testing.assert_allclose(surplus(logits).numpy(), expected, rtol=1e-4)
    assert surplus(torch.zeros(2, 5)).abs().max() < 1e-6


@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio", "video", "touch")], ids=len)
def test_gradients_are_of_the_written_out_loss(modalities: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """CE + l Σ_m KL(p ‖ uniform), with the m-th encodings in the reverse order of the complete clips."""
    monkeypatch.setattr("amr.regularizers.losses.synib.spoilt", lambda encoding, *_: encoding.flip(0))
    batch = Toy(modalities=modalities, lacking=True).collate([*range(8)])
    model = build(fusion=Gated, modalities=modalities, synib=SynIB(0.5))
    encodings, head = model.model.encode(batch["inputs"], batch["present"]), model.model.head
    complete = batch["present"]["video"]
    loss = F.cross_entropy(head(encodings), batch["label"])
    kept = {name: encoding[complete] for name, encoding in encodings.items()}
    for name in modalities:
        p = head({**kept, name: kept[name].flip(0)}).softmax(1)
        loss = loss + 0.5 * (p * (3 * p).log()).sum(1).mean()
    named = dict(model.model.named_parameters())
    expected = torch.autograd.grad(loss, [*named.values()])
    gradients = one_step(model, batch)
    for key, piece in zip(named, expected, strict=True):
        torch.testing.assert_close(gradients[key], piece, msg=key)


def test_without_weight_or_out_of_its_epochs_it_is_naive() -> None:
    batch = Toy().collate([*range(8)])
    naive = one_step(build(), batch)
    for method in (SynIB(0.0), SynIB(start_epoch=1)):
        for key, gradient in one_step(build(synib=method), batch).items():
            assert torch.equal(gradient, naive[key]), key


def test_shares_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(UserError, match=r"model.synib.most=0.1: must be a value in \[0.2, 1\]"):
        SynIB(most=0.1)
