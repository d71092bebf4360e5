"""Position embeddings for another input size."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resample(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Linear interpolation of the last dimensions of `x`, to (..., *sizes); the identity where they have the size.

    Made of matrix products, a dimension each: torch's own has no deterministic gradient on a GPU.
    """
    for dim, size in enumerate(sizes, start=x.ndim - len(sizes)):
        n = x.shape[dim]
        if n != size:
            units = torch.eye(n, dtype=x.dtype, device=x.device)[None]
            weights = F.interpolate(units, size=size, mode="linear")[0]  # (n, size): of input i in output j
            x = (x.movedim(dim, -1) @ weights).movedim(-1, dim)
    return x
