"""CGGM: who gained least, the direction's loss, and the gradients that both leave."""

import pytest
import torch
from torch.nn import functional as F

from amr.regularizers import CGGM
from amr.regularizers.gradients.cggm import balance_of, direction_loss
from tests.regularizers.recorded import one_step
from tests.toy import Toy
from tests.training import build


def test_balance_by_hand() -> None:
    assert balance_of(torch.tensor([0.3, 0.1])).tolist() == pytest.approx([0.25, 0.75])
    three = balance_of(torch.tensor([0.2, 0.3, 0.5]))
    assert three.tolist() == pytest.approx([(0.3 + 0.5) / 1.0, (0.2 + 0.5) / 1.0, (0.2 + 0.3) / 1.0])
    assert balance_of(torch.tensor([0.2, -0.2])).tolist() == [0.0, 1.0]  # the released formula divides by 0 here
    assert balance_of(torch.zeros(4)).tolist() == [0.75] * 4


def test_the_direction_is_that_of_the_gradients_by_autograd() -> None:
    torch.manual_seed(0)
    label, balance = torch.arange(5) % 3, torch.tensor([0.8, 0.2])
    logits, others = torch.randn(5, 3, requires_grad=True), {n: torch.randn(5, 3) for n in "ab"}

    def slope(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(x, label), x)[0].double().flatten()

    g = slope(logits)
    cosines = [g @ slope(o) / (g.norm() * slope(o).norm()) for o in others.values()]
    expected = sum(b * (1 - c) for b, c in zip(balance, cosines, strict=True)) / 2
    loss = direction_loss(logits, others, label, balance)
    torch.testing.assert_close(loss.double(), expected)
    # A step against the gradient turns the model's direction towards the modalities'.
    moved = logits - 0.1 * torch.autograd.grad(loss, logits)[0]
    assert direction_loss(moved, others, label, balance) < loss


def test_gradients_are_of_the_written_out_loss_times_the_balance() -> None:
    model = build(cggm=CGGM(factor=2.0, direction_weight=0.5))
    method = model.regularizers.methods["cggm"]
    method.get_buffer("accuracy").copy_(torch.tensor([0.1, 0.05]))
    method.get_buffer("balance").copy_(torch.tensor([0.4, 0.6]))
    batch = Toy(lacking=True).collate([*range(8)])
    complete = batch["present"]["video"]
    label = batch["label"]
    encodings = model.model.encode(batch["inputs"], batch["present"])
    logits = model.model.head(encodings)
    said = {n: head(encodings[n].detach()) for n, head in method.get_submodule("heads.heads").named_children()}
    loss = F.cross_entropy(logits, label) + 0.5 * direction_loss(
        logits[complete], {n: s[complete] for n, s in said.items()}, label[complete], torch.tensor([0.4, 0.6])
    )
    named = dict(model.model.named_parameters())
    expected = dict(zip(named, torch.autograd.grad(loss, [*named.values()]), strict=True))
    accuracy = torch.stack([(s[complete].argmax(1) == label[complete]).float().mean() for s in said.values()])
    gains = (accuracy - torch.tensor([0.1, 0.05])).clamp_min(0)
    b = gains.flip(0) / gains.sum() if gains.sum() else torch.full((2,), 0.5)

    gradients = one_step(model, batch)
    for key, gradient in gradients.items():
        factor = 2 * b[0] if key.startswith("encoders.audio") else 2 * b[1] if key.startswith("encoders.video") else 1.0
        torch.testing.assert_close(gradient, factor * expected[key], msg=key)
    torch.testing.assert_close(method.get_buffer("accuracy"), accuracy)
    torch.testing.assert_close(method.get_buffer("balance"), b)
    for head in method.get_submodule("heads.heads").children():
        assert any(p.grad is not None for p in head.parameters())  # the classifiers learn, by their own terms


def test_out_of_its_epochs_only_the_classifiers_learn() -> None:
    batch = Toy().collate([*range(8)])
    naive = one_step(build(), batch)
    for key, gradient in one_step(build(cggm=CGGM(start_epoch=1)), batch).items():
        assert torch.equal(gradient, naive[key]), key
