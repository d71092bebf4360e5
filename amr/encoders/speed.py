"""Makes encoders faster without changing their keys or, beyond rounding, their numbers."""

import functools
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

# Not those with CUDA graphs: a graph's next run overwrites its outputs, and methods keep encodings until a step.
CompileMode = Literal["default", "max-autotune-no-cudagraphs"]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def compile_in_place(module: nn.Module, mode: CompileMode) -> None:
    """Compiles what a call of the module does; its parameters, keys and class stay.

    Args:
        module: An encoder. Not a head: what is compiled has no second derivative, which AMR and the shares need.
        mode: Mode of `torch.compile`.
    """
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False  # or MMPareto could not go through an encoder's graph twice
    module.compile(mode=mode)


def to_channels_last(module: nn.Module) -> None:
    """Puts the weights and inputs of 2-D and 3-D convolutions in the layout that tensor cores take.

    Inputs are put so where a convolution gets them, since only there is known which dimension is the channels'.
    """
    for part in module.modules():
        if isinstance(part, _ConvNd) and (layout := FORMATS.get(part.weight.ndim)):
            part.to(memory_format=layout)  # type: ignore[call-overload]
            part.register_forward_pre_hook(functools.partial(_put, layout))


def _put(layout: torch.memory_format, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:  # noqa: ARG001 - a hook's
    return inputs[0].contiguous(memory_format=layout), *inputs[1:]


def speed_up(encoders: Iterable[nn.Module], *, channels_last: bool, compiled: bool | CompileMode) -> None:
    """Applies both to every encoder, where they are asked for.

    Args:
        encoders: The encoders.
        channels_last: Whether their convolutions work on the channels-last layout.
        compiled: Whether, or in which mode, to compile them.
    """
    for encoder in encoders:
        if channels_last:
            to_channels_last(encoder)
        if compiled:
            compile_in_place(encoder, "default" if compiled is True else compiled)
