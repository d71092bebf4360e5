"""Heads: fusions of the encodings, each with its classifier."""

from amr.fusion.attention import Attention
from amr.fusion.base import Fusion, FusionFactory
from amr.fusion.concat import Concat
from amr.fusion.ensemble import Ensemble
from amr.fusion.film import FiLM
from amr.fusion.gated import Gated
from amr.fusion.late import Late
from amr.fusion.low_rank import LowRank
from amr.fusion.mult import MulT
from amr.fusion.shared import Shared
from amr.fusion.sum import Sum

__all__ = [
    "Attention",
    "Concat",
    "Ensemble",
    "FiLM",
    "Fusion",
    "FusionFactory",
    "Gated",
    "Late",
    "LowRank",
    "MulT",
    "Shared",
    "Sum",
]
