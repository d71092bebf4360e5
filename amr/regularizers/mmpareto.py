"""MMPareto: unimodal objectives help each encoder in a direction that is good for the fused objective too."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from amr.model import FusionModel
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.heads import UnimodalHeads
from amr.utils.distributed import all_reduce_sum
from amr.utils.errors import UserError


def min_norm_weights(multi: Tensor, uni: Tensor) -> Tensor:
    """Weights (w, 1 − w), w in [0, 1], that make w·multi + (1 − w)·uni shortest (Sener and Koltun 2018).

    The shortest point is the foot of the perpendicular on the line through both, or an end of the segment: with
    d = multi − uni, w : (1 − w) = −⟨uni, d⟩ : ⟨multi, d⟩, negative parts cut off. Each is computed by itself, since
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
    a, b = (g.flatten().to(torch.promote_types(g.dtype, torch.float32)) for g in (multi, uni))
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
    fusion; what other methods add to the main loss counts as part of the fused objective.

    Args:
        gamma: Factor of the encoders' gradients, > 0.
        start_epoch: First epoch in which it acts.
        end_epoch: First epoch in which it acts no more; None for never.

    Raises:
        UserError: If an argument is out of its range.
    """

    name = "mmpareto"
    title = "MMPareto"
    order = 40  # before the methods that scale the encoders' gradients, whose work is then on the merged ones
    min_modalities = 2
    needs_steps = True
    scales_gradients = True  # gamma and the stretch, half of the method; the direction would survive Adam
    heads: UnimodalHeads
    counts: Tensor

    def __init__(self, gamma: float = 1.5, start_epoch: int = 0, end_epoch: int | None = None) -> None:
        super().__init__()
        if not (gamma > 0 and math.isfinite(gamma)):
            raise UserError(f"model.mmpareto.gamma={gamma}: allowed are positive, finite numbers")
        if start_epoch < 0 or (end_epoch is not None and end_epoch <= start_epoch):
            raise UserError(
                f"model.mmpareto: start_epoch={start_epoch}, end_epoch={end_epoch}: 0 <= start < end is needed"
            )
        self.gamma, self.start_epoch, self.end_epoch = gamma, start_epoch, end_epoch
        self._uni: dict[str, Tensor] = {}  # unimodal gradient of each encoder since the last zero_grad, flat

    def setup(self, model: FusionModel) -> None:
        """Makes the unimodal heads, and room to count conflicts."""
        self.heads = UnimodalHeads(model)
        self.register_buffer("counts", torch.zeros(len(model.modalities), 3))  # conflicts, steps, and of which epoch

    def active(self, epoch: int) -> bool:
        """Whether the method acts in this epoch."""
        return self.start_epoch <= epoch and (self.end_epoch is None or epoch < self.end_epoch)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Each modality's own cross-entropy, a sum over the clips that have it divided by the batch size.

        So the ranks' mean is that of the global batch, whoever lacks what. The terms reach the unimodal heads alone:
        the encoders' part of their gradient is taken aside here, and joins in `on_gradients`.
        """
        active = self.active(step.epoch)
        leaves = {name: encoding.detach().requires_grad_(active) for name, encoding in step.encodings.items()}
        present = step.present or {}
        terms = {}
        for name, logits in self.heads(leaves).items():
            losses = step.cross_entropy(logits, reduction="none")
            terms[name] = (losses * present[name] if name in present else losses).sum() / len(losses)
            if active:
                self._gather(step, name, terms[name], leaves[name])
        return terms if active else {name: 0 * term for name, term in terms.items()}

    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Replaces each encoder's gradient by the combination."""
        gathered, self._uni = self._uni, {}
        epoch = steps[0].epoch
        if not self.active(epoch):
            self.counts.zero_()
            return
        for count, name in zip(self.counts, self.heads.heads, strict=True):
            if name not in gathered:  # a frozen encoder
                continue
            flat = gathered[name]
            uni = all_reduce_sum(flat) / all_reduce_sum(flat.new_ones(()))
            parameters = _trained(steps[0], name)
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            multi = torch.cat([grad.flatten() for grad in grads])
            count[:2] = torch.stack([multi @ uni <= 0, count.new_ones(())]) + count[:2] * (count[2] == epoch)
            count[2] = epoch
            pieces = torch.split(combine(multi, uni, self.gamma), [p.numel() for p in parameters])
            for parameter, piece in zip(parameters, pieces, strict=True):
                if parameter.grad is not None:
                    parameter.grad.copy_(piece.view_as(parameter))
                elif piece.any():  # a parameter that nothing uses keeps no gradient
                    parameter.grad = piece.view_as(parameter).clone()

    def report(self) -> dict[str, float]:
        """Share of the epoch's steps in which an encoder's two gradients did not agree."""
        counted = zip(self.heads.heads, self.counts.tolist(), strict=True)
        return {f"conflict/{name}": conflicts / steps for name, (conflicts, steps, _) in counted if steps}

    def _gather(self, step: Step, name: str, term: Tensor, leaf: Tensor) -> None:
        """Takes a term's gradient by its encoder's parameters, to be added up when the term's own backward comes."""
        encoding, parameters = step.encodings[name], _trained(step, name)
        if not (parameters and encoding.requires_grad):  # a frozen encoder
            return
        with torch.autocast(encoding.device.type, enabled=False):
            (slope,) = torch.autograd.grad(term * step.loss_scale, leaf, retain_graph=True)
            gradients = torch.autograd.grad(encoding, parameters, slope, retain_graph=True, materialize_grads=True)
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / (step.loss_scale * step.micro_batches)
        term.register_hook(functools.partial(self._add, name, flat))  # type: ignore[no-untyped-call]

    def _add(self, name: str, flat: Tensor, slope: Tensor) -> Tensor:
        """Adds a micro-batch's gradient in the backward, where zero_grad tells what the last step, or a fit, left."""
        fresh = self.heads.heads[name].get_parameter("weight").grad is None
        self._uni[name] = flat if fresh or name not in self._uni else self._uni[name] + flat
        return slope * (1 + 0 * flat.sum())  # in 16-mixed, the scaler must see what overflowed here


def _trained(step: Step, name: str) -> list[nn.Parameter]:
    """Parameters of a modality's encoder that are not frozen."""
    return [parameter for parameter in step.model.encoders[name].parameters() if parameter.requires_grad]
