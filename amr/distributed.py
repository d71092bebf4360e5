"""Sums over ranks, and a clean end of the process group."""

import atexit
import functools

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


@functools.cache
def close_at_exit() -> None:
    """Close the process group before the interpreter shuts down; to be called once a group may exist.

    gloo's worker threads may hold tensors until then, and a thread that asks a dying interpreter for its lock aborts a
    process whose training has ended well (pytorch/pytorch#179291). Lightning closes NCCL's groups only.
    """
    atexit.register(_close)


def _close() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
