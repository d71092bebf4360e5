"""Heads whose use of the modalities is known, on encodings that are given."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from amr.encoders.base import Encoder
from amr.fusion.base import Fusion
from amr.model import FusionModel
from amr.model.encoded import Encoded


class Same(Encoder):
    """Returns its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x


class Known(Fusion):
    """Logits are a given function of the encodings, and perhaps a sum of given parts."""

    def __init__(self, dims: Mapping[str, int], classes: int, logits: Callable[..., Tensor], additive: bool) -> None:
        super().__init__(dims, classes, 1)
        self.logits, self.is_sum = logits, additive

    def fuse(self, encodings: Mapping[str, Tensor]) -> Tensor:
        return self.logits(**encodings)

    def classify(self, fused: Tensor) -> Tensor:
        return fused

    def additive_logits(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """For a head `Σ_m logits(m=e^m, others=0)`."""
        if not self.is_sum:
            return None
        zeros = {name: torch.zeros_like(e) for name, e in encodings.items()}
        return {name: self.logits(**{**zeros, name: e}) for name, e in encodings.items()}


def known(logits: Callable[..., Tensor], classes: int, additive: bool = False, **dims: int) -> FusionModel:
    """A model of modalities by their encodings' sizes."""
    return FusionModel({m: Same(size) for m, size in dims.items()}, Known(dims, classes, logits, additive)).eval()


def clips(labels: Tensor, **encodings: Tensor) -> Encoded:
    """Clips with these encodings."""
    return Encoded([f"{i:04d}" for i in range(len(labels))], labels, encodings)
