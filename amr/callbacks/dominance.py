"""Each modality's share in the decisions of a split, every epoch."""

import csv
import io
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from amr.attribution import Score, attributed_rows, attribution_shares
from amr.callbacks.tables import log_table
from amr.classifier import FusionClassifier, StepOutput
from amr.model import complete_rows
from amr.utils.distributed import all_reduce_sum
from amr.utils.errors import UserError
from amr.utils.files import write_text


class Dominance(pl.Callback):
    """Logs `{train,val,test}/dominance/<modality>`: the mean attribution share over the split's clips, in [0, 1].

    Shares are those of `amr.attribution.attribution_shares`, of the model as it stands, over the clips that have every
    modality and any attribution; under DDP over all ranks. At the end of a run the same numbers by class, with the
    accuracy, go to a CSV and to W&B.

    Args:
        score: What is attributed.
        train: Whether to measure on training batches too (one more pass of the head a batch).
        table: CSV for the table by class of the last validation (and test); None for no file.
        ig_steps: Points of integrated gradients, to log these in place of gradient⊙input's shares; None for the latter.

    Raises:
        UserError: If `ig_steps` is below 1.
    """

    def __init__(
        self,
        score: Score = "probability",
        train: bool = True,
        table: Path | None = None,
        ig_steps: int | None = None,
    ) -> None:
        if ig_steps is not None and ig_steps < 1:
            raise UserError(f"dominance.ig_steps={ig_steps}: allowed are integers >= 1, or null")
        self.score: Score = score
        self.train = train
        self.table = table
        self.ig_steps = ig_steps
        self._sums: dict[str, Tensor] = {}

    # Columns of the sums, a row a class: clips, right answers, clips with shares, and the M summed shares.

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds a training batch."""
        if self.train:
            self._add("train", pl_module, outputs)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a validation batch."""
        self._add("val", pl_module, outputs)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a test batch."""
        self._add("test", pl_module, outputs)

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the untrained model's numbers."""
        self._sums.pop("val", None)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts anew."""
        self._sums.pop("train", None)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts anew."""
        self._sums.pop("val", None)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts anew."""
        self._sums.pop("test", None)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the training clips' shares, each measured right after its own step."""
        if self.train:
            self._log("train", pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the validation clips' shares."""
        self._log("val", pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the test clips' shares."""
        self._log("test", pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the table by class."""
        self._write_table(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the table by class."""
        self._write_table(trainer, pl_module)

    def _add(self, split: str, module: pl.LightningModule, outputs: StepOutput) -> None:
        assert isinstance(module, FusionClassifier)
        encodings, label, present = outputs["encodings"], outputs["label"], outputs["present"]
        shares = attribution_shares(module.model.head, encodings, score=self.score, ig_steps=self.ig_steps)
        if (rows := complete_rows(encodings, present)) is not None:
            shares = shares * rows.unsqueeze(1)
        right = outputs["logits"].argmax(1) == label
        row = torch.cat([torch.stack([torch.ones_like(right), right, attributed_rows(shares)], 1), shares], 1).float()
        if split not in self._sums:
            self._sums[split] = row.new_zeros(module.model.head.num_classes, row.shape[1])
        self._sums[split].index_add_(0, label, row)

    def _log(self, split: str, module: pl.LightningModule) -> None:
        assert isinstance(module, FusionClassifier)
        if split not in self._sums:
            return
        self._sums[split] = all_reduce_sum(self._sums[split])
        total = self._sums[split].sum(0)
        if total[2] > 0:
            for name, share in zip(module.model.modalities, total[3:] / total[2], strict=True):
                # The sums are every rank's already; sync_dist, of equal values, only tells Lightning so.
                module.log(f"{split}/dominance/{name}", share, sync_dist=True)

    def _write_table(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, FusionClassifier)
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        names = getattr(trainer.datamodule, "labels", None) or [str(c) for c in range(module.model.head.num_classes)]  # type: ignore[attr-defined]
        columns = ["split", "class", "clips", "acc", *(f"dominance/{name}" for name in module.model.modalities)]
        rows = []
        for split in ("val", "test"):
            for name, values in zip(names, self._sums.get(split, torch.empty(0)).tolist(), strict=False):
                clips, right, attributed, *shares = values
                if clips:
                    means = [share / attributed if attributed else None for share in shares]
                    rows.append([split, name, int(clips), right / clips, *means])
        if self.table is not None and rows:
            fresh = {row[0] for row in rows}
            kept = [row for row in _read_rows(self.table, columns) if row[0] not in fresh]  # fit's, when test writes
            text = io.StringIO(newline="")
            csv.writer(text).writerows([columns, *sorted([*kept, *rows], key=lambda row: row[0] == "test")])
            write_text(self.table, text.getvalue())
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and rows:
                log_table(logger, "per_class", columns, rows)


def _read_rows(table: Path, columns: list[str]) -> list[list[str]]:
    """Rows of an earlier table with the same columns."""
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return rows if header == columns else []
