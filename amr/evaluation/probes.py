"""Measures how much each encoder knows alone, and whether shares follow the evidence."""

from collections.abc import Mapping
from functools import partial

import pytorch_lightning as pl
import torch
from torch import Tensor

from amr.attribution import (
    Score,
    attributed_rows,
    undisturbed,
)
from amr.datamodules import ClipDataModule
from amr.evaluation import use
from amr.evaluation.bootstrap import Interval
from amr.evaluation.decisions.information import information_rows
from amr.evaluation.metrics import attribution
from amr.evaluation.table import Row, Table
from amr.model.encoded import Encoded, Split, encode, logits_of
from amr.model.protocol import Explained
from amr.utils.errors import UserError
from amr.utils.streams import note


def _difference(values: Tensor, inside: Tensor, outside: Tensor, weights: Tensor) -> Tensor:
    """Mean of values (N,) over the clips of one kind minus that over those of another."""
    first, second = (weights[:, part] @ values[part] / weights[:, part].sum(1) for part in (inside, outside))
    return first - second


def probe_rows(
    model: Explained,
    data: pl.LightningDataModule,
    split: Split,
    clean: Encoded,
    train: Encoded,
    unimodal: Mapping[str, Explained | float],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Row]:
    """Accuracy of a linear classifier on each encoder alone, and its gap to the unimodal model.

    With several modalities also how what the encoders know of the label, and of the model's prediction, is split.
    """
    table, answers = Table(len(clean.ids), resamples, seed), {}
    for name in model.modalities:
        if bool((train.labels == train.labels[0]).all()):
            break
        answers[name] = use.probe_classes(train.encodings[name], train.labels, clean.encodings[name])
        probed = (answers[name] == clean.labels.cpu()).double()
        table.mean("probe", name, probed)
        best = unimodal.get(name)
        if best is not None and not isinstance(best, float | int):
            own = encode(best, data, split, None, seed=seed, ids=clean.ids)
            if not torch.equal(own.labels.cpu(), clean.labels.cpu()):
                raise UserError(f"data: its {split} loader gives other clips under the same names; must not shuffle")
            with undisturbed(best), torch.no_grad():
                alone = use.right(logits_of(best, own.encodings), own.labels).cpu()
            table.mean("unimodal", name, alone)
            table.mean("probe_gap", name, alone - probed)
        elif best is not None:
            found = table.interval(probed)
            table.rows.append(Row("unimodal", name, "", None, best, best, best, len(clean.ids)))
            gap = Interval(best - found.value, best - found.high, best - found.low)
            table.rows.append(Row("probe_gap", name, "", None, gap.value, gap.low, gap.high, len(clean.ids)))
    if len(answers) > 1:
        table.rows += information_rows(model, clean, train, answers, resamples=resamples, seed=seed)
    return table.rows


def check_unimodal(model: Explained, unimodal: Mapping[str, Explained | float]) -> None:
    """Raises `UserError` unless these are of single modalities of the model, and of as many classes."""
    for name, best in unimodal.items():
        where = f"robustness.unimodal.{name}"
        if name not in model.modalities:
            raise UserError(f"{where}: no such modality; must be one of {', '.join(model.modalities)}")
        if not isinstance(best, float | int) and best.modalities != (name,):
            raise UserError(f"{where}: it is a model of {', '.join(best.modalities)}")
        if not isinstance(best, float | int) and best.num_classes != model.num_classes:
            theirs, ours = best.num_classes, model.num_classes
            raise UserError(f"{where}: a model of {theirs} classes; must have the {ours} of this model")


def evidence_rows(
    model: Explained,
    data: ClipDataModule,
    clean: Encoded,
    *,
    resamples: int = 1000,
    seed: int = 0,
    score: Score = "probability",
    ig_steps: int | None = None,
) -> list[Row]:
    """Whether dominance follows the evidence: shares and accuracy by the modalities that show the clip's class."""
    try:
        evidence = data.evidence()
    except UserError as error:
        note(f"robustness: left out, where each class is really there: {error}")
        return []
    names = frozenset(model.modalities)
    there = [names & evidence[id] if id in evidence else None for id in clean.ids]
    if len(names) < 2 or not any(there):
        return []
    table = Table(len(clean.ids), resamples, seed)
    shares = attribution(model, clean, score=score, ig_steps=ig_steps)
    attributed = attributed_rows(shares)
    with undisturbed(model), torch.no_grad():
        whole = use.right(logits_of(model, clean.encodings), clean.labels).cpu()
    for kind in sorted({kind for kind in there if kind}, key=lambda kind: (len(kind), sorted(kind))):
        group = torch.tensor([found == kind for found in there])
        label = "+".join(m for m in model.modalities if m in kind)
        table.mean(f"evidence_{label}_acc", "", whole, group)
        for m, name in enumerate(model.modalities):
            table.mean(f"evidence_{label}_share", name, shares[:, m], group & attributed)
    for m, name in enumerate(model.modalities):
        own = torch.tensor([found == frozenset([name]) for found in there]) & attributed
        others = torch.tensor([bool(found) and name not in (found or ()) for found in there]) & attributed
        follows = partial(_difference, shares[:, m], own, others)
        table.add("evidence_follows", name, follows, int(own.sum() + others.sum()))
    return table.rows
