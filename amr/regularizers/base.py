"""What every method is: a few hooks into one training step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from amr.fusion.base import Fusion
from amr.model import FusionModel


@dataclass(frozen=True)
class Step:
    """One micro-batch, as the hooks see it.

    Attributes:
        model: The model in training.
        inputs: Input of each modality, (B, ...); empty once detached.
        id: The clips' names, B of them.
        encodings: Clean encodings, (B, D_m) or (B, T, D_m), before any `on_encodings`.
        logits: Logits of the training pass, (B, C).
        loss: The main loss, a scalar: what the methods' terms are added to.
        label: Class indices, (B,).
        present: Boolean (B,) of the modalities that some clips lack.
        epoch: Epoch, from 0.
        lr_factor: The main learning rate over the configured one (over a cycle's peak): where the main schedule is.
        seed: For random numbers that must be the same on all ranks; a function of (seed, epoch, batch).
        micro_batches: How many are accumulated in one step; the trainer divides every loss by it.
        loss_scale: Factor of the loss in 16-mixed, which keeps small gradients from vanishing; 1 elsewhere.
        label_smoothing: Of the main cross-entropy.
    """

    model: FusionModel
    inputs: Mapping[str, Tensor]
    id: Sequence[str]
    encodings: dict[str, Tensor]
    logits: Tensor
    loss: Tensor
    label: Tensor
    present: Mapping[str, Tensor] | None
    epoch: int
    lr_factor: float
    seed: int
    micro_batches: int = 1
    loss_scale: float = 1.0
    label_smoothing: float = 0.0

    def cross_entropy(self, logits: Tensor, reduction: str = "mean") -> Tensor:
        """The main loss of other logits, (B, C): a scalar, or (B,) with reduction `none`."""
        return F.cross_entropy(logits, self.label, label_smoothing=self.label_smoothing, reduction=reduction)

    def detached(self) -> "Step":
        """The same step without its graph and inputs."""
        encodings = {name: e.detach() for name, e in self.encodings.items()}
        return replace(self, inputs={}, encodings=encodings, logits=self.logits.detach(), loss=self.loss.detach())


class Regularizer(nn.Module):
    """A training method; it overrides the hooks it needs, in the order of the step in which they are called.

    Training only: evaluation sees the bare model. A method keeps no reference to the model and never logs; what it
    wants logged, it gives in `report`. Its own parameters, if it makes any, are trained by the main optimizer.
    """

    name: ClassVar[str]
    """Short name, as in the configuration and checkpoints."""
    title: ClassVar[str] = ""
    """Name for people, in tables and plots; `name` if empty."""
    order: ClassVar[int] = 50
    """Methods run in ascending order within each hook."""
    conflicts: ClassVar[frozenset[str]] = frozenset()
    """Names of methods that cannot be combined with this one."""
    min_modalities: ClassVar[int] = 1
    """Fewest modalities with which the method is defined."""
    needs_steps: ClassVar[bool] = False
    """Whether `on_gradients` or `after_step` is used, so that detached steps are kept until the optimizer's."""
    scales_gradients: ClassVar[bool] = False
    """Whether its effect is the size of gradients, which Adam and its like cancel."""

    def wrap_head(self, head: Fusion) -> Fusion:
        """The head to use in place of `head`, in training and evaluation; called once, before `setup`."""
        return head

    def setup(self, model: FusionModel) -> None:
        """Makes what depends on the model (parameters, buffers), once, when the run is built.

        Raises:
            UserError: If the method cannot work with this model.
        """

    def on_encodings(self, encodings: dict[str, Tensor], present: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Changes the encodings, (B, ..., D_m) each, before the head sees them."""
        return encodings

    def on_fused(self, fused: Tensor) -> Tensor:
        """Changes the penultimate features, (B, D), before the classifier sees them."""
        return fused

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Scalar terms to add to the main loss, by name."""
        return {}

    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Changes the parameters' gradients: after the backward (unscaled, averaged over ranks), before clipping."""

    def after_step(self, steps: Sequence[Step]) -> None:
        """Acts after the main optimizer's step on the micro-batches that led to it."""

    def on_epoch_end(self, metrics: Mapping[str, Tensor]) -> None:
        """Acts on the epoch's logged metrics, after validation."""

    def report(self) -> dict[str, float]:
        """Coefficients worth a curve, the same on all ranks; logged every epoch as `train/<method>/<key>`."""
        return {}

    def checkpoint_state(self) -> dict[str, object]:
        """State beyond parameters and buffers, of plain types and tensors only."""
        return {}

    def restore_state(self, state: Mapping[str, object]) -> None:
        """Takes what `checkpoint_state` gave; called before the first step."""
