"""Crossmodal transformers between every two modalities."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amr.fusion.base import ClassifierInit, Fusion, as_tokens, require_positive
from amr.utils.errors import UserError

Readout = Literal["last", "mean"]


class CrossmodalLayer(nn.Module):
    """A pre-norm transformer layer whose queries are one sequence, and whose keys and values are another.

    Tsai et al. 2019, eqs. 2 and 4. Attention is written out, because torch's fused kernels cannot be differentiated
    twice.

    Args:
        dim: Size of a token.
        heads: Number of attention heads; divides `dim`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, source: Tensor, there: Tensor) -> Tensor:
        """Transforms tokens.

        Args:
            x: Tokens that ask, (B, T, dim).
            source: Tokens that are asked, (B, S, dim); `x` itself for self-attention.
            there: Boolean (B, S): which of the latter are attended to. With none, attention adds only a bias.

        Returns:
            Tokens (B, T, dim).
        """
        asking, asked = self.norm1(x), self.norm1(source)
        parts = zip((asking, asked, asked), self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        q, k, v = (self._split(F.linear(s, w, b)) for s, w, b in parts)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, heads, T, S)
        mask = there[:, None, None]
        # The lowest number in place of -inf: a row without any token would be NaN.
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1) * mask
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        transformed: Tensor = x + self.feed_forward(self.norm2(x))
        return transformed

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, dim) to (B, heads, T, dim / heads)."""
        return x.view(*x.shape[:2], self.heads, x.shape[2] // self.heads).transpose(1, 2)


class CrossmodalTransformer(nn.Module):
    """Layers of one width, then a layer norm.

    Args:
        dim: Size of a token.
        heads: Number of attention heads; divides `dim`.
        layers: Number of layers.
    """

    def __init__(self, dim: int, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CrossmodalLayer(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, source: Tensor | None, there: Tensor) -> Tensor:
        """Transforms tokens (B, T, dim) by the source's first tokens in every layer, or by themselves if it is None."""
        for layer in self.layers:
            x = layer(x, x if source is None else source, there)
        normed: Tensor = self.norm(x)
        return normed


class MulT(Fusion):
    """The multimodal transformer: each modality's tokens attend to every other modality's.

    Tsai et al. 2019, "Multimodal Transformer for Unaligned Multimodal Language Sequences", section 3. Each encoding is
    projected to `dim` and sinusoidal positions are added. For each target modality, a crossmodal transformer per other
    modality takes its queries from the target and its keys and values from the other. Their outputs are concatenated
    to (B, T, (M - 1) · dim), go through self-attention, and one token stands for the target. The targets' tokens are
    concatenated and pass a residual block. A lone modality has only its self-attention.

    A sequence (B, T, D_m) gives T tokens, an encoding (B, D_m) one; lengths may differ. A token of zeros, such as
    padding or a modality that a clip lacks, is not there: nothing attends to it, and it is not read out. The number of
    transformers grows as M². The authors' dropout is left to the method `dropout`.

    Args:
        dims: Encoding size of each modality.
        num_classes: Number of classes C.
        dim: Size of a token.
        heads: Number of attention heads; divides `dim`.
        layers: Number of layers of each crossmodal transformer.
        self_layers: Number of layers of each target's self-attention.
        readout: Token that stands for a target: `last`, as in the paper, or `mean` for the mean over its tokens.
        positions: Whether to add positions; False for encodings that mark the order themselves.
        hidden: Width of a hidden ReLU layer before the classifier; None for none.
        classifier_init: How the classifier starts: `torch` or `xavier_normal`, as `Fusion` says.

    Raises:
        UserError: A size is below 1, `heads` does not divide `dim`, or `readout` is none of these.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        dim: int = 32,
        heads: int = 4,
        layers: int = 2,
        self_layers: int = 1,
        readout: Readout = "last",
        positions: bool = True,
        hidden: int | None = None,
        classifier_init: ClassifierInit = "torch",
    ) -> None:
        require_positive(dim=dim, heads=heads, layers=layers, self_layers=self_layers)
        if dim % heads:
            allowed = ", ".join(str(n) for n in range(1, dim + 1) if dim % n == 0)
            raise UserError(f"fusion: heads={heads}: must divide dim={dim}, so be one of {allowed}")
        if readout not in get_args(Readout):
            raise UserError(f"fusion: readout={readout!r}: must be one of {', '.join(get_args(Readout))}")
        joined = max(1, len(dims) - 1) * dim
        super().__init__(dims, num_classes, len(dims) * joined, hidden, classifier_init)
        self.dim, self.readout, self.positions = dim, readout, positions
        self.projections = nn.ModuleDict({name: nn.Linear(size, dim, bias=False) for name, size in dims.items()})
        self.crossmodal = nn.ModuleDict(
            {
                target: nn.ModuleDict(
                    {source: CrossmodalTransformer(dim, heads, layers) for source in dims if source != target}
                )
                for target in dims
            }
        )
        self.reinforced = nn.ModuleDict({name: CrossmodalTransformer(joined, heads, self_layers) for name in dims})
        size = len(dims) * joined
        self.residual = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))

    def combine(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """Combines encodings, each (B, D_m) or (B, T, D_m), into (B, M · max(1, M - 1) · dim)."""
        tokens, there = {}, {}
        for name in self.dims:
            sequence = as_tokens(encodings[name])
            there[name] = (sequence != 0).any(dim=2)
            tokens[name] = self.projections[name](sequence)  # (B, T_m, dim)
            if self.positions:
                tokens[name] = tokens[name] + sinusoids(sequence.shape[1], self.dim).to(tokens[name])
        read = []
        for target, x in tokens.items():
            others = [name for name in tokens if name != target]
            crossed = self.crossmodal.get_submodule(target)
            parts = [crossed.get_submodule(name)(x, tokens[name], there[name]) for name in others]
            joint = self.reinforced[target](torch.cat(parts or [x], dim=2), None, there[target])
            read.append(self._read(joint, there[target]))
        h = torch.cat(read, dim=1)
        combined: Tensor = h + self.residual(h)
        return combined

    def _read(self, tokens: Tensor, there: Tensor) -> Tensor:
        """The last token that is there, or the mean of those that are: (B, T, D) to (B, D); zeros if none is."""
        weights = there.to(tokens)
        if self.readout == "last":
            weights = weights * (weights.cumsum(1) == weights.sum(1, keepdim=True))
        return (weights[:, :, None] * tokens).sum(1) / weights.sum(1, keepdim=True).clamp_min(1)


def sinusoids(length: int, dim: int) -> Tensor:
    """Positions of Vaswani et al. 2017, section 3.5, (length, dim): sines in even dimensions, cosines in odd ones."""
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :dim]
