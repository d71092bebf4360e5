"""Silences messages of Lightning on which no user can act."""

import logging
import warnings

_WARNINGS = (  # warnings that no user can act on
    "LightningCLI's args parameter is intended",
    ".*LeafSpec.* is deprecated",  # within Lightning
    "The number of training batches .* is smaller than the logging interval",  # epoch metrics do not depend on it
    "Checkpoint directory .* exists and is not empty",  # AmrCLI refuses what would overwrite
    ".*callbacks used to create the checkpoint need to be provided",  # WandbSetup, where W&B is off
    "The dirpath has changed from None",  # BestCheckpoint, of a run that goes on and has no best.ckpt yet
)
_LINES = (  # parts of Lightning's lines that say nothing, or what a line of ours says
    "litlogger",
    "Detected KeyboardInterrupt",
    "TPU available",
    "`Trainer.fit` stopped: `max_epochs=",
)


def leave_out_noise() -> None:
    """Turns these warnings and lines off: the warnings until `warnings.catch_warnings` ends, the lines for good."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_worth_reading)


def _worth_reading(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _LINES)
