"""Checks whether a grid's cells can be trained, by building their models without weights before any training."""

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from amr.cli.benchmark.plan import Cell
from amr.utils.errors import UserError
from amr.utils.streams import status

OF_TRAINING = ("optimizer", "lr_scheduler", "scheduler_interval", "label_smoothing", "metrics", "compile_encoders")
"""Keys of a `model` section that do not matter for building the model; often rows differ only in these."""
MOST = 4  # rows that the message names with their reason


def check_cells(cells: Sequence[Cell]) -> None:
    """Refuses cells whose model is impossible: methods that exclude each other, a fusion or modalities that do not fit.

    Models are built on torch's meta device, where weights take no memory. Weights' files are not read, nor are those of
    teachers, which are not there yet.

    Args:
        cells: Cells of the grid; those of a row differ in nothing that matters here.

    Raises:
        UserError: One line that names each such row with the reason.
    """
    rows = {cell.row.name: cell for cell in cells if not cell.row.ensemble}
    wrong = {name: reason for name, cell in rows.items() if (reason := _reason(cell))}
    if not wrong:
        return
    told = [f"{name}: {reason}" for name, reason in list(wrong.items())[:MOST]]
    told += [f"and {', '.join(list(wrong)[MOST:])}"] if len(wrong) > MOST else []
    rest = "" if len(wrong) == len(rows) else "; take the rows out of the grid, or choose others with --only"
    raise UserError(f"{'; '.join(told)}{rest}")


def _reason(cell: Cell) -> str | None:
    """Why a cell cannot be trained; None if nothing is known against it."""
    section = _without_files(cell.config["model"])
    data = cell.config.get("data", {}).get("init_args", {})
    if isinstance(there := data.get("modalities"), list):
        for name in section.get("encoders") or {}:
            if name not in there:
                return f"model.encoders.{name}: no input; must be among data.init_args.modalities={there}"
    reason = _refusal(json.dumps(section), cell.row.name)
    key = cell.row.teachers
    if reason is None or key is None or not reason.startswith(f"{key}."):
        return reason
    method = key.removeprefix("model.").partition(".")[0]  # its teachers are not trained yet: the rest is built
    return _refusal(json.dumps({name: value for name, value in section.items() if name != method}), cell.row.name)


def _without_files(section: Mapping[str, Any]) -> dict[str, Any]:
    """A `model` section without pretrained weights."""
    from amr.load import drop_weights

    kept = copy.deepcopy(dict(section))
    drop_weights(kept)
    kept = {key: value for key, value in kept.items() if key not in OF_TRAINING}
    return {**kept, "num_classes": kept.get("num_classes") or 2}


@cache
def _parser() -> Any:
    from amr.classifier import FusionClassifier
    from amr.utils.parser import OneLineParser

    parser = OneLineParser()
    parser.add_class_arguments(FusionClassifier, "model")
    return parser


@cache
def _refusal(section: str, name: str) -> str | None:
    """Why a `model` section, as JSON, cannot be built; `name` is the row's, for what is not known."""
    try:
        _build(json.loads(section))
    except UserError as error:
        return str(error)
    except Exception as error:  # of a class that cannot be built without memory: its own process will tell
        reason = " ".join(str(error).split())[:200]
        status(f"benchmark: {name} is not checked: {type(error).__name__}: {reason}")
    return None


def _build(section: Mapping[str, Any]) -> None:
    import torch

    parser = _parser()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        warnings.simplefilter("ignore")  # each run will give its own
        parser.instantiate_classes(parser.parse_object({"model": section}))
