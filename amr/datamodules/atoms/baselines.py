"""Baselines that replace a removed atom: zeros, a mean, a blurred copy, a mask token."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from amr.utils.errors import UserError

How = Literal["zero", "mean", "blur"]
MEANS = {  # what a mean is over, beside the clips
    "vector": (),
    "table": (),
    "series": (1,),
    "regions": (1,),
    "waveform": (-1,),
    "image": (-2, -1),
    "frames": (1, -2, -1),
    "spectrogram": (-1,),
}
BLURRED = {"image": (-2, -1), "frames": (-2, -1), "spectrogram": (-2, -1), "series": (1,), "waveform": (-1,)}
WIDTH = 1 / 8  # of a blur: its standard deviation as a part of the size


def baseline_of(kind: str, how: How | int | float | Tensor, x: Tensor) -> Tensor | float:
    """Baseline for inputs of a kind: the values that carry no information.

    Args:
        kind: tokens, vector, table, series, regions, waveform, image, frames or spectrogram.
        how: `zero`; `mean` over the clips of x: of each dimension (vector, table), channel (series, regions, image,
            frames) or frequency (spectrogram); `blur`: each clip without its details, by a Gaussian of an eighth of the
            size (image, frames, spectrogram, series, waveform); or a value, such as the id of a mask token.
        x: Clips, (N, ...).

    Returns:
        A number, or a tensor that broadcasts to x: one input (1, ...), or one for each clip of a blur.

    Raises:
        UserError: The kind has no mean or no blur, or ids have a value that is not an id.
    """
    if isinstance(how, str):
        if how not in get_args(How):
            raise UserError(f"baseline={how!r}: must be one of {', '.join(get_args(How))}, a number or a tensor")
        if how == "zero":
            return 0 if kind == "tokens" else 0.0
        axes = (MEANS if how == "mean" else BLURRED).get(kind)
        if axes is None or not x.is_floating_point():
            what = "have no mean; give an id" if kind == "tokens" else f"have no {how}; must be zero, mean or a value"
            raise UserError(f"baseline={how!r}: inputs of the kind {kind} {what}")
        if how == "mean":
            return x.mean((0, *axes), keepdim=True)
        for axis in axes:
            x = _smooth(x, axis)
        return x
    if not x.is_floating_point() and bool((torch.as_tensor(how) % 1 != 0).any()):
        raise UserError(f"baseline={how}: must be an id or ids, as the input is")
    return how


def _smooth(x: Tensor, axis: int) -> Tensor:
    """A Gaussian mean along an axis; the ends are repeated."""
    size = x.shape[axis]
    reach = max(1, min(size - 1, round(3 * WIDTH * size)))
    if size < 2:
        return x
    steps = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-0.5 * (steps / max(WIDTH * size, 0.5)) ** 2)
    rows = x.movedim(axis, -1)
    flat = pad(rows.reshape(-1, 1, size), (reach, reach), mode="replicate")
    return conv1d(flat, (weights / weights.sum())[None, None]).reshape(rows.shape).movedim(-1, axis)
