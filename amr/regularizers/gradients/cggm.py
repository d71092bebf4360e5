"""CGGM: classifiers on the encodings find the encoder that gained least, and the direction of its modality."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from amr.attribution import at_least_float32
from amr.model import FusionModel
from amr.regularizers.base import Step
from amr.regularizers.gradients.ogm import EncoderModulation
from amr.regularizers.losses.multi_loss import unimodal_losses
from amr.regularizers.shared import UnimodalHeads
from amr.utils.names.ranges import Range


def balance_of(gains: Tensor) -> Tensor:
    """B_m = Σ_{j≠m} Δ_j / Σ_j Δ_j, (M,), in [0, 1]: largest for the modality that gained least; Σ_m B_m = M − 1.

    Args:
        gains: Δ, gain of each modality's accuracy, (M,) with M >= 2. A loss counts as no gain; where nobody gains, all
            count the same.
    """
    gains = gains.clamp_min(0.0)
    total = gains.sum()
    return torch.where(total > 0, 1 - gains / torch.where(total > 0, total, 1.0), 1 - 1 / len(gains))


def direction_loss(logits: Tensor, others: Mapping[str, Tensor], label: Tensor, balance: Tensor) -> Tensor:
    """Mean over modalities of B_m (1 − cos(g, g_m)), a scalar, with g the cross-entropy's gradient by the logits.

    Args:
        logits: The model's, (B, C); gradient flows through them alone.
        others: Logits of each modality's classifier, (B, C).
        label: Class indices, (B,).
        balance: B, >= 0, (M,), in the order of `others`.
    """
    target = F.one_hot(label, logits.shape[1])
    g = (logits.softmax(1) - target).flatten()
    cosines = [F.cosine_similarity(g, (o.detach().softmax(1) - target).flatten(), dim=0) for o in others.values()]
    return (balance * (1 - torch.stack(cosines))).mean()


class CGGM(EncoderModulation):
    """Classifier-guided gradient modulation (Guo, Jin, Chen, Zhao 2024, CGGM).

    Each modality has a linear classifier on its detached encoding. Δ_m is the gain of its accuracy on the global batch
    (all accumulated micro-batches of all ranks) since the step before, and B (`balance_of`) multiplies the gradient of
    encoder m by ρ B_m. λ times `direction_loss`, with the B of the step before, turns the model's gradient towards
    those of the modalities that gained least; it is the mean of the micro-batches' and ranks'. Clips that lack a
    modality do not count, except in the terms of the classifiers of the modalities that they have.

    Args:
        factor: ρ, >= 0; the authors' command for CMU-MOSI has 1.3.
        direction_weight: λ, >= 0; 0.2 there.
        start_epoch: First epoch in which it acts; the classifiers learn before, too.
        end_epoch: First epoch in which it no longer acts; None if it acts until the end.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "cggm"
    title = "CGGM"
    signal = "gain of each modality's classifier in accuracy since the last step"
    ranges: ClassVar = {"factor": Range(0.5, 3, "log"), "direction_weight": Range(0.05, 1, "log")}
    order = 64
    heads: UnimodalHeads
    accuracy: Tensor
    balance: Tensor

    def __init__(
        self, factor: float = 1.3, direction_weight: float = 0.2, start_epoch: int = 0, end_epoch: int | None = None
    ) -> None:
        super().__init__(1.0, start_epoch, end_epoch)
        self.check("factor", factor, factor >= 0, "a finite number >= 0")
        self.check("direction_weight", direction_weight, direction_weight >= 0, "a finite number >= 0")
        self.factor, self.direction_weight = factor, direction_weight

    def setup(self, model: FusionModel) -> None:
        """Makes the classifiers, and room for the last step's accuracies and B, which are in the checkpoint."""
        super().setup(model)
        self.heads = UnimodalHeads(model)
        self.register_buffer("accuracy", torch.zeros(len(model.modalities)))
        self.register_buffer("balance", torch.zeros(len(model.modalities)))

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The classifiers' own terms, which reach no encoder, and `direction`, which reaches no classifier."""
        logits = self.heads({name: encoding.detach() for name, encoding in step.encodings.items()})
        terms = {f"classifier/{name}": term for name, term in unimodal_losses(logits, step).items()}
        complete = step.has(step.model.modalities).all(0)
        if self.direction_weight > 0 and step.epoch in self.window and bool(complete.any()):
            said = {name: at_least_float32(logits[name][complete]) for name in step.model.modalities}
            fused = at_least_float32(step.logits[complete])
            terms["direction"] = self.direction_weight * direction_loss(fused, said, step.label[complete], self.balance)
        return terms

    def clip_scores(self, step: Step) -> Tensor:
        """Whether each modality's classifier is right, (N, M)."""
        encodings, label = step.complete()
        logits = self.heads(encodings)
        return torch.stack([logits[name].argmax(1) == label for name in step.model.modalities], dim=1).to(self.accuracy)

    @torch.no_grad()
    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Multiplies the gradients in place; before `start_epoch` it only takes note of the accuracies."""
        if not self.active(steps[0].epoch):
            self.coefficients(steps)
        super().on_gradients(steps)

    def coefficients(self, steps: Sequence[Step]) -> Tensor:
        """ρ B, (M,); 1 where no clip is complete."""
        accuracy, clips = self.scores(steps)
        if clips == 0:
            return torch.ones_like(accuracy)
        self.balance.copy_(balance_of(accuracy - self.accuracy))
        self.accuracy.copy_(accuracy)
        return self.factor * self.balance
