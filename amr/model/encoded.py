"""The one engine that encodes a split: under DDP or not, from a file or not.

Measures, analyses and callbacks take their clips from here: `encode` makes a pass of its own, `Collected` keeps what a
pass of the Trainer's has encoded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from amr.attribution import at_least_float32, undisturbed
from amr.datamodules import ListedClips
from amr.datamodules.listing import stable_key, stable_order
from amr.datamodules.loader import collate_clips
from amr.model import complete_rows, device_of, head_of
from amr.model.batches import as_batch
from amr.model.loaders import loader_of
from amr.model.protocol import Explained
from amr.model.task import task_of
from amr.utils.distributed import gather_objects, rank_and_world
from amr.utils.errors import UserError
from amr.utils.files import replacing
from amr.utils.streams import Progress, note

Split = Literal["train", "val", "test"]
Context = Callable[[], AbstractContextManager[Any]]


@dataclass
class Encoded:
    """Clips that have every modality, as the head sees them, in the order of their ids.

    Attributes:
        ids: Ids of the clips.
        labels: (N,) int64; of several labels per clip (N, C) float32.
        encodings: (N, ...) per modality, all on one device.
        lacking: Number of clips that were left out because they lack a modality.
    """

    ids: list[str]
    labels: Tensor
    encodings: dict[str, Tensor]
    lacking: int = 0

    @classmethod
    def of(cls, ids: Sequence[str], labels: Tensor, encodings: Mapping[str, Tensor], lacking: int = 0) -> "Encoded":
        """Sorts by id and joins what several processes have; one without clips may have no encodings either."""
        found = gather_objects((list(ids), labels.cpu(), {m: e.cpu() for m, e in encodings.items()}, lacking))
        lacking = sum(part[3] for part in found)
        if not (parts := [part for part in found if part[0]]):
            return cls([], labels, {}, lacking)
        every = [id for part in parts for id in part[0]]
        place = {id: i for i, id in enumerate(every)}  # a sampler of many ranks may repeat clips
        order = [place[id] for id in sorted(place)]
        device = labels.device
        joined = {m: torch.cat([part[2][m] for part in parts])[order].to(device) for m in parts[0][2]}
        labels = torch.cat([part[1] for part in parts])[order].to(device)
        return cls([every[i] for i in order], labels, joined, lacking)

    def to(self, device: torch.device | str) -> "Encoded":
        """The clips on a device."""
        encodings = {m: e.to(device) for m, e in self.encodings.items()}
        return Encoded(self.ids, self.labels.to(device), encodings, self.lacking)

    def part(self, rows: Sequence[int]) -> "Encoded":
        """Some of the clips."""
        encodings = {m: e[rows] for m, e in self.encodings.items()}
        return Encoded([self.ids[i] for i in rows], self.labels[rows], encodings, self.lacking)

    def some(self, most: int | None, seed: int = 0) -> "Encoded":
        """At most that many, chosen by a hash of their ids."""
        if most is None or len(self.ids) <= most:
            return self
        kept = set(stable_order(self.ids, seed)[:most])
        return self.part([i for i, id in enumerate(self.ids) if id in kept])


class Collected:
    """The encodings that a pass of the Trainer's makes, of the clips that have every modality, batch by batch.

    Args:
        most: At most so many of all processes' clips are kept, chosen by a hash of their ids as `Encoded.some` chooses
            them, so that the choice does not depend on the order or on the ranks; None for all.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.ids: list[str] = []
        self._labels: list[Tensor] = []
        self._encodings: list[dict[str, Tensor]] = []
        self._last: bytes | None = None  # hash of the last clip that is kept: one after it will not be

    def add(self, outputs: Any) -> Tensor:
        """Keeps a batch's clips.

        Args:
            outputs: Output of the classifier's step.

        Returns:
            Positions in the batch of the clips that were kept, (n,) int64.
        """
        encodings, labels = outputs["encodings"], outputs["label"]
        mask = complete_rows(encodings, outputs["present"])
        kept = range(len(labels)) if mask is None else mask.nonzero().flatten().tolist()
        if self._last is not None:
            kept = [i for i in kept if stable_key(outputs["id"][i], 0) <= self._last]
        rows = torch.tensor(kept, dtype=torch.int64, device=labels.device)
        self._encodings.append({m: at_least_float32(e[rows]) for m, e in encodings.items()})
        self._labels.append(labels[rows])
        self.ids += [outputs["id"][i] for i in kept]
        if self.most is not None and len(self.ids) > 2 * self.most:
            self._prune()
        return rows

    def joined(self) -> Encoded:
        """This process's clips, in the order in which they came; without encodings if it has had no batch."""
        if not self._encodings:
            return Encoded([], torch.empty(0, dtype=torch.int64), {})
        encodings = {m: torch.cat([part[m] for part in self._encodings]) for m in self._encodings[0]}
        return Encoded(self.ids, torch.cat(self._labels), encodings)

    def of_all_ranks(self) -> Encoded:
        """All processes' clips, in the order of their ids."""
        if self.most is not None and self.ids:
            self._prune()
        own = self.joined()
        return Encoded.of(own.ids, own.labels, own.encodings).some(self.most)

    def _prune(self) -> None:
        own = self.joined().some(self.most)
        self.ids, self._labels, self._encodings = own.ids, [own.labels], [own.encodings]
        if len(self.ids) == self.most:
            self._last = max(stable_key(id, 0) for id in self.ids)


