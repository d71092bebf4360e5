"""The measures that change no input: only the head runs, on clips that are encoded already."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from amr.attribution import (
    Score,
    attributed_rows,
    attribution_shares,
    predicted_shapley_shares,
    undisturbed,
)
from amr.evaluation import use
from amr.evaluation.bootstrap import spearman
from amr.evaluation.decisions.conflict import conflict_rows
from amr.evaluation.decisions.dial import Dial, dial_rows
from amr.evaluation.decisions.intershap import intershap_rows
from amr.evaluation.decisions.outcomes import outcome_rows
from amr.evaluation.emap import emap
from amr.evaluation.head import coalition_outputs
from amr.evaluation.table import Row, Table
from amr.model import device_of, head_of, rows_at_once
from amr.model.encoded import Encoded
from amr.model.protocol import Explained

EMAP_CLIPS = 1000  # a million head rows for two modalities
MEANS = ("zeros", "mean")  # what a missing modality's encoding becomes, besides another clip's


def measure_encodings(
    model: Explained,
    clean: Encoded,
    train: Encoded | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    score: Score = "probability",
    ig_steps: int | None = None,
    details: bool = True,
) -> list[Row]:
    """The measures that change no input: some (2^(M+1) + 20 M) N + N² head rows.

    Args:
        model: The model.
        clean: The clips.
        train: Training clips, for the mean encoding that replaces a missing one; None: the mean is of `clean`.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of resamples and pairings.
        score: Score that shares attribute.
        ig_steps: Points of integrated gradients, each a head row more for a share; None for gradient⊙input.
        details: Whether to have the rows that are never logged (`Row.is_detail`): by class, by confidence, of the dial.
    """
    encodings, labels, names = clean.encodings, clean.labels, list(clean.encodings)
    table = Table(len(clean.ids), resamples, seed)
    means = {m: e.mean(0, keepdim=True) for m, e in (train or clean).encodings.items()}
    logits = {
        kind: coalition_outputs(model, encodings, means if kind == "mean" else "zeros").cpu().double() for kind in MEANS
    }
    labels = labels.cpu()
    correct = {kind: use.right(found, labels) for kind, found in logits.items()}
    whole = correct["mean"][-1]
    table.mean("acc", "", whole)
    bins, gap = use.calibration_bins(logits["mean"][-1].softmax(1), whole)
    table.add("ece", "", partial(use.calibration_error, bins, gap))
    if len(names) < 2:
        return table.rows

    other = use.shuffled(model, encodings, clean.labels, seed=seed).cpu()
    without = {**{kind: use.missing(found) for kind, found in correct.items()}, "other": other.T}
    for kind, values in without.items():
        for m, name in enumerate(names):
            table.mean(f"acc_missing_{kind}", name, values[m])
        for m, name in enumerate(names):
            table.mean(f"drop_{kind}", name, whole - values[m])
        table.add(f"worst_missing_{kind}", "", partial(_lowest, values))
    for m, name in enumerate(names):
        table.add("perceptual", name, partial(_ratio, whole - other[:, m], whole))
        table.add("utilisation", name, partial(_ratio, whole - without["mean"][m], whole))
        table.mean("acc_alone", name, use.alone(correct["mean"])[m])
        table.mean("confusion", name, use.confused(correct["mean"])[m])
    for kind in MEANS:
        for m, (name, part) in enumerate(zip(names, use.missing(logits[kind]), strict=True)):
            b, g = use.calibration_bins(part.softmax(1), without[kind][m])
            table.add(f"ece_missing_{kind}", name, partial(use.calibration_error, b, g))
    accuracy_parts = use.accuracy_shapley(correct["mean"])
    for m, name in enumerate(names):
        table.mean("shapley", name, accuracy_parts[:, m])
    for i, j in combinations(range(len(names)), 2):
        table.mean("cooperation", f"{names[i]}+{names[j]}", use.cooperation(correct["mean"], i, j))
    intershap_rows(table, names, logits["mean"])

    few = clean.some(EMAP_CLIPS, seed)
    place = {id: i for i, id in enumerate(clean.ids)}
    chosen = [place[id] for id in few.ids]
    projected = use.right(emap(model, few.encodings, seed=seed).cpu(), labels[chosen])
    small = table if len(few.ids) == len(clean.ids) else Table(len(few.ids), resamples, seed)
    small.mean("emap_gap", "", whole[chosen] - projected)
    if small is not table:
        table.rows += small.rows

    shares = attribution(model, clean, score=score, ig_steps=ig_steps)
    attributed = attributed_rows(shares)
    parts = {kind: predicted_shapley_shares(found, "logit") for kind, found in logits.items()}
    odds = predicted_shapley_shares(logits["mean"], "probability")
    centred = attribution(model, clean, means, score=score, ig_steps=ig_steps)
    drops = whole[:, None] - without["mean"].T
    valued = attributed & (parts["mean"].sum(1) > 0)
    for m, name in enumerate(names):
        table.mean("share", name, shares[:, m], attributed)
        table.mean("share_centred", name, centred[:, m], attributed_rows(centred))
        table.mean("shapley_share", name, parts["mean"][:, m], valued)
        table.mean("shapley_share_zeros", name, parts["zeros"][:, m], parts["zeros"].sum(1) > 0)
        table.mean("shapley_share_odds", name, odds[:, m], odds.sum(1) > 0)
    conflict_rows(table, model, encodings, clean.labels, logits["mean"][-1], seed, details)
    outcome_rows(table, names, correct["mean"], labels, logits["mean"].shape[2], details)
    if details:
        dial_rows(table, names, Dial.of(model, means), logits["mean"], labels)
    _agreement(
        table,
        names,
        {"share": shares, "shapley": parts["mean"], "drop": drops},
        valued,
        labels,
        logits["mean"].shape[2],
    )
    return table.rows


def attribution(
    model: Explained,
    clips: Encoded,
    centre: Mapping[str, Tensor] | None = None,
    *,
    score: Score = "probability",
    ig_steps: int | None = None,
) -> Tensor:
    """Attribution shares of clips, (N, M) float64 on the CPU; only the head runs.

    Args:
        model: The model.
        clips: The clips.
        centre: Subtracted from the encodings, (1, ...), before they are multiplied by the gradient: with the mean
            encoding, only what differs from clip to clip is attributed. None: nothing, as dominance is defined.
            Integrated gradients start there.
        score: Score that is attributed.
        ig_steps: Points of integrated gradients; None for gradient⊙input.
    """
    head, device = head_of(model), device_of(model)
    parts, size = [], max(1, rows_at_once(model, 1024) // (ig_steps or 1))  # a clip is so many rows of the head

    def shifted(rest: dict[str, Tensor]) -> Tensor:
        return head({m: e + centre[m].to(e) for m, e in rest.items()} if centre else rest)

    with undisturbed(model):
        for start in range(0, len(clips.ids), size):
            part = {m: e[start : start + size].to(device) for m, e in clips.encodings.items()}
            rest = {m: e - centre[m].to(e) for m, e in part.items()} if centre else part
            parts.append(attribution_shares(shifted, rest, score=score, ig_steps=ig_steps).double().cpu())
    return torch.cat(parts)


def _agreement(
    table: "Table",
    names: Sequence[str],
    accounts: Mapping[str, Tensor],
    among: Tensor,
    labels: Tensor,
    classes: int,
) -> None:
    """Adds rank correlations, over clips and classes, between the measures (N, M) of how much a modality counts."""
    for (first, one), (second, two) in combinations(accounts.items(), 2):
        for m, name in enumerate(names):
            x, y = one[among, m], two[among, m]
            table.add(f"agreement_{first}_{second}", name, partial(_correlation, x, y, among))
            own = (labels[among], among, classes)
            table.add(f"agreement_class_{first}_{second}", name, partial(_class_correlation, x, y, *own))
    same = (accounts["share"].argmax(1) == accounts["shapley"].argmax(1)).double()
    table.mean("same_leader", "", same, among)


def _ratio(top: Tensor, bottom: Tensor, weights: Tensor) -> Tensor:
    return (weights @ top) / (weights @ bottom)


def _lowest(values: Tensor, weights: Tensor) -> Tensor:
    """The lowest of M means; values (M, N)."""
    return (weights @ values.T).amin(1) / weights.sum(1)


def _correlation(first: Tensor, second: Tensor, among: Tensor, weights: Tensor) -> Tensor:
    return spearman(first[None], second[None], weights[:, among])


def _class_correlation(
    first: Tensor, second: Tensor, labels: Tensor, among: Tensor, classes: int, weights: Tensor
) -> Tensor:
    (one, there), (two, _) = (use.class_means(x, labels, weights[:, among], classes) for x in (first, second))
    return spearman(one, two, there)
