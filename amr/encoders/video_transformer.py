"""Video transformers for frame sequences."""

import math
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torchvision.models.video import (
    MViT,
    MViT_V1_B_Weights,
    MViT_V2_S_Weights,
    Swin3D_B_Weights,
    Swin3D_S_Weights,
    Swin3D_T_Weights,
    SwinTransformer3d,
    mvit_v1_b,
    mvit_v2_s,
    swin3d_b,
    swin3d_s,
    swin3d_t,
)
from torchvision.models.video.mvit import PositionalEncoding

from amr.encoders.base import Encoder, check_image
from amr.encoders.positions import resample
from amr.encoders.weights import load_weights
from amr.utils.errors import UserError

_MVIT = {"mvit_v1_b": (mvit_v1_b, MViT_V1_B_Weights, 768), "mvit_v2_s": (mvit_v2_s, MViT_V2_S_Weights, 768)}
_SWIN = {
    "swin3d_t": (swin3d_t, Swin3D_T_Weights, 768),
    "swin3d_s": (swin3d_s, Swin3D_S_Weights, 768),
    "swin3d_b": (swin3d_b, Swin3D_B_Weights, 1024),
}


class VideoTransformerEncoder(Encoder):
    """A torchvision MViT (Fan et al. 2021; v2: Li et al. 2022) or Swin (Liu et al. 2022) up to its classifier.

    Input is N RGB frames per clip, (B, N, 3, H, W). The encoding has shape (B, D): MViT's class token, Swin's average;
    or (B, T, D) without `pool`, where T is N / 2, for Swin rounded up. D is 768, for swin3d_b 1024.

    MViT's position embeddings belong to `frames` and `size`, and other inputs are refused; embeddings learned for
    another input are interpolated to these. Swin's are relative, within a window: it takes any input.

    Args:
        arch: "mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s" or "swin3d_b".
        weights: None for torchvision's random initialization, else a local file or a name such as
            "MViT_V2_S_Weights.KINETICS400_V1".
        pool: One encoding per clip. False averages the last layer's patches over space only, which gives a token per
            step in time.
        frames: Frames N that an MViT takes, a multiple of 2; None: 16.
        size: Height and width that an MViT takes, in pixels, multiples of 32; one number: a square; None: 224.

    Raises:
        UserError: An option has a value that is not allowed, or the weights do not fit.
    """

    def __init__(
        self,
        arch: Literal["mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b"] = "mvit_v2_s",
        weights: str | None = None,
        pool: bool = True,
        frames: int | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.arch, self.pool = arch, pool
        self.shape: tuple[int, int, int] | None = None  # frames, height, width; None: any
        if arch in _MVIT:
            build, named, self.out_dim = _MVIT[arch]
            self.shape = _mvit_shape(frames, size)
            self.net: MViT | SwinTransformer3d = build()
            _set_shape(self.net, *self.shape)
        elif arch in _SWIN:
            if frames is not None or size is not None:
                raise UserError(
                    f"VideoTransformerEncoder: frames and size are mvit's; {arch} takes any, leave them out"
                )
            build, named, self.out_dim = _SWIN[arch]
            self.net = build()
        else:
            allowed = ", ".join([*_MVIT, *_SWIN])
            raise UserError(f"VideoTransformerEncoder: arch={arch!r}: must be one of {allowed}")
        self.net.head = nn.Identity()  # type: ignore[assignment]
        if weights is not None:
            load_weights(self.net, weights, named, ignore="head.", convert=self._resample_positions)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes frames (B, N, 3, H, W) to (B, D) or (B, T, D)."""
        check_image(self, x, in_channels=3, ndims=(5,))
        if self.shape is not None and (x.shape[1], *x.shape[3:]) != self.shape:
            frames, height, width = self.shape
            raise UserError(
                f"VideoTransformerEncoder: {self.arch} takes {frames} frames of {height} x {width} pixels (its options "
                f"frames and size, as the data's), got shape {tuple(x.shape)}"
            )
        x = x.transpose(1, 2)
        if isinstance(self.net, MViT):
            return _encode_mvit(self.net, x, self.pool)
        tokens = _encode_swin(self.net, x)
        return tokens.mean(dim=1) if self.pool else tokens

    def _resample_positions(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """An MViT v1's embeddings for other frames or another size, interpolated to its own; torchvision does v2's."""
        if not isinstance(self.net, MViT) or self.net.pos_encoding.spatial_pos is None:
            return state
        converted, encoding = dict(state), self.net.pos_encoding
        time, space = (state.get(f"pos_encoding.{key}_pos") for key in ("temporal", "spatial"))  # (positions, d) each
        if time is not None and time.ndim == 2:
            converted["pos_encoding.temporal_pos"] = resample(time.T[None], (encoding.temporal_size,))[0].T
        # Of a frame that was no square, and not this size, the sides are unknown: load_weights refuses the shape.
        if space is not None and space.ndim == 2 and len(space) != math.prod(encoding.spatial_size):
            side = math.isqrt(len(space))
            if side**2 == len(space):
                grid = resample(space.T.reshape(1, -1, side, side), encoding.spatial_size)
                converted["pos_encoding.spatial_pos"] = grid[0].flatten(1).T
        return converted


def _mvit_shape(frames: int | None, size: int | tuple[int, int] | None) -> tuple[int, int, int]:
    """Frames, height and width for an MViT."""
    frames = 16 if frames is None else frames
    height, width = (224, 224) if size is None else (size, size) if isinstance(size, int) else size
    if frames < 2 or frames % 2:
        raise UserError(f"VideoTransformerEncoder: frames={frames}: must be a multiple of 2")
    if min(height, width) < 32 or height % 32 or width % 32:  # the patches' stride times the stages'
        raise UserError(f"VideoTransformerEncoder: size={height} x {width}: must be multiples of 32 pixels")
    return frames, height, width


def _set_shape(net: MViT, frames: int, height: int, width: int) -> None:
    """Replaces the position embeddings, which torchvision's builders make for 16 frames of 224 x 224."""
    dim, relative = len(net.pos_encoding.class_token), net.pos_encoding.spatial_pos is None
    net.pos_encoding = PositionalEncoding(dim, (height // 4, width // 4), frames // 2, relative)  # patches: 2 x 4 x 4
    for parameter in net.pos_encoding.parameters():
        nn.init.trunc_normal_(parameter, std=0.02)  # as torchvision


def _encode_mvit(net: MViT, x: Tensor, pool: bool) -> Tensor:
    """Clips (B, 3, N, H, W) to the class token (B, D), or patches averaged over space (B, T, D)."""
    x = net.pos_encoding(net.conv_proj(x).flatten(2).transpose(1, 2))
    thw = (net.pos_encoding.temporal_size, *net.pos_encoding.spatial_size)
    for block in net.blocks:
        x, thw = block(x, thw)
    x = net.norm(x)  # (B, 1 + T h w, D), the class token first
    return x[:, 0] if pool else x[:, 1:].reshape(x.shape[0], thw[0], -1, x.shape[2]).mean(dim=2)


def _encode_swin(net: SwinTransformer3d, x: Tensor) -> Tensor:
    """Clips (B, 3, N, H, W) to patches averaged over space, (B, T, D)."""
    patches: Tensor = net.norm(net.features(net.pos_drop(net.patch_embed(x))))  # (B, T, h, w, D)
    return patches.mean(dim=(2, 3))
