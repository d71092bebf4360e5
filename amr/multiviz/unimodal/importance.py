"""Result type of all methods of unimodal importance."""

from dataclasses import dataclass

from torch import Tensor

from amr.datamodules.atoms import Atoms
from amr.evaluation.statistics import t_quantile


@dataclass(frozen=True, eq=False)
class Importance:
    """Importance of atoms in N clips, by one method.

    Args:
        values: Importance of each atom, (N, A), or of each element, (N, *input shape), where no atoms were given; of
            several targets (N, T, A).
        error: Standard error of `values` of the methods that draw samples, the same shape; None of the others, and of
            one repeat.
        atoms: The atoms, with their coordinates.
        method: The function's name.
        freedom: Degrees of freedom of `error`; None where there is no error.
    """

    values: Tensor
    error: Tensor | None
    atoms: Atoms | None
    method: str
    freedom: int | None = None

    @property
    def half(self) -> Tensor | None:
        """Half the width of each value's 95 % interval (Student's t); None without an error.

        It covers the method's own draws: how far the value is from that of infinitely many. It says nothing of another
        baseline, of other clips, or of how well a surrogate fits the model.
        """
        if self.error is None or self.freedom is None:
            return None
        return t_quantile(self.freedom) * self.error
