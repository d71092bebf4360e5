"""Synergistic faithfulness of the maps that an analysis has made, as rows of trust.parquet."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amr.multiviz.analysis.analysis import Analysis
from amr.multiviz.analysis.sizes import SYNERGIES
from amr.multiviz.base import Unit
from amr.multiviz.trust import Synergy, synergies
from amr.multiviz.unimodal import Importance
from amr.utils.arrays import Arrays, Row
from amr.utils.readers import read_arrays

ORDERS, STEPS = 4, 8
SILENT = 1e-5  # what is below this part of the score's size is taken for rounding

COLUMNS = (
    *("synergy", "synergy_low", "synergy_high", "synergy_top", "synergy_random", "synergy_whole", "synergy_clips"),
    *("synergy_fractions", "synergy_curve", "synergy_random_curve"),
)

Work = dict[Path, Callable[[], list[Row]]]


def work(analysis: Analysis) -> Work:
    """Remaining work, by the file of its rows; methods whose maps have the same atoms share the random sets."""
    few = analysis.chosen[:SYNERGIES]
    archives = [read_arrays(analysis.archive(position)) for position in few]
    groups: dict[tuple[str, tuple[str, ...]], dict[tuple[str, str], dict[str, Tensor]]] = defaultdict(dict)
    for stage, method, maps in _maps(analysis, archives):
        kind = "fine" if all(maps[m].shape[1] == len(analysis.fine[m]) for m in maps) else "coarse"
        groups[kind, tuple(maps)][stage, method] = maps
    found: Work = {
        _part(analysis, kind, *names): partial(_of_class, analysis, few, kind, methods)
        for (kind, names), methods in groups.items()
    }
    if len(analysis.model.modalities) > 1 and any(len(archive["units"]) for archive in archives):
        found[_part(analysis, "unit")] = partial(_of_units, analysis, few, archives)
    return found


def merged(rows: list[Row], found: list[Row]) -> list[Row]:
    """Rows of trust.parquet with the synergies in the row of the same map, or in rows of their own."""
    keys = ("stage", "method", "first", "second")
    more = {tuple(row[key] for key in keys): row for row in found}
    joined = [row | more.pop(tuple(row.get(key) for key in keys), {}) for row in rows]
    alone: Row = {"score": None, "low": None, "high": None, "score_name": None, "warnings": []}
    return joined + [{**alone, **row, "clips": row["synergy_clips"]} for row in more.values()]


def _part(analysis: Analysis, *names: str) -> Path:
    return analysis.out / "parts" / f"trust-synergy-{'-'.join(names)}.parquet"


def _maps(analysis: Analysis, archives: list[Arrays]) -> list[tuple[str, str, dict[str, Tensor]]]:
    """Stage, method and each modality's maps (clips, A) of the predicted class, of all that two modalities have."""

    def kept(name: str) -> Tensor:
        return torch.stack([torch.from_numpy(archive[name][0]) for archive in archives]).double()

    modalities, found = analysis.model.modalities, []
    methods = dict.fromkeys(name.rpartition("/")[2] for name in archives[0] if name.startswith("U/"))
    for method in methods:
        maps = {m: kept(f"U/{m}/{method}") for m in modalities if f"U/{m}/{method}" in archives[0]}
        found.append(("U", method, maps))
    if all(f"D/{m}/dime_unimodal" in archives[0] for m in modalities):
        parts = {m: kept(f"D/{m}/dime_unimodal") + kept(f"D/{m}/dime_multimodal") for m in modalities}
        found.append(("D", "dime", parts))
    for first, second in combinations(modalities, 2):
        for name in [name for name in archives[0] if name.startswith(f"C/{first}/{second}/")]:
            if any(f"C_reason/{name[2:]}" in archive for archive in archives):  # a map of zeros orders nothing
                continue
            pairs = kept(name)  # an atom counts by all that it brings together with the other modality
            found.append(("C", name.rpartition("/")[2], {first: pairs.sum(2), second: pairs.sum(1)}))
    return [(stage, method, maps) for stage, method, maps in found if len(maps) > 1]


def _of_class(
    analysis: Analysis, few: list[int], kind: str, methods: dict[tuple[str, str], dict[str, Tensor]]
) -> list[Row]:
    """Synergy of maps that explain the predicted class, one row per method and pair."""
    atoms = analysis.atoms(few, coarse=kind != "fine")
    inputs, target = analysis.inputs(few), analysis.predicted[few].to(analysis.device)
    maps = [{m: Importance(values, None, atoms[m], method) for m, values in one.items()}
            for (_, method), one in methods.items()]  # fmt: skip
    options: Any = {"orders": ORDERS, "steps": STEPS, "seed": analysis.seed}
    curves = synergies(analysis.model, inputs, target, maps, analysis.baselines(inputs), **options)
    size = float(analysis.logits[few].abs().max())
    rows = []
    for (stage, method), one in zip(methods, curves, strict=True):
        for (first, second), curve in one.items():
            about = {"stage": stage, "method": method, "modality": None, "first": first, "second": second}
            rows.append({**about, "atoms": kind, **_row(curve, size)})
    return rows


def _of_units(analysis: Analysis, few: list[int], archives: list[Arrays]) -> list[Row]:
    """Synergy of maps that explain the unit that counts most, for each clip."""
    found: dict[tuple[str, str], list[Synergy]] = defaultdict(list)
    size = 0.0
    for position, archive in zip(few, archives, strict=True):
        if not len(archive["units"]):
            continue
        size = max(size, float(np.abs(archive["activations"]).max()))
        maps = {
            m: Importance(torch.from_numpy(archive[f"R/{m}/occlusion"][:1]), None, atoms, "occlusion")
            for m, atoms in analysis.atoms([position]).items()
        }
        unit, inputs = Unit(int(archive["units"][0])), analysis.inputs([position])
        options: Any = {"orders": ORDERS, "steps": STEPS, "seed": analysis.seed}
        for pair, curve in synergies(analysis.model, inputs, unit, [maps], analysis.baselines(inputs), **options)[
            0
        ].items():
            found[pair].append(curve)
    rows = []
    for (first, second), curves in found.items():
        curve = Synergy(
            curves[0].fraction,
            torch.cat([one.curve for one in curves]),
            torch.cat([one.random for one in curves], dim=1),
        )
        about = {"stage": "R", "method": "occlusion", "modality": None, "first": first, "second": second}
        rows.append({**about, "atoms": "fine", **_row(curve, size)})
    return rows


def _row(found: Synergy, size: float) -> Row:
    """Means over clips, in the score's unit; what is rounding beside scores of this size is 0."""
    curve, random = (torch.where(x.abs() <= SILENT * size, 0.0, x).cpu() for x in (found.curve, found.random))
    found = Synergy(found.fraction.cpu(), curve, random)
    interval, several = found.interval(), len(curve) > 1
    values = (
        *(interval.value, *((interval.low, interval.high) if several else (None, None))),
        *(float(found.area.mean()), float(found.random_area.mean()), float(found.whole.mean()), len(curve)),
        *(found.fraction.tolist(), curve.mean(0).tolist(), random.mean((0, 1)).tolist()),
    )
    return dict(zip(COLUMNS, values, strict=True))
