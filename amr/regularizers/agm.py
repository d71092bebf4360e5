"""Adaptive gradient modulation: each encoder's steps follow how its modality does against its own past."""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from amr.attribution import evaluating
from amr.fusion.base import only
from amr.model import FusionModel
from amr.regularizers.base import Step
from amr.regularizers.ogm import EncoderModulation, complete_clips
from amr.utils.distributed import all_reduce_sum
from amr.utils.errors import UserError

CAP = 10.0  # of τ − r
MAX_ALPHA = 8.0  # exp(alpha * CAP) must be a single-precision number
MAX_LOSS = -math.log(1e-8)  # a clip's share in a score grows no further: bounds the ratios


def attributed_logits(full: Tensor, without: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each of two modalities adds to the logits (Li et al. 2023).

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
    return {a: (full - without[a] + without[b]) / 2, b: (full - without[b] + without[a]) / 2}


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
    for members in _coalitions(names):
        if members not in coalitions:
            raise ValueError(f"coalitions: {{{', '.join(sorted(members))}}} is missing; all non-empty sets are needed")
    parts = {}
    for name in names:
        rest = [other for other in names if other != name]
        part = coalitions[frozenset({name})] / len(names)  # S = ∅
        for others in _coalitions(rest):
            weight = 1 / (len(names) * math.comb(len(rest), len(others)))  # |S|! (M − |S| − 1)! / M!
            part = part + weight * (coalitions[others | {name}] - coalitions[others])
        parts[name] = part
    return parts


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
    order = 61
    past: Tensor
    past_steps: Tensor

    def __init__(self, alpha: float = 1.5, start_epoch: int = 0, end_epoch: int | None = None) -> None:
        if not 0 <= alpha <= MAX_ALPHA:
            raise UserError(f"model.agm.alpha={alpha}: allowed are values in [0, {MAX_ALPHA:g}]")
        super().__init__(alpha, start_epoch, end_epoch)

    def setup(self, model: FusionModel) -> None:
        """Makes room for the running means, (M,), which are kept in the checkpoint."""
        super().setup(model)
        self.register_buffer("past", torch.zeros(len(model.modalities)))
        self.register_buffer("past_steps", torch.tensor(0))

    @torch.no_grad()
    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Multiplies the gradients in place; before `start_epoch` it only takes note of the scores."""
        if steps and self.alpha > 0 and steps[0].epoch < self.start_epoch:
            self.coefficients(steps)
        super().on_gradients(steps)

    def coefficients(self, steps: Sequence[Step]) -> Tensor:
        """Factors, (M,), of the global batch's scores, which then join the past ones."""
        sums = all_reduce_sum(self._cross_entropies(steps))
        usable = (sums[-1] > 0) & sums.isfinite().all()  # 16-mixed may overflow, and skips the step
        scores = torch.where(usable, sums[:-1] / sums[-1].clamp_min(1), self.past)
        factors = torch.where(usable, modulation_factors(scores, self.past, self.alpha), 1.0)
        self.past_steps += usable
        self.past += (scores - self.past) / self.past_steps.clamp_min(1)
        return factors

    def _cross_entropies(self, steps: Sequence[Step]) -> Tensor:
        """Sum of −log p_y of each modality's part over this rank's complete clips, and their number, (M + 1,)."""
        model = steps[0].model
        sums = self.past.new_zeros(len(model.modalities) + 1)
        with torch.autocast(sums.device.type, enabled=False), evaluating(model.head):
            for encodings, label in complete_clips(steps):
                parts = shapley_logits({s: model.head(only(encodings, s)) for s in _coalitions(model.modalities)})
                losses = torch.stack(
                    [F.cross_entropy(parts[name], label, reduction="none") for name in model.modalities]
                )
                sums += torch.cat([losses.clamp_max(MAX_LOSS).sum(1), sums.new_tensor([len(label)])])
        return sums


def _coalitions(names: Sequence[str]) -> list[frozenset[str]]:
    """All non-empty sets of names, small ones first."""
    sizes = range(1, len(names) + 1)
    return [frozenset(members) for size in sizes for members in itertools.combinations(names, size)]
