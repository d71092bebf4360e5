"""Clips to analyse, of a data module or loaders that are not amr's: tensors of which nothing but the shape is known."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from amr.datamodules.atoms import Atoms, Kind, as_kind, segment_atoms
from amr.datamodules.atoms.words import Pieces
from amr.datamodules.store.media import Clip
from amr.datamodules.tensors import kind_atoms, tensor_atoms, tensor_picture
from amr.datamodules.tensors.labels import names_of
from amr.datamodules.transforms.picture import Picture
from amr.model import complete_rows
from amr.model.batches import Batch, as_batch
from amr.model.encoded import Split
from amr.model.loaders import loader_of
from amr.model.protocol import Explained
from amr.model.task import task_of
from amr.utils.errors import UserError, listed


@dataclass
class PlainSplit:
    """A split's clips that have every modality.

    Attributes:
        clips: The clips, in the loader's order.
        batches: Inputs from the loader, on the CPU.
        inputs: Input of each modality (N, ...).
        tokens: Text of each token of each clip, of modalities whose batches bring it.
        segments: Segments of images (N, H, W), of modalities whose batches bring them.
    """

    clips: list[Clip] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, list[Pieces]] = field(default_factory=dict)
    segments: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": {name: x[index] for name, x in self.inputs.items()}}


class PlainClips(pl.LightningDataModule):
    """Data that are not of a `ClipDataModule`, with what an analysis needs.

    The analysed split is read once and kept in memory; others are read from their loaders.

    Args:
        data: The data module. Its `labels`, names of the classes, `kinds`, a `Kind` or its name for each modality, and
            `name` are used if it has them. Its batches may hold `tokens`, {modality: a list of each token's text for
            each clip}, and `segments`, {modality: (B, H, W) integers}.
        model: The model.
        split: The analysed split.
    """

    root: Path | None = None  # of media files: none are known

    def __init__(self, data: pl.LightningDataModule, model: Explained, split: Split) -> None:
        super().__init__()
        self.source, self.modalities, self.num_classes = data, model.modalities, model.num_classes
        self.task = task_of(model)
        self.filed = model.modalities
        self.name = str(getattr(data, "name", None) or type(data).__name__)
        labels = getattr(data, "labels", None)
        self.labels = [str(name) for name in labels] if labels is not None else list(map(str, range(self.num_classes)))
        if len(self.labels) != self.num_classes:
            raise UserError(f"data.labels: {len(self.labels)} names; must be {self.num_classes}, one of each class")
        self.split = split
        kinds = getattr(data, "kinds", None) or {}
        if unknown := [name for name in kinds if name not in self.modalities]:
            raise UserError(f"data.kinds: {unknown[0]!r} is no modality of the model; it has {listed(self.modalities)}")
        self.kinds = {name: as_kind(name, given) for name, given in kinds.items()}
        self._read = PlainSplit()

    def prepare_data(self) -> None:
        """Prepares the data module."""
        self.source.prepare_data()

    def setup(self, stage: str = "") -> None:
        """Sets the data module up, and reads the analysed split."""
        if self._read.clips:
            return
        for name in ("fit", "test"):
            self.source.setup(name)
        parts: dict[str, list[Tensor]] = {name: [] for name in self.modalities}
        drawn: dict[str, list[Tensor]] = {}
        for number, given in enumerate(self._loader(self.split)):
            moved = self.source.transfer_batch_to_device(given, torch.device("cpu"), 0)
            moved = self.source.on_after_batch_transfer(moved, 0)
            batch = as_batch(moved, self.modalities, (0, number), task=self.task)
            self._read.batches.append(batch)
            mask = complete_rows(self.modalities, batch.get("present"))
            rows = list(range(len(batch["label"]))) if mask is None else mask.nonzero().flatten().tolist()
            for name in self.modalities:
                if not isinstance(batch["inputs"][name], Tensor):
                    kind = type(batch["inputs"][name]).__name__
                    raise UserError(f"batch: inputs.{name} is a {kind}; must be a tensor, to be explained")
                parts[name].append(batch["inputs"][name][rows])
            self._about(batch, rows, drawn)
            for row in rows:
                label = names_of(batch["label"][row], self.labels)
                self._read.clips.append(Clip(batch["id"][row], label, self.split, {}))
        if not self._read.clips:
            raise UserError(f"data: its {self.split} loader has no clip with every modality")
        for name, tensors in parts.items():
            if len({x.shape[1:] for x in tensors}) > 1:
                raise UserError(
                    f"batch: inputs.{name}: its shape differs between batches; must be one, to be explained"
                    f"{'; pad tokens to one length' if tensors[0].ndim == 2 else ''}"
                )
            self._read.inputs[name] = torch.cat(tensors)
        self._read.segments = {name: torch.cat(maps) for name, maps in drawn.items()}
        self._check_kinds()
        names = [clip.id for clip in self._read.clips]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"batch: id {twice!r} is there twice in {self.split}; must be unique")

    def _about(self, batch: Any, rows: list[int], drawn: dict[str, list[Tensor]]) -> None:
        """Takes a batch's tokens and segments."""
        for name, texts in (batch.get("tokens") or {}).items():
            if len(texts) != len(batch["label"]) or any(isinstance(text, str) for text in texts):
                raise UserError(
                    f"batch: tokens.{name}: must be a list of each clip's token texts, {len(batch['label'])}"
                )
            self._read.tokens.setdefault(name, []).extend([list(texts[row]) for row in rows])
        for name, maps in (batch.get("segments") or {}).items():
            if not isinstance(maps, Tensor) or len(maps) != len(batch["label"]):
                raise UserError(f"batch: segments.{name}: must be integers (B, H, W) of {len(batch['label'])} clips")
            drawn.setdefault(name, []).append(maps[rows].cpu())

    def _check_kinds(self) -> None:
        """Refuses inputs that are not of their kind, and ids without a text."""
        given = (("tokens", self._read.tokens), ("segments", self._read.segments))
        for key, some in given:
            if unknown := [name for name in some if name not in self.modalities]:
                raise UserError(
                    f"batch: {key} name {unknown[0]!r}, no modality of the model; must be {self.modalities}"
                )
            if short := [name for name, each in some.items() if len(each) != len(self._read.clips)]:
                raise UserError(f"batch: {key}.{short[0]}: must be in every batch, or in none")
        for name in self._read.tokens:
            self.kinds.setdefault(name, Kind("tokens"))
        for name, kind in self.kinds.items():
            kind.check(name, self._read.inputs[name])
            if kind.kind == "tokens" and name not in self._read.tokens:
                try:
                    kind.pieces(self._read.inputs[name][0])
                except UserError as error:
                    raise UserError(f"data.kinds.{name}: {error}") from None

    def digest(self) -> str:
        """SHA-256 of the analysed split, which distinguishes it from another split or order."""
        digest = hashlib.sha256(repr([(clip.id, clip.label) for clip in self._read.clips]).encode())
        for name, x in self._read.inputs.items():
            digest.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
            digest.update(x.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        for name, kind in sorted(self.kinds.items()):
            about = {f.name: getattr(kind, f.name) for f in fields(kind) if f.name not in ("tokenizer", "vocabulary")}
            digest.update(repr((name, about)).encode())
        digest.update(repr(sorted(self._read.tokens.items())).encode() if self._read.tokens else b"")
        return digest.hexdigest()

    def clips_of(self, split: Split) -> PlainSplit:
        """The analysed split; nothing of another one."""
        return self._read if split == self.split else PlainSplit()

    def atoms(self, modality: str, blocks: Sequence[int] | None = None, *, coarse: bool = False) -> Atoms:
        """A modality's input in the pieces of its kind, or in blocks, the same for all clips."""
        if modality in self.kinds:
            return kind_atoms(self.kinds[modality], self._read.inputs[modality].shape[1:], coarse=coarse)
        return tensor_atoms(self._read.inputs[modality].shape[1:], coarse=coarse)

    def split_atoms(self, modality: str, split: Split, *, coarse: bool = False) -> Atoms:
        """The atoms of the analysed split's clips."""
        x, tokens = self._read.inputs[modality], self._read.tokens.get(modality)
        segments = self._read.segments.get(modality)
        if segments is not None and not coarse:
            return segment_atoms(segments, x.shape[1:])
        if modality not in self.kinds:
            return self.atoms(modality, coarse=coarse)
        try:
            return self.kinds[modality].atoms(x, coarse=coarse, tokens=tokens)
        except UserError as error:
            raise UserError(f"data.kinds.{modality}: {error}") from None

    def baseline(self, modality: str, x: Tensor) -> tuple[Tensor | float, str]:
        """Baseline that replaces a removed atom of inputs x (N, ...), and its description in words.

        A mean is that of the analysed split.
        """
        kind = self.kinds.get(modality)
        if kind is None:
            return 0.0, "zeros"
        found = kind.baseline_for(x if kind.how == "blur" else self._read.inputs[modality])
        return found.to(x) if isinstance(found, Tensor) else found, kind.nothing

    def looks(self, modality: str, x: Tensor, atoms: Atoms) -> dict[str, NDArray[Any]]:
        """Arrays of an input that a page shows besides its picture."""
        return self.kinds[modality].looks(x, atoms) if modality in self.kinds else {}

    def picture(self, modality: str, x: Tensor, atoms: Atoms) -> Picture:
        """A modality's input (of one clip) to look at."""
        return tensor_picture(x, atoms)

    def window(self, modality: str, clip: Clip) -> tuple[float, float] | None:
        """Window of the input in a media file; it is not known."""
        return None

    def locate(self, clip: Clip) -> Clip:
        """The clip."""
        return clip

    def train_dataloader(self) -> Any:
        """Batches of train."""
        return self._batches("train")

    def val_dataloader(self) -> Any:
        """Batches of val."""
        return self._batches("val")

    def test_dataloader(self) -> Any:
        """Batches of test."""
        return self._batches("test")

    def _batches(self, split: Split) -> Any:
        if split == self.split:
            return self._read.batches
        return (self.source.on_after_batch_transfer(batch, 0) for batch in self._loader(split))

    def _loader(self, split: Split) -> Any:
        loader = loader_of(self.source, split)
        one = isinstance(loader, list | tuple) and len(loader) == 1  # a list of a loader, or of a batch
        return loader[0] if one and not isinstance(loader[0], Mapping | list | tuple) else loader
