"""What all stages of an analysis share: the model, its data, the encoded split, the folder."""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, default_collate

from amr.attribution import undisturbed
from amr.datamodules import ClipDataModule
from amr.datamodules.base import stable_order
from amr.evaluation.emap import emap
from amr.load import data_section, load_model
from amr.model import FusionModel, complete_rows
from amr.multiviz.unimodal import grad_cam, guided_backprop
from amr.utils.arrays import Arrays, is_whole, slug, write_arrays, write_table
from amr.utils.errors import UserError
from amr.utils.files import replacing, write_bytes, write_text
from amr.utils.readers import read_arrays, read_object
from amr.utils.work import Progress

Name = Literal["train", "val", "test"]
PREDICTION_CLIPS = 2000  # training clips that the sparse classifiers are fitted to


@dataclass
class Split:
    """A split's clips as the head sees them.

    Attributes:
        ids: Of the clips that have every modality.
        labels: (N,) int64.
        encodings: (N, ...) a modality.
        index: Position of each in the split's dataset.
        lacking: Number of clips that lack a modality.
    """

    ids: list[str]
    labels: Tensor
    encodings: dict[str, Tensor]
    index: list[int]
    lacking: int


class Analysis:
    """A checkpoint, its data and the folder of results.

    Args:
        options: The command's.
        model: The checkpoint's.
        data: Its data.

    Attributes:
        clips: The analysed split.
        chosen: Positions in it of the clips that are explained.
        fine: Atoms of each modality.
        coarse: Larger ones.
        logits: Of the split, (N, C).
        predicted: Their largest, (N,).
        features: Penultimate features, (N, D).
        place: Position in the split of each clip's id.
        notes: What was left out, and why, by what it is about.
    """

    def __init__(self, options: argparse.Namespace, model: FusionModel, data: ClipDataModule) -> None:
        self.options, self.out, self.checkpoint = options, Path(options.out), Path(options.ckpt)
        self.model, self.data = model, data
        self.split: Name = options.split
        self.seed, self.samples = int(options.seed), int(options.samples)
        self.device = next(model.parameters()).device
        notes = self.out / "notes.json"
        self.notes: dict[str, str] = read_object(notes) if is_whole(notes) else {}
        self.clips = self._encode(self.split, None)
        count = min(options.clips, len(self.clips.ids))
        if count < 2:
            raise UserError(f"--split={self.split}: {count} clips have every modality; at least 2 are needed")
        self.place = {id: i for i, id in enumerate(self.clips.ids)}
        self.chosen = [self.place[id] for id in sorted(stable_order(self.place, self.seed)[:count])]
        self.fine = {m: data.atoms(m) for m in model.modalities}
        self.coarse = {m: data.atoms(m, coarse=True) for m in model.modalities}
        self.logits, self.features = self.head(self.clips)
        self.predicted = self.logits.argmax(1)

    @classmethod
    def open(cls, options: argparse.Namespace) -> "Analysis":
        """Builds everything, and refuses a folder with another analysis."""
        model = load_model(options.ckpt).to("cuda" if torch.cuda.is_available() else "cpu")
        section = data_section(options.ckpt, options.data)
        keys = ("split", "clips", "classes", "units", "seed", "samples")
        plan = {
            "checkpoint": hashlib.sha256(options.ckpt.read_bytes()).hexdigest(),
            "data": section,
            **{key: getattr(options, key) for key in keys},
        }
        path = options.out / "plan.json"
        if path.is_file():
            there = read_object(path)
            if differing := [key for key in plan if plan[key] != there.get(key)]:
                raise UserError(
                    f"--out={options.out}: it holds an analysis of another {', '.join(differing)}; name another folder"
                )
        data = datamodule(section)
        lacking = [m for m in model.modalities if m not in data.modalities]
        if lacking:
            has = ", ".join(map(repr, data.modalities))
            raise UserError(f"--data: the model has the modality {lacking[0]!r}, data.modalities has {has}")
        data.prepare_data()
        data.setup()
        write_text(path, json.dumps(plan, indent=1) + "\n")
        return cls(options, model, data)

    # ------------------------------------------------------------------------------------------------------ the clips

    @cached_property
    def train(self) -> Split:
        """Training clips, some of them if there are many."""
        return self._encode("train", PREDICTION_CLIPS)

    def inputs(self, positions: list[int]) -> dict[str, Tensor]:
        """Inputs of clips of the split, (clips, ...) a modality."""
        dataset = self.data.clips_of(self.split)
        batch = default_collate([dataset[self.clips.index[i]]["inputs"] for i in positions])
        return {m: batch[m].to(self.device) for m in self.model.modalities}

    @cached_property
    def others(self) -> dict[str, Tensor]:
        """Inputs of some of the chosen clips, that baselines are drawn from."""
        return self.inputs(self.chosen[:32])

    def encodings(self, positions: list[int]) -> dict[str, Tensor]:
        """Encodings of clips of the split, on the model's device."""
        return {m: e[positions].to(self.device) for m, e in self.clips.encodings.items()}

    def classes(self, position: int) -> Tensor:
        """The classes that a clip is explained for, (K,): predicted, true, and the likeliest others."""
        first = [int(self.predicted[position]), int(self.clips.labels[position])]
        order = [*first, *self.logits[position].argsort(descending=True, stable=True).tolist()]
        return torch.tensor(list(dict.fromkeys(order))[: self.options.classes], device=self.device)

    def head(self, split: Split) -> tuple[Tensor, Tensor]:
        """Logits (N, C) and penultimate features (N, D) of a split, on the CPU."""
        logits, features = [], []
        with undisturbed(self.model), torch.no_grad():
            for start in range(0, len(split.ids), 1024):
                part = {m: e[start : start + 1024].to(self.device) for m, e in split.encodings.items()}
                features.append(self.model.penultimate(part).cpu())
                logits.append(self.model.head(part).cpu())
        return torch.cat(logits), torch.cat(features)

    def _encode(self, split: Name, most: int | None) -> Split:
        """A split's clips, or `most` of them, encoded once: from the file if it is there."""
        path = self.out / f"encodings-{split}.pt"
        dataset = self.data.clips_of(split)
        if path.is_file() and (kept := self._kept(path, len(dataset))):
            return kept
        ids: list[str] = []
        labels, encodings, lacking = [], [], 0
        with undisturbed(self.model), torch.no_grad():
            for batch in self._batches(split, most):
                rows = complete_rows(self.model.modalities, batch.get("present"))
                keep = range(len(batch["id"])) if rows is None else rows.nonzero().flatten().tolist()
                inputs = {m: batch["inputs"][m][keep].to(self.device) for m in self.model.modalities}
                encodings.append({m: e.cpu() for m, e in self.model.encode(inputs).items()})
                labels.append(batch["label"][keep])
                ids += [batch["id"][i] for i in keep]
                lacking += len(batch["id"]) - len(keep)
        if not ids:
            raise UserError(f"--split={self.split}: no clip of the {split} split has every modality")
        place = {clip.id: i for i, clip in enumerate(dataset.clips)}
        joined = {m: torch.cat([e[m] for e in encodings]) for m in self.model.modalities}
        found = Split(ids, torch.cat(labels), joined, [place[id] for id in ids], lacking)
        with replacing(path) as file:
            torch.save(vars(found), file)
        return found

    def _kept(self, path: Path, clips: int) -> Split | None:
        """A split that was encoded before; None if its file is damaged, which is said."""
        try:
            kept = Split(**torch.load(path, weights_only=True, map_location="cpu"))
            sizes = {len(kept.labels), len(kept.index), *map(len, kept.encodings.values())}
            if sizes == {len(kept.ids)} and {*kept.encodings} == {*self.model.modalities} and max(kept.index) < clips:
                return kept
            error: Any = "of other clips"
        except Exception as problem:  # torch and pickle raise whatever they stumble over
            error = f"damaged: {' '.join(str(problem).split())[:200]}"
        print(f"{path}: {error}; made again", file=sys.stderr)
        return None

    def _batches(self, split: Name, most: int | None) -> Iterator[Any]:
        """A split's batches without augmentation, or those of `most` of its clips, with progress."""
        dataset = self.data.clips_of(split)
        kept = set(stable_order((clip.id for clip in dataset.clips), self.seed)[:most])
        order = [i for i, clip in enumerate(dataset.clips) if clip.id in kept]
        progress = Progress(f"encode {split}", len(order), "clips")
        part: Any = Subset(dataset, order)
        for batch in DataLoader(part, self.data.batch_size, num_workers=self.data.num_workers):
            yield batch
            progress.advance(len(batch["id"]))

    # ------------------------------------------------------------------------------------------------------- the work

    def note(self, about: str, text: str) -> None:
        """Says what is left out, and keeps it for the summary."""
        print(text, file=sys.stderr)
        self.notes[about] = text
        write_text(self.out / "notes.json", json.dumps(self.notes, indent=1) + "\n")

    def each(self, title: str, unit: str, todo: Mapping[Path, Callable[[], Any]]) -> None:
        """Makes and writes the files that are not there, with progress: arrays (.npz), rows (.parquet) or bytes."""
        left = {path: make for path, make in todo.items() if not is_whole(path)}
        write: dict[str, Callable[[Path, Any], None]] = {".npz": write_arrays, ".parquet": write_table}
        progress = Progress(title, len(left), unit)
        for path, make in left.items():
            write.get(path.suffix, write_bytes)(path, make())
            progress.advance(1)

    def archive(self, position: int, folder: str = "clips") -> Path:
        """Where a clip's maps are."""
        return self.out / folder / f"{slug(self.clips.ids[position])}.npz"

    @cached_property
    def projected(self) -> Tensor:
        """Additive projection (EMAP) of the explained clips' logits, over these clips, (clips, C)."""
        return emap(self.model, self.encodings(self.chosen), seed=self.seed).cpu()

    @cached_property
    def unfit(self) -> dict[str, set[str]]:
        """U's methods that do not fit each modality's network, which they say by a UserError."""
        found: dict[str, set[str]] = {}
        first = {m: x[:1] for m, x in self.others.items()}
        for modality, encoder in self.model.encoders.items():
            found[modality] = set()
            attempts: dict[str, Callable[..., Any]] = {
                "guided_backprop": guided_backprop,
                "grad_cam": partial(grad_cam, layer=last_convolution(encoder)),
            }
            for name, method in attempts.items():
                try:
                    method(self.model, first, modality, 0, self.fine[modality])
                except UserError as error:
                    self.note(f"{name} {modality}", f"left out for {modality}: {error}")
                    found[modality].add(name)
        return found

    @cached_property
    def sparse(self) -> Arrays | None:
        """The chosen sparse classifier, if there is one."""
        path = self.out / "sparse.npz"
        return read_arrays(path) if is_whole(path) else None


def last_convolution(encoder: nn.Module) -> nn.Module:
    """What Grad-CAM looks at, as its authors do; without one the encoder itself, which it refuses."""
    layers: list[nn.Module] = [m for m in encoder.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    return layers[-1] if layers else encoder


def datamodule(section: Any) -> ClipDataModule:
    """The data that a `data` section describes."""
    from amr.utils.parser import OneLineParser

    parser = OneLineParser(prog="amr analyze")
    parser.add_subclass_arguments(ClipDataModule, "data", required=True)
    built: ClipDataModule = parser.instantiate_classes(parser.parse_object({"data": section})).data
    return built
