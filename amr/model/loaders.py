"""Data as a Python user has them, a data module or loaders, for functions that evaluate a model."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl

from amr.utils.errors import UserError

SPLITS = ("train", "val", "test")
ABOUT = ("labels", "kinds", "name")
Data = pl.LightningDataModule | Mapping[str, Iterable[Any]]
"""A data module, or the loader of each split, by name: train, val, test."""


class Loaders(pl.LightningDataModule):
    """A data module of given loaders.

    Args:
        loaders: The loaders of the existing splits, by name.
        labels: Names of the classes; None: unknown.
        kinds: Kind of each modality's inputs, for explanations: `amr.datamodules.atoms.Kind`, or a kind's name.
        name: Name of the data set.
    """

    def __init__(
        self,
        loaders: Mapping[str, Iterable[Any]],
        labels: Sequence[str] | None = None,
        kinds: Mapping[str, Any] | None = None,
        name: str = "loaders",
    ) -> None:
        super().__init__()
        self.loaders, self.labels, self.kinds, self.name = dict(loaders), labels, dict(kinds or {}), name

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
    """Loader of a data module for a split: train, val or test."""
    return {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}[split]()


def as_data(data: Any, split: str | None = None) -> pl.LightningDataModule:
    """A data module of loaders; a data module is returned as it is.

    Args:
        data: A data module; a mapping of loaders by split, with `labels`, `kinds` and `name` of the data or without; or
            batches alone.
        split: Split to which bare batches belong; None: they are refused.

    Raises:
        UserError: It is none of these.
    """
    if isinstance(data, pl.LightningDataModule):
        return data
    if split is not None and isinstance(data, Iterable) and not isinstance(data, Mapping | str):
        data = {split: data}
    if not isinstance(data, Mapping) or not {*data} & {*SPLITS} or not {*data} <= {*SPLITS, *ABOUT}:
        given = f"{{{', '.join(map(repr, data))}}}" if isinstance(data, Mapping) else type(data).__name__
        raise UserError(
            f"data={given}: must be a LightningDataModule, or a loader of each split by name, such as "
            '{"train": loader, "test": loader}'
        )
    about: dict[str, Any] = {key: data[key] for key in ABOUT if key in data}
    return Loaders({name: data[name] for name in SPLITS if name in data}, **about)
