"""Multilayer perceptrons for vectors and tables."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from amr.encoders.base import Encoder, check_sizes
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
        """Encodes (B, ...), `in_dim` numbers per clip, to (B, out_dim)."""
        flat = x.flatten(1)
        if flat.shape[1] != self.in_dim:
            raise UserError(f"MLPEncoder: in_dim is {self.in_dim}, got {flat.shape[1]} from shape {tuple(x.shape)}")
        encoding: Tensor = self.layers(flat)
        return encoding


class TableEncoder(Encoder):
    """Linear layers with ReLU in between, over the numbers of a table's row and the embeddings of its categories.

    Input is (B, columns), of floats or integers; a category is its code, at least 0 and below the number of its values.
    The encoding has shape (B, out_dim). `amr.datamodules.Tensors` gives a category as one number per value, which
    `MLPEncoder` takes.

    Args:
        columns: One entry per column: 0 for a number, else how many values the category has.
        embedding: Size of a category's embedding.
        hidden: Widths of the hidden layers; empty for a linear map.
        out_dim: Size of the encoding.

    Raises:
        UserError: There is no column, a size is below 1, or a number of values below 0; in use, the input has another
            shape or a code that is not allowed.
    """

    def __init__(
        self, columns: Sequence[int], embedding: int = 8, hidden: Sequence[int] = (64,), out_dim: int = 64
    ) -> None:
        super().__init__()
        check_sizes(self, embedding=embedding)
        if not columns or min(columns) < 0:
            raise UserError(f"TableEncoder: columns={list(columns)}: must be 0 or a number of values, for each column")
        self.columns, self.out_dim = list(columns), out_dim
        self.numbers = [place for place, values in enumerate(columns) if not values]
        self.categories = [place for place, values in enumerate(columns) if values]
        self.embeddings = nn.ModuleList(nn.Embedding(columns[place], embedding) for place in self.categories)
        self.mlp = MLPEncoder(len(self.numbers) + embedding * len(self.categories), hidden, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes rows (B, columns) to (B, out_dim)."""
        if x.ndim != 2 or x.shape[1] != len(self.columns):
            raise UserError(f"TableEncoder: takes (B, {len(self.columns)}), got shape {tuple(x.shape)}")
        weight = self.mlp.layers[0].get_parameter("weight")
        parts = [x[:, self.numbers].to(weight.dtype)]
        for place, embedding in zip(self.categories, self.embeddings, strict=True):
            codes = x[:, place].long()
            if x.device.type == "cpu" and not torch.compiler.is_compiling():  # a GPU would have to wait for the answer
                low, high = (int(end) for end in codes.aminmax())
                if low < 0 or high >= self.columns[place]:
                    raise UserError(
                        f"TableEncoder: column {place} has the code {low if low < 0 else high}: must be at least 0 and "
                        f"below {self.columns[place]}"
                    )
            parts.append(embedding(codes))
        encoding: Tensor = self.mlp(torch.cat(parts, dim=1))
        return encoding
