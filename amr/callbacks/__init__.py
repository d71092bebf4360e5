"""Callbacks: they measure, and never change training."""

from amr.callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from amr.callbacks.dominance import Dominance
from amr.callbacks.predictions import PredictionWriter
from amr.callbacks.wandb import WandbSetup

__all__ = ["BestCheckpoint", "Dominance", "LastCheckpoint", "PredictionWriter", "WandbSetup"]
