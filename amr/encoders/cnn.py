"""A pair of small CNNs, for images or spectrograms and for frame sequences, that train on a CPU."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from amr.encoders.base import Encoder, check_image, check_sizes


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
        check_sizes(self, in_channels=in_channels, width=width, out_dim=out_dim)
        self.in_channels = in_channels
        self.out_dim = out_dim
        self.features = _strided_convolutions((in_channels, width, 2 * width, 4 * width))
        self.project = nn.Linear(4 * width * math.prod(self.grid), out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes (B, C, H, W) to (B, out_dim)."""
        check_image(self, x, self.in_channels, ndims=(4,))
        encoding: Tensor = self.project(grid_pool(self.features(x), self.grid).flatten(1))
        return encoding


class SmallFrameCNN(Encoder):
    """Three strided convolutions over all frames at once, pooled to a coarse grid: early fusion in time.

    Input (B, N, C, H, W) of any size; the encoding has shape (B, out_dim). The first convolution sees every frame, as
    in the early fusion of Karpathy et al. (2014), so motion costs no 3-D convolution: on one core it takes a third of
    the time of the 3-D net that it replaced, and reads lips better.

    Args:
        in_channels: Channels C of a frame.
        frames: Frames that the first convolution takes; a clip of another length is averaged or repeated to it.
        width: Channels of the first convolution; two and three times as many in the next two.
        out_dim: Size of the encoding.

    Raises:
        UserError: A size is below 1.
    """

    grid = (4, 4)

    def __init__(self, in_channels: int = 1, frames: int = 16, width: int = 32, out_dim: int = 64) -> None:
        super().__init__()
        check_sizes(self, in_channels=in_channels, frames=frames, width=width, out_dim=out_dim)
        self.in_channels = in_channels
        self.frames = frames
        self.out_dim = out_dim
        self.features = _strided_convolutions((in_channels * frames, width, 2 * width, 3 * width))
        self.project = nn.Linear(3 * width * math.prod(self.grid), out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes frames (B, N, C, H, W) to (B, out_dim)."""
        check_image(self, x, self.in_channels, ndims=(5,))
        if x.shape[1] != self.frames:
            x = grid_pool(x.movedim(1, -1), (self.frames,)).movedim(-1, 1)
        encoding: Tensor = self.project(grid_pool(self.features(x.flatten(1, 2)), self.grid).flatten(1))
        return encoding


def _strided_convolutions(channels: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions of stride 2, each with batch norm and ReLU."""
    return nn.Sequential(
        *(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(channels)
        )
    )


def grid_pool(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Adaptive average pooling of the last dimensions of `x` to the sizes in `grid`.

    Made of slices and means: torch's own has no deterministic gradient on a GPU.
    """
    for dim, bins in enumerate(grid, start=x.ndim - len(grid)):
        size = x.shape[dim]
        edges = [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]  # floor and ceiling: may overlap
        x = torch.stack([x.narrow(dim, start, end - start).mean(dim) for start, end in edges], dim=dim)
    return x
