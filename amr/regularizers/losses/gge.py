"""Greedy gradient ensemble: the model learns what the dominant modality alone leaves unexplained."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amr.attribution import at_least_float32
from amr.fusion.base import pool_tokens
from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.shared import EpochMeans, Window, global_means
from amr.utils.errors import UserError, listed
from amr.utils.names.ranges import Range


def residual_targets(labels_one_hot: Tensor, bias_probabilities: Tensor) -> Tensor:
    """Part of the label that a biased model does not explain: ỹ = clamp(y − p, 0, 1) (Han et al. 2021, softmax form).

    y − p is the negative gradient of the biased model's cross-entropy by its logits; only its positive part can be a
    target.

    Args:
        labels_one_hot: Labels y, (B, C), one-hot or smoothed: rows of non-negative numbers that sum to 1.
        bias_probabilities: Class probabilities p of the biased model, (B, C).

    Returns:
        Targets, (B, C), in [0, 1], without gradient; a row's sum is in [0, 1] and near 0 where the bias is right.
    """
    return (labels_one_hot - bias_probabilities).clamp(0, 1).detach()


class GGE(Regularizer):
    """Trains the model on the residual of a biased branch, that of the dominant modality (Han et al. 2021).

    The biased branch is a linear head on the modality's pooled, detached encoding, trained by its own cross-entropy in
    every epoch; the encoders never feel it. In the epochs [start_epoch, end_epoch) the main loss is replaced by
    −Σ_c ỹ_c log p_c, its mean over the clips. A clip that lacks the biased modality keeps its plain label. Logged
    are the share of the epoch's steps in which each modality was the bias, and the part of the label that it left.

    Args:
        bias: Name of the biased modality; None: the one whose head has the lowest running training cross-entropy. The
            first batch decides the start, ties go to the first modality.
        momentum: Weight of a new batch in the running cross-entropy, in (0, 1]; without effect if `bias` is given.
        start_epoch: First epoch in which it acts; before, it is naive fusion and the biased branch warms up.
        end_epoch: First epoch in which it acts no more; None for never.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "gge"
    title = "GGE"
    signal = "running cross-entropy of each modality's own classifier"
    ranges: ClassVar = {"start_epoch": Range(0, 0.5, "epochs")}
    min_modalities = 2
    running: Tensor

    def __init__(
        self, bias: str | None = None, momentum: float = 0.1, start_epoch: int = 0, end_epoch: int | None = None
    ) -> None:
        super().__init__()
        self.check("momentum", momentum, 0 < momentum <= 1, "a value in (0, 1]")
        self.bias, self.momentum = bias, momentum
        self.window = Window(self.name, start_epoch, end_epoch)

    def setup(self, model: FusionModel) -> None:
        """Makes the biased branches, one per candidate, and their running cross-entropy."""
        if self.bias is not None and self.bias not in model.modalities:
            raise UserError(f"model.gge.bias={self.bias!r}: must be null or one of {listed(model.modalities)}")
        self.candidates = model.modalities if self.bias is None else (self.bias,)
        head = model.head
        self.heads = nn.ModuleDict({m: nn.Linear(head.dims[m], head.num_classes) for m in self.candidates})
        self.register_buffer("running", torch.full((len(self.candidates),), torch.nan))
        self.means = EpochMeans([*(f"bias/{name}" for name in self.candidates), "residual"])

    def main_loss(self, step: Step) -> Tensor:
        """The residual loss, out of its epochs the cross-entropy, plus the biased branches' own cross-entropy."""
        with torch.autocast(step.label.device.type, enabled=False):
            logits = at_least_float32(step.logits)
            classes, smoothing = logits.shape[1], step.label_smoothing
            labels = F.one_hot(step.label, classes).to(logits) * (1 - smoothing) + smoothing / classes
            has = step.has(self.candidates)  # (H, B)
            guesses = [
                head(pool_tokens(at_least_float32(step.encodings[name].detach()))) for name, head in self.heads.items()
            ]
            errors = torch.stack([step.cross_entropy(guess, reduction="none") for guess in guesses])  # (H, B)
            residuals = torch.stack([residual_targets(labels, guess.softmax(1)) for guess in guesses])  # (H, B, C)
            terms, sums, counts = global_means(torch.cat([errors, residuals.sum(2)]), torch.cat([has, has]))
            means = sums / counts  # NaN where no clip has the modality
            bias_losses, chosen = terms[: len(has)], self._choose(means[: len(has)])
            self._note(chosen, means[len(has) :], counts[len(has) :])
            if step.epoch not in self.window:
                return step.loss + bias_losses.sum()
            target = torch.where(has.unsqueeze(2), residuals, labels).index_select(0, chosen).squeeze(0)
            return F.cross_entropy(logits, target) + bias_losses.sum()

    def _choose(self, errors: Tensor) -> Tensor:
        """Index, (1,), of the biased modality, from the candidates' mean errors over a global batch, (H,)."""
        errors = errors.to(self.running)
        moved = torch.where(self.running.isnan(), errors, torch.lerp(self.running, errors, self.momentum))
        self.running.copy_(torch.where(errors.isfinite(), moved, self.running))
        return self.running.nan_to_num(nan=torch.inf).argmin().view(1)

    def _note(self, chosen: Tensor, residuals: Tensor, clips: Tensor) -> None:
        """Adds a step to the epoch's means."""
        steps = F.one_hot(chosen[0], len(residuals)).to(residuals)
        values = torch.cat([steps, residuals.index_select(0, chosen)])
        self.means.update(values, torch.cat([torch.ones_like(steps), clips.index_select(0, chosen)]))
