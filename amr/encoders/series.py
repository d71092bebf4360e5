"""An encoder of time series: a GRU or dilated convolutions in time."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amr.encoders.base import Encoder, check_sizes
from amr.utils.errors import UserError

Arch = Literal["gru", "tcn"]


class GRU(nn.Module):
    """Layers of gated recurrent units, as `nn.GRU`, that can be differentiated twice on every device.

    Cho et al. 2014, in torch's form, a step at a time: cuDNN's kernels have no second derivative.

    Args:
        in_dim: Size of a step.
        dim: Size of the state.
        layers: Number of layers.
    """

    def __init__(self, in_dim: int, dim: int, layers: int = 1) -> None:
        super().__init__()
        sizes = [in_dim, *[dim] * (layers - 1)]
        self.inputs = nn.ModuleList(nn.Linear(size, 3 * dim) for size in sizes)
        self.states = nn.ModuleList(nn.Linear(dim, 3 * dim) for _ in sizes)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """States (B, T, dim) after each step of (B, T, in_dim); where `there` (B, T) is False the state stays."""
        for read, remember in zip(self.inputs, self.states, strict=True):
            given = read(x)
            h = given.new_zeros(len(x), given.shape[2] // 3)
            states = []
            for step, valid in zip(given.unbind(1), there.unbind(1), strict=True):
                reset_in, update_in, new_in = step.chunk(3, dim=1)
                reset_h, update_h, new_h = remember(h).chunk(3, dim=1)
                update = torch.sigmoid(update_in + update_h)
                new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_h) * new_h)
                h = torch.where(valid[:, None], (1 - update) * new + update * h, h)
                states.append(h)
            x = torch.stack(states, dim=1)
        return x


class TemporalConvolutions(nn.Module):
    """Causal dilated convolutions with residuals.

    Bai et al. 2018, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence Modeling",
    section 3: block i has two convolutions of dilation 2^i, each with a ReLU, and adds its input. Weight normalization
    and dropout are left out. A step sees 1 + 2 (kernel - 1) (2^layers - 1) steps: itself and those before it.

    Args:
        in_dim: Size of a step.
        dim: Channels.
        layers: Number of blocks.
        kernel: Steps that a convolution sees.
    """

    def __init__(self, in_dim: int, dim: int, layers: int, kernel: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Conv1d(dim if i else in_dim, dim, kernel, dilation=2**i) for i in range(layers))
        self.second = nn.ModuleList(nn.Conv1d(dim, dim, kernel, dilation=2**i) for i in range(layers))
        self.skip = nn.Linear(in_dim, dim)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:  # causal: padding at the end changes nothing
        """Features (B, T, dim) of each step of (B, T, in_dim)."""
        before, x = self.skip(x).transpose(1, 2), x.transpose(1, 2)
        for first, second in zip(self.first, self.second, strict=True):
            x = F.relu(before + F.relu(_causal(second, F.relu(_causal(first, x)))))
            before = x
        return x.transpose(1, 2)


def _causal(convolution: nn.Module, x: Tensor) -> Tensor:
    """The convolution of (B, C, T) with zeros before the first step."""
    assert isinstance(convolution, nn.Conv1d)
    y: Tensor = convolution(F.pad(x, (convolution.dilation[0] * (convolution.kernel_size[0] - 1), 0)))
    return y


class SeriesEncoder(Encoder):
    """Reads a time series step by step.

    Input is (B, T, channels). The encoding has shape (B, dim), or without `pool` (B, T, dim): a token each step, which
    knows of the steps before it. The encoder can be differentiated twice.

    Args:
        channels: Numbers per step.
        arch: `gru`: layers of gated recurrent units; a series' encoding is the last state. `tcn`: a temporal
            convolutional network; a series' encoding is the mean over its steps.
        dim: Size of the encoding.
        layers: Number of layers of a GRU; number of blocks of a TCN, block i of dilation 2^i.
        kernel: Steps that a convolution of a TCN sees.
        padded: Whether steps of zeros at the end are padding, which then changes nothing in the encoding and whose
            tokens are zeros. False: they are steps like any other.
        pool: One encoding per series. False gives one token per step.

    Raises:
        UserError: An option has a value that is not allowed; in use, the input has another shape.
    """

    def __init__(
        self,
        channels: int,
        arch: Arch = "gru",
        dim: int = 64,
        layers: int = 1,
        kernel: int = 3,
        padded: bool = False,
        pool: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(self, channels=channels, dim=dim, layers=layers, kernel=kernel)
        if arch not in get_args(Arch):
            raise UserError(f"SeriesEncoder: arch={arch!r}: must be one of {', '.join(get_args(Arch))}")
        self.channels, self.arch, self.padded, self.pool, self.out_dim = channels, arch, padded, pool, dim
        self.net = GRU(channels, dim, layers) if arch == "gru" else TemporalConvolutions(channels, dim, layers, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes (B, T, channels) to (B, dim) or (B, T, dim)."""
        if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] != self.channels:
            raise UserError(
                f"SeriesEncoder: takes (B, T, channels) with T at least 1 and channels = {self.channels}, "
                f"got shape {tuple(x.shape)}"
            )
        there = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if self.padded:  # from the last step that is not zeros on
            there = (x != 0).any(2).flip(1).cumsum(1).flip(1) > 0
        steps: Tensor = self.net(x, there)
        if not self.pool:
            return steps * there[:, :, None]
        return pooled(steps, there, "last" if self.arch == "gru" else "mean")


def pooled(steps: Tensor, there: Tensor, how: Literal["last", "mean"]) -> Tensor:
    """The last step that is there, or the mean over those that are: (B, T, D) to (B, D); zeros if none is."""
    weights = there.to(steps)
    if how == "last":
        weights = weights * (weights.cumsum(1) == weights.sum(1, keepdim=True))
    return (weights[:, :, None] * steps).sum(1) / weights.sum(1, keepdim=True).clamp_min(1)
