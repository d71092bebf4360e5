"""Partitions of one input into atoms, the same for all clips or one for each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from amr.utils.errors import UserError

AXES = (
    *(("start_s", "end_s"), ("low_hz", "high_hz"), ("frame", "end_frame"), ("top", "bottom"), ("left", "right")),
    *((name, f"end_{name}") for name in ("word", "token", "column", "channel", "step", "bin", "dimension")),
)
"""The keys of an atom's two ends along each axis."""


@dataclass(frozen=True, eq=False)
class Atoms:
    """A partition of one modality's input into A atoms.

    Args:
        label: Each element's atom, 0 to A - 1, int64 of the shape of one input (no batch dimension). Elements of -1 are
            in no atom and always stay, such as the padding of a text.
        coordinates: Where each atom is, A dictionaries of the same keys: `start_s` and `end_s` in seconds, `low_hz` and
            `high_hz` in Hz, `top`, `left`, `bottom` and `right` in pixels, `frame` and `end_frame` counted from 0.
            Ends, `bottom` and `right` are exclusive. `word`, `token`, `column`, `channel`, `step`, `bin` and
            `dimension`, with `end_` of each, count from 0.
        grid: Number of atoms along each axis, for drawing; atom a is at `unravel_index(a, grid)`.
        names: Names of the atoms for people, such as a table's column. Empty: they have no names.

    Raises:
        UserError: An atom is empty or has no coordinates, or the grid has another number of cells.
    """

    label: Tensor
    coordinates: tuple[dict[str, float], ...]
    grid: tuple[int, ...]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.coordinates)
        used: Tensor = torch.unique(self.label.cpu())
        used = used[used >= 0] if bool((used >= -1).all()) else used
        if len(self.names) not in (0, count):
            raise UserError(f"atoms: {len(self.names)} names; must be {count}, one per atom")
        if math.prod(self.grid) != count or not torch.equal(used, torch.arange(count)):
            raise UserError(
                f"atoms: labels must be 0 to {count - 1}, one for each of the {count} coordinates, each with an "
                f"element, and grid must have {count} cells; got grid {self.grid}"
            )

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def shape(self) -> torch.Size:
        """Shape of one input."""
        return self.label.shape

    def of(self, clips: int | Tensor) -> "Atoms":
        """The atoms of one clip, or of the clips (R,) of as many rows: the same for all of them."""
        return self

    def alike(self, other: "Atoms") -> bool:
        """Whether two partitions are the same."""
        return len(self) == len(other) and torch.equal(self.label.cpu(), other.label.cpu())

    def mask(self, keep: Tensor) -> Tensor:
        """Elements of the kept atoms, and of none: boolean (..., A) to boolean (..., *input shape)."""
        label = self.label.to(keep.device)
        return keep[..., label.clamp_min(0)] | (label < 0)

    def replace(self, x: Tensor, keep: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
        """Copies of inputs in which atoms are replaced by the baseline.

        Args:
            x: One input (*input shape), or one per row (S, *input shape).
            keep: Atoms that stay, boolean (S, A).
            baseline: Replacement of the others: a number, or a tensor that broadcasts to x.

        Returns:
            New tensor, (S, *input shape).

        Raises:
            UserError: The shapes do not go together.
        """
        if x.shape[x.ndim - len(self.shape) :] != self.shape or keep.shape[-1] != len(self):
            raise UserError(
                f"atoms: made for inputs of shape {tuple(self.shape)} in {len(self)} atoms, "
                f"got an input of {tuple(x.shape)} and {keep.shape[-1]} atoms to keep"
            )
        return torch.where(self.mask(keep.to(x.device)), x, torch.as_tensor(baseline, dtype=x.dtype, device=x.device))

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise values summed over atoms: (N, *input shape) to (N, A)."""
        if values.shape[1:] != self.label.shape:
            raise UserError(f"atoms: made for inputs of shape {tuple(self.label.shape)}, got {tuple(values.shape[1:])}")
        zeros, label = values.new_zeros(len(values), len(self)), self.label.flatten().to(values.device)
        inside = label >= 0
        if bool(inside.all()):
            return zeros.index_add(1, label, values.flatten(1))
        return zeros.index_add(1, label[inside], values.flatten(1)[:, inside])

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


@dataclass(frozen=True, eq=False)
class ClipAtoms(Atoms):
    """Atoms that differ between clips, such as the words of texts, or segments of images.

    All clips have A atoms. A clip that has fewer of them leaves the last ones without an element: nothing happens where
    these are replaced, so their importance is 0.

    Args:
        label: Each element's atom, -1 to A - 1, int64 (N, *input shape), of N clips; or (1, *input shape), of all.
        coordinates: As in `Atoms`, of all clips.
        grid: As in `Atoms`.
        texts: Names of each clip's atoms, N tuples of A texts; empty texts of atoms without an element.

    Raises:
        UserError: A label is no atom, the grid has another number of cells, or texts are not N × A.
    """

    texts: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.coordinates)
        low, high = (int(end) for end in self.label.aminmax()) if self.label.numel() else (0, 0)
        if not -1 <= low <= high < count or math.prod(self.grid) != count or self.label.ndim < 2:
            raise UserError(
                f"atoms: labels must be (N, *input shape) of -1 to {count - 1}, and grid must have {count} cells; "
                f"got {low} to {high} and grid {self.grid}"
            )
        if len(self.texts) not in (0, len(self.label)) or any(len(texts) != count for texts in self.texts):
            raise UserError(f"atoms: texts must be of {len(self.label)} clips and {count} atoms each")

    @property
    def shape(self) -> torch.Size:
        """Shape of one input."""
        return self.label.shape[1:]

    def of(self, clips: int | Tensor) -> "ClipAtoms":
        """The atoms of one clip, or of the clips (R,), one per row. Those of a single clip are of every clip."""
        if len(self.label) == 1:
            return self
        rows = [clips] if isinstance(clips, int) else clips.tolist()
        texts = tuple(self.texts[row] for row in rows) if self.texts else ()
        return ClipAtoms(self.label[rows], self.coordinates, self.grid, self.names, texts)

    def mask(self, keep: Tensor) -> Tensor:
        """Elements of the kept atoms, and of none: boolean (R, A) to boolean (R, *input shape), one clip per row."""
        label = self.label.to(keep.device)
        if len(label) == 1:
            return keep[..., label[0].clamp_min(0)] | (label[0] < 0)
        self._check_rows(len(keep))
        return keep.gather(1, label.flatten(1).clamp_min(0)).reshape(label.shape) | (label < 0)

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise values summed over atoms: (R, *input shape) to (R, A), one clip per row."""
        label = self.label.to(values.device)
        if values.shape[1:] != self.shape:
            raise UserError(f"atoms: made for inputs of shape {tuple(self.shape)}, got {tuple(values.shape[1:])}")
        if len(label) > 1:
            self._check_rows(len(values))
        label = label.expand(values.shape).flatten(1)
        inside = values.flatten(1) * (label >= 0)
        return values.new_zeros(len(values), len(self)).scatter_add(1, label.clamp_min(0), inside)

    def _check_rows(self, rows: int) -> None:
        if rows != len(self.label):
            raise UserError(f"atoms: of {len(self.label)} clips, got {rows} rows; say of which clips: atoms.of(clips)")
