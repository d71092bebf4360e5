"""Requirements of a method on the model, the data and the run, found by building tiny models that it may refuse."""

import inspect
from collections.abc import Mapping
from functools import partial
from itertools import combinations
from typing import Any

from amr import fusion
from amr.cli.keys import costs
from amr.encoders import MLPEncoder
from amr.regularizers import Composite, Regularizer
from amr.utils.errors import UserError

HIDDEN = "Concat with a hidden layer"
HEADS: dict[str, Any] = {
    **{name: getattr(fusion, name) for name in fusion.__all__ if name not in ("Ensemble", "Fusion", "FusionFactory")},
    HIDDEN: partial(fusion.Concat, hidden=4),
}


def of(kind: type[Regularizer]) -> list[str]:
    """Requirements of a method besides its number of modalities, each in a few words."""
    parameters = inspect.signature(kind).parameters
    needs = [_fusion(kind)]
    flat: dict[str, Any] = {name: MLPEncoder(4, (), 4) for name in ("m0", "m1")}
    if not _takes(kind, flat):
        needs.append("convolutions, or `parameters: all`")
    if "Shared" not in needs[0] and not _takes(kind, {"m0": costs.Counted("m0"), "m1": costs.Counted("m1", 6)}):
        or_else = ", or `contrast_weight: 0`" if "contrast_weight" in parameters else ""
        needs.append(f"encodings of one size{or_else}")
    if "teachers" in parameters:
        needs.append("a unimodal checkpoint per modality")
    needs += [f"`{key}`" for key, p in parameters.items() if p.default is p.empty and key != "teachers"]
    needs += ["SGD"] if kind.scales_gradients else []
    needs += ["one batch per step"] if kind.overrides("turns") else []
    needs += ["validation clips"] if _needs_validation(kind) else []
    return [need for need in needs if need]


def excluded(kinds: Mapping[str, type[Regularizer]]) -> dict[str, list[str]]:
    """For each method, those that refuse to be combined with it, in the order of the methods."""
    made = {name: costs.made(kind, ["m0", "m1"]) for name, kind in kinds.items()}
    found: dict[str, list[str]] = {name: [] for name in kinds}
    for first, second in combinations(kinds, 2):
        try:
            Composite([made[first], made[second]])
        except UserError:
            found[first].append(second)
            found[second].append(first)
    return found


def _fusion(kind: type[Regularizer]) -> str:
    """The fusions that it takes, where that is not all."""
    taken = [name for name, head in HEADS.items() if costs.fits(kind, head)]
    if len(taken) == len(HEADS):
        return ""
    plain = [name for name in taken if name != HIDDEN]
    *others, last = plain
    names = f"{', '.join(others)} or {last}" if others else last
    return f"fusion {names}{'' if HIDDEN in taken or 'Concat' not in plain else ', no hidden layer'}"


def _takes(kind: type[Regularizer], encoders: Mapping[str, Any]) -> bool:
    """Whether it takes these encoders with any fusion that it takes."""
    return any(costs.fits(kind, head, encoders) for head in costs.FUSIONS if costs.fits(kind, head))


def _needs_validation(kind: type[Regularizer]) -> bool:
    """Whether it refuses a run without validation clips; only what acts between epochs can."""
    if not kind.overrides("on_epoch_start") and not kind.overrides("on_epoch_end"):
        return False
    try:
        costs.rows(kind, 2, 4, val=False)
    except UserError:
        return True
    return False
