"""Low-rank tensor fusion."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amr.fusion.base import ClassifierInit, Fusion, pool_all, require_positive


class LowRank(Fusion):
    """A linear map of the outer product of all encodings, its weight tensor factorized.

    Liu et al. 2018, "Efficient Low-rank Multimodal Fusion with Modality-Specific Factors", eqs. 1, 3 and 7: with
    z_m = [e^m; 1] and Z = z_1 ⊗ ... ⊗ z_M, h = W · Z where W = Σ_i w_1^(i) ⊗ ... ⊗ w_M^(i), hence
    h = Σ_i Π_m w_m^(i) z_m: no tensor of size Π_m (D_m + 1) is ever built. The appended 1s keep all lower-order terms,
    every modality's own among them; their column of w_m^(i) is the bias of `factors`. The paper's bias on h is left to
    the layer that follows.

    A product of M small factors vanishes, and its gradient with it. So each factor's bias starts at 1: the factor of a
    zero encoding leaves the product as it is, and h starts with every modality's own terms at order one, whatever M is.
    In every second term the first modality's bias is -1, so that the constants of the terms cancel; otherwise a
    constant h of length rank · sqrt(dim) would make the classifier's first steps diverge. For M > 2 the weights are
    scaled by sqrt(2 / M), which keeps the variance of the product bounded.

    Args:
        dims: Encoding size of each modality.
        num_classes: Number of classes C.
        rank: Number of terms in W's factorization.
        dim: Size of h; None for the largest encoding's.
        hidden: Width of a hidden ReLU layer before the classifier; None for none.
        classifier_init: How the classifier starts: `torch` or `xavier_normal`, as `Fusion` says.

    Raises:
        UserError: A size or the rank is below 1.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        rank: int = 4,
        dim: int | None = None,
        hidden: int | None = None,
        classifier_init: ClassifierInit = "torch",
    ) -> None:
        require_positive(rank=rank, dim=dim)
        dim = dim or max(dims.values(), default=1)
        super().__init__(dims, num_classes, dim, hidden, classifier_init)
        self.rank = rank
        self.factors = nn.ModuleDict({name: nn.Linear(size, rank * dim) for name, size in dims.items()})
        signs = torch.tensor([1.0, -1.0]).repeat(rank)[:rank].repeat_interleave(dim)
        with torch.no_grad():
            for name, factor in self.factors.items():
                factor.get_parameter("weight").mul_(min(1.0, 2 / len(dims)) ** 0.5)
                factor.get_parameter("bias").copy_(signs if name == next(iter(dims)) else torch.ones_like(signs))

    @property
    def multiaffine(self) -> bool:
        """True without a hidden layer: a product of affine factors, one per modality."""
        return isinstance(self.hidden, nn.Identity)

    def combine(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Combines encodings, each (B, D_m) or (B, T, D_m), into (B, dim)."""
        pooled = pool_all(encodings, self.dims)
        projected = torch.stack([self.factors[name](encoding) for name, encoding in pooled.items()])
        return torch.stack(_product(projected).chunk(self.rank, dim=1)).sum(dim=0)


def _product(factors: Tensor) -> Tensor:
    """Product over the first dimension; unlike `torch.prod`, its derivatives have no special case for zeros."""
    product = factors[0]
    for factor in factors[1:]:
        product = product * factor
    return product
