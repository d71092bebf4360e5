"""MCR: its game and its other terms against second derivations."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from amr.fusion import Concat
from amr.regularizers import MCR
from amr.regularizers.losses.mcr import game_terms, supervised_contrast
from amr.utils.errors import UserError
from tests.regularizers.recorded import one_step
from tests.toy import Linear, Toy
from tests.training import build


def test_the_games_of_two_modalities_are_the_papers() -> None:
    assert game_terms("greedy", ("a", "v")) == {("a", "a"): -1, ("v", "v"): -1, ("a", "v"): 1, ("v", "a"): 1}
    assert game_terms("independent", ("a", "v")) == {("a", "a"): -1, ("v", "v"): -1}
    assert game_terms("collaborative", ("a", "v")) == {("a", None): -1, ("v", None): -1}
    greedy = game_terms("greedy", ("a", "v", "t"))
    assert sum(factor for (_, moving), factor in greedy.items() if moving == "a") == 0.0
    assert greedy["a", "t"] == 0.5


def test_contrast_against_loops() -> None:
    torch.manual_seed(0)
    features, label = torch.randn(9, 4, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 0])
    unit = features / features.norm(dim=1, keepdim=True)
    terms = []
    for i in range(9):
        others = [j for j in range(9) if j != i]
        total = sum(math.exp(unit[i] @ unit[j] / 0.5) for j in others)
        partners = [j for j in others if label[j] == label[i]]
        if partners:
            terms.append(-sum(math.log(math.exp(unit[i] @ unit[j] / 0.5) / total) for j in partners) / len(partners))
    assert supervised_contrast(features, label, 0.5).item() == pytest.approx(sum(terms) / len(terms))
    assert supervised_contrast(features[:3], torch.tensor([0, 1, 2]), 0.5) == 0
    assert torch.autograd.gradcheck(lambda x: supervised_contrast(x, label, 0.5), features.requires_grad_())


@pytest.mark.parametrize("game", ["greedy", "independent", "collaborative"])
def test_gradients_of_the_game(game: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one fixed permutation, the encoders' gradients by the formula, divergence by divergence."""
    order = torch.tensor([2, 0, 3, 1, 4])
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: order)
    model = build(mcr=MCR(game, weight=0.3, unimodal_weight=0.0, contrast_weight=0.0, permutations=1))
    batch = Toy().collate([*range(5)])
    encode, head = model.model.encode, model.model.head

    def divergence(changed: str, moving: str | None) -> torch.Tensor:
        clean = encode(batch["inputs"])
        reference = head(clean).softmax(1).detach()
        seen = {n: e if moving in (None, n) else e.detach() for n, e in clean.items()}
        seen[changed] = seen[changed][order]
        other = head(seen).softmax(1)
        mean = (reference + other) / 2
        sums: torch.Tensor = (reference * (reference / mean).log()).sum(1) + (other * (other / mean).log()).sum(1)
        return sums.mean() / 2

    d = divergence
    total = {
        "greedy": lambda: -d("audio", "audio") + d("audio", "video") - d("video", "video") + d("video", "audio"),
        "independent": lambda: -d("audio", "audio") - d("video", "video"),
        "collaborative": lambda: -d("audio", None) - d("video", None),
    }[game]()
    clean = encode(batch["inputs"])
    method: Any = model.regularizers.methods["mcr"]
    decoder = method.decoder
    target = torch.cat([*clean.values()], 1)
    bottleneck = F.mse_loss(decoder(head(clean).detach()), target)
    loss = F.cross_entropy(head(clean), batch["label"]) + 0.3 * (total + bottleneck)
    parameters = dict(model.model.named_parameters())
    expected = torch.autograd.grad(loss, [*parameters.values()])
    gradients = one_step(model, batch)
    for key, piece in zip(parameters, expected, strict=True):
        torch.testing.assert_close(gradients[key], piece, rtol=1e-4, atol=1e-6, msg=key)


def test_encodings_of_two_sizes_need_no_contrast() -> None:
    from amr.classifier import FusionClassifier

    encoders: dict[str, Any] = {"audio": Linear(out_dim=8), "video": Linear(out_dim=6)}
    with pytest.raises(
        UserError,
        match=r"model\.mcr\.contrast_weight=1\.0: must be 0 where the encodings differ in size; .* audio 8, video 6",
    ):
        FusionClassifier(encoders, Concat, 3, mcr=MCR())
    FusionClassifier(encoders, Concat, 3, mcr=MCR(contrast_weight=0))
