"""Dropout of penultimate features."""

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from amr.regularizers.base import Regularizer
from amr.utils.names.ranges import Range


class Dropout(Regularizer):
    """Zeroes each fused feature with probability p and scales the rest by 1/(1-p) (Srivastava et al. 2014).

    Args:
        p: Probability of dropping a feature, in [0, 1).

    Raises:
        UserError: If p is outside [0, 1).
    """

    name = "dropout"
    title = "Dropout"
    signal = "nothing"
    ranges: ClassVar = {"p": Range(0.1, 0.7)}
    several_labels = True
    order = 20

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.check("p", p, 0 <= p < 1, "a value in [0, 1)")
        self.p = p

    def on_fused(self, fused: Tensor) -> Tensor:
        """Drops features of (B, D)."""
        return F.dropout(fused, self.p)
