"""The stages: each makes files that are not there yet, from the model, the cached encodings and earlier files."""

import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amr.evaluation.statistics import mean_interval
from amr.multiviz.analysis import maps, synergies
from amr.multiviz.analysis.analysis import Analysis
from amr.multiviz.analysis.sizes import TRUST_CLIPS
from amr.multiviz.analysis.study import selection, simulation
from amr.multiviz.base import Unit
from amr.multiviz.errors import classify_errors, error_units
from amr.multiviz.prediction import sparse_path, top_units
from amr.multiviz.representation import extreme_features
from amr.multiviz.trust import interaction_sensitivity_n, sensitivity_n
from amr.multiviz.trust import trust as trust_scores
from amr.multiviz.unimodal import Importance
from amr.utils.arrays import Row, is_whole, read_table, remove, write_arrays, write_table
from amr.utils.errors import UserError
from amr.utils.readers import read_arrays
from amr.utils.streams import note

__all__ = ["clips", "errors", "prediction", "representation", "selection", "simulation", "trust"]

EXTREMES = 10  # clips a unit and end
SHOWN = 4  # of them with maps
UNITS = 24  # units with maps of their extreme clips
SILENT = 1e-5  # changes below this part of a score's size are taken for rounding
ALIKE = 0.8  # share of clips below which the sparse classifier is said to be another than the model
FOLLOWS = "correlation of sums of the map with what happens to the score if these atoms are replaced (sensitivity-n)"
NOTHING: Row = {"score": None, "low": None, "high": None, "score_name": FOLLOWS}
AGREES = "share of clips for which the sparse classifier says what the model says"


def prediction(analysis: Analysis) -> None:
    """P: the path of sparse classifiers, fitted to training clips, and the sparsest good one."""
    if is_whole(analysis.out / "sparse.npz"):
        return
    if analysis.undefined("prediction", "no sparse classifiers"):
        return
    classes = analysis.data.num_classes
    try:
        train = analysis.train
        _, features = analysis.head(train)
        top = sparse_path(features, train.labels, lambdas=1, num_classes=classes).lambdas  # where the path begins
        lambdas = top * torch.logspace(0, -1.5, 12, dtype=top.dtype)  # beyond, all units are in use and steps are slow
        held_out = (analysis.features, analysis.clips.labels)
        path = sparse_path(features, train.labels, lambdas=lambdas, held_out=held_out, num_classes=classes, tol=1e-3)
    except UserError as error:
        analysis.note("prediction", f"no sparse classifiers: {error}")
        return
    columns = (path.lambdas, path.nonzeros, path.accuracy, path.residuals)
    names = ("lambda", "units", "accuracy", "kkt_residual")
    rows = [dict(zip(names, row, strict=True)) for row in zip(*(x.tolist() for x in columns), strict=True)]
    write_table(analysis.out / "prediction.parquet", rows)
    best = path.sparsest()
    rows = [
        {"class": label, "unit": unit, "coefficient": coefficient, "lambda": float(path.lambdas[best])}
        for label, units in zip(analysis.data.labels, top_units(path, best, features.shape[1]), strict=True)
        for unit, coefficient in units
    ]
    write_table(analysis.out / "units.parquet", rows, ("class", "unit", "coefficient", "lambda"))
    answers = path.logits(analysis.features)[best].argmax(1)
    arrays = {
        "coefficients": path.coefficients[best].numpy(),
        "intercepts": path.intercepts[best].numpy(),
        "mean": path.mean.numpy(),
        "scale": path.scale.numpy(),
        "lambda": path.lambdas[best].numpy(),
        "accuracy": path.accuracy[best].numpy(),
        "agree": (answers == analysis.predicted).numpy(),
        "clips": np.array(len(train.ids)),
    }
    write_arrays(analysis.out / "sparse.npz", arrays)  # the last: with it the stage is done


def representation(analysis: Analysis) -> None:
    """R: the clips of the split that activate each penultimate unit most and least, and maps of some."""
    table = analysis.out / "representation.parquet"
    if not is_whole(table):
        places = torch.arange(len(analysis.clips.ids))
        found = extreme_features(analysis.features, analysis.clips.ids, places, k=EXTREMES)
        rows = [
            {"unit": unit, "end": end, "rank": rank, "id": id, "value": value, "label": analysis.label_of(place)}
            for end, clips in (("most", found.most), ("least", found.least))
            for unit, ids, values, where in zip(
                found.units, clips.ids, clips.values.tolist(), clips.labels.tolist(), strict=True
            )
            for rank, (id, value, place) in enumerate(zip(ids, values, where, strict=True))
        ]
        write_table(table, rows)
    if analysis.sparse is None:
        return
    size = np.abs(analysis.sparse["coefficients"]).max(0)
    order = [unit for unit in np.argsort(-size, kind="stable").tolist() if size[unit] > 0][:UNITS]
    wanted: dict[int, list[int]] = defaultdict(list)
    for row in read_table(table):
        if row["unit"] in order and row["rank"] < SHOWN:
            wanted[analysis.place[row["id"]]].append(row["unit"])
    todo = {
        analysis.archive(position, "extremes"): partial(maps.extreme, analysis, position, list(dict.fromkeys(units)))
        for position, units in sorted(wanted.items())
    }
    analysis.each("representation", "clips", todo)


