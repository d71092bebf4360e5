"""Training methods: each is one file, a pure function and a thin class of hooks."""

from amr.regularizers.agm import AGM
from amr.regularizers.amr import AMR
from amr.regularizers.base import EpochState, Regularizer, Step
from amr.regularizers.composite import Composite
from amr.regularizers.dropout import Dropout
from amr.regularizers.gge import GGE
from amr.regularizers.gradient_blending import GradientBlending
from amr.regularizers.mmcosine import MMCosine
from amr.regularizers.mmpareto import MMPareto
from amr.regularizers.modality_dropout import ModalityDropout
from amr.regularizers.ogm import OGM, OGMGE
from amr.regularizers.pmr import PMR
from amr.regularizers.shared import EpochMeans, UnimodalHeads, Window, recombined
from amr.regularizers.umt import UMT

__all__ = [
    "AGM",
    "AMR",
    "GGE",
    "OGM",
    "OGMGE",
    "PMR",
    "UMT",
    "Composite",
    "Dropout",
    "EpochMeans",
    "EpochState",
    "GradientBlending",
    "MMCosine",
    "MMPareto",
    "ModalityDropout",
    "Regularizer",
    "Step",
    "UnimodalHeads",
    "Window",
    "recombined",
]
