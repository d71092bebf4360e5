"""An input to look at."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from amr.datamodules.atoms import Atoms


@dataclass(frozen=True)
class Picture:
    """An input to look at.

    Attributes:
        image: Grey (height, width), of any range, or colours (height, width, 3) in 0..1.
        element: The element of the input that is shown at each place, of those of one channel that go together the
            first: position in the flattened input, (height, width) int64.
        atom: The atom at each place, (height, width) int64.
        unit: Meaning of the axes, in a few words.
    """

    image: NDArray[np.float32]
    element: NDArray[np.int64]
    atom: NDArray[np.int64]
    unit: str


def picture_of(image: Tensor, element: Tensor, atoms: Atoms, unit: str) -> Picture:
    """The picture whose elements lie at these places; each has its own atom."""
    return Picture(image.numpy(), element.numpy(), atoms.label.flatten()[element].numpy(), unit)
