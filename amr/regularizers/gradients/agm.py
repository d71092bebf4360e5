"""Adaptive gradient modulation: each encoder's steps depend on its modality's lead, compared with the past."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from amr.attribution import shapley_values
from amr.model import FusionModel
from amr.regularizers.base import Step
from amr.regularizers.gradients.ogm import EncoderModulation
from amr.regularizers.shared import recombined
from amr.utils.names.ranges import Range

CAP = 10.0  # of τ − r
MAX_ALPHA = 8.0  # exp(alpha * CAP) must be a single-precision number
MAX_LOSS = -math.log(1e-8)  # a clip's share in a score grows no further: bounds the ratios


def attributed_logits(full: Tensor, without: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Part of the logits that each of two modalities adds (Li et al. 2023).

    φ_a = ½ (F(a, v) − F(0, v) + F(a, 0)): the Shapley value of a, with F(0, 0) taken as 0. φ_a + φ_v = F(a, v).

    Args:
        full: F(a, v), logits of both modalities, (B, C).
        without: Logits with one modality's encoding zeroed, (B, C), by the name of that modality.

    Returns:
        φ_m of each modality, (B, C), in `without`'s order.

    Raises:
        ValueError: If there are not two modalities; `shapley_logits` takes any number.
    """
    if len(without) != 2:
        raise ValueError(f"without: {len(without)} modalities, expected 2; shapley_logits takes any number")
    a, b = without
    parts = shapley_logits({frozenset({a, b}): full, frozenset({a}): without[b], frozenset({b}): without[a]})
    return {name: parts[name] for name in without}


def shapley_logits(coalitions: Mapping[frozenset[str], Tensor]) -> dict[str, Tensor]:
    """Shapley value of each modality in the logits, with F(∅) taken as 0 (Li et al. 2023; Shapley 1953).

    φ_m = Σ_{S ∌ m} |S|! (M − |S| − 1)! / M! · (F(S + {m}) − F(S)). For M = 2 it is `attributed_logits`.

    Args:
        coalitions: F(S), logits with all encodings but those in S zeroed, (B, C), for each non-empty set S of the M
            modalities.

    Returns:
        φ_m of each modality, (B, C); they sum to the logits of all together.

    Raises:
        ValueError: If a coalition is missing.
    """
    names = sorted(frozenset[str]().union(*coalitions))
    sets = [frozenset(name for bit, name in enumerate(names) if index >> bit & 1) for index in range(1 << len(names))]
    for members in sets[1:]:
        if members not in coalitions:
            raise ValueError(f"coalitions: {{{', '.join(sorted(members))}}} is missing; must be all non-empty sets")
    full = coalitions[sets[-1]]
    scores = torch.stack([torch.zeros_like(full), *(coalitions[members] for members in sets[1:])])  # (2^M, B, C)
    parts = shapley_values(scores.flatten(1)).T.view(len(names), *full.shape)
    return dict(zip(names, parts, strict=True))


def competition_ratios(scores: Tensor) -> Tensor:
    """How far each modality is ahead: r_m = exp(mean_{j≠m} s_j − s_m), (M,), of scores s = −mean log p_y, (M,)."""
    count = len(scores)
    return torch.exp((scores.sum() - count * scores) / (count - 1))


def modulation_factors(scores: Tensor, past: Tensor, alpha: float) -> Tensor:
    """Factor of each encoder's gradient: exp(α min(τ_m − r_m, 10)) (Li et al. 2023).

    Args:
        scores: s_m = −mean log p_y of this step, (M,).
        past: Running mean of the scores of the steps before, (M,); τ are its ratios.
        alpha: Strength α >= 0.

    Returns:
        Factors, (M,), at most exp(10 α): below 1 for a modality that is further ahead than it used to be.
    """
    return torch.exp(alpha * (competition_ratios(past) - competition_ratios(scores)).clamp_max(CAP))


class AGM(EncoderModulation):
    """Slows the encoder of a modality that is further ahead than it used to be, and speeds up others (Li et al. 2023).

    A modality's part φ_m of the logits is its Shapley value over the sets of encodings that are not zeroed; its score
    is the mean cross-entropy of softmax(φ_m) on the whole batch: all accumulated micro-batches of all ranks. Clips that
    lack a modality are left out. Past scores are averaged over all steps, from the first on, also where the method does
    not act yet. A step costs 2^M − 1 evaluations of the head, without gradient.

    Args:
        alpha: Strength, in [0, 8]; 0 switches the method off. The authors used 1.5 for CREMA-D with concatenation, 2.5
            for AV-MNIST, 4 for UR-FUNNY.
        start_epoch: First epoch in which it acts.
        end_epoch: First epoch in which it acts no more; None for never.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "agm"
    title = "AGM"
    signal = "cross-entropy of each modality's Shapley value of the logits, compared with its past"
    ranges: ClassVar = {"alpha": Range(0.1, 4, "log")}
    order = 61
    past: Tensor
    past_steps: Tensor

    def __init__(self, alpha: float = 1.5, start_epoch: int = 0, end_epoch: int | None = None) -> None:
        self.check("alpha", alpha, 0 <= alpha <= MAX_ALPHA, f"a value in [0, {MAX_ALPHA:g}]")
        super().__init__(alpha, start_epoch, end_epoch)

    def setup(self, model: FusionModel) -> None:
        """Makes room for the running means, (M,), which are kept in the checkpoint."""
        super().setup(model)
        self.register_buffer("past", torch.zeros(len(model.modalities)))
        self.register_buffer("past_steps", torch.tensor(0))

    @torch.no_grad()
    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Multiplies the gradients in place; before `start_epoch` it only takes note of the scores."""
        if self.alpha > 0 and steps[0].epoch < self.window.start:
            self.coefficients(steps)
        super().on_gradients(steps)

    def coefficients(self, steps: Sequence[Step]) -> Tensor:
        """Factors, (M,), of the global batch's scores, which then join the past ones."""
        means, clips = self.scores(steps)
        usable = (clips > 0) & means.isfinite().all()  # 16-mixed may overflow, and skips the step
        scores = torch.where(usable, means, self.past)
        factors = torch.where(usable, modulation_factors(scores, self.past, self.alpha), 1.0)
        self.past_steps += usable
        self.past += (scores - self.past) / self.past_steps.clamp_min(1)
        return factors

    def clip_scores(self, step: Step) -> Tensor:
        """−log p_y of each modality's part of the logits, bounded."""
        model, (encodings, label) = step.model, step.complete()
        coalitions = {
            frozenset(kept): recombined(model, encodings, dict.fromkeys({*model.modalities} - {*kept}))
            for size in range(1, len(model.modalities) + 1)
            for kept in itertools.combinations(model.modalities, size)
        }
        parts = shapley_logits(coalitions)
        losses = [F.cross_entropy(parts[name], label, reduction="none") for name in model.modalities]
        return torch.stack(losses, dim=1).clamp_max(MAX_LOSS)
