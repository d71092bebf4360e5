"""Labels, splits and ids of tensors, from their columns."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amr.datamodules.listing import SPLITS, check_labels, stable_order
from amr.datamodules.tensors.sources import Values
from amr.utils.errors import UserError

JOIN, NO_LABEL = ", ", "none"  # of a clip's several labels, as text


@dataclass(frozen=True)
class Labels:
    """The labels of all clips.

    Attributes:
        names: Class names in the order of the class indices.
        target: Class indices (N,) int64; or, of clips with several labels, (N, C) float32 of 0 and 1.
        text: Each clip's label, or labels, for people.
    """

    names: list[str]
    target: Tensor
    text: list[str]


def labels_of(values: Mapping[str, Values], given: Sequence[str] | None, ids: Sequence[str]) -> Labels:
    """Labels from their column, or columns.

    One column of numbers or texts is one class per clip. Several columns of 0 and 1, one column (N, C) of them, and a
    column of lists (of names, or of indices) are several labels per clip.

    Args:
        values: The columns, by name.
        given: Class names in the order of the class indices; None: the values that occur, sorted.
        ids: The clips' names, for messages.

    Raises:
        UserError: A label is missing, unknown, or of another form; it names the clip.
    """
    if given is not None and len(set(given)) < len(given):
        raise UserError(f"data.labels={list(given)}: must name each label once")
    if len(values) > 1:
        columns = {key: _flags(key, entries, ids) for key, entries in values.items()}
        names = list(given) if given is not None else list(columns)
        return _several(names, np.stack(list(columns.values()), 1), ids)
    ((key, entries),) = values.items()
    if isinstance(entries, np.ndarray) and entries.ndim == 2:
        return _several(list(given) if given is not None else list(map(str, range(entries.shape[1]))), entries, ids)
    if isinstance(entries, list) and any(isinstance(e, list) or np.ndim(e) for e in entries if e is not None):
        return _listed(key, entries, given, ids)
    return _single(key, entries, given, ids)


def names_of(label: Tensor, names: Sequence[str]) -> str:
    """A class index (), or labels (C,) of 0 and 1, for people."""
    if not label.ndim:
        return names[int(label)]
    return JOIN.join(name for name, on in zip(names, label.tolist(), strict=True) if on) or NO_LABEL


def numbers_of(values: Mapping[str, Values], ids: Sequence[str]) -> Labels:
    """The numbers that a regression learns, (N, 1) float32, from their column.

    Raises:
        UserError: There are several columns, or an entry is no finite number; it names the clip.
    """
    if len(values) > 1:
        raise UserError(f"data.label={list(values)}: must be one column with data.regression=true")
    ((key, entries),) = values.items()
    numbers = []
    for i, entry in enumerate(entries):
        value = np.asarray(np.nan if entry is None else entry)
        if value.dtype.kind not in "biuf" or value.size != 1 or not np.isfinite(value).all():
            raise _bad(i, ids, f"column {key!r} has {str(entry)[:40]!r}", "a finite number, with data.regression=true")
        numbers.append(float(value.reshape(())))
    return Labels([key], torch.tensor(numbers, dtype=torch.float32)[:, None], [f"{number:g}" for number in numbers])


def _single(key: str, entries: Values, given: Sequence[str] | None, ids: Sequence[str]) -> Labels:
    plain = [_plain(key, i, entry, ids) for i, entry in enumerate(entries)]
    numbers = all(isinstance(value, int) for value in plain)
    if numbers and given is not None:
        for i, value in enumerate(plain):
            if not 0 <= int(value) < len(given):
                raise _bad(
                    i, ids, f"label {value}", f"an index of the {len(given)} of data.labels, 0 to {len(given) - 1}"
                )
        return Labels(list(given), torch.tensor(plain, dtype=torch.int64), [given[int(value)] for value in plain])
    texts = list(map(str, plain))
    names = list(given) if given is not None else list(map(str, sorted(set(plain)))) if numbers else sorted(set(texts))
    check_labels(names, "data.labels")
    place = {name: i for i, name in enumerate(names)}
    for i, text in enumerate(texts):
        if text not in place:
            raise _bad(i, ids, f"label {text!r}", f"one of {', '.join(names)}")
    return Labels(names, torch.tensor([place[text] for text in texts], dtype=torch.int64), texts)


def _plain(key: str, clip: int, entry: Any, ids: Sequence[str]) -> int | str:
    value = entry.item() if isinstance(entry, np.ndarray | np.generic) and not np.ndim(entry) else entry
    if isinstance(value, bool | int):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise _bad(clip, ids, f"column {key!r} has {str(value)[:40]!r}", "a class's name or index")


def _flags(key: str, entries: Values, ids: Sequence[str]) -> Any:
    column = (
        np.asarray(entries)
        if not isinstance(entries, list)
        else np.asarray([None if e is None else e for e in entries])
    )
    if column.ndim != 1 or column.dtype.kind not in "biuf":
        raise _bad(0, ids, f"label column {key!r} is of {column.dtype} and shape {column.shape}", "0 or 1")
    return column


def _several(names: list[str], flags: Any, ids: Sequence[str]) -> Labels:
    check_labels(names, "data.labels")
    if len(names) != flags.shape[1]:
        raise UserError(f"data.labels: {len(names)} names; must be {flags.shape[1]}, one per label")
    wrong = ~np.isin(flags, (0, 1)) if flags.dtype.kind in "biuf" else np.ones(flags.shape, bool)
    if wrong.any():
        clip, place = (int(i) for i in np.argwhere(wrong)[0])
        raise _bad(clip, ids, f"label {names[place]!r} is {str(flags[clip, place])[:40]}", "0 or 1")
    target = torch.from_numpy(flags.astype(np.float32))
    return Labels(
        names, target, [JOIN.join(n for n, on in zip(names, row, strict=True) if on) for row in target.tolist()]
    )


def _listed(key: str, entries: Values, given: Sequence[str] | None, ids: Sequence[str]) -> Labels:
    rows = [None if entry is None else np.atleast_1d(np.asarray(entry)).tolist() for entry in entries]
    for i, row in enumerate(rows):
        if row is None or not (all(isinstance(v, str) for v in row) or all(isinstance(v, int) for v in row)):
            raise _bad(i, ids, f"column {key!r} has {str(entries[i])[:40]!r}", "a list of class names or indices")
    whole = [v for row in rows for v in row or ()]
    if not whole:
        raise UserError(f"data.label: column {key!r} has no label of any clip")
    if given is None:
        names = (
            list(map(str, range(max(whole) + 1)))
            if all(isinstance(v, int) for v in whole)
            else sorted(set(map(str, whole)))
        )
    else:
        names = list(given)
    place: dict[Any, int] = {name: i for i, name in enumerate(names)} | {i: i for i in range(len(names))}
    flags = np.zeros((len(rows), len(names)), np.float32)
    for i, row in enumerate(rows):
        for value in row or ():
            if value not in place:
                raise _bad(i, ids, f"label {value!r}", f"one of {', '.join(names)}")
            flags[i, place[value]] = 1
    return _several(names, flags, ids)


def _bad(clip: int, ids: Sequence[str], what: str, allowed: str) -> UserError:
    return UserError(f"data.label: clip {ids[clip]!r} (row {clip}): {what}; must be {allowed}")


# -------------------------------------------------------------------------------------------------------------- splits


def ids_of(entries: Values) -> list[str]:
    """Names of clips from their column.

    Raises:
        UserError: One is empty, is there twice, or has a character that cannot be printed.
    """
    ids = [str(e.item() if isinstance(e, np.ndarray | np.generic) and not np.ndim(e) else e).strip() for e in entries]
    for i, (id, entry) in enumerate(zip(ids, entries, strict=True)):
        if entry is None or not id or not id.isprintable() or np.ndim(entry):
            raise UserError(f"data.id: row {i} is {str(entry)[:40]!r}; must be a name, each once")
    twice = [id for id, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError(f"data.id: {twice[0]!r} is there {Counter(ids)[twice[0]]} times; must be there once")
    return ids


def splits_of(entries: Values, ids: Sequence[str]) -> list[str]:
    """Each clip's split from its column.

    Raises:
        UserError: One is none of train, val, test and all.
    """
    texts = [str(e.item() if isinstance(e, np.ndarray | np.generic) and not np.ndim(e) else e).strip() for e in entries]
    for i, text in enumerate(texts):
        if text not in SPLITS:
            raise UserError(
                f"data.split: clip {ids[i]!r} (row {i}) has {text[:40]!r}; must be one of {', '.join(SPLITS)}"
            )
    return texts


def check_fractions(fractions: Mapping[str, Any]) -> dict[str, float]:
    """Fractions of val and test.

    Raises:
        UserError: A name or a number that is not allowed.
    """
    ok = bool(fractions) and set(fractions) <= {"val", "test"}
    ok = ok and all(isinstance(part, float | int) and 0 < part < 1 for part in fractions.values())
    if not ok or sum(fractions.values()) >= 1:
        raise UserError(
            f"data.split={dict(fractions)}: must be fractions of val and test, above 0 and together below 1"
        )
    return {name: float(part) for name, part in fractions.items()}


def drawn(
    fractions: Mapping[str, float], ids: Sequence[str], target: Tensor, seed: int, *, stratify: bool
) -> list[str]:
    """Each clip's split, drawn by a hash of its id: the same on every machine, whatever the order of the clips.

    Args:
        fractions: Fractions of val and test; the others train.
        ids: The clips' names.
        target: Their labels, (N,) or (N, C).
        seed: Seed of the draw.
        stratify: Whether to take the fraction of each class; of several labels, of the clips whose rarest label it is.
    """
    members: dict[int, list[str]] = {}
    for id, stratum in zip(ids, strata(target).tolist() if stratify else [0] * len(ids), strict=True):
        members.setdefault(stratum, []).append(id)
    split = dict.fromkeys(ids, "train")
    left = dict.fromkeys(fractions, 0.0)  # what rounding owes: with many small classes the whole keeps its fractions
    for stratum in sorted(members):
        order, start = stable_order(members[stratum], seed), 0
        for name, part in fractions.items():
            left[name] += part * len(order)
            take = min(max(round(left[name]), 0), len(order) - start)
            split |= dict.fromkeys(order[start : start + take], name)
            left[name], start = left[name] - take, start + take
    return [split[id] for id in ids]


def strata(target: Tensor) -> Tensor:
    """Class of each clip (N,); of several labels (N, C) the one that the fewest clips have, -1 of a clip without."""
    if target.ndim == 1:
        return target
    count = target.sum(0)
    rarity = torch.where(target > 0, count, torch.inf)
    return torch.where(target.any(1), rarity.argmin(1), -1)
