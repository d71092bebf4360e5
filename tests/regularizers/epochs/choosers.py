"""Data, a method that chooses clips by a rule, and what the classifier saw of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from amr.model.passes import Scores
from amr.regularizers import EpochState, Regularizer, Step
from tests.toy import Toy


class Chooser(Regularizer):
    """Chooses by a function of epoch and scores, and keeps what it sees."""

    name = "chooser"

    def __init__(self, choose: Callable[[int, Scores], Any]) -> None:
        super().__init__()
        self.choose = choose
        self.seen: list[tuple[int, str, bool]] = []
        self.started: list[int] = []

    def select(self, epoch: int, scores: Scores) -> Any:
        return self.choose(epoch, scores)

    def on_epoch_start(self, state: EpochState) -> None:
        self.started.append(state.epoch)

    def losses(self, step: Step) -> dict[str, Tensor]:
        masks = step.has(["video"])[0].tolist()
        self.seen += [(step.epoch, id, mask) for id, mask in zip(step.id, masks, strict=True)]
        return {}


class Listed(torch.utils.data.Dataset[Any]):
    """A map-style data set of a user's own, whose clips have noise that torch draws."""

    def __init__(self, toy: Toy, noise: float) -> None:
        self.toy, self.noise = toy, noise

    def __len__(self) -> int:
        return len(self.toy.label)

    def __getitem__(self, i: int) -> Any:
        item = {name: x[i] + self.noise * torch.randn(6) for name, x in self.toy.inputs.items()}
        return {"inputs": item, "label": self.toy.label[i], "id": f"clip{i}"}


class Plain(Toy):
    """The toy through an ordinary DataLoader, which shuffles by torch's random state."""

    def __init__(self, noise: float = 0.0, workers: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.noise, self.workers = noise, workers

    def loader(self, shuffle: bool) -> DataLoader[Any]:
        dataset = Listed(self, self.noise if shuffle else 0.0)
        return DataLoader(dataset, batch_size=self.batch_size, shuffle=shuffle, num_workers=self.workers)
