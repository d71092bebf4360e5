"""How a checkpoint uses its modalities and what it loses when one goes wrong: `measure`, and its table as parquet.

The clips are encoded once; every measure that changes no input runs the head alone. Corrupting a modality runs that
modality's encoder again, and no other. docs/robustness.md says what each measure is.
"""

import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset

from amr import __version__
from amr.attribution import (
    Score,
    absolute_shares,
    attributed_rows,
    attribution_shares,
    class_score,
    shapley_values,
    undisturbed,
)
from amr.datamodules import ClipDataModule
from amr.datamodules.base import stable_order
from amr.datamodules.corruptions import SEVERITIES, Corruptible
from amr.datamodules.loader import collate_clips
from amr.evaluation import use
from amr.evaluation.bootstrap import Bootstrap, Interval, spearman
from amr.evaluation.emap import emap
from amr.evaluation.head import coalition_outputs
from amr.model import FusionModel, complete_rows
from amr.utils.arrays import slug, write_arrays
from amr.utils.distributed import gather_objects, rank_and_world
from amr.utils.errors import UserError
from amr.utils.files import write_bytes
from amr.utils.readers import read_arrays, read_table, reading
from amr.utils.work import Progress

Split = Literal["train", "val", "test"]
Context = Callable[[], AbstractContextManager[Any]]
EMAP_CLIPS = 1000  # a million head rows for two modalities
MEANS = ("zeros", "mean")  # what a missing modality's encoding becomes, besides another clip's

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("measure", "modality", "corruption")),
        ("severity", pa.int64()),
        *((name, pa.float64()) for name in ("value", "low", "high")),
        ("clips", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Row:
    """One number of the long table.

    Attributes:
        measure: Its name, as docs/robustness.md lists them.
        modality: The one it is about; several joined by +; empty for the whole model.
        corruption: Name of the corruption; empty for none, `mean` for the mean over a modality's corruptions.
        severity: 1 to 5; None for none, and for what all of them enter.
        value: The number.
        low: Lower end of its 95 % interval over clips.
        high: Upper end.
        clips: How many it is of.
    """

    measure: str
    modality: str
    corruption: str
    severity: int | None
    value: float
    low: float
    high: float
    clips: int

    @property
    def name(self) -> str:
        """`measure/modality/corruption/severity`, without the empty ones."""
        parts = (self.measure, self.modality, self.corruption, "" if self.severity is None else str(self.severity))
        return "/".join(part for part in parts if part)


@dataclass
class Encoded:
    """Clips that have every modality, as the head sees them, in the order of their ids.

    Attributes:
        ids: Of the clips.
        labels: (N,) int64.
        encodings: (N, ...) a modality, on the model's device.
    """

    ids: list[str]
    labels: Tensor
    encodings: dict[str, Tensor]

    @classmethod
    def of(cls, ids: Sequence[str], labels: Tensor, encodings: Mapping[str, Tensor]) -> "Encoded":
        """Sorts by id and joins what several processes have; one without clips may have no encodings either."""
        found = gather_objects((list(ids), labels.cpu(), {m: e.cpu() for m, e in encodings.items()}))
        if not (parts := [part for part in found if part[0]]):
            return cls([], labels, {})
        every = [id for part in parts for id in part[0]]
        place = {id: i for i, id in enumerate(every)}  # a sampler of many ranks may repeat clips
        order = [place[id] for id in sorted(place)]
        device = labels.device
        joined = {m: torch.cat([part[2][m] for part in parts])[order].to(device) for m in parts[0][2]}
        return cls([every[i] for i in order], torch.cat([part[1] for part in parts])[order].to(device), joined)

    def part(self, rows: Sequence[int]) -> "Encoded":
        """Some of the clips."""
        return Encoded([self.ids[i] for i in rows], self.labels[rows], {m: e[rows] for m, e in self.encodings.items()})

    def some(self, most: int | None, seed: int = 0) -> "Encoded":
        """At most that many, chosen by a hash of their ids."""
        if most is None or len(self.ids) <= most:
            return self
        kept = set(stable_order(self.ids, seed)[:most])
        return self.part([i for i, id in enumerate(self.ids) if id in kept])


def measure(
    model: FusionModel,
    data: pl.LightningDataModule,
    split: Split = "test",
    *,
    clean: Encoded | None = None,
    train: Encoded | None = None,
    unimodal: Mapping[str, FusionModel | float] | None = None,
    corruptions: bool = True,
    corruption_clips: int | None = 1000,
    train_clips: int | None = 2000,
    resamples: int = 1000,
    seed: int = 0,
    score: Score = "probability",
    ig_steps: int | None = None,
    parts: Path | None = None,
    context: Context = nullcontext,
) -> list[Row]:
    """Every measure of a model on a split, with 95 % bootstrap intervals over clips.

    The model runs where it is, in eval mode; it, its gradients and all random states are left as they were. Under DDP
    every process encodes its part and all return the same rows.

    Args:
        model: As `amr.load.load_model` gives it.
        data: The data module, prepared. Corruptions need one of amr's, or another `Corruptible`.
        split: Whose clips.
        clean: The split's clips, where they are encoded already.
        train: Training clips that give the mean encoding and the probes' examples; None: encoded here, from the data
            module's `clips_of`, or its training loader if it is not one of amr's.
        unimodal: For each modality the unimodal model to compare the probe with, or its accuracy.
        corruptions: Whether to corrupt inputs: the part that runs encoders.
        corruption_clips: At most so many clips are corrupted, chosen by a hash of their ids; None for all.
        train_clips: At most so many training clips are encoded; None for all.
        resamples: Of the bootstrap.
        seed: Of resamples, pairings and corruptions.
        score: What shares attribute, as in `attribution_shares`; the run's `dominance.score` for its own dominance.
        ig_steps: Points of integrated gradients; the run's `dominance.ig_steps`.
        parts: A folder of its own, for each corruption that is done: a later call with the same model, clips and
            options goes on from there. It is the caller's to remove; None: nothing is kept.
        context: What the encoders run in, e.g. autocast.

    Returns:
        The rows; a measure that is not defined (no clip of a kind, a correlation of constants) has none.

    Raises:
        UserError: Fewer than two clips have every modality, or a unimodal model does not fit.
    """
    check_unimodal(model, unimodal or {})
    if clean is None:
        clean = encode(model, data, split, None, seed=seed, context=context)
    if len(clean.ids) < 2:
        raise UserError(f"robustness: {len(clean.ids)} clips of {split} have every modality; at least 2 are needed")
    if train is None:
        train = encode(model, data, "train", train_clips, seed=seed, context=context)
    rows = measure_encodings(model, clean, train, resamples=resamples, seed=seed, score=score, ig_steps=ig_steps)
    rows += probe_rows(model, data, split, clean, train, unimodal or {}, resamples=resamples, seed=seed)
    if isinstance(data, ClipDataModule):
        rows += evidence_rows(model, data, clean, resamples=resamples, seed=seed, score=score, ig_steps=ig_steps)
    if corruptions and isinstance(data, Corruptible):
        rows += corruption_rows(
            model,
            data,
            split,
            clean.some(corruption_clips, seed),
            resamples=resamples,
            seed=seed,
            score=score,
            ig_steps=ig_steps,
            parts=None if parts is None else (parts, _digest(model, clean, train)),
            context=context,
        )
    return rows


def _digest(model: FusionModel, *clips: Encoded) -> str:
    """SHA-256 of a model's weights and of clips as it sees them, by which what was measured before is known again."""
    digest = hashlib.sha256()
    tensors = list(model.state_dict().values())
    for part in clips:
        digest.update(json.dumps(part.ids).encode())
        with undisturbed(model), torch.no_grad():
            tensors += [part.labels, _head(model, part.encodings), *part.encodings.values()]
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------- encodings alone


def measure_encodings(
    model: FusionModel,
    clean: Encoded,
    train: Encoded | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    score: Score = "probability",
    ig_steps: int | None = None,
) -> list[Row]:
    """The measures that change no input: some (2^M + 11 M) N + N² head rows.

    Args:
        model: The model.
        clean: The clips.
        train: Training clips, for the mean encoding that replaces a missing one; None: the mean is of `clean`.
        resamples: Of the bootstrap.
        seed: Of resamples and pairings.
        score: What shares attribute.
        ig_steps: Points of integrated gradients, each a head row more for a share; None for gradient⊙input.
    """
    encodings, labels, names = clean.encodings, clean.labels, list(clean.encodings)
    table = _Table(len(clean.ids), resamples, seed)
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

    few = clean.some(EMAP_CLIPS, seed)
    place = {id: i for i, id in enumerate(clean.ids)}
    chosen = [place[id] for id in few.ids]
    projected = use.right(emap(model, few.encodings, seed=seed).cpu(), labels[chosen])
    small = table if len(few.ids) == len(clean.ids) else _Table(len(few.ids), resamples, seed)
    small.mean("emap_gap", "", whole[chosen] - projected)
    if small is not table:
        table.rows += small.rows

    shares = attribution(model, clean, score=score, ig_steps=ig_steps)
    attributed = attributed_rows(shares)
    parts = {kind: _shapley_of_predicted(found, "logit") for kind, found in logits.items()}
    odds = _shapley_of_predicted(logits["mean"], "probability")
    centred = attribution(model, clean, means, score=score, ig_steps=ig_steps)
    drops = whole[:, None] - without["mean"].T
    valued = attributed & (parts["mean"].sum(1) > 0)
    for m, name in enumerate(names):
        table.mean("share", name, shares[:, m], attributed)
        table.mean("share_centred", name, centred[:, m], attributed_rows(centred))
        table.mean("shapley_share", name, parts["mean"][:, m], valued)
        table.mean("shapley_share_zeros", name, parts["zeros"][:, m], parts["zeros"].sum(1) > 0)
        table.mean("shapley_share_odds", name, odds[:, m], odds.sum(1) > 0)
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
    model: FusionModel,
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
        centre: What is taken off the encodings, (1, ...), before they are multiplied by the gradient: with the mean
            encoding, only what differs from clip to clip is attributed. None: nothing, as dominance is defined.
            Integrated gradients start there.
        score: What is attributed.
        ig_steps: Points of integrated gradients; None for gradient⊙input.
    """
    parts, size = [], max(1, 1024 // (ig_steps or 1))  # a clip is so many rows of the head

    def shifted(rest: dict[str, Tensor]) -> Tensor:
        logits: Tensor = model.head({m: e + centre[m].to(e) for m, e in rest.items()} if centre else rest)
        return logits

    with undisturbed(model):
        for start in range(0, len(clips.ids), size):
            part = {m: e[start : start + size] for m, e in clips.encodings.items()}
            rest = {m: e - centre[m] for m, e in part.items()} if centre else part
            parts.append(attribution_shares(shifted, rest, score=score, ig_steps=ig_steps).double().cpu())
    return torch.cat(parts)


def _shapley_of_predicted(logits: Tensor, score: Score) -> Tensor:
    """Shapley shares (N, M) in the predicted class's score, from all coalitions' logits (2^M, N, C)."""
    return absolute_shares(shapley_values(class_score(logits, logits[-1].argmax(1), score)))


def _agreement(
    table: "_Table",
    names: Sequence[str],
    accounts: Mapping[str, Tensor],
    among: Tensor,
    labels: Tensor,
    classes: int,
) -> None:
    """Whether the accounts (N, M) of how much a modality counts rank clips, and classes, alike."""
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


def _difference(values: Tensor, inside: Tensor, outside: Tensor, weights: Tensor) -> Tensor:
    """Mean of values (N,) over the clips of one kind minus that over those of another."""
    first, second = (weights[:, part] @ values[part] / weights[:, part].sum(1) for part in (inside, outside))
    return first - second


# ---------------------------------------------------------------------------------------- what needs more than the head


def probe_rows(
    model: FusionModel,
    data: pl.LightningDataModule,
    split: Split,
    clean: Encoded,
    train: Encoded,
    unimodal: Mapping[str, FusionModel | float],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Row]:
    """What a linear classifier reads from each encoder alone, and how far that is from the unimodal model."""
    table = _Table(len(clean.ids), resamples, seed)
    for name in model.modalities:
        if bool((train.labels == train.labels[0]).all()):
            break
        probed = use.linear_probe(train.encodings[name], train.labels, clean.encodings[name], clean.labels)
        table.mean("probe", name, probed)
        best = unimodal.get(name)
        if isinstance(best, FusionModel):
            own = encode(best, data, split, None, seed=seed, ids=clean.ids)
            with undisturbed(best), torch.no_grad():
                alone = use.right(best.head(own.encodings), own.labels).cpu()
            table.mean("unimodal", name, alone)
            table.mean("probe_gap", name, alone - probed)
        elif best is not None:
            found = table.interval(probed)
            table.rows.append(Row("unimodal", name, "", None, best, best, best, len(clean.ids)))
            gap = Interval(best - found.value, best - found.high, best - found.low)
            table.rows.append(Row("probe_gap", name, "", None, gap.value, gap.low, gap.high, len(clean.ids)))
    return table.rows


def check_unimodal(model: FusionModel, unimodal: Mapping[str, FusionModel | float]) -> None:
    """Raises `UserError` unless these are of single modalities of the model, and of as many classes."""
    for name, best in unimodal.items():
        where = f"robustness.unimodal.{name}"
        if name not in model.modalities:
            raise UserError(f"{where}: no such modality; allowed are {', '.join(model.modalities)}")
        if isinstance(best, FusionModel) and best.modalities != (name,):
            raise UserError(f"{where}: it is a model of {', '.join(best.modalities)}")
        if isinstance(best, FusionModel) and best.head.num_classes != model.head.num_classes:
            theirs, ours = best.head.num_classes, model.head.num_classes
            raise UserError(f"{where}: it has {theirs} classes; needed are the model's {ours}")


def evidence_rows(
    model: FusionModel,
    data: ClipDataModule,
    clean: Encoded,
    *,
    resamples: int = 1000,
    seed: int = 0,
    score: Score = "probability",
    ig_steps: int | None = None,
) -> list[Row]:
    """Whether dominance follows what is there: shares and accuracy by the modalities that show the clip's class."""
    try:
        evidence = data.evidence()
    except UserError as error:
        print(f"robustness: left out, where each class is really there: {error}", file=sys.stderr)
        return []
    names = frozenset(model.modalities)
    there = [names & evidence[id] if id in evidence else None for id in clean.ids]
    if len(names) < 2 or not any(there):
        return []
    table = _Table(len(clean.ids), resamples, seed)
    shares = attribution(model, clean, score=score, ig_steps=ig_steps)
    attributed = attributed_rows(shares)
    with undisturbed(model), torch.no_grad():
        whole = use.right(_head(model, clean.encodings), clean.labels).cpu()
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


@dataclass(frozen=True)
class _Spoilt:
    """What a corruption does to each clip at each severity.

    Attributes:
        right: Whether the clip is right, (5, N) of 0 and 1.
        shares: (5, N, M); (5, N, 0) where several modalities are corrupted or there is one.
    """

    right: Tensor
    shares: Tensor


def corruption_rows(
    model: FusionModel,
    data: pl.LightningDataModule,
    split: Split,
    clean: Encoded,
    *,
    resamples: int = 1000,
    seed: int = 0,
    score: Score = "probability",
    ig_steps: int | None = None,
    parts: tuple[Path, str] | None = None,
    context: Context = nullcontext,
) -> list[Row]:
    """Accuracy and dominance under each corruption and severity, and the area under accuracy against severity.

    Args:
        model: The model.
        data: A `Corruptible` data module.
        split: Whose clips.
        clean: Them, encoded as they are.
        resamples: Of the bootstrap.
        seed: Of resamples and corruptions.
        score: What shares attribute.
        ig_steps: Points of integrated gradients; None for gradient⊙input.
        parts: Where what is done is kept, and a digest of the model and its data, without which it is not used.
        context: What the encoders run in.
    """
    assert isinstance(data, Corruptible)
    labels, names = clean.labels, list(model.modalities)
    # A corruption of one modality or of several, by the name of what is corrupted and its own: {modality: corruption}.
    single = {(m, name): {m: name} for m in names for name in data.corruptions.get(m, {})}
    joint = {
        ("+".join(m for m in names if m in members), name): members
        for name, members in data.joint_corruptions.items()
        if set(members) <= set(names)
    }
    every = {**single, **joint}
    files: dict[tuple[str, str], Path] = {}
    key = ""
    if parts is not None:
        levels = {"/".join(which): data.corruptions[which[0]][which[1]].levels for which in single}
        options = [split, seed, score, ig_steps, levels, list(joint.items())]
        settings = [__version__, torch.__version__, parts[1], clean.ids, options]
        key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        files = {which: parts[0] / f"{slug('/'.join(which))}.npz" for which in every}
    rank, world = rank_and_world()
    # The first process alone looks: the others' disks may lag.
    spoilt = gather_objects(_read_parts(files, key) if rank == 0 else {})[0]
    # One of several modalities comes right after its parts, so that their encodings are there, and then forgotten.
    order = dict.fromkeys([*(w for which, members in joint.items() for w in (*members.items(), which)), *single])
    left = [which for which in order if which not in spoilt]
    if rank == 0 and len(left) < len(every):
        print(f"corrupt {split}: {len(every) - len(left)} of {len(every)} corruptions were done", file=sys.stderr)
    mine = range(rank, len(clean.ids), world)
    ids = [clean.ids[i] for i in mine]
    runs = {member for which in left for member in every[which].items()}
    progress = Progress(f"corrupt {split}", len(runs) * len(SEVERITIES) * len(ids), "clips")
    encoded: dict[tuple[str, str], list[Tensor]] = {}

    def encode_corrupted(modality: str, corruption: str) -> list[Tensor]:
        datasets = [data.corrupted(split, modality, corruption, severity, ids, seed) for severity in SEVERITIES]
        found: list[Tensor] = []
        with undisturbed(model), torch.no_grad():
            for batch in _loaded(data, ConcatDataset(datasets), model):
                with context():
                    found.append(_single(model.encoders[modality](batch["inputs"][modality])))
                progress.advance(len(batch["id"]))
        own = torch.cat(found) if found else next(iter(clean.encodings.values()))[:0]
        return _join(own, len(ids), clean.encodings[modality])

    for done, which in enumerate(left, 1):
        members = every[which].items()
        encoded |= {member: encode_corrupted(*member) for member in members if member not in encoded}
        right, shares = [], []
        for severity in range(len(SEVERITIES)):
            changed = {member[0]: encoded[member][severity] for member in members}
            clips = Encoded(clean.ids, labels, {**clean.encodings, **changed})
            with undisturbed(model), torch.no_grad():
                right.append(use.right(_head(model, clips.encodings), labels).cpu())
            alone = len(members) == 1 and len(names) > 1
            shares.append(
                attribution(model, clips, score=score, ig_steps=ig_steps) if alone else torch.empty(len(clips.ids), 0)
            )
        spoilt[which] = _Spoilt(torch.stack(right), torch.stack(shares))
        if files and rank == 0:
            write_arrays(files[which], {"key": key, "right": spoilt[which].right, "shares": spoilt[which].shares})
        later = {member for other in left[done:] for member in every[other].items()}
        encoded = {member: found for member, found in encoded.items() if member in later}

    table = _Table(len(clean.ids), resamples, seed)
    with undisturbed(model), torch.no_grad():
        unspoilt = use.right(_head(model, clean.encodings), labels).cpu()
    areas: dict[str, list[Tensor]] = {}
    for label, corruption in every:
        one = spoilt[label, corruption]
        for i, severity in enumerate(SEVERITIES):
            table.mean("acc_corrupted", label, one.right[i], None, corruption, severity)
            if one.shares.shape[2]:
                share = one.shares[i, :, names.index(label)]
                table.mean("share_corrupted", label, share, attributed_rows(one.shares[i]), corruption, severity)
        area = torch.trapezoid(torch.cat([unspoilt[None], one.right]), dim=0) / len(SEVERITIES)
        table.mean("auc", label, area, None, corruption)
        areas.setdefault(label, []).append(area)
    for label, several in areas.items():
        table.mean("auc", label, torch.stack(several).mean(0), None, "mean")
    return table.rows


def _read_parts(files: Mapping[tuple[str, str], Path], key: str) -> dict[tuple[str, str], _Spoilt]:
    """What an interrupted sweep has done; what is damaged, or of another model, data or options, is not used."""
    found = {}
    for which, path in files.items():
        if not path.is_file():
            continue
        try:
            arrays = read_arrays(path)
            if str(arrays["key"]) == key:
                found[which] = _Spoilt(*(torch.from_numpy(arrays[name]) for name in ("right", "shares")))
            else:
                print(f"{path}: of another model, data or options; made again", file=sys.stderr)
        except Exception as error:  # zipfile and numpy raise whatever they stumble over
            print(f"{path}: damaged ({error}); made again", file=sys.stderr)
    return found


def _join(found: Tensor, own: int, like: Tensor) -> list[Tensor]:
    """Encodings of a process's clips, severity after severity, to those of all clips, a severity each."""
    parts = gather_objects([found[start : start + own].cpu() for start in range(0, len(found), own)] if own else [])
    severities = []
    for severity in range(len(SEVERITIES)):
        whole = torch.empty(like.shape, dtype=like.dtype)
        for rank, part in enumerate(parts):
            if part:
                whole[rank :: len(parts)] = part[severity].to(like.dtype)
        severities.append(whole.to(like.device))
    return severities


# ------------------------------------------------------------------------------------------------------------ encoding


def encode(
    model: FusionModel,
    data: pl.LightningDataModule,
    split: Split,
    most: int | None = None,
    *,
    seed: int = 0,
    context: Context = nullcontext,
    ids: Sequence[str] | None = None,
) -> Encoded:
    """Encodes a split's clips that have every modality, without augmentation; under DDP each process its part.

    A data module that is not one of amr's gives its loader's batches, which under DDP must be this process's part.

    Args:
        model: The model.
        data: The data module.
        split: Whose clips.
        most: At most so many, chosen by a hash of their ids.
        seed: Of the choice.
        context: What the encoders run in.
        ids: Only these clips.
    """
    found: list[str] = []
    labels: list[Tensor] = []
    encodings: list[dict[str, Tensor]] = []
    wanted = None if ids is None else set(ids)
    with undisturbed(model), torch.no_grad():
        for batch in _batches(model, data, split, most, seed, wanted):
            rows = complete_rows(model.modalities, batch.get("present"))
            keep = [
                i for i, id in enumerate(batch["id"]) if (rows is None or rows[i]) and (wanted is None or id in wanted)
            ]
            if not keep:
                continue
            with context():
                encoded = model.encode({m: batch["inputs"][m][keep] for m in model.modalities})
            encodings.append({m: _single(e) for m, e in encoded.items()})
            labels.append(batch["label"][keep])
            found += [batch["id"][i] for i in keep]
    own = {m: torch.cat([part[m] for part in encodings]) for m in model.modalities} if found else {}
    none = torch.empty(0, dtype=torch.int64, device=next(model.parameters()).device)
    # A process that has none must not stop here: the others would wait for it.
    every = Encoded.of(found, torch.cat([none, *labels]), own)
    if not every.ids:
        raise UserError(f"robustness: no clip of {split} has every modality")
    return every.some(most, seed)


def _batches(
    model: FusionModel,
    data: pl.LightningDataModule,
    split: Split,
    most: int | None,
    seed: int,
    wanted: set[str] | None,
) -> Iterator[Any]:
    """A split's batches on the model's device, those of this process under DDP."""
    if not isinstance(data, ClipDataModule):
        loader = {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}[split]()
        done = 0
        for batch in loader:
            yield _moved(data, batch, model)
            done += len(batch["id"])
            if most is not None and done >= most:
                return
        return
    data.setup()
    dataset = data.clips_of(split)
    ids = [clip.id for clip in dataset.clips if wanted is None or clip.id in wanted]
    kept = set(stable_order(ids, seed)[:most])
    rank, world = rank_and_world()
    order = [i for i, clip in enumerate(dataset.clips) if clip.id in kept][rank::world]
    progress = Progress(f"encode {split}", len(order), "clips")
    for batch in _loaded(data, Subset(dataset, order), model):
        yield batch
        progress.advance(len(batch["id"]))


def _loaded(data: Any, dataset: Any, model: FusionModel) -> Iterator[Any]:
    size, workers = getattr(data, "batch_size", 64), getattr(data, "num_workers", 0)
    for batch in DataLoader(dataset, size, num_workers=workers, collate_fn=collate_clips):
        yield _moved(data, batch, model)


def _moved(data: pl.LightningDataModule, batch: Any, model: FusionModel) -> Any:
    device = next(model.parameters()).device
    return data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0)


