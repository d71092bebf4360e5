"""PDMP: the encoder of the modality that is best alone takes the largest steps."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from amr.model import FusionModel
from amr.regularizers.base import Step
from amr.regularizers.gradients.ogm import EncoderModulation
from amr.utils.errors import UserError, listed
from amr.utils.names.ranges import Range


class PDMP(EncoderModulation):
    """Performance-dominant modality prioritization (Wei et al. 2026, PDMP): favours the better modality.

    The gradient of the encoder of `dominant`, which is the modality whose unimodal model is the best, is multiplied by
    `factor`, and that of every other encoder by `other_factor`.

    Args:
        dominant: Name of that modality; train each modality alone to find it.
        factor: γ_p, >= 0.
        other_factor: γ_r, >= 0; both 1 switch the method off.
        start_epoch: First epoch in which it acts.
        end_epoch: First epoch in which it no longer acts; None if it acts until the end.

    Raises:
        UserError: If an argument is out of its range, or no modality has that name.
    """

    name = "pdmp"
    title = "PDMP"
    signal = "nothing; the user names the better modality"
    ranges: ClassVar = {"factor": Range(1, 3)}
    order = 63
    several_labels = True

    def __init__(
        self,
        dominant: str,
        factor: float = 1.5,
        other_factor: float = 0.5,
        start_epoch: int = 0,
        end_epoch: int | None = None,
    ) -> None:
        super().__init__(1.0, start_epoch, end_epoch)
        self.check("factor", factor, factor >= 0, "a finite number >= 0")
        self.check("other_factor", other_factor, other_factor >= 0, "a finite number >= 0")
        self.dominant, self.factor, self.other_factor = dominant, factor, other_factor

    def setup(self, model: FusionModel) -> None:
        """Refuses the name of no modality."""
        super().setup(model)
        if self.dominant not in model.modalities:
            raise UserError(f"model.pdmp.dominant={self.dominant}: must be one of {listed(model.modalities)}")
        factors = [self.factor if name == self.dominant else self.other_factor for name in model.modalities]
        self.register_buffer("factors", torch.tensor(factors), persistent=False)

    def coefficients(self, steps: Sequence[Step]) -> Tensor:
        """The two constants, (M,)."""
        return self.get_buffer("factors")
