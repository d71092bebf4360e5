"""AMCo: its masks, what makes a modality dependent, and what the fused prediction then sees."""

import math

import pytest
import torch
from torch.nn import functional as F

from amr.regularizers import AMCo
from amr.regularizers.features.amco import dependence, masked_fraction, unit_mask
from amr.utils.errors import UserError
from tests.regularizers.recorded import steps
from tests.toy import Toy
from tests.training import build


def test_masks() -> None:
    assert [masked_fraction(level, 10.0) for level in (0, 5, 10, 99)] == pytest.approx([0, math.sqrt(0.5), 1, 1])
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([unit_mask(10, 0.59, generator) for _ in range(4000)])
    assert set((masks == 0).sum(1).tolist()) == {5}  # rounded down
    torch.testing.assert_close(masks.mean(0), torch.ones(10), atol=0.07, rtol=0)  # four standard errors
    assert unit_mask(40, 0.99, generator).max() == 10  # one of 40 is left
    assert not unit_mask(10, 1.0, generator).any()


def test_shares_against_a_loop() -> None:
    torch.manual_seed(0)
    logits = {m: torch.randn(5, 3) for m in ("a", "v", "t")}
    for i in range(5):
        totals = {m: sum(math.exp(x) for x in f[i].tolist()) for m, f in logits.items()}
        expected = [totals[m] / sum(totals.values()) for m in logits]
        assert dependence(logits)[i].tolist() == pytest.approx(expected)


def test_the_fused_prediction_sees_the_masked_encoding_and_the_unimodal_ones_the_whole() -> None:
    """The second step of epoch 1, against plain autograd with the mask that the method's state gives."""
    batch = Toy().collate([*range(8)])
    model = build(amco=AMCo(threshold=0.05, full=0.3))
    gradients = steps(model, batch, batch, epochs=2)
    method = model.regularizers.methods["amco"]
    assert isinstance(method, AMCo)
    assert method.dependent.all()
    other = build(seed=9, amco=AMCo(threshold=0.05, full=0.3))
    other.load_state_dict(model.state_dict())  # what a run that is resumed within the epoch masks
    ones = {m: torch.ones(2, 8) for m in ("audio", "video")}
    resumed, whole = (m.regularizers.on_encodings(ones, None)["audio"] for m in (other, model))
    assert torch.equal(resumed, whole)
    assert (whole == 0).any()
    encodings = {m: model.model.encoders[m](batch["inputs"][m]) for m in ("audio", "video")}
    fraction = math.sin(math.pi / 2 * 0.1 / 0.3)  # one step of epoch 1
    generator = torch.Generator().manual_seed(hash((int(method.key), 1, 1)) & (2**63 - 1))
    seen = {}
    for name, encoding in encodings.items():
        order, kept = torch.randperm(8, generator=generator), 8 - int(8 * fraction)
        mask = torch.tensor([8 / kept if unit in order[-kept:] else 0.0 for unit in range(8)])
        seen[name] = encoding * mask
    parts = model.model.head.unimodal_logits(encodings)
    loss = sum((F.cross_entropy(part, batch["label"]) for part in parts.values()), torch.zeros(()))
    loss = loss + F.cross_entropy(model.model.head(seen), batch["label"])
    parameters = dict(model.model.named_parameters())
    for key, piece in zip(parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True):
        torch.testing.assert_close(gradients[3][key], piece, msg=key)
    torch.testing.assert_close(gradients[0], gradients[1])  # epoch 0 masks nothing
    assert not torch.equal(gradients[3]["head.classifier.weight"], gradients[2]["head.classifier.weight"])


def test_never_dependent_and_no_unimodal_losses_is_naive() -> None:
    batch = Toy().collate([*range(8)])
    off, naive = build(amco=AMCo(threshold=0.999, unimodal_weight=0.0)), build()
    for a, b in zip(steps(off, batch, epochs=2), steps(naive, batch, epochs=2), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    with pytest.raises(UserError, match=r"model\.amco\.threshold=1\.0: must be a value in \(0, 1\)"):
        AMCo(threshold=1.0)
