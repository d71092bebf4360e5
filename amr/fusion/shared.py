"""One classifier for all modalities."""

from collections.abc import Mapping

import torch
from torch import Tensor

from amr.fusion.base import ClassifierInit, Fusion, pool_all
from amr.utils.errors import UserError


class Shared(Fusion):
    """Adds the logits that one classifier gives each encoding: f = Σ_m (W h_m + b), with the same W and b for all m.

    h_m is the encoding or, with `hidden`, a ReLU layer of it, shared too. The penultimate features are [h_1; ...; h_M].

    Args:
        dims: Encoding size of each modality; all must be equal.
        num_classes: Number of classes C.
        hidden: Width of the shared hidden ReLU layer; None for none.
        classifier_init: How the classifier starts: `torch` or `xavier_normal`, as `Fusion` says.

    Raises:
        UserError: The encodings differ in size, or a size is below 1.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        hidden: int | None = None,
        classifier_init: ClassifierInit = "torch",
    ) -> None:
        if len(set(dims.values())) > 1:
            sizes = ", ".join(f"{name} {size}" for name, size in dims.items())
            raise UserError(f"model.fusion=Shared: the encodings must be of one size; they are of {sizes}")
        super().__init__(dims, num_classes, next(iter(dims.values()), 1), hidden, classifier_init)

    def fuse(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Each modality's features side by side, shape (B, M times their size)."""
        pooled = pool_all(encodings, self.dims)
        return torch.cat([self.hidden(encoding) for encoding in pooled.values()], dim=1)

    def classify(self, fused: Tensor) -> Tensor:
        """Logits, shape (B, C), of penultimate features (B, M times their size)."""
        return torch.stack([*self.classify_each(fused).values()]).sum(0)

    def classify_each(self, fused: Tensor) -> dict[str, Tensor]:
        """Each modality's logits W h_m + b, (B, C), of penultimate features."""
        parts = zip(self.dims, torch.chunk(fused, len(self.dims), dim=1), strict=True)
        return {name: self.classifier(part) for name, part in parts}

    @property
    def additive(self) -> bool:
        """True, with a hidden layer too."""
        return True

    def modality_weights(self) -> dict[str, Tensor] | None:
        """W, (C, D), for each modality; None with a hidden layer."""
        weight = self.classifier.weight
        return dict.fromkeys(self.dims, weight) if isinstance(self.hidden, torch.nn.Identity) else None

    def unimodal_logits(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each modality's logits W h_m + b, (B, C), whose sum is the head's."""
        return self.classify_each(self.fuse(encodings))

    def additive_logits(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same as `unimodal_logits`."""
        return self.unimodal_logits(encodings)
