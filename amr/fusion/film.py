"""Feature-wise linear modulation."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amr.fusion.base import ClassifierInit, Fusion, pool_all
from amr.utils.errors import UserError


class FiLM(Fusion):
    """One modality scales and shifts the features of the others.

    Perez et al. 2018, "FiLM: Visual Reasoning with a General Conditioning Layer", eqs. 1 and 2: with c the conditioning
    modality, FiLM(e^m) = gamma_m ⊙ e^m + beta_m, where gamma_m and beta_m are affine in e^c. What is predicted is
    gamma_m - 1, as in the authors' code, so that modulation starts near the identity. For M > 2 every other modality
    has a gamma_m and beta_m of its own and the modulated encodings are concatenated; a lone modality passes unchanged.
    The conditioner reaches the logits only through gamma and beta.

    Args:
        dims: Encoding size of each modality.
        num_classes: Number of classes C.
        conditioner: The modality that modulates; None for the first.
        hidden: Width of a hidden ReLU layer before the classifier; None for none.
        classifier_init: How the classifier starts: `torch` or `xavier_normal`, as `Fusion` says.

    Raises:
        UserError: `conditioner` is not a modality.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        conditioner: str | None = None,
        hidden: int | None = None,
        classifier_init: ClassifierInit = "torch",
    ) -> None:
        if conditioner is not None and conditioner not in dims:
            raise UserError(f"fusion: conditioner={conditioner!r}: must be one of {', '.join(dims)}")
        conditioner = conditioner if conditioner is not None else next(iter(dims), "")
        modulated_dim = sum(size for name, size in dims.items() if name != conditioner)
        super().__init__(dims, num_classes, modulated_dim or sum(dims.values()), hidden, classifier_init)
        self.conditioner = conditioner
        self.film = nn.Linear(dims[conditioner], 2 * modulated_dim) if modulated_dim else None

    @property
    def multiaffine(self) -> bool:
        """True without a hidden layer: features times an affine function of the conditioner."""
        return isinstance(self.hidden, nn.Identity)

    def combine(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Combines encodings, each (B, D_m) or (B, T, D_m), into (B, sum of D_m but the conditioner's)."""
        others = pool_all(encodings, self.dims)
        condition = others.pop(self.conditioner)
        if self.film is None:
            return condition
        delta_gamma, beta = self.film(condition).chunk(2, dim=1)
        modulated: Tensor = (1 + delta_gamma) * torch.cat([*others.values()], dim=1) + beta
        return modulated
