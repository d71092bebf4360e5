"""Checkpoint files: written whole or not at all, and refused by name where they are not ours."""

import glob
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from amr.errors import UserError
from amr.files import replacing


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
        for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):  # by a killed process; they are large
            left.unlink(missing_ok=True)
        with replacing(target) as file:
            torch.save(checkpoint, file)


def check_checkpoint(path: Path) -> None:
    """Raises `UserError` unless the file is a whole checkpoint of amr's; nothing in it is executed."""
    if not path.is_file():
        raise UserError(f"--ckpt_path: {path} does not exist")
    try:
        content = torch.load(path, weights_only=True, map_location="meta", mmap=True)
    except Exception as error:
        raise UserError(f"--ckpt_path: {path} is not a checkpoint, or not a whole one") from error
    if not isinstance(content, dict) or "amr" not in content:
        raise UserError(f"--ckpt_path: {path} was not written by amr")


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
