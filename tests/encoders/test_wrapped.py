"""Modules of other libraries, and of the user's own, as encoders."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.mobilenetv3 import mobilenet_v3_small

from amr.encoders import SmallCNN, WrappedEncoder, as_encoder
from amr.utils.errors import UserError


class Returns(nn.Module):
    """Gives what a function makes of (B, 3, 5) features."""

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.linear, self.shape = nn.Linear(4, 5), shape

    def forward(self, x: Tensor) -> Any:
        return self.shape(self.linear(x))


@pytest.mark.parametrize(
    ("module", "out_dim"),
    [
        (nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 3)), 3),
        (resnet18(num_classes=11), 11),
        (nn.Sequential(*list(resnet18().children())[:-2]), 512),  # feature maps
        (mobilenet_v3_small(num_classes=6).features, 576),
        (nn.GRU(5, 9, batch_first=True), 9),
        (nn.Embedding(20, 12), 12),
        (nn.Sequential(nn.Conv1d(2, 4, 5), nn.AdaptiveAvgPool1d(6)), 6),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_a_dry_run_finds_the_size(module: nn.Module, out_dim: int) -> None:
    encoder = as_encoder(module)
    assert encoder.out_dim == out_dim
    assert as_encoder(module, out_dim).out_dim == out_dim


def test_the_dry_run_leaves_no_trace() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module[1].eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert as_encoder(module).out_dim == 4
    assert module.training
    assert not module[1].training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "shape",
    [
        lambda h: h[:, 0],
        lambda h: h,
        lambda h: (h, "more"),
        lambda h: {"pooler_output": h[:, 0, :1], "last_hidden_state": h},
        lambda h: h.transpose(1, 2).unsqueeze(-1),
    ],
    ids=["pooled", "tokens", "tuple", "transformers", "maps"],
)
def test_what_a_module_may_return(shape: Any) -> None:
    encoder = as_encoder(Returns(shape), example=torch.zeros(2, 3, 4))
    assert encoder.out_dim == 5
    encoding = encoder(torch.randn(6, 3, 4))
    assert encoding.shape in ((6, 5), (6, 3, 5))


def test_an_encoder_is_returned_as_it_is() -> None:
    encoder = SmallCNN()
    assert as_encoder(encoder) is encoder


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match=r"dry run on an input of shape \(1, 3, 64, 64\) failed.*give example="):
        as_encoder(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2)))
    with pytest.raises(UserError, match=r"first layer does not tell.*give example="):
        as_encoder(nn.ReLU())
    with pytest.raises(UserError, match=r"it returns SimpleNamespace; must be"):
        as_encoder(Returns(lambda h: SimpleNamespace(h=h)), example=torch.zeros(2, 3, 4))
    encoder = WrappedEncoder(nn.Linear(4, 5), 6)
    with pytest.raises(UserError, match=r"out_dim=6, but it returns encodings of size 5"):
        encoder(torch.zeros(2, 4))
