"""ReconBoost: its stages, and the gradients of each against the released formula."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from amr.fusion import Concat, Gated, Late
from amr.regularizers import ReconBoost
from amr.regularizers.gradients.reconboost import boosting_weights, stage_of
from amr.utils.errors import UserError
from tests.regularizers.recorded import steps
from tests.toy import Toy
from tests.training import build


def test_stages() -> None:
    assert [stage_of(epoch, 2, 1) for epoch in range(7)] == [
        *((0, True), (0, True), (0, False), (1, True), (1, True), (1, False), (2, True))
    ]
    model = build(modalities=("a", "b", "c"), reconboost=ReconBoost(1, 1))
    assert [model.regularizers.turns(epoch) for epoch in range(7)] == [
        *([("a",)], [None], [("b",)], [None], [("c",)], [None], [("a",)])
    ]


def test_weights_by_hand() -> None:
    others = torch.tensor([[0.7, 0.2, 0.1]]).log()
    assert boosting_weights(others, torch.tensor([1]), 0.2).item() == pytest.approx(0.96)


@pytest.mark.parametrize(("fusion", "names"), [(Concat, ("audio", "video")), (Late, ("audio", "video", "text"))])
def test_gradients_against_the_released_formula(fusion: Any, names: Any) -> None:
    """(−5 y·log p + y·q log p) / 5 of each clip, as released but for its factor 5/C, and the term of agreement."""
    model = build(fusion=fusion, modalities=names, reconboost=ReconBoost(1, 1, 0.2, 0.7))
    batch = Toy(modalities=names).collate([*range(8)])
    count = len(names)
    recorded = steps(model, batch, epochs=2 * count + 1)
    encodings = {name: model.model.encoders[name](batch["inputs"][name]) for name in names}
    y, parameters = F.one_hot(batch["label"], 3).float(), dict(model.model.named_parameters())
    parts = model.model.head.additive_logits(encodings)
    assert parts is not None
    for epoch, gradients in enumerate(recorded):
        stage, rectifies = divmod(epoch, 2)
        name = names[stage % count]
        if rectifies:
            loss = F.cross_entropy(model.model.head(encodings), batch["label"])
        else:
            logs = parts[name].log_softmax(1)
            others = [parts[m] for m in names[: min(stage, count)] if m != name]
            q = torch.stack(others).sum(0).detach().softmax(1) if others else torch.zeros_like(y)
            loss = ((-5 * y * logs + y * q * logs).sum(1) / 5).mean()
            if stage:
                before = parts[names[(stage - 1) % count]].detach()
                loss = loss + 0.7 * F.mse_loss(parts[name].softmax(1), before.softmax(1))
        pieces = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True, retain_graph=True)
        for (key, parameter), piece in zip(parameters.items(), pieces, strict=True):
            expected = torch.zeros_like(parameter) if piece is None else piece
            torch.testing.assert_close(gradients[key], expected, msg=f"{epoch} {key}")


def test_a_fusion_that_is_no_sum_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.reconboost: needs a fusion whose logits are a sum .*, not Gated"):
        build(fusion=Gated, reconboost=ReconBoost())