def errors(analysis: Analysis) -> None:
    """Wrong predictions of the split, sorted by what repairs them, and the units that are active on them."""
    path, labels = analysis.out / "errors.parquet", analysis.data.labels
    if is_whole(path) or analysis.undefined("errors", "no causes of errors"):
        return
    everything = list(range(len(analysis.clips.ids)))
    truth = analysis.clips.labels
    found = classify_errors(
        analysis.model, analysis.encodings(everything), truth.to(analysis.device), seed=analysis.seed
    )
    columns = ["kind", "modality", "interaction_confidence", "prediction_confidence", "references"]
    columns += [f"perception_{m}_confidence" for m in analysis.model.modalities]
    values = zip(
        found.kinds,
        found.modalities,
        found.interaction.tolist(),
        found.prediction.tolist(),
        found.references.tolist(),
        *found.perception.T.tolist(),
        strict=True,
    )
    rows = [
        {
            "id": analysis.clips.ids[position],
            "label": labels[int(truth[position])],
            "predicted": labels[int(analysis.predicted[position])],
            **dict(zip(columns, row, strict=True)),
        }
        for position, row in zip(found.clips.tolist(), values, strict=True)
    ]
    try:
        units = error_units(analysis.features, analysis.predicted != truth, seed=analysis.seed)
    except UserError as error:  # too few errors to learn from
        analysis.note("error_units", f"no units that are active on errors: {error}")
    else:
        kept = zip(units.units.tolist(), units.weights.tolist(), strict=True)
        weights = [{"unit": unit, "weight": weight, "held_out_auc": units.auc} for unit, weight in kept]
        write_table(analysis.out / "error_units.parquet", weights, ("unit", "weight", "held_out_auc"))
    write_table(path, rows, ("id", "label", "predicted", *columns))


def clips(analysis: Analysis) -> None:
    """U, C, R and P of each chosen clip."""
    if len(analysis.model.modalities) < 2:
        note("clips: one modality has nothing to interact with")
    todo = {analysis.archive(position): partial(maps.explain, analysis, position) for position in analysis.chosen}
    analysis.each("clips", "clips", todo)


def trust(analysis: Analysis) -> None:
    """How far each kind of map can be trusted on this model, from a few clips; a row is the unit of work."""
    table = analysis.out / "trust.parquet"
    if is_whole(table):
        return
    few = analysis.chosen[:TRUST_CLIPS]
    inputs, target = analysis.inputs(few), analysis.predicted[few].to(analysis.device)
    archives = [read_arrays(analysis.archive(position)) for position in few]
    todo: dict[Path, Callable[[], list[Row]]] = {}

    def add(stage: str, method: str, where: dict[str, str], score: Callable[[], Row]) -> None:
        part = analysis.out / "parts" / f"trust-{stage}-{'-'.join(where.values())}-{method}.parquet"
        about = {"stage": stage, "method": method, **dict.fromkeys(("modality", "first", "second")), **where}
        todo[part] = lambda: [{**about, **score(), "clips": len(few)}]

    def kept(name: str) -> Tensor:
        """The predicted class's maps of the clips, (clips, ...)."""
        return torch.stack([torch.from_numpy(archive[name][0]) for archive in archives])

    for modality in analysis.model.modalities:
        where = {"modality": modality}
        for method, one in maps.methods(analysis, modality, target, few).items():
            add("U", method, where, partial(_unimodal, analysis, inputs, modality, target, one))
        if f"D/{modality}/dime_unimodal" in archives[0]:
            whole = kept(f"D/{modality}/dime_unimodal") + kept(f"D/{modality}/dime_multimodal")
            add("D", "dime", where, partial(_dime, analysis, inputs, modality, target, whole))
        if any(f"R/{modality}/occlusion" in archive for archive in archives):
            add("R", "occlusion", where, partial(_units, analysis, inputs, modality, archives))
    for first, second in combinations(analysis.model.modalities, 2):
        for name in [name for name in archives[0] if name.startswith(f"C/{first}/{second}/")]:
            reasons = [str(a[f"C_reason/{name[2:]}"]) for a in archives if f"C_reason/{name[2:]}" in a]
            whole = kept(f"C/{first}/{second}/ablation")
            if float(whole.abs().max()) <= SILENT * float(analysis.logits[few].abs().max()):
                reasons = [f"{first!r} and {second!r} do not interact in this score: there is nothing to find"]
            score = partial(score_pairs, analysis, inputs, (first, second), target, kept(name), reasons)
            add("C", name.rpartition("/")[2], {"first": first, "second": second}, score)
    together = synergies.work(analysis)
    analysis.each("trust", "maps", todo | together)
    rows = synergies.merged(*([row for part in some for row in read_table(part)] for some in (todo, together)))
    if analysis.sparse is not None:
        agree = torch.from_numpy(analysis.sparse["agree"]).double()
        low, high = mean_interval(agree.tolist())
        share = float(agree.mean())
        said = [f"says what the model says for {100 * share:.0f} % of the clips only"] if share < ALIKE else []
        rows.append({"stage": "P", "method": "sparse", "score": share, "low": max(low, 0.0), "high": min(high, 1.0)})
        rows[-1] |= {"score_name": AGREES, "clips": len(agree), "warnings": said}
    names = list(dict.fromkeys([*(name for row in rows for name in row), *synergies.COLUMNS]))
    write_table(table, [{name: row.get(name) for name in names} for row in rows])
    remove([*todo, *together])


