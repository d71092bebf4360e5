"""A task whose second modality is noise: a target of equal shares asks for what is not there."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.toy import EpochSampler, Toy


class Noise(Toy):
    """`audio` tells the class and every other modality nothing; the clips of validation are others.

    Args:
        clips: Of training, and half as many of validation.
        validated: Whether there is a validation loader.
        options: See `Toy`.
    """

    def __init__(self, clips: int = 240, validated: bool = True, **options: Any) -> None:
        super().__init__(clips + clips // 2, **{"batch_size": 24, **options})
        self.clips, self.validated = clips, validated
        generator = torch.Generator().manual_seed(1)
        for name in list(self.inputs)[1:]:
            self.inputs[name] = torch.randn(len(self.label), 6, generator=generator)
        first, strong = next(iter(self.inputs)), nn.functional.one_hot(self.label, 6)
        self.inputs[first] = 2.5 * strong + torch.randn(len(self.label), 6, generator=generator)

    def loader(self, shuffle: bool) -> DataLoader[Any]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        indices = range(self.clips) if shuffle else range(self.clips, len(self.label))
        sampler = EpochSampler(len(indices), rank, world)
        if not shuffle:
            sampler.set_epoch = lambda epoch: None  # type: ignore[method-assign]
        return DataLoader(
            indices,  # type: ignore[arg-type]
            batch_size=self.batch_size // world,
            sampler=sampler,
            collate_fn=self.collate,
        )

    def val_dataloader(self) -> Any:
        return self.loader(False) if self.validated else []


class Sums(Noise):
    """The class is the sum of what the two modalities show, modulo 3: neither tells anything alone."""

    def __init__(self, clips: int = 256, **options: Any) -> None:
        super().__init__(clips, **options)
        generator = torch.Generator().manual_seed(2)
        shown = torch.randint(0, 3, (2, len(self.label)), generator=generator)
        self.label = shown.sum(0) % 3
        for name, each in zip(list(self.inputs), shown, strict=True):
            noise = torch.randn(len(each), 6, generator=generator)
            self.inputs[name] = nn.functional.one_hot(each, 6) + 0.3 * noise


def accuracy(model: Any, data: Noise) -> float:
    """Of the model on the validation clips."""
    batch = data.collate([*range(data.clips, len(data.label))])
    logits: Tensor = model(batch["inputs"])
    return float((logits.argmax(1) == batch["label"]).float().mean())
