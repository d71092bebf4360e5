"""Initial weights for an encoder: a local file, or one of torchvision's or torchaudio's by name."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum  # the public name is not re-exported explicitly

from amr.utils.errors import UserError

State = Mapping[str, Tensor]
"""A state dict."""
Named = type[WeightsEnum] | Mapping[str, Callable[[], State]]
"""Weights with a name: torchvision's enum, or functions that download them."""


def load_weights(
    module: nn.Module,
    weights: str,
    named: Named,
    ignore: str = "fc.",
    convert: Callable[[State], State] = lambda state: state,
) -> None:
    """Loads weights into `module`, all of them or none.

    A convolution that takes one channel where the weights take three gets their sum over the three, which is the
    response to the channel repeated as RGB.

    Args:
        module: The network, without its classifier.
        weights: Path of a file written by `torch.save` (a state dict, or a dict that has one at "state_dict"), or the
            name in `named`, which the library downloads once.
        named: The library's weights that fit `module`.
        ignore: Prefix of the keys to leave out: the classifier's.
        convert: From the keys and shapes of the file or the library to those of `module`, where they differ.

    Raises:
        UserError: `weights` is neither, the file holds no state dict, keys or shapes do not fit, or there is no
            network to download them.
    """
    state = dict(convert({key: value for key, value in _read(weights, named).items() if not key.startswith(ignore)}))
    own = module.state_dict()
    for key in own.keys() & state.keys():
        if own[key].ndim > 2 and own[key].shape[1] == 1 and state[key].ndim > 2 and state[key].shape[1] == 3:
            state[key] = state[key].sum(dim=1, keepdim=True)
    # Counters of batches are absent from files older than the counters; torch fills them in.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    reshaped = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unexpected or reshaped:
        problems = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
        listed = "; ".join(f"{len(keys)} {what} ({_first(keys)})" for what, keys in problems.items() if keys)
        raise UserError(f"weights: {weights} does not fit this encoder; keys {listed}")
    module.load_state_dict(state, strict=False)


def find_weights(name: str, named: type[WeightsEnum]) -> WeightsEnum:
    """The member of `named` called `name`, such as "ResNet18_Weights.IMAGENET1K_V1".

    Raises:
        UserError: There is none; the message lists them.
    """
    members = {f"{named.__name__}.{member}": value for member, value in named.__members__.items()}
    if name not in members:
        raise UserError(f"weights={name!r}: must be a file or one of {', '.join(members)}")
    return members[name]


def _read(weights: str, named: Named) -> State:
    path = Path(weights).expanduser()
    if not path.is_file():
        return _download(weights, named)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"weights: {weights} is not a file of tensors written by torch.save ({reason})") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise UserError(f'weights={weights}: must hold a state dict, or a dict with one at "state_dict"')
    return state


def _download(name: str, named: Named) -> State:
    if not isinstance(named, Mapping):
        download: Callable[[], State] = partial(
            find_weights(name, named).get_state_dict, progress=True, check_hash=True
        )
    elif name in named:
        download = named[name]
    else:
        raise UserError(f"weights={name!r}: must be a file or one of {', '.join(named)}")
    try:
        return download()
    except OSError as error:  # urllib's errors are among these
        raise UserError(f"weights: cannot download {name} ({error}); a local file can be named instead") from error


def _first(keys: list[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "")
