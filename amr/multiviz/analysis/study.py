"""Tests the use of the explanations: a simulated user, and a choice of clips to label next."""

import math
from collections import Counter
from dataclasses import asdict
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from amr.datamodules.listing import stable_order
from amr.multiviz.analysis import maps
from amr.multiviz.analysis.analysis import Analysis
from amr.multiviz.crossmodal import ablation
from amr.multiviz.errors import compare_selections
from amr.multiviz.simulation import simulate
from amr.multiviz.unimodal import occlusion
from amr.utils.arrays import Arrays, Row, is_whole, read_table, remove, write_table
from amr.utils.errors import UserError
from amr.utils.readers import read_arrays

CLASSES, CLIPS, LEAST = 5, 12, 4  # of the simulated user: predicted classes, clips a class, and how few will not do


def simulation(analysis: Analysis) -> None:
    """A student that sees the explanations of clips learns to name the model's output on others."""
    table = analysis.out / "simulation.parquet"
    if is_whole(table) or "simulation" in analysis.notes:
        return
    if analysis.undefined("simulation", "no simulated user"):
        return
    if analysis.sparse is None:
        analysis.note("simulation", "no simulated user: there is no sparse classifier to show")
        return
    counts = Counter(analysis.predicted.tolist())
    classes = sorted(c for c, n in counts.most_common(CLASSES) if n >= LEAST)
    if len(classes) < 2:
        most = f"two predicted classes with {LEAST} clips are needed"
        analysis.note("simulation", f"no simulated user: {most}, of the split's there are {len(classes)}")
        return
    clips = []
    for label in classes:
        own = [analysis.clips.ids[i] for i in (analysis.predicted == label).nonzero().flatten().tolist()]
        clips += [analysis.place[id] for id in stable_order(own, analysis.seed)[:CLIPS]]
    parts = {position: _part(analysis, position) for position in clips}
    todo = {path: partial(_seen, analysis, position) for position, path in parts.items()}
    analysis.each("simulation", "clips", todo)
    seen = [read_arrays(path) for path in parts.values()]
    blocks = {stage: np.stack([one[stage] for one in seen]) for stage in seen[0]}
    blocks["+R_global"], blocks["+P"] = _global(analysis, clips, classes), _sparse_logits(analysis, clips)[:, classes]
    rows = []
    for stage, found in simulate(blocks, analysis.predicted[clips].numpy()).items():
        about: Row = {"mean": found.mean, "low": found.interval[0], "high": found.interval[1], "gain": found.gain}
        about |= {"gain_low": found.gain_interval[0], "gain_high": found.gain_interval[1]}
        about |= {"alpha": None if math.isnan(found.alpha) else found.alpha}
        for seed, (right, control) in enumerate(zip(found.accuracies, found.shuffled, strict=True)):
            one = {"stage": stage, "seed": seed, "accuracy": float(right), "shuffled": float(control)}
            rows.append({**one, **about, "clips": len(clips), "classes": len(classes)})
    write_table(table, rows)
    remove(parts.values())


def selection(analysis: Analysis) -> None:
    """Compares choices of clips to label next: likely errors, uncertain clips, or random ones."""
    table = analysis.out / "selection.parquet"
    if is_whole(table) or "selection" in analysis.notes or analysis.undefined("selection", "no selection of clips"):
        return
    try:
        fitted = None if analysis.split == "train" else (analysis.head(analysis.train)[1], analysis.train.labels)
        trials = compare_selections(analysis.features, analysis.logits, analysis.clips.labels, fitted=fitted)
    except UserError as error:
        analysis.note("selection", f"no selection of clips: {error}")
        return
    write_table(table, [asdict(trial) for trial in trials])


def _part(analysis: Analysis, position: int) -> Path:
    return analysis.out / "parts" / f"simulation-{analysis.archive(position).name}"


def _seen(analysis: Analysis, position: int) -> Arrays:
    """Numbers that each stage adds to a clip's page.

    U and C are the page's first methods, for the predicted class; R_local is what each modality brings to the units
    that the page names for this clip, and nothing for the others.
    """
    inputs, target = analysis.inputs([position]), analysis.predicted[[position]].to(analysis.device)
    model, nothing = analysis.model, analysis.baselines(inputs)
    fine, coarse = analysis.atoms([position]), analysis.atoms([position], coarse=True)
    unimodal = [
        occlusion(model, inputs, m, target, atoms, baseline=nothing[m]).values.flatten() for m, atoms in fine.items()
    ]
    pairs = [
        ablation(model, inputs, target, (a, coarse[a]), (b, coarse[b]), nothing).flatten()
        for a, b in combinations(model.modalities, 2)
    ]
    units = maps.sparse_parts(analysis, position, target)["units"].tolist()
    local = maps.of_units(analysis, position, inputs, units)
    shown = np.zeros((analysis.features.shape[1], len(fine)), dtype=np.float32)
    shown[units] = np.stack([local[m].sum(1) for m in fine], axis=1) if units else 0
    found = {"U": torch.cat(unimodal).float().cpu().numpy()}
    if pairs:
        found["U+C"] = torch.cat(pairs).float().cpu().numpy()
    assert analysis.sparse is not None
    used = np.flatnonzero((analysis.sparse["coefficients"] != 0).any(0))
    return {**found, "+R_local": shown[used].flatten()}


def _global(analysis: Analysis, clips: list[int], classes: list[int]) -> NDArray[np.float64]:
    """Classes of the clips that activate a clip's units most, less those that do least, weighted by activation."""
    assert analysis.sparse is not None
    place = {analysis.data.labels[label]: k for k, label in enumerate(classes)}
    extremes: dict[int, list[tuple[str, int, float]]] = {}
    for row in read_table(analysis.out / "representation.parquet"):
        if row["label"] in place:
            sign = 1.0 if row["end"] == "most" else -1.0
            extremes.setdefault(row["unit"], []).append((row["id"], place[row["label"]], sign))
    found = np.zeros((len(clips), len(classes)))
    for n, position in enumerate(clips):
        features = analysis.features[position].double().numpy()
        standardised = (features - analysis.sparse["mean"]) / analysis.sparse["scale"]
        for unit in maps.sparse_parts(analysis, position, analysis.predicted[[position]])["units"].tolist():
            for id, k, sign in extremes.get(unit, []):
                if id != analysis.clips.ids[position]:  # what is asked about is not among the answers
                    found[n, k] += sign * standardised[unit]
    return found


def _sparse_logits(analysis: Analysis, clips: list[int]) -> NDArray[np.float64]:
    sparse = analysis.sparse
    assert sparse is not None
    features = (analysis.features[clips].double().numpy() - sparse["mean"]) / sparse["scale"]
    logits = features @ sparse["coefficients"].T + sparse["intercepts"]
    return np.where(np.isfinite(logits), logits, np.where(np.isfinite(logits), logits, 0).min())
