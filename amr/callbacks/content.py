"""Sends W&B more than numbers: the confusion matrix of a test, the best checkpoint, a few clips with their maps."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from amr.callbacks.multiviz import draw_clip
from amr.callbacks.tables import guarded, log_table, wandb_loggers
from amr.classifier import FusionClassifier
from amr.datamodules import ListedClips
from amr.model import complete_rows
from amr.model.batches import as_batch
from amr.model.task import check_classes
from amr.utils.distributed import all_reduce_sum
from amr.utils.errors import UserError

DRAWN = 100  # classes; W&B's chart is made of a row per cell, and draws 10,000 of them


class WandbContent(pl.Callback):
    """Adds media and tables to a W&B run, online or offline. Without a W&B logger it does nothing.

    - After a test, always: `test/confusion`, W&B's chart of the confusion matrix over all ranks; with more than 100
      classes `test/confusions`, a table of the pairs that occur. Not for several labels per clip.
    - `checkpoint`: after a training that is online, `best.ckpt` as an artifact of type `model`, with the alias `best`.
    - `clips`: after a test, `test/clips`, a picture per clip of its inputs with integrated gradients and occlusion.

    Args:
        checkpoint: Whether to send the best checkpoint. It needs `--wandb online`; offline runs keep it.
        clips: Test clips to draw: the first ones that have every modality. 0 for none.

    Raises:
        UserError: `clips` is negative.
    """

    def __init__(self, checkpoint: bool = False, clips: int = 0) -> None:
        if clips < 0:
            raise UserError(f"wandb_content.clips={clips}: must be at least 0")
        self.checkpoint, self.clips = checkpoint, clips
        self._counts = torch.zeros(0, 0, dtype=torch.long)
        self._inputs: list[dict[str, Tensor]] = []
        self._told: list[tuple[str, int, int]] = []  # id, label and prediction of the clips to draw

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts again.

        Raises:
            UserError: Clips are to be drawn, and the data module or the model has no pictures.
        """
        assert isinstance(pl_module, FusionClassifier)
        if self.clips and _runs(trainer):
            check_classes(pl_module.model, "wandb_content.clips")
            if not isinstance(trainer.datamodule, ListedClips):  # type: ignore[attr-defined]
                raise UserError(
                    f"wandb_content.clips={self.clips}: must be 0 with data that is not one of amr's modules"
                )
        self._counts = torch.zeros(2 * (pl_module.model.num_classes,), dtype=torch.long)
        self._inputs, self._told = [], []

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the batch, and keeps the first clips that have every modality."""
        if not wandb_loggers(trainer) or outputs["label"].ndim > 1:
            return
        label, predicted = outputs["label"].cpu(), outputs["logits"].argmax(1).cpu()
        self._counts.index_put_((label, predicted), torch.ones_like(label), accumulate=True)
        wanted = self.clips - len(self._told)
        if wanted > 0 and trainer.is_global_zero and _runs(trainer):
            names = list(outputs["encodings"])
            complete = complete_rows(names, outputs["present"])
            rows = range(len(label)) if complete is None else complete.nonzero().flatten().tolist()
            inputs = as_batch(batch, names)["inputs"]
            for row in rows[:wanted]:
                self._inputs.append({m: inputs[m][row : row + 1].clone() for m in names})
                self._told.append((outputs["id"][row], int(label[row]), int(predicted[row])))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the confusion matrix and the clips."""
        assert isinstance(pl_module, FusionClassifier)
        if not wandb_loggers(trainer):
            return
        counts = all_reduce_sum(self._counts.to(pl_module.device)).cpu()
        if not trainer.is_global_zero:
            return
        labels = getattr(trainer.datamodule, "labels", None) or [str(c) for c in range(len(counts))]  # type: ignore[attr-defined]
        for logger in _runs(trainer) if counts.any() else []:
            log_confusion(logger, counts, labels)
        if self._told:
            pictures = [
                draw_clip(trainer, pl_module, inputs, f"{id}: {labels[label]}, predicted {labels[predicted]}")
                for inputs, (id, label, predicted) in zip(self._inputs, self._told, strict=True)
            ]
            captions, images = zip(*pictures, strict=True)
            for logger in _runs(trainer):
                guarded("test/clips", lambda: logger.log_image("test/clips", list(images), caption=list(captions)))  # noqa: B023

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sends the best checkpoint, where the run is online."""
        if not self.checkpoint or not trainer.is_global_zero:
            return
        best = next(
            (c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.best_model_path), None
        )
        if best is None or not Path(best.best_model_path).is_file():
            return
        for logger in _runs(trainer):
            if not logger.experiment.offline:
                guarded("checkpoint", lambda: log_checkpoint(logger, Path(best.best_model_path), best))  # noqa: B023


def log_confusion(logger: WandbLogger, counts: Tensor, labels: list[str]) -> None:
    """Logs a confusion matrix: W&B's chart, or a table of the pairs that occur where it would have too many cells.

    Args:
        logger: Logger of the run.
        counts: Clips by class and prediction, integers (C, C).
        labels: Names of the C classes.
    """
    import wandb

    pairs = counts.nonzero().tolist()
    if len(labels) > DRAWN:
        rows = sorted(([labels[i], labels[j], int(counts[i, j])] for i, j in pairs), key=lambda row: -row[2])
        log_table(logger, "test/confusions", ["class", "predicted", "clips"], rows)
        return
    wandb.Table.MAX_ROWS = max(wandb.Table.MAX_ROWS, len(labels) ** 2)
    clips = [pair for pair in pairs for _ in range(int(counts[pair[0], pair[1]]))]
    chart = wandb.plot.confusion_matrix(
        y_true=[true for true, _ in clips],
        preds=[predicted for _, predicted in clips],
        class_names=labels,
        title="Confusion matrix, test",
    )
    guarded("test/confusion", lambda: logger.experiment.log({"test/confusion": chart}))


def log_checkpoint(logger: WandbLogger, path: Path, best: ModelCheckpoint) -> None:
    """Sends a checkpoint as a new version of the run's artifact, with the alias `best`.

    Args:
        logger: Logger of a run that is online.
        path: The checkpoint.
        best: Callback that chose it; its metric and value are noted with the artifact.
    """
    import wandb

    score = None if best.best_model_score is None else float(best.best_model_score)
    artifact = wandb.Artifact(
        f"checkpoint-{logger.experiment.id}", type="model", metadata={"monitor": best.monitor, "value": score}
    )
    artifact.add_file(str(path), name=path.name)
    logger.experiment.log_artifact(artifact, aliases=["best"])


def _runs(trainer: pl.Trainer) -> list[WandbLogger]:
    """The loggers whose W&B run is kept or sent."""
    # Only rank 0 has a run.
    return [logger for logger in wandb_loggers(trainer) if not getattr(logger.experiment, "disabled", False)]
