"""How a module of the user's is called, and a layer of it given another output."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from amr.utils.errors import UserError, listed

Inputs = dict[str, Tensor]


@contextmanager
def substituted(layer: nn.Module, output: Tensor, name: str) -> Iterator[None]:
    """Makes a layer return `output` instead of its own, within the context.

    Args:
        layer: A layer that runs once.
        output: Output that replaces its own, of the same shape.
        name: Name in messages.

    Raises:
        UserError: The layer does not run once, or its own output is of another shape.
    """
    calls = 0

    def replace(_: nn.Module, args: Any, own: Any) -> Tensor:  # noqa: ARG001 - a hook's signature
        nonlocal calls
        calls += 1
        shape = tuple(own.shape) if isinstance(own, Tensor) else type(own).__name__
        if shape != tuple(output.shape):
            raise UserError(f"{name}: it returned {shape} where {tuple(output.shape)} is to be put; must be one tensor")
        return output

    handle = layer.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
    if calls != 1:
        raise UserError(f"{name}: it ran {calls} times in a forward pass; must run once")


def call_of(
    module: nn.Module, modalities: Iterable[str], arguments: Mapping[str, str] | None
) -> Callable[[Inputs], tuple[tuple[Any, ...], Inputs]]:
    """How inputs by modality are passed to a module's forward: positional and named arguments."""
    names = list(modalities)
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # a scripted or built-in module tells nothing
        parameters = []
    allowed = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    rest = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if arguments is not None:
        wrong = [argument for argument in arguments.values() if argument not in allowed and not rest]
        if wrong:
            raise UserError(
                f"modalities: {type(module).__name__}.forward has no argument {wrong[0]!r}; it has {listed(allowed)}"
            )
        return lambda inputs: ((), {arguments[name]: x for name, x in inputs.items()})
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if allowed.issuperset(names):
        return lambda inputs: ((), inputs)
    if len(needed) == 1 and (len(names) > 1 or _takes_mapping(needed[0])):
        return lambda inputs: ((inputs,), {})
    if len(needed) == len(names):
        return lambda inputs: (tuple(inputs[name] for name in names), {})
    if rest and not needed:
        return lambda inputs: ((), inputs)
    raise UserError(
        f"modalities={names}: {type(module).__name__}.forward has {listed(sorted(allowed))}; give modalities as "
        "{name: argument}, or forward"
    )


def _takes_mapping(parameter: inspect.Parameter) -> bool:
    """Whether an argument's annotation says that it is a mapping."""
    return any(word in str(parameter.annotation).lower() for word in ("mapping", "dict"))


def require_tensor(modality: str, x: Any) -> None:
    """Raises UserError, naming the modality, unless its input is one tensor."""
    if isinstance(x, Tensor) and not x.is_nested:
        return
    parts = list(x.unbind() if isinstance(x, Tensor) else x) if isinstance(x, Tensor | list | tuple) else []
    sizes = {len(part) for part in parts if hasattr(part, "__len__")}
    if len(sizes) > 1:
        raise UserError(
            f"inputs.{modality}: ragged, {min(sizes)} to {max(sizes)} long; must be one tensor: pad them to one length"
        )
    raise UserError(f"inputs.{modality}={type(x).__name__}: must be a tensor (B, ...)")


def require_ids(modality: str, x: Tensor, layer: nn.Embedding) -> None:
    """Raises UserError, naming the modality, unless its input is ids that the layer embeds."""
    if x.is_floating_point():
        raise UserError(f"inputs.{modality}={x.dtype}: must be integer ids, which {type(layer).__name__} embeds")
    if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < layer.num_embeddings:
        wrong = int(x.min()) if int(x.min()) < 0 else int(x.max())
        raise UserError(f"inputs.{modality}: id {wrong}; must be 0 to {layer.num_embeddings - 1}")


def close(first: Tensor, second: Tensor) -> bool:
    """Whether logits are the same up to rounding."""
    size = max(1.0, float(second.abs().max())) if second.numel() else 1.0
    return first.shape == second.shape and bool((first - second).abs().le(1e-4 * size).all())


def difference(first: Tensor, second: Tensor) -> str:
    """How logits differ, for a message."""
    if first.shape != second.shape:
        return f"{tuple(first.shape)} for {tuple(second.shape)}"
    return f"they differ by up to {float((first - second).abs().max()):.3g}"
