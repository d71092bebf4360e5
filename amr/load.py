"""A model back from its checkpoint alone, and the description of its data."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from amr.encoders.base import Encoder
from amr.fusion.base import FusionFactory
from amr.fusion.concat import Concat
from amr.model import FusionModel
from amr.regularizers.base import Regularizer
from amr.regularizers.composite import Composite, wrapping_methods
from amr.utils.checkpoints import check_same_architecture, read_checkpoint
from amr.utils.errors import UserError
from amr.utils.files import run_folder
from amr.utils.parser import OneLineParser
from amr.utils.paths import found_again
from amr.utils.readers import read_yaml
from amr.utils.trust import check, only_trusted, trusting

ARCHITECTURE = ("encoders", "fusion", *wrapping_methods(), "extra")
"""What of a `model` section shapes the model; the rest is about its training."""
LARGEST = 10_000_000
"""The largest number in it that is taken for one."""
LONGEST = 4096
"""The longest text in it, such as a file's path."""


def load_model(path: str | Path, trust: Sequence[str] = ()) -> FusionModel:
    """Rebuilds the model that a checkpoint holds, in eval mode, on the CPU.

    Args:
        path: A checkpoint of a run made by the command line: its `model` section is in the file. Nothing in the file is
            executed. Classes that the section names are imported and built only if they are `amr`'s.
        trust: Import paths whose classes may be built, too, such as `("mypackage",)`.

    Returns:
        The model with the checkpoint's weights. No random state is touched, so a load does not change what follows it.

    Raises:
        UserError: If the file is not such a checkpoint, or names another class.
    """
    checkpoint = read_checkpoint(Path(path))
    facts: dict[str, Any] = checkpoint["amr"]
    if not facts.get("model"):
        raise UserError(f"{path}: no model section in it; only the command line (amr fit) writes one")
    weights = {
        key.removeprefix("model."): value for key, value in checkpoint["state_dict"].items() if key.startswith("model.")
    }
    try:
        with trusting(trust):
            model = _build(facts, weights)
    except UserError as error:
        raise UserError(f"{path}: {str(error)[:1000]}") from error
    model.load_state_dict(weights)
    return model.eval()


def data_section(checkpoint: Path, config: Path | None = None) -> dict[str, Any]:
    """The `data` section that describes a checkpoint's data.

    Args:
        checkpoint: The checkpoint.
        config: A configuration with a `data` section, which the user has named; None for the run's own, which may name
            classes of `amr` and those that the user trusts.

    Raises:
        UserError: The file is not there, cannot be read, has no such section, or names another class.
    """
    path = config or run_folder(checkpoint) / "config.yaml"
    if not path.is_file():
        hint = "" if config else "; the checkpoint does not lie in a run's folder, so name its data with --data"
        raise UserError(f"{path}: no such file{hint}")
    content = read_config(path)
    if not isinstance(content.get("data"), dict):
        raise UserError(f"{path}: it has no `data` section")
    if config is None:
        check({"data": content["data"]}, str(path))
        content = found_again({"data": content["data"]}, path.parent)
    section: dict[str, Any] = content["data"]
    return section


def read_config(path: Path) -> dict[str, Any]:
    """The contents of a configuration file.

    Raises:
        UserError: The file cannot be read, or holds no sections.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: it has no sections, such as `data`")
    return content


def _build(facts: Mapping[str, Any], weights: Mapping[str, Tensor]) -> FusionModel:
    """The model that a checkpoint's facts describe, before it gets its weights, which fit.

    It is built on the meta device first, where it takes no memory, for its sizes are only numbers in a file: what does
    not have the weights' shapes is never built.
    """
    section = {key: facts["model"][key] for key in ARCHITECTURE if facts["model"].get(key) is not None}
    if not isinstance(section.get("encoders"), dict) or not section["encoders"]:
        raise UserError("checkpoint: model.encoders names no encoder")
    if list(section["encoders"]) != facts["modalities"]:
        raise UserError("checkpoint: model.encoders and its list of modalities differ")
    _check_values(section)
    check({"model": section}, "checkpoint")
    classes = facts["num_classes"]
    if not any(key.startswith("head.") and classes in value.shape for key, value in weights.items()):
        raise UserError(f"checkpoint: num_classes={classes}, but no weight of the head has that size")
    for encoder in section["encoders"].values():  # the checkpoint has the weights
        if isinstance(encoder, dict) and "weights" in (encoder.get("init_args") or {}):
            encoder["init_args"]["weights"] = None
    parser = OneLineParser()
    parser.add_class_arguments(_architecture(), "model")
    with only_trusted(), torch.random.fork_rng(devices=[]):  # initial weights, all replaced, are drawn on the CPU
        config = parser.parse_object({"model": {**section, "num_classes": classes}})
        try:
            with torch.device("meta"), _at_most(20 * len(weights) + 1000):
                empty = _assembled(parser.instantiate_classes(config).model)
        except UserError:
            raise
        except Exception as error:  # of a constructor, for arguments that nobody has checked
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"checkpoint: its model cannot be built: {type(error).__name__}: {reason}") from error
        check_same_architecture(empty.state_dict(), weights)
        return _assembled(parser.instantiate_classes(config).model)


def _architecture() -> type:
    """A class of `ARCHITECTURE`'s arguments, with the types that `FusionClassifier` gives them.

    Not that class itself: it imports the methods, and a method that has teachers loads models.
    """
    wrapping: list[Any] = [(name, kind | None, field(default=None)) for name, kind in wrapping_methods().items()]
    return make_dataclass(
        "Architecture",
        [
            ("encoders", dict[str, Encoder]),
            ("fusion", FusionFactory, field(default=Concat)),
            ("num_classes", int, field(default=2)),
            *wrapping,
            ("extra", list[Regularizer] | None, field(default=None)),
        ],
    )


def _assembled(parts: Any) -> FusionModel:
    """The model of an instance of that class."""
    methods = [value for value in vars(parts).values() if isinstance(value, Regularizer)]
    head = parts.fusion({name: encoder.out_dim for name, encoder in parts.encoders.items()}, parts.num_classes)
    return FusionModel(parts.encoders, Composite([*methods, *(parts.extra or [])]).wrap_head(head))


def _check_values(section: Any) -> None:
    """Raises `UserError` for what no configuration has, and numbers beyond any layer's: a loop over one has no end."""
    left = [section]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            left += value
        elif isinstance(value, int | float) and not abs(value) <= LARGEST:
            raise UserError(f"checkpoint: model: a number beyond {LARGEST:,}, more than any layer has")
        elif not isinstance(value, str | int | float | None) or (isinstance(value, str) and len(value) > LONGEST):
            raise UserError(f"checkpoint: model: a value of type {type(value).__name__} that no configuration has")


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Within the block, a model with more than so many layers and parameters is refused while it is built."""
    left = count

    def one_more(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise UserError("checkpoint: of another architecture, its model has more layers than the file has weights")

    hooks = [
        register_module_parameter_registration_hook(one_more),
        register_module_module_registration_hook(one_more),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