def _unimodal(analysis: Analysis, inputs: dict[str, Tensor], modality: str, target: Tensor, one: Any) -> Row:
    options: Any = {"draws": 2, "seeds": 2, "samples": 32, "orders": 4, "seed": analysis.seed}
    nothing = analysis.baselines(inputs)[modality]
    found = trust_scores(analysis.model, inputs, modality, target, one, baseline=nothing, **options)
    summary = found.summary()
    scores = ("insertion_gain", "deletion_gain", "infidelity", "max_sensitivity", "stability", "top_overlap")
    parts = {"head": "head", "encoder": f"encoders.{modality}", "model": "model"}
    return {
        "atoms": "fine",
        **_follows(found.sensitivity_n),
        **{name: _finite(summary[name]) for name in scores},
        **{f"randomised_{name}": summary.get(f"randomised/{part}") for name, part in parts.items()},
        "warnings": list(found.warnings),
    }


def score_pairs(
    analysis: Analysis,
    inputs: dict[str, Tensor],
    pair: tuple[str, str],
    target: Tensor,
    values: Tensor,
    reasons: list[str],
) -> Row:
    """Score and warnings of a method's maps (clips, A1, A2); `reasons` say why there is nothing to score."""
    fine = values.shape[1:] == tuple(len(analysis.fine[m]) for m in pair)
    atoms = analysis.atoms(analysis.chosen[: len(values)], coarse=not fine)
    about = {"atoms": "fine" if fine else "coarse"}
    if reasons:  # to find out why a map is all zeros is more than to score it
        return {**about, **NOTHING, "warnings": [*dict.fromkeys(reasons)]}
    first, second = ((m, atoms[m]) for m in pair)
    scores = interaction_sensitivity_n(
        analysis.model,
        inputs,
        target,
        values,
        first,
        second,
        analysis.baselines(inputs),
        subsets=32,
        seed=analysis.seed,
    )
    row = {**about, **_follows(scores)}
    return {**row, "warnings": _doubts(row)}


def _dime(analysis: Analysis, inputs: dict[str, Tensor], modality: str, target: Tensor, values: Tensor) -> Row:
    atoms = analysis.atoms(analysis.chosen[: len(values)], coarse=True)[modality]
    options: Any = {"baseline": analysis.baselines(inputs)[modality], "subsets": 32, "seed": analysis.seed}
    importance = Importance(values, None, atoms, "dime")
    scores = sensitivity_n(analysis.model, inputs, modality, target, importance, **options)
    row = {"atoms": "coarse", **_follows(scores)}
    return {**row, "warnings": _doubts(row)}


def _units(analysis: Analysis, inputs: dict[str, Tensor], modality: str, archives: list[Any]) -> Row:
    """Trust in the maps of the unit that counts most, for each clip."""
    parts = []
    for n, archive in enumerate(archives):
        if not len(archive["units"]):
            continue
        one = {m: x[n : n + 1] for m, x in inputs.items()}
        values = torch.from_numpy(archive[f"R/{modality}/occlusion"][:1])
        if float(values.abs().max()) <= SILENT * float(np.abs(archive["activations"]).max()):
            continue
        importance = Importance(values, None, analysis.atoms([analysis.chosen[n]])[modality], "occlusion")
        unit = Unit(int(archive["units"][0]))
        options: Any = {"baseline": analysis.baselines(one)[modality], "subsets": 32, "seed": analysis.seed}
        parts.append(sensitivity_n(analysis.model, one, modality, unit, importance, **options))
    if not parts:
        said = f"the units that count most on these clips do not depend on {modality!r}: there is nothing to find"
        return {"atoms": "fine", **NOTHING, "warnings": [said]}
    row = {"atoms": "fine", **_follows({n: torch.cat([part[n] for part in parts]) for n in parts[0]})}
    return {**row, "warnings": _doubts(row)}


def _follows(scores: Any) -> Row:
    """The mean correlation over set sizes, and its interval over clips."""
    each = torch.stack([*scores.values()]).mean(0)
    interval = mean_interval(each.tolist())
    ends = (None if math.isinf(end) else min(max(end, -1.0), 1.0) for end in interval)  # a correlation's
    low, high = ends
    return {"score": float(each.mean()), "low": low, "high": high, "score_name": FOLLOWS}


def _doubts(row: Row) -> list[str]:
    low = row["low"]
    if low is None:
        return ["one clip: there is no interval over clips"]
    interval = f"correlation {row['score']:.2f}, 95 % {low:.2f} to {row['high']:.2f}"
    return [f"sums of the map do not follow the score ({interval})"] if low <= 0 else []


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
