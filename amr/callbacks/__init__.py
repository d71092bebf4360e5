"""Callbacks: they measure, and never change training."""

from amr.callbacks.dominance import Dominance
from amr.callbacks.predictions import PredictionWriter
from amr.callbacks.wandb import WandbSetup

__all__ = ["Dominance", "PredictionWriter", "WandbSetup"]
