"""Atoms that are blocks of an input: the same for every clip."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, product

import torch
from torch import Tensor

from amr.datamodules.atoms.partition import Atoms
from amr.utils.errors import UserError


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


def patch_atoms(shape: Sequence[int], rows: int, columns: int) -> Atoms:
    """Patches of one image; channels go together.

    Args:
        shape: One input's, (C, H, W).
        rows: Rows of patches, 1 to H.
        columns: Columns of patches, 1 to W.

    Returns:
        Atoms of grid (rows, columns), in row-major order.

    Raises:
        UserError: The shape has other dimensions, or there are more patches than pixels.
    """
    if len(shape) != 3:
        raise UserError(f"atoms: an image has the shape (C, H, W), got {tuple(shape)}")
    found = video_atoms(shape, (rows, columns), 1)
    places = tuple({k: v for k, v in one.items() if "frame" not in k} for one in found.coordinates)
    return Atoms(found.label, places, (rows, columns))


def series_atoms(
    shape: Sequence[int], windows: int, *, names: Sequence[str] = (), seconds: float | None = None, groups: int = 0
) -> Atoms:
    """Channel × window of a time series.

    Args:
        shape: One input's, (T, channels).
        windows: Windows in time, 1 to T; sizes differ by one step at most.
        names: Names of the channels. Empty: they have none.
        seconds: Duration, positive; None: unknown, and windows are described by their steps alone.
        groups: Neighbouring channels go together, in as many groups, 1 to channels; 0: each by itself.

    Returns:
        Atoms of grid (channels or groups, windows), in row-major order.

    Raises:
        UserError: The shape has other dimensions, there are more windows than steps, or the names are not one per
            channel.
    """
    if len(shape) != 2:
        raise UserError(f"atoms: a time series has the shape (T, channels), got {tuple(shape)}")
    steps, channels = shape
    _check_names(names, channels, "channel")
    times, rows = _edges("windows", windows, steps), _edges("groups", groups or channels, channels)
    at = None if seconds is None else _seconds(seconds, steps)
    label = _blocks(times)[:, None] + _blocks(rows) * windows
    coordinates, words = [], []
    for (first, last), (start, end) in product(pairwise(rows), pairwise(times)):
        place: dict[str, float] = {"channel": first, "end_channel": last, "step": start, "end_step": end}
        coordinates.append(place if at is None else {**place, "start_s": at(start), "end_s": at(end)})
        words.append(", ".join(names[first:last]))
    return Atoms(label, tuple(coordinates), (len(rows) - 1, windows), tuple(words) if names else ())


def column_atoms(owner: int | Sequence[int], *, names: Sequence[str] = (), most: int | None = None) -> Atoms:
    """Columns of a table.

    Args:
        owner: Number of columns of one dimension each; or the column of each dimension, from 0 on without gaps, so that
            the dimensions of one category go together.
        names: Names of the columns. Empty: they have none.
        most: Number of atoms at most; above it neighbouring columns go together. None: each column by itself.

    Raises:
        UserError: Columns have gaps, or the names are not one per column.
    """
    place = torch.arange(owner) if isinstance(owner, int) else torch.tensor(list(owner), dtype=torch.int64)
    if not len(place):
        raise UserError("atoms: a table must have at least one column")
    count = int(place.max()) + 1
    _check_names(names, count, "column")
    edges = _edges("most", min(count if most is None else most, count), count)
    label = torch.bucketize(place, torch.tensor(edges[1:]), right=True)
    coordinates = tuple({"column": float(start), "end_column": float(end)} for start, end in pairwise(edges))
    words = tuple(", ".join(names[start:end]) for start, end in pairwise(edges)) if names else ()
    return Atoms(label, coordinates, (len(edges) - 1,), words)


def vector_atoms(dim: int, blocks: int) -> Atoms:
    """Blocks of neighbouring dimensions of a vector (D,), sizes differing by one at most.

    Raises:
        UserError: More blocks than dimensions.
    """
    edges = _edges("blocks", blocks, dim)
    coordinates = tuple({"dimension": float(start), "end_dimension": float(end)} for start, end in pairwise(edges))
    return Atoms(_blocks(edges), coordinates, (blocks,))


def flat_atoms(dim: int | Sequence[int]) -> Atoms:
    """One atom per element, for vectors (D,) and encodings, also of tokens (T, D).

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


def _check_names(names: Sequence[str], count: int, what: str) -> None:
    if names and len(names) != count:
        raise UserError(f"atoms: {len(names)} names; must be {count}, one per {what}")


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
