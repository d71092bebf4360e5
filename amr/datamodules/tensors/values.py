"""A modality's input of every clip, from its columns: shapes, padding, missing values, standardizing, vocabularies."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amr.datamodules.tensors.columns import SHAPES, Column
from amr.datamodules.tensors.sources import Values
from amr.utils.errors import UserError

PAD, UNKNOWN = 0, 1
"""Ids of what lies behind a text's end, and of a token that the vocabulary lacks."""
CATEGORIES = 1000  # of one column of a table


@dataclass(frozen=True)
class Modality:
    """One modality of all clips.

    Attributes:
        x: Inputs, (N, ...), float32, or int64 of tokens; zero of clips that lack the modality.
        present: Whether each clip has it, boolean (N,).
        fitted: Values taken from the training clips, in plain types: means and deviations, length, vocabulary.
        names: A table's name of each dimension, `column=value` of a category; empty otherwise.
        owner: A table's column of each dimension, counted from 0; empty otherwise.
    """

    x: Tensor
    present: Tensor
    fitted: dict[str, Any]
    names: tuple[str, ...] = ()
    owner: tuple[int, ...] = ()

    @property
    def vocabulary(self) -> list[str]:
        """Text of each token id; empty where the data has ids."""
        words = self.fitted.get("vocabulary") or []
        return ["<pad>", "<unknown>", *words] if words else []


def modality_of(
    name: str,
    column: Column,
    values: Mapping[str, Values],
    train: NDArray[np.bool_],
    ids: Sequence[str],
    fitted: Mapping[str, Any] | None = None,
    vocabulary: Sequence[str] | None = None,
) -> Modality:
    """A modality from its columns.

    Args:
        name: Its name, for messages.
        column: Kind of its inputs.
        values: Its columns, N entries each, by name.
        train: Whether each clip trains, boolean (N,); means, deviations and vocabularies come from these clips.
        ids: The clips' names, for messages.
        fitted: Values that another module took from its training clips; None: taken here.
        vocabulary: Tokens' texts, where they are given.

    Raises:
        UserError: A column's entries are not of the kind; it names the clip.
    """
    maker = _Maker(name, column, ids, train, dict(fitted or {}))
    names: list[str] = []
    owner: list[int] = []
    if column.kind == "tokens":
        x, present = maker.tokens(values, vocabulary)
    elif column.kind == "table":
        x, present, names, owner = maker.table(values)
    else:
        parts = [maker.numbers(key, entries) for key, entries in values.items()]
        x = maker.shaped(parts)
        present = ~torch.isnan(x).flatten(1).all(1)
    if column.kind != "tokens":
        x = maker.standardized(x, present)
    return Modality(x, present, maker.fitted, tuple(names), tuple(owner))


