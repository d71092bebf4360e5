"""LFM: the divergence, the schedule, the weight that is learned, and the gradients."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch.nn import functional as F

from amr.fusion import Late
from amr.regularizers import LFM
from amr.regularizers.losses.lfm import alignment, moved_weight
from tests.regularizers.recorded import one_step, steps
from tests.toy import Toy
from tests.training import build


def test_the_divergence_is_scipy_s() -> None:
    torch.manual_seed(0)
    logits = {name: 3 * torch.randn(4, 5) for name in "abc"}
    p = np.stack([each.double().softmax(1).numpy() for each in logits.values()])
    expected = np.mean([entropy(p.mean(0), each, axis=1) for each in p], axis=0)
    np.testing.assert_allclose(alignment(logits).numpy(), expected, rtol=1e-4)
    assert alignment({"a": logits["a"], "b": logits["a"] + 1}).abs().max() < 1e-6


def test_the_schedule() -> None:
    method = LFM(0.1, 0.5, epochs=4, start_epoch=2)
    assert [method.weight_in(epoch) for epoch in (2, 3, 4, 6, 9)] == pytest.approx([0.1, 0.2, 0.3, 0.5, 0.5])
    assert LFM(0.05).weight_in(7) == pytest.approx(0.05)


@pytest.mark.parametrize("weight", [0.05, 0.8])
def test_gradients_are_of_the_written_out_loss(weight: float) -> None:
    """2 [(1 − α) CE + α KL] of late fusion's two heads, by plain autograd."""
    batch = Toy(lacking=True).collate([*range(8)])
    model = build(fusion=Late, lfm=LFM(weight))
    encodings = model.model.encode(batch["inputs"], batch["present"])
    complete = batch["present"]["video"]
    p = [each[complete].softmax(1) for each in model.model.head.unimodal_logits(encodings).values()]
    mean = (p[0] + p[1]) / 2
    divergence = sum((mean * (mean / each).log()).sum(1).mean() for each in p) / 2
    loss = 2 * ((1 - weight) * F.cross_entropy(model.model.head(encodings), batch["label"]) + weight * divergence)
    named = dict(model.model.named_parameters())
    expected = torch.autograd.grad(loss, [*named.values()])
    gradients = one_step(model, batch)
    for key, piece in zip(named, expected, strict=True):
        torch.testing.assert_close(gradients[key], piece, msg=key)


def test_the_learned_weight_moves_against_the_slope_of_the_next_batch_s_loss() -> None:
    """The slope by α of the second batch's cross-entropy, after one step of the head, by finite differences."""
    first, second = (Toy().collate([*range(i, i + 16)]) for i in (0, 16))
    model = build(lfm=LFM(0.3, integration="learned", rate=0.5)).double()
    for batch in (first, second):
        batch["inputs"] = {name: x.double() for name, x in batch["inputs"].items()}
    head, eta = model.model.head, 1e-4
    before = {key: value.clone() for key, value in head.state_dict().items()}

    def later(alpha: float) -> float:
        head.load_state_dict(before)
        encodings = {n: e.detach() for n, e in model.model.encode(first["inputs"], None).items()}
        labels = F.cross_entropy(head(encodings), first["label"])
        loss = 2 * ((1 - alpha) * labels + alpha * alignment(head.unimodal_logits(encodings)).mean())
        slopes = torch.autograd.grad(loss, [*head.parameters()])
        with torch.no_grad():
            for parameter, slope in zip(head.parameters(), slopes, strict=True):
                parameter.sub_(eta * slope)
            found = F.cross_entropy(head(model.model.encode(second["inputs"], None)), second["label"]).item()
        head.load_state_dict(before)
        return found

    slope = (later(0.4) - later(0.2)) / 0.2 / (2 * eta)
    method = model.regularizers.methods["lfm"]
    steps(model, first, second)  # the rate is 0, so the second step's gradient is at the same weights
    assert method.get_buffer("alpha").item() == pytest.approx(0.3 - 0.5 * slope, rel=1e-3)
    assert abs(slope) > 1e-3


def test_the_learned_weight_stays_in_its_bounds() -> None:
    one = torch.ones(1)
    assert moved_weight(torch.tensor(0.5), one, one, 9.0).item() == pytest.approx(0.05)
    assert moved_weight(torch.tensor(0.5), one, -one, 9.0).item() == pytest.approx(0.95)


def test_out_of_its_epochs_it_is_naive() -> None:
    batch = Toy().collate([*range(8)])
    naive = one_step(build(), batch)
    for key, gradient in one_step(build(lfm=LFM(start_epoch=1)), batch).items():
        assert torch.equal(gradient, naive[key]), key
