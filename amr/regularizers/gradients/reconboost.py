"""ReconBoost: one modality at a time learns what the others do not explain, and then all learn together."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from amr.attribution import at_least_float32
from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.shared import global_means
from amr.utils.errors import UserError
from amr.utils.names.ranges import Range


def stage_of(epoch: int, boosting: int, rectifying: int) -> tuple[int, bool]:
    """The stage of an epoch, from 0, and whether it is one of its first epochs, in which one modality learns.

    Args:
        epoch: Epoch, from 0.
        boosting: Epochs of a stage in which one modality learns, >= 1.
        rectifying: Epochs that follow, in which all learn, >= 0.
    """
    stage, within = divmod(epoch, boosting + rectifying)
    return stage, within < boosting


def boosting_weights(others: Tensor, label: Tensor, reconcile: float) -> Tensor:
    """1 − κ q[y], (B,), q the softmax of the others' summed logits, detached.

    −w₁ log p[y] + w₂ q[y] log p[y] of the released code is w₁ times this times the cross-entropy, with κ = w₂/w₁.

    Args:
        others: The other modalities' logits, added, (B, C).
        label: Class indices, (B,).
        reconcile: κ, in [0, 1].
    """
    right = at_least_float32(others).detach().softmax(1).gather(1, label.unsqueeze(1))[:, 0]
    return 1 - reconcile * right


class ReconBoost(Regularizer):
    """Alternating boosting of modalities (Hua et al. 2024, ReconBoost).

    A stage belongs to one modality m, in the model's order, over and over. In its first epochs only m's encoder and the
    head move, by mean_i (1 − κ q_i[y]) CE_i(f_m, y) + α mean (softmax f_m − softmax f_n)². f are the modalities' parts
    of the logits; q is the softmax of the sum of those others that have had a stage, and 0 where none has; n is the
    modality of the stage before, detached. Then all are trained by the fused cross-entropy. Needs a fusion whose logits
    are a sum of the modalities', and one batch per optimizer step.

    Args:
        boosting_epochs: Epochs of a stage in which m alone learns, >= 1.
        rectifying_epochs: Epochs of a stage in which all learn, >= 0.
        reconcile: κ, in [0, 1]; the released code's weights are 5 and 1.
        agreement: α, >= 0. The released code's term has no gradient, which is α = 0.

    Raises:
        UserError: If an argument is out of its range, or the fusion is not a sum.
    """

    name = "reconboost"
    title = "ReconBoost"
    signal = "the part of the labels that the other modalities' logits do not explain"
    ranges: ClassVar = {"boosting_epochs": Range(0.05, 0.3, "epochs", least=1), "agreement": Range(0.1, 2, "log")}
    min_modalities = 2
    # As for MLA: a stage learns from one modality's encoding, whole and of every clip.
    conflicts = frozenset(
        {"dropout", "modality_dropout", "opm", "amco", "dgl", "info_reg", "data_remixing", "mmcosine", "aug", "greedy"}
    )

    def __init__(
        self,
        boosting_epochs: int = 4,
        rectifying_epochs: int = 4,
        reconcile: float = 0.2,
        agreement: float = 0.5,
    ) -> None:
        super().__init__()
        self.check("boosting_epochs", boosting_epochs, boosting_epochs >= 1, "an integer >= 1")
        self.check("rectifying_epochs", rectifying_epochs, rectifying_epochs >= 0, "an integer >= 0")
        self.check("reconcile", reconcile, 0 <= reconcile <= 1, "a value in [0, 1]")
        self.check("agreement", agreement, agreement >= 0, "a finite number >= 0")
        self.boosting_epochs, self.rectifying_epochs = boosting_epochs, rectifying_epochs
        self.reconcile, self.agreement = reconcile, agreement

    def setup(self, model: FusionModel) -> None:
        """Refuses, by name, a head that is not a sum of the modalities'."""
        self.modalities = model.modalities
        if not model.head.additive:
            raise UserError(
                f"model.reconboost: needs a fusion whose logits are a sum of the modalities', "
                f"not {type(model.head).__name__}; must be Concat or Sum without a hidden layer, Late or Shared"
            )

    def turns(self, epoch: int) -> Sequence[Sequence[str]]:
        """The stage's modality; empty where all learn."""
        stage, boosting = stage_of(epoch, self.boosting_epochs, self.rectifying_epochs)
        return [(self.modalities[stage % len(self.modalities)],)] if boosting else []

    def main_loss(self, step: Step) -> Tensor | None:
        """The stage's modality's loss; None where all learn."""
        stage, boosting = stage_of(step.epoch, self.boosting_epochs, self.rectifying_epochs)
        if not boosting:
            return None
        count = len(self.modalities)
        name = self.modalities[stage % count]
        parts = step.model.head.additive_logits(step.encodings)
        assert parts is not None
        logits = {m: at_least_float32(part) for m, part in parts.items()}
        each = step.cross_entropy(logits[name], reduction="none")
        has = step.has(self.modalities)
        earlier = [m for m in self.modalities[: min(stage, count)] if m != name]
        if earlier:
            others = torch.stack([logits[m] for m in earlier]).sum(0)
            each = each * boosting_weights(others, step.label, self.reconcile)
        mine = has[self.modalities.index(name)]
        apart, both = torch.zeros_like(each), torch.zeros_like(mine)
        if stage > 0 and self.agreement > 0:
            before = self.modalities[(stage - 1) % count]
            apart = (logits[name].softmax(1) - logits[before].detach().softmax(1)).square().mean(1)
            both = mine & has[self.modalities.index(before)]
        means, _, _ = global_means(torch.stack([each, apart]), torch.stack([mine, both]))
        return means[0] + self.agreement * means[1] + 0 * step.logits.sum()  # all of the head is in the graph, for DDP
