"""A pair of small CNNs, for images or spectrograms and for frame sequences, that train on a CPU."""

import math

import torch
from torch import Tensor, nn

from amr.encoders.base import Encoder, check_image
from amr.errors import UserError


class SmallCNN(Encoder):
    """Three strided convolutions on an image or a spectrogram, pooled to a coarse grid.

    Input (B, C, H, W), for spectrograms (B, C, F, T), of any size; the encoding has shape (B, out_dim). The 4 x 4 grid
    keeps what a global average loses: which frequency, and roughly when.

    Args:
        in_channels: Channels C of the input.
        width: Channels of the first convolution; doubled by each of the next two.
        out_dim: Size of the encoding.

    Raises:
        UserError: A size is below 1.
    """

    grid = (4, 4)

    def __init__(self, in_channels: int = 1, width: int = 16, out_dim: int = 64) -> None:
        super().__init__()
        _check_sizes(self, in_channels=in_channels, width=width, out_dim=out_dim)
        self.in_channels = in_channels
        self.out_dim = out_dim
        self.features = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in ((in_channels, width), (width, 2 * width), (2 * width, 4 * width))
            )
        )
        self.project = nn.Linear(4 * width * math.prod(self.grid), out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes (B, C, H, W) to (B, out_dim)."""
        check_image(self, x, self.in_channels, ndims=(4,))
        encoding: Tensor = self.project(grid_pool(self.features(x), self.grid).flatten(1))
        return encoding


class SmallFrameCNN(Encoder):
    """Three strided 3-D convolutions on a frame sequence, pooled to a coarse grid of time and space.

    Input (B, N, C, H, W) of any size; the encoding has shape (B, out_dim). Every convolution spans three frames, so
    that motion is seen from the first on; time is halved by the second and the third.

    Args:
        in_channels: Channels C of a frame.
        width: Channels of the first convolution; doubled by each of the next two.
        out_dim: Size of the encoding.

    Raises:
        UserError: A size is below 1.
    """

    grid = (2, 4, 4)

    def __init__(self, in_channels: int = 3, width: int = 12, out_dim: int = 64) -> None:
        super().__init__()
        _check_sizes(self, in_channels=in_channels, width=width, out_dim=out_dim)
        self.in_channels = in_channels
        self.out_dim = out_dim
        self.features = nn.Sequential(
            *(
                nn.Sequential(nn.Conv3d(a, b, 3, stride=(t, 2, 2), padding=1, bias=False), nn.BatchNorm3d(b), nn.ReLU())
                for a, b, t in ((in_channels, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2))
            )
        )
        self.project = nn.Linear(4 * width * math.prod(self.grid), out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes frames (B, N, C, H, W) to (B, out_dim)."""
        check_image(self, x, self.in_channels, ndims=(5,))
        encoding: Tensor = self.project(grid_pool(self.features(x.transpose(1, 2)), self.grid).flatten(1))
        return encoding


def grid_pool(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Adaptive average pooling of the last dimensions of `x` to the sizes in `grid`.

    Made of slices and means: torch's own has no deterministic gradient on a GPU.
    """
    for dim, bins in enumerate(grid, start=x.ndim - len(grid)):
        size = x.shape[dim]
        edges = [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]  # floor and ceiling: may overlap
        x = torch.stack([x.narrow(dim, start, end - start).mean(dim) for start, end in edges], dim=dim)
    return x


def _check_sizes(encoder: Encoder, **sizes: int) -> None:
    for key, size in sizes.items():
        if size < 1:
            raise UserError(f"{type(encoder).__name__}: {key} must be at least 1, got {size}")
