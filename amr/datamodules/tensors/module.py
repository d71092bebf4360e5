"""Clips that are tensors already: vectors, tables, time series, tokens, images, in files, dictionaries or datasets."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amr.datamodules.atoms import Atoms, Kind
from amr.datamodules.atoms.baselines import How
from amr.datamodules.clips import find_file
from amr.datamodules.corruptions import Corruption
from amr.datamodules.folders import RootFolder, check_folder
from amr.datamodules.listed import ListedClips, check_batches
from amr.datamodules.listing import read_lines
from amr.datamodules.store.media import Clip
from amr.datamodules.tensors.clips import CorruptedTensors, TensorDataset
from amr.datamodules.tensors.columns import Column, as_column
from amr.datamodules.tensors.labels import (
    Labels,
    check_fractions,
    drawn,
    ids_of,
    labels_of,
    numbers_of,
    splits_of,
    strata,
)
from amr.datamodules.tensors.shapes import kind_atoms, tensor_picture
from amr.datamodules.tensors.sources import Values, read_columns
from amr.datamodules.tensors.spoil import corruptions_of
from amr.datamodules.tensors.values import PAD, Modality, modality_of
from amr.datamodules.transforms.picture import Picture
from amr.utils.errors import UserError
from amr.utils.streams import note

SPLITS = ("train", "val", "test")


class Tensors(ListedClips):
    """Clips whose modalities are columns of arrays.

    A batch is `{"inputs": {modality: (B, ...)}, "label": (B,) int64 or (B, C) float32, "id": list[str]}` and, with
    missing=keep, `"present": {modality: (B,) bool}`. Inputs are float32; tokens are int64. All columns lie in memory.

    Args:
        source: The columns: a file (npz, parquet, safetensors), relative to the current folder or else to `root`; from
            Python also arrays by name, or a dataset of torch or Hugging Face (items that are dictionaries, or tuples,
            whose columns are called 0, 1, ...). Or one of these for each of train, val and test.
        modalities: Columns and kind of each modality, in the order of the batch; see `Column`. A kind alone is short
            for that kind and the column of the modality's name.
        label: Column of the labels: class names or indices; for several labels per clip a column (N, C) of 0 and 1, a
            column of lists, or several columns of 0 and 1.
        split: Column of train, val, test or all; or fractions such as `{val: 0.1, test: 0.2}`, drawn of all clips, or
            of train where `source` has splits. None: those of `source`.
        id: Column of the clips' names. None: their row numbers.
        root: Folder that no file may lie outside of. None: files may lie anywhere.
        labels: Class names in the order of the class indices, or a text file with one per line. None: those in the
            data, sorted.
        name: Name of the data set in tables and folders. None: the file's, or `tensors`.
        split_seed: Seed of the fractions' draw.
        stratify: Whether the fractions are those of each class.
        missing: Treatment of a clip that lacks a modality: `skip` leaves it out, `keep` takes it with zeros for
            input and `present` False, unless it lacks all. A clip lacks what is null, or NaN throughout.
        batch_size: Clips per batch and rank.
        num_workers: Loader processes.
        seed: Seed of the order of training clips.
        drop_last: Leave out an epoch's last training batch if it is smaller.
        predict_split: Split over which `predict` runs.
        follow_links: Whether to read files through links that lead out of `root`. None: through those that the owner of
            the folder `root` made.
        balance: Whether each training epoch draws as many clips with replacement, every class alike; of several labels
            per clip, by the clip's rarest one.
        regression: Whether the label is a number to predict; the model's `task` is then `regression`.

    Raises:
        UserError: Anything wrong with the arguments, a file or a column.
    """

    def __init__(
        self,
        source: Any,
        modalities: dict[str, Column | str | dict[str, Any]],
        label: str | list[str] = "label",
        split: str | dict[str, float] | None = None,
        id: str | None = None,
        root: str | Path | None = None,
        labels: list[str] | str | None = None,
        name: str | None = None,
        split_seed: int = 0,
        stratify: bool = True,
        missing: Literal["skip", "keep"] = "skip",
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        drop_last: bool = False,
        predict_split: Literal["train", "val", "test"] = "test",
        follow_links: bool | None = None,
        balance: bool = False,
        regression: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(modalities, Mapping) or not modalities:
            raise UserError("data.modalities: must be the columns and kind of at least one modality, by its name")
        if missing not in ("skip", "keep"):
            raise UserError(f"data.missing={missing!r}: must be skip or keep")
        check_batches(batch_size, num_workers)
        self.columns = {key: as_column(key, value) for key, value in modalities.items()}
        self.modalities = tuple(self.columns)
        self.label, self.split, self.id = label, split, id
        self.batch_size, self.num_workers, self.seed, self.drop_last = batch_size, num_workers, seed, drop_last
        self.predict_split, self.missing, self.split_seed, self.stratify = predict_split, missing, split_seed, stratify
        self.root, self.balance, self.regression = None, balance, regression
        if regression and (balance or labels is not None):
            key = "balance" if balance else "labels"
            raise UserError(f"data.{key}: must be left out with data.regression=true, which has no classes")
        self._folder = None if root is None else check_folder(Path(root), "data.root")
        self._inside = None if self._folder is None else RootFolder(self._folder, follow_links)
        self._given, self._labels_given = source, self._names(labels, "data.labels")
        file = isinstance(source, str | Path)
        self.name = name or (Path(source).stem if file else "tensors")
        self.clips, self.labels = [], []
        self._target = torch.empty(0)
        self._made: dict[str, Modality] = {}
        self._read(None)

    # ------------------------------------------------------------------------------------------------------- reading

    def _read(self, fitted: Mapping[str, Any] | None) -> None:
        """Reads all columns; `fitted` is what to take of the training clips instead of their own."""
        label = [self.label] if isinstance(self.label, str) else list(self.label)
        extra = [self.id, self.split if isinstance(self.split, str) else None]
        extra += [column.present for column in self.columns.values()]
        shared = [*label, *(name for name in extra if name)]
        shared += [c for m, column in self.columns.items() if not column.file for c in column.of(m)]
        columns, given = self._columns(shared)
        count = len(next(iter(columns.values())))
        if not count:
            raise UserError(f"data.source={self.name}: it has no rows; must have some")
        ids = ids_of(columns[self.id]) if self.id else [f"{i:06d}" for i in range(count)]
        given_labels = {name: columns[name] for name in label}
        target = numbers_of(given_labels, ids) if self.regression else labels_of(given_labels, self._labels_given, ids)
        splits = self._splits(columns, given, ids, target)
        train = np.array([split in ("train", "all") for split in splits])
        if not train.any():
            raise UserError(f"data.split: no clip has split 'train'; splits found: {sorted(set(splits))}")
        for name, column in self.columns.items():
            values = self._own(name, column, columns, count)
            known = None if fitted is None else fitted.get(name)
            words = self._names(column.vocabulary, f"data.modalities.{name}.vocabulary")
            made = modality_of(name, column, values, train, ids, known, words)
            if column.present:
                made = _masked(made, columns[column.present], f"data.modalities.{name}.present={column.present}")
            self._made[name] = made
        self.labels, self._target = target.names, target.target
        self.clips = [Clip(id, text, split, {}) for id, text, split in zip(ids, target.text, splits, strict=True)]
        there = torch.stack([made.present for made in self._made.values()])
        enough = there.all(0) if self.missing == "skip" else there.any(0)
        self._rows = {s: [i for i, at in enumerate(splits) if at in (s, "all") and enough[i]] for s in SPLITS}
        self._skipped = {m: int((~enough & ~made.present).sum()) for m, made in self._made.items()}
        self._left_out = int((~enough).sum())
        if not self._rows["train"]:
            raise UserError(f"{self.name}: no training clip has every modality; must be some, or data.missing=keep")

    def _columns(self, names: Sequence[str]) -> tuple[dict[str, Values], list[str] | None]:
        """Columns of the source, those of its splits one after the other; and each row's split, if it has splits."""
        source = self._given
        per_split = isinstance(source, Mapping) and "train" in source and set(source) <= set(SPLITS)
        if not per_split:
            place, where = self._place(source, "data.source")
            return read_columns(place, names, where), None
        parts: dict[str, dict[str, Values]] = {}
        for split in (split for split in SPLITS if split in source):
            place, where = self._place(source[split], f"data.source.{split}")
            parts[split] = read_columns(place, names, where)
        sizes = {split: len(next(iter(part.values()))) for split, part in parts.items()}
        joined = {name: _joined([part[name] for part in parts.values()]) for name in names}
        return joined, [split for split, size in sizes.items() for _ in range(size)]

    def _own(self, name: str, column: Column, columns: Mapping[str, Values], count: int) -> dict[str, Values]:
        """A modality's columns, from the source or its own file."""
        if not column.file:
            return {key: columns[key] for key in column.of(name)}
        key = f"data.modalities.{name}.file"
        place, where = self._place(column.file, key)
        found = read_columns(place, column.of(name), where)
        rows = len(next(iter(found.values())))
        if rows != count:
            raise UserError(f"{where}: {rows} rows; must be {count}, one per clip in the order of data.source")
        return found

    def _place(self, source: Any, key: str) -> tuple[Any, str]:
        """A source, a file as its path, and how messages name it."""
        if not isinstance(source, str | Path):
            return source, key
        path = Path(source) if self._folder is None else find_file(source, self._folder)
        if self._inside is not None:
            base, full = Path(self._folder or ".").absolute(), path.absolute()
            refusal = self._inside.refusal(full.relative_to(base) if full.is_relative_to(base) else full)
            if refusal:
                raise UserError(f"{key}={source}: it is a file {refusal}")
        return path, str(path)

    def _names(self, given: list[str] | str | None, key: str) -> list[str] | None:
        """Names that are given, or lie in a text file, one per line."""
        if given is None or isinstance(given, list):
            return given if given is None else [str(name).strip() for name in given]
        return read_lines(Path(self._place(given, key)[0]), key)

    def _splits(
        self, columns: Mapping[str, Values], given: list[str] | None, ids: Sequence[str], labels: Labels
    ) -> list[str]:
        if isinstance(self.split, str):
            if given is not None:
                raise UserError(f"data.split={self.split}: must be fractions or null, for data.source has splits")
            return splits_of(columns[self.split], ids)
        if self.split is None:
            if given is None:
                raise UserError("data.split: must be a column, or fractions such as {val: 0.1, test: 0.2}")
            return given
        fractions = check_fractions(self.split)
        if twice := [name for name in fractions if name in (given or ())]:
            raise UserError(f"data.split={self.split}: must not name {twice[0]!r}, which data.source has")
        places = [i for i in range(len(ids)) if given is None or given[i] == "train"]
        target = labels.target[places]
        chosen = drawn(fractions, [ids[i] for i in places], target, self.split_seed, stratify=self._stratified)
        splits = list(given) if given is not None else ["train"] * len(ids)
        for i, split in zip(places, chosen, strict=True):
            splits[i] = split
        return splits

    # ------------------------------------------------------------------------------------------------------- clips

    @property
    def multilabel(self) -> bool:
        """Whether a clip has several labels; the model's `task` is then `labels`."""
        return self._target.ndim > 1 and not self.regression

    @property
    def split_kind(self) -> str:
        """How the splits were made, in a few words."""
        if not isinstance(self.split, Mapping):
            return "as listed"
        parts = ", ".join(f"{name} {part:g}" for name, part in self.split.items())
        return f"{parts}{' of each class' if self._stratified else ''}, seed {self.split_seed}"

    @property
    def _stratified(self) -> bool:
        return self.stratify and not self.regression

    def vocabulary(self, modality: str) -> list[str]:
        """Text of each token id of a modality; empty where there is none."""
        return self._made[modality].vocabulary

    def feature_names(self, modality: str) -> tuple[str, ...]:
        """Name of each dimension of a table; empty of other kinds."""
        return self._made[modality].names

    def setup(self, stage: str | None = None) -> None:
        """Says which clips are left out."""
        if self._left_out and (self.trainer is None or self.trainer.is_global_zero):
            why = ", ".join(f"{count} without {m}" for m, count in self._skipped.items() if count)
            note(f"{self.name}: skipped {self._left_out} of {len(self.clips)} clips ({why})")
            self._left_out = 0  # said once

    def usable(self, split: str) -> list[Clip]:
        """The split's clips that can be used, in the listing's order."""
        return [self.clips[i] for i in self._rows[split]]

    def classes_of(self, split: str) -> list[Hashable]:
        """Class of each of the split's usable clips, by which training is balanced; of several labels the rarest."""
        return list(strata(self._target[self._rows[split]]).tolist())

    def dataset(self, split: str, *, train: bool = False) -> TensorDataset:
        """A split's usable clips, in the listing's order."""
        inputs = {name: made.x for name, made in self._made.items()}
        present = {name: made.present for name, made in self._made.items()} if self.missing == "keep" else None
        return TensorDataset(self.usable(split), self._rows[split], inputs, self._target, present, train=train)

    def census(self) -> dict[str, Any]:
        """Facts about the data for a run's record: `split`, `listed`, `clips` and `skipped`."""
        return {
            "split": self.split_kind,
            "listed": len(self.clips),
            "clips": {split: len(rows) for split, rows in self._rows.items()},
            "skipped": {f"{m} missing": count for m, count in self._skipped.items() if count},
        }

    def state_dict(self) -> dict[str, Any]:
        """Means, deviations, lengths and vocabularies of the training clips, which a checkpoint keeps."""
        return {name: made.fitted for name, made in self._made.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Uses a checkpoint's means, deviations, lengths and vocabularies: those that its model was trained with."""
        if state_dict and state_dict != self.state_dict():
            self._read(state_dict)

    # ---------------------------------------------------------------------------------------------------- analyses

    def atoms(self, modality: str, blocks: Sequence[int] | None = None, *, coarse: bool = False) -> Atoms:
        """A modality's input in the pieces that an analysis explains: columns, tokens, or blocks.

        Raises:
            UserError: Blocks are given, which the kind decides here.
        """
        if blocks is not None:
            raise UserError(f"blocks={list(blocks)}: must be null; the kind of data.modalities.{modality} decides")
        return kind_atoms(self.kind(modality), tuple(self._made[modality].x.shape[1:]), coarse=coarse)

    def kind(self, modality: str) -> Kind:
        """Kind of a modality's inputs, with names, vocabulary and baseline: the mean, or padding."""
        column, made = self.columns[modality], self._made[modality]
        if column.kind == "tokens":
            return Kind("tokens", vocabulary=made.vocabulary or "ids", special=(PAD,), baseline=PAD)
        mean = torch.tensor(made.fitted["mean"], dtype=torch.float32)[None]
        nothing: How | Tensor = "zero" if column.standardizes else mean
        if column.kind == "table":
            return Kind("table", names=made.names, owner=made.owner, baseline=nothing)
        columns = column.of(modality)
        names = columns if column.kind == "series" and len(columns) == made.x.shape[-1] > 1 else ()
        return Kind(column.kind, names=names, baseline=nothing)

    def split_atoms(self, modality: str, split: str, *, coarse: bool = False) -> Atoms:
        """The atoms of a split's clips, in the listing's order: of texts their words, else those of `atoms`."""
        if self.columns[modality].kind != "tokens":
            return self.atoms(modality, coarse=coarse)
        return self.kind(modality).atoms(self._made[modality].x[self._rows[split]], coarse=coarse)

    def baseline(self, modality: str, x: Tensor) -> tuple[Tensor | float, str]:
        """The training clips' mean, or padding, and the same in words."""
        kind = self.kind(modality)
        words = "padding" if kind.kind == "tokens" else "the training clips' mean"
        return kind.baseline_for(x), words

    def looks(self, modality: str, x: Tensor, atoms: Atoms) -> dict[str, NDArray[Any]]:
        """Arrays of an input that a page shows besides its picture, in the data's own units."""
        kind, made = self.kind(modality), self._made[modality]
        if self.columns[modality].standardizes:
            mean, spread = (torch.tensor(made.fitted[key], dtype=torch.float32) for key in ("mean", "deviation"))
            x = x.cpu() * spread + mean
        return kind.looks(x.cpu(), atoms)

    def picture(self, modality: str, x: Tensor, atoms: Atoms) -> Picture:
        """A modality's input (of one clip) to look at."""
        return tensor_picture(x, atoms)

    @property
    def corruptions(self) -> Mapping[str, Mapping[str, Corruption]]:
        """The corruptions of each modality, by name."""
        return {name: corruptions_of(column, self._made[name]) for name, column in self.columns.items()}

    @property
    def joint_corruptions(self) -> Mapping[str, Mapping[str, str]]:
        """Joint corruptions of all modalities, by name: one corruption per modality."""
        shared = set.intersection(*(set(known) for known in self.corruptions.values()))
        return (
            {name: dict.fromkeys(self.modalities, name) for name in sorted(shared)} if len(self.modalities) > 1 else {}
        )

    def corrupted(
        self, split: str, modality: str, corruption: str, severity: int, ids: Sequence[str], seed: int = 0
    ) -> CorruptedTensors:
        """These clips of a split, in this order, with one modality's corrupted input and no other modality's.

        Raises:
            UserError: The corruption, the severity or a clip does not exist.
        """
        chosen, level = self.corruption_at(modality, corruption, severity)
        place = {self.clips[i].id: i for i in self._rows[split]}
        if unknown := [id for id in ids if id not in place]:
            raise UserError(f"{self.name}: no usable clip {unknown[0]!r} in split {split!r}")
        clean = self.dataset(split)
        clean.rows = [place[id] for id in ids]
        clean.clips = [self.clips[i] for i in clean.rows]
        return CorruptedTensors(clean, modality, chosen, level, f"corruption {seed} {corruption}")


def _joined(parts: Sequence[Values]) -> Values:
    """One column of several splits' columns."""
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts) and len({(x.shape[1:], x.dtype.kind == "U") for x in arrays}) == 1:
        return np.concatenate(arrays)
    return [entry for part in parts for entry in part]


def _masked(made: Modality, flags: Values, where: str) -> Modality:
    """A modality that only the flagged clips have."""
    try:
        given = np.asarray(flags).astype(np.float64)
    except (ValueError, TypeError):
        given = np.full(len(flags), np.nan)
    if given.ndim != 1 or not np.isin(given, (0, 1)).all():
        raise UserError(f"{where}: must be a column of true and false, or 1 and 0")
    present = made.present & torch.from_numpy(given > 0)
    x = torch.where(present.view(-1, *[1] * (made.x.ndim - 1)), made.x, torch.zeros((), dtype=made.x.dtype))
    return replace(made, x=x, present=present)
