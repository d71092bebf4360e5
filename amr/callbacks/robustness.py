"""Logs at `test` how a model suffers when a modality is missing or corrupted, and whether its shares show this."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from amr.callbacks.dominance import Dominance
from amr.callbacks.tables import log_table, wandb_loggers
from amr.classifier import FusionClassifier
from amr.evaluation.metrics import measure_encodings
from amr.evaluation.probes import check_unimodal
from amr.evaluation.robustness import measure
from amr.evaluation.table import SCHEMA, Row, write_rows
from amr.model import FusionModel
from amr.model.encoded import Collected, Encoded
from amr.model.task import check_classes
from amr.utils.arrays import remove
from amr.utils.checkpoints import check_checkpoint
from amr.utils.errors import UserError
from amr.utils.names.places import checkpoint_of
from amr.utils.streams import status


class Robustness(pl.Callback):
    """Measures how the model uses its modalities (docs/robustness.md), from the encodings that a split's pass made.

    At `test`: `test/robust/<measure>[/<modality>][/<corruption>]` to the loggers, all rows with their intervals to a
    parquet file and, as one table, to W&B. During `fit`, where asked for, the measures that change no input, as
    `val/robust/...`. Nothing is trained or drawn by it: weights and random states are what they would be without.

    Shares are the run's own dominance: of the `score` and `ig_steps` of its `Dominance`, where it has one.

    Under DDP every process encodes its part of the corrupted clips, and all compute the same rows.

    Args:
        test: Whether to measure at `test`.
        every_n_epochs: How often to measure after validation in `fit`; 0 for never.
        corruptions: Whether to corrupt inputs at `test`, which runs the encoders again.
        corruption_clips: At most so many clips are corrupted; None for all.
        train_clips: At most so many training clips give the mean encoding and the probes; None for all.
        unimodal: A run of the unimodal model, its folder or a checkpoint, of each modality, to compare the probes with.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of resamples, pairings and corruptions.
        out: The parquet file; None for none. Until it is written, corruptions that are done are kept beside it, in
            `robustness-parts`, and a test that was interrupted takes them from there.

    Raises:
        UserError: An option has a value that is not allowed.
    """

    def __init__(
        self,
        test: bool = False,
        every_n_epochs: int = 0,
        corruptions: bool = True,
        corruption_clips: int | None = 1000,
        train_clips: int | None = 2000,
        unimodal: dict[str, Path] | None = None,
        resamples: int = 1000,
        seed: int = 0,
        out: Path | None = None,
    ) -> None:
        least = {"every_n_epochs": (every_n_epochs, 0), "resamples": (resamples, 2)}
        least |= {"corruption_clips": (corruption_clips or 2, 2), "train_clips": (train_clips or 2, 2)}
        for key, (value, lowest) in least.items():
            if value < lowest:
                raise UserError(f"robustness.{key}={value}: must be {lowest} or more")
        self.test, self.every_n_epochs, self.corruptions = test, every_n_epochs, corruptions
        self.corruption_clips, self.train_clips, self.unimodal = corruption_clips, train_clips, unimodal or {}
        self.resamples, self.seed, self.out = resamples, seed, out
        self._unimodal: dict[str, FusionModel] = {}
        self._collected = Collected()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses a model of several labels per clip, before any step."""
        assert isinstance(pl_module, FusionClassifier)
        if self.every_n_epochs > 0 or (self.test and stage == "test"):
            check_classes(pl_module.model, "robustness")

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts again."""
        self._collected = Collected()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Loads the unimodal models: errors in them are reported before the split's pass."""
        if not self.test:
            return
        from amr.load import load_model

        assert isinstance(pl_module, FusionClassifier)
        for name, path in self.unimodal.items():
            key = f"robustness.unimodal.{name}"
            checkpoint = checkpoint_of(path, key)
            check_checkpoint(checkpoint, f"{key}=")
            self._unimodal[name] = load_model(checkpoint).to(pl_module.device)
        check_unimodal(pl_module.model, self._unimodal)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts again."""
        self._collected = Collected()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps a batch's encodings."""
        if self._due(trainer):
            self._collected.add(outputs)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps a batch's encodings."""
        if self.test:
            self._collected.add(outputs)

    @torch.inference_mode(False)
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures and logs what changes no input."""
        if not self._due(trainer):
            return
        assert isinstance(pl_module, FusionClassifier)
        clean = self._clean()
        if len(clean.ids) > 1:
            options = {"resamples": self.resamples, "seed": self.seed, **_dominance(trainer)}
            rows = measure_encodings(pl_module.model, clean, **options, details=False)
            self._log(trainer, "val", rows)

    @torch.inference_mode(False)
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures everything, logs it and writes the file."""
        if not self.test:
            return
        assert isinstance(pl_module, FusionClassifier)
        parts = None if self.out is None else self.out.parent / "robustness-parts"
        rows = measure(
            pl_module.model,
            trainer.datamodule,  # type: ignore[attr-defined]
            "test",
            clean=self._clean(),
            unimodal=self._unimodal,
            corruptions=self.corruptions,
            corruption_clips=self.corruption_clips,
            train_clips=self.train_clips,
            resamples=self.resamples,
            seed=self.seed,
            **_dominance(trainer),
            parts=parts,
            context=trainer.precision_plugin.val_step_context,
        )
        self._log(trainer, "test", rows)
        if not trainer.is_global_zero:
            return
        for logger in wandb_loggers(trainer):
            log_table(logger, "test/robustness", SCHEMA.names, [list(asdict(row).values()) for row in rows])
        if self.out is not None and parts is not None:
            write_rows(self.out, rows)
            remove(parts.iterdir() if parts.is_dir() else ())
            status(f"robustness: {self.out}, {len(rows)} numbers")

    def _due(self, trainer: pl.Trainer) -> bool:
        return (
            self.every_n_epochs > 0
            and not trainer.sanity_checking
            and trainer.state.fn == "fit"
            and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        )

    def _clean(self) -> Encoded:
        clean, self._collected = self._collected.of_all_ranks(), Collected()
        return clean

    def _log(self, trainer: pl.Trainer, split: str, rows: list[Row]) -> None:
        """Logs all rows except details directly to the loggers, because Lightning would print each number."""
        values = {f"{split}/robust/{row.name}": row.value for row in rows if not row.is_detail}
        for logger in trainer.loggers:
            logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=trainer.global_step)


def _dominance(trainer: pl.Trainer) -> dict[str, Any]:
    """How the run measures shares; `measure`'s defaults, which are Dominance's, where it does not."""
    own = [callback for callback in trainer.callbacks if isinstance(callback, Dominance)]  # type: ignore[attr-defined]
    return {"score": own[0].score, "ig_steps": own[0].ig_steps} if own else {}
