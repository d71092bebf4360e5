"""Callbacks: they measure, save and stop, and never change what is trained."""

from amr.callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from amr.callbacks.content import WandbContent
from amr.callbacks.dominance import Dominance
from amr.callbacks.guard import Guard
from amr.callbacks.lines import Bar, EpochLines
from amr.callbacks.multiviz import MultiVizCallback
from amr.callbacks.predictions import ClipOutcomes, PredictionWriter
from amr.callbacks.robustness import Robustness
from amr.callbacks.steps import StepLog
from amr.callbacks.wandb import WandbSetup

__all__ = [
    "Bar",
    "BestCheckpoint",
    "ClipOutcomes",
    "Dominance",
    "EpochLines",
    "Guard",
    "LastCheckpoint",
    "MultiVizCallback",
    "PredictionWriter",
    "Robustness",
    "StepLog",
    "WandbContent",
    "WandbSetup",
]
