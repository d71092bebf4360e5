"""How good a model is and how it uses its modalities: on a split, with intervals, under corruption.

The names are loaded on first use: `statistics` and `runs`, which reports take, need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amr.evaluation.robustness import measure
    from amr.evaluation.table import Row, read_rows, write_rows
    from amr.model.encoded import Encoded, encode

__all__ = ["Encoded", "Row", "encode", "measure", "read_rows", "write_rows"]

_HOME = {"Encoded": "amr.model.encoded", "encode": "amr.model.encoded", "measure": "amr.evaluation.robustness"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME.get(name, "amr.evaluation.table")), name)
