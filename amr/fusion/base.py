"""Base class of all fusions: encodings in, logits out."""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amr.utils.errors import UserError
from amr.utils.names.recorded import Recorded

ClassifierInit = Literal["torch", "xavier_normal"]


class Fusion(Recorded, nn.Module):
    """The head: fuses the encodings and classifies what comes out.

    A subclass implements `combine` (or, where logits are formed per modality, `fuse` and `classify`). Everything
    cross-modal lives here, so encodings can be cached and the head re-run alone. A head treats each clip separately (no
    batch norm) and can be differentiated twice: attributions are gradients, and their penalty is trained through.

    Args:
        dims: Encoding size of each modality, in the order in which shares are reported.
        num_classes: Number of classes C.
        combined_dim: Size of what `combine` returns.
        hidden: Width of a hidden ReLU layer between the combination and the classifier; None for none.
        classifier_init: How the classifier starts. torch: as `nn.Linear` does. xavier_normal: weights from a normal
            distribution of variance 2 / (inputs + classes) and biases of 0 (Glorot & Bengio 2010), as in OGM-GE's code.

    Raises:
        UserError: `dims` is empty, a size is below 1, or `classifier_init` is none of these.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        combined_dim: int,
        hidden: int | None = None,
        classifier_init: ClassifierInit = "torch",
    ) -> None:
        if not dims:
            raise UserError("fusion: needs the encoding of at least one modality, got none")
        require_positive(num_classes=num_classes, hidden=hidden)
        super().__init__()
        self.dims = dict(dims)
        self.num_classes = num_classes
        self.hidden = nn.Identity() if hidden is None else nn.Sequential(nn.Linear(combined_dim, hidden), nn.ReLU())
        self.classifier = linear_classifier(combined_dim if hidden is None else hidden, num_classes, classifier_init)

    def combine(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Combines encodings, each (B, D_m) or (B, T, D_m), into (B, combined_dim)."""
        raise NotImplementedError

    def fuse(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Penultimate features, shape (B, D)."""
        fused: Tensor = self.hidden(self.combine(encodings))
        return fused

    def classify(self, fused: Tensor) -> Tensor:
        """Logits, shape (B, C), of penultimate features (B, D)."""
        logits: Tensor = self.classifier(fused)
        return logits

    def forward(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Logits, shape (B, C)."""
        return self.classify(self.fuse(encodings))

    @property
    def additive(self) -> bool:
        """Whether logits and penultimate features are sums of functions of one modality's encoding each."""
        return self.modality_weights() is not None

    @property
    def multiaffine(self) -> bool:
        """Whether logits and penultimate features are affine in each encoding while the others stay as they are.

        Their mean over independently drawn modalities is then their value at the mean encodings.
        """
        return self.modality_weights() is not None

    def modality_weights(self) -> dict[str, Tensor] | None:
        """W_m, (C, D_m), where the logits are Σ_m W_m e^m + b of the pooled encodings; None where they are not."""
        return None

    def unimodal_logits(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits of each modality alone, (B, C).

        W_m e^m + b/M where the head is linear in the encodings, else the logits with every other encoding zeroed.
        """
        weights = self.modality_weights()
        if weights is None:
            return {name: self(only(encodings, [name])) for name in self.dims}
        bias = self.classifier.bias / len(self.dims)
        return {name: F.linear(e, weights[name], bias) for name, e in pool_all(encodings, self.dims).items()}

    def additive_logits(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Parts of the logits, (B, C) per modality, each of that modality's encoding alone; their sum is the logits.

        None where the head is not such a sum.
        """
        return None if self.modality_weights() is None else self.unimodal_logits(encodings)


def linear_classifier(size: int, num_classes: int, init: ClassifierInit) -> nn.Linear:
    """A classifier of (B, size), initialised as `Fusion` says.

    Raises:
        UserError: `init` is not allowed.
    """
    if init not in get_args(ClassifierInit):
        allowed = ", ".join(get_args(ClassifierInit))
        raise UserError(f"fusion: classifier_init={init!r}: must be one of {allowed}")
    classifier = nn.Linear(size, num_classes)
    if init == "xavier_normal":
        nn.init.xavier_normal_(classifier.weight)
        nn.init.zeros_(classifier.bias)
    return classifier


FusionFactory = Callable[[dict[str, int], int], Fusion]
"""A fusion class with its options filled in; called with the encodings' sizes and the number of classes."""


def only(encodings: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The encodings with all but the named modalities' set to zero."""
    kept = set(names)
    return {name: e if name in kept else torch.zeros_like(e) for name, e in encodings.items()}


def pool_tokens(encoding: Tensor) -> Tensor:
    """Mean over a token sequence: (B, T, ..., D) to (B, D); (B, D) is returned as it is."""
    return encoding if encoding.ndim == 2 else torch.mean(encoding, dim=tuple(range(1, encoding.ndim - 1)))


def as_tokens(encoding: Tensor) -> Tensor:
    """A sequence of tokens, (B, T, D): one of (B, D), all those of (B, ..., D); B may be 0."""
    return encoding[:, None] if encoding.ndim == 2 else encoding.flatten(1, -2)


def pool_all(encodings: Mapping[str, Tensor], names: Mapping[str, object]) -> dict[str, Tensor]:
    """Pooled encodings, each (B, D_m), in the order of `names` whatever the order of `encodings`."""
    return {name: pool_tokens(encodings[name]) for name in names}


def require_positive(**options: int | None) -> None:
    """Raises UserError, naming the option, if one is below 1; None stands for a default and passes."""
    for key, value in options.items():
        if value is not None and value < 1:
            raise UserError(f"fusion: {key}={value}: must be at least 1")
