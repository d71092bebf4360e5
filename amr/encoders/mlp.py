"""A multilayer perceptron for vectors."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from amr.encoders.base import Encoder
from amr.utils.errors import UserError


class MLPEncoder(Encoder):
    """Linear layers with ReLU in between, for features extracted beforehand.

    Input of shape (B, ...) is flattened to (B, in_dim); the encoding has shape (B, out_dim).

    Args:
        in_dim: Numbers a clip.
        hidden: Widths of the hidden layers; empty for a linear map.
        out_dim: Size of the encoding.

    Raises:
        UserError: A size is below 1.
    """

    def __init__(self, in_dim: int, hidden: Sequence[int] = (64,), out_dim: int = 64) -> None:
        super().__init__()
        sizes = [in_dim, *hidden, out_dim]
        if min(sizes) < 1:
            raise UserError(f"MLPEncoder: in_dim, hidden, out_dim={sizes}: must be at least 1")
        self.in_dim = in_dim
        self.out_dim = out_dim
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Encodes (B, ...), `in_dim` numbers a clip, to (B, out_dim)."""
        flat = x.flatten(1)
        if flat.shape[1] != self.in_dim:
            raise UserError(f"MLPEncoder: in_dim is {self.in_dim}, got {flat.shape[1]} from shape {tuple(x.shape)}")
        encoding: Tensor = self.layers(flat)
        return encoding
