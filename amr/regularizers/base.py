"""What every method is: a few hooks into one training step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from amr.model import FusionModel


@dataclass(frozen=True)
class Step:
    """One micro-batch, as the hooks see it.

    Attributes:
        model: The model in training.
        encodings: Clean encodings, (B, D_m) or (B, T, D_m), before any `on_encodings`.
        logits: Logits of the training pass, (B, C).
        label: Class indices, (B,).
        present: Boolean (B,) of the modalities that some clips lack.
        epoch: Epoch, from 0.
        lr_factor: The main learning rate over the configured one (over a cycle's peak): where the main schedule is.
    """

    model: FusionModel
    encodings: dict[str, Tensor]
    logits: Tensor
    label: Tensor
    present: Mapping[str, Tensor] | None
    epoch: int
    lr_factor: float

    def detached(self) -> "Step":
        """The same step without its graph."""
        return replace(
            self, encodings={name: e.detach() for name, e in self.encodings.items()}, logits=self.logits.detach()
        )


class Regularizer(nn.Module):
    """A training method; it overrides the hooks it needs, in the order of the step in which they are called.

    Training only: evaluation sees the bare model. A method keeps no reference to the model and never logs.
    """

    name: ClassVar[str]
    """Short name, as in the configuration, tables and checkpoints."""
    order: ClassVar[int] = 50
    """Methods run in ascending order within each hook."""
    conflicts: ClassVar[frozenset[str]] = frozenset()
    """Names of methods that cannot be combined with this one."""
    min_modalities: ClassVar[int] = 1
    """Fewest modalities with which the method is defined."""
    needs_steps: ClassVar[bool] = False
    """Whether `on_gradients` or `after_step` is used, so that detached steps are kept until the optimizer's."""

    def check(self, model: FusionModel) -> None:
        """Raises `UserError` if the method cannot work with this model; called once, when the run is built."""

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

    def checkpoint_state(self) -> dict[str, object]:
        """State beyond parameters and buffers, of plain types and tensors only."""
        return {}

    def restore_state(self, state: Mapping[str, object]) -> None:
        """Takes what `checkpoint_state` gave; called before the first step."""
