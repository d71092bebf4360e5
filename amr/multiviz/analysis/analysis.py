"""State that all stages of an analysis share: the model, its data, the encoded split, the folder."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from amr.attribution import modules_in, require_gradient, undisturbed
from amr.datamodules import ListedClips
from amr.datamodules.atoms import Atoms
from amr.datamodules.listing import stable_order
from amr.datamodules.tensors.labels import names_of
from amr.evaluation.emap import emap
from amr.load import data_section, load_model
from amr.model import device_of, encoder_of, head_of
from amr.model.encoded import Encoded, Split, encode
from amr.model.loaders import Data, as_data
from amr.model.protocol import Explained
from amr.model.task import check_classes, task_of
from amr.multiviz import unimodal
from amr.multiviz.analysis.plain import PlainClips
from amr.multiviz.analysis.plan import Plan
from amr.multiviz.analysis.thumbs import FILE as THUMBNAILS
from amr.multiviz.analysis.thumbs import Thumbnails
from amr.multiviz.unimodal import grad_cam, guided_backprop
from amr.utils.arrays import Arrays, is_whole, slug, write_arrays, write_table
from amr.utils.checkpoints import read_checkpoint
from amr.utils.errors import UserError
from amr.utils.files import write_bytes, write_text
from amr.utils.readers import read_arrays, read_object
from amr.utils.streams import Progress, note

PREDICTION_CLIPS = 2000  # training clips that the sparse classifiers are fitted to


class Analysis:
    """A checkpoint, its data and the folder of results.

    Args:
        plan: Scope of the analysis.
        model: The checkpoint's.
        data: Its data.

    Attributes:
        clips: The analysed split.
        chosen: Positions in it of the clips that are explained.
        fine: Atoms of each modality, of the split's clips in the dataset's order where they differ between clips.
        coarse: Larger ones.
        thumbnails: Small pictures of the clips, made while they were encoded.
        logits: Logits of the split, (N, C).
        predicted: Their largest, (N,): of several labels per clip the likeliest one.
        several: Whether a clip has several labels.
        truth: True class of each clip, (N,); of several labels `predicted` if it is one of them, else the likeliest of
            them, -1 of a clip without.
        right: Whether `predicted` is true, (N,) bool.
        probabilities: Probability of each class, or of each label separately, (N, C) float64.
        features: Penultimate features, (N, D).
        place: Position in the split of each clip's id.
        index: Position in the split's dataset of each clip.
        notes: Parts that were left out, and why, by their subject.
    """

    def __init__(self, plan: Plan, model: Explained, data: ListedClips | PlainClips) -> None:
        self.plan, self.out, self.checkpoint = plan, plan.out, plan.checkpoint
        self._progress: Progress | None = None  # of the stage that is under way
        self.model, self.data = model, data
        self.split: Split = plan.split
        self.seed, self.samples = plan.seed, plan.samples
        self.device = device_of(model)
        notes = self.out / "notes.json"
        self.notes: dict[str, str] = read_object(notes) if is_whole(notes) else {}
        listed = {clip.id: i for i, clip in enumerate(data.clips_of(self.split).clips)}
        self.fine = {m: data.split_atoms(m, self.split) for m in model.modalities}
        self.coarse = {m: data.split_atoms(m, self.split, coarse=True) for m in model.modalities}
        self.thumbnails = Thumbnails(data, self.fine, listed)
        drawn = is_whole(self.out / THUMBNAILS)
        self.clips = self._encode(self.split, None, None if drawn else self.thumbnails.see)
        require_gradient(self.clips.encodings)
        count = min(plan.clips, len(self.clips.ids))
        if count < 2:
            raise UserError(f"--split={self.split}: {count} clips have every modality; must be at least 2")
        self.place = {id: i for i, id in enumerate(self.clips.ids)}
        self.index = [listed[id] for id in self.clips.ids]
        self.chosen = [self.place[id] for id in sorted(stable_order(self.place, self.seed)[:count])]
        self.logits, self.features = self.head(self.clips)
        self.predicted, self.several = self.logits.argmax(1), task_of(model) == "labels"
        self.probabilities = self.logits.double().sigmoid() if self.several else self.logits.double().softmax(1)
        self.right = self.is_right(self.predicted)
        self.truth = self.clips.labels
        if self.several:
            there = self.clips.labels > 0
            likeliest = torch.where(there, self.logits, -torch.inf).argmax(1)
            self.truth = torch.where(there.any(1), torch.where(self.right, self.predicted, likeliest), -1)

    @classmethod
    def open(cls, plan: Plan, model: Explained | None = None, source: Data | None = None) -> "Analysis":
        """Builds everything, and refuses a folder with another analysis.

        Args:
            plan: Scope of the analysis.
            model: The model; None: the checkpoint's.
            source: The data; None: those that the plan or the run names.
        """
        given = model
        if model is None:
            model = load_model(plan.checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
        data: ListedClips | PlainClips
        if source is None:
            section = data_section(plan.checkpoint, plan.data)
            data = datamodule(section)
        else:
            if isinstance(source, ListedClips):
                data = source
            else:
                data = PlainClips(as_data(source, plan.split), model, plan.split)
            data.prepare_data()
            data.setup()
            clips = json.dumps([clip.id for clip in data.clips_of(plan.split).clips]).encode()
            content = data.digest() if isinstance(data, PlainClips) else hashlib.sha256(clips).hexdigest()
            section = {"name": data.name, "clips": content}
        wanted = {
            "checkpoint": hashlib.sha256(plan.checkpoint.read_bytes()).hexdigest() if given is None else digest(given),
            "data": section,
            **{key: getattr(plan, key) for key in ("split", "clips", "classes", "units", "seed", "samples")},
        }
        path = plan.out / "plan.json"
        if path.is_file():
            there = read_object(path)
            if differing := [key for key in wanted if wanted[key] != there.get(key)]:
                raise UserError(
                    f"--out={plan.out}: it holds an analysis of another {', '.join(differing)}; name another folder"
                )
        check_classes(model, "analyze", several=True)
        lacking = [m for m in model.modalities if m not in data.modalities]
        if lacking:
            has = ", ".join(map(repr, data.modalities))
            raise UserError(f"--data: the model has the modality {lacking[0]!r}, data.modalities has {has}")
        data.prepare_data()
        data.setup()
        if given is None and source is None:  # means and vocabularies are those that the model was trained with
            data.load_state_dict(read_checkpoint(plan.checkpoint, verify=False).get(type(data).__qualname__, {}))
        write_text(path, json.dumps(wanted, indent=1) + "\n")
        return cls(plan, model, data)

    # ------------------------------------------------------------------------------------------------------ the clips

    @cached_property
    def train(self) -> Encoded:
        """Training clips, some of them if there are many."""
        return self._encode("train", PREDICTION_CLIPS)

    def inputs(self, positions: list[int]) -> dict[str, Tensor]:
        """Inputs of clips of the split, (clips, ...) per modality."""
        dataset = self.data.clips_of(self.split)
        batch = default_collate([dataset[self.index[i]]["inputs"] for i in positions])
        return {m: batch[m].to(self.device) for m in self.model.modalities}

    @cached_property
    def others(self) -> dict[str, Tensor]:
        """Inputs of some of the chosen clips, that baselines are drawn from."""
        return self.inputs(self.chosen[:32])

    def atoms(self, positions: list[int], *, coarse: bool = False) -> dict[str, Atoms]:
        """Atoms of clips of the split, by modality."""
        clips = torch.tensor([self.index[i] for i in positions])
        return {m: atoms.of(clips) for m, atoms in (self.coarse if coarse else self.fine).items()}

    def baselines(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Baselines that replace removed atoms of these inputs (N, ...), by modality; they broadcast to the inputs."""
        return {m: torch.as_tensor(self.data.baseline(m, x)[0], device=self.device) for m, x in inputs.items()}

    def encodings(self, positions: list[int]) -> dict[str, Tensor]:
        """Encodings of clips of the split, on the model's device."""
        return {m: e[positions].to(self.device) for m, e in self.clips.encodings.items()}

    def classes(self, position: int) -> Tensor:
        """The classes, or labels, that a clip is explained for, (K,): predicted, true, and the likeliest others."""
        first = [int(self.predicted[position]), *self.truths(position)]
        order = [*first, *self.logits[position].argsort(descending=True, stable=True).tolist()]
        return torch.tensor(list(dict.fromkeys(order))[: self.plan.classes], device=self.device)

    def truths(self, position: int) -> list[int]:
        """A clip's class, or all of its labels, the likeliest first."""
        if not self.several:
            return [int(self.truth[position])]
        order = self.logits[position].argsort(descending=True, stable=True)
        return [label for label in order.tolist() if self.clips.labels[position, label] > 0]

    def label_of(self, position: int) -> str:
        """A clip's class, or its labels, for people."""
        return names_of(self.clips.labels[position], self.data.labels)

    def is_right(self, answers: Tensor, positions: list[int] | None = None) -> Tensor:
        """Whether answers (n,) of clips of the split are their class, or one of their labels, (n,) bool."""
        labels = self.clips.labels if positions is None else self.clips.labels[positions]
        if self.several:
            return labels.gather(1, answers[:, None])[:, 0] > 0
        return answers == labels

    def undefined(self, about: str, what: str) -> bool:
        """Whether a part has no meaning for several labels per clip, which is then said."""
        if self.several and about not in self.notes:
            self.note(about, f"{what}: not defined for several labels per clip (model.task=labels)")
        return self.several

    def head(self, split: Encoded) -> tuple[Tensor, Tensor]:
        """Logits (N, C) and penultimate features (N, D) of a split, on the CPU."""
        logits, features = [], []
        with undisturbed(self.model), torch.no_grad():
            head = head_of(self.model)
            for start in range(0, len(split.ids), 1024):
                part = {m: e[start : start + 1024].to(self.device) for m, e in split.encodings.items()}
                features.append(self.model.penultimate(part).cpu())
                logits.append(head(part).cpu())
        return torch.cat(logits), torch.cat(features)

    def _encode(self, split: Split, most: int | None, see: Callable[[Any], None] | None = None) -> Encoded:
        """A split's clips, or `most` of them, in the listing's order; encoded once: from the file if it is there."""
        path = self.out / f"encodings-{split}.pt"
        found = encode(self.model, self.data, split, most, seed=self.seed, keep_on="cpu", cache=path, see=see)
        if not self.data.clips_of(split).clips:  # of loaders that list nothing
            return found
        place = {clip.id: i for i, clip in enumerate(self.data.clips_of(split).clips)}
        return found.part(sorted(range(len(found.ids)), key=lambda i: place[found.ids[i]]))

    # ------------------------------------------------------------------------------------------------------- the work

    def note(self, about: str, text: str) -> None:
        """Says what is left out, and keeps it for the summary."""
        note(text)
        self.notes[about] = text
        write_text(self.out / "notes.json", json.dumps(self.notes, indent=1) + "\n")

    def each(self, title: str, unit: str, todo: Mapping[Path, Callable[[], Any]]) -> None:
        """Makes and writes the files that are not there, with progress: arrays (.npz), rows (.parquet) or bytes."""
        left = {path: make for path, make in todo.items() if not is_whole(path)}
        write: dict[str, Callable[[Path, Any], None]] = {".npz": write_arrays, ".parquet": write_table}
        self._progress = progress = Progress(title, len(left), unit)
        for path, make in left.items():
            write.get(path.suffix, write_bytes)(path, make())
            progress.advance(1)

    def at(self, part: str) -> None:
        """Says which part of a file is being made, if that takes long."""
        if self._progress is not None:
            self._progress.at(part)

    def archive(self, position: int, folder: str = "clips") -> Path:
        """Path of the archive of a clip's maps."""
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
        for modality in self.model.modalities:
            found[modality] = set()
            attempts: dict[str, Callable[..., Any]] = {"guided_backprop": guided_backprop, "grad_cam": _grad_cam}
            if not first[modality].is_floating_point():  # ids: gradients need an embedding layer
                names = ("gradient", "gradient_input", "integrated_gradients", "gradient_shap")
                attempts |= {name: getattr(unimodal, name) for name in names}
            for name, method in attempts.items():
                try:
                    method(self.model, first, modality, 0, self.atoms(self.chosen[:1])[modality])
                except UserError as error:
                    self.note(f"{name} {modality}", f"left out for {modality}: {error}")
                    found[modality].add(name)
        return found

    @cached_property
    def sparse(self) -> Arrays | None:
        """The chosen sparse classifier, if there is one."""
        path = self.out / "sparse.npz"
        return read_arrays(path) if is_whole(path) else None


def _grad_cam(model: Explained, inputs: Mapping[str, Tensor], modality: str, *options: Any) -> unimodal.Importance:
    """Grad-CAM where an analysis takes it; a UserError for a model without encoders."""
    return grad_cam(model, inputs, modality, *options, layer=last_convolution(encoder_of(model, modality)))


def last_convolution(encoder: nn.Module) -> nn.Module:
    """Last convolution, at which Grad-CAM looks; the encoder itself if it has none, which Grad-CAM refuses."""
    layers: list[nn.Module] = [m for m in encoder.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    return layers[-1] if layers else encoder


def digest(model: Explained) -> str:
    """SHA-256 of a model's weights and layers."""
    total = hashlib.sha256(
        json.dumps([list(model.modalities), *(str(module) for module in modules_in(model))]).encode()
    )
    for name, value in (entry for module in modules_in(model) for entry in module.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def datamodule(section: Any) -> ListedClips:
    """The data that a `data` section describes."""
    from amr.utils.parser import OneLineParser

    parser = OneLineParser(prog="amr analyze")
    parser.add_subclass_arguments(ListedClips, "data", required=True)
    built: ListedClips = parser.instantiate_classes(parser.parse_object({"data": section})).data
    return built
