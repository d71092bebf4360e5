"""Training methods: each is one file, a pure function and a thin class of hooks."""

from amr.datamodules.selected import Copies
from amr.model.passes import Scores
from amr.regularizers.agm import AGM
from amr.regularizers.amr import AMR
from amr.regularizers.base import EpochState, Regularizer, Step
from amr.regularizers.composite import Composite
from amr.regularizers.dropout import Dropout
from amr.regularizers.epochs.data_remixing import DataRemixing
from amr.regularizers.epochs.relearning import Relearning
from amr.regularizers.epochs.smv import SMV
from amr.regularizers.gge import GGE
from amr.regularizers.gradient_blending import GradientBlending
from amr.regularizers.gradients.g2d import G2D
from amr.regularizers.gradients.info_reg import InfoReg
from amr.regularizers.gradients.mla import MLA
from amr.regularizers.losses.dgl import DGL
from amr.regularizers.losses.mcr import MCR
from amr.regularizers.losses.multi_loss import MultiLoss
from amr.regularizers.losses.tcmax import TCMax
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
    "DGL",
    "G2D",
    "GGE",
    "MCR",
    "MLA",
    "OGM",
    "OGMGE",
    "PMR",
    "SMV",
    "UMT",
    "Composite",
    "Copies",
    "DataRemixing",
    "Dropout",
    "EpochMeans",
    "EpochState",
    "GradientBlending",
    "InfoReg",
    "MMCosine",
    "MMPareto",
    "ModalityDropout",
    "MultiLoss",
    "Regularizer",
    "Relearning",
    "Scores",
    "Step",
    "TCMax",
    "UnimodalHeads",
    "Window",
    "recombined",
]
