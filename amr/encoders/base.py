"""Base class of all encoders: one modality in, one encoding out."""

from torch import Tensor, nn

from amr.utils.errors import UserError
from amr.utils.names.recorded import Recorded


class Encoder(Recorded, nn.Module):
    """Maps one modality's input to its encoding; never sees another modality.

    Subclasses set `out_dim` and implement `forward`.

    Attributes:
        out_dim: Size of the encoding's last dimension.
    """

    out_dim: int

    def forward(self, x: Tensor) -> Tensor:
        """Encodes a batch.

        Args:
            x: The modality's input, shape (B, ...).

        Returns:
            The encoding, shape (B, out_dim), or (B, T, out_dim) for a sequence of T tokens.
        """
        raise NotImplementedError


def check_image(encoder: Encoder, x: Tensor, in_channels: int, ndims: tuple[int, ...]) -> None:
    """Refuses an input of the wrong shape; channels are the third dimension from the end.

    Args:
        encoder: Named in the message.
        x: The input.
        in_channels: Channels that `encoder` takes.
        ndims: Numbers of dimensions it takes: 4 for images, 5 for frame sequences.

    Raises:
        UserError: `x` has another number of dimensions or channels.
    """
    if x.ndim not in ndims or x.shape[-3] != in_channels:
        layouts = {4: "(B, C, H, W)", 5: "(B, N, C, H, W)"}
        allowed = " or ".join(layouts[ndim] for ndim in ndims)
        name = type(encoder).__name__
        raise UserError(f"{name}: takes {allowed} with C = in_channels = {in_channels}, got shape {tuple(x.shape)}")


def check_sizes(encoder: Encoder, **sizes: int) -> None:
    """Raises UserError, naming the encoder and the option, if a size is below 1."""
    for key, size in sizes.items():
        if size < 1:
            raise UserError(f"{type(encoder).__name__}: {key}={size}: must be at least 1")
