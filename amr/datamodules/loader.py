"""Batches that depend only on the seed, the epoch and the clips, not on workers, ranks, or where a run was resumed."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy as copy_of
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from amr.datamodules.store.media import Clip
from amr.datamodules.store.shards import ClipStore
from amr.datamodules.transforms import ChosenFrames, VideoTransform
from amr.utils.errors import UserError

Key = tuple[int | tuple[int, int], int]  # (epoch, index); the epoch of a clip's k-th copy, k > 0, is (epoch, k)


@contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Run with torch's CPU generator seeded by the parts, and put it back."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    state = torch.get_rng_state()
    # Not torch.manual_seed: it also seeds every GPU, or queues that up for each clip.
    torch.default_generator.manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    try:
        yield
    finally:
        torch.set_rng_state(state)


def damaged(store: ClipStore, id: str, error: Exception) -> UserError:
    """Error for a clip that was decoded once and can no longer be read."""
    return UserError(f"{store.shard_of(id)}: clip {id!r} is damaged ({error}); run prepare --verify")


class ListedDataset(Dataset[dict[str, Any]]):
    """Clips in an order, each a function of (epoch, clip, copy): what the sampler, and methods that choose clips, ask.

    Attributes:
        clips: In order.
        train: Whether to augment.
    """

    clips: Sequence[Clip]
    train: bool

    def __len__(self) -> int:
        return len(self.clips)

    def key(self, epoch: int, clip: int, copy: int) -> Key:
        """Key of a clip in an epoch, or of a further copy of it, which is augmented separately."""
        return ((epoch, copy) if copy else epoch), clip

    def plain(self) -> Self:
        """The same clips without augmentation."""
        plain = copy_of(self)
        plain.train = False
        return plain


class ClipDataset(ListedDataset):
    """One split's clips, read from the store and transformed.

    In training the random choices are a function of (seed, epoch, clip, modality); otherwise of (clip, modality), so
    that validation and test inputs are the same in every run, whatever its seed.

    Args:
        clips: In order.
        labels: Class names; a clip's label is an index into them.
        store: Store that holds the clips.
        transforms: By modality, in the order of the batch: called with the stored data and `train`.
        blanks: Each modality's input for clips that lack it.
        train: Whether to augment.
        seed: Seed of the run.
        present: Whether to say which modalities a clip has; otherwise every clip must have all.
        texts: Ids of the clips' texts by clip, data of the modality `text`, which the store lacks. None: no texts.
        reads: By modality: what its transform is given of the clip's stored data, where that has another name.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        labels: Sequence[str],
        store: ClipStore,
        transforms: Mapping[str, Callable[..., Tensor | ChosenFrames]],
        blanks: Mapping[str, Tensor | ChosenFrames],
        *,
        train: bool,
        seed: int,
        present: bool,
        texts: Mapping[str, Tensor] | None = None,
        reads: Mapping[str, str] | None = None,
    ) -> None:
        self.reads = dict(reads or {})
        self.clips, self.store, self.transforms, self.blanks, self.texts = clips, store, transforms, blanks, texts
        self.train, self.seed, self.present = train, seed, present
        self.index = {label: i for i, label in enumerate(labels)}

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        """One clip of the batch format; a plain index means epoch 0.

        Raises:
            UserError: What the store has of the clip cannot be read.
        """
        epoch, i = key if isinstance(key, tuple) else (0, key)
        clip = self.clips[i]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a loader process: for tensors this small, threads only wait for each other
        try:
            return self._read(clip, epoch)
        except UserError:
            raise
        except ValueError as error:
            raise damaged(self.store, clip.id, error) from error
        finally:
            torch.set_num_threads(threads)

    def _draw(self, epoch: object) -> tuple[object, ...]:
        """Values on which a clip's random choices depend, besides the clip and the modality."""
        return ("train", self.seed, epoch) if self.train else ("eval",)

    def _data(self, clip: Clip) -> dict[str, Any]:
        data = self.store.get(clip.id)
        return data if self.texts is None or clip.id not in self.texts else {**data, "text": self.texts[clip.id]}

    def _read(self, clip: Clip, epoch: object) -> dict[str, Any]:
        data = self._data(clip)
        draw = self._draw(epoch)
        inputs = {}
        for modality, transform in self.transforms.items():
            if modality in data:
                with seeded(*draw, clip.id, modality):
                    inputs[modality] = transform(data[self.reads.get(modality, modality)], train=self.train)
            else:
                inputs[modality] = self.blanks[modality]
        item: dict[str, Any] = {"inputs": inputs, "label": self.index[clip.label], "id": clip.id}
        if self.present:
            item["present"] = {modality: modality in data for modality in self.transforms}
        return item


