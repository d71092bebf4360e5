"""A vision transformer on spectrograms."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import ViT_B_16_Weights
from torchvision.models.vision_transformer import EncoderBlock

from amr.encoders.base import Encoder, check_image
from amr.encoders.positions import resample
from amr.encoders.weights import load_weights
from amr.utils.errors import UserError


class SpectrogramTransformer(Encoder):
    """The audio spectrogram transformer: a ViT on overlapping patches of a spectrogram (Gong et al. 2021).

    Input is (B, C, F, T), at least a patch in both directions. The encoding has shape (B, dim), or without `pool`
    (B, t, dim), one token per step of t = 1 + (T - patch) // stride in time, averaged over frequency.

    Position embeddings are learned for `input_size`, and interpolated in frequency and time for any other input. The
    paper's class token alone stands for the clip here; its distillation token belongs to another training.

    Args:
        in_channels: Channels C of the input.
        input_size: Bins F and steps T that the position embeddings are made for: the data's.
        patch: Height and width of a patch, in bins and steps.
        stride: From patch to patch in both directions; below `patch` they overlap. The paper's best is 10.
        dim: Size of a token and of the encoding; a multiple of `heads`.
        depth: Layers.
        heads: Attention heads.
        mlp_ratio: Width of a layer's hidden layer, as a multiple of `dim`.
        dropout: Dropout of embeddings, attention's output and hidden layers, in [0, 1).
        pooling: Encoding of a clip: the class token (cls) or the patches' average (mean).
        pool: One encoding per clip. False gives a token per step in time, and leaves `pooling` without effect.
        weights: None for a random initialization, else a local file (of this class or of a torchvision ViT of the same
            sizes) or a name such as "ViT_B_16_Weights.IMAGENET1K_V1", for the default sizes. As in the paper, one
            channel gets the sum over RGB, and positions are interpolated (there, cut where there are fewer).

    Raises:
        UserError: An option has a value that is not allowed, or the weights do not fit.
    """

    def __init__(
        self,
        in_channels: int = 1,
        input_size: tuple[int, int] = (128, 1024),
        patch: int = 16,
        stride: int = 16,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        pooling: Literal["cls", "mean"] = "cls",
        pool: bool = True,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "in_channels": in_channels,
            "patch": patch,
            "stride": stride,
            "dim": dim,
            "depth": depth,
            "heads": heads,
        }
        for key, size in sizes.items():
            if size < 1:
                raise UserError(f"SpectrogramTransformer: {key}={size}: must be at least 1")
        if dim % heads:
            raise UserError(f"SpectrogramTransformer: dim={dim}: must be a multiple of heads = {heads}")
        if not (mlp_ratio > 0 and int(dim * mlp_ratio) >= 1):
            raise UserError(f"SpectrogramTransformer: mlp_ratio={mlp_ratio}: must be positive")
        if not 0 <= dropout < 1:
            raise UserError(f"SpectrogramTransformer: dropout={dropout}: must be in [0, 1)")
        if pooling not in ("cls", "mean"):
            raise UserError(f"SpectrogramTransformer: pooling={pooling!r}: must be one of cls, mean")
        if min(input_size) < patch:
            raise UserError(f"SpectrogramTransformer: input_size={input_size}: must be at least patch = {patch}")
        if weights in _NAMES and heads != 12:  # the only size that no shape tells
            raise UserError(f"SpectrogramTransformer: heads={heads}: must be 12 for {weights}")
        self.in_channels, self.patch, self.stride = in_channels, patch, stride
        self.out_dim = dim
        self.pooling, self.pool = pooling, pool
        self.conv_proj = nn.Conv2d(in_channels, dim, kernel_size=patch, stride=stride)
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, dim, *self._grid(*input_size)))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential()
        for i in range(depth):  # names as torchvision's
            block = EncoderBlock(heads, dim, int(dim * mlp_ratio), dropout, attention_dropout=0.0)
            self.layers.add_module(f"encoder_layer_{i}", block)
        self.ln = nn.LayerNorm(dim, eps=1e-6)
        nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / (in_channels * patch**2)))  # as torchvision
        nn.init.zeros_(self.conv_proj.bias)  # type: ignore[arg-type]  # it has one
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        if weights is not None:
            load_weights(self, weights, ViT_B_16_Weights, ignore="heads.", convert=self._convert)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes spectrograms (B, C, F, T) to (B, dim) or (B, t, dim)."""
        check_image(self, x, self.in_channels, ndims=(4,))
        if min(x.shape[2:]) < self.patch:
            raise UserError(
                f"SpectrogramTransformer: takes at least patch = {self.patch} bins and steps, "
                f"got shape {tuple(x.shape)}"
            )
        grid = self._grid(*x.shape[2:])
        patches = self.conv_proj(x) + resample(self.positions, grid)  # (B, dim, f, t)
        tokens: Tensor = torch.cat(
            (self.class_token.expand(x.shape[0], -1, -1), patches.flatten(2).transpose(1, 2)), dim=1
        )
        tokens = self.ln(self.layers(self.dropout(tokens)))  # (B, 1 + f t, dim)
        if not self.pool:
            return tokens[:, 1:].reshape(x.shape[0], *grid, self.out_dim).mean(dim=1)
        return tokens[:, 0] if self.pooling == "cls" else tokens[:, 1:].mean(dim=1)

    def _grid(self, bins: int, steps: int) -> tuple[int, int]:
        """Patches in frequency and time."""
        return 1 + (bins - self.patch) // self.stride, 1 + (steps - self.patch) // self.stride

    def _convert(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A torchvision ViT's keys to this class's, and positions to this grid."""
        converted = {_rename(key): value for key, value in state.items()}
        embedding, token = converted.get("pos_embedding"), converted.get("class_token")
        if embedding is not None and token is not None and embedding.ndim == 3 and embedding.shape[1] > 1:
            side = math.isqrt(embedding.shape[1] - 1)
            if side**2 == embedding.shape[1] - 1:  # else load_weights names the key
                del converted["pos_embedding"]
                converted["class_token"] = token + embedding[:, :1]  # the class token's position is the first
                converted["positions"] = embedding[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
        if "positions" in converted and converted["positions"].ndim == 4:
            converted["positions"] = resample(converted["positions"], tuple(self.positions.shape[2:]))
        return converted


_NAMES = {f"ViT_B_16_Weights.{name}" for name in ViT_B_16_Weights.__members__}


def _rename(key: str) -> str:
    # torchvision renamed a block's hidden layers, and goes on reading files with the old names.
    return key.removeprefix("encoder.").replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3.")
