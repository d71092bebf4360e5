"""DGL: the fused loss trains the head alone, and each encoder learns by what its modality predicts alone."""

from collections.abc import Mapping
from typing import ClassVar, cast

from torch import Tensor
from torch.func import functional_call

from amr.fusion.base import Fusion, only
from amr.regularizers.base import EpochState, Regularizer, Step
from amr.regularizers.losses.multi_loss import unimodal_losses
from amr.regularizers.shared import Window
from amr.utils.names.ranges import Range


def frozen_unimodal_logits(head: Fusion, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head's logits with every other encoding zeroed, (B, C) per modality; no gradient reaches the head.

    Args:
        head: Fusion and classifier.
        encodings: Encoding of each modality, (B, D_m) or (B, T, D_m); gradients reach the one that is not zeroed.
    """
    frozen = {key: parameter.detach() for key, parameter in head.named_parameters()}
    return {name: functional_call(head, frozen, (only(encodings, [name]),)) for name in encodings}


class DGL(Regularizer):
    """Cuts the fused loss off from the encoders, which learn by unimodal losses through a frozen head (DGL 2025).

    L = CE(f(sg e)) + α Σ_m CE(f_frozen(e^m, others 0)): the first term reaches the head only, the others the encoders
    only. There are no further parameters. A clip counts in the terms of the modalities that it has.

    Args:
        alpha: α, > 0; the authors use 4 to 5 on CREMA-D and 2 to 3 on Kinetics-Sounds.
        start_epoch: First epoch in which it acts; before, it is naive fusion.
        end_epoch: First epoch in which it no longer acts; None if it acts until the end.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "dgl"
    title = "DGL"
    signal = "nothing"
    ranges: ClassVar = {"alpha": Range(0.5, 8, "log")}
    several_labels = True
    order = 5  # before methods that mask encodings, which then see them detached
    min_modalities = 2
    # Their losses take the encodings with their graph, past the cut.
    conflicts = frozenset({"gge", "gradient_blending", "tcmax", "mla"})

    def __init__(self, alpha: float = 4.0, start_epoch: int = 0, end_epoch: int | None = None) -> None:
        super().__init__()
        self.check("alpha", alpha, alpha > 0, "a positive, finite number")
        self.alpha, self.window = alpha, Window(self.name, start_epoch, end_epoch)
        self._epoch = 0

    def on_epoch_start(self, state: EpochState) -> None:
        """Notes the epoch, which `on_encodings` does not see."""
        self._epoch = state.epoch

    def checkpoint_state(self) -> dict[str, object]:
        """The epoch: one that is resumed within does not start again."""
        return {"epoch": self._epoch}

    def restore_state(self, state: Mapping[str, object]) -> None:
        """Takes the epoch."""
        self._epoch = int(cast(int, state["epoch"]))

    def on_encodings(self, encodings: dict[str, Tensor], present: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The same encodings, detached: the fused loss stops here."""
        if self._epoch not in self.window:
            return encodings
        return {name: encoding.detach() for name, encoding in encodings.items()}

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Each modality's own term, times α."""
        if step.epoch not in self.window:
            return {}
        logits = frozen_unimodal_logits(step.model.head, step.encodings)
        return {name: self.alpha * term for name, term in unimodal_losses(logits, step).items()}
