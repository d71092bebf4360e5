"""Predictions of a checkpoint, and outcomes of a test, as parquet files."""

import json
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytorch_lightning as pl
from torch import Tensor

from amr.attribution import attributed_rows
from amr.classifier import FusionClassifier
from amr.model import complete_rows
from amr.utils.distributed import gather_objects
from amr.utils.errors import UserError
from amr.utils.files import replacing
from amr.utils.streams import status


class PredictionWriter(pl.Callback):
    """Writes `id`, `label`, `prediction`, `logits` and `share/<modality>` of each clip, in the loader's order.

    Shares are null for a clip that lacks a modality or has no attribution: the clips that `Dominance` leaves out.
    Rows are written batch by batch, to a temporary name that is renamed at the end.

    Args:
        out: The parquet file.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._file = ExitStack()
        self._writer: pq.ParquetWriter | None = None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses more than one process, whose parts would interleave."""
        if trainer.world_size > 1:
            raise UserError(f"trainer.devices: predict writes one file from one device, not {trainer.world_size}")
        if self.out.is_dir():
            raise UserError(f"--out={self.out}: must be a file, not a folder")

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes a batch's rows."""
        assert isinstance(pl_module, FusionClassifier)
        names = trainer.datamodule.labels  # type: ignore[attr-defined]
        logits = outputs["logits"].float().cpu()
        task = pl_module.model.task
        number = task == "regression"
        columns: dict[str, Any] = {
            "id": outputs["id"],
            "label": outputs["label"][:, 0].tolist() if number else _named(names, outputs["label"]),
            "prediction": logits[:, 0].tolist()
            if number
            else _named(names, logits > 0 if task == "labels" else logits.argmax(1)),
            "logits": logits.tolist(),
        }
        modalities, shares = pl_module.model.modalities, outputs["shares"].float()
        shared = attributed_rows(shares)
        if (complete := complete_rows(modalities, outputs["present"])) is not None:
            shared = shared & complete
        without = (~shared).cpu().numpy()
        for name, column in zip(modalities, shares.cpu().numpy().T, strict=True):
            columns[f"share/{name}"] = pa.array(column, mask=without)
        table = pa.table(columns)
        if self._writer is None:
            metadata = {b"labels": json.dumps(names).encode()}
            file = self._file.enter_context(replacing(self.out))
            self._writer = pq.ParquetWriter(file, table.schema.with_metadata(metadata))
        self._writer.write_table(table.replace_schema_metadata(self._writer.schema.metadata))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the file and gives it its name."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._file.close()
            status(f"predictions: {self.out}")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Removes an incomplete file."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
            self._writer = None
        self._file.__exit__(type(exception), exception, exception.__traceback__)


class ClipOutcomes(pl.Callback):
    """Writes `id`, `label` and `prediction` of each test clip, over all ranks.

    With it, single runs can be compared clip by clip. Models with several labels per clip leave no file.

    Args:
        out: The parquet file.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._clips: dict[str, tuple[int, int]] = {}

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts again."""
        self._clips = {}

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a batch."""
        if outputs["label"].ndim > 1:
            return
        told = zip(outputs["label"].tolist(), outputs["logits"].argmax(1).tolist(), strict=True)
        self._clips.update(zip(outputs["id"], told, strict=True))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file."""
        clips = {id: told for part in gather_objects(self._clips) for id, told in part.items()}
        if not clips or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        names = trainer.datamodule.labels  # type: ignore[attr-defined]
        columns = [[names[told[place]] for told in clips.values()] for place in (0, 1)]
        table = pa.table({"id": list(clips), "label": columns[0], "prediction": columns[1]})
        with replacing(self.out) as file:
            pq.write_table(table, file)


def _named(names: list[str], chosen: Tensor) -> list[Any]:
    """Names of class indices (B,); of several labels per clip (B, C), those that are set."""
    if chosen.ndim == 1:
        return [names[index] for index in chosen.tolist()]
    return [[name for name, on in zip(names, row, strict=True) if on] for row in chosen.tolist()]
