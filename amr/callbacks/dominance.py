"""Each modality's share in the decisions of a split, every epoch."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from amr.attribution import (
    Score,
    at_least_float32,
    attributed_rows,
    attribution_shares,
    equal_by_construction,
    predicted_shapley_shares,
    shapley_shares,
)
from amr.callbacks.tables import log_table, wandb_loggers
from amr.classifier import SPLITS, FusionClassifier
from amr.evaluation.head import coalition_outputs
from amr.model import FusionModel, complete_masks, complete_rows, device_of, head_of
from amr.model.batches import StepOutput
from amr.model.encoded import Collected
from amr.model.protocol import Explained
from amr.utils.errors import UserError
from amr.utils.files import write_text
from amr.utils.streams import note

DECISION_ROWS = 1 << 13  # of the head, per split: 2,048 clips of two modalities
WAITING_ROWS, WAITING_NUMBERS = 512, 1 << 22  # clips, and numbers in their encodings, that are measured together


class MeanShares(Metric):
    """Mean attribution share of each modality, and accuracy, over clips; synchronized over ranks.

    Args:
        modalities: Names of the M modalities.
        num_classes: Number of classes C.
    """

    sums: Tensor
    """Row per class (C, 3 + M): clips, right answers, clips with shares, and the summed shares."""

    def __init__(self, modalities: Iterable[str], num_classes: int) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.add_state("sums", torch.zeros(num_classes, 3 + len(self.modalities)), dist_reduce_fx="sum")

    def update(self, shares: Tensor, logits: Tensor, label: Tensor) -> None:
        """Adds clips.

        Args:
            shares: Shares, (B, M); rows of zeros do not count.
            logits: Logits, (B, C).
            label: Class indices, (B,); of several labels per clip, (B, C): a clip then counts for the label of the
                highest score, which its shares explain, and is right if it has that label.
        """
        top = logits.argmax(1)
        right = top == label if label.ndim == 1 else label.gather(1, top[:, None])[:, 0] > 0
        counts = torch.stack([torch.ones_like(right), right, attributed_rows(shares)], 1)
        rows = torch.cat([counts, shares], 1).to(self.sums)
        self.sums.index_add_(0, label if label.ndim == 1 else top, rows)

    def compute(self) -> dict[str, Tensor]:
        """Mean share by modality; empty if no clip has any."""
        total = self.sums.sum(0)
        return dict(zip(self.modalities, total[3:] / total[2], strict=True)) if total[2] > 0 else {}

    def totals(self) -> Tensor:
        """The sums over all ranks, (C, 3 + M); every rank must call this, with or without clips."""
        with self.sync_context():
            return self.sums.clone()


def class_rows(totals: Tensor) -> list[tuple[int, int, float, list[float | None]]]:
    """Class index, clips, accuracy and mean shares (None without any) of the classes that have clips.

    Args:
        totals: `MeanShares.totals`, (C, 3 + M).
    """
    return [
        (label, int(clips), right / clips, [share / attributed if attributed else None for share in shares])
        for label, (clips, right, attributed, *shares) in enumerate(totals.tolist())
        if clips
    ]


class Dominance(pl.Callback):
    """Logs each modality's mean attribution share (dominance) and what the decisions really owe to it, in [0, 1].

    `{train,val,test}/dominance/<modality>` is the mean of `amr.attribution.attribution_shares` over the split's clips,
    `{train,val,test}/decision_share/<modality>` the mean Shapley share of the log-odds of the predicted class
    (`amr.attribution.shapley_shares`, where a missing modality has the mean encoding). Training can move the first
    without the second.

    Both are of the model as it stands and of the clips that have every modality; under DDP of all ranks. The decision
    share is that of at most 2^13 / 2^M clips of the split (2,048 for two modalities), chosen by a hash of their ids; in
    training it is that of single batches, with the mean encoding of this rank's batch. At the end of a run the
    dominance by class, with the accuracy, goes to a CSV and to W&B.

    Validation and test measure every clip. Training measures every k-th batch, right after its step: `every`.

    `metrics` holds each split's `MeanShares`, and `totals` what they were over all ranks at the last end of an epoch.

    Args:
        score: Score that is attributed: `probability` (log-odds) or `logit`.
        train: Whether to measure on training batches too.
        table: CSV for the table by class of the last validation (and test); None for no file.
        ig_steps: Points of integrated gradients, to log these in place of gradient⊙input's shares; None for the latter.
        every: Training measures the first of each `every` batches, >= 1. None for every batch of an epoch that has
            fewer than 32, and else for as many as leave 16 to measure, but 8 at most.

    Raises:
        UserError: If `ig_steps` or `every` is below 1.
    """

    def __init__(
        self,
        score: Score = "probability",
        train: bool = True,
        table: Path | None = None,
        ig_steps: int | None = None,
        every: int | None = None,
    ) -> None:
        for key, number in (("ig_steps", ig_steps), ("every", every)):
            if number is not None and number < 1:
                raise UserError(f"dominance.{key}={number}: must be an integer >= 1, or null")
        self.score: Score = score
        self.train = train
        self.table = table
        self.ig_steps = ig_steps
        self.every = every
        self.metrics: dict[str, MeanShares] = {}
        self.decisions: MeanShares | None = None
        """Decision shares of the training batches."""
        self._collected = Collected()
        self._waiting: list[StepOutput] = []  # batches of an evaluation that are measured together
        self.totals: dict[str, Tensor] = {}
        self.hint: str | None = None
        """Message, shown once, if all shares are equal by construction; None before the first validation clips."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Makes the metrics."""
        assert isinstance(pl_module, FusionClassifier)
        model = pl_module.model
        for split in SPLITS:
            self.metrics.setdefault(split, MeanShares(model.modalities, model.num_classes))
        self.decisions = self.decisions or MeanShares(model.modalities, model.num_classes)
        self._start(model)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds a training batch."""
        if self.train and batch_idx % (self.every or _usual_step(trainer.num_training_batches)) == 0:
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
        self._wait("val", pl_module, outputs)

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
        self._wait("test", pl_module, outputs)

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the untrained model's numbers."""
        assert isinstance(pl_module, FusionClassifier)
        self.metrics["val"].reset()
        self._start(pl_module.model)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts again."""
        assert self.decisions is not None
        self.metrics["train"].reset()
        self.decisions.reset()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts again."""
        assert isinstance(pl_module, FusionClassifier)
        self.metrics["val"].reset()
        self._start(pl_module.model)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts again."""
        assert isinstance(pl_module, FusionClassifier)
        self.metrics["test"].reset()
        self._start(pl_module.model)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the training clips' shares, each measured right after its own step."""
        if self.train:
            self._log("train", pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the validation clips' shares."""
        self._measure("val", pl_module)
        self._log("val", pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the test clips' shares."""
        self._measure("test", pl_module)
        self._log("test", pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the table by class."""
        self._write_table(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the table by class."""
        self._write_table(trainer, pl_module)

    def _wait(self, split: str, module: pl.LightningModule, outputs: StepOutput) -> None:
        """Measures batches of an evaluation together: a pass of the head costs as much for 64 rows as for 512."""
        self._waiting.append(outputs)
        rows = sum(len(waiting["label"]) for waiting in self._waiting)
        numbers = sum(e.numel() for waiting in self._waiting for e in waiting["encodings"].values())
        if rows >= WAITING_ROWS or numbers >= WAITING_NUMBERS:
            self._measure(split, module)

    def _measure(self, split: str, module: pl.LightningModule) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._add(split, module, _joined(waiting))

    def _add(self, split: str, module: pl.LightningModule, outputs: StepOutput) -> None:
        assert isinstance(module, FusionClassifier)
        encodings, label, present = outputs["encodings"], outputs["label"], outputs["present"]
        score = module.model.score_of(self.score)
        shares = attribution_shares(head_of(module.model), encodings, score=score, ig_steps=self.ig_steps)
        rows = complete_rows(encodings, present)
        if rows is not None:
            shares = shares * rows.unsqueeze(1)
        if split != "train" and self.hint is None:
            self.hint = equal_by_construction(shares)
            if self.hint and module.global_rank == 0:
                note(self.hint)
        self.metrics[split].to(label.device).update(shares, outputs["logits"], label)
        if split != "train":
            self._collected.add(outputs)
            return
        assert self.decisions is not None
        kept = torch.arange(len(label), device=label.device) if rows is None else rows.nonzero().flatten()
        if len(kept):
            chosen = {name: encoding[kept] for name, encoding in encodings.items()}
            mean = {name: at_least_float32(encoding).mean(0, keepdim=True) for name, encoding in chosen.items()}
            score = module.model.score_of("probability")
            shares = shapley_shares(head_of(module.model), chosen, mean, score=score)
            self.decisions.to(label.device).update(shares, outputs["logits"][kept], label[kept])

    def _start(self, model: Explained) -> None:
        self._waiting = []
        self._collected = Collected(max(2, DECISION_ROWS >> len(model.modalities)))

    def _decision_shares(self, split: str, model: FusionModel) -> dict[str, Tensor]:
        """Mean decision share by modality over all ranks; empty if no clip has any."""
        if split == "train":
            assert self.decisions is not None
            total = self.decisions.totals().sum(0)
            return dict(zip(model.modalities, total[3:] / total[2], strict=True)) if total[2] > 0 else {}
        clips = self._collected.of_all_ranks().to(device_of(model))  # a rank may have had no batch
        self._start(model)
        if not clips.ids:
            return {}
        logits = coalition_outputs(model, clips.encodings, "mean").double()
        shares = predicted_shapley_shares(logits, model.score_of("probability"))
        shares = shares[attributed_rows(shares)]
        return dict(zip(model.modalities, shares.mean(0).float(), strict=True)) if len(shares) else {}

    def _log(self, split: str, module: pl.LightningModule) -> None:
        assert isinstance(module, FusionClassifier)
        totals = self.totals[split] = self.metrics[split].totals()
        total = totals.sum(0)
        if total[2] > 0:
            for name, share in zip(self.metrics[split].modalities, total[3:] / total[2], strict=True):
                # The sums are every rank's already; sync_dist, of equal values, only tells Lightning so.
                module.log(f"{split}/dominance/{name}", share, sync_dist=True)
        for name, share in self._decision_shares(split, module.model).items():
            module.log(f"{split}/decision_share/{name}", share, sync_dist=True)

    def _write_table(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, FusionClassifier)
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if module.model.task == "regression":  # which has no classes
            return
        names = getattr(trainer.datamodule, "labels", None) or [str(c) for c in range(module.model.num_classes)]  # type: ignore[attr-defined]
        columns = ["split", "class", "clips", "acc", *(f"dominance/{name}" for name in module.model.modalities)]
        rows: list[list[Any]] = []
        for split in ("val", "test"):
            if split in self.totals:
                found = class_rows(self.totals[split])
                rows += [[split, names[label], clips, accuracy, *shares] for label, clips, accuracy, shares in found]
        if self.table is not None and rows:
            fresh = {row[0] for row in rows}
            kept = [row for row in _read_rows(self.table, columns) if row[0] not in fresh]  # fit's, when test writes
            text = io.StringIO(newline="")
            csv.writer(text).writerows([columns, *sorted([*kept, *rows], key=lambda row: row[0] == "test")])
            write_text(self.table, text.getvalue())
        for logger in wandb_loggers(trainer) if rows else []:
            log_table(logger, "per_class", columns, rows)


def _usual_step(batches: float) -> int:
    """Interval of measured training batches in an epoch of `batches`, which may be infinite."""
    return max(1, int(min(8, batches // 16)))


def _joined(outputs: Sequence[StepOutput]) -> StepOutput:
    """Joins the outputs of several steps to one."""
    first = outputs[0]
    joined: Any = {key: torch.cat([output[key] for output in outputs]) for key in ("logits", "label")}
    joined["encodings"] = {m: torch.cat([output["encodings"][m] for output in outputs]) for m in first["encodings"]}
    joined["id"] = [id for output in outputs for id in output["id"]]
    masks = [(complete_masks(first["encodings"], output["present"], output["label"])) for output in outputs]
    lacking = any(output["present"] for output in outputs)
    whole = zip(first["encodings"], torch.cat(masks, dim=1), strict=True)
    joined["present"] = dict(whole) if lacking else None
    return joined  # type: ignore[no-any-return]


def _read_rows(table: Path, columns: list[str]) -> list[list[str]]:
    """Rows of an earlier table with the same columns."""
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return rows if header == columns else []
