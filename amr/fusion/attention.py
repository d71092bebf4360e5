"""Self-attention over the encodings."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amr.fusion.base import ClassifierInit, Fusion, as_tokens, require_positive
from amr.utils.errors import UserError


class SelfAttention(nn.Module):
    """Multi-head self-attention with a second derivative.

    Vaswani et al. 2017, "Attention Is All You Need", eq. 1: softmax(Q K^T / sqrt(d)) V in each head. It is written out
    because torch's fused kernels cannot be differentiated twice.

    Args:
        dim: Size of a token.
        heads: Number of heads; divides `dim`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attends: tokens (B, T, dim) to (B, T, dim)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, T, d)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        attended: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return attended


class TransformerLayer(nn.Module):
    """A pre-norm transformer encoder layer: attention and a GELU feed-forward network, each with a residual.

    Args:
        dim: Size of a token.
        heads: Number of attention heads; divides `dim`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Transforms tokens (B, T, dim) to (B, T, dim)."""
        x = x + self.attention(self.norm1(x))
        transformed: Tensor = x + self.feed_forward(self.norm2(x))
        return transformed


class Attention(Fusion):
    """A transformer encoder over the encodings as tokens, read out at a class token.

    Vaswani et al. 2017 (layers, here pre-norm) and Dosovitskiy et al. 2021 (class token, eqs. 1 to 4). Each encoding is
    projected to `dim` and a learned modality embedding is added; a sequence (B, T, D_m) gives T tokens, an encoding
    (B, D_m) one. Order within a sequence is the encoder's to mark: no positions are added here.

    Args:
        dims: Encoding size of each modality.
        num_classes: Number of classes C.
        dim: Size of a token; None for the largest encoding's.
        heads: Number of attention heads; divides `dim`.
        layers: Number of transformer layers.
        hidden: Width of a hidden ReLU layer before the classifier; None for none.
        classifier_init: How the classifier starts: `torch` or `xavier_normal`, as `Fusion` says.

    Raises:
        UserError: A size is below 1, or `heads` does not divide `dim`.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        dim: int | None = None,
        heads: int = 4,
        layers: int = 1,
        hidden: int | None = None,
        classifier_init: ClassifierInit = "torch",
    ) -> None:
        require_positive(dim=dim, heads=heads, layers=layers)
        dim = dim or max(dims.values(), default=1)
        super().__init__(dims, num_classes, dim, hidden, classifier_init)
        if dim % heads:
            allowed = ", ".join(str(n) for n in range(1, dim + 1) if dim % n == 0)
            raise UserError(f"fusion: heads={heads}: must divide dim={dim}, so be one of {allowed}")
        self.projections = nn.ModuleDict({name: nn.Linear(size, dim, bias=False) for name, size in dims.items()})
        self.modality_embeddings = nn.Parameter(torch.empty(len(dims), dim))
        self.class_token = nn.Parameter(torch.empty(dim))
        self.layers = nn.Sequential(*(TransformerLayer(dim, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        for parameter in (self.modality_embeddings, self.class_token):
            nn.init.normal_(parameter, std=0.02)

    def combine(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Combines encodings, each (B, D_m) or (B, T, D_m), into (B, dim)."""
        groups = [
            self.projections[name](as_tokens(encodings[name])) + embedding  # (B, T_m, dim)
            for name, embedding in zip(self.dims, self.modality_embeddings, strict=True)
        ]
        tokens = torch.cat([self.class_token.expand(groups[0].shape[0], 1, -1), *groups], dim=1)  # (B, 1 + Σ T_m, dim)
        combined: Tensor = self.norm(self.layers(tokens)[:, 0])
        return combined
