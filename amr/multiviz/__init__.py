"""The four stages of MultiViz (Liang et al. 2023), as pure functions on tensors and an `Explained` model.

Unimodal importance (U), cross-modal interactions (C), representations (R) and prediction (P). `explained` makes an
`Explained` of any `nn.Module`. Most of it re-runs the head alone, on cached encodings.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amr.model.protocol import Explained as Explained
    from amr.model.wrapped import ExplainedModule as ExplainedModule
    from amr.model.wrapped import explained as explained

_PLACES = {"Explained": "protocol", "ExplainedModule": "wrapped", "explained": "wrapped"}
__all__ = ["Explained", "ExplainedModule", "explained"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: the command's help needs no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"amr.model.{_PLACES[name]}"), name)
