"""Spatio-temporal convolutional nets for frame sequences."""

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.video import (
    MC3_18_Weights,
    R2Plus1D_18_Weights,
    R3D_18_Weights,
    mc3_18,
    r2plus1d_18,
    r3d_18,
)

from amr.encoders.base import Encoder, check_image
from amr.encoders.weights import load_weights
from amr.utils.errors import UserError

_ARCHS = {
    "r3d_18": (r3d_18, R3D_18_Weights),
    "mc3_18": (mc3_18, MC3_18_Weights),
    "r2plus1d_18": (r2plus1d_18, R2Plus1D_18_Weights),
}


class Video3DEncoder(Encoder):
    """A torchvision 3-D ResNet-18 up to its global average pool (Tran et al. 2018).

    Input is N RGB frames per clip, (B, N, 3, H, W); the encoding has shape (B, 512), or (B, T, 512) without `pool`,
    where T is N / 8 rounded up, and N for mc3_18.

    Args:
        arch: "r3d_18"; "mc3_18", which convolves over time up to its first stage only; or "r2plus1d_18", which
            factorizes each convolution into space and time.
        weights: None for torchvision's random initialization, else a local file or a name such as
            "R2Plus1D_18_Weights.KINETICS400_V1".
        pool: Average over time and space. False averages over space only, which gives a token per step in time.

    Raises:
        UserError: An option has a value that is not allowed, or the weights do not fit.
    """

    out_dim = 512

    def __init__(
        self,
        arch: Literal["r3d_18", "mc3_18", "r2plus1d_18"] = "r2plus1d_18",
        weights: str | None = None,
        pool: bool = True,
    ) -> None:
        super().__init__()
        if arch not in _ARCHS:
            raise UserError(f"Video3DEncoder: arch={arch!r}: must be one of {', '.join(_ARCHS)}")
        build, named = _ARCHS[arch]
        self.pool = pool
        self.resnet = build()
        self.resnet.fc = nn.Identity()
        if weights is not None:
            load_weights(self.resnet, weights, named)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes frames (B, N, 3, H, W) to (B, 512) or (B, T, 512)."""
        check_image(self, x, in_channels=3, ndims=(5,))
        # On a CPU the bf16 weight gradient of a convolution over fewer steps in time than its kernel has reads memory
        # that nothing wrote (torch 2.11), so CPUs compute in fp32. Other devices are not concerned.
        with torch.autocast("cpu", enabled=False):
            return self._encode(x.transpose(1, 2))

    def _encode(self, x: Tensor) -> Tensor:
        net = self.resnet
        if self.pool:
            encoding: Tensor = net(x)
            return encoding
        features: Tensor = net.layer4(net.layer3(net.layer2(net.layer1(net.stem(x)))))  # (B, 512, T, h, w)
        return features.mean(dim=(3, 4)).transpose(1, 2)
