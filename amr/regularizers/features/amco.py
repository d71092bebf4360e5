"""AMCo: units of the encoding that the prediction depends on are masked, more and more of them as an epoch proceeds."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from amr.attribution import at_least_float32, evaluating
from amr.model import FusionModel
from amr.regularizers.base import EpochState, Regularizer, Step
from amr.regularizers.losses.multi_loss import unimodal_losses
from amr.regularizers.shared import EpochMeans, Window
from amr.utils.distributed import mean_over_ranks
from amr.utils.names.ranges import Range

MOST = 10.0
"""Largest factor by which the units that are left are raised, as in BalanceBenchmark's code."""


def masked_fraction(level: float, full: float) -> float:
    """Fraction p of masked units: sin(π/2 · min(1, level/full)), from 0 to 1.

    Args:
        level: Steps of the epoch so far times epoch / 10, >= 0.
        full: Level at which everything is masked, > 0.
    """
    return math.sin(math.pi / 2 * min(1.0, level / full))


def unit_mask(size: int, fraction: float, generator: torch.Generator) -> Tensor:
    """Factor of each unit, (size,): 0 for ⌊fraction · size⌋ random units, 1 / (share of the others) for the others.

    The factor is at most `MOST`; below that, the mean over masks is 1 for every unit.

    Args:
        size: Number of units, >= 1.
        fraction: Fraction of masked units, in [0, 1].
        generator: Source of the choice, on the CPU.
    """
    masked = min(int(fraction * size), size)
    mask = torch.zeros(size)
    if masked < size:
        mask[torch.randperm(size, generator=generator)[masked:]] = min(size / (size - masked), MOST)
    return mask


def dependence(logits: Mapping[str, Tensor]) -> Tensor:
    """Share of each modality in the softmax over all modalities' logits side by side, (B, M).

    Args:
        logits: Each modality's own logits, (B, C).
    """
    stacked = torch.stack([at_least_float32(said) for said in logits.values()], dim=1)  # (B, M, C)
    return stacked.flatten(1).softmax(1).view(stacked.shape).sum(2)


class AMCo(Regularizer):
    """Adaptive mask co-optimization (Zhou et al. 2023, as BalanceBenchmark states it).

    L = CE + w Σ_m CE_m. A modality whose share in `dependence`, the mean over a global batch, reaches σ is dependent
    for the rest of the epoch: the fused prediction sees its encoding with some units masked, the same for all clips of
    a step, on all ranks. The fraction of masked units grows with the steps of the epoch and the epoch's number
    (`masked_fraction`). CE_m is of the head's unimodal logits of the whole encodings, so that a masked modality keeps
    on learning.

    Args:
        threshold: σ, in (0, 1).
        full: Level at which everything is masked, > 0; the level rises by epoch / 10 per step.
        unimodal_weight: w, >= 0.
        start_epoch: First epoch in which it acts; before, it is naive fusion.
        end_epoch: First epoch in which it no longer acts; None if it acts until the end.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "amco"
    title = "AMCo"
    signal = "share of each modality's own logits in the prediction"
    ranges: ClassVar = {"threshold": Range(0.5, 0.8)}
    reads = Regularizer.reads | {"on_gradients"}
    order = 15
    min_modalities = 2
    # It changes what the fused head sees, which is not what these learn from.
    conflicts = frozenset({"tcmax", "mla"})
    level: Tensor
    dependent: Tensor
    key: Tensor
    means: EpochMeans

    def __init__(
        self,
        threshold: float = 0.6,
        full: float = 100.0,
        unimodal_weight: float = 1.0,
        start_epoch: int = 0,
        end_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.check("threshold", threshold, 0 < threshold < 1, "a value in (0, 1)")
        self.check("full", full, full > 0, "a positive, finite number")
        self.check("unimodal_weight", unimodal_weight, unimodal_weight >= 0, "a finite number >= 0")
        self.threshold, self.full, self.unimodal_weight = threshold, full, unimodal_weight
        self.window = Window(self.name, start_epoch, end_epoch)

    def setup(self, model: FusionModel) -> None:
        """Makes room for the level, for what is dependent, and for the seed of masks; all are in the checkpoint."""
        names = model.modalities
        self.register_buffer("level", torch.zeros(3))  # level, epoch, steps of the epoch
        self.register_buffer("dependent", torch.zeros(len(names), dtype=torch.bool))
        self.register_buffer("key", torch.tensor(torch.initial_seed() & (2**62 - 1)))  # equal on all ranks
        self.means = EpochMeans([*(f"share/{m}" for m in names), *(f"masked/{m}" for m in names)])

    def on_epoch_start(self, state: EpochState) -> None:
        """Starts afresh: nothing is masked until a modality is found to be dependent."""
        self.level.copy_(torch.tensor([0.0, state.epoch, 0.0]))
        self.dependent.zero_()

    def on_encodings(self, encodings: dict[str, Tensor], present: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Masks units of the dependent modalities' encodings."""
        masked, dependent = dict(encodings), self.dependent.tolist()
        if not any(dependent):
            return masked
        level, epoch, steps = self.level.tolist()
        seed = hash((int(self.key), int(epoch), int(steps))) & (2**63 - 1)
        generator = torch.Generator().manual_seed(seed)
        for (name, encoding), masks in zip(encodings.items(), dependent, strict=True):
            mask = unit_mask(encoding.shape[-1], masked_fraction(level, self.full), generator)
            if masks:
                masked[name] = encoding * mask.to(encoding)
        return masked

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Each modality's own cross-entropy, times w."""
        if step.epoch not in self.window or not self.unimodal_weight:
            return {}
        logits = step.model.head.unimodal_logits(step.encodings)
        return {name: self.unimodal_weight * term for name, term in unimodal_losses(logits, step).items()}

    @torch.no_grad()
    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Finds out what is dependent from the next step on, and raises the level."""
        if steps[0].epoch not in self.window:
            return
        head, shares = steps[0].model.head, []
        with torch.autocast(steps[0].label.device.type, enabled=False), evaluating(head):
            for step in steps:
                encodings, _ = step.complete()
                shares.append(dependence(head.unimodal_logits(encodings)))
        share, count = mean_over_ranks(torch.cat(shares))
        fraction = masked_fraction(float(self.level[0]), self.full) * self.dependent
        self.means.update(torch.cat([share, fraction.to(share)]), torch.cat([(count > 0).expand_as(share), share >= 0]))
        if count > 0:
            self.dependent |= share >= self.threshold
        self.level += torch.tensor([steps[0].epoch / 10, 0.0, 1.0]).to(self.level)
