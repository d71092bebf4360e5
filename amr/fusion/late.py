"""Late fusion."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amr.fusion.base import ClassifierInit, Fusion, linear_classifier, pool_all


class Late(Fusion):
    """Averages the logits of one classifier per modality: f = (1/M) Σ_m (W_m h_m + b_m).

    The mean rule of Kittler et al. 1998, "On Combining Classifiers", section 2, on logits in place of posteriors. h_m
    is the encoding or, with `hidden`, a ReLU layer of it; the penultimate features are [h_1; ...; h_M]. The modalities'
    own logits are `unimodal_logits`; `hiddens` and `classifiers` replace the base class's joint layers.

    Args:
        dims: Encoding size of each modality.
        num_classes: Number of classes C.
        hidden: Width of each modality's hidden ReLU layer; None for none.
        classifier_init: How the classifiers start: `torch` or `xavier_normal`, as `Fusion` says.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        hidden: int | None = None,
        classifier_init: ClassifierInit = "torch",
    ) -> None:
        super().__init__(dims, num_classes, sum(dims.values()), hidden, classifier_init)
        del self.hidden, self.classifier  # joint layers, which this head replaces by one of each a modality
        self.hiddens = nn.ModuleDict(
            {
                name: nn.Identity() if hidden is None else nn.Sequential(nn.Linear(size, hidden), nn.ReLU())
                for name, size in dims.items()
            }
        )
        self.sizes = {name: size if hidden is None else hidden for name, size in dims.items()}
        self.classifiers = nn.ModuleDict(
            {name: linear_classifier(size, num_classes, classifier_init) for name, size in self.sizes.items()}
        )

    def fuse(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Single-modality features side by side, shape (B, sum of their sizes)."""
        pooled = pool_all(encodings, self.dims)
        return torch.cat([self.hiddens[name](encoding) for name, encoding in pooled.items()], dim=1)

    @property
    def additive(self) -> bool:
        """True, with a hidden layer too."""
        return True

    def modality_weights(self) -> dict[str, Tensor] | None:
        """W_m / M, (C, D_m): the head's logits are the mean of the modalities'; None with a hidden layer."""
        if not all(isinstance(hidden, nn.Identity) for hidden in self.hiddens.values()):
            return None
        return {name: layer.get_parameter("weight") / len(self.dims) for name, layer in self.classifiers.items()}

    def unimodal_logits(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each modality's own logits W_m h_m + b_m, (B, C), whose mean is the head's."""
        return self._classify_each(self.fuse(encodings))

    def additive_logits(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each modality's own logits over M, (B, C), with a hidden layer too."""
        return {name: logits / len(self.dims) for name, logits in self.unimodal_logits(encodings).items()}

    def classify(self, fused: Tensor) -> Tensor:
        """Logits, shape (B, C), of penultimate features (B, D)."""
        return torch.stack([*self._classify_each(fused).values()]).mean(dim=0)

    def _classify_each(self, fused: Tensor) -> dict[str, Tensor]:
        parts = zip(self.sizes, torch.split(fused, [*self.sizes.values()], dim=1), strict=True)
        return {name: self.classifiers[name](part) for name, part in parts}