def encode(
    model: Explained,
    data: pl.LightningDataModule,
    split: Split,
    most: int | None = None,
    *,
    seed: int = 0,
    context: Context = nullcontext,
    ids: Sequence[str] | None = None,
    keep_on: torch.device | str | None = None,
    cache: Path | None = None,
    see: Callable[[Mapping[str, Any]], None] | None = None,
) -> Encoded:
    """Encodes a split's clips that have every modality, without augmentation; under DDP each process its part.

    A data module that is not one of amr's gives its loader's batches, which under DDP must be this process's part.

    Args:
        model: The model.
        data: The data module.
        split: Split whose clips are used, such as `test`.
        most: At most so many, chosen by a hash of their ids.
        seed: Seed of the choice.
        context: Context in which the encoders run.
        ids: Only these clips.
        keep_on: The device that the encodings are moved to batch by batch; None: the model's.
        cache: A file that they are read from, if it is there and whole, and written to; None: neither. Its folder must
            be one model's and its data's, for the file does not say whose it is.
        see: Called with each batch that is encoded here, so that what else is made of the inputs needs no pass of its
            own; not called where the encodings are read from `cache`.

    Returns:
        The clips, in the order of their ids.

    Raises:
        UserError: No clip has every modality.
    """
    where = torch.device(device_of(model) if keep_on is None else keep_on)
    if cache is not None:
        rank, _ = rank_and_world()
        # The first process alone looks: the others' disks may lag.
        if (kept := gather_objects(_read(cache, model, _listed(data, split)) if rank == 0 else None)[0]) is not None:
            return kept.to(where)
    found: list[str] = []
    labels: list[Tensor] = []
    encodings: list[dict[str, Tensor]] = []
    wanted, lacking = None if ids is None else set(ids), 0
    with undisturbed(model), torch.no_grad():
        for batch in _batches(model, data, split, most, seed, wanted):
            if see is not None:
                see(batch)
            rows = complete_rows(model.modalities, batch.get("present"))
            asked = [i for i, id in enumerate(batch["id"]) if wanted is None or id in wanted]
            keep = [i for i in asked if rows is None or rows[i]]
            lacking += len(asked) - len(keep)
            if not keep:
                continue
            with context():
                encoded = model.encode({m: batch["inputs"][m][keep] for m in model.modalities})
            encodings.append({m: at_least_float32(e).to(where) for m, e in encoded.items()})
            labels.append(batch["label"][keep].to(where))
            found += [batch["id"][i] for i in keep]
    own = {m: torch.cat([part[m] for part in encodings]) for m in model.modalities} if found else {}
    none = torch.empty(0, dtype=torch.int64, device=where)
    # A process that has none must not stop here: the others would wait for it.
    every = Encoded.of(found, torch.cat(labels) if labels else none, own, lacking)
    if not every.ids:
        raise UserError(f"no clip of {split} has every modality")
    every = every.some(most, seed)
    if cache is not None and rank == 0:
        with replacing(cache) as file:
            torch.save(vars(every.to("cpu")), file)
    return every


def _read(cache: Path, model: Explained, listed: set[str] | None) -> Encoded | None:
    """Reads what `encode` wrote; None if it is absent or, with a message, damaged or of other clips."""
    if not cache.is_file():
        return None
    try:
        content = torch.load(cache, weights_only=True, map_location="cpu")
        kept = Encoded(**{each.name: content[each.name] for each in fields(Encoded)})
        sizes = {len(kept.labels), *map(len, kept.encodings.values())}
        right = bool(kept.ids) and (listed is None or listed.issuperset(kept.ids))
        if right and sizes == {len(kept.ids)} and {*kept.encodings} == {*model.modalities}:
            return kept
        error: Any = "of other clips"
    except Exception as problem:  # torch and pickle raise whatever they stumble over
        error = f"damaged: {' '.join(str(problem).split())[:200]}"
    note(f"{cache}: {error}; made again")
    return None


def _listed(data: pl.LightningDataModule, split: Split) -> set[str] | None:
    """Ids of a split's clips; None if the data module does not list them."""
    if not isinstance(data, ListedClips):
        return None
    data.setup()
    return {clip.id for clip in data.clips_of(split).clips}


def _batches(
    model: Explained,
    data: pl.LightningDataModule,
    split: Split,
    most: int | None,
    seed: int,
    wanted: set[str] | None,
) -> Iterator[Any]:
    """A split's batches on the model's device, those of this process under DDP."""
    if not isinstance(data, ListedClips):
        done = 0
        for number, given in enumerate(loader_of(data, split)):
            moved = _moved(data, given, model)
            batch = as_batch(moved, model.modalities, (rank_and_world()[0], number), task=task_of(model))
            yield batch
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
    for batch in loaded(data, Subset(dataset, order), model):
        yield batch
        progress.advance(len(batch["id"]))


def loaded(data: Any, dataset: Any, model: Explained) -> Iterator[Any]:
    """Batches of a dataset in its order, on the model's device, as the data module's own loaders give them."""
    size, workers = getattr(data, "batch_size", 64), getattr(data, "num_workers", 0)
    for batch in DataLoader(dataset, size, num_workers=workers, collate_fn=collate_clips):
        yield _moved(data, batch, model)


def _moved(data: pl.LightningDataModule, batch: Any, model: Explained) -> Any:
    device = device_of(model)
    return data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0)


def logits_of(model: Explained, encodings: Mapping[str, Tensor]) -> Tensor:
    """The head's logits (N, C) of encodings (N, ...), a few thousand rows at a time."""
    head, count = head_of(model), len(next(iter(encodings.values())))
    blocks = [{m: e[start : start + 4096] for m, e in encodings.items()} for start in range(0, count, 4096)]
    return torch.cat([head(block) for block in blocks])
