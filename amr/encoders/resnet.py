"""ResNets for images, spectrograms and short frame sequences."""

from typing import Literal

from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ResNet34_Weights, resnet18, resnet34

from amr.encoders.base import Encoder, check_image
from amr.encoders.weights import load_weights
from amr.utils.errors import UserError

_DEPTHS = {18: (resnet18, ResNet18_Weights), 34: (resnet34, ResNet34_Weights)}


class ResNetEncoder(Encoder):
    """A torchvision ResNet up to its global average pool (He et al. 2016).

    Input is one image per clip, (B, C, H, W), or N frames, (B, N, C, H, W), whose pooled features are averaged. The
    encoding has shape (B, 512).

    Args:
        depth: 18 or 34 layers.
        in_channels: Channels C of the input.
        weights: None for torchvision's random initialization, else a local file or a name such as
            "ResNet18_Weights.IMAGENET1K_V1". Weights for RGB fit `in_channels` 3, and 1 by their sum over RGB.

    Raises:
        UserError: An option has a value that is not allowed, or the weights do not fit.
    """

    out_dim = 512

    def __init__(self, depth: Literal[18, 34] = 18, in_channels: int = 3, weights: str | None = None) -> None:
        super().__init__()
        if depth not in _DEPTHS:
            raise UserError(f"ResNetEncoder: depth={depth}: must be one of {', '.join(map(str, _DEPTHS))}")
        if in_channels < 1:
            raise UserError(f"ResNetEncoder: in_channels={in_channels}: must be at least 1")
        build, named = _DEPTHS[depth]
        self.in_channels = in_channels
        self.resnet = build()
        self.resnet.fc = nn.Identity()
        if in_channels != 3:
            self.resnet.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.resnet.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision
        if weights is not None:
            load_weights(self.resnet, weights, named)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes images (B, C, H, W) or frames (B, N, C, H, W) to (B, 512)."""
        check_image(self, x, self.in_channels, ndims=(4, 5))
        frames = x if x.ndim == 5 else x[:, None]
        pooled: Tensor = self.resnet(frames.flatten(0, 1))
        return pooled.reshape(*frames.shape[:2], self.out_dim).mean(dim=1)
