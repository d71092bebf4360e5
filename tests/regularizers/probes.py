"""Encoders and classifiers whose gradients are looked at."""

import copy
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from amr.classifier import FusionClassifier
from amr.encoders.base import Encoder
from amr.fusion import Concat
from amr.fusion.base import Fusion
from amr.regularizers import Regularizer, Step
from tests import training
from tests.toy import Toy
from tests.training import fit


class Convolution(Encoder):
    """One convolution, its bias, batch norm and a linear layer, over the toy's vectors."""

    def __init__(self, out_dim: int = 8, norm: bool = True) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.conv = nn.Conv1d(1, 4, 3)
        self.norm = nn.BatchNorm1d(4) if norm else nn.Identity()
        self.project = nn.Linear(16, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(torch.tanh(self.norm(self.conv(x.unsqueeze(1)))).flatten(1))
        return out


class ConvolutionTokens(Convolution):
    """Two tokens a clip."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([super(ConvolutionTokens, self).forward(x * scale) for scale in (1.0, -2.0)], dim=1)


def plain() -> Convolution:
    """Without batch norm, whose statistics depend on how clips are batched."""
    return Convolution(norm=False)


class Probe(Regularizer):
    """Gradients, and what the step knew, at its place in the order."""

    name = "probe"
    needs_steps = True

    def __init__(self, order: int) -> None:
        super().__init__()
        self.__dict__.update(order=order, name=f"probe{order}")
        self.gradients: list[dict[str, Tensor]] = []
        self.heads: list[Fusion] = []
        self.steps: list[list[Step]] = []

    def on_gradients(self, steps: Sequence[Step]) -> None:
        model = steps[0].model
        named = model.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        self.heads.append(copy.deepcopy(model.head))
        self.steps.append(list(steps))


def build(*methods: Regularizer, encoder: Any = Convolution, **options: Any) -> FusionClassifier:
    return training.build(encoder=encoder, extra=list(methods), **options)


def probed(method: Regularizer, data: Toy | None = None, **options: Any) -> tuple[Probe, Probe, pl.Trainer]:
    """Gradients just before the method and at the end, over two epochs of real training."""
    flags = options.pop("flags", {})
    before, after = Probe(59), Probe(70)
    trainer = fit(build(before, method, after, **options), data or Toy(batch_size=16), **flags)
    return before, after, trainer


def hidden_concat(dims: Any, classes: int) -> Fusion:
    return Concat(dims, classes, hidden=5)
