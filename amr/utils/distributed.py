"""Exchange between ranks, and a clean end of their process group."""

import atexit
import functools
import os
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from torch import distributed as dist

from amr.utils.errors import UserError

T = TypeVar("T")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum of a detached tensor over all ranks, or the tensor itself where there is one process."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def mean_over_ranks(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (...) of all ranks' rows (N, ...), zeros where no rank has any, and how many there are."""
    flat = rows.flatten(1)
    total = all_reduce_sum(torch.cat([flat.sum(0), flat.new_tensor([len(flat)])]))
    return (total[:-1] / total[-1].clamp_min(1)).view(rows.shape[1:]), total[-1]


def gathered_rows(rows: Tensor) -> tuple[Tensor, slice]:
    """All ranks' rows (N, ...), in the order of ranks, and which of them are this rank's (B, ...).

    Gradient flows back to the rank that has the row: each gets the sum of all ranks' gradients by its rows. So every
    rank must take part in the backward pass if any does.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return rows, slice(0, len(rows))
    counts = [rows.new_zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, rows.new_full((1,), len(rows), dtype=torch.int64))
    sizes: list[int] = torch.cat(counts).tolist()
    start = sum(sizes[: dist.get_rank()])
    own = slice(start, start + len(rows))
    gathered: Tensor = _GatheredRows.apply(rows, sizes, own)  # type: ignore[no-untyped-call]
    return gathered, own


class _GatheredRows(torch.autograd.Function):
    """Rows of all ranks, which need not have the same number."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], own: slice) -> Tensor:
        ctx.own = own
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return all_reduce_sum(gradients[0])[ctx.own], None, None


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


def is_first_process() -> bool:
    """Whether this is the process of rank 0, by what launchers set: known before any process group, or a Trainer, is.

    torchrun sets RANK; Lightning's launcher LOCAL_RANK, in each rank but a node's first, and NODE_RANK; srun sets
    SLURM_PROCID.
    """
    if "RANK" in os.environ:
        return int(os.environ["RANK"]) == 0
    rank = next(
        (os.environ[key] for key in ("LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK") if key in os.environ), 0
    )
    return int(rank) == 0 and int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))) == 0


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def gather_objects(value: T) -> list[T]:
    """Values of all ranks, in the order of ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def check_trainer(trainer: pl.Trainer) -> None:
    """Refuses, by name, what training would be wrong under; with several ranks, they end cleanly.

    Raises:
        UserError: The strategy or the precision is not one of those allowed.
    """
    strategy, precision = trainer.strategy, trainer.precision
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise UserError(f"trainer.strategy={type(strategy).__name__}: must be a single device or ddp")
    if precision not in PRECISIONS:
        raise UserError(f"trainer.precision={precision}: must be one of {', '.join(PRECISIONS)}")
    if trainer.world_size > 1:
        close_at_exit()


class AgreedMaximum:
    """The elementwise maximum of a few numbers over all ranks, asked for now and read later.

    On a GPU it goes through a stream of its own into pinned memory. Reading then waits for what was queued before it
    was asked for, and not for what has been queued since.

    Args:
        value: This rank's numbers, (N,).
    """

    def __init__(self, value: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if not value.is_cuda:
            self._host = _all_reduce_max(value)
            return
        stream = torch.cuda.Stream(value.device)  # type: ignore[no-untyped-call]  # one of a fixed pool
        stream.wait_stream(torch.cuda.current_stream(value.device))
        value.record_stream(stream)
        self._host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        with torch.cuda.stream(stream):
            self._host.copy_(_all_reduce_max(value), non_blocking=True)
            self._event = stream.record_event()

    def read(self) -> list[float]:
        """The numbers, the same on all ranks."""
        if self._event is not None:
            self._event.synchronize()
        numbers: list[float] = self._host.tolist()
        return numbers


def _all_reduce_max(value: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value
