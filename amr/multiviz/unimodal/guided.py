"""Guided backpropagation, for every ReLU that runs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from amr.attribution import undisturbed
from amr.datamodules.atoms import Atoms
from amr.model.protocol import Explained
from amr.multiviz.base import Target
from amr.multiviz.held import hold, input_gradient
from amr.multiviz.unimodal.importance import Importance
from amr.utils.errors import UserError


def guided_backprop(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target = "predicted",
    atoms: Atoms | None = None,
    *,
    batch: int = 64,
) -> Importance:
    """Guided backpropagation: a ReLU passes positive gradients only (Springenberg et al. 2015, figure 1).

    R_in = 1[x > 0] · 1[R_out > 0] · R_out at every ReLU of the encoder and the head: modules, also in-place ones and
    such as run several times, and functions. Other activations keep their derivative. 2 rows per clip.

    Arguments, return value and errors are those of `gradient`.

    Raises:
        UserError: Also if no ReLU runs (the result would be the gradient), or one is out of reach: compiled or
            scripted.
    """
    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch, gradient=True)
        values = []
        for _, clip in fixed.rows(1):
            leaf = fixed.leaf[clip].requires_grad_()
            with _GuidedReLUs() as guided:
                score = fixed.leaf_scores(leaf, clip).sum()
            if not guided.calls:
                raise UserError(f"guided_backprop: no ReLU in the encoder of {modality!r} or the head; use gradient")
            _refuse_unguided(score)
            values.append(fixed.by_atom(input_gradient(score, leaf), clip))
        return Importance(torch.cat(values), None, atoms, "guided_backprop")


class _GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        out = x.relu_() if inplace else x.relu()
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(out > 0)  # not the output, which the next layer may change in place
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (positive,) = ctx.saved_tensors
        return grads[0].clamp_min(0) * positive, None


class _GuidedReLUs(TorchFunctionMode):
    """Replaces every ReLU that runs within: modules come down to these functions, too."""

    functions = (F.relu, torch.relu, Tensor.relu)
    inplace_functions = (torch.relu_, Tensor.relu_)  # F.relu_ is torch.relu_

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.functions + self.inplace_functions:
            return func(*args, **kwargs)
        self.calls += 1
        values = dict(zip(("input", "inplace"), args, strict=False)) | kwargs
        apply: Any = _GuidedReLU.apply
        return apply(values["input"], func in self.inplace_functions or values.get("inplace", False))


def _refuse_unguided(score: Tensor) -> None:
    """Raises UserError if the score's graph has a ReLU that was not replaced, or a part that cannot be looked into."""
    seen: set[Node] = set()
    stack = [score.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name()
        if name == "ReluBackward0" or "DifferentiableGraph" in name or "CompiledFunction" in name:
            raise UserError(
                f"guided_backprop: {name} is out of reach; use nn.ReLU or F.relu, neither compiled nor scripted"
            )
        stack.extend(following for following, _ in node.next_functions)
