"""Accuracy and shares of a model when its inputs are corrupted, by corruption and severity."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from amr.attribution import (
    Score,
    at_least_float32,
    attributed_rows,
    undisturbed,
)
from amr.datamodules.corruptions import SEVERITIES, Corruptible
from amr.evaluation import use
from amr.evaluation.decisions.dial import Dial
from amr.evaluation.head import coalition_outputs
from amr.evaluation.metrics import attribution
from amr.evaluation.table import Row, Table
from amr.model import encode_alone
from amr.model.encoded import Context, Encoded, Split, loaded, logits_of
from amr.model.protocol import Explained
from amr.utils.arrays import slug, write_arrays
from amr.utils.distributed import gather_objects, rank_and_world
from amr.utils.names.version import __version__
from amr.utils.readers import read_arrays
from amr.utils.streams import Progress, note, status


@dataclass(frozen=True)
class _Spoilt:
    """Results of a corruption for each clip at each severity.

    Attributes:
        right: Whether the clip is right, (5, N) of 0 and 1.
        shares: (5, N, M); (5, N, 0) where several modalities are corrupted or there is one.
        dialled: Whether the clip is right at each position of the dial, (5, K, N) bool; K = 0 where there is one
            modality.
    """

    right: Tensor
    shares: Tensor
    dialled: Tensor


_ARRAYS = [array.name for array in fields(_Spoilt)]


def corruption_rows(
    model: Explained,
    data: pl.LightningDataModule,
    split: Split,
    clean: Encoded,
    train: Encoded | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    score: Score = "probability",
    ig_steps: int | None = None,
    parts: tuple[Path, str] | None = None,
    context: Context = nullcontext,
) -> list[Row]:
    """Accuracy and dominance under each corruption and severity, and the area under accuracy against severity.

    The area is also that of the model at each position of its decision-time dial.

    Args:
        model: The model.
        data: A `Corruptible` data module.
        split: Split whose clips are used, such as `test`.
        clean: Them, encoded as they are.
        train: Training clips, for the mean encoding that the dial's parts are measured from; None: that of `clean`.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of resamples and corruptions.
        score: Score that shares attribute.
        ig_steps: Points of integrated gradients; None for gradient⊙input.
        parts: Where what is done is kept, and a digest of the model and its data, without which it is not used.
        context: Context in which the encoders run.
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
    means = {m: e.mean(0, keepdim=True) for m, e in (train or clean).encodings.items()}
    dial = Dial.of(model, means) if len(names) > 1 else None
    positions = [] if dial is None else dial.settings
    files: dict[tuple[str, str], Path] = {}
    key = ""
    if parts is not None:
        levels = {"/".join(which): data.corruptions[which[0]][which[1]].levels for which in single}
        options = [split, seed, score, ig_steps, levels, list(joint.items()), [one.name for one in positions]]
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
        status(f"corrupt {split}: {len(every) - len(left)} of {len(every)} corruptions were done")
    mine = range(rank, len(clean.ids), world)
    ids = [clean.ids[i] for i in mine]
    runs = {member for which in left for member in every[which].items()}
    progress = Progress(f"corrupt {split}", len(runs) * len(SEVERITIES) * len(ids), "clips")
    encoded: dict[tuple[str, str], list[Tensor]] = {}

    def encode_corrupted(modality: str, corruption: str) -> list[Tensor]:
        datasets = [data.corrupted(split, modality, corruption, severity, ids, seed) for severity in SEVERITIES]
        found: list[Tensor] = []
        with undisturbed(model), torch.no_grad():
            for batch in loaded(data, ConcatDataset(datasets), model):
                with context():
                    found.append(at_least_float32(encode_alone(model, modality, batch["inputs"][modality])))
                progress.advance(len(batch["id"]))
        own = torch.cat(found) if found else next(iter(clean.encodings.values()))[:0]
        return _join(own, len(ids), clean.encodings[modality])

    def dialled(encodings: Mapping[str, Tensor]) -> Tensor:
        if dial is None:
            return torch.empty(0, len(labels), dtype=torch.bool)
        return dial.right(coalition_outputs(model, encodings, means).cpu().double(), labels.cpu())

    for done, which in enumerate(left, 1):
        members = every[which].items()
        encoded |= {member: encode_corrupted(*member) for member in members if member not in encoded}
        right, shares, at = [], [], []
        for severity in range(len(SEVERITIES)):
            changed = {member[0]: encoded[member][severity] for member in members}
            clips = Encoded(clean.ids, labels, {**clean.encodings, **changed})
            with undisturbed(model), torch.no_grad():
                right.append(use.right(logits_of(model, clips.encodings), labels).cpu())
            at.append(dialled(clips.encodings))
            alone = len(members) == 1 and len(names) > 1
            shares.append(
                attribution(model, clips, score=score, ig_steps=ig_steps) if alone else torch.empty(len(clips.ids), 0)
            )
        spoilt[which] = _Spoilt(torch.stack(right), torch.stack(shares), torch.stack(at))
        if files and rank == 0:
            write_arrays(files[which], {"key": key, **vars(spoilt[which])})
        later = {member for other in left[done:] for member in every[other].items()}
        encoded = {member: found for member, found in encoded.items() if member in later}

    table = Table(len(clean.ids), resamples, seed)
    with undisturbed(model), torch.no_grad():
        unspoilt = use.right(logits_of(model, clean.encodings), labels).cpu()
    areas: dict[str, list[Tensor]] = {}
    curves: dict[str, list[Tensor]] = {}
    still = dialled(clean.encodings)
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
        curve = torch.trapezoid(torch.cat([still[None], one.dialled]).double(), dim=0) / len(SEVERITIES)
        curves.setdefault(label, []).append(curve)
    for label, several in areas.items():
        table.mean("auc", label, torch.stack(several).mean(0), None, "mean")
        if positions:
            rows = [(f"dial_auc@{position.name}", label, "mean") for position in positions]
            table.means(rows, torch.stack(curves[label]).mean(0).T)
    return table.rows


def _read_parts(files: Mapping[tuple[str, str], Path], key: str) -> dict[tuple[str, str], _Spoilt]:
    """Finished parts of an interrupted sweep; damaged ones, or those of other models, data or options, are not used."""
    found = {}
    for which, path in files.items():
        if not path.is_file():
            continue
        try:
            arrays = read_arrays(path)
            if str(arrays["key"]) == key:
                found[which] = _Spoilt(*(torch.from_numpy(arrays[name]) for name in _ARRAYS))
            else:
                note(f"{path}: of another model, data or options; made again")
        except Exception as error:  # zipfile and numpy raise whatever they stumble over
            note(f"{path}: damaged ({error}); made again")
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
