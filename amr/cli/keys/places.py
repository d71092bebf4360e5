"""A run's folder or a checkpoint, wherever a command means one."""

from pathlib import Path

from amr.utils.errors import UserError
from amr.utils.names.configs import did_you_mean

BEST = Path("checkpoints/best.ckpt")


def checkpoint_of(given: str | Path, where: str) -> Path:
    """The checkpoint that a user means.

    Args:
        given: A checkpoint, or a run's folder, whose best.ckpt is meant (last.ckpt where validation chose none).
        where: The option that it was given to; what a message begins with.

    Raises:
        UserError: Nothing is there, or no checkpoint lies in the folder.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for folder in (path / BEST.parent, path):
            for name in (BEST.name, "last.ckpt"):
                if (folder / name).is_file():
                    return folder / name
        raise UserError(f"{where}={given}: no checkpoint in this folder; must have {path / BEST}")
    parent = path.parent
    near = [str(parent / other.name) for other in parent.iterdir()] if parent.is_dir() else []
    raise UserError(
        f"{where}={given}: does not exist{did_you_mean(str(path), near)}; must be a checkpoint or a run's folder"
    )