def _single(encoding: Tensor) -> Tensor:
    """At least single precision: the head runs without autocast here."""
    return encoding.to(torch.promote_types(encoding.dtype, torch.float32))


def _head(model: FusionModel, encodings: Mapping[str, Tensor]) -> Tensor:
    count = len(next(iter(encodings.values())))
    blocks = [{m: e[start : start + 4096] for m, e in encodings.items()} for start in range(0, count, 4096)]
    return torch.cat([model.head(block) for block in blocks])


# --------------------------------------------------------------------------------------------------------------- table


class _Table:
    """Rows of measures over the same clips and the same resamples."""

    def __init__(self, clips: int, resamples: int, seed: int) -> None:
        self.bootstrap, self.rows = Bootstrap(clips, resamples=resamples, seed=seed), list[Row]()

    def interval(self, values: Tensor) -> Interval:
        return self.bootstrap.mean(values)

    def mean(
        self,
        measure: str,
        modality: str,
        values: Tensor,
        among: Tensor | None = None,
        corruption: str = "",
        severity: int | None = None,
    ) -> None:
        """A mean over clips, or over those of `among`."""
        count = self.bootstrap.clips if among is None else int(among.sum())
        if count:
            self._append(measure, modality, corruption, severity, self.bootstrap.mean(values, among), count)

    def add(self, measure: str, modality: str, statistic: Callable[[Tensor], Tensor], clips: int | None = None) -> None:
        """Any statistic of the clips."""
        self._append(measure, modality, "", None, self.bootstrap(statistic), clips or self.bootstrap.clips)

    def _append(
        self, measure: str, modality: str, corruption: str, severity: int | None, found: Interval, clips: int
    ) -> None:
        if found.value == found.value:
            self.rows.append(Row(measure, modality, corruption, severity, found.value, found.low, found.high, clips))


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes the long table as parquet, whole or not at all.

    Raises:
        UserError: The place cannot be written.
    """
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], SCHEMA), buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` wrote.

    Raises:
        UserError: It is not such a file.
    """
    allowed = "a table of robustness, as amr test writes it"
    with reading(path, allowed):
        table = pa.Table.from_pylist(read_table(path, allowed, SCHEMA.names, SCHEMA.names), SCHEMA)
        return [Row(**row) for row in table.to_pylist()]
