"""Data modules: a folder of clips in, batches keyed by modality out.

The names are loaded on first use, so that the worker processes of `prepare`, which import
`amr.datamodules.store.media`, do not import torch with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amr.datamodules.base import ClipDataModule
    from amr.datamodules.clips import Clips
    from amr.datamodules.crema_d import CremaD
    from amr.datamodules.listed import ListedClips
    from amr.datamodules.synthetic.clips import Synthetic
    from amr.datamodules.tensors.module import Tensors
    from amr.datamodules.vggsound import VGGSound

_HOME = {
    "ClipDataModule": "base",
    "Clips": "clips",
    "CremaD": "crema_d",
    "ListedClips": "listed",
    "Synthetic": "synthetic.clips",
    "Tensors": "tensors.module",
    "VGGSound": "vggsound",
}

__all__ = ["ClipDataModule", "Clips", "CremaD", "ListedClips", "Synthetic", "Tensors", "VGGSound"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
