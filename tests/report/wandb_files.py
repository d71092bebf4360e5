"""W&B's offline records, read back."""

from pathlib import Path
from typing import Any

import wandb

from tests.cli.records import wandb_records


def flushed_records(run: Path) -> list[Any]:
    """The run's records; W&B's own process may still be writing them when a run has ended."""
    wandb.teardown()
    return list(wandb_records(run))
