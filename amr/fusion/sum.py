"""Summation in a shared space."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amr.fusion.base import ClassifierInit, Fusion, pool_all, require_positive


class Sum(Fusion):
    """Projects every encoding to one space and adds: h = Σ_m P_m e^m.

    The projections have no bias, so a zero encoding adds nothing. With `hidden` None the logits are linear in every
    encoding: modality m contributes W P_m e^m.

    Args:
        dims: Encoding size of each modality.
        num_classes: Number of classes C.
        dim: Size of the shared space; None for the largest encoding's.
        hidden: Width of a hidden ReLU layer before the classifier; None for none.
        classifier_init: How the classifier starts: `torch` or `xavier_normal`, as `Fusion` says.

    Raises:
        UserError: A size is below 1.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        dim: int | None = None,
        hidden: int | None = None,
        classifier_init: ClassifierInit = "torch",
    ) -> None:
        require_positive(dim=dim)
        dim = dim or max(dims.values(), default=1)
        super().__init__(dims, num_classes, dim, hidden, classifier_init)
        self.projections = nn.ModuleDict({name: nn.Linear(size, dim, bias=False) for name, size in dims.items()})

    def combine(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Combines encodings, each (B, D_m) or (B, T, D_m), into (B, dim)."""
        pooled = pool_all(encodings, self.dims)
        return torch.stack([self.projections[name](encoding) for name, encoding in pooled.items()]).sum(dim=0)

    def modality_weights(self) -> dict[str, Tensor] | None:
        """W P_m, (C, D_m); None with a hidden layer."""
        if not isinstance(self.hidden, nn.Identity):
            return None
        weight = self.classifier.weight
        return {name: weight @ layer.get_parameter("weight") for name, layer in self.projections.items()}
