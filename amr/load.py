"""A model back from its checkpoint alone, and the description of its data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from amr.checkpoints import check_checkpoint, check_same_architecture
from amr.classifier import FusionClassifier
from amr.errors import UserError
from amr.files import run_folder
from amr.model import FusionModel
from amr.parser import OneLineParser
from amr.readers import read_yaml
from amr.trust import check, only_trusted, trusting

ARCHITECTURE = ("encoders", "fusion", "mmcosine", "extra")
"""What of a `model` section shapes the model; the rest is about its training."""


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
    check_checkpoint(Path(path))
    checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    facts: dict[str, Any] = checkpoint["amr"]
    if not facts.get("model"):
        raise UserError(f"{path}: no model section in it; only the command line (amr fit) writes one")
    try:
        with trusting(trust):
            model = _build(facts)
        weights = {
            key.removeprefix("model."): value
            for key, value in checkpoint["state_dict"].items()
            if key.startswith("model.")
        }
        check_same_architecture(model.state_dict(), weights)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
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
    section: dict[str, Any] = content["data"]
    if config is None:
        check({"data": section}, str(path))
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


def _build(facts: dict[str, Any]) -> FusionModel:
    """The model that a checkpoint's facts describe, before it gets its weights."""
    section = {key: facts["model"][key] for key in ARCHITECTURE if facts["model"].get(key) is not None}
    check({"model": section}, "checkpoint")
    for encoder in section["encoders"].values():  # the checkpoint has the weights
        if "weights" in encoder.get("init_args", {}):
            encoder["init_args"]["weights"] = None
    parser = OneLineParser()
    parser.add_class_arguments(FusionClassifier, "model")
    with only_trusted(), torch.random.fork_rng(devices=[]):  # initial weights, all replaced, are drawn on the CPU
        config = parser.parse_object({"model": {**section, "num_classes": facts["num_classes"]}})
        model: FusionModel = parser.instantiate_classes(config).model.model
    return model
