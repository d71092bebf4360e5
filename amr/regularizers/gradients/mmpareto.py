"""MMPareto: unimodal objectives help each encoder in a direction that is good for the fused objective too."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from amr.attribution import at_least_float32
from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.shared import (
    EpochMeans,
    UnimodalHeads,
    Window,
    flat_gradient,
    set_gradient,
    trained,
)
from amr.utils.names.ranges import Range


def min_norm_weights(multi: Tensor, uni: Tensor) -> Tensor:
    """Weights (w, 1 − w), w in [0, 1], that make w·multi + (1 − w)·uni shortest (Sener and Koltun 2018).

    The shortest point is the foot of the perpendicular on the line through both, or an end of the segment: with
    d = multi − uni, w : (1 − w) = −⟨uni, d⟩ : ⟨multi, d⟩, negative parts cut off. Each is computed separately, since
    1 − w would lose the digits of a weight near 0, which goes with the longer vector.

    Args:
        multi: A vector, (N,).
        uni: Another, (N,).

    Returns:
        The two weights, (2,); both ½ if the vectors are equal.
    """
    along = multi - uni
    parts = torch.stack([-(uni @ along), multi @ along]).clamp_min(0)
    total = parts.sum()
    return torch.where(total > 0, parts / torch.where(total > 0, total, 1.0), 0.5)


def combine(multi: Tensor, uni: Tensor, gamma: float = 1.5) -> Tensor:
    """One gradient from the fused objective's and the unimodal one's (Wei and Hu 2024, MMPareto).

    g = 2 (w₁ multi + w₂ uni), with both weights ½ where the two agree (cosine > 0) and the min-norm weights where they
    conflict; then stretched to the length of multi + uni, times gamma. The min-norm point has the same, non-negative
    inner product with both, so a step against g makes neither objective worse, to first order.

    Args:
        multi: Gradient of the fused objective, any shape.
        uni: Gradient of the unimodal objective, same shape.
        gamma: Factor of the length.

    Returns:
        Gradient of that shape, of length gamma · ‖multi + uni‖. A zero gradient, or one below the other's rounding, has
        no direction to conflict with: gamma · (multi + uni). Exactly opposed gradients, to within rounding, have no
        common direction (a Pareto-stationary point): zeros.
    """
    a, b = (at_least_float32(g.flatten()) for g in (multi, uni))
    largest = torch.maximum(a.abs().amax(), b.abs().amax())
    scale = torch.where(largest > 0, largest, 1.0)  # the result is homogeneous, and squares may under- or overflow
    a, b = a / scale, b / scale
    precision = torch.finfo(a.dtype).eps
    shorter = torch.minimum(a.norm(), b.norm())
    agree = (a @ b > 0) | (shorter <= precision * torch.maximum(a.norm(), b.norm()))
    weights = torch.where(agree, 0.5, min_norm_weights(a, b))
    combined = 2 * (weights[0] * a + weights[1] * b)
    length = combined.norm()
    known = agree | (length > math.sqrt(precision) * shorter)  # else what is left of opposed gradients is rounding
    stretch = torch.where(known & (length > 0), (a + b).norm() / torch.where(length > 0, length, 1.0), 0.0)
    return (gamma * scale * stretch * combined).view(multi.shape).to(multi.dtype)


class MMPareto(Regularizer):
    """Trains unimodal heads beside the fused one, and merges both objectives' gradients of each encoder (Wei, Hu 2024).

    The unimodal heads learn by their own cross-entropies. An encoder gets, in place of the sum of the fused and its
    unimodal gradient, `combine` of the two, with all its parameters as one vector. The fused head learns as in naive
    fusion; what other methods add to the main loss counts as part of the fused objective. The logged means are the
    shares of the epoch's steps in which an encoder's two gradients did not agree.

    Args:
        gamma: Factor of the encoders' gradients, > 0.
        start_epoch: First epoch in which it acts.
        end_epoch: First epoch in which it acts no more; None for never.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "mmpareto"
    title = "MMPareto"
    signal = "whether an encoder's fused and unimodal gradients agree"
    ranges: ClassVar = {"gamma": Range(0.75, 3, "log")}
    several_labels = True
    order = 40  # before the methods that scale the encoders' gradients, whose work is then on the merged ones
    min_modalities = 2
    scales_gradients = True  # gamma and the stretch, half of the method; the direction would survive Adam
    heads: UnimodalHeads
    means: EpochMeans

    def __init__(self, gamma: float = 1.5, start_epoch: int = 0, end_epoch: int | None = None) -> None:
        super().__init__()
        self.check("gamma", gamma, gamma > 0, "a positive, finite number")
        self.gamma, self.window = gamma, Window(self.name, start_epoch, end_epoch)

    def setup(self, model: FusionModel) -> None:
        """Makes the unimodal heads, and room to count conflicts."""
        self.heads = UnimodalHeads(model)
        self.means = EpochMeans(f"conflict/{name}" for name in model.modalities)

    def objectives(self, step: Step) -> dict[str, Tensor]:
        """Each modality's own cross-entropy, a sum over the clips that have it divided by the batch size.

        So the ranks' mean is that of the global batch, whoever lacks what. Out of its epochs the heads stand still, and
        nothing is taken to the encoders.
        """
        active, terms = step.epoch in self.window, {}
        encodings = step.encodings if active else {name: e.detach() for name, e in step.encodings.items()}
        logits = self.heads(encodings)
        for (name, own), has in zip(logits.items(), step.has([*logits]), strict=True):
            term = (step.cross_entropy(own, reduction="none") * has).mean()
            terms[name] = term if active else 0 * term
        return terms

    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Replaces each encoder's gradient by the combination."""
        if steps[-1].epoch not in self.window:
            return
        conflicts = torch.full_like(self.means.sums, torch.nan)  # of a frozen encoder
        for m, name in enumerate(self.heads.heads):
            if (uni := steps[-1].apart[f"{self.name}/{name}"].get(name)) is None:
                continue
            parameters = trained(steps[-1].model.encoders[name])
            multi = flat_gradient(parameters)
            conflicts[m] = multi @ uni <= 0
            set_gradient(parameters, combine(multi, uni, self.gamma))
        self.means.update(conflicts)
