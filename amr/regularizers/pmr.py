"""Prototypical modal rebalance: the modality that lags is pulled to its class prototypes."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from amr.fusion.base import pool_tokens
from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.utils.distributed import all_reduce_sum
from amr.utils.errors import UserError


def prototype_log_probabilities(encoding: Tensor, prototypes: Tensor, known: Tensor | None = None) -> Tensor:
    """Log of the softmax over negative Euclidean distances, log p_k ∝ −‖z − c_k‖ (Fan et al. 2023, eq. 7).

    The distance is neither squared nor normalised. Its gradient at z = c_k is 0.

    Args:
        encoding: Pooled encodings z, (B, D), single precision or double.
        prototypes: Prototypes c, (C, D), of the same type.
        known: Boolean (C,): the classes that have a prototype; None for all. The others get probability 0, as a finite
            log, so that no product with it is NaN.

    Returns:
        Log-probabilities, (B, C).
    """
    # Not by matrix products: ‖z‖² − 2 z·c + ‖c‖² cancels where it matters, near a prototype.
    distances = torch.cdist(encoding, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
    if known is not None:
        distances = distances.masked_fill(~known, torch.finfo(distances.dtype).max)
    return F.log_softmax(-distances, dim=1)


def prototype_cross_entropy(encoding: Tensor, prototypes: Tensor, label: Tensor, known: Tensor | None = None) -> Tensor:
    """Each clip's prototypical cross-entropy −log p_y, (B,) (Fan et al. 2023, eq. 9).

    Args:
        encoding: Pooled encodings, (B, D).
        prototypes: Prototypes, (C, D).
        label: Class indices, (B,), of known classes.
        known: Boolean (C,): the classes that have a prototype; None for all.
    """
    return F.nll_loss(prototype_log_probabilities(encoding, prototypes, known), label, reduction="none")


def prototype_entropy(encoding: Tensor, prototypes: Tensor, known: Tensor | None = None) -> Tensor:
    """Each clip's entropy −Σ_k p_k log p_k of the prototypical probabilities, (B,); arguments as above."""
    logs = prototype_log_probabilities(encoding, prototypes, known)
    return -(logs.exp() * logs).sum(1)


def imbalance_ratios(scores: Tensor) -> Tensor:
    """How far each modality leads: ρ_m = s_m / mean_{j≠m} s_j, (M,).

    With two modalities ρ_0 is the paper's ρ (Fan et al. 2023, eq. 8) and ρ_1 its inverse; more are an extension.

    Args:
        scores: Scores s ≥ 0, (M,); NaN where a modality has none: it counts for no other, and its ratio is 1.

    Returns:
        Ratios in [0, inf], without gradient; 1 where it would be 0/0.
    """
    scores = scores.detach()
    others = 1 - torch.eye(len(scores)).to(scores)
    mean = (others @ scores.nan_to_num(0.0)) / (others @ (~scores.isnan()).to(scores))
    return (scores / mean).nan_to_num(nan=1.0, posinf=torch.inf)


def strengths(scores: Tensor) -> Tensor:
    """Factor of each modality's prototypical cross-entropy: clip(1/ρ_m − 1, 0, 1), (M,).

    With two modalities these are β and γ (Fan et al. 2023, eq. 11): the one that lags has a positive one, the other 0.

    Args:
        scores: Scores s ≥ 0, (M,), as in `imbalance_ratios`.
    """
    return (1 / imbalance_ratios(scores) - 1).clamp(0, 1)


