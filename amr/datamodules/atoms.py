"""Atoms: the pieces of one modality's input that are explained, and kept or replaced together."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor

from amr.utils.errors import UserError

AXES = (("start_s", "end_s"), ("low_hz", "high_hz"), ("frame", "end_frame"), ("top", "bottom"), ("left", "right"))
"""The keys of an atom's two ends along each axis."""


@dataclass(frozen=True, eq=False)
class Atoms:
    """A partition of one modality's input into A atoms.

    Args:
        label: Each element's atom, 0 to A - 1, int64 of the shape of one input (no batch dimension).
        coordinates: Where each atom is, A dictionaries of the same keys: `start_s` and `end_s` in seconds, `low_hz` and
            `high_hz` in Hz, `top`, `left`, `bottom` and `right` in pixels, `frame` and `end_frame` counted from 0.
            Ends, `bottom` and `right` are exclusive.
        grid: Number of atoms along each axis, for drawing; atom a is at `unravel_index(a, grid)`.

    Raises:
        UserError: An atom is empty or has no coordinates, or the grid has another number of cells.
    """

    label: Tensor
    coordinates: tuple[dict[str, float], ...]
    grid: tuple[int, ...]

    def __post_init__(self) -> None:
        count = len(self.coordinates)
        used: Tensor = torch.unique(self.label.cpu())
        if math.prod(self.grid) != count or not torch.equal(used, torch.arange(count)):
            raise UserError(
                f"atoms: labels must be 0 to {count - 1}, one for each of the {count} coordinates, each with an "
                f"element, and grid must have {count} cells; got grid {self.grid}"
            )

    def __len__(self) -> int:
        return len(self.coordinates)

    def mask(self, keep: Tensor) -> Tensor:
        """Elements of the kept atoms: boolean (..., A) to boolean (..., *input shape)."""
        return keep[..., self.label.to(keep.device)]

    def replace(self, x: Tensor, keep: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
        """Copies of inputs in which atoms are replaced by the baseline.

        Args:
            x: One input (*input shape), or one a row (S, *input shape).
            keep: Atoms that stay, boolean (S, A).
            baseline: What the others become: a number, or a tensor that broadcasts to x.

        Returns:
            New tensor, (S, *input shape).

        Raises:
            UserError: The shapes do not go together.
        """
        if x.shape[x.ndim - self.label.ndim :] != self.label.shape or keep.shape[-1] != len(self):
            raise UserError(
                f"atoms: made for inputs of shape {tuple(self.label.shape)} in {len(self)} atoms, "
                f"got an input of {tuple(x.shape)} and {keep.shape[-1]} atoms to keep"
            )
        return torch.where(self.mask(keep.to(x.device)), x, torch.as_tensor(baseline, dtype=x.dtype, device=x.device))

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise values summed over atoms: (N, *input shape) to (N, A)."""
        if values.shape[1:] != self.label.shape:
            raise UserError(f"atoms: made for inputs of shape {tuple(self.label.shape)}, got {tuple(values.shape[1:])}")
        zeros = values.new_zeros(len(values), len(self))
        return zeros.index_add(1, self.label.flatten().to(values.device), values.flatten(1))

    def overlap(self, place: Mapping[str, float]) -> Tensor:
        """Share of each atom's box that lies in a place: float64 (A,), 0 to 1.

        Args:
            place: A box in the units of `coordinates`. Axes that it leaves out do not count.

        Raises:
            UserError: The place has an axis that the atoms lack, half of one, or none.
        """
        axes = [(first, last) for first, last in AXES if first in place and last in place]
        known = {key for axis in AXES for key in axis if key in self.coordinates[0]}
        if not axes or set(place) != {key for axis in axes for key in axis} or not set(place) <= known:
            raise UserError(f"atoms: a place has both ends of axes among {sorted(known)}, got {sorted(place)}")
        share = torch.ones(len(self), dtype=torch.float64)
        for first, last in axes:
            start, end = (torch.tensor([c[key] for c in self.coordinates]).double() for key in (first, last))
            inside = end.clamp(max=place[last]) - start.clamp(min=place[first])
            share *= inside.clamp(min=0) / (end - start)
        return share


def spectrogram_atoms(
    shape: Sequence[int], freq_blocks: int, time_blocks: int, *, seconds: float, hz: Sequence[float]
) -> Atoms:
    """Blocks of frequency × time; channels go together.

    Args:
        shape: One input's, (..., F, T).
        freq_blocks: Blocks in frequency, 1 to F; sizes differ by one bin at most.
        time_blocks: Blocks in time, 1 to T; sizes differ by one step at most.
        seconds: Duration; step t covers [t, t + 1) · seconds / T.
        hz: The F + 1 edges of the bins in Hz, or (low, high) for bins of equal width between them.

    Returns:
        Atoms of grid (freq_blocks, time_blocks), in row-major order, lowest frequency first as in the input.

    Raises:
        UserError: More blocks than bins or steps, a duration of zero or less, or edges of another number or order.
    """
    if len(shape) < 2:
        raise UserError(f"atoms: a spectrogram has the shape (..., F, T), got {tuple(shape)}")
    bins, steps = shape[-2:]
    if len(hz) not in (2, bins + 1) or any(not low < high for low, high in pairwise(hz)):
        raise UserError(
            f"atoms: hz: {len(hz)} values; must be (low, high) or the {bins + 1} ascending edges of {bins} bins"
        )
    rows, columns = _edges("freq_blocks", freq_blocks, bins), _edges("time_blocks", time_blocks, steps)
    at = _seconds(seconds, steps)

    def frequency(edge: int) -> float:
        return float(hz[edge]) if len(hz) == bins + 1 else hz[0] + (hz[1] - hz[0]) * edge / bins

    label = _blocks(rows)[:, None] * time_blocks + _blocks(columns)
    coordinates = tuple(
        {"start_s": at(start), "end_s": at(end), "low_hz": frequency(low), "high_hz": frequency(high)}
        for (low, high), (start, end) in product(pairwise(rows), pairwise(columns))
    )
    return Atoms(label.expand(*shape).contiguous(), coordinates, (freq_blocks, time_blocks))


def waveform_atoms(shape: Sequence[int], segments: int, seconds: float) -> Atoms:
    """Segments of time; channels go together.

    Args:
        shape: One input's, (..., samples).
        segments: 1 to samples; sizes differ by one sample at most.
        seconds: Duration.

    Raises:
        UserError: More segments than samples, or a duration of zero or less.
    """
    if not shape:
        raise UserError("atoms: a waveform has the shape (..., samples), got ()")
    edges = _edges("segments", segments, shape[-1])
    at = _seconds(seconds, shape[-1])
    coordinates = tuple({"start_s": at(start), "end_s": at(end)} for start, end in pairwise(edges))
    return Atoms(_blocks(edges).expand(*shape).contiguous(), coordinates, (segments,))


def video_atoms(shape: Sequence[int], patches: tuple[int, int], frames: int) -> Atoms:
    """Blocks of frames × patches; channels go together.

    Args:
        shape: One input's, (frames, C, H, W), or (C, H, W) for one image.
        patches: Rows, 1 to H, and columns, 1 to W; sizes differ by one pixel at most.
        frames: Blocks in time, 1 to the number of frames; sizes differ by one frame at most.

    Returns:
        Atoms of grid (frames, rows, columns), in row-major order.

    Raises:
        UserError: More blocks than frames or pixels.
    """
    if len(shape) not in (3, 4):
        raise UserError(f"atoms: frames have the shape (frames, C, H, W), or (C, H, W) for one, got {tuple(shape)}")
    times = _edges("frames", frames, shape[0] if len(shape) == 4 else 1)
    rows, columns = _edges("patches", patches[0], shape[-2]), _edges("patches", patches[1], shape[-1])
    label = (_blocks(times)[:, None, None] * patches[0] + _blocks(rows)[:, None]) * patches[1] + _blocks(columns)
    label = label[:, None].expand(-1, shape[-3], -1, -1)  # (frames, C, H, W)
    coordinates: tuple[dict[str, float], ...] = tuple(
        {"frame": first, "end_frame": last, "top": top, "left": left, "bottom": bottom, "right": right}
        for (first, last), (top, bottom), (left, right) in product(pairwise(times), pairwise(rows), pairwise(columns))
    )
    return Atoms(label.reshape(*shape).contiguous(), coordinates, (frames, *patches))


def flat_atoms(dim: int | Sequence[int]) -> Atoms:
    """Every element an atom: for vectors (D,) and encodings, also of tokens (T, D).

    Raises:
        UserError: The shape has more than two dimensions, or a size is below 1.
    """
    shape = (dim,) if isinstance(dim, int) else tuple(dim)
    if len(shape) not in (1, 2) or min(shape) < 1:
        raise UserError(f"atoms: every element can be an atom in vectors (D,) and tokens (T, D), got {shape}")
    keys = ("dimension",) if len(shape) == 1 else ("token", "dimension")
    indices = product(*map(range, shape))
    coordinates = tuple(dict(zip(keys, map(float, index), strict=True)) for index in indices)
    return Atoms(torch.arange(math.prod(shape)).reshape(shape), coordinates, shape)


def _edges(key: str, blocks: int, size: int) -> list[int]:
    """The blocks + 1 edges of blocks that cover `size` elements, sizes differing by one at most."""
    if not 1 <= blocks <= size:
        raise UserError(f"atoms: {key}={blocks}: must be in 1 to {size}")
    return [block * size // blocks for block in range(blocks + 1)]


def _blocks(edges: list[int]) -> Tensor:
    """The block of each element, (size,) int64."""
    return torch.repeat_interleave(torch.tensor([end - start for start, end in pairwise(edges)]))


def _seconds(seconds: float, steps: int) -> Callable[[int], float]:
    if not seconds > 0:
        raise UserError(f"atoms: seconds={seconds}: must be positive")
    return lambda edge: edge * seconds / steps
