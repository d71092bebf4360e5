"""Models to files and back, and the description of a checkpoint's data."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, make_dataclass
from pathlib import Path
from types import SimpleNamespace
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
from amr.model import FusionModel, HasModel, fusion_model, layers_of, model_section
from amr.model.task import check_task
from amr.regularizers.base import Regularizer
from amr.regularizers.composite import Composite, wrapping_methods, wrapping_section
from amr.utils.checkpoints import AtomicCheckpointIO, check_same_architecture, read_checkpoint
from amr.utils.errors import UserError
from amr.utils.files import run_folder
from amr.utils.names.configs import data_source
from amr.utils.names.places import checkpoint_of
from amr.utils.names.recorded import recorded_class
from amr.utils.parser import OneLineParser
from amr.utils.paths import found_again
from amr.utils.readers import read_yaml
from amr.utils.trust import check, only_trusted, trusting

ARCHITECTURE = ("encoders", "fusion", *wrapping_methods(), "extra")
"""Keys of a `model` section that shape the model; the others concern its training."""
LARGEST = 10_000_000
"""The largest number in it that is taken for one."""
LONGEST = 4096
"""The longest text in it, such as a file's path."""


def load_model(
    path: str | Path, trust: Sequence[str] = (), *, model: FusionModel | HasModel | None = None
) -> FusionModel:
    """Rebuilds the model that a checkpoint holds, in eval mode, on the CPU.

    Args:
        path: A run's folder, a checkpoint of a run, one that a `pl.Trainer` saved in Python, or a file of `save_model`.
            Nothing in it is executed. Its classes are imported and built only if they are `amr`'s.
        trust: Import paths whose classes may be built, too, such as `("mypackage",)`.
        model: The same model, or a classifier of it, with any weights: it gets the file's. None: the model is built as
            the file says. One is needed where the file cannot say it: for classes of a notebook, or modules that were
            made elsewhere and passed on.

    Returns:
        The model with the checkpoint's weights: `model` itself, or its `model`, if it is given. No random
        state is touched.

    Raises:
        UserError: If the file is not such a checkpoint, names another class, cannot say how its model is built, or is
            of another model than the given one.
    """
    path = checkpoint_of(path)
    checkpoint = read_checkpoint(path)
    facts: dict[str, Any] = checkpoint["amr"]
    weights = {
        key.removeprefix("model."): value for key, value in checkpoint["state_dict"].items() if key.startswith("model.")
    }
    try:
        if model is None:
            with trusting(trust):
                filled = _build(facts, weights)
        else:
            filled = fusion_model(model)
            _check_skeleton(filled, facts)
            check_same_architecture(filled.state_dict(), weights)
    except UserError as error:
        hint = (
            ""
            if facts.get("model") or model is not None
            else "; or build the model, and pass it: load_model(path, model=...)"
        )
        raise UserError(f"{path}: {str(error)[:1000]}{hint}") from error
    filled.load_state_dict(weights)
    filled.task = check_task(facts.get("task", "classes"))
    return filled.eval()


def save_model(model: FusionModel | HasModel, path: str | Path) -> Path:
    """Writes a model's weights and how it is built to a file that `load_model` reads; nothing of its training.

    Args:
        model: The model. Where it has parts that a file cannot describe, `load_model` needs a model to fill.
        path: The file; one that is there is replaced, whole or not at all.

    Returns:
        The file.

    Raises:
        UserError: It cannot be written.
    """
    bare, section = fusion_model(model), getattr(model, "config", None)
    weights = {f"model.{key}": value.detach().cpu() for key, value in bare.state_dict().items()}
    content = {"state_dict": weights, "amr": {**bare.facts(), "model": section}}
    AtomicCheckpointIO().save_checkpoint(content, path)
    return Path(path)


