"""MLA: the modalities take turns with one shared head, and a later turn may not undo an earlier one."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from amr.attribution import at_least_float32
from amr.fusion.base import Fusion, pool_tokens
from amr.fusion.shared import Shared
from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.losses.multi_loss import unimodal_losses
from amr.utils.distributed import mean_over_ranks
from amr.utils.errors import UserError
from amr.utils.names.ranges import Choices

Mixing = Literal["entropy", "mean"]


def entropy_weights(logits: Mapping[str, Tensor]) -> Tensor:
    """Weight of each modality's prediction of each clip, (B, M): ∝ exp(max_j H_j − H_m), H the clip's entropy.

    Args:
        logits: Each modality's logits, (B, C).
    """
    logs = [at_least_float32(said).log_softmax(1) for said in logits.values()]
    entropies = torch.stack([-(log.exp() * log).sum(1) for log in logs], dim=1)
    return (-entropies).softmax(1)  # the maximum is a constant factor of a row


def mixed_log_probabilities(logits: Mapping[str, Tensor], weights: Tensor) -> Tensor:
    """Log Σ_m w_m softmax(f_m), (B, C), of each modality's logits f_m, (B, C), and weights w, (B, M)."""
    logs = torch.stack([at_least_float32(said).log_softmax(1) for said in logits.values()], dim=1)  # (B, M, C)
    return torch.logsumexp(logs + weights.log().unsqueeze(2), dim=1)


def updated_projection(projection: Tensor, mean: Tensor, alpha: float) -> Tensor:
    """The projection after an input was seen, by recursive least squares: P − (P r)(P r)ᵀ / (α + rᵀ P r), then / ‖P‖_F.

    Args:
        projection: P, (D, D), symmetric.
        mean: r, the batch's mean input of the layer, (D,).
        alpha: > 0; the smaller, the more completely r's direction is taken out.
    """
    along = projection @ mean
    reduced = projection - torch.outer(along, along) / (alpha + mean @ along)
    normed: Tensor = reduced / torch.linalg.norm(reduced)
    return normed


class MixedHead(Fusion):
    """A shared head whose prediction is a mixture of the modalities' predictions.

    Logits are log Σ_m w_m softmax(f_m), so that their softmax is the mixture.

    Args:
        shared: The head that gives every f_m.
        mixing: `entropy`: w of each clip by `entropy_weights`; `mean`: 1/M.
    """

    def __init__(self, shared: Shared, mixing: Mixing) -> None:
        super().__init__(shared.dims, shared.num_classes, 1)
        del self.hidden, self.classifier  # the shared head's are used
        self.shared, self.mixing = shared, mixing

    def fuse(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Each modality's features side by side, as the shared head's."""
        return self.shared.fuse(encodings)

    def classify(self, fused: Tensor) -> Tensor:
        """Log-probabilities of the mixture, (B, C), of penultimate features."""
        logits = self.shared.classify_each(fused)
        if self.mixing == "entropy":
            return mixed_log_probabilities(logits, entropy_weights(logits))
        return mixed_log_probabilities(logits, fused.new_full((len(fused), len(logits)), 1 / len(logits)))

    def unimodal_logits(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each modality's own logits, (B, C), of the shared head."""
        return self.shared.unimodal_logits(encodings)


class MLA(Regularizer):
    """Multimodal learning with alternating unimodal adaptation (Zhang et al. 2024).

    In each batch every modality has a turn: its cross-entropy through the shared head moves its encoder and the head.
    The gradient of the head's weight is projected onto what the encodings of earlier turns do not span
    (`updated_projection`), so that the head keeps what it does with them. The prediction is a mixture of the
    modalities' (`MixedHead`), in training's metrics and in evaluation. Needs the fusion `Shared` without a hidden layer
    and one batch per optimizer step.

    Args:
        projection: Whether to project; the released code does not, since it looks for a parameter name that does not
            exist.
        mixing: `entropy`: the more certain modality of a clip weighs more; `mean`: equal weights.

    Raises:
        UserError: If the fusion is another one.
    """

    name = "mla"
    title = "MLA"
    signal = "entropy of each modality's prediction; directions that earlier encodings span"
    ranges: ClassVar = {"mixing": Choices(("entropy", "mean"))}
    min_modalities = 2
    # Dropout changes what the fused head sees, which is not what a turn learns from; both heads cannot be wrapped.
    conflicts = frozenset({"dropout", "modality_dropout", "mmcosine"})
    projector: Tensor
    turns_seen: Tensor

    def __init__(self, projection: bool = True, mixing: Mixing = "entropy") -> None:
        super().__init__()
        self.check_choice("mixing", mixing, Mixing)
        self.projection = projection
        self.mixing: Mixing = mixing

    def wrap_head(self, head: Fusion) -> Fusion:
        """The mixture over the shared head."""
        if not isinstance(head, Shared) or not isinstance(head.hidden, torch.nn.Identity):
            raise UserError(
                f"model.mla: needs the fusion Shared without a hidden layer, not {type(head).__name__}; "
                "set --model.fusion amr.fusion.Shared"
            )
        return MixedHead(head, self.mixing)

    def setup(self, model: FusionModel) -> None:
        """Makes the projection, (D, D), which is in the checkpoint."""
        size = next(iter(model.head.dims.values()))
        self.modalities = model.modalities
        self.register_buffer("projector", torch.eye(size))
        self.register_buffer("turns_seen", torch.tensor(0))

    def turns(self, epoch: int) -> Sequence[Sequence[str]]:
        """One turn per modality, in the model's order."""
        return [(name,) for name in self.modalities]

    def main_loss(self, step: Step) -> Tensor:
        """The turn's modality's cross-entropy: its mean over the clips of all ranks that have it."""
        assert step.turn is not None
        (name,) = step.turn
        logits = _shared(step.model).classifier(pool_tokens(step.encodings[name]))
        return unimodal_losses({name: logits}, step)[name]

    @torch.no_grad()
    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Projects the gradient of the shared weight, and adds the turn's mean encoding to what is kept."""
        step = steps[-1]
        if not self.projection or step.turn is None:
            return
        (name,) = step.turn
        gradient = _shared(step.model).classifier.weight.grad
        if gradient is not None and int(self.turns_seen) > 0:
            gradient.copy_(gradient @ self.projector.T.to(gradient))
        rows = pool_tokens(step.encodings[name]).to(self.projector)[step.has([name])[0]]
        mean, count = mean_over_ranks(rows)
        if count > 0:
            self.projector.copy_(updated_projection(self.projector, mean, 0.1 ** (1 + step.done)))
            self.turns_seen += 1


def _shared(model: FusionModel) -> Shared:
    head = model.head
    assert isinstance(head, MixedHead)
    return head.shared
