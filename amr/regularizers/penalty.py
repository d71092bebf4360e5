"""AMR's penalty over the clips of all ranks, and what is logged of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from amr.attribution import Head, Score, attributed_rows, ratio_penalty, shapley_shares
from amr.utils.distributed import all_reduce_sum, mean_over_ranks

Level = Literal["batch", "sample"]


def penalty_surrogate(shares: Tensor, ratio: Tensor, level: Level) -> Tensor:
    """This rank's part of the penalty over the global batch, as a scalar with the right gradient.

    Summed over ranks, the gradient is that of R over the joined batch: of Σ_m |a^m − r^m| with a the mean share
    (`batch`; Yerramilli et al. 2024, eq. 1), or of the mean over clips of Σ_m |a_i^m − r^m| (`sample`). Only the mean
    needs the other ranks' clips: R's derivative by the mean is the same on every rank, and each rank applies it to its
    own rows.

    Args:
        shares: This rank's shares, (B, M), with their graph; rows of zeros do not count.
        ratio: Normalised target ratio, (M,).
        level: Whether the batch's mean or every clip is to have the ratio.

    Returns:
        Scalar; its value, too, sums over ranks to R for `sample`.
    """
    rows = attributed_rows(shares)
    mean, count = mean_over_ranks(shares.detach()[rows])
    if level == "sample":
        return ((shares - ratio).abs().sum(1) * rows).sum() / count.clamp_min(1)
    mean = mean.unsqueeze(0).requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(ratio_penalty(mean, ratio), mean)
    return (slope * shares.sum(0)).sum() / count.clamp_min(1)


@dataclass(frozen=True)
class Measured:
    """Penalty of a step over all ranks' clips; equal on all ranks, without graph.

    Attributes:
        penalty: R, a scalar; 0 without clips.
        share: Mean share, (M,); zeros without clips.
        clips: How many clips have any share, a scalar.
    """

    penalty: Tensor
    share: Tensor
    clips: Tensor

    @classmethod
    def of(cls, shares: Tensor, target: Tensor, level: Level) -> "Measured":
        """Measures all ranks' shares, (B, M) on this one, against the target (M,); rows of zeros are left out."""
        kept = shares.detach()[attributed_rows(shares)]
        distance = (kept - target).abs().sum(1, keepdim=True)
        means, clips = mean_over_ranks(torch.cat([kept, distance], dim=1))
        share = means[:-1]
        penalty = ratio_penalty(share.unsqueeze(0), target) if level == "batch" else means[-1]
        return cls(penalty, share, clips)


def mean_encodings(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean encoding of each modality, (1, ..., D_m), over all batches of all ranks; zeros without clips."""
    names = batches[0]
    return {name: mean_over_ranks(torch.cat([batch[name] for batch in batches]))[0].unsqueeze(0) for name in names}


@torch.no_grad()
def decision_share(head: Head, batches: Sequence[Mapping[str, Tensor]], score: Score = "probability") -> Tensor:
    """Mean Shapley share of the log-odds, (M,), over all clips of all ranks; NaN if no clip has any.

    The baseline is the mean encoding of these clips. The head sees 2^M rows per clip, without a graph.

    Args:
        head: Maps encodings to logits.
        batches: This rank's encodings of clips that have every modality, a mapping by modality per micro-batch.
        score: `probability` (log-odds) or `logit`.
    """
    mean = mean_encodings(batches)
    batches = [{name: e.detach() for name, e in batch.items()} for batch in batches]
    shares = torch.cat([shapley_shares(head, batch, mean, score=score) for batch in batches])
    total = all_reduce_sum(torch.cat([shares.sum(0), attributed_rows(shares).sum().to(shares).unsqueeze(0)]))
    return total[:-1] / total[-1]
