"""Facts about clips for analyses and robustness: atoms, pictures, times, evidence, and corruptions."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from amr.datamodules.atoms import Atoms
from amr.datamodules.corruptions import (
    CORRUPTIONS,
    JOINT,
    Context,
    CorruptedAudio,
    CorruptedVideo,
    Corruption,
    OtherWaves,
)
from amr.datamodules.listed import ListedClips
from amr.datamodules.listing import stable_order
from amr.datamodules.loader import ClipDataset
from amr.datamodules.store.media import KEPT, MODALITIES, Clip, DecodeOptions
from amr.datamodules.store.shards import ClipStore
from amr.datamodules.tensors.shapes import kind_atoms, tensor_picture
from amr.datamodules.texts import TEXT, ClipTexts, CorruptedText
from amr.datamodules.transforms import AudioTransform, Picture, VideoTransform
from amr.utils.errors import UserError

COARSE = {"audio": (4, 4), "video": (2, 2, 2)}  # blocks, where pairs of atoms are explained


class ExplainedClips(ListedClips):
    """The part of a data module that explains and corrupts its clips' inputs; `ClipDataModule` has the rest."""

    decode: DecodeOptions
    audio: AudioTransform
    video: VideoTransform
    texts: ClipTexts | None
    _clip_store: ClipStore

    def atoms(self, modality: str, blocks: Sequence[int] | None = None, *, coarse: bool = False) -> Atoms:
        """A modality's input in the pieces that an analysis explains.

        Args:
            modality: Which.
            blocks: How many along each axis; see the transforms' `atoms`.
            coarse: Without `blocks`, take fewer, for methods with a coefficient for each pair of atoms.

        Raises:
            UserError: Blocks of a text are asked for.
        """
        if modality == TEXT and self.texts is not None:
            if blocks is not None:
                raise UserError(f"blocks={list(blocks)}: must be null for a text, whose atoms are its words")
            return kind_atoms(self.texts.kind, tuple(self.texts.blank.shape), coarse=coarse)
        given = [blocks] if blocks is not None else [COARSE[modality]] if coarse else []
        if modality == "audio":
            return self.audio.atoms(self.decode.sample_rate, *given)
        return self.video.atoms(*given)

    @property
    def filed(self) -> tuple[str, ...]:
        """The modalities that come from media files: all but a text."""
        return tuple(name for name in self.modalities if name != TEXT)

    def split_atoms(self, modality: str, split: str, *, coarse: bool = False) -> Atoms:
        """The atoms of a split's clips, in the listing's order: of texts their words, else those of `atoms`."""
        if modality != TEXT or self.texts is None:
            return self.atoms(modality, coarse=coarse)
        texts = self.texts
        return texts.kind.atoms(
            torch.stack([texts.get(clip.id, texts.blank) for clip in self.usable(split)]), coarse=coarse
        )

    def baseline(self, modality: str, x: Tensor) -> tuple[Tensor | float, str]:
        """Baseline that replaces a removed atom of inputs x (N, ...), and its description in words."""
        if modality != TEXT or self.texts is None:
            return super().baseline(modality, x)
        return self.texts.kind.baseline_for(x), "padding"

    def picture(self, modality: str, x: Tensor, atoms: Atoms) -> Picture:
        """A modality's input (of one clip) to look at."""
        if modality == TEXT:
            return tensor_picture(x, atoms)
        return (self.audio if modality == "audio" else self.video).picture(x, atoms)

    def window(self, modality: str, clip: Clip) -> tuple[float, float] | None:
        """First and last second of the clip's media file that its input shows; None where that is not known.

        An input that is longer than the clip goes beyond its end.
        """
        if modality == TEXT:
            return None
        begin, kept = clip.start or 0.0, self._clip_store.get(clip.id)
        sound = len(kept["audio"]) / self.decode.sample_rate if "audio" in kept else None
        if modality == "audio":
            if sound is None:
                return None
            if self.audio.crop == "random":  # the middle, but in training
                begin += max(sound - self.audio.seconds, 0) / 2
            return begin, begin + self.audio.seconds
        if self.video.pick == "first":
            fps = self.decode.fps
            return None if fps is None else (begin, begin + self.video.frames / fps)
        if clip.end is not None:
            return begin, clip.end
        seconds = len(kept["video"]) / self.decode.fps if self.decode.fps and "video" in kept else sound
        return None if seconds is None else (begin, begin + seconds)

    @property
    def corruptions(self) -> Mapping[str, Mapping[str, Corruption]]:
        """The corruptions of each modality, by name."""
        known: dict[str, Mapping[str, Corruption]] = dict(CORRUPTIONS)
        if self.texts is not None:
            known[TEXT] = self.texts.corruptions
        return {modality: known[modality] for modality in self.modalities}

    @property
    def joint_corruptions(self) -> Mapping[str, Mapping[str, str]]:
        """Joint corruptions of all modalities, by name: one corruption per modality."""
        return JOINT if set(self.modalities) == set(MODALITIES) else {}

    def corrupted(
        self, split: str, modality: str, corruption: str, severity: int, ids: Sequence[str], seed: int = 0
    ) -> ClipDataset:
        """These clips of a split, in this order, with one modality's corrupted input and no other modality's.

        Frames are decoded on the CPU. The corruption comes before all that the modality's transform does, the noise
        that the data's configuration may ask for included.

        Raises:
            UserError: The corruption, the severity or a clip does not exist.
        """
        chosen, level = self.corruption_at(modality, corruption, severity)
        place = {clip.id: clip for clip in self.usable(split)}
        if unknown := [id for id in ids if id not in place]:
            raise UserError(f"{self.name}: no usable clip {unknown[0]!r} in split {split!r}")
        key = f"corruption {seed} {corruption}"
        transform: Callable[..., Tensor]
        if modality == "audio":
            context = Context(self.decode.sample_rate, self._other_waves())
            transform = CorruptedAudio(self.audio, chosen, level, context, key)
        elif modality == TEXT:
            transform = CorruptedText(chosen, level, key)
        else:
            transform = CorruptedVideo(self.video, chosen, level, key)
        return ClipDataset(
            [place[id] for id in ids],
            self.labels,
            self._clip_store,
            {modality: transform},
            {},
            train=False,
            seed=self.seed,
            present=False,
            texts=self.texts,
        )

    def _other_waves(self) -> OtherWaves:
        """Sounds of up to 256 training clips."""
        problems = self._clip_store.problems
        ids = [c.id for c in self.usable("train") if problems.get(c.id, {}).get("audio", KEPT).startswith(KEPT)]
        return OtherWaves(self._clip_store, stable_order(ids, 0)[:256])
