"""Concatenation."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amr.fusion.base import ClassifierInit, Fusion, pool_all


class Concat(Fusion):
    """Concatenates the encodings: h = [e^1; ...; e^M].

    With `hidden` None the logits are linear in every encoding, and column block m of the classifier's weight belongs to
    modality m.

    Args:
        dims: Encoding size of each modality.
        num_classes: Number of classes C.
        hidden: Width of a hidden ReLU layer before the classifier; None for none.
        classifier_init: How the classifier starts: `torch` or `xavier_normal`, as `Fusion` says.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        hidden: int | None = None,
        classifier_init: ClassifierInit = "torch",
    ) -> None:
        super().__init__(dims, num_classes, sum(dims.values()), hidden, classifier_init)

    def combine(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Combines encodings, each (B, D_m) or (B, T, D_m), into (B, sum of D_m)."""
        return torch.cat([*pool_all(encodings, self.dims).values()], dim=1)

    def modality_weights(self) -> dict[str, Tensor] | None:
        """Column blocks of the classifier's weight, (C, D_m); None with a hidden layer."""
        if not isinstance(self.hidden, nn.Identity):
            return None
        blocks = torch.split(self.classifier.weight, [*self.dims.values()], dim=1)
        return dict(zip(self.dims, blocks, strict=True))