class PMR(Regularizer):
    """Pulls the encodings of the modality that lags to its class prototypes (Fan et al. 2023).

    A modality's prototypes are its mean pooled encodings of each class over an epoch's training pass, blended with the
    former ones at the epoch's end; so there are none in the first epoch, and the method is inactive there. Its score is
    the mean probability of the true class by distance to the prototypes, over the global batch's clips that have the
    modality.

    Args:
        alpha: Factor of the prototypical cross-entropy, >= 0; 0 only measures, unless there is an entropy term.
        momentum: Weight of the former prototypes, in [0, 1).
        start_epoch: First epoch in which it acts; prototypes are kept from the first on.
        end_epoch: First epoch in which it acts no more; None for never.
        entropy_weight: Factor of the entropy that is kept up in the modality that leads (paper: 0.01 or 0.001), >= 0.
        entropy_epochs: First epoch without that term; 0 leaves it out, as the released code does.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "pmr"
    title = "PMR"
    min_modalities = 2

    prototypes: Tensor
    known: Tensor
    sums: Tensor
    tally: Tensor

    def __init__(
        self,
        alpha: float = 1.0,
        momentum: float = 0.2,
        start_epoch: int = 0,
        end_epoch: int | None = None,
        entropy_weight: float = 0.01,
        entropy_epochs: int = 0,
    ) -> None:
        super().__init__()
        for key, value in (("alpha", alpha), ("entropy_weight", entropy_weight)):
            if not (value >= 0 and math.isfinite(value)):
                raise UserError(f"model.pmr.{key}={value}: allowed are finite numbers >= 0")
        if not 0 <= momentum < 1:
            raise UserError(f"model.pmr.momentum={momentum}: allowed are values in [0, 1)")
        if start_epoch < 0 or (end_epoch is not None and end_epoch <= start_epoch):
            raise UserError(f"model.pmr: start_epoch={start_epoch}, end_epoch={end_epoch}: 0 <= start < end is needed")
        if entropy_epochs < 0:
            raise UserError(f"model.pmr.entropy_epochs={entropy_epochs}: allowed are whole numbers >= 0")
        self.alpha, self.momentum = alpha, momentum
        self.start_epoch, self.end_epoch = start_epoch, end_epoch
        self.entropy_weight, self.entropy_epochs = entropy_weight, entropy_epochs
        self._report: dict[str, float] = {}

    def setup(self, model: FusionModel) -> None:
        """Makes room for the prototypes, (C, D_m), and for the sums that will be the next ones."""
        self.sizes, classes = dict(model.head.dims), model.head.num_classes
        width, modalities = sum(self.sizes.values()), len(self.sizes)
        self.register_buffer("prototypes", torch.zeros(classes, width))  # the modalities' side by side
        self.register_buffer("known", torch.zeros(classes, modalities, dtype=torch.bool))
        # Of the epoch so far: sums of encodings and numbers of clips; sums of strengths and scores, and of steps.
        self.register_buffer("sums", torch.zeros(classes, width + modalities))
        self.register_buffer("tally", torch.zeros(2 * modalities + 1))

    def active(self, epoch: int) -> bool:
        """Whether the method acts in this epoch, once there are prototypes."""
        return self.start_epoch <= epoch and (self.end_epoch is None or epoch < self.end_epoch)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The prototypical cross-entropy of what lags and, early on, the entropy of what leads."""
        with torch.autocast(step.label.device.type, enabled=False):
            pooled = {  # in single precision at least
                name: pool_tokens(e.to(torch.promote_types(e.dtype, torch.float32)))
                for name, e in step.encodings.items()
            }
            everywhere = torch.ones_like(step.label, dtype=torch.bool)
            has = torch.stack([(step.present or {}).get(name, everywhere) for name in self.sizes])  # (M, B)
            encodings = [pooled[name] for name in self.sizes]
            self._accumulate(encodings, step.label, has)
            if not (self.active(step.epoch) and bool(self.known.any())):
                return {}
            prototypes = torch.split(self.prototypes.to(encodings[0]), list(self.sizes.values()), dim=1)
            views = list(zip(encodings, prototypes, self.known.T, strict=True))
            errors = torch.stack([prototype_cross_entropy(z, c, step.label, known) for z, c, known in views])  # (M, B)
            rows = has & self.known[step.label].T
            right = (-errors.detach()).exp() * rows  # probability of the true class
            totals = all_reduce_sum(torch.cat([right.sum(1), rows.sum(1), right.new_ones(1)]))
            sums, counts, ranks = torch.split(totals, [len(rows), len(rows), 1])
            scores = sums / counts  # NaN where no clip counts
            slow = strengths(scores)
            self.tally += torch.cat([slow, scores.nan_to_num(0.0), ranks.new_ones(1)]).to(self.tally)
            # Over this rank's part of the global count: the ranks' mean is the mean over the global batch's clips.
            share = torch.where(counts > 0, counts / ranks, 1.0)
            terms = {"prototype": self.alpha * (slow * torch.where(rows, errors, 0.0).sum(1) / share).sum()}
            if step.epoch < self.entropy_epochs:
                entropies = torch.stack([prototype_entropy(z, c, known) for z, c, known in views])
                fast = (imbalance_ratios(scores) - 1).clamp(0, 1)  # of the other modality, where there are two
                kept = (fast * torch.where(rows, entropies, 0.0).sum(1) / share).sum()
                terms["entropy"] = -self.entropy_weight * kept
        return terms

    def on_epoch_end(self, metrics: Mapping[str, Tensor]) -> None:
        """Moves the prototypes to the epoch's class means, and makes its report."""
        widths = torch.tensor(list(self.sizes.values()), device=self.sums.device)
        sums, counts = torch.split(self.sums, [int(widths.sum()), len(widths)], dim=1)
        each, seen = partial(torch.repeat_interleave, repeats=widths, dim=1), counts > 0  # (C, M) to (C, sum of D_m)
        former = each(self.momentum * self.known)
        moved = former * self.prototypes + (1 - former) * sums / each(counts.clamp_min(1))
        self.prototypes.copy_(torch.where(each(seen), moved, self.prototypes))
        self.known |= seen
        self.sums.zero_()
        *values, steps = self.tally.tolist()
        keys = [f"{key}/{name}" for key in ("strength", "score") for name in self.sizes]
        self._report = {key: value / steps for key, value in zip(keys, values, strict=True)} if steps else {}
        self.tally.zero_()

    def report(self) -> dict[str, float]:
        """The epoch's mean strength and score of each modality; nothing of an epoch in which it did not act."""
        return self._report

    def _accumulate(self, encodings: Sequence[Tensor], label: Tensor, has: Tensor) -> None:
        """Adds the global batch's encodings, (B, D_m) each, to their classes' sums; `has` is boolean, (M, B)."""
        sums, counts = [], []
        for z, rows in zip(encodings, has, strict=True):
            usable = (rows & z.isfinite().all(1)).unsqueeze(1)  # an overflow would stay in the prototypes for good
            member = F.one_hot(label, len(self.sums)).to(z) * usable  # (B, C)
            sums.append(member.T @ torch.where(usable, z.detach(), 0.0))
            counts.append(member.sum(0).unsqueeze(1))
        self.sums += all_reduce_sum(torch.cat([*sums, *counts], dim=1))
