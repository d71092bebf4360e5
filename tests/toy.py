"""Vectors of M modalities with a planted class, a resumable loader, and a one-layer encoder: tests in milliseconds."""

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from amr.encoders.base import Encoder


class Linear(Encoder):
    def __init__(self, in_dim: int = 6, out_dim: int = 8) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.net = nn.Sequential(nn.Linear(in_dim, out_dim), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Tokens(Linear):
    """Three tokens a clip."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([super(Tokens, self).forward(x * scale) for scale in (1.0, 0.5, -2.0)], dim=1)


class EpochSampler(torch.utils.data.Sampler[int]):
    def __init__(self, size: int, rank: int, world_size: int) -> None:
        self.size, self.rank, self.world_size, self.epoch, self.skip = size, rank, world_size, 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.world_size

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        yield from order[self.rank :: self.world_size]


class Toy(pl.LightningDataModule):
    """`audio` carries the class well, every other modality poorly."""

    name = "toy"

    def __init__(
        self,
        clips: int = 32,
        batch_size: int = 8,
        num_classes: int = 3,
        modalities: tuple[str, ...] = ("audio", "video"),
        lacking: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.labels = num_classes, [f"class {c}" for c in range(num_classes)]
        self.batch_size, self.lacking = batch_size, lacking
        generator = torch.Generator().manual_seed(0)
        self.label = torch.arange(clips) % num_classes
        self.inputs = {}
        for m, name in enumerate(modalities):
            cue = nn.functional.one_hot(self.label, 6).float()
            self.inputs[name] = cue * (2.0 if m == 0 else 0.7) + torch.randn(clips, 6, generator=generator)

    def collate(self, indices: list[int]) -> dict[str, Any]:
        batch: dict[str, Any] = {
            "inputs": {name: x[indices] for name, x in self.inputs.items()},
            "label": self.label[indices],
            "id": [f"clip{i}" for i in indices],
        }
        if self.lacking:
            batch["present"] = {"video": torch.tensor([i % 4 != 0 for i in indices])}
        return batch

    def loader(self, shuffle: bool) -> DataLoader[Any]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EpochSampler(len(self.label), rank, world)
        if not shuffle:
            sampler.set_epoch = lambda epoch: None  # type: ignore[method-assign]
        indices: Any = range(len(self.label))
        return DataLoader(indices, batch_size=self.batch_size // world, sampler=sampler, collate_fn=self.collate)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader(False)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader(False)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.loader(False)


class Blind(Toy):
    """No clip has the video."""

    def collate(self, indices: list[int]) -> dict[str, Any]:
        return {**super().collate(indices), "present": {"video": torch.zeros(len(indices), dtype=torch.bool)}}