class _Maker:
    """Makes one modality; arguments as `modality_of` has them."""

    def __init__(
        self, name: str, column: Column, ids: Sequence[str], train: NDArray[np.bool_], fitted: dict[str, Any]
    ) -> None:
        self.name, self.column, self.ids, self.train, self.fitted = name, column, ids, train, fitted

    def bad(self, clip: int, what: str) -> UserError:
        kind = self.column.kind
        return UserError(
            f"data.modalities.{self.name}: clip {self.ids[clip]!r} (row {clip}): {what}; "
            f"must be {SHAPES[kind]} for the kind {kind}"
        )

    # ------------------------------------------------------------------------------------------------------- numbers

    def numbers(self, key: str, entries: Values) -> NDArray[np.float32]:
        """A column of numbers (N, ...), NaN where there is none; ragged ones are padded along their first axis."""
        if isinstance(entries, np.ndarray):
            if entries.dtype.kind not in "biuf":
                raise self.bad(0, f"column {key!r} has text")
            x = entries.astype(np.float32)
        else:
            x = self._padded([self._array(key, i, entry) for i, entry in enumerate(entries)])
        if self.column.kind == "series" and x.ndim > 1:
            x = self._fit_length(x)
        if np.isinf(x).any():
            raise self.bad(int(np.isinf(x).reshape(len(x), -1).any(1).argmax()), f"column {key!r} has infinity")
        return x

    def _array(self, key: str, clip: int, entry: Any) -> NDArray[np.float32] | None:
        if entry is None:
            return None
        array = np.asarray(entry)
        if array.dtype.kind not in "biuf":
            raise self.bad(clip, f"column {key!r} has {str(entry)[:40]!r}")
        return array.astype(np.float32)

    def _padded(self, arrays: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32]:
        there = {i: array for i, array in enumerate(arrays) if array is not None}
        if not there:
            raise UserError(f"data.modalities.{self.name}: no clip has it; must have values of some clips")
        ragged = self.column.kind == "series"
        first = next(iter(there.values()))
        for i, array in there.items():
            if array.ndim != first.ndim or array.shape[ragged:] != first.shape[ragged:] or (ragged and not array.ndim):
                raise self.bad(i, f"its shape is {array.shape}, others' {first.shape}")
        steps = max(len(array) for array in there.values()) if ragged else 0
        shape = (steps, *first.shape[1:]) if ragged else first.shape
        x = np.full((len(arrays), *shape), np.nan, np.float32)
        for i, array in there.items():
            x[(i, slice(len(array))) if ragged else i] = array
        return x

    def _fit_length(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cut or padded with NaN to the modality's number of steps."""
        steps = self.fitted.setdefault("length", self.column.length or x.shape[1])
        short = [(0, 0), (0, max(steps - x.shape[1], 0)), *[(0, 0)] * (x.ndim - 2)]
        return np.pad(x[:, :steps], short, constant_values=np.nan)

    def shaped(self, parts: Sequence[NDArray[np.float32]]) -> Tensor:
        """Columns as one input (N, ...) of the kind."""
        kind = self.column.kind
        if kind == "series":
            parts = [x[..., None] if x.ndim == 2 else x for x in parts]
            if len({x.shape[:-1] for x in parts}) > 1:
                raise self.bad(0, f"its columns are of shapes {', '.join(str(x.shape[1:]) for x in parts)}")
            return self._sized(np.concatenate(parts, -1), (3,))
        x = parts[0]
        if kind == "vector":
            return self._sized(x[:, None] if x.ndim == 1 else x, (2,))
        if kind == "spectrogram":
            return self._sized(x[:, None] if x.ndim == 3 else x, (4,))
        grey, coloured = (3, 4) if kind == "image" else (4, 5)
        if x.ndim == grey:
            x = np.expand_dims(x, grey - 2)
        elif x.ndim == coloured and self._channels_last(x):
            x = np.moveaxis(x, -1, -3)
        return self._sized(x, (coloured,))

    def _channels_last(self, x: NDArray[np.float32]) -> bool:
        last = x.shape[-1] in (1, 3, 4) and x.shape[-3] not in (1, 3, 4)
        return last if self.column.channels is None else self.column.channels == "last"

    def _sized(self, x: NDArray[np.float32], dimensions: tuple[int, ...]) -> Tensor:
        if x.ndim not in dimensions or 0 in x.shape:
            raise self.bad(0, f"its shape is {x.shape[1:]}")
        return torch.from_numpy(np.ascontiguousarray(x))

    def standardized(self, x: Tensor, present: Tensor) -> Tensor:
        """Missing values filled by the training clips' mean, and standardized where the column asks for it."""
        axes = {"vector": (0,), "table": (0,), "series": (0, 1), "image": (0, 2, 3), "frames": (0, 1, 3, 4)}
        if "mean" not in self.fitted:
            kept = x[torch.from_numpy(self.train) & present].double()
            if not len(kept):
                raise UserError(f"data.modalities.{self.name}: no training clip has it; must have values of some")
            over = axes.get(self.column.kind, tuple(range(x.ndim)))
            there = ~kept.isnan()
            count = there.sum(over, keepdim=True).clamp_min(1)
            mean = kept.nan_to_num(0.0).sum(over, keepdim=True) / count
            spread = (((kept - mean).nan_to_num(0.0) ** 2).sum(over, keepdim=True) / count).sqrt()
            spread = torch.where(spread > 1e-12 * mean.abs().clamp_min(1e-12), spread, 1.0)
            self.fitted |= {"mean": mean[0].tolist(), "deviation": spread[0].tolist()}
        mean, spread = (torch.tensor(self.fitted[key], dtype=torch.float64) for key in ("mean", "deviation"))
        filled = torch.where(x.isnan(), mean.float(), x)
        if self.column.standardizes:
            filled = ((filled.double() - mean) / spread).float()
        return torch.where(present.view(-1, *[1] * (x.ndim - 1)), filled, torch.zeros(()))

    # --------------------------------------------------------------------------------------------------------- tables

    def table(self, values: Mapping[str, Values]) -> tuple[Tensor, Tensor, list[str], list[int]]:
        """Numbers as they are, categories as one dimension each; a clip has it if any column has a value."""
        parts: list[NDArray[np.float32]] = []
        names: list[str] = []
        owner: list[int] = []
        alone = len(values) == 1
        for key, entries in values.items():
            texts = _texts(entries)
            if texts is not None:
                part, own = self._categories(key, texts), [f"{key}={name}" for name in self.fitted["categories"][key]]
            else:
                part = self.numbers(key, entries)
                part = part[:, None] if part.ndim == 1 else part
                if part.ndim != 2 or (part.shape[1] > 1 and not alone):
                    raise self.bad(0, f"column {key!r} has shape {part.shape[1:]}")
                own = self.column.names or (
                    [key] if part.shape[1] == 1 else [f"{key} {i}" for i in range(part.shape[1])]
                )
                if len(own) != part.shape[1]:
                    raise UserError(
                        f"data.modalities.{self.name}.names: {len(own)} names; must be {part.shape[1]}, one per column"
                    )
            first = owner[-1] + 1 if owner else 0
            owner += [first] * len(own) if texts is not None else range(first, first + len(own))
            parts.append(part)
            names += own
        x = torch.from_numpy(np.concatenate(parts, 1))
        return x, ~x.isnan().all(1), names, owner

    def _categories(self, key: str, texts: Sequence[str | None]) -> NDArray[np.float32]:
        known = self.fitted.setdefault("categories", {})
        if key not in known:
            known[key] = sorted({text for text, kept in zip(texts, self.train, strict=True) if kept and text})
        if not 1 <= len(known[key]) <= CATEGORIES:
            raise UserError(
                f"data.modalities.{self.name}: column {key!r} has {len(known[key])} categories in training; "
                f"must be 1 to {CATEGORIES}, or numbers"
            )
        place = {name: i for i, name in enumerate(known[key])}
        x = np.zeros((len(texts), len(place)), np.float32)
        for i, text in enumerate(texts):
            if not text:
                x[i] = np.nan
            elif text in place:  # one that training lacks is none of them
                x[i, place[text]] = 1
        return x

    # --------------------------------------------------------------------------------------------------------- tokens

    def tokens(self, values: Mapping[str, Values], vocabulary: Sequence[str] | None) -> tuple[Tensor, Tensor]:
        """Ids (N, T) int64, padded by 0 at the end."""
        ((key, entries),) = values.items()
        texts = _texts(entries)
        if texts is not None or any(isinstance(entry, list) for entry in entries):
            split = [self._words(i, e) for i, e in enumerate(texts if texts is not None else entries)]
            if not self.fitted.get("vocabulary"):
                counts = Counter(w for words, kept in zip(split, self.train, strict=True) if kept for w in words or ())
                made = sorted(counts, key=lambda word: (-counts[word], word))[: self.column.most]
                self.fitted["vocabulary"] = list(vocabulary) if vocabulary else made
            place = {word: i + 2 for i, word in enumerate(self.fitted["vocabulary"])}
            lists = [None if words is None else [place.get(word, UNKNOWN) for word in words] for words in split]
        else:
            self.fitted["vocabulary"] = list(vocabulary or [])
            lists = [None if entry is None else self._ids(key, i, entry) for i, entry in enumerate(entries)]
        longest = max((len(ids) for ids in lists if ids), default=0)
        steps = self.fitted.setdefault("length", self.column.length or longest)
        if not longest:
            raise UserError(f"data.modalities.{self.name}: no clip has a token; must have some")
        x = torch.zeros(len(lists), steps, dtype=torch.int64)
        for i, ids in enumerate(lists):
            if ids:
                x[i, : len(ids)] = torch.tensor(ids[:steps])
        return x, torch.tensor([bool(ids) for ids in lists])

    def _words(self, clip: int, entry: Any) -> list[str] | None:
        if entry is None:
            return None
        if isinstance(entry, str):
            return entry.split() if self.column.unit == "word" else list(entry)
        if isinstance(entry, list) and all(isinstance(word, str) for word in entry):
            return entry
        raise self.bad(clip, f"it is {str(entry)[:40]!r} among texts")

    def _ids(self, key: str, clip: int, entry: Any) -> list[int]:
        ids = np.asarray(entry)
        whole = ids.dtype.kind in "biu" or (ids.dtype.kind == "f" and not (ids % 1).any())
        if ids.ndim != 1 or not whole or (ids.size and ids.min() < 0):
            raise self.bad(
                clip, f"column {key!r} has shape {ids.shape} of {ids.dtype}, or an id that is no whole number"
            )
        known = len(self.fitted["vocabulary"]) + 2
        if self.fitted["vocabulary"] and ids.size and ids.max() >= known:
            raise self.bad(clip, f"id {int(ids.max())} is not in the vocabulary of {known} with its two own")
        return [int(i) for i in ids]


def _texts(entries: Values) -> Sequence[str | None] | None:
    """A column of texts, None where there is none; None if the column has anything else."""
    if isinstance(entries, np.ndarray):
        return [str(text) for text in entries.tolist()] if entries.dtype.kind == "U" and entries.ndim == 1 else None
    texts = [str(e) if isinstance(e, np.ndarray) and e.dtype.kind == "U" and not e.ndim else e for e in entries]
    known = all(text is None or isinstance(text, str) for text in texts) and any(text is not None for text in texts)
    return texts if known else None
