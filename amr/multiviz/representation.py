"""Representation (R): which clips move a penultimate unit most.

What in one clip moves it (local) is U and C with a `Unit` for a target.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amr.attribution import undisturbed
from amr.model import complete_rows, device_of, protocol
from amr.model.batches import as_batch
from amr.model.protocol import Explained
from amr.utils.errors import UserError


@dataclass(frozen=True)
class Extremes:
    """Clips at one end of each unit's activation, the most extreme first; K = min(k, clips).

    Attributes:
        ids: The clips' ids, (U, K).
        values: The unit's activation, (U, K).
        labels: The clips' classes, (U, K) int64.
    """

    ids: list[list[str]]
    values: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ExtremeClips:
    """The clips that most and least activate each unit.

    Attributes:
        units: The units, (U,).
        most: The clips with the highest activation.
        least: Those with the lowest.
        clips: Number of clips that were ranked.
        lacking: Number of clips that were left out because they lack a modality.
    """

    units: list[int]
    most: Extremes
    least: Extremes
    clips: int
    lacking: int


def extreme_clips(
    model: Explained | Iterable[Any],
    batches: Iterable[Any] | Explained,
    units: Sequence[int] | None = None,
    k: int = 10,
) -> ExtremeClips:
    """The k clips that most and least activate each penultimate unit (Liang et al. 2023, global representations).

    One pass over the batches: every encoder and the fusion run once per clip, and no more than k clips per unit and
    end are remembered. A clip that lacks a modality is left out and counted: its unit answers to a zero encoding,
    which says more of the gap than of the clip. Values that agree to 5 digits are ties, which go by id, so that
    rounding, which depends on the batch size, does not decide between equal clips; one that comes twice counts once
    in a ranking.

    Args:
        model: The model.
        batches: Batches, as for `amr.model.batches.as_batch`. Before the model, as in 0.1, they are understood, too.
        units: Columns of `model.penultimate`, from 0; None for all.
        k: Clips a unit and end, at least 1.

    Returns:
        The clips; on the CPU.

    Raises:
        UserError: A unit does not exist, k is below 1, a unit's activation is not finite, or no clip is left.
    """
    if k < 1:
        raise UserError(f"k={k}: must be at least 1")
    if protocol.lacking(model) and not protocol.lacking(batches):
        model, batches = batches, model
    model, batches = cast(Explained, model), cast(Iterable[Any], batches)
    device = device_of(model)
    chosen = None if units is None else list(units)
    ranking, clips, lacking = None, 0, 0
    for number, given in enumerate(batches):
        batch = as_batch(given, model.modalities, (0, number))
        labels, ids = batch["label"], np.array(batch["id"], dtype=object)
        present = batch.get("present")
        complete = complete_rows(model.modalities, present)
        rows = torch.arange(len(labels)) if complete is None else complete.cpu().nonzero()[:, 0]
        lacking, clips = lacking + len(labels) - len(rows), clips + len(rows)
        if not len(rows):
            continue
        with undisturbed(model), torch.no_grad():
            inputs = {m: batch["inputs"][m][rows.to(batch["inputs"][m].device)].to(device) for m in model.modalities}
            features = model.penultimate(model.encode(inputs)).cpu()
        chosen = list(range(features.shape[1])) if chosen is None else chosen
        ranking = _ranked(ranking, features, ids[rows.numpy()], labels.cpu()[rows], chosen, k)
    if chosen is None or ranking is None:
        raise UserError(f"batches: no clip has every modality; {lacking} lack one")
    return ExtremeClips(chosen, _extremes(ranking[0]), _extremes(ranking[1]), clips, lacking)


def extreme_features(
    features: Tensor, ids: Sequence[str], labels: Tensor, units: Sequence[int] | None = None, k: int = 10
) -> ExtremeClips:
    """`extreme_clips` of penultimate features that are known, as from cached encodings: nothing runs.

    Args:
        features: (N, D).
        ids: Ids of the clips.
        labels: Their classes, (N,).
        units: As in `extreme_clips`.
        k: As in `extreme_clips`.

    Raises:
        UserError: A unit does not exist, k is below 1, an activation is not finite, or there is no clip.
    """
    if k < 1 or not len(features):
        raise UserError(f"k={k}: must be at least 1" if k < 1 else "features: there is no clip")
    chosen = list(range(features.shape[1])) if units is None else list(units)
    most, least = _ranked(None, features.detach().cpu(), np.array(ids, dtype=object), labels.cpu(), chosen, k)
    return ExtremeClips(chosen, _extremes(most), _extremes(least), len(features), 0)


Ranking = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # ids, values, labels, each (U, K)


def _ranked(
    old: tuple[Ranking, Ranking] | None, features: Tensor, ids: NDArray[Any], labels: Tensor, units: list[int], k: int
) -> tuple[Ranking, Ranking]:
    """The most and the least activating of what was known and of further clips: features (N, D)."""
    if not all(0 <= unit < features.shape[1] for unit in units):
        raise UserError(f"units={units}: must be 0 to {features.shape[1] - 1}")
    values = features[:, units].t()
    finite = torch.isfinite(values).all(0)
    if not bool(finite.all()):
        raise UserError(f"units: an activation of the clip {ids[~finite.numpy()][0]!r} is not finite")
    new = (np.tile(ids, (len(units), 1)), values.numpy(), labels.numpy())
    most, least = (None, None) if old is None else old
    return _merged(most, new, k, -1), _merged(least, new, k, 1)


def _merged(old: Ranking | None, new: tuple[NDArray[Any], NDArray[Any], NDArray[Any]], k: int, sign: int) -> Ranking:
    """The first k of both by sign · value, then by id; each id once."""
    ids, values, labels = new[0], new[1], np.broadcast_to(new[2], new[1].shape)
    if old is not None:
        ids, values, labels = (np.concatenate(pair, axis=1) for pair in zip(old, (ids, values, labels), strict=True))
    rank = np.unique(ids, return_inverse=True)[1].reshape(ids.shape)
    order = np.lexsort((rank, sign * _rounded(values)), axis=1)
    ids, values, labels, rank = (np.take_along_axis(a, order, axis=1) for a in (ids, values, labels, rank))
    kept = [_first(row, k) for row in rank]
    width = min(map(len, kept))  # the same for all units: as many as there are different clips
    index = np.array([row[:width] for row in kept])
    return tuple(np.take_along_axis(a, index, axis=1) for a in (ids, values, labels))  # type: ignore[return-value]


def _first(rank: NDArray[Any], k: int) -> list[int]:
    """Positions of the first k different ranks."""
    return sorted(np.unique(rank, return_index=True)[1])[:k]


def _rounded(values: NDArray[Any]) -> NDArray[Any]:
    """Values to 17 binary digits, so that equal clips tie whatever batch they came in."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    rounded: NDArray[Any] = np.ldexp(np.round(mantissa * 2**17), exponent - 17)
    return rounded


def _extremes(ranking: Ranking) -> Extremes:
    ids, values, labels = ranking
    return Extremes(ids.tolist(), torch.from_numpy(values.copy()), torch.from_numpy(labels.copy()))
