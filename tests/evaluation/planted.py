"""Heads of two classes whose log-odds are a given function of scalar encodings, and clips of such encodings."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from amr.encoders.base import Encoder
from amr.evaluation.table import Row
from amr.fusion.base import Fusion
from amr.model import FusionModel
from amr.model.encoded import Encoded


class Same(Encoder):
    """The encoding is the input."""

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x


class Planted(Fusion):
    """Two classes; the log-odds of the second are a given function of the encodings."""

    def __init__(self, names: tuple[str, ...], odds: Callable[[dict[str, Tensor]], Tensor]) -> None:
        super().__init__(dict.fromkeys(names, 1), 2, 1)
        self.odds = odds

    def fuse(self, encodings: Mapping[str, Tensor]) -> Tensor:
        return self.odds(dict(encodings))

    def classify(self, fused: Tensor) -> Tensor:
        return torch.cat([-fused / 2, fused / 2], dim=1)


def planted(odds: Callable[[dict[str, Tensor]], Tensor], *names: str) -> FusionModel:
    """A model of such a head."""
    return FusionModel({name: Same() for name in names}, Planted(names, odds)).eval()


def clips(labels: list[int], **values: list[float]) -> Encoded:
    """Clips of scalar encodings."""
    encodings = {name: torch.tensor(v)[:, None] for name, v in values.items()}
    return Encoded([f"{i:03d}" for i in range(len(labels))], torch.tensor(labels), encodings)


def found(rows: list[Row]) -> dict[str, float]:
    """The rows' values by name."""
    return {row.name: row.value for row in rows}
