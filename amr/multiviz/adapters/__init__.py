"""Models of Hugging Face's transformers that can be explained: CLIP, ViLT, LXMERT, and any other by `early_fusion`.

The extra `amr-fusion[transformers]`. The user brings the model, `from_pretrained` or of a configuration, and its
processor.
"""

from typing import TYPE_CHECKING, Any

from amr.utils.errors import UserError

if TYPE_CHECKING:
    from amr.multiviz.adapters.clip import CLIP as CLIP
    from amr.multiviz.adapters.early import early_fusion as early_fusion
    from amr.multiviz.adapters.lxmert import LXMERT as LXMERT
    from amr.multiviz.adapters.vilt import ViLT as ViLT

_PLACES = {"CLIP": "clip", "LXMERT": "lxmert", "ViLT": "vilt", "early_fusion": "early"}
__all__ = ["CLIP", "LXMERT", "ViLT", "early_fusion"]


def __getattr__(name: str) -> Any:
    """Imports an adapter when it is first asked for.

    Raises:
        UserError: transformers is not installed.
    """
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        import_module("transformers")
    except ImportError as error:
        raise UserError(
            f"amr.multiviz.adapters: transformers cannot be imported ({error}); pip install 'amr-fusion[transformers]'"
        ) from error
    return getattr(import_module(f"amr.multiviz.adapters.{_PLACES[name]}"), name)
