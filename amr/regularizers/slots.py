"""The built-in methods by the name of their option of `FusionClassifier`: a new method adds one line to `Slots`."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar, get_args, get_type_hints

from amr.regularizers.amr import AMR
from amr.regularizers.base import Regularizer
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
from amr.utils.errors import UserError

Init = TypeVar("Init", bound=Callable[..., None])


class Slots(TypedDict, total=False):
    """One option per method; None and an option that is not given leave the method out.

    The order is that of the signature, and of methods with equal `Regularizer.order`. Help for an option is the first
    sentence of its class.
    """

    dropout: Dropout | None
    modality_dropout: ModalityDropout | None
    umt: UMT | None
    ogm: OGM | None
    ogm_ge: OGMGE | None
    gradient_blending: GradientBlending | None
    gge: GGE | None
    pmr: PMR | None
    agm: AGM | None
    mmpareto: MMPareto | None
    mmcosine: MMCosine | None
    multi_loss: MultiLoss | None
    dgl: DGL | None
    tcmax: TCMax | None
    mcr: MCR | None
    mla: MLA | None
    g2d: G2D | None
    info_reg: InfoReg | None
    data_remixing: DataRemixing | None
    smv: SMV | None
    relearning: Relearning | None
    opm: OPM | None
    arl: ARL | None
    pdmp: PDMP | None
    cml: CML | None
    mbsd: MBSD | None
    amco: AMCo | None
    aug: AUG | None
    reconboost: ReconBoost | None
    greedy: Greedy | None
    cggm: CGGM | None
    lfm: LFM | None
    synib: SynIB | None
    midas: MIDAS | None
    amr: AMR | None


@functools.cache
def method_slots() -> dict[str, type[Regularizer]]:
    """The class of each slot, in the order of `Slots`."""
    return {name: get_args(hint)[0] for name, hint in get_type_hints(Slots).items()}


def methods_of(slots: Mapping[str, Any]) -> dict[str, Regularizer]:
    """The methods that are given, by name and in the order of `Slots`.

    Raises:
        TypeError: If a slot is unknown, as for any other function.
        UserError: If a value is not a method.
    """
    for name, value in slots.items():
        if name not in method_slots():
            raise TypeError(f"FusionClassifier got an unexpected keyword argument {name!r}")
        if value is not None and not isinstance(value, Regularizer):
            raise UserError(f"model.{name}: must be of {method_slots()[name].__name__} or null")
    return {name: slots[name] for name in method_slots() if slots.get(name) is not None}


def with_slots(init: Init) -> Init:
    """Puts the slots into the signature and the help of an `__init__` that takes them as `**slots`, before `extra`."""
    signature, hints = inspect.signature(init), get_type_hints(Slots)
    given = [p.replace(kind=p.KEYWORD_ONLY) if p.name == "extra" else p for p in signature.parameters.values()]
    options = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[key]) for key in hints
    ]
    *others, extra, _ = given
    init.__signature__ = signature.replace(parameters=[*others, *options, extra])  # type: ignore[attr-defined]
    init.__annotations__ = {p.name: p.annotation for p in [*others[1:], *options, extra]} | {"return": None}
    texts = [
        f"    {key}: {inspect.getdoc(kind)}".split("\n\n")[0].replace("\n", " ") for key, kind in method_slots().items()
    ]
    init.__doc__ = "\n".join(["Takes the options.", "", "Args:", *texts])
    return init
