"""MIDAS: targets, the weighted loss, the weak modality's weight, and the gradients."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from amr.fusion import Gated
from amr.regularizers import MIDAS
from amr.regularizers.losses.midas import misaligned_losses, soft_targets
from tests.regularizers.recorded import one_step
from tests.toy import Toy
from tests.training import build


def test_targets_are_in_proportion_to_confidence() -> None:
    given = soft_targets(torch.tensor([0.9, 0.2, 0.0]), torch.tensor([0.3, 0.2, 0.0]))
    torch.testing.assert_close(given, torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.5, 0.5]]))


def test_with_weights_of_one_the_loss_is_torch_s_with_soft_targets() -> None:
    torch.manual_seed(0)
    logits, classes = torch.randn(5, 4), torch.tensor([[0, 1], [1, 3], [2, 0], [3, 1], [0, 3]])
    targets = torch.rand(5, 1)
    targets = torch.cat([targets, 1 - targets], dim=1)
    cosine = torch.tensor([-1.0, -0.2, 0.0, 0.5, 1.0])
    whole = torch.zeros(5, 4).scatter_(1, classes, targets)
    expected = F.cross_entropy(logits, whole, reduction="none") * torch.tensor([1.0, 1.0, 1.0, 1.5, 2.0])
    loss = misaligned_losses(logits.log_softmax(1), classes, targets, torch.ones(5, 2), cosine)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio", "video", "touch")], ids=len)
def test_gradients_and_weights_are_of_the_written_out_loss(
    modalities: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each complete clip takes the video of the next one, where that is of another class; clip by clip."""

    def following(clips: torch.Tensor, *_: Any, labels: torch.Tensor, **__: Any) -> torch.Tensor:
        after = torch.arange(1, len(clips) + 1) % len(clips)
        return torch.where(labels != labels[after], after, -1).unsqueeze(1)

    monkeypatch.setattr("amr.regularizers.losses.midas.other_clips", following)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor(1))  # the video is swapped
    batch = Toy(modalities=modalities, lacking=True).collate([*range(8)])
    batch["label"][3] = batch["label"][2]  # a pair of one class
    model = build(fusion=Gated, modalities=modalities, midas=MIDAS(weight=0.7, rate=0.5, start_epoch=0))
    method, core = model.regularizers.methods["midas"], model.model
    start = torch.tensor([1.0, 2.0, 1.5])[: len(modalities)]
    method.get_buffer("weights").copy_(start)
    encodings, y = core.encode(batch["inputs"], batch["present"]), batch["label"]
    heads = dict(method.get_submodule("heads.heads").named_children())
    sure = {n: heads[n](encodings[n]).softmax(1)[torch.arange(8), y] for n in modalities}
    has = {n: batch["present"].get(n, torch.ones(8, dtype=torch.bool)) for n in modalities}
    loss = F.cross_entropy(core.head(encodings), y) - sum(sure[n][has[n]].log().mean() for n in modalities)
    complete = has["video"].nonzero()[:, 0].tolist()
    kept = [n for n in modalities if n != "video"]
    terms: list[Any] = []
    above: dict[str, list[Any]] = {n: [] for n in modalities}
    for i, j in zip(complete, complete[1:] + complete[:1], strict=True):
        if y[i] == y[j]:
            continue
        a, b = sum(sure[n][i].item() for n in kept) / len(kept), sure["video"][j].item()
        p = core.head({n: e[[j if n == "video" else i]] for n, e in encodings.items()}).softmax(1)[0]
        w = start[[m for m, n in enumerate(modalities) if n != "video"]].mean()
        hard = 1 + max(0.0, F.cosine_similarity(encodings["video"][i], encodings["video"][j], dim=0).item())
        terms.append(-hard * (w * a * p[y[i]].log() + start[1] * b * p[y[j]].log()) / (a + b))
        for n in modalities:
            above[n].append(b / (a + b) - p[y[j]].item() if n == "video" else a / (a + b) - p[y[i]].item())
    loss = loss + 0.7 * torch.stack(terms).mean()
    named = dict(core.named_parameters())
    expected = torch.autograd.grad(loss, [*named.values()])
    weakest = min(modalities, key=lambda n: sure[n][complete].mean().item())
    moved = start.clone()
    place = modalities.index(weakest)
    moved[place] = (moved[place] + 0.5 * torch.tensor(above[weakest]).mean()).clamp(1.0, 5.0)

    gradients = one_step(model, batch)
    assert 0 < len(terms) < len(complete)
    for key, piece in zip(named, expected, strict=True):
        torch.testing.assert_close(gradients[key], piece, msg=key)
    torch.testing.assert_close(method.get_buffer("weights"), moved)


def test_where_all_are_of_one_class_there_are_no_pairs() -> None:
    batch = Toy().collate([*range(8)])
    batch["label"].zero_()
    given, warming = (one_step(build(midas=MIDAS(start_epoch=epoch)), batch) for epoch in (0, 1))
    for key, gradient in given.items():
        assert torch.equal(gradient, warming[key]), key
