"""Corruptions of tensors at five severities, for robustness: noise, and lost values."""

from collections.abc import Mapping

import torch
from torch import Tensor

from amr.datamodules.corruptions import Context, Corruption
from amr.datamodules.tensors.columns import Column, Kind
from amr.datamodules.tensors.values import PAD, UNKNOWN, Modality

LOST = (0.1, 0.25, 0.5, 0.75, 1.0)
NOISE = (0.25, 0.5, 1.0, 2.0, 4.0)


def mask_tokens(x: Tensor, fraction: float, _: Context) -> Tensor:
    """Makes a fraction of the tokens unknown; padding stays."""
    return torch.where((torch.rand(x.shape) < fraction) & (x != PAD), UNKNOWN, x)


def corruptions_of(column: Column, modality: Modality) -> Mapping[str, Corruption]:
    """The corruptions of a modality, by name.

    `noise` is Gaussian, with a multiple of the training clips' deviation. `mask` replaces values by the training
    clips' mean: single ones of vectors and tables, whole steps of series, and pixels with all their channels.
    """
    if column.kind == "tokens":
        return {"mask": Corruption("part of the tokens", LOST, mask_tokens)}
    mean, spread = (torch.tensor(modality.fitted[key], dtype=torch.float32) for key in ("mean", "deviation"))
    if column.standardizes:
        mean, spread = torch.zeros_like(mean), torch.ones_like(spread)

    def noise(x: Tensor, size: float, _: Context) -> Tensor:
        return x + torch.randn(x.shape) * spread * size

    def mask(x: Tensor, fraction: float, _: Context) -> Tensor:
        return torch.where(torch.rand(_lost_together(column.kind, x)) < fraction, mean, x)

    return {
        "noise": Corruption("of the training clips' deviation", NOISE, noise),
        "mask": Corruption("part of the values", LOST, mask),
    }


def _lost_together(kind: Kind, x: Tensor) -> tuple[int, ...]:
    """Shape of the choice of what is lost; a size of 1 for what is lost together."""
    if kind == "series":
        return (len(x), 1)
    if kind in ("image", "spectrogram"):
        return (1, *x.shape[1:])
    if kind == "frames":
        return (len(x), 1, *x.shape[2:])
    return tuple(x.shape)
