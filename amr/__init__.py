"""Multimodal classification that measures and controls how much each modality counts.

The names below are loaded on first use: `import amr` itself takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from amr.utils.names import moved
from amr.utils.names.version import __version__ as __version__

if TYPE_CHECKING:
    from amr.attribution import attribution_shares as attribution_shares
    from amr.attribution import ratio_penalty as ratio_penalty
    from amr.attribution import shapley_shares as shapley_shares
    from amr.callbacks import Dominance as Dominance
    from amr.classifier import FusionClassifier as FusionClassifier
    from amr.cli.benchmark.command import benchmark as benchmark
    from amr.cli.benchmark.ensemble import ensemble as ensemble
    from amr.cli.demo import demo as demo
    from amr.cli.methods import methods as methods
    from amr.cli.runs.commands import fit as fit
    from amr.cli.runs.commands import predict as predict
    from amr.cli.runs.commands import prepare as prepare
    from amr.cli.runs.commands import test as test
    from amr.cli.runs.commands import validate as validate
    from amr.cli.runs.commands import verify as verify
    from amr.encoders import Encoder as Encoder
    from amr.encoders import as_encoder as as_encoder
    from amr.evaluation import measure as measure
    from amr.exporting import export as export
    from amr.fusion import Fusion as Fusion
    from amr.load import load_model as load_model
    from amr.load import save_model as save_model
    from amr.model import FusionModel as FusionModel
    from amr.multiviz.analysis.whole import analyze as analyze
    from amr.regularizers import AGM as AGM
    from amr.regularizers import AMR as AMR
    from amr.regularizers import ARL as ARL
    from amr.regularizers import AUG as AUG
    from amr.regularizers import CGGM as CGGM
    from amr.regularizers import CML as CML
    from amr.regularizers import DGL as DGL
    from amr.regularizers import G2D as G2D
    from amr.regularizers import GGE as GGE
    from amr.regularizers import LFM as LFM
    from amr.regularizers import MBSD as MBSD
    from amr.regularizers import MCR as MCR
    from amr.regularizers import MIDAS as MIDAS
    from amr.regularizers import MLA as MLA
    from amr.regularizers import OGM as OGM
    from amr.regularizers import OGMGE as OGMGE
    from amr.regularizers import OPM as OPM
    from amr.regularizers import PDMP as PDMP
    from amr.regularizers import PMR as PMR
    from amr.regularizers import SMV as SMV
    from amr.regularizers import UMT as UMT
    from amr.regularizers import AMCo as AMCo
    from amr.regularizers import DataRemixing as DataRemixing
    from amr.regularizers import Dropout as Dropout
    from amr.regularizers import GradientBlending as GradientBlending
    from amr.regularizers import Greedy as Greedy
    from amr.regularizers import InfoReg as InfoReg
    from amr.regularizers import MMCosine as MMCosine
    from amr.regularizers import MMPareto as MMPareto
    from amr.regularizers import ModalityDropout as ModalityDropout
    from amr.regularizers import MultiLoss as MultiLoss
    from amr.regularizers import ReconBoost as ReconBoost
    from amr.regularizers import Regularizer as Regularizer
    from amr.regularizers import Relearning as Relearning
    from amr.regularizers import SynIB as SynIB
    from amr.regularizers import TCMax as TCMax
    from amr.report import compare as compare
    from amr.report.dashboard import dashboard as dashboard
    from amr.report.site import write_site as write_site
    from amr.report.site.agreement import agreement as agreement
    from amr.utils.optimizers.schedules import Cosine as Cosine
    from amr.utils.optimizers.schedules import Schedule as Schedule
    from amr.utils.optimizers.schedules import Steps as Steps
    from amr.utils.streams import progress as progress

_METHODS = (
    "ReconBoost",
    "MBSD",
    "Greedy",
    "CML",
    "AUG",
    "AMCo",
    "MIDAS",
    "SynIB",
    "LFM",
    "CGGM",
    "ARL",
    "OPM",
    "PDMP",
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
    "UMT",
    "Dropout",
    "GradientBlending",
    "DataRemixing",
    "InfoReg",
    "Relearning",
    "SMV",
    "MMCosine",
    "MMPareto",
    "ModalityDropout",
    "MultiLoss",
    "Regularizer",
    "TCMax",
)
_COMMANDS = ("fit", "predict", "prepare", "test", "validate", "verify")
_HOME = {
    "attribution_shares": "attribution",
    "ratio_penalty": "attribution",
    "shapley_shares": "attribution",
    "Dominance": "callbacks",
    "FusionClassifier": "classifier",
    "ensemble": "cli.benchmark.ensemble",
    "Encoder": "encoders",
    "as_encoder": "encoders",
    "measure": "evaluation",
    "export": "exporting",
    "Fusion": "fusion",
    "load_model": "load",
    "save_model": "load",
    "FusionModel": "model",
    "analyze": "multiviz.analysis.whole",
    "compare": "report",
    "write_site": "report.site",
    "agreement": "report.site.agreement",
    "benchmark": "cli.benchmark.command",
    "dashboard": "report.dashboard",
    "demo": "cli.demo",
    "methods": "cli.methods",
    **dict.fromkeys(_COMMANDS, "cli.runs.commands"),
    "progress": "utils.streams",
    **dict.fromkeys(_METHODS, "regularizers"),
    **dict.fromkeys(("Cosine", "Schedule", "Steps"), "utils.optimizers.schedules"),
}

__all__ = ["__version__", *_HOME]

moved.install()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'amr' has no attribute {name!r}")
    return getattr(import_module(f"amr.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
