"""A run's folder or a checkpoint, wherever one is meant."""

from pathlib import Path

from amr.utils.errors import UserError
from amr.utils.names.configs import did_you_mean

FOLDER = "checkpoints"
NAMES = ("best.ckpt", "last.ckpt")


def checkpoint_of(given: str | Path, where: str = "") -> Path:
    """The checkpoint that a user means.

    Args:
        given: A checkpoint, or a run's folder, whose best.ckpt is meant (last.ckpt where validation chose none). `~` is
            the home folder.
        where: The key that it was given to, which a message begins with; empty for none.

    Raises:
        UserError: Nothing is there, or no checkpoint lies in the folder.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path
    what = f"{where}={given}" if where else str(given)
    if path.is_dir():
        if (checkpoint := in_folder(path)) is None:
            raise UserError(f"{what}: no checkpoint in this folder; must have {path / FOLDER / NAMES[0]}")
        return checkpoint
    parent = path.parent
    near = [str(parent / other.name) for other in parent.iterdir()] if parent.is_dir() else []
    raise UserError(f"{what} does not exist{did_you_mean(str(path), near)}; must be a checkpoint or a run's folder")


def in_folder(folder: Path) -> Path | None:
    """The checkpoint that a run's folder stands for; None if it holds none."""
    places = (place / name for place in (folder / FOLDER, folder) for name in NAMES)
    return next((path for path in places if path.is_file()), None)
