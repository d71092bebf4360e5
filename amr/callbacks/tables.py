"""Tables in W&B."""

from typing import Any

from pytorch_lightning.loggers import WandbLogger

from amr.utils.streams import note


def log_table(
    logger: WandbLogger, name: str, columns: list[str], rows: list[list[Any]], step: int | None = None
) -> None:
    """Logs a table. Where W&B fails, one line says so: a run whose training has ended well keeps its results.

    Args:
        logger: Logger of the run.
        name: Key of the table.
        columns: Names.
        rows: A list per row.
        step: Training's step; None for W&B's own.
    """
    import wandb

    wandb.Table.MAX_ROWS = max(wandb.Table.MAX_ROWS, len(rows))  # it would cut 300 classes off
    try:
        logger.log_table(name, columns=columns, data=rows, step=step)
    except (OSError, wandb.Error) as error:
        note(f"amr: W&B's table {name} was not logged: {' '.join(str(error).split())}")
