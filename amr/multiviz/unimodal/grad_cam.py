"""Grad-CAM at one layer of an encoder."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amr.attribution import undisturbed
from amr.datamodules.atoms import Atoms
from amr.model import FusionModel, encoder_of, require_modality
from amr.model.protocol import Explained
from amr.multiviz.base import Target
from amr.multiviz.held import hold, input_gradient
from amr.multiviz.unimodal.importance import Importance
from amr.utils.errors import UserError


def grad_cam(
    model: Explained,
    inputs: Mapping[str, Tensor],
    modality: str,
    target: Target = "predicted",
    atoms: Atoms | None = None,
    *,
    layer: nn.Module,
    batch: int = 64,
) -> Importance:
    """Grad-CAM at one layer of the modality's encoder (Selvaraju et al. 2017, eqs. 1 and 2). 2 rows per clip.

    With A the layer's output and k its channels, w_k is the mean of ∂f/∂A_k over positions, and the map
    ReLU(Σ_k w_k A_k) is interpolated linearly to the input's resolution. Every channel of the input gets an equal part
    of it, so that they add up to the map; a dimension that the layer no longer has (frames merged into channels) gets
    it all over.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...): (N, C, T), (N, C, H, W) or (N, frames, C, H, W).
        modality: The modality that is explained.
        target: As in `gradient`.
        atoms: As in `gradient`.
        layer: A module in that encoder (in a model without encoders, anywhere) that runs once a forward pass and
            returns (rows, channels, positions...) with one, two or three dimensions of positions: those of time, of
            height and width, or of frames, height and width. Rows are clips, or clips × frames.
        batch: As in `gradient`.

    Returns:
        Importance, 0 or more, without error.

    Raises:
        UserError: As in `gradient`, or the layer is not such a module.
    """
    require_modality(model, modality)
    if isinstance(model, FusionModel) and all(layer is not m for m in encoder_of(model, modality).modules()):
        raise UserError(f"grad_cam: layer={type(layer).__name__}: must be a module in the encoder of {modality!r}")
    if not inputs[modality].is_floating_point():
        raise UserError(f"grad_cam: inputs.{modality}={inputs[modality].dtype}: must be floating-point: ids are no map")
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Any) -> Tensor:  # noqa: ARG001 - a hook's signature
        if not isinstance(output, Tensor):
            raise UserError(f"grad_cam: layer must return one tensor, {type(layer).__name__} returns {type(output)}")
        outputs.append(output.detach().requires_grad_())
        return outputs[-1].clone()  # what follows in place would change what was kept

    with undisturbed(model):
        fixed = hold(model, inputs, modality, target, atoms, batch)
        values = []
        handle = layer.register_forward_hook(keep)
        try:
            for _, clip in fixed.rows(1):
                outputs.clear()
                score = fixed.scores(fixed.x[clip], clip).sum()
                if len(outputs) != 1:
                    raise UserError(f"grad_cam: layer must run once a forward pass, it ran {len(outputs)} times")
                cam = _cam(outputs[0].detach(), input_gradient(score, outputs[0]))
                values.append(fixed.by_atom(_upsample(cam, fixed.x[clip].shape), clip))
        finally:
            handle.remove()
        return Importance(torch.cat(values), None, atoms, "grad_cam")


def _cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """ReLU(Σ_k w_k A_k), w_k the mean of the gradient over positions: (R, K, positions...) to (R, positions...)."""
    if not 3 <= activations.ndim <= 5:
        raise UserError(
            "grad_cam: layer must return (rows, channels, positions...) with one to three dimensions of positions, "
            f"got {tuple(activations.shape)}"
        )
    weights = gradients.flatten(2).mean(2)
    return torch.einsum("rk,rk...->r...", weights, activations).relu()


def _upsample(cam: Tensor, shape: torch.Size) -> Tensor:
    """Maps (rows, positions...) interpolated to inputs of `shape` (B, ...), each channel with an equal part."""
    count, *element = shape
    positions = cam.ndim - 1
    if positions == 3 and len(element) == 4:  # (frames, H, W) of (frames, C, H, W)
        size, lead = [element[0], 1, *element[2:]], []
        target = [element[0], *element[2:]]
    elif positions < 3 and positions <= len(element):
        target = element[len(element) - positions :]
        frames = positions == 2 and len(element) == 4 and len(cam) == count * element[0]
        size, lead = target, [element[0], 1] if frames else [1] * (len(element) - positions)
    else:
        target, size, lead = [], [], []
    if not target or len(cam) * math.prod(target) != count * math.prod(lead) * math.prod(size):
        raise UserError(f"grad_cam: the layer's maps, {tuple(cam.shape)}, do not fit inputs of {tuple(shape)}")
    mode = ("linear", "bilinear", "trilinear")[positions - 1]
    full = F.interpolate(cam[:, None], size=target, mode=mode, align_corners=False).reshape(count, *lead, *size)
    channels = 1 if positions == len(element) else element[max(len(element) - 3, 0)]
    return (full / channels).expand(shape)
