"""Prototypical modal rebalance: the modality that lags is pulled to its class prototypes."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from amr.attribution import at_least_float32
from amr.fusion.base import pool_tokens
from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.shared import EpochMeans, Window, global_means
from amr.utils.distributed import all_reduce_sum
from amr.utils.names.ranges import Range


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
    modality. The logged means are each modality's strength and score, of the epochs in which the method acts.

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
    signal = "probability of the true class by distances to class prototypes"
    ranges: ClassVar = {"alpha": Range(0.25, 4, "log")}
    min_modalities = 2

    prototypes: Tensor
    known: Tensor
    sums: Tensor

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
            self.check(key, value, value >= 0, "a finite number >= 0")
        self.check("momentum", momentum, 0 <= momentum < 1, "a value in [0, 1)")
        self.check("entropy_epochs", entropy_epochs, entropy_epochs >= 0, "a whole number >= 0")
        self.alpha, self.momentum, self.window = alpha, momentum, Window(self.name, start_epoch, end_epoch)
        self.entropy_weight, self.entropy_epochs = entropy_weight, entropy_epochs

    def setup(self, model: FusionModel) -> None:
        """Makes room for the prototypes, (C, D_m), and for the sums that will be the next ones."""
        self.sizes, classes = dict(model.head.dims), model.head.num_classes
        width, modalities = sum(self.sizes.values()), len(self.sizes)
        self.register_buffer("prototypes", torch.zeros(classes, width))  # the modalities' side by side
        self.register_buffer("known", torch.zeros(classes, modalities, dtype=torch.bool))
        self.register_buffer("sums", torch.zeros(classes, width + modalities))  # the epoch's: of encodings, of clips
        self.means = EpochMeans(f"{key}/{name}" for key in ("strength", "score") for name in self.sizes)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The prototypical cross-entropy of what lags and, early on, the entropy of what leads."""
        with torch.autocast(step.label.device.type, enabled=False):
            encodings = [pool_tokens(at_least_float32(step.encodings[name])) for name in self.sizes]
            has = step.has([*self.sizes])  # (M, B)
            self._accumulate(encodings, step.label, has)
            if not (step.epoch in self.window and bool(self.known.any())):
                return {}
            prototypes = torch.split(self.prototypes.to(encodings[0]), list(self.sizes.values()), dim=1)
            views = list(zip(encodings, prototypes, self.known.T, strict=True))
            errors = torch.stack([prototype_cross_entropy(z, c, step.label, known) for z, c, known in views])  # (M, B)
            rows = has & self.known[step.label].T
            right = (-errors.detach()).exp()  # probability of the true class
            terms, sums, counts = global_means(torch.cat([errors, right]), rows.repeat(2, 1))
            scores = (sums / counts)[len(rows) :]  # NaN where no clip counts
            slow = strengths(scores)
            self.means.update(torch.cat([slow, scores]))
            parts = {"prototype": self.alpha * (slow * terms[: len(rows)]).sum()}
            if step.epoch < self.entropy_epochs:
                entropies = torch.stack([prototype_entropy(z, c, known) for z, c, known in views])
                fast = (imbalance_ratios(scores) - 1).clamp(0, 1)  # of the other modality, where there are two
                parts["entropy"] = -self.entropy_weight * (fast * global_means(entropies, rows)[0]).sum()
        return parts

    def on_epoch_end(self, state: Mapping[str, Tensor]) -> None:
        """Moves the prototypes to the epoch's class means."""
        widths = torch.tensor(list(self.sizes.values()), device=self.sums.device)
        sums, counts = torch.split(self.sums, [int(widths.sum()), len(widths)], dim=1)
        each, seen = partial(torch.repeat_interleave, repeats=widths, dim=1), counts > 0  # (C, M) to (C, sum of D_m)
        former = each(self.momentum * self.known)
        moved = former * self.prototypes + (1 - former) * sums / each(counts.clamp_min(1))
        self.prototypes.copy_(torch.where(each(seen), moved, self.prototypes))
        self.known |= seen
        self.sums.zero_()

    def _accumulate(self, encodings: Sequence[Tensor], label: Tensor, has: Tensor) -> None:
        """Adds the global batch's encodings, (B, D_m) each, to their classes' sums; `has` is boolean, (M, B)."""
        sums, counts = [], []
        for z, rows in zip(encodings, has, strict=True):
            usable = (rows & z.isfinite().all(1)).unsqueeze(1)  # an overflow would stay in the prototypes for good
            member = F.one_hot(label, len(self.sums)).to(z) * usable  # (B, C)
            sums.append(member.T @ torch.where(usable, z.detach(), 0.0))
            counts.append(member.sum(0).unsqueeze(1))
        self.sums += all_reduce_sum(torch.cat([*sums, *counts], dim=1))
