"""Classifiers of single modalities, for the methods that train them beside the fused one."""

from torch import Tensor, nn

from amr.fusion.base import pool_tokens
from amr.model import FusionModel


class UnimodalHeads(nn.Module):
    """One linear classifier a modality over its pooled encoding; used in training only.

    Args:
        model: The model whose encodings they classify.
    """

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        classes = model.head.num_classes
        self.heads = nn.ModuleDict({name: nn.Linear(size, classes) for name, size in model.head.dims.items()})

    def forward(self, encodings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logits of each modality, (B, C), from encodings (B, D_m) or (B, T, D_m)."""
        return {name: head(pool_tokens(encodings[name])) for name, head in self.heads.items()}
