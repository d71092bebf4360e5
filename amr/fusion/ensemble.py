"""Models of one modality each, whose predictions are combined: the control that nothing trains."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from amr.attribution import at_least_float32
from amr.fusion.base import Fusion, FusionFactory
from amr.fusion.concat import Concat
from amr.utils.errors import UserError

Combination = Literal["logits", "log_probabilities", "probabilities"]


def combined(logits: Tensor, combination: Combination) -> Tensor:
    """One prediction out of several, (B, C), as logits whose softmax it is.

    logits: Σ_m f_m. log_probabilities: Σ_m log softmax(f_m), which is Σ_m f_m less a number for each clip, so that the
    two have the same softmax. probabilities: the log of the mean of softmax(f_m).

    Args:
        logits: f_m of each of M models, (M, B, C).
        combination: One of the three combinations.
    """
    if combination == "logits":
        return logits.sum(0)
    logs = at_least_float32(logits).log_softmax(-1)
    if combination == "log_probabilities":
        return logs.sum(0)
    return logs.logsumexp(0) - torch.log(torch.tensor(float(len(logs)), dtype=logs.dtype, device=logs.device))


class Ensemble(Fusion):
    """A head of its own for each modality; their predictions are combined (`combined`).

    `amr ensemble` makes it out of unimodal runs. The penultimate features are the heads', side by side. A clip that
    lacks a modality has the head's answer to an encoding of zeros in the sum.

    Args:
        dims: Encoding size of each modality.
        num_classes: Number of classes C.
        combination: `logits`, `log_probabilities` or `probabilities`, as `combined` says.
        heads: Fusion class of each modality's head, with its options; Concat where a modality is not named.

    Raises:
        UserError: The combination is none of these, or `heads` names another modality.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        combination: Combination = "logits",
        heads: dict[str, FusionFactory] | None = None,
    ) -> None:
        super().__init__(dims, num_classes, 1)
        del self.hidden, self.classifier  # each head has its own
        if combination not in get_args(Combination):
            allowed = ", ".join(get_args(Combination))
            raise UserError(f"model.fusion.combination={combination}: must be one of {allowed}")
        if unknown := sorted(set(heads or {}) - set(dims)):
            raise UserError(f"model.fusion.heads.{unknown[0]}: must be one of the modalities {', '.join(dims)}")
        self.combination: Combination = combination
        self.heads = nn.ModuleDict(
            {name: (heads or {}).get(name, Concat)({name: size}, num_classes) for name, size in dims.items()}
        )
        with torch.no_grad():
            self.sizes = [self._head(name).fuse({name: torch.zeros(1, size)}).shape[1] for name, size in dims.items()]

    def fuse(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """The heads' features side by side, shape (B, sum of their sizes)."""
        return torch.cat([self._head(name).fuse({name: encodings[name]}) for name in self.dims], dim=1)

    def classify(self, fused: Tensor) -> Tensor:
        """The combined prediction's logits, (B, C), of penultimate features."""
        return combined(torch.stack([*self._classify_each(fused).values()]), self.combination)

    @property
    def additive(self) -> bool:
        """Whether the combined logits are a sum; false for `probabilities`."""
        return self.combination != "probabilities"

    @property
    def multiaffine(self) -> bool:
        """Whether logits are added up and every head is affine."""
        return self.combination == "logits" and all(self._head(name).multiaffine for name in self.dims)

    def unimodal_logits(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each modality's own logits, (B, C)."""
        return self._classify_each(self.fuse(encodings))

    def additive_logits(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Each modality's logits or log-probabilities, (B, C); None for `probabilities`, which are not such a sum."""
        parts = self.unimodal_logits(encodings)
        if self.combination == "logits":
            return parts
        if self.combination == "log_probabilities":
            return {name: at_least_float32(logits).log_softmax(1) for name, logits in parts.items()}
        return None

    def _head(self, name: str) -> Fusion:
        head = self.heads[name]
        assert isinstance(head, Fusion)
        return head

    def _classify_each(self, fused: Tensor) -> dict[str, Tensor]:
        parts = zip(self.dims, torch.split(fused, self.sizes, dim=1), strict=True)
        return {name: self._head(name).classify(part) for name, part in parts}
