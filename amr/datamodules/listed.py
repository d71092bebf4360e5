"""Base class of data modules that list their clips, with what training, analyses and robustness need."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor

from amr.datamodules.atoms import Atoms
from amr.datamodules.corruptions import Corruptible
from amr.datamodules.loader import ClipLoader, ClipSampler, ListedDataset
from amr.datamodules.store.media import Clip
from amr.datamodules.transforms.picture import Picture
from amr.utils.errors import UserError


class ListedClips(pl.LightningDataModule, Corruptible):
    """A listing of clips, and loaders whose batches depend on the seed, the epoch and the clips alone.

    `ClipDataModule` is one, of media files, and `Tensors` another, of arrays. A subclass gives `usable` and `dataset`.

    Attributes:
        name: Name of the data set.
        labels: Class names in the order of the class indices.
        modalities: Modalities that the batches hold, in this order.
        clips: The listing.
        root: Folder of the clips' media files; None where there are none.
    """

    name: str
    labels: list[str]
    modalities: tuple[str, ...]
    clips: list[Clip]
    root: Path | None
    batch_size: int
    num_workers: int
    seed: int
    drop_last: bool
    balance: bool
    predict_split: Literal["train", "val", "test"]

    def setup(self, stage: str | None = None) -> None:
        """Makes the splits ready; may be called again."""

    @abstractmethod
    def usable(self, split: str) -> list[Clip]:
        """The split's clips that can be used, in the listing's order."""

    @abstractmethod
    def dataset(self, split: str, *, train: bool = False) -> ListedDataset:
        """A split's usable clips, in the listing's order; with `train` as training sees them."""

    @abstractmethod
    def census(self) -> dict[str, Any]:
        """Facts about the data for a run's record, in plain types."""

    @abstractmethod
    def atoms(self, modality: str, blocks: Sequence[int] | None = None, *, coarse: bool = False) -> Atoms:
        """A modality's input in the pieces that an analysis explains."""

    @abstractmethod
    def picture(self, modality: str, x: Tensor, atoms: Atoms) -> Picture:
        """A modality's input (of one clip) to look at."""

    @property
    def filed(self) -> tuple[str, ...]:
        """The modalities that come from media files."""
        return self.modalities

    def window(self, modality: str, clip: Clip) -> tuple[float, float] | None:
        """First and last second of the clip's media file that its input shows; None where that is not known."""
        return None

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Lightning's hook: leaves the clips' names as they are, because Lightning would move them one by one."""
        if not isinstance(batch, dict):
            return move_data_to_device(batch, device)
        rest = {key: value for key, value in batch.items() if key != "id"}
        return {**batch, **move_data_to_device(rest, device)}

    def split_atoms(self, modality: str, split: str, *, coarse: bool = False) -> Atoms:
        """The atoms of a split's clips, in the listing's order: the same for all, where the kind knows no better."""
        return self.atoms(modality, coarse=coarse)

    def baseline(self, modality: str, x: Tensor) -> tuple[Tensor | float, str]:
        """Baseline that replaces a removed atom of inputs x (N, ...), and its description in words."""
        return 0.0, "zeros"

    def looks(self, modality: str, x: Tensor, atoms: Atoms) -> dict[str, NDArray[Any]]:
        """Arrays of one clip's input that a page shows besides its picture: see `Kind.looks`."""
        return {}

    def locate(self, clip: Clip) -> Clip:
        """The clip with its files, for a listing that leaves them out."""
        return clip

    def evidence(self) -> Mapping[str, frozenset[str]]:
        """Modalities in which each clip's class is really present, by id; empty if this is unknown.

        Raises:
            UserError: It could be known, with a package that is not installed.
        """
        return {}

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.labels)

    @property
    def split_kind(self) -> str:
        """How the splits were made, in a few words."""
        return "as listed"

    def clips_of(self, split: Literal["train", "val", "test"]) -> ListedDataset:
        """A split's usable clips, in the listing's order, without augmentation."""
        return self._some(split)

    def train_dataloader(self) -> ClipLoader:
        """Shuffled and augmented."""
        return self._loader("train", train=True)

    def val_dataloader(self) -> ClipLoader:
        """In the listing's order."""
        return self._loader("val")

    def test_dataloader(self) -> ClipLoader:
        """In the listing's order."""
        return self._loader("test")

    def predict_dataloader(self) -> ClipLoader:
        """The split named by `predict_split`, in the listing's order."""
        return self._loader(self.predict_split)

    def classes_of(self, split: str) -> list[Hashable]:
        """Class of each of the split's usable clips, by which training is balanced."""
        return [clip.label for clip in self.usable(split)]

    def _balanced(self) -> Tensor:
        """Weights of the training clips (N,), float64, with the same total for every class."""
        classes = self.classes_of("train")
        counts = Counter(classes)
        return torch.tensor([1 / counts[label] for label in classes], dtype=torch.float64)

    def _some(self, split: str, *, train: bool = False) -> ListedDataset:
        if not self.usable(split):
            hint = " (or set trainer.limit_val_batches to 0)" if split == "val" else ""
            raise UserError(f"{self.name}: no usable clip has split {split!r}; list some{hint}")
        return self.dataset(split, train=train)

    def _loader(self, split: str, *, train: bool = False) -> ClipLoader:
        dataset = self._some(split, train=train)
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return ClipLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=ClipSampler(
                dataset,
                shuffle=train,
                seed=self.seed,
                rank=rank,
                world_size=world_size,
                weights=self._balanced() if train and self.balance else None,
            ),
            drop_last=train and self.drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def check_batches(batch_size: int, num_workers: int) -> None:
    """Refuse a batch without clips, and fewer than no loader processes.

    Raises:
        UserError: It names the option.
    """
    for key, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < least:
            raise UserError(f"data.{key}={value}: must be at least {least}")
