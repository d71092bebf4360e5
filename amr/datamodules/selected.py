"""An epoch over chosen clips: some more than once, some not at all, some without a modality."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from amr.datamodules.loader import plain_errors
from amr.utils.errors import UserError


@dataclass(frozen=True)
class Copies:
    """The clips of an epoch, each as often as it stands here.

    Attributes:
        clips: Positions in the training data set, (K,) int64.
        present: By modality, boolean (K,): the copies that keep the modality; the others are as if the clip lacked it.
            A modality that is not named is kept by all.
        part: Number of the part of the epoch that each copy is trained in, (K,) int64: parts follow each other in
            ascending order, and copies are shuffled within. None: one part.
    """

    clips: Tensor
    present: dict[str, Tensor] | None = None
    part: Tensor | None = None


def copies_of(chosen: Tensor | Copies, count: int, seed: int) -> Copies:
    """The copies that a choice means.

    Args:
        chosen: Weights (N,), float, of which N clips are drawn with replacement; or how often each clip is trained,
            (N,) int64; or copies.
        count: Number of training clips N.
        seed: Seed of the draws.

    Raises:
        ValueError: If the choice is none of these, of another size, or empty.
    """
    if isinstance(chosen, Copies):
        sizes = {len(t) for t in (*(chosen.present or {}).values(), chosen.clips) if t is not None}
        sizes |= set() if chosen.part is None else {len(chosen.part)}
        clips = chosen.clips
        if len(sizes) > 1 or not len(clips) or int(clips.min()) < 0 or int(clips.max()) >= count:
            raise ValueError(f"copies must have one length, and positions in [0, {count})")
        return chosen
    if chosen.shape != (count,) or bool((chosen < 0).any()) or not chosen.sum() > 0 or not chosen.sum().isfinite():
        raise ValueError(f"weights or numbers of copies must be ({count},), finite, not negative and not all 0")
    if not chosen.is_floating_point():
        return Copies(torch.repeat_interleave(torch.arange(count), chosen.cpu().long()))
    ends = chosen.cpu().double().cumsum(0)
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * ends[-1]
    return Copies(torch.searchsorted(ends, drawn, right=True).clamp_max(int(chosen.cpu().nonzero().max())))


class SelectedLoader:
    """One epoch's batches of chosen clips, otherwise as another loader gives them.

    Rank r takes every W-th copy of one global order, as `ClipSampler` does; the last, at most W - 1, are left out.

    Args:
        base: The loader whose data set, batch size, collation and workers are used. All that is not named here is its.
        copies: The clips.
        epoch: The epoch, for the data set's random choices.
        seed: Seed of the order, with the epoch.
        rank: This process.
        world_size: Number of processes.
        done: Number of this epoch's batches that are trained already; asked when the first batch is.

    Raises:
        UserError: If the base has no batch size, or the clips make no batch.
    """

    def __init__(
        self,
        base: DataLoader[Any],
        copies: Copies,
        *,
        epoch: int,
        seed: int,
        rank: int,
        world_size: int,
        done: Callable[[], int],
    ) -> None:
        self.base, self.copies, self.epoch, self._done = base, copies, epoch, done
        if base.batch_size is None:
            raise UserError(
                f"data.train_dataloader={type(base).__name__}: must have a batch_size, not a batch_sampler of its own, "
                "since a method chooses its clips"
            )
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) & (2**63 - 1))
        order = torch.randperm(len(copies.clips), generator=generator)
        if copies.part is not None:
            order = order[torch.argsort(copies.part[order], stable=True)]
        mine = order[: len(order) - len(order) % world_size][rank::world_size]
        self._batches = [*torch.split(mine, base.batch_size)] if len(mine) else []
        if base.drop_last and self._batches and len(self._batches[-1]) < base.batch_size:
            self._batches.pop()
        if not self._batches:
            raise UserError(
                f"data.batch_size={base.batch_size}: must be smaller; the {len(copies.clips)} clips of epoch {epoch} "
                "make no batch"
            )

    def __len__(self) -> int:
        return len(self._batches)

    def __getattr__(self, name: str) -> Any:
        if name == "base":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.base, name)

    def __iter__(self) -> Iterator[Any]:  # a generator: it asks for `done` with the first batch
        batches = self._batches[self._done() :]
        key: Callable[[int, int, int], Any] = getattr(self.base.dataset, "key", lambda epoch, clip, copy: clip)
        numbers = _copy_numbers(self.copies.clips)
        keys = [
            [key(self.epoch, int(self.copies.clips[k]), int(numbers[k])) for k in batch.tolist()] for batch in batches
        ]
        with plain_errors():
            for places, batch in zip(batches, same_loader(self.base, self.base.dataset, keys), strict=True):
                yield self._masked(batch, places)

    def _masked(self, batch: Any, places: Tensor) -> Any:
        if not self.copies.present:
            return batch
        if not isinstance(batch, dict):
            batch = {"inputs": batch[0] if len(batch) == 2 else batch[:-1], "label": batch[-1]}
        present = dict(batch.get("present") or {})
        for name, kept in self.copies.present.items():
            rows = kept[places]
            present[name] = present[name] & rows if name in present else rows
        return {**batch, "present": present}


def same_loader(loader: Any, dataset: Any, batches: Sequence[Sequence[Any]]) -> DataLoader[Any]:
    """A loader of given batches that collates and works as another does.

    Args:
        loader: A DataLoader.
        dataset: The data set to take clips from.
        batches: The data set's keys, batch by batch.
    """
    workers = min(loader.num_workers, len(batches))
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # a list of lists is one
        collate_fn=loader.collate_fn,
        num_workers=workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout if workers else 0,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if workers else None,
    )


def _copy_numbers(clips: Tensor) -> Tensor:
    """Number of earlier copies of the same clip, for each copy, (K,)."""
    order = torch.argsort(clips, stable=True)
    _, counts = torch.unique_consecutive(clips[order], return_counts=True)
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    numbers = torch.empty_like(clips)
    numbers[order] = torch.arange(len(clips)) - first
    return numbers
