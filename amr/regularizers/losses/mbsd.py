"""MBSD: for each clip, the modality that does better teaches the one that does worse."""

from collections.abc import Mapping
from itertools import combinations
from typing import ClassVar, Literal

import torch
from torch import Tensor

from amr.attribution import at_least_float32
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.losses.multi_loss import unimodal_losses
from amr.regularizers.shared import Window, global_means
from amr.utils.names.ranges import Range

Divergence = Literal["distribution", "released"]


def gap_weights(first: Tensor, second: Tensor, label: Tensor) -> Tensor:
    """W = |p_a[y] − p_b[y]| of each clip that either modality gets right, else 0, (B,), without graph.

    Args:
        first: Modality a's logits, (B, C).
        second: Modality b's logits, (B, C).
        label: Class indices, (B,).
    """
    logits = torch.stack([first, second]).detach()
    right = (logits.argmax(2) == label).any(0)
    probabilities = logits.softmax(2).gather(2, label.expand(2, -1).unsqueeze(2))[..., 0]
    return torch.where(right, (probabilities[0] - probabilities[1]).abs(), 0.0)


def taught_divergence(first: Tensor, second: Tensor, label: Tensor, kind: Divergence) -> Tensor:
    """Divergence that the weaker modality has to reduce for each clip, (B,).

    The stronger modality is the one with the larger probability of the true class. `distribution`: KL(p_strong ‖
    p_weak) over all classes, with p_strong detached. `released`: q_weak (log q_weak − q_strong) of the true class's
    probabilities q, with the graph of both.

    Args:
        first: Modality a's logits, (B, C).
        second: Modality b's logits, (B, C).
        label: Class indices, (B,).
        kind: One of the two divergences.
    """
    logs = torch.stack([first, second]).log_softmax(2)
    true = logs.gather(2, label.expand(2, -1).unsqueeze(2))[..., 0]  # (2, B)
    if kind == "released":
        strong, weak = true.amax(0), true.amin(0)
        return weak.exp() * (weak - strong.exp())
    leads = (true[0] >= true[1]).unsqueeze(1)
    teacher = torch.where(leads, logs[0], logs[1]).detach()
    learner = torch.where(leads, logs[1], logs[0])
    return (teacher.exp() * (teacher - learner)).sum(1)


class MBSD(Regularizer):
    """Balanced self-distillation between modalities (Liu et al. 2023, MBSD, as BalanceBenchmark states it).

    Added are Σ_m CE_m of the head's own unimodal logits f_m and, for each pair of modalities, mean_i w_i (r R_i + d
    D_i), averaged over pairs. w_i is how far apart both are on the true class (`gap_weights`), R_i = mean_c (f_a[c] −
    f_b[c])², and D_i is `taught_divergence`. A clip counts in the terms of the modalities that it has.

    Args:
        unimodal_weight: Factor of Σ_m CE_m, >= 0.
        logits_weight: r, >= 0.
        divergence_weight: d, >= 0.
        divergence: `distribution`: the stronger modality's prediction is the target of the weaker one's; `released`:
            what BalanceBenchmark's code computes.
        start_epoch: First epoch in which it acts; before, it is naive fusion.
        end_epoch: First epoch in which it no longer acts; None if it acts until the end.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "mbsd"
    title = "MBSD"
    signal = "difference of the modalities' probabilities of the true class, per clip"
    ranges: ClassVar = {"logits_weight": Range(0.1, 10, "log"), "divergence_weight": Range(0.1, 10, "log")}
    min_modalities = 2

    def __init__(
        self,
        unimodal_weight: float = 1.0,
        logits_weight: float = 1.0,
        divergence_weight: float = 1.0,
        divergence: Divergence = "distribution",
        start_epoch: int = 0,
        end_epoch: int | None = None,
    ) -> None:
        super().__init__()
        for key, value in (
            ("unimodal_weight", unimodal_weight),
            ("logits_weight", logits_weight),
            ("divergence_weight", divergence_weight),
        ):
            self.check(key, value, value >= 0, "a finite number >= 0")
        self.check_choice("divergence", divergence, Divergence)
        self.unimodal_weight, self.logits_weight = unimodal_weight, logits_weight
        self.divergence_weight = divergence_weight
        self.divergence: Divergence = divergence
        self.window = Window(self.name, start_epoch, end_epoch)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """`unimodal/<m>`, `logits` and `divergence`."""
        if step.epoch not in self.window or not (self.unimodal_weight or self.logits_weight or self.divergence_weight):
            return {}
        logits = {name: at_least_float32(f) for name, f in step.model.head.unimodal_logits(step.encodings).items()}
        terms = {f"unimodal/{m}": self.unimodal_weight * term for m, term in unimodal_losses(logits, step).items()}
        return terms | self._between(logits, step)

    def _between(self, logits: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
        has = dict(zip(logits, step.has([*logits]), strict=True))
        values, counted = [], []
        for a, b in combinations(logits, 2):
            weights = gap_weights(logits[a], logits[b], step.label)
            differences = (logits[a] - logits[b]).square().mean(1)
            divergence = taught_divergence(logits[a], logits[b], step.label, self.divergence)
            values += [weights * differences, weights * divergence]
            counted += [has[a] & has[b]] * 2
        means, _, _ = global_means(torch.stack(values), torch.stack(counted))
        between, apart = means.view(-1, 2).mean(0)
        return {"logits": self.logits_weight * between, "divergence": self.divergence_weight * apart}
