"""What every method of unimodal importance returns."""

from dataclasses import dataclass

from torch import Tensor

from amr.datamodules.atoms import Atoms


@dataclass(frozen=True, eq=False)
class Importance:
    """What a method says about N clips.

    Args:
        values: Importance of each atom, (N, A), or of each element, (N, *input shape), where no atoms were given; of
            several targets (N, T, A).
        error: Standard error of `values` of the methods that draw samples, the same shape; None of the others, and of
            one repeat.
        atoms: The atoms, with their coordinates.
        method: The function's name.
    """

    values: Tensor
    error: Tensor | None
    atoms: Atoms | None
    method: str
