"""MLA: turns, projection and mixture."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from amr.fusion import Concat, Shared
from amr.regularizers import MLA
from amr.regularizers.gradients.mla import MixedHead, entropy_weights, mixed_log_probabilities, updated_projection
from amr.utils.errors import UserError
from tests.regularizers.recorded import steps
from tests.toy import Toy
from tests.training import build, fit

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty|Average precision)"
)


def test_each_turn_moves_one_encoder_and_the_head() -> None:
    model = build(fusion=Shared, mla=MLA(projection=False))
    batch, head = Toy().collate([*range(8)]), model.model.head
    assert isinstance(head, MixedHead)
    recorded = steps(model, batch)
    assert len(recorded) == 2
    for turn, name in enumerate(("audio", "video")):
        encoding = model.model.encoders[name](batch["inputs"][name])
        loss = F.cross_entropy(head.shared.classifier(encoding), batch["label"])
        parameters = {k: p for k, p in model.model.named_parameters() if name in k or k.startswith("head")}
        expected = torch.autograd.grad(loss, [*parameters.values()])
        for key, piece in zip(parameters, expected, strict=True):
            torch.testing.assert_close(recorded[turn][key], piece, msg=key)
        other = "video" if name == "audio" else "audio"
        assert not any(recorded[turn][k].any() for k in recorded[turn] if k.startswith(f"encoders.{other}"))


def test_the_projection_is_of_what_came_before() -> None:
    """The first turn is plain; the second's weight gradient is multiplied by the P that the first one left."""
    batch = Toy().collate([*range(8)])
    plain, projected = (steps(build(fusion=Shared, mla=MLA(projection=p)), batch) for p in (False, True))
    key = "head.shared.classifier.weight"
    torch.testing.assert_close(projected[0][key], plain[0][key])
    model = build(fusion=Shared, mla=MLA())
    r = model.model.encoders["audio"](batch["inputs"]["audio"]).mean(0).detach().double().numpy()
    p = np.eye(8) - np.outer(r, r) / (0.1 + r @ r)  # batch 0 of 1: alpha = 0.1 ** 1
    p /= np.sqrt((p**2).sum())
    expected = plain[1][key].double() @ torch.from_numpy(p)
    torch.testing.assert_close(projected[1][key].double(), expected, rtol=1e-5, atol=1e-7)
    for other in plain[1]:
        if other != key:
            torch.testing.assert_close(projected[1][other], plain[1][other], msg=other)


def test_the_projection_forgets_a_direction_that_it_has_seen() -> None:
    r = F.normalize(torch.randn(6, generator=torch.Generator().manual_seed(0)), dim=0)
    p = updated_projection(torch.eye(6), r, 1e-4)
    assert (p @ r).norm() < 1e-3
    assert torch.linalg.norm(p).item() == pytest.approx(1.0)
    torch.testing.assert_close(p, p.T)


def test_mixture_by_hand() -> None:
    logits = {"a": torch.tensor([[2.0, 0.0, 0.0]]), "v": torch.zeros(1, 3)}
    p = torch.tensor([2.0, 0.0, 0.0]).softmax(0)
    entropies = np.array([-(p * p.log()).sum().item(), np.log(3)])
    w = np.exp(entropies.max() - entropies)
    w /= w.sum()
    torch.testing.assert_close(entropy_weights(logits), torch.tensor(w[None], dtype=torch.float32))
    mixed = mixed_log_probabilities(logits, entropy_weights(logits)).exp()
    torch.testing.assert_close(mixed[0], torch.tensor(w[0], dtype=torch.float32) * p + float(w[1]) / 3)
    model = build(fusion=Shared, mla=MLA(mixing="mean"))
    inputs = Toy().collate([0, 1])["inputs"]
    each = model.model.head.unimodal_logits(model.model.encode(inputs))
    expected = torch.stack([own.softmax(1) for own in each.values()]).mean(0)
    torch.testing.assert_close(model(inputs).softmax(1), expected)


def test_global_step_counts_batches() -> None:
    trainer = fit(build(fusion=Shared, mla=MLA()), max_epochs=2)
    assert trainer.global_step == 8


@pytest.mark.parametrize(("fusion", "name"), [(Concat, "Concat"), (lambda d, c: Shared(d, c, hidden=4), "Shared")])
def test_other_fusions_are_refused(fusion: Any, name: str) -> None:
    with pytest.raises(UserError, match=rf"model\.mla: needs the fusion Shared without a hidden layer, not {name}"):
        build(fusion=fusion, mla=MLA())


def test_accumulation_is_refused() -> None:
    with pytest.raises(UserError, match="accumulate_grad_batches=2: must be 1 with mla"):
        fit(build(fusion=Shared, mla=MLA()), accumulate_grad_batches=2)
