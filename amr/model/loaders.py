"""Data as a Python user has them, a data module or loaders, for functions that evaluate a model."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl

from amr.utils.errors import UserError

SPLITS = ("train", "val", "test")
Data = pl.LightningDataModule | Mapping[str, Iterable[Any]]
"""A data module, or the loader of each split, by name: train, val, test."""


class Loaders(pl.LightningDataModule):
    """A data module of given loaders.

    Args:
        loaders: The loader of each split that there is, by name.
    """

    name = "loaders"

    def __init__(self, loaders: Mapping[str, Iterable[Any]]) -> None:
        super().__init__()
        self.loaders = dict(loaders)

    def train_dataloader(self) -> Any:
        """The loader of train."""
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """The loader of val."""
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """The loader of test."""
        return self._loader("test")

    def _loader(self, split: str) -> Any:
        if split not in self.loaders:
            there = ", ".join(map(repr, self.loaders))
            raise UserError(f"data={{{there}}}: it has no loader of {split!r}, which is needed")
        return self.loaders[split]


def loader_of(data: pl.LightningDataModule, split: str) -> Any:
    """What a data module gives for a split: train, val or test."""
    return {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}[split]()


def as_data(data: Any) -> pl.LightningDataModule:
    """A data module of loaders; a data module is returned as it is.

    Raises:
        UserError: It is neither.
    """
    if isinstance(data, pl.LightningDataModule):
        return data
    if not isinstance(data, Mapping) or not data or not set(data) <= {*SPLITS}:
        given = f"{{{', '.join(map(repr, data))}}}" if isinstance(data, Mapping) else type(data).__name__
        raise UserError(
            f"data={given}: must be a LightningDataModule, or a loader of each split by name, such as "
            '{"train": loader, "test": loader}'
        )
    return Loaders(data)
