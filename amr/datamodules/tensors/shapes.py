"""Atoms and pictures of inputs of which only the shape is known."""

from collections.abc import Sequence
from itertools import pairwise, product

import torch
from torch import Tensor

from amr.datamodules.atoms import Atoms, Kind, video_atoms
from amr.datamodules.transforms.picture import Picture, picture_of

FINE, COARSE = (4, 4, 4), (2, 2, 2)  # blocks along frames, rows and columns
SEGMENTS, FEWER = 16, 6  # of a vector
COLOURS = 3
MOST = 64  # tokens that are atoms by themselves


def tensor_atoms(shape: Sequence[int], *, coarse: bool = False) -> Atoms:
    """Blocks of an input.

    Args:
        shape: One input's: (D,); (T, D); (C, H, W) and (N, C, H, W), whose channels go together. Further dimensions are
            taken as T, flattened.
        coarse: Fewer blocks.
    """
    shape = tuple(shape)
    if len(shape) in (3, 4):
        frames, rows, columns = COARSE if coarse else FINE
        times = shape[0] if len(shape) == 4 else 1
        return video_atoms(shape, (min(rows, shape[-2]), min(columns, shape[-1])), min(frames, times))
    if len(shape) < 2:
        names: tuple[str, ...] = ("dimension",)
        blocks: tuple[int, ...] = (FEWER if coarse else SEGMENTS,)
    else:
        names, blocks = ("row", "dimension"), (COARSE if coarse else FINE)[:2]
    sizes = shape if len(shape) < 3 else (int(torch.Size(shape[:-1]).numel()), shape[-1])
    sizes = sizes or (1,)
    grid = tuple(min(count, size) for count, size in zip(blocks, sizes, strict=True))
    edges = [[b * size // count for b in range(count + 1)] for count, size in zip(grid, sizes, strict=True)]
    label = torch.zeros(sizes, dtype=torch.int64)
    coordinates = []
    for number, cells in enumerate(product(*map(pairwise, edges))):
        label[tuple(slice(start, end) for start, end in cells)] = number
        ends = zip(names, cells, strict=True)
        coordinates.append({key: float(e) for n, (a, b) in ends for key, e in ((n, a), (f"end_{n}", b))})
    return Atoms(label.reshape(shape), tuple(coordinates), grid)


def tensor_picture(x: Tensor, atoms: Atoms) -> Picture:
    """An input to look at: each block's middle frame, side by side; a matrix; or a vector as one row."""
    x = x.detach().float().cpu()
    index = torch.arange(x.numel()).reshape(x.shape)
    if x.ndim not in (3, 4):
        flat = (1, -1) if x.ndim < 2 else (-1, x.shape[-1])
        return picture_of(x.reshape(flat), index.reshape(flat), atoms, f"values of shape {tuple(x.shape)}")
    frames, places = (x, index) if x.ndim == 4 else (x[None], index[None])
    blocks = atoms.grid[0] if x.ndim == 4 and len(atoms.grid) == 3 else 1
    shown = [(2 * b + 1) * len(frames) // (2 * blocks) for b in range(blocks)]
    pixels = torch.cat([frames[i] for i in shown], dim=2)  # (C, H, blocks W)
    element = torch.cat([places[i, 0] for i in shown], dim=1)
    unit = (
        f"frames {', '.join(map(str, shown))} of {len(frames)}"
        if x.ndim == 4
        else f"{len(pixels[0])} × {len(pixels[0, 0])}"
    )
    if len(pixels) != COLOURS:
        return picture_of(pixels.mean(0), element, atoms, unit)
    low, high = pixels.min(), pixels.max()
    image = ((pixels - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0)
    return picture_of(image, element, atoms, unit)


def kind_atoms(kind: Kind, shape: Sequence[int], *, coarse: bool = False) -> Atoms:
    """The atoms of one kind of input, the same for all clips: columns, channels × windows, tokens, or blocks.

    Args:
        kind: Kind of the inputs.
        shape: One input's.
        coarse: Fewer atoms: neighbouring columns, channels or tokens together.
    """
    if kind.kind == "tokens":
        return _pieces("token", torch.arange(shape[0]), FEWER if coarse else MOST)
    if kind.kind in ("table", "series"):
        return kind.atoms(torch.empty(1, *shape), coarse=coarse)
    return tensor_atoms(shape, coarse=coarse)


def _pieces(key: str, place: Tensor, most: int) -> Atoms:
    """Groups neighbouring places, so that at most `most` atoms result; place (D,) counts from 0."""
    count = int(place.max()) + 1
    blocks = min(most, count)
    edges = [block * count // blocks for block in range(blocks + 1)]
    label = torch.bucketize(place, torch.tensor(edges[1:]), right=True)
    coordinates = tuple({key: float(start), f"end_{key}": float(end)} for start, end in pairwise(edges))
    return Atoms(label, coordinates, (blocks,))
