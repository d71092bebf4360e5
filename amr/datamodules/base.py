"""The base of all data modules: a listing of clips in, loaders out."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from amr.datamodules.explained import ExplainedClips
from amr.datamodules.folders import RootFolder, found_elsewhere, is_there
from amr.datamodules.listed import check_batches
from amr.datamodules.listing import check_listing
from amr.datamodules.loader import ClipDataset, MemoryDataset, finish_video
from amr.datamodules.store.media import KEPT, MODALITIES, STILL, Clip, DecodeOptions, without_details
from amr.datamodules.store.prepare import prepare, verify
from amr.datamodules.store.report import PrepareReport, count_reasons, describe_reasons
from amr.datamodules.store.shards import ClipStore, settings_text, shard_files
from amr.datamodules.texts import NO_TEXT, TEXT, ClipTexts, as_it_is, batch_as_it_is
from amr.datamodules.transforms import AudioTransform, ChosenFrames, VideoTransform
from amr.datamodules.transforms.spectrograms import kept_options
from amr.utils.errors import UserError
from amr.utils.streams import note


class ClipDataModule(ExplainedClips):
    """Clips of any source: a subclass lists them; decoding, transforms, batches and resuming are here.

    The listing is read when the module is made, so that mistakes in it come to light at once. A batch is
    `{"inputs": {modality: (B, ...) float32}, "label": (B,) int64, "id": list[str]}` and, with missing=keep,
    `"present": {modality: (B,) bool}`. Audio is (B, 1, F, T) or (B, 1, samples), video (B, frames, channels, height,
    width), text (B, T) int64.

    Args:
        root: Folder of the data set; no clip's path may lead outside.
        store: Folder for the decoded clips; None: a folder in `stores/` named by data set and options.
        modalities: Modalities that the batches hold, in this order.
        decode: Options that decide what is kept of each clip.
        audio: Transform of the waveform.
        video: Transform of the frames.
        batch_size: Clips a batch and rank.
        num_workers: Loader processes.
        seed: Seed of order and augmentation. Splits do not depend on it.
        missing: Treatment of a clip that lacks a modality, or whose data could not be decoded: skip leaves it out;
            keep takes it with zeros for input and `present` False, unless it lacks all.
        still: Treatment of a clip whose frames all show the same picture; use takes it like any other.
        drop_last: Leave out an epoch's last training batch if it is smaller.
        predict_split: Split over which `predict` runs.
        prepare_workers: Processes that decode; None: one per core.
        decode_on: Where the stored JPEG frames are decoded, resized and cropped. cpu: in the loader processes, which
            hand them to a CUDA device as bytes, to be normalised there. gpu: on the device, by nvjpeg, from the same
            random choices; its pixels differ from libjpeg's by a few grey levels. auto: gpu if the Trainer's device is
            a CUDA one, and cpu otherwise and with in_memory.
        in_memory: Keep the clips in each loader process's memory, frames decoded, and transform a batch at a time; for
            small data sets, with num_workers=0. The inputs are the same up to rounding.
        follow_links: Whether to read files through links that lead out of `root`. None: through those that the owner of
            the folder `root` made.
        balance: Whether each training epoch draws as many clips with replacement, every class alike.

    Attributes:
        name: Name of the data set.
        labels: Class names in the order of the class indices.
        clips: The listing.

    Raises:
        UserError: Anything wrong with the arguments or the listing.
    """

    root: Path

    def __init__(
        self,
        root: str | Path,
        *,
        store: str | Path | None = None,
        modalities: Sequence[str] = MODALITIES,
        decode: DecodeOptions = DecodeOptions(),  # noqa: B008  # frozen
        audio: AudioTransform = AudioTransform(),  # noqa: B008
        video: VideoTransform = VideoTransform(),  # noqa: B008
        batch_size: int = 64,
        num_workers: int = 2,
        seed: int = 0,
        missing: Literal["skip", "keep"] = "skip",
        still: Literal["use", "skip"] = "use",
        drop_last: bool = False,
        predict_split: Literal["train", "val", "test"] = "test",
        prepare_workers: int | None = None,
        decode_on: Literal["auto", "cpu", "gpu"] = "auto",
        in_memory: bool = False,
        follow_links: bool | None = None,
        balance: bool = False,
    ) -> None:
        super().__init__()
        allowed = self.possible()
        if not modalities or len(set(modalities)) < len(modalities) or not set(modalities) <= set(allowed):
            raise UserError(f"data.modalities={list(modalities)}: must be of {list(allowed)}, each at most once")
        check_batches(batch_size, num_workers)
        self.root = Path(root)
        self.modalities = tuple(modalities)
        self.decode, self.audio, self.video = decode, audio, video
        self._kept = kept_options(decode, audio)
        self.batch_size, self.num_workers, self.seed, self.missing = batch_size, num_workers, seed, missing
        self.still, self.drop_last, self.predict_split, self.decode_on = still, drop_last, predict_split, decode_on
        self.in_memory, self.follow_links, self.balance = in_memory, follow_links, balance
        if in_memory and decode_on == "gpu":
            raise UserError("data.decode_on=gpu: must be auto or cpu with in_memory, which keeps frames")
        if in_memory and (audio.freq_mask or audio.time_mask):
            raise UserError("data.in_memory=true: must be false with audio.freq_mask or audio.time_mask")
        self.prepare_workers = os.cpu_count() or 1 if prepare_workers is None else prepare_workers
        self.clips, self.labels = self.list_clips()
        self._check_listing()
        self.texts = self.list_texts()
        self.store = Path(store) if store is not None else self._default_store()
        self._usable: dict[str, list[Clip]] | None = None

    def list_clips(self) -> tuple[list[Clip], list[str]]:
        """The clips and the ordered labels; called once, after the arguments are set."""
        raise NotImplementedError

    def possible(self) -> tuple[str, ...]:
        """The modalities that a clip can have; called once the subclass' own arguments are set."""
        return MODALITIES

    def list_texts(self, fitted: dict[str, Any] | None = None) -> ClipTexts | None:
        """The clips' texts, for a listing that has them; called after `list_clips`.

        Args:
            fitted: A checkpoint's length and vocabulary; None: those of the training clips.
        """
        return None

    def locate(self, clip: Clip) -> Clip:
        """The clip with its files, for a listing that leaves them out; called before it is decoded."""
        return clip

    def prepare(self, executor: Executor | None = None, convert: str | Path | None = None) -> PrepareReport:
        """Decode what is not in the store yet, and clips with files that were missing and are there now.

        Args:
            executor: Where to run; None: `prepare_workers` processes on this machine.
            convert: Another store of the same clips, from which this one is filled in place of the media; `decode` may
                differ in `frames` and `spectrogram` alone.

        Raises:
            UserError: The store cannot be filled; see `amr.datamodules.store.prepare.prepare`.
        """
        return self._prepare(executor, recheck=True, origin=None if convert is None else Path(convert))

    def verify(self) -> int:
        """Reread every byte of the store; the number of its shards.

        Raises:
            UserError: Shards are damaged, missing or out of date; it names them.
        """
        return verify(self.clips, self.store, self._kept)

    def prepare_data(self) -> None:
        """Lightning's hook: decode what is not in the store yet, once per machine."""
        self._hands_over()  # an hour later is too late to refuse
        self._prepare()

    def _prepare(
        self, executor: Executor | None = None, *, recheck: bool = False, origin: Path | None = None
    ) -> PrepareReport:
        if origin is None:
            self._check_there()
        return prepare(
            self.clips,
            self.store,
            self._kept,
            root=self.root,
            workers=self.prepare_workers,
            executor=executor,
            recheck=recheck,
            locate=self.locate,
            origin=origin,
        )

    def _check_there(self) -> None:
        """Before a store is begun: refuse a root folder in which no clip's file is, if it is known where they are."""
        files = [file for clip in self.clips for file in clip.files.values()]
        if shard_files(self.store) or any(is_there(self.root / file) for file in files):
            return
        if other := found_elsewhere(self.root, files):
            raise UserError(f"{self.name}: looked for {self.root / files[0]}{other}")

    def setup(self, stage: str | None = None) -> None:
        """Open the store and set aside the clips that cannot be used, saying how many and why."""
        if self._usable is not None:
            return
        self._clip_store = ClipStore(self.store)
        if self.decode.spectrogram and self._clip_store.settings != {settings_text(self._kept.settings())}:
            raise UserError(f"{self.store}: its spectrograms are not those of data.audio; run prepare again")
        problems = self._clip_store.problems
        unknown = self._clip_store.first_missing(clip.id for clip in self.clips)
        if unknown is not None:
            raise UserError(f"{self.store}: clip {unknown!r} is not in the store; run prepare again")
        ignored = (STILL, KEPT) if self.still == "use" else (KEPT,)
        mute = set() if self.texts is None else {clip.id for clip in self.clips if clip.id not in self.texts}
        absent = {
            clip.id: {
                m: r
                for m, r in {**problems.get(clip.id, {}), **({TEXT: NO_TEXT} if clip.id in mute else {})}.items()
                if m in self.modalities and without_details(r) not in ignored
            }
            for clip in self.clips
            if clip.id in problems or clip.id in mute
        }
        limit = 1 if self.missing == "skip" else len(self.modalities)
        still = {id for id, reasons in absent.items() if STILL in map(without_details, reasons.values())}
        skipped = still | {id for id, reasons in absent.items() if len(reasons) >= limit}
        self._skipped = count_reasons(absent[c.id] for c in self.clips if c.id in skipped)
        why = describe_reasons(self._skipped)
        if skipped and (self.trainer is None or self.trainer.is_global_zero):
            note(f"{self.name}: skipped {len(skipped)} of {len(self.clips)} clips ({why})")
        usable = [clip for clip in self.clips if clip.id not in skipped]
        self._usable = {s: [c for c in usable if c.split in (s, "all")] for s in ("train", "val", "test")}
        if not self._usable["train"] and any(clip.split in ("train", "all") for clip in self.clips):
            raise UserError(f"{self.name}: no training clip can be used ({why}); see {self.store / 'report.csv'}")

    def census(self) -> dict[str, Any]:
        """Facts about the data for a run's record, in plain types: `split`, `listed`, `clips` and `skipped`.

        `split` is how the splits were made, `clips` the usable ones of each, and `skipped` why others are not, by
        modality and reason.
        """
        self.setup()
        return {
            "split": self.split_kind,
            "listed": len(self.clips),
            "clips": {split: len(clips) for split, clips in (self._usable or {}).items()},
            "skipped": {" ".join(reason): count for reason, count in self._skipped.most_common()},
        }

    def clips_of(self, split: Literal["train", "val", "test"]) -> ClipDataset:
        """A split's usable clips, in the listing's order, without augmentation."""
        dataset = super().clips_of(split)
        assert isinstance(dataset, ClipDataset)
        return dataset

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lightning's hook: finish the frames that the loader left encoded, or as pixels."""
        batch = finish_video(batch, self.video, self._clip_store)
        return batch if self.trainer is None else self.trainer.precision_plugin.convert_input(batch)

    def _hands_over(self) -> Literal["files", "pixels", "inputs"]:
        """What loader processes make of frames: files that a GPU decodes, pixels that it normalises, or all of it.

        Pixels are a quarter of the input's bytes, which go from process to process and to the device.
        """
        cuda = (
            torch.cuda.is_available() and self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        )
        if self.decode_on == "gpu" and not cuda:
            raise UserError("data.decode_on=gpu: must be auto or cpu, for the run is not on a CUDA device")
        if not cuda or self.in_memory:
            return "inputs"
        return "pixels" if self.decode_on == "cpu" else "files"

    def _of_frames(self) -> tuple[Callable[..., Tensor | ChosenFrames], Tensor | ChosenFrames]:
        """What makes a loader's part of a clip's frames, and that of a clip without any."""
        match self._hands_over():
            case "files":
                return self.video.choose, ChosenFrames.none()
            case "pixels":
                return self.video.pixels, torch.zeros(self.video.shape(), dtype=torch.uint8)
        return self.video, torch.zeros(self.video.shape())

    def usable(self, split: str) -> list[Clip]:
        """The split's clips that can be used, in the listing's order."""
        if self._usable is None:
            self.setup()
        return (self._usable or {})[split]

    def dataset(self, split: str, *, train: bool = False) -> ClipDataset:
        """A split's usable clips, in the listing's order; with `train` augmented."""
        clips = self.usable(split)
        rate = self.decode.sample_rate
        video, blank = self._of_frames()
        transforms: dict[str, Callable[..., Tensor | ChosenFrames]] = {
            "audio": partial(self.audio, sample_rate=rate),
            "video": video,
            TEXT: as_it_is,
        }
        reads = {}
        if self.decode.spectrogram:
            transforms["audio"] = partial(self.audio.from_features, shape=self.audio.shape(rate))
            reads = {"audio": "spectrogram"}
        blanks = {
            "audio": torch.zeros(self.audio.shape(rate)),
            "video": blank,
            **({} if self.texts is None else {TEXT: self.texts.blank}),
        }
        kind: Callable[..., ClipDataset] = ClipDataset
        if self.in_memory:
            batched: dict[str, Callable[..., Tensor]] = {
                "audio": partial(self.audio.batch, sample_rate=rate),
                "video": self.video.batch,
                TEXT: batch_as_it_is,
            }
            if self.decode.spectrogram:
                batched["audio"] = partial(self.audio.batch_from_features, shape=self.audio.shape(rate))
            kind = partial(MemoryDataset, batched, {"video": self.video.decode})
        return kind(
            clips,
            self.labels,
            self._clip_store,
            {m: transforms[m] for m in self.modalities},
            blanks,
            train=train,
            seed=self.seed,
            present=self.missing == "keep",
            texts=self.texts,
            reads=reads,
        )

    def state_dict(self) -> dict[str, Any]:
        """Length and vocabulary of the training clips' texts, which a checkpoint keeps; empty without texts."""
        return {} if self.texts is None else {TEXT: self.texts.fitted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Uses a checkpoint's length and vocabulary: those that its model was trained with."""
        if TEXT in state_dict and state_dict != self.state_dict():
            self.texts = self.list_texts(dict(state_dict[TEXT]))

    def _default_store(self) -> Path:
        """Named by everything in which two stores can differ without being versions of each other."""
        what = json.dumps([self._kept.identity(), self.name, str(self.root.resolve())], sort_keys=True)
        return Path("stores") / f"{self.name}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"

    def _check_listing(self) -> None:
        check_listing(self.name, RootFolder(self.root, self.follow_links), self.clips, self.labels)
