"""A split of tensors, as they are or corrupted."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from amr.datamodules.corruptions import Context, Corruption
from amr.datamodules.loader import Key, ListedDataset, seeded
from amr.datamodules.store.media import Clip


class TensorDataset(ListedDataset):
    """Some clips of tensors. Nothing is drawn, so an item does not depend on the epoch.

    Args:
        clips: The clips, in order.
        rows: Their places in the tensors.
        inputs: By modality, (N, ...).
        target: Labels, (N,) or (N, C).
        present: By modality, boolean (N,); None to leave it out of the items.
        train: Whether they are for training.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        rows: Sequence[int],
        inputs: Mapping[str, Tensor],
        target: Tensor,
        present: Mapping[str, Tensor] | None,
        *,
        train: bool,
    ) -> None:
        self.clips, self.rows, self.inputs, self.target = clips, rows, inputs, target
        self.present, self.train = present, train

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        """One clip of the batch format."""
        i = key[1] if isinstance(key, tuple) else key
        row = self.rows[i]
        item: dict[str, Any] = {
            "inputs": {name: x[row] for name, x in self.inputs.items()},
            "label": self.target[row] if self.target.ndim > 1 else int(self.target[row]),
            "id": self.clips[i].id,
        }
        if self.present is not None:
            item["present"] = {name: bool(there[row]) for name, there in self.present.items()}
        return item


class CorruptedTensors(TensorDataset):
    """The same with one modality alone, corrupted.

    Args:
        clean: The clips.
        modality: The modality.
        corruption: Corruption to apply.
        level: How much.
        seed: Seed of the corruption, besides the clip.
    """

    def __init__(self, clean: TensorDataset, modality: str, corruption: Corruption, level: float, seed: object) -> None:
        inputs = {modality: clean.inputs[modality]}
        super().__init__(clean.clips, clean.rows, inputs, clean.target, None, train=False)
        self.modality, self.corruption, self.level, self.seed = modality, corruption, level, seed

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        """One clip of the batch format."""
        item = super().__getitem__(key)
        with seeded(self.seed, item["id"], self.modality):
            x = self.corruption.apply(item["inputs"][self.modality], self.level, Context())
        return {**item, "inputs": {self.modality: x}}
