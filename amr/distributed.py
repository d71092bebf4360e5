"""Sums over ranks."""

import torch
from torch import Tensor
from torch import distributed as dist


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum of a detached tensor over all ranks, or the tensor itself where there is one process."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
