"""Any module as an encoder: from timm, torchvision, transformers, or of the user's own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amr.encoders.base import Encoder
from amr.utils.errors import UserError

_SIDE = 64  # of the pictures of a dry run: five halvings leave 2 x 2
_LENGTH = 2048  # samples or steps of the sequences of a dry run


class WrappedEncoder(Encoder):
    """An `nn.Module` as an encoder; made by `as_encoder`.

    Args:
        module: Maps (B, ...) to (B, D), to tokens (B, T, D) or to feature maps (B, D, H, W), which are averaged over
            space. A dictionary or a transformers output counts as its `last_hidden_state`; a tuple as its first part.
        out_dim: D.
    """

    def __init__(self, module: nn.Module, out_dim: int) -> None:
        super().__init__()
        self.module, self.out_dim = module, out_dim

    def forward(self, x: Tensor) -> Tensor:
        """Encodes a batch.

        Args:
            x: The module's input, (B, ...).

        Returns:
            (B, out_dim) or (B, T, out_dim).

        Raises:
            UserError: The module returns another size than `out_dim`.
        """
        encoding = _tensor(self.module(x), self.module)
        if encoding.shape[-1] != self.out_dim:
            raise UserError(
                f"as_encoder({type(self.module).__name__}): out_dim={self.out_dim}, but it returns encodings of size "
                f"{encoding.shape[-1]}"
            )
        return encoding


def as_encoder(module: nn.Module, out_dim: int | None = None, *, example: Tensor | None = None) -> Encoder:
    """Makes an encoder of any module.

    Args:
        module: See `WrappedEncoder`. Its parameters are trained unless `requires_grad` is false.
        out_dim: Size of the encoding's last dimension; None: found out by one dry run in evaluation mode.
        example: Input of the dry run, (B, ...); None: zeros in the shape that the module's first layer asks for.

    Returns:
        The encoder; an `Encoder` is returned as it is.

    Raises:
        UserError: The dry run fails, or the module returns nothing that is an encoding.
    """
    if isinstance(module, Encoder):
        return module
    name = type(module).__name__
    if out_dim is None:
        sample = _sample(module) if example is None else example
        if sample is None:
            raise UserError(
                f"as_encoder({name}): its first layer does not tell what it takes; give example=... or out_dim=..."
            )
        modes = {part: part.training for part in module.modules()}
        try:
            with torch.no_grad():
                out_dim = _tensor(module.eval()(sample), module).shape[-1]
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"as_encoder({name}): the dry run on an input of shape {tuple(sample.shape)} failed ({error}); give "
                "example=... or out_dim=..."
            ) from error
        finally:
            for part, training in modes.items():
                part.training = training
    return WrappedEncoder(module, int(out_dim))


def _tensor(output: Any, module: nn.Module) -> Tensor:
    """The encoding in what a module returns."""
    if isinstance(output, Mapping):
        output = output.get("last_hidden_state", next(iter(output.values()), None))
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if isinstance(output, Tensor) and output.ndim == 4:
        output = output.mean((2, 3))
    if not (isinstance(output, Tensor) and output.ndim in (2, 3)):
        what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"as_encoder({type(module).__name__}): it returns {what}; must be (B, D), (B, T, D) or (B, D, H, W)"
        )
    return output


def _sample(module: nn.Module) -> Tensor | None:
    """Zeros of the shape that the first layer with a known input takes; None if none is known."""
    for part in module.modules():
        match part:
            case nn.Linear():
                return torch.zeros(1, part.in_features)
            case nn.Conv1d():
                return torch.zeros(1, part.in_channels, _LENGTH)
            case nn.Conv2d():
                return torch.zeros(1, part.in_channels, _SIDE, _SIDE)
            case nn.Conv3d():
                return torch.zeros(1, part.in_channels, 16, _SIDE, _SIDE)
            case nn.Embedding():
                return torch.zeros(1, 8, dtype=torch.long)
            case nn.RNNBase():
                return torch.zeros(1, 8, part.input_size) if part.batch_first else torch.zeros(8, 1, part.input_size)
    return None
