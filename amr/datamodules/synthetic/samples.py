"""Samples that are made in memory, in which what decides the class, and where it is, is known."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from amr.datamodules.atoms import Atoms, Kind
from amr.utils.errors import UserError


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs, classes and the evidence for them.

    Attributes:
        inputs: Input of each modality, (N, ...).
        labels: Class of each sample, (N,) int64.
        classes: Names of the classes.
        kinds: Kind of each modality's inputs; `kinds[m].atoms(inputs[m])` are the atoms below.
        evidence: Atoms of each modality that decide the class, boolean (N, A_m).
        together: Pairs of atoms of two modalities that decide only together, boolean (N, A_1, A_2) by the names of the
            two; empty where the modalities add up. A sample without such a pair has none.
        groups: A number that parts the samples into kinds of cases, (N,) int64; see the function that made them.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    classes: tuple[str, ...]
    kinds: dict[str, Kind]
    evidence: dict[str, Tensor]
    together: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    groups: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, rows: Tensor | Sequence[int]) -> "Samples":
        """The samples at these positions, or where a boolean (N,) is True."""
        rows = torch.as_tensor(rows)
        return Samples(
            {name: x[rows] for name, x in self.inputs.items()},
            self.labels[rows],
            self.classes,
            self.kinds,
            {name: x[rows] for name, x in self.evidence.items()},
            {names: x[rows] for names, x in self.together.items()},
            self.groups[rows],
        )

    def atoms(self, modality: str) -> Atoms:
        """The atoms of a modality that `evidence` speaks of."""
        return self.kinds[modality].atoms(self.inputs[modality])

    def batches(self, size: int = 64, prefix: str = "s") -> list[dict[str, Any]]:
        """Batches as a loader gives them, in order; ids are the prefix and the position."""
        return [
            {
                "inputs": {name: x[start : start + size] for name, x in self.inputs.items()},
                "label": self.labels[start : start + size],
                "id": [f"{prefix}{i:05d}" for i in range(start, min(start + size, len(self)))],
            }
            for start in range(0, len(self), size)
        ]


def generator_of(count: int, seed: int) -> torch.Generator:
    """The generator of `count` samples.

    Raises:
        UserError: The count is below 1, or the seed below 0.
    """
    if count < 1 or seed < 0:
        raise UserError(f"count={count}, seed={seed}: must be at least 1 and at least 0")
    return torch.Generator().manual_seed(seed)


def drawn(generator: torch.Generator, count: int, below: int) -> Tensor:
    """Numbers from 0 to `below` - 1, (count,) int64."""
    return torch.randint(below, (count,), generator=generator)


def orders(generator: torch.Generator, count: int, size: int) -> Tensor:
    """A random order of `size` things for each sample, (count, size) int64."""
    return torch.rand(count, size, generator=generator).argsort(1)


def marked(places: Tensor, size: int) -> Tensor:
    """Boolean (N, size), True at the places (N,) or (N, K); a place below 0 is none."""
    places = places if places.ndim == 2 else places[:, None]
    return (places[:, :, None] == torch.arange(size)).any(1)
