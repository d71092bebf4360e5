"""The clips of a training, between its epochs: encoded on request, and chosen by the method that overrides `select`."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from amr.datamodules.selected import Copies, SelectedLoader
from amr.model import FusionModel
from amr.model.encoded import Encoded
from amr.model.passes import ClipPass, Scores
from amr.regularizers.composite import Composite
from amr.utils.errors import UserError


class EpochClips:
    """Puts the chosen clips of each epoch in place of the Trainer's; what was chosen is in the checkpoint."""

    def __init__(self) -> None:
        self.chosen: dict[str, Any] | None = None
        """The last choice: `epoch`; `clips`, `present` and `part` of `Copies`, or `clips` None; `batches`, what its
        batches depend on."""
        self._ready: int | None = None  # epoch whose clips are in place

    def restart(self, resumed: bool) -> None:
        """Forgets what an earlier fit has left; of a fit that resumes, only what is in place."""
        self._ready = None
        if not resumed:
            self.chosen = None

    def choose(self, module: pl.LightningModule, model: FusionModel, methods: Composite, seed: int) -> None:
        """Puts the clips of the current epoch in place, once; to be called before the first batch is loaded.

        Args:
            module: The module in training.
            model: Its model.
            methods: Its methods.
            seed: The run's.

        Raises:
            UserError: If the clips cannot be chosen from this loader, or are other than those of the checkpoint.
        """
        selecting, trainer = methods.overriding("select"), module.trainer
        epoch = trainer.current_epoch
        if not selecting or self._ready == epoch:
            return
        self._ready = epoch
        loop = trainer.fit_loop
        combined = loop._combined_loader
        assert combined is not None
        base = _base(_only(trainer.train_dataloader, "train_dataloader"))
        if getattr(getattr(base, "sampler", None), "weights", None) is not None:
            raise UserError(
                f"data.balance=true: must be false with model.{selecting[0].name}, which chooses the clips of an epoch"
            )
        clips = ClipPass(model, base, mover(module), "train_dataloader")
        begins = self.chosen is None or self.chosen["epoch"] != epoch
        if self.chosen is None or begins:
            copies = methods.select(epoch, Scores(clips, (seed * 1_000_003 + epoch) & (2**63 - 1)))
            self.chosen = {"epoch": epoch, "batches": _batches(base, clips, seed, trainer)}
            self.chosen |= {"clips": None} if copies is None else vars(copies)
        elif self.chosen["clips"] is not None and self.chosen["batches"] != _batches(base, clips, seed, trainer):
            raise UserError(
                f"checkpoint: it is of the middle of epoch {epoch}, whose batches were made with "
                f"{self.chosen['batches']}; these are with {_batches(base, clips, seed, trainer)}; use the same, or a "
                "checkpoint at the end of an epoch"
            )
        loader: Any = base
        if self.chosen["clips"] is not None:
            loader = SelectedLoader(
                base,
                Copies(self.chosen["clips"], self.chosen["present"], self.chosen["part"]),
                epoch=epoch,
                seed=seed,
                rank=trainer.global_rank,
                world_size=trainer.world_size,
                done=lambda: loop.epoch_loop.batch_progress.current.ready,
            )
        combined.flattened = [loader]
        _set_length(trainer, len(loader), begins)
        if loader is not base:
            iter(loop._data_fetcher)  # type: ignore[arg-type]  # which may have an iterator of all clips already

    def state(self) -> dict[str, Any] | None:
        """State for a checkpoint."""
        return self.chosen

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Takes what `state` gave.

        Raises:
            KeyError: If it is not whole.
        """
        self.chosen = None
        if state is not None:
            keys = ("epoch", "batches", "clips") + (("present", "part") if state["clips"] is not None else ())
            self.chosen = {key: state[key] for key in keys}


def encode_split(module: pl.LightningModule, model: FusionModel, split: str, most: int | None = None) -> Encoded:
    """The encodings of a split of the run in training; see `EpochState.encodings`."""
    trainer = module.trainer
    loader = trainer.train_dataloader if split == "train" else trainer.val_dataloaders
    name = f"{split}_dataloader"
    return ClipPass(model, _base(_only(loader, name)), mover(module), name).encoded(most)


def mover(module: pl.LightningModule) -> Any:
    """Function that moves a collated batch to the device as the Trainer does."""
    trainer = module.trainer

    def move(batch: Any) -> Any:
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    return move


def _only(loader: Any, name: str) -> Any:
    if isinstance(loader, list | tuple) and len(loader) == 1:
        return loader[0]
    if loader is None:
        raise UserError(f"data.{name}=None: must be a DataLoader, since a method evaluates its clips between epochs")
    return loader


def _base(loader: Any) -> Any:
    return loader.base if isinstance(loader, SelectedLoader) else loader


def _batches(base: Any, clips: ClipPass, seed: int, trainer: pl.Trainer) -> dict[str, Any]:
    size = (base.batch_size or 0) * trainer.world_size
    return {"clips": len(clips), "global_batch_size": size, "seed": seed}


def _set_length(trainer: pl.Trainer, count: int, begins: bool) -> None:
    """Tells the Trainer how many batches an epoch has, which it asks once, when it makes the loader."""
    loop, limit = trainer.fit_loop, trainer.limit_train_batches
    if isinstance(limit, int):
        count = min(count, limit)
    elif limit is not None:
        count = max(1, int(count * limit))
    progress = loop.epoch_loop.batch_progress
    if begins and loop.epoch_loop.restarted_on_train_batch_end and progress.is_last_batch:
        progress.current.completed = count  # of the epoch before, which is over whatever its length was
    assert loop._combined_loader is not None
    loop._combined_loader.limits = [count]
    loop.max_batches = count
    if isinstance(trainer.val_check_interval, float) and trainer.val_check_batch is not None:
        trainer.val_check_batch = max(1, int(count * trainer.val_check_interval))
