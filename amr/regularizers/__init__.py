"""Training methods: each is one file, a pure function and a thin class of hooks."""

from amr.datamodules.selected import Copies
from amr.model.passes import Scores
from amr.regularizers.amr import AMR
from amr.regularizers.base import EpochState, Regularizer, Step
from amr.regularizers.composite import Composite
from amr.regularizers.epochs.data_remixing import DataRemixing
from amr.regularizers.epochs.relearning import Relearning
from amr.regularizers.epochs.smv import SMV
from amr.regularizers.features.amco import AMCo
from amr.regularizers.features.dropout import Dropout
from amr.regularizers.features.greedy import Greedy
from amr.regularizers.features.mmcosine import MMCosine
from amr.regularizers.features.modality_dropout import ModalityDropout
from amr.regularizers.features.opm import OPM
from amr.regularizers.gradients.agm import AGM
from amr.regularizers.gradients.arl import ARL
from amr.regularizers.gradients.aug import AUG
from amr.regularizers.gradients.cggm import CGGM
from amr.regularizers.gradients.g2d import G2D
from amr.regularizers.gradients.info_reg import InfoReg
from amr.regularizers.gradients.mla import MLA
from amr.regularizers.gradients.mmpareto import MMPareto
from amr.regularizers.gradients.ogm import OGM, OGMGE
from amr.regularizers.gradients.pdmp import PDMP
from amr.regularizers.gradients.reconboost import ReconBoost
from amr.regularizers.losses.cml import CML
from amr.regularizers.losses.dgl import DGL
from amr.regularizers.losses.gge import GGE
from amr.regularizers.losses.gradient_blending import GradientBlending
from amr.regularizers.losses.lfm import LFM
from amr.regularizers.losses.mbsd import MBSD
from amr.regularizers.losses.mcr import MCR
from amr.regularizers.losses.midas import MIDAS
from amr.regularizers.losses.multi_loss import MultiLoss
from amr.regularizers.losses.pmr import PMR
from amr.regularizers.losses.synib import SynIB
from amr.regularizers.losses.tcmax import TCMax
from amr.regularizers.losses.umt import UMT
from amr.regularizers.shared import EpochMeans, UnimodalHeads, Window, recombined

__all__ = [
    "AGM",
    "AMR",
    "ARL",
    "AUG",
    "CGGM",
    "CML",
    "DGL",
    "G2D",
    "GGE",
    "LFM",
    "MBSD",
    "MCR",
    "MIDAS",
    "MLA",
    "OGM",
    "OGMGE",
    "OPM",
    "PDMP",
    "PMR",
    "SMV",
    "UMT",
    "AMCo",
    "Composite",
    "Copies",
    "DataRemixing",
    "Dropout",
    "EpochMeans",
    "EpochState",
    "GradientBlending",
    "Greedy",
    "InfoReg",
    "MMCosine",
    "MMPareto",
    "ModalityDropout",
    "MultiLoss",
    "ReconBoost",
    "Regularizer",
    "Relearning",
    "Scores",
    "Step",
    "SynIB",
    "TCMax",
    "UnimodalHeads",
    "Window",
    "recombined",
]
