"""Multi-loss: every modality also learns by its own classifier, without any balancing."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from amr.attribution import at_least_float32
from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.shared import UnimodalHeads, global_means
from amr.utils.names.ranges import Range


class MultiLoss(Regularizer):
    """Adds w Σ_m CE_m, the cross-entropy of one linear classifier per modality on its encoding.

    The control that papers on balancing omit: most of their methods contain these terms. The classifiers are used in
    training only. A clip counts in the terms of the modalities that it has.

    Args:
        weight: w, >= 0.

    Raises:
        UserError: If the weight is out of its range.
    """

    name = "multi_loss"
    title = "Multi-loss"
    signal = "nothing"
    ranges: ClassVar = {"weight": Range(0.1, 10, "log")}
    several_labels = True
    heads: UnimodalHeads

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.check("weight", weight, weight >= 0, "a finite number >= 0")
        self.weight = weight

    def setup(self, model: FusionModel) -> None:
        """Makes the classifiers."""
        self.heads = UnimodalHeads(model)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Each modality's term: its mean over the clips of all ranks that have it."""
        return {name: self.weight * term for name, term in unimodal_losses(self.heads(step.encodings), step).items()}


def unimodal_losses(logits: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
    """Cross-entropy of each modality's logits, (B, C), a scalar each: the mean over all ranks' clips that have it."""
    each = [step.cross_entropy(at_least_float32(said), reduction="none") for said in logits.values()]
    terms, _, _ = global_means(torch.stack(each), step.has([*logits]))
    return dict(zip(logits, terms.unbind(), strict=True))
