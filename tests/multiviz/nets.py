"""Small models whose maps are known."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from amr.encoders.base import Encoder
from amr.fusion import Concat, Gated
from amr.fusion.base import Fusion
from amr.model import FusionModel
from amr.multiviz.base import Unit
from tests import toy


class Flat(Encoder):
    """The input itself, or a given function of it, as a vector."""

    def __init__(self, out_dim: int, function: Callable[[Tensor], Tensor] = lambda x: x.flatten(1)) -> None:
        super().__init__()
        self.out_dim, self.function = out_dim, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Net(Encoder):
    """A module as an encoder."""

    def __init__(self, net: nn.Module, out_dim: int) -> None:
        super().__init__()
        self.net, self.out_dim = net, out_dim

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Bilinear(Fusion):
    """One logit, aᵀ W b, and its negative."""

    def __init__(self, dims: dict[str, int]) -> None:
        super().__init__(dims, 2, 1)
        self.weight = nn.Parameter(torch.randn([*dims.values()], dtype=torch.float64))
        self.classifier.weight.data = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
        self.classifier.bias.data = torch.zeros(2, dtype=torch.float64)

    def combine(self, encodings: Any) -> Tensor:
        a, b = (encodings[name] for name in self.dims)
        return torch.einsum("ni,ij,nj->n", a, self.weight, b)[:, None]


def model_of(
    encoders: dict[str, Encoder] | None = None, head: Callable[..., Fusion] = Gated, hidden: int | None = 8
) -> FusionModel:
    torch.manual_seed(0)
    encoders = encoders or {"one": toy.Linear(), "two": toy.Linear(), "three": toy.Linear()}
    return FusionModel(encoders, head({m: e.out_dim for m, e in encoders.items()}, 3, hidden=hidden)).double()


def linear_model(size: int, modality: str = "one") -> tuple[FusionModel, Tensor]:
    """A model that is linear in `one`, of `size` elements, and its weight, (3, size)."""
    model = model_of({modality: Flat(size), "two": toy.Linear()}, Concat, hidden=None)
    return model, model.head.classifier.weight[:, :size].detach()


def clips(count: int = 5, names: tuple[str, ...] = ("one", "two", "three"), size: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {m: torch.randn(count, size if m == "one" else 6, generator=generator).double() for m in names}


def score_of(model: FusionModel, inputs: dict[str, Tensor], target: int | Unit = 1) -> Callable[[Tensor], Tensor]:
    """The score of the clips as a function of `one`, by the whole model; also of any number of copies of the clips."""

    def score(x: Tensor) -> Tensor:
        others = {m: v.repeat(len(x) // len(v), *[1] * (v.ndim - 1)) for m, v in inputs.items() if m != "one"}
        encodings = model.encode({**others, "one": x})
        if isinstance(target, Unit):
            return model.penultimate(encodings)[:, target.index]
        logits: Tensor = model.head(encodings)
        return logits[:, target]

    return score


class Counter:
    """Rows that each encoder and the head have seen."""

    def __init__(self, model: FusionModel) -> None:
        self.rows = dict.fromkeys((*model.modalities, "head"), 0)
        self.largest = 0
        for name, encoder in model.encoders.items():
            encoder.register_forward_pre_hook(lambda _, args, name=name: self.add(name, len(args[0])))
        model.head.register_forward_pre_hook(lambda _, args: self.add("head", len(args[0]["one"])))

    def add(self, name: str, rows: int) -> None:
        self.rows[name] += rows
        self.largest = max(self.largest, rows)
