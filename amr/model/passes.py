"""Eval-mode passes over the clips of a loader in the middle of training, which leave no trace in the training.

A pass takes the clips from the loader's data set, in its order. It runs in eval mode, in single precision or better,
and restores every random state. Under DDP the ranks share the clips batch by batch, and every rank gets all values. A
batch of a pass has the same clips whatever the number of ranks, so the values are the same.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from amr.attribution import at_least_float32, undisturbed
from amr.datamodules.selected import same_loader
from amr.model import FusionModel, complete_masks, complete_rows
from amr.model.batches import as_batch, made_up
from amr.model.encoded import Encoded
from amr.utils.distributed import gather_objects, rank_and_world
from amr.utils.errors import UserError

LARGEST = 64
"""Clips in a batch of a pass, at most."""


@dataclass(frozen=True)
class Seen:
    """A batch of a pass.

    Attributes:
        model: The model, in eval mode.
        encodings: Encoding of each modality, (B, D_m) or (B, T, D_m), of single precision or better; zero of clips that
            lack the modality.
        label: Class indices, (B,).
        present: Boolean (B,) of the modalities that some clips lack.
    """

    model: FusionModel
    encodings: dict[str, Tensor]
    label: Tensor
    present: Mapping[str, Tensor] | None


class ClipPass:
    """The clips of a loader, ready for passes.

    Args:
        model: The model.
        loader: The loader whose data set is passed over; its order plays no part.
        move: Takes a collated batch to the model's device, in the batch format.
        name: Name of the loader, such as `train_dataloader`; for messages.

    Raises:
        UserError: If the loader has no data set with a length and indices.
    """

    def __init__(self, model: FusionModel, loader: Any, move: Callable[[Any], Any], name: str) -> None:
        dataset = getattr(loader, "dataset", None)
        whole = isinstance(loader, DataLoader) and (loader.batch_size or loader.batch_sampler)
        if not whole or dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise UserError(
                f"data.{name}={type(loader).__name__}: must be one DataLoader over a data set with a length and indices"
                " (no IterableDataset, and of clips, not of batches), since a method evaluates its clips between epochs"
            )
        self.model, self.loader, self.move, self.name = model, loader, move, name
        plain = getattr(dataset, "plain", None)
        self.dataset = dataset if plain is None else plain()

    def __len__(self) -> int:
        return len(self.dataset)

    def each(
        self, function: Callable[[Seen], Mapping[str, Tensor]], clips: Sequence[int] | Tensor | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Values of a function for every clip.

        Args:
            function: Called with each batch; returns values by name, (B, ...) each.
            clips: Positions of the clips in the data set; None: all.

        Returns:
            The values (N, ...) on the CPU and the ids, in the order of `clips`, equal on all ranks.
        """
        order = list(range(len(self))) if clips is None else [int(i) for i in clips]
        rank, world = rank_and_world()
        size = min(LARGEST, (self.loader.batch_size or LARGEST) * world)
        blocks = [range(start, min(start + size, len(order))) for start in range(0, len(order), size)][rank::world]
        values: list[dict[str, Tensor]] = []
        ids: list[str] = []
        with _traceless(self.model):
            batches = same_loader(self.loader, self.dataset, [[order[k] for k in block] for block in blocks])
            for block, moved in zip(blocks, map(self.move, batches), strict=True):
                batch = as_batch(moved, self.model.modalities)
                encoded = self.model.encode(batch["inputs"], batch.get("present"))
                encodings = {m: at_least_float32(e) for m, e in encoded.items()}
                seen = Seen(self.model, encodings, batch["label"], batch.get("present"))
                values.append({key: value.detach().cpu() for key, value in function(seen).items()})
                ids += [f"{order[k]:09d}" for k in block] if made_up(batch["id"]) else batch["id"]
        parts = gather_objects(([k for block in blocks for k in block], values, ids))
        places = torch.tensor([place for part in parts for place in part[0]], dtype=torch.int64)
        back = torch.argsort(places)
        every = [value for part in parts for value in part[1]]
        names = [id for part in parts for id in part[2]]
        joined = {key: torch.cat([value[key] for value in every])[back] for key in (every[0] if every else ())}
        return joined, [names[i] for i in back.tolist()]

    def encoded(self, most: int | None = None) -> Encoded:
        """The clips that have every modality, in the order of their ids, on the CPU.

        Args:
            most: Number of clips to look at, at most, taken evenly from the data set's order; None for all.

        Raises:
            UserError: No clip has every modality.
        """
        count = len(self)
        clips = None if most is None or count <= most else [i * count // most for i in range(most)]
        values, ids = self.each(_complete, clips)
        complete, label = values.pop("complete"), values.pop("label")
        kept = sorted(complete.nonzero().flatten().tolist(), key=lambda i: ids[i])
        if not kept:
            raise UserError(f"data.{self.name}: no clip has every modality")
        encodings = {key.removeprefix("encoding/"): value[kept] for key, value in values.items()}
        return Encoded([ids[i] for i in kept], label[kept], encodings, len(ids) - len(kept))


class Scores:
    """Values for each clip from one pass over the training clips, which is made when they are first needed.

    All values are on the CPU, in the order of the training data set, and equal on all ranks.

    Args:
        clips: The training clips.
        seed: Seed of `generator`.
    """

    def __init__(self, clips: ClipPass, seed: int) -> None:
        self._clips = clips
        self.generator = torch.Generator().manual_seed(seed)
        """Generator for random choices: a function of the run's seed and the epoch, equal on all ranks."""

    def __len__(self) -> int:
        """Number of training clips N."""
        return len(self._clips)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities."""
        return self._clips.model.modalities

    def each(
        self, function: Callable[[Seen], Mapping[str, Tensor]], clips: Sequence[int] | Tensor | None = None
    ) -> dict[str, Tensor]:
        """Values of a function's own, by name, (N, ...); it is called with each batch of a pass of its own.

        Args:
            function: Returns values by name, (B, ...) each.
            clips: Positions of the clips to pass over; None: all.
        """
        return self._clips.each(function, clips)[0]

    @property
    def logits(self) -> Tensor:
        """Logits of the bare model, (N, C)."""
        return self._standard[0]["logits"]

    @property
    def labels(self) -> Tensor:
        """Class indices, (N,)."""
        return self._standard[0]["label"]

    @property
    def present(self) -> Tensor:
        """Boolean (N, M): which modalities each clip has."""
        return self._standard[0]["present"]

    @property
    def ids(self) -> list[str]:
        """The clips' names."""
        return self._standard[1]

    @cached_property
    def _standard(self) -> tuple[dict[str, Tensor], list[str]]:
        return self._clips.each(_said)


def _said(seen: Seen) -> dict[str, Tensor]:
    return {"logits": seen.model.head(seen.encodings), "label": seen.label, "present": presence(seen)}


def presence(seen: Seen) -> Tensor:
    """Boolean (B, M): which modalities each clip of a batch has."""
    return complete_masks(seen.model.modalities, seen.present, seen.label).T


def _complete(seen: Seen) -> dict[str, Tensor]:
    rows = complete_rows(seen.encodings, seen.present)
    complete = torch.ones(len(seen.label), dtype=torch.bool) if rows is None else rows
    return {f"encoding/{m}": e for m, e in seen.encodings.items()} | {"label": seen.label, "complete": complete}


def reseed(number: int, device: torch.device) -> None:
    """Seeds the generators that work on a device draws from: as `torch.manual_seed`, without what that costs.

    That one also queues the call for backends that are not in use, each with the text of the stack.
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(number)
        return
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(number)


@contextmanager
def _traceless(model: FusionModel) -> Iterator[None]:
    """Eval mode without gradients and from a fixed random state; every random state is restored."""
    with isolate_rng(), undisturbed(model), torch.no_grad():
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  # what a data set may draw from
        torch.manual_seed(0)
        yield
