"""ARL: gradients are weighted towards the modality whose predictions vary least and on which the model relies less."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from amr.attribution import at_least_float32
from amr.regularizers.base import Step
from amr.regularizers.gradients.ogm import EncoderModulation
from amr.regularizers.losses.multi_loss import unimodal_losses
from amr.utils.names.ranges import Range


def asymmetric_weights(entropy: Tensor, magnitude: Tensor, temperature: float, floor: float = 0.3) -> Tensor:
    """W = softmax(T · u_m (1 − d_m) / (M − 1)), (M,), which sums to 1.

    u_m is the share of modality m in Σ_j 1/v_j, with v_j the share of j in the entropies, at least 2 · floor / M. d_m
    is the share of modality m in the magnitudes. So a modality whose predictions vary little, and that counts for
    little, gets the largest weight.

    Args:
        entropy: Mean entropy of each modality's own prediction, nats, >= 0, (M,) with M >= 2.
        magnitude: Mean Σ_c |f_m[c]| of each modality's own logits, >= 0, (M,).
        temperature: T, >= 0; 0 gives 1/M each.
        floor: Least share of the entropies with two modalities, in (0, 0.5].
    """
    count = len(entropy)
    shares, used = (torch.where(x.sum() > 0, x / x.sum(), torch.full_like(x, 1 / count)) for x in (entropy, magnitude))
    certain = 1 / shares.clamp_min(2 * floor / count)
    return torch.softmax(temperature * certain / certain.sum() * (1 - used) / (count - 1), dim=0)


class ARL(EncoderModulation):
    """Asymmetric representation learning (Wei, Luo, Luo 2025, ARL): favours the better modality.

    L = CE + γ Σ_m CE_m, each modality by the head's own `unimodal_logits`, so there are no further parameters. From
    `start_epoch` on, the gradient of encoder m is multiplied by 1 + w_m (`asymmetric_weights`). Entropies and
    magnitudes are of the global batch: all accumulated micro-batches of all ranks, without the clips that lack a
    modality.

    Args:
        gamma: γ, >= 0.
        temperature: T, >= 0; 0 multiplies all encoders' gradients by 1 + 1/M.
        floor: Least share of the entropies, with two modalities, in (0, 0.5]; 2 · floor / M with M of them.
        start_epoch: First epoch in which gradients are weighted.
        end_epoch: First epoch in which they no longer are; None if they are until the end.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "arl"
    title = "ARL"
    signal = "entropy and size of each modality's own logits"
    ranges: ClassVar = {"gamma": Range(0.1, 4, "log"), "temperature": Range(1, 20, "log")}
    order = 62

    def __init__(
        self,
        gamma: float = 1.0,
        temperature: float = 8.0,
        floor: float = 0.3,
        start_epoch: int = 6,
        end_epoch: int | None = None,
    ) -> None:
        super().__init__(1.0, start_epoch, end_epoch)
        self.check("gamma", gamma, gamma >= 0, "a finite number >= 0")
        self.check("temperature", temperature, temperature >= 0, "a finite number >= 0")
        self.check("floor", floor, 0 < floor <= 0.5, "a value in (0, 0.5]")
        self.gamma, self.temperature, self.floor = gamma, temperature, floor

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Each modality's own term, times γ: its mean over the clips of all ranks that have it."""
        if self.gamma == 0:
            return {}
        logits = step.model.head.unimodal_logits(step.encodings)
        return {name: self.gamma * term for name, term in unimodal_losses(logits, step).items()}

    def clip_scores(self, step: Step) -> Tensor:
        """Entropy of each modality's prediction and size of its logits, (N, 2M)."""
        logits = step.model.head.unimodal_logits(step.complete()[0])
        each = torch.stack([at_least_float32(logits[name]) for name in step.model.modalities], dim=1)
        logs = each.log_softmax(-1)
        return torch.cat([-(logs.exp() * logs).sum(-1), each.abs().sum(-1)], dim=1)

    def coefficients(self, steps: Sequence[Step]) -> Tensor:
        """1 + w_m, (M,); 1 where no clip is complete, or 16-mixed overflowed."""
        means, clips = self.scores(steps)
        entropy, magnitude = means.chunk(2)
        weights = asymmetric_weights(entropy, magnitude, self.temperature, self.floor)
        return torch.where((clips > 0) & means.isfinite().all(), 1 + weights, 1.0)
