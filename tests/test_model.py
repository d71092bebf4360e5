"""Encoders that see one modality, a head that sees encodings, and clips that lack some."""

import pytest
import torch
from torch import Tensor, nn

from amr.encoders import Encoder
from amr.fusion import Concat
from amr.model import FusionModel
from amr.utils.errors import UserError
from tests.toy import Linear


class Normed(Encoder):
    out_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.net = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        out: Tensor = self.net(x)
        return out


def model() -> FusionModel:
    torch.manual_seed(0)
    return FusionModel({"a": Linear(6, 4), "b": Normed()}, Concat({"a": 4, "b": 3}, 5))


def test_head_and_encoder_parameters_partition_all() -> None:
    m = model()
    head, encoders = set(m.head_parameters()), set(m.encoder_parameters())
    assert head | encoders == set(m.parameters())
    assert not head & encoders
    assert head == set(m.head.parameters())


def test_forward_is_the_head_of_the_encodings() -> None:
    m = model().eval()
    x = {"a": torch.randn(4, 6), "b": torch.randn(4, 6), "unused": torch.randn(4, 1)}
    encodings = m.encode(x)
    assert list(encodings) == ["a", "b"] == list(m.modalities)
    torch.testing.assert_close(m(x), m.head(encodings))
    torch.testing.assert_close(m.head(encodings), m.head.classify(m.penultimate(encodings)))
    for name in "ab":  # no encoder sees another modality
        changed = m.encode({**x, name: torch.randn(4, 6)})
        assert all(torch.equal(changed[other], encodings[other]) for other in "ab" if other != name)


def test_missing_clips_are_zero_and_never_reach_the_encoder() -> None:
    m, reference = model(), model()
    x = {"a": torch.randn(6, 6), "b": torch.randn(6, 6)}
    mask = torch.tensor([True, False, True, True, False, True])
    encodings = m.encode(x, {"b": mask})
    assert torch.equal(encodings["b"][~mask], torch.zeros(2, 3))
    torch.testing.assert_close(encodings["b"][mask], reference.encoders["b"](x["b"][mask]))
    statistics = [net.encoders["b"].get_buffer("net.1.running_mean") for net in (m, reference)]
    torch.testing.assert_close(*statistics)


def test_a_modality_that_the_whole_batch_lacks() -> None:
    m = model()
    x = {"a": torch.randn(4, 6), "b": torch.full((4, 6), torch.nan)}
    before = m.encoders["b"].get_buffer("net.1.running_mean").clone()
    logits = m(x, {"b": torch.zeros(4, dtype=torch.bool)})
    assert torch.isfinite(logits).all()
    assert torch.equal(m.encoders["b"].get_buffer("net.1.running_mean"), before)
    torch.autograd.backward(logits.sum())
    gradients = [p.grad for p in m.encoders["b"].parameters()]  # DDP waits for every parameter
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_refusals() -> None:
    with pytest.raises(UserError, match="no input for the modality 'b'; it has 'a'"):
        model().encode({"a": torch.randn(1, 6)})
    for name in ("a.b", "keys", ""):
        with pytest.raises(UserError, match="cannot name a modality"):
            FusionModel({name: Linear()}, Concat({"x": 8}, 2))
