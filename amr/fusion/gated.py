"""Gated multimodal unit."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amr.fusion.base import ClassifierInit, Fusion, pool_all, require_positive


class Gated(Fusion):
    """Gates, computed from all encodings, weigh one feature vector per modality.

    Arevalo et al. 2017, "Gated Multimodal Units for Information Fusion", section 3.1: h_m = tanh(W_m e^m) and
    z_m = sigmoid(V_m [e^1; ...; e^M]); the output is h = Σ_m z_m ⊙ h_m. For M = 2 it is the paper's bimodal unit, in
    which one gate serves both: z_2 = 1 - z_1. As in the paper there are no biases, so a zero encoding adds nothing.

    Args:
        dims: Encoding size of each modality.
        num_classes: Number of classes C.
        dim: Size of the unit's output; None for the largest encoding's.
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
        self.num_gates = 1 if len(dims) == 2 else len(dims)
        self.projections = nn.ModuleDict({name: nn.Linear(size, dim, bias=False) for name, size in dims.items()})
        self.gate = nn.Linear(sum(dims.values()), self.num_gates * dim, bias=False)

    def gates(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Gates z, shape (B, M, dim), each in (0, 1)."""
        pooled = torch.cat([*pool_all(encodings, self.dims).values()], dim=1)
        z = torch.stack(torch.sigmoid(self.gate(pooled)).chunk(self.num_gates, dim=1), dim=1)
        return torch.cat([z, 1 - z], dim=1) if len(self.dims) == 2 else z

    def combine(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Combines encodings, each (B, D_m) or (B, T, D_m), into (B, dim)."""
        pooled = pool_all(encodings, self.dims)
        h = torch.stack([torch.tanh(self.projections[name](e)) for name, e in pooled.items()], dim=1)  # (B, M, dim)
        return (self.gates(encodings) * h).sum(dim=1)
