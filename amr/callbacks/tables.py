"""Logs tables to W&B; a failure there costs one line and does not end the run."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger

from amr.utils.streams import note


def wandb_loggers(trainer: pl.Trainer) -> list[WandbLogger]:
    """The trainer's W&B loggers, the same on every rank."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def guarded(name: str, log: Callable[[], Any]) -> None:
    """Logs. Where W&B fails, one line says so: a run whose training has ended well keeps its results.

    Args:
        name: Name of the logged content, for that line.
        log: Logs it.
    """
    import wandb

    try:
        log()
    except (OSError, wandb.Error) as error:
        note(f"amr: W&B's {name} was not logged: {' '.join(str(error).split())}")


def log_table(
    logger: WandbLogger, name: str, columns: list[str], rows: list[list[Any]], step: int | None = None
) -> None:
    """Logs a table, guarded.

    Args:
        logger: Logger of the run.
        name: Key of the table.
        columns: Names.
        rows: A list per row.
        step: Training's step; None for W&B's own.
    """
    import wandb

    wandb.Table.MAX_ROWS = max(wandb.Table.MAX_ROWS, len(rows))  # it would cut 300 classes off
    guarded(f"table {name}", lambda: logger.log_table(name, columns=columns, data=rows, step=step))
