"""Helpers of the methods: epochs, missing modalities, means over ranks and epochs, gradients, re-paired encodings."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters
from torchmetrics import Metric

from amr.attribution import recombined_logits
from amr.fusion.base import pool_tokens
from amr.model import FusionModel
from amr.utils.distributed import all_reduce_sum
from amr.utils.errors import UserError


class Window:
    """The epochs in which a method acts: `epoch in window`.

    Args:
        method: Name of the method, for the message.
        start: First epoch in which the method acts, from 0.
        end: First epoch in which the method no longer acts; None if it acts until the end.

    Raises:
        UserError: Unless 0 <= start < end.
    """

    def __init__(self, method: str, start: int, end: int | None = None) -> None:
        if start < 0 or (end is not None and end <= start):
            raise UserError(f"model.{method}: start_epoch={start}, end_epoch={end}: must be 0 <= start < end")
        self.start, self.end = start, end

    def __contains__(self, epoch: int) -> bool:
        return self.start <= epoch and (self.end is None or epoch < self.end)


class EpochMeans(Metric):
    """Means of named numbers over one epoch's steps.

    The numbers must be equal on all ranks, so nothing is synchronized. The states are in the checkpoint. `Composite`
    resets them at the start of each epoch, and `Regularizer.report` logs them.

    Args:
        names: Name of each number.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(sync_on_compute=False)
        self.names = tuple(names)
        for state in ("sums", "counts"):
            self.add_state(state, torch.zeros(len(self.names)), dist_reduce_fx="sum", persistent=True)

    def update(self, values: Tensor, weights: Tensor | float = 1.0) -> None:
        """Adds the numbers of one step, (K,), each with its weight; a number that is not finite is left out."""
        values = values.detach().to(self.sums)
        weights = torch.where(values.isfinite(), torch.as_tensor(weights).to(self.sums), 0.0)
        self.sums += values.nan_to_num(0.0, 0.0, 0.0) * weights
        self.counts += weights

    def compute(self) -> Tensor:
        """Means, (K,); NaN of a number that has no weight."""
        return self.sums / self.counts

    def named(self) -> dict[str, float]:
        """Means by name, without the numbers that have no weight."""
        numbers = zip(self.names, self.sums.tolist(), self.counts.tolist(), strict=True)
        return {name: total / count for name, total, count in numbers if count}


class UnimodalHeads(nn.Module):
    """One linear classifier per modality over its pooled encoding; used in training only.

    Args:
        model: The model whose encodings they classify.
    """

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        classes = model.head.num_classes
        self.heads = nn.ModuleDict({name: nn.Linear(size, classes) for name, size in model.head.dims.items()})

    def forward(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits of each modality, (B, C), from encodings (B, D_m) or (B, T, D_m)."""
        return {name: head(pool_tokens(encodings[name])) for name, head in self.heads.items()}


def global_means(values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means over the clips of all ranks, as terms of a loss, and what they are made of.

    Args:
        values: K numbers per clip, (K, B), with or without a graph.
        counted: Boolean (K, B): which clips count.

    Returns:
        This rank's terms, (K,), with the graph: their average over ranks, which DDP takes of gradients, is the mean
        over all ranks' counted clips. The sums over all of them, (K,), and their numbers, (K,), without graph and equal
        on all ranks.
    """
    kept = torch.where(counted, values, 0.0)
    local, exact = kept.sum(1), kept.detach()
    if exact.device.type != "mps":  # which has no double precision; elsewhere, rounding must not depend on the ranks
        exact = exact.double()
    totals = all_reduce_sum(torch.cat([exact.sum(1), counted.sum(1).to(exact), exact.new_ones(1)]))
    sums, counts, ranks = torch.split(totals.to(local), [len(local), len(local), 1])
    return local / torch.where(counts > 0, counts / ranks, 1.0), sums, counts


def trained(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that are not frozen."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def flat_gradient(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The parameters' gradients as one vector, (P,); zeros for a parameter that has none."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def set_gradient(parameters: Sequence[nn.Parameter], flat: Tensor) -> None:
    """Takes the parameters' gradients from one vector, (P,); zeros make no gradient where there is none."""
    for parameter, piece in pieces(parameters, flat):
        if parameter.grad is not None:
            parameter.grad.copy_(piece)
        elif piece.any():
            parameter.grad = piece.clone()


def pieces(parameters: Sequence[nn.Parameter], flat: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter with its part, of its shape, of a vector (P,)."""
    parts = [torch.empty_like(parameter) for parameter in parameters]
    vector_to_parameters(flat, parts)
    return list(zip(parameters, parts, strict=True))


def recombined(
    model: FusionModel,
    encodings: Mapping[str, Tensor],
    picks: Mapping[str, Tensor | None],
    detach: Iterable[str] = (),
) -> Tensor:
    """Logits of re-paired, zeroed or partly detached encodings.

    The head runs in its current mode, and the logits carry gradient into the head and into every encoding that is not
    detached. Examples, with modalities `a` and `v` and B clips:

        recombined(model, e, {"v": None})                      # v is zeroed for every clip
        recombined(model, e, {"v": torch.randperm(B)})         # v comes from another clip
        recombined(model, e, {"v": order}, detach=["a"])       # the same; only v's encoding gets gradient
        recombined(model, e, {}, detach=["a", "v"])            # the usual logits; only the head gets gradient
        recombined(model, e, {"a": pairs[:, 0], "v": pairs[:, 1]})  # any N pairs, (N, 2)

    Args:
        model: The model whose head is used.
        encodings: Encoding of each modality, (B, ..., D_m).
        picks: By modality, which clip's encoding takes each of N places: indices (N,) in [0, B), or -1 for zeros; None
            zeroes all N. A modality that is not named keeps its B encodings, and N must be B.
        detach: Modalities whose encodings get no gradient.

    Returns:
        Logits, (N, C); N is B if no indices are given.

    Raises:
        ValueError: If a name is not a modality, or if the numbers of places differ.
    """
    return recombined_logits(model.head, encodings, picks, detach)