def data_section(checkpoint: Path, given: str | Path | None = None) -> dict[str, Any]:
    """The `data` section that describes a checkpoint's data.

    Args:
        checkpoint: The checkpoint.
        given: Data that the user names: a configuration with a `data` section, by its file or name, or a class, which
            is built with its defaults. None for the run's own configuration, which may name classes of `amr` and those
            that the user trusts.

    Raises:
        UserError: The file is not there, cannot be read, has no such section, or names another class.
    """
    source = run_folder(checkpoint) / "config.yaml" if given is None else data_source(given)
    if isinstance(source, str):
        return {"class_path": source, "init_args": {}}
    path = source
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; the checkpoint does not lie in a run's folder, so name its data with --data"
        )
    content = read_config(path)
    if not isinstance(content.get("data"), dict):
        raise UserError(f"{path}: it has no `data` section")
    if given is None:
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
    written = facts.get("model") or facts.get("built")
    if not isinstance(written, Mapping) or not written:
        raise UserError("checkpoint: no model section in it, so it does not say how its model is built")
    section = {key: written[key] for key in ARCHITECTURE if written.get(key) is not None}
    if not isinstance(section.get("encoders"), dict) or not section["encoders"]:
        raise UserError("checkpoint: model.encoders names no encoder")
    recorded = not facts.get("model")
    if recorded:
        _check_described(written)
    if list(section["encoders"]) != facts["modalities"]:
        raise UserError("checkpoint: model.encoders and its list of modalities differ")
    _check_values(section)
    check({"model": section}, "checkpoint")
    classes = facts["num_classes"]
    if not any(key.startswith("head.") and classes in value.shape for key, value in weights.items()):
        raise UserError(f"checkpoint: num_classes={classes}, but no weight of the head has that size")
    drop_weights(section)  # the checkpoint has them
    with only_trusted(), torch.random.fork_rng(devices=[]):  # initial weights, all replaced, are drawn on the CPU
        parts = _recorded_parts(section, classes) if recorded else _configured_parts(section, classes)
        try:
            with torch.device("meta"), _at_most(20 * len(weights) + 1000):
                empty = _assembled(parts())
        except UserError:
            raise
        except Exception as error:  # of a constructor, for arguments that nobody has checked
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"checkpoint: its model cannot be built: {type(error).__name__}: {reason}") from error
        check_same_architecture(empty.state_dict(), weights)
        if recorded:
            _check_layers(empty, facts.get("layers"))
        return _assembled(parts())


def _configured_parts(section: Mapping[str, Any], classes: int) -> Callable[[], Any]:
    """Function that builds the parts that a configuration describes, by its rules."""
    parser = OneLineParser()
    parser.add_class_arguments(_architecture(), "model")
    config = parser.parse_object({"model": {**section, "num_classes": classes}})
    return lambda: parser.instantiate_classes(config).model


def _recorded_parts(section: Mapping[str, Any], classes: int) -> Callable[[], Any]:
    """Function that builds parts recorded in Python, with their recorded arguments; no types need be known."""
    made = {key: value for key, value in section.items() if key != "fusion"}

    def parts() -> Any:
        fusion = functools.partial(recorded_class(section["fusion"]), **_made(section["fusion"]["init_args"]))
        return SimpleNamespace(**{"extra": None, **_made(made)}, fusion=fusion, num_classes=classes)

    return parts


def _made(value: Any) -> Any:
    """A recorded value, with the objects that it describes."""
    if isinstance(value, dict):
        given = {key: _made(item) for key, item in value.items()}
        return recorded_class(value)(**given["init_args"]) if "class_path" in value else given
    return type(value)(map(_made, value)) if isinstance(value, list | tuple) else value


def drop_weights(section: Any) -> None:
    """Takes pretrained weights out of all that a section describes: a file names none to load."""
    left = [section]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            arguments = value.get("init_args")
            if "class_path" in value and isinstance(arguments, dict) and "weights" in arguments:
                arguments["weights"] = None
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value


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
    model = FusionModel(parts.encoders, Composite([*methods, *(parts.extra or [])]).wrap_head(head))
    model.section = model_section(parts.encoders, head) | wrapping_section(vars(parts))
    return model


def _check_skeleton(model: FusionModel, facts: Mapping[str, Any]) -> None:
    """Raises `UserError` unless a model has a checkpoint's modalities, in its order, and classes."""
    if list(model.modalities) != facts["modalities"]:
        raise UserError(
            f"model={type(model).__name__}: its modalities are {', '.join(model.modalities)}; must be the file's, "
            f"{', '.join(facts['modalities'])}, in this order"
        )
    if model.head.num_classes != facts["num_classes"]:
        raise UserError(
            f"model={type(model).__name__}: it has {model.head.num_classes} classes; must be the file's "
            f"{facts['num_classes']}"
        )


def _check_described(section: Mapping[str, Any]) -> None:
    """Raises `UserError` if the file does not say how a part of its model was made."""
    parts = {f"encoders.{name}": part for name, part in section["encoders"].items()}
    parts |= {key: section.get(key) for key in ("fusion", *section) if key not in ("encoders", "extra")}
    extra = section.get("extra")
    parts |= {f"extra.{i}": part for i, part in enumerate(extra if isinstance(extra, list) else [])}
    if lacking := [key for key, part in parts.items() if part is None]:
        raise UserError(
            f"checkpoint: it does not say how model.{lacking[0]} was made: its class is one that cannot be imported, "
            "or an argument was no plain value, such as a module"
        )


def _check_layers(model: FusionModel, layers: Any) -> None:
    """Raises `UserError` unless a model has the layers that the saved one had, whatever it was made as."""
    mine = layers_of(model)
    if not isinstance(layers, Mapping) or dict(layers) != mine:
        theirs = dict(layers) if isinstance(layers, Mapping) else {}
        name = next((n for n in [*mine, *theirs] if mine.get(n) != theirs.get(n)), "")
        raise UserError(
            f"checkpoint: the model was changed after it was made: model.{name[:200]} is a "
            f"{str(theirs.get(name))[:100]}, as described it is a {mine.get(name)}"
        )


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
