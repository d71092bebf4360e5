"""An encoder of texts: embeddings of token ids, then a transformer or a GRU."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from amr.encoders.base import Encoder, check_sizes
from amr.encoders.series import GRU, pooled
from amr.fusion.mult import CrossmodalTransformer, sinusoids
from amr.utils.errors import UserError

Arch = Literal["transformer", "gru"]


class TextEncoder(Encoder):
    """Embeds token ids and reads them in context.

    Input is (B, T) int64. The encoding has shape (B, dim), or without `pool` (B, T, dim). What is behind a text's end
    is padding: it changes nothing in the encoding, and its tokens are zeros. A text of padding alone has the encoding
    zero, as a clip that lacks the modality. The encoder can be differentiated twice by its embeddings.

    Args:
        vocabulary: Number of ids, with padding and unknown; ids are at least 0 and below it.
        arch: `transformer`: pre-norm layers over embeddings with sinusoidal positions (Vaswani et al. 2017); a text's
            encoding is the mean over its tokens. `gru`: layers of gated recurrent units (Cho et al. 2014); a text's
            encoding is the state after its last token.
        dim: Size of an embedding and of the encoding.
        layers: Number of layers.
        heads: Attention heads of a transformer; divides `dim`.
        padding: Id of padding; `amr.datamodules.Tensors` pads with 0.
        pool: One encoding per text. False gives one token per id.

    Raises:
        UserError: An option has a value that is not allowed; in use, the input holds no ids of the vocabulary.
    """

    def __init__(
        self,
        vocabulary: int,
        arch: Arch = "transformer",
        dim: int = 64,
        layers: int = 1,
        heads: int = 4,
        padding: int = 0,
        pool: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(self, vocabulary=vocabulary, dim=dim, layers=layers, heads=heads)
        if arch not in get_args(Arch):
            raise UserError(f"TextEncoder: arch={arch!r}: must be one of {', '.join(get_args(Arch))}")
        if arch == "transformer" and dim % heads:
            raise UserError(f"TextEncoder: dim={dim}: must be a multiple of heads = {heads}")
        if not 0 <= padding < vocabulary:
            raise UserError(f"TextEncoder: padding={padding}: must be at least 0 and below vocabulary = {vocabulary}")
        self.vocabulary, self.padding, self.pool, self.arch, self.out_dim = vocabulary, padding, pool, arch, dim
        self.embedding = nn.Embedding(vocabulary, dim)
        self.net = CrossmodalTransformer(dim, heads, layers) if arch == "transformer" else GRU(dim, dim, layers)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes ids (B, T) to (B, dim) or (B, T, dim)."""
        if x.ndim != 2 or x.shape[1] < 1 or x.is_floating_point() or x.dtype == torch.bool:
            kind = str(x.dtype).removeprefix("torch.")
            raise UserError(f"TextEncoder: takes ids, (B, T) int64 with T at least 1, got {tuple(x.shape)} of {kind}")
        if x.device.type == "cpu" and not torch.compiler.is_compiling():  # a GPU would have to wait for the answer
            low, high = (int(end) for end in x.aminmax())
            if low < 0 or high >= self.vocabulary:
                wrong = low if low < 0 else high
                raise UserError(f"TextEncoder: id {wrong}: must be at least 0 and below vocabulary = {self.vocabulary}")
        there = x != self.padding
        tokens = self.embedding(x)
        if self.arch == "transformer":
            tokens = self.net(tokens + sinusoids(x.shape[1], self.out_dim).to(tokens), None, there)
        else:
            tokens = self.net(tokens, there)
        if not self.pool:
            kept: Tensor = tokens * there[:, :, None]
            return kept
        return pooled(tokens, there, "mean" if self.arch == "transformer" else "last")
