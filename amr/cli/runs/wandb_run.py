"""The W&B run of a run: its id, its folder for files, its errors and its end."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from amr.utils.errors import Stopped, UserError
from amr.utils.readers import read_object


def wandb_id(file: Path) -> str:
    """The W&B run that a run's record names."""
    known = read_object(file).get("wandb_id")
    if not isinstance(known, str) or not re.fullmatch(r"[\w-]{1,64}", known):
        raise UserError(f"{file}: wandb_id={str(known)[:60]!r}: must be letters, digits, - and _")
    return known


def names_before(file: Path) -> dict[str, str]:
    """Method and title in a run's record; an ensemble cannot be recognized by its model alone."""
    known = read_object(file)
    return {key: known[key] for key in ("method", "title") if isinstance(known.get(key), str)}


def wandb_error() -> type[Exception] | tuple[()]:
    """Class of W&B's errors; an empty tuple if W&B is not in use."""
    if "wandb" not in sys.modules:
        return ()
    import wandb

    return wandb.Error


@contextmanager
def wandb_stages_in(folder: Path) -> Iterator[None]:
    """Makes W&B keep the files of its tables in the run's folder instead of HOME, which may be read-only.

    Raises:
        UserError: The place that WANDB_DATA_DIR names, if it does, cannot be written.
    """
    given = os.environ.get("WANDB_DATA_DIR")
    place = Path(given or folder) / "artifacts" / "staging"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=place):
            pass
    except OSError as error:
        where = f"WANDB_DATA_DIR={given}" if given else str(folder)
        raise UserError(f"{where}: {error.strerror}; must be a folder to write to, or --wandb disabled") from error
    os.environ["WANDB_DATA_DIR"] = given or str(folder.resolve())
    try:
        yield
    finally:
        if given is None:
            del os.environ["WANDB_DATA_DIR"]


def finish_wandb() -> None:
    """Ends the W&B run, which otherwise would continue as the process's next run, and says how to upload it."""
    if "wandb" not in sys.modules:
        return
    import wandb

    if wandb.run is None:
        return
    if isinstance(sys.exception(), Stopped):
        wandb.run.mark_preempting()
    offline, folder = wandb.run.offline, Path(wandb.run.dir).parent
    wandb.finish(exit_code=int(sys.exc_info()[0] is not None))
    if offline:
        print(f"W&B, offline; to upload: wandb sync {folder}")
