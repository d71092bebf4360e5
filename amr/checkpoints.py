"""Checkpoint files: written whole or not at all, and refused by name where they are not ours."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from amr.errors import UserError
from amr.files import replacing, sweep


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, and renames.

    Lightning's own goes through the system's temporary folder, which is often another file system: a kill in the middle
    of the copy leaves half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Saves a checkpoint at a local path.

        Raises:
            UserError: If it cannot be written, as on a full disk; the one that was there stays.
        """
        target = Path(path)
        sweep(target.parent, target.name)  # they are large
        with replacing(target) as file:
            torch.save(checkpoint, file)


def check_checkpoint(path: Path, where: str = "") -> None:
    """Raises `UserError` unless the file is a whole checkpoint of amr's; nothing in it is executed.

    Args:
        path: The file.
        where: What the message begins with.
    """
    if not path.is_file():
        raise UserError(f"{where}{path} does not exist")
    try:
        content = torch.load(path, weights_only=True, map_location="meta", mmap=True)
    except Exception as error:
        raise UserError(f"{where}{path} is not a checkpoint, or not a whole one") from error
    if not isinstance(content, dict) or "amr" not in content:
        raise UserError(f"{where}{path} was not written by amr")


def unimodal_accuracy(path: Path, modality: str, num_classes: int, where: str = "") -> float:
    """Best validation accuracy, in (0, 1], of the run that wrote a checkpoint of one modality, up to that checkpoint.

    `BestCheckpoint` keeps it in every checkpoint of its run; that of `best.ckpt` is the accuracy of its weights.

    Args:
        path: A checkpoint; `~` is the home folder.
        modality: The one modality that the model must have.
        num_classes: The number of classes that it must have.
        where: What the message begins with.

    Raises:
        UserError: If it is not such a checkpoint, or holds no validation accuracy above 0.
    """
    path = path.expanduser()
    check_checkpoint(path, where)
    content = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    facts = content["amr"]
    if facts["modalities"] != [modality]:
        theirs = ", ".join(map(repr, facts["modalities"]))
        raise UserError(f"{where}{path} is a model of {theirs}; needed is one of {modality!r} alone")
    if facts["num_classes"] != num_classes:
        raise UserError(f"{where}{path} has {facts['num_classes']} classes; needed are the data's {num_classes}")
    scores = [
        state["best_model_score"]
        for state in content.get("callbacks", {}).values()
        if isinstance(state, Mapping) and state.get("monitor") == "val/acc"
    ]
    accuracy = 0.0 if not scores or scores[0] is None else float(scores[0])
    if not accuracy > 0:
        raise UserError(
            f"{where}{path} holds no validation accuracy above 0; needed is a checkpoint of a run that validated, with "
            "best.monitor=val/acc"
        )
    return accuracy


def check_same_architecture(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raises `UserError`, naming the first difference, unless both state dicts have the same keys and shapes."""

    def some(keys: Iterable[str]) -> str:
        keys = sorted(keys)
        return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")

    if missing := own.keys() - saved.keys():
        raise UserError(f"checkpoint: of another architecture, it lacks {some(missing)}")
    if unknown := saved.keys() - own.keys():
        raise UserError(f"checkpoint: of another architecture, it has {some(unknown)}, which this model lacks")
    for key, value in own.items():
        if value.shape != saved[key].shape:
            raise UserError(
                f"checkpoint: of another architecture, {key} has shape {tuple(saved[key].shape)}, "
                f"this model's has {tuple(value.shape)}"
            )