class MemoryDataset(ClipDataset):
    """A split that stays in memory once it was read, frames decoded; batches are transformed as a whole.

    The random choices are those of `ClipDataset`, and so are the inputs, up to rounding.

    Args:
        batched: By modality: called with the clips' data, the contexts for their random choices, and `train`.
        decoders: By modality, for data that is decoded before it is kept.
        args: See `ClipDataset`.
        kwargs: See `ClipDataset`.
    """

    def __init__(
        self,
        batched: Mapping[str, Callable[..., Tensor]],
        decoders: Mapping[str, Callable[[Any], Any]],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.batched, self.decoders = batched, decoders
        self._held: dict[str, dict[str, Any]] = {}

    def __getitems__(self, keys: Sequence[Key | int]) -> list[dict[str, Any]]:
        """A batch's clips; torch's loader calls this where it is defined.

        Raises:
            UserError: What the store has of a clip cannot be read.
        """
        places = [key if isinstance(key, tuple) else (0, key) for key in keys]
        clips = [self.clips[i] for _, i in places]
        held = [self._hold(clip) for clip in clips]
        items: list[dict[str, Any]] = [
            {"inputs": {}, "label": self.index[clip.label], "id": clip.id}
            | ({"present": {modality: modality in data for modality in self.transforms}} if self.present else {})
            for clip, data in zip(clips, held, strict=True)
        ]
        for modality in self.transforms:
            there = [k for k, data in enumerate(held) if modality in data]
            draws = [seeded(*self._draw(places[k][0]), clips[k].id, modality) for k in there]
            rows = iter(
                self.batched[modality]([held[k][modality] for k in there], draws, train=self.train) if there else ()
            )
            for item, data in zip(items, held, strict=True):
                item["inputs"][modality] = next(rows) if modality in data else self.blanks[modality]
        return items

    def _hold(self, clip: Clip) -> dict[str, Any]:
        if clip.id not in self._held:
            try:
                data = self._data(clip)
                self._held[clip.id] = {
                    m: self.decoders.get(m, _same)(data[self.reads.get(m, m)]) for m in self.transforms if m in data
                }
            except ValueError as error:
                raise damaged(self.store, clip.id, error) from error
        return self._held[clip.id]


def _same(data: Any) -> Any:
    return data


def collate_clips(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Join clips to a batch."""
    return collate(items, collate_fn_map={ChosenFrames: _join_frames, **default_collate_fn_map})  # type: ignore[no-any-return]


def _join_frames(clips: list[ChosenFrames], **_: Any) -> ChosenFrames:
    return ChosenFrames.join(clips)


def finish_video(batch: dict[str, Any], transform: VideoTransform, store: ClipStore) -> dict[str, Any]:
    """The batch with its chosen frames decoded, or its pixels normalised, on its device; as it is if it has neither.

    Raises:
        UserError: What the store has of a clip cannot be decoded.
    """
    chosen, device = batch["inputs"].get("video"), batch["label"].device
    if isinstance(chosen, Tensor) and chosen.dtype == torch.uint8:
        video = transform.normalised(chosen)
        if "present" in batch:
            video[~batch["present"]["video"]] = 0
        return {**batch, "inputs": {**batch["inputs"], "video": video}}
    if not isinstance(chosen, ChosenFrames):
        return batch
    try:
        video = transform.finish(chosen, device)
    except ValueError:
        for id, clip in zip(batch["id"], chosen.clips(), strict=True):
            try:
                transform.finish(clip, device)
            except ValueError as error:
                raise damaged(store, id, error) from error
        raise
    return {**batch, "inputs": {**batch["inputs"], "video": video}}


class ClipSampler(DistributedSampler[Key]):
    """(epoch, index) of one rank's clips.

    Rank r takes every W-th clip of one global order, from the r-th on, so that the W ranks' k-th batches together are
    the k-th batch of a single process with W times the batch size. In training the last, at most W - 1, clips of an
    epoch's order are left out, for all ranks must take as many steps. In evaluation none is left out or repeated.

    It is a DistributedSampler so that Lightning leaves it in place, which knows no other sampler for many ranks.

    Args:
        dataset: The clips.
        shuffle: Whether for training.
        seed: Seed of the order, with the epoch.
        rank: This process.
        world_size: Number of processes.
        weights: Weights of the clips (N,), to draw N of them with replacement in each training epoch; None for each
            once.
    """

    def __init__(
        self,
        dataset: ListedDataset,
        *,
        shuffle: bool,
        seed: int,
        rank: int,
        world_size: int,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__(dataset, world_size, rank, shuffle=shuffle, seed=seed)
        self.clips, self.key, self.weights = len(dataset), dataset.key, weights
        self.start = 0  # of the next pass, in clips of this rank; for resuming

    def __len__(self) -> int:
        spare = self.clips % self.num_replicas if self.shuffle else 0
        return len(range(self.rank, self.clips - spare, self.num_replicas))

    def __iter__(self) -> Iterator[Key]:
        order = list(range(self.clips))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            if self.weights is None:
                order = torch.randperm(self.clips, generator=generator).tolist()
            else:
                order = torch.multinomial(self.weights, self.clips, True, generator=generator).tolist()
        start, self.start = self.start, 0
        before: Counter[int] = Counter()  # copies of a clip are augmented each by itself
        keys = []
        for index in order:
            keys.append(self.key(self.epoch, index, before[index]))
            before[index] += 1
        yield from keys[self.rank :: self.num_replicas][start : len(self)]


class ClipLoader(DataLoader[dict[str, Any]]):
    """A DataLoader that a checkpoint taken in the middle of an epoch can resume, without decoding what was seen."""

    def __init__(self, dataset: ListedDataset, **kwargs: Any) -> None:
        super().__init__(dataset, collate_fn=collate_clips, **kwargs)
        self._epoch, self._batches = 0, 0  # where the last pass stands
        self._resume: dict[str, Any] | None = None

    def _plan(self) -> dict[str, Any] | None:
        """All that decides which clips are in which batch; None under a sampler that is not ours (overfit_batches)."""
        s = self.sampler
        if not isinstance(s, ClipSampler) or self.batch_size is None:
            return None
        plan = {"clips": s.clips, "global_batch_size": self.batch_size * s.num_replicas, "seed": s.seed}
        return plan if s.weights is None else {**plan, "balance": True}

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the number of its batches handed out so far."""
        return self._resume or {"epoch": self._epoch, "batches": self._batches, "plan": self._plan()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass, if it is over the same epoch, begin after the batches that were handed out."""
        self._resume = state

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        # A generator: Lightning calls iter() before it sets the epoch, and the first next() after.
        sampler, state, done = self.sampler, self._resume, 0
        self._resume = None
        if isinstance(sampler, ClipSampler):
            self._epoch = sampler.epoch
            if state and state["epoch"] == sampler.epoch and state["batches"] > 0:
                if state["plan"] != self._plan():
                    raise UserError(
                        f"cannot resume in the middle of epoch {sampler.epoch}: the checkpoint's batches were made with"
                        f" {state['plan']} and these are with {self._plan()}; use the same, or a checkpoint at an end"
                    )
                done = state["batches"]
                sampler.start = done * (self.batch_size or 1)
        self._batches = done
        if done >= len(self):
            return
        with plain_errors():
            for batch in super().__iter__():
                self._batches += 1
                yield batch


@contextmanager
def plain_errors() -> Iterator[None]:
    """Makes a `UserError` from a worker, of which torch hands on the text of the whole traceback, one line again."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).rsplit(f"{UserError.__module__}.{UserError.__name__}: ", 1)[-1].strip()) from None
