"""OPM: how often each modality is dropped, what is left of the encodings, and whose scores decide."""

import math

import pytest
import torch
from torch.nn import functional as F

from amr.regularizers import OPM
from amr.regularizers.features.opm import drop, drop_probabilities
from tests.regularizers.recorded import one_step
from tests.toy import Toy
from tests.training import build


def test_probabilities_by_hand() -> None:
    given = drop_probabilities(torch.tensor([0.6, 0.4]), 0.5, 0.5)
    assert given.tolist() == pytest.approx([0.5 * (1 + 0.5 * math.tanh(0.5)), 0.0])
    three = drop_probabilities(torch.tensor([0.2, 0.6, 0.8]), 0.5, 1.0)  # the others' means: 0.7, 0.5, 0.4
    assert three.tolist() == pytest.approx([0.0, 0.5 * (1 + math.tanh(0.2)), 0.5 * (1 + math.tanh(1.0))])
    assert drop_probabilities(torch.tensor([0.9, 0.0]), 0.9, 1.0).tolist() == [1.0, 0.0]  # s/0: a lead without bound
    assert not drop_probabilities(torch.zeros(2), 0.5, 0.5).any()


def test_what_is_dropped_and_what_is_left() -> None:
    torch.manual_seed(0)
    clips = 20000
    encodings = {"audio": torch.ones(clips, 3, 2), "video": torch.ones(clips, 6)}
    has = torch.ones(clips, 2, dtype=torch.bool)
    has[: clips // 2, 1] = False  # these have nothing but the sound, and keep it
    left = drop(encodings, has, torch.tensor([0.4, 0.0]))
    scale = 1 / (1 - (2 * 0.4 + 6 * 0.0) / 8)
    assert torch.unique(left["video"][clips // 2 :]).tolist() == pytest.approx([scale])
    assert not left["video"][: clips // 2].any()
    assert torch.unique(left["audio"][: clips // 2]).tolist() == pytest.approx([scale])
    both = left["audio"][clips // 2 :].flatten(1)
    assert (both == both[:, :1]).all()  # a clip's tokens go together
    assert (both[:, 0] == 0).float().mean().item() == pytest.approx(0.4, abs=0.02)


def test_a_step_is_of_the_dropped_encodings_and_leaves_its_scores() -> None:
    """With q = (1, 0): the sound is zeroed where there is video; all is divided by 1 − ½; by plain autograd."""
    model = build(opm=OPM(base=0.9, slope=1.0, p=1.0, start_epoch=0))
    method = model.regularizers.methods["opm"]
    method.get_buffer("scores").copy_(torch.tensor([0.8, 0.2]))
    batch = Toy(lacking=True).collate([*range(8)])
    encodings = model.model.encode(batch["inputs"], batch["present"])
    sighted = batch["present"]["video"].unsqueeze(1)
    seen = {"audio": torch.where(sighted, 0.0, 2 * encodings["audio"]), "video": 2 * encodings["video"]}
    loss = F.cross_entropy(model.model.head(seen), batch["label"])
    expected = torch.autograd.grad(loss, [*model.model.parameters()])
    weight, bias = model.model.head.classifier.weight, model.model.head.classifier.bias / 2
    complete = sighted.squeeze(1)
    scores = []
    for e, part in zip(encodings.values(), torch.split(weight, 8, dim=1), strict=True):
        scores.append((e @ part.T + bias).softmax(1)[torch.arange(8), batch["label"]][complete].mean())

    gradients = one_step(model, batch)
    for (key, _), piece in zip(model.model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(gradients[key], piece, msg=key)
    torch.testing.assert_close(method.get_buffer("scores"), torch.stack(scores).detach())


def test_out_of_its_epochs_and_without_a_lead_it_is_naive() -> None:
    batch = Toy().collate([*range(8)])
    naive = one_step(build(), batch)
    for method in (OPM(start_epoch=1), OPM(p=0.0, start_epoch=0), OPM(start_epoch=0)):  # the first step has no scores
        for key, gradient in one_step(build(opm=method), batch).items():
            assert torch.equal(gradient, naive[key]), key
