"""Multi-loss: its terms, and that weight 0 is naive fusion."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from amr.regularizers import MultiLoss
from tests.regularizers.recorded import one_step
from tests.toy import Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty|Average precision)"
)


def test_gradients_by_hand() -> None:
    model = build(multi_loss=MultiLoss(0.6))
    batch = Toy(lacking=True).collate([*range(8)])
    method: Any = model.regularizers.methods["multi_loss"]
    heads = method.heads.heads
    encodings = model.model.encode(batch["inputs"], batch["present"])
    loss = F.cross_entropy(model.model.head(encodings), batch["label"])
    has = batch["present"]["video"]
    loss = loss + 0.6 * F.cross_entropy(heads["audio"](encodings["audio"]), batch["label"])
    loss = loss + 0.6 * F.cross_entropy(heads["video"](encodings["video"][has]), batch["label"][has])
    parameters = dict(model.model.named_parameters())
    expected = torch.autograd.grad(loss, [*parameters.values()])
    gradients = one_step(model, batch)
    for key, piece in zip(parameters, expected, strict=True):
        torch.testing.assert_close(gradients[key], piece, rtol=1e-5, atol=1e-7, msg=key)


def test_weight_zero_is_naive_bit_for_bit() -> None:
    a, b = build(multi_loss=MultiLoss(0.0)), build()
    fit(a)
    fit(b)
    assert_equal(weights(a), weights(b))
