"""Gradients for a modality of ids: by the vectors that its embedding layer makes of them."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from amr.attribution import undisturbed
from amr.model import FusionModel, encode_alone, require_modality
from amr.model.calls import substituted
from amr.model.protocol import Explained
from amr.utils.errors import UserError


def embedding_layer(model: Explained, modality: str, ids: Tensor) -> nn.Module:
    """The layer that turns a modality's ids into vectors.

    Args:
        model: The model. An `explained` one names the layer; in the encoder of a `FusionModel` it is the only
            `nn.Embedding` that is called with the ids themselves.
        modality: The modality.
        ids: Its input, (N, ...).

    Raises:
        UserError: There is no such layer.
    """
    require_modality(model, modality)
    if isinstance(model, FusionModel):
        found = _called_with(model, modality, ids[:1])
        layer = found[0] if len(found) == 1 else None
    else:
        named = getattr(model, "embedding", None)
        layer = named(modality) if callable(named) else None
    if layer is None:
        raise UserError(
            f"inputs.{modality}={ids.dtype}: must be floating-point to have a gradient, and no embedding layer of it "
            "is known; name it (amr.multiviz.explained: embeddings), or use lime, kernel_shap, occlusion or ablation"
        )
    return layer


def embed(model: Explained, modality: str, layer: nn.Module, ids: Tensor) -> Tensor:
    """Vectors (N, T, D) of a modality's ids (N, T)."""
    if isinstance(layer, nn.Embedding):
        vectors: Tensor = layer(ids)
        return vectors
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, args, output: seen.append(output))
    try:
        encode_alone(model, modality, ids)
    finally:
        handle.remove()
    return seen[0]


def encode_vectors(model: Explained, modality: str, layer: nn.Module, ids: Tensor, vectors: Tensor) -> Tensor:
    """Encoding (B, ...) of ids (B, T) whose vectors (B, T, D) are others than their own."""
    direct = getattr(model, "encoded_vectors", None)
    encoding: Tensor | None = direct(modality, ids, vectors) if callable(direct) else None
    if encoding is not None:
        return encoding
    with substituted(layer, vectors, f"embedding of {modality}"):
        return encode_alone(model, modality, ids)


def _called_with(model: FusionModel, modality: str, ids: Tensor) -> list[nn.Module]:
    """The encoder's embedding layers that are called with these ids."""
    found: list[nn.Module] = []

    def look(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and torch.equal(args[0], ids):
            found.append(layer)

    with ExitStack() as stack, undisturbed(model), torch.no_grad():
        for layer in model.encoders[modality].modules():
            if isinstance(layer, nn.Embedding):
                stack.callback(layer.register_forward_pre_hook(look).remove)
        encode_alone(model, modality, ids)
    return found
