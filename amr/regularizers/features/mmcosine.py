"""MMCosine: every modality votes by cosines, so none wins by the length of its features or weights."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from amr.attribution import at_least_float32
from amr.fusion.base import Fusion, pool_all
from amr.regularizers.base import Regularizer
from amr.regularizers.shared import trained
from amr.utils.errors import UserError
from amr.utils.names.ranges import Range


def unit(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Rows of `x`, (..., D), at length 1, in at least single precision; twice differentiable everywhere.

    A row with no entry beyond `eps` counts as zero and is returned as it is, with gradient 1, where a division by its
    length, or by a small number, would give the encoder behind it an infinite or huge one.
    """
    x = at_least_float32(x)
    # Divide the largest entry out before squaring, which would under- or overflow; the direction does not depend on it.
    largest = x.detach().abs().amax(-1, keepdim=True)
    zero = largest <= eps
    x = x / largest.masked_fill(zero, 1.0)
    return x * x.square().sum(-1, keepdim=True).masked_fill(zero, 1.0).rsqrt()


def cosine_logits(encodings: Mapping[str, Tensor], weights: Mapping[str, Tensor], scale: float) -> Tensor:
    """Logits s Σ_m cos(W_m[c], e^m) (Xu et al. 2023, MMCosine).

    Args:
        encodings: Encoding of each modality, (B, D_m).
        weights: Weights of each modality, (C, D_m).
        scale: s, > 0.

    Returns:
        Logits, (B, C), in [−sM, sM] and at least single precision; a zero encoding or weight adds 0, with finite
        gradients of first and second order.
    """
    directions = {name: unit(encoding) for name, encoding in encodings.items()}
    return torch.stack([*scaled_cosines(directions, weights, scale).values()]).sum(0)


def scaled_cosines(directions: Mapping[str, Tensor], weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Each modality's part s cos(W_m[c], e^m) of the logits, (B, C), of encodings at length 1; see `cosine_logits`."""
    with torch.autocast(next(iter(directions.values())).device.type, enabled=False):
        return {name: scale * F.linear(direction, unit(weights[name])) for name, direction in directions.items()}


class CosineHead(Fusion):
    """A linear head whose logits are s Σ_m cos(W_m[c], e^m) in place of Σ_m W_m[c]·e^m + b.

    Tokens are pooled first. The penultimate features are the encodings at length 1, side by side, (B, Σ D_m).

    Args:
        linear: A head that is linear in the encodings; it gives the weights, and loses its biases, which would take no
            part any more.
        scale: s, > 0.

    Raises:
        UserError: If `linear` has no weights of single modalities.
    """

    def __init__(self, linear: Fusion, scale: float) -> None:
        with torch.enable_grad():
            weights = linear.modality_weights()
        if weights is None:
            raise UserError(
                f"model.mmcosine: the fusion {type(linear).__name__} is not a sum of linear terms, one per modality; "
                "must be Concat, Sum or Late without a hidden layer"
            )
        super().__init__(linear.dims, linear.num_classes, sum(linear.dims.values()))
        del self.hidden, self.classifier  # joint layers, which the linear head's weights replace
        _drop_unused(linear, weights)
        self.linear, self.scale = linear, scale

    def fuse(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Encodings of length 1, side by side, shape (B, sum of D_m)."""
        pooled = pool_all(encodings, self.dims)
        return torch.cat([unit(encoding) for encoding in pooled.values()], dim=1)

    def classify(self, fused: Tensor) -> Tensor:
        """Logits, shape (B, C), of penultimate features (B, D)."""
        return torch.stack([*self._classify_each(fused).values()]).sum(0)

    def unimodal_logits(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each modality's s cos(W_m[c], e^m), (B, C); their sum is the head's logits."""
        return self._classify_each(self.fuse(encodings))

    @property
    def additive(self) -> bool:
        """True: a sum of cosines, one per modality."""
        return True

    def additive_logits(self, encodings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same as `unimodal_logits`."""
        return self.unimodal_logits(encodings)

    def _classify_each(self, fused: Tensor) -> dict[str, Tensor]:
        with torch.autocast(fused.device.type, enabled=False):
            weights = self.linear.modality_weights()
        assert weights is not None
        parts = torch.split(fused, [*self.dims.values()], dim=1)
        return scaled_cosines(dict(zip(self.dims, parts, strict=True)), weights, self.scale)


def _drop_unused(linear: Fusion, weights: Mapping[str, Tensor]) -> None:
    """Removes the parameters of which the weights do not depend: no loss would reach them, and DDP would wait."""
    parameters = trained(linear)
    with torch.enable_grad():
        total = torch.stack([weight.sum() for weight in weights.values()]).sum()
    slopes = torch.autograd.grad(total, parameters, allow_unused=True)
    unused = {id(parameter) for parameter, slope in zip(parameters, slopes, strict=True) if slope is None}
    for module in linear.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in unused:
                module.register_parameter(name, None)


class MMCosine(Regularizer):
    """Replaces the head's logits by scaled cosines, in training and evaluation (Xu et al. 2023).

    Encodings and weights of each modality are brought to length 1, so that no modality can lead by their size. It works
    with heads that are linear in the encodings: Concat, Sum and Late without a hidden layer.

    Args:
        scale: s, > 0: how peaked the softmax can be.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "mmcosine"
    title = "MMCosine"
    signal = "nothing"
    ranges: ClassVar = {"scale": Range(3, 30, "log")}
    min_modalities = 2

    def __init__(self, scale: float = 10.0) -> None:
        super().__init__()
        self.check("scale", scale, scale > 0, "a positive, finite number")
        self.scale = scale

    def wrap_head(self, head: Fusion) -> Fusion:
        """The cosine head around `head`, whose biases are dropped; refuses, by name, one that is not linear."""
        return CosineHead(head, self.scale)
