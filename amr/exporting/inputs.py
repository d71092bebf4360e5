"""Describes a model's inputs, from a run's configuration or, for data from Python, from a batch."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amr.utils.errors import UserError
from amr.utils.trust import only_trusted, trusting

if TYPE_CHECKING:
    from amr.model import FusionModel, HasModel
    from amr.model.loaders import Data

Described = dict[str, dict[str, Any]]
"""By modality: shape and axes without the batch, dtype, source and steps, as `preprocessing` gives them."""
SPLITS = ("test", "val", "train")  # where a batch is looked for


def model_and_inputs(
    checkpoint: "Path | FusionModel | HasModel", data: "str | Path | Data | None", trust: Sequence[str]
) -> "tuple[FusionModel, Described, list[str] | None]":
    """The model, its inputs, and the classes' names if the data are a Python object that has them.

    Args:
        checkpoint: A checkpoint of a run, or a model.
        data: A configuration with a `data` section, by its file or name, or a class; a data module; loaders by split;
            None for the run's own.
        trust: As for `load_model`.

    Raises:
        UserError: A file cannot be read, the data lack a modality, or a model comes without data.
    """
    from amr.datamodules.preprocessing import preprocessing
    from amr.load import data_section, load_model
    from amr.model import fusion_model
    from amr.model.task import check_classes

    named = data is None or isinstance(data, str | Path)
    if isinstance(checkpoint, Path):
        # A configuration that the user names is as if typed; the run's own may be a stranger's.
        with trusting(trust), only_trusted() if data is None else nullcontext():
            model = load_model(checkpoint)
            found = (
                preprocessing(data_section(checkpoint, data)) if data is None or isinstance(data, str | Path) else {}
            )
    elif named:
        raise UserError("data: must be a data module or loaders, with a model that no run's folder tells of")
    else:
        model, found = fusion_model(checkpoint), {}
    check_classes(model, "export", several=True)
    labels = None
    if data is not None and not isinstance(data, str | Path):
        found, labels = _shown(data, model), getattr(data, "labels", None)
    if lacking := [name for name in model.modalities if name not in found]:
        raise UserError(f"data.modalities: the model has {lacking[0]!r}; there are {', '.join(map(repr, found))}")
    return model, {name: found[name] for name in model.modalities}, None if labels is None else [*map(str, labels)]


def _shown(data: "Data", model: "FusionModel") -> Described:
    """Shape and type of each input in a batch; what comes before is the user's own."""
    import torch

    from amr.model.batches import as_batch
    from amr.model.loaders import as_data

    module = as_data(data)
    splits = [s for s in SPLITS if not isinstance(data, Mapping) or s in data]
    module.prepare_data()
    module.setup("test" if splits[0] == "test" else "fit")
    loader = getattr(module, f"{splits[0]}_dataloader")()
    batch = module.transfer_batch_to_device(next(iter(loader)), torch.device("cpu"), 0)
    inputs = as_batch(module.on_after_batch_transfer(batch, 0), model.modalities, task=model.task)["inputs"]
    described = {}
    for name in model.modalities:
        x = inputs[name]
        if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
            kind = str(x.dtype) if isinstance(x, torch.Tensor) else type(x).__name__
            raise UserError(f"batch: inputs.{name} is {kind}; must be a tensor of float32, to be exported")
        axes = [f"axis {number}" for number in range(1, x.ndim)]
        described[name] = {"shape": list(x.shape[1:]), "axes": axes, "dtype": "float32", "source": None, "steps": None}
    return described
