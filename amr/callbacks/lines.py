"""How a training reports: what it trains on, a line per epoch or Lightning's bar, and the best epoch at the end."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

from amr.callbacks.checkpoint import BestCheckpoint
from amr.classifier import FusionClassifier
from amr.datamodules import ListedClips
from amr.regularizers import AMR
from amr.utils.streams import note, span, status

FEW_STEPS = 5  # per epoch: with fewer, an epoch's numbers say little about a method
MISSED = 0.05  # of a share, from AMR's target; `compare` notes the same


class Bar(TQDMProgressBar):
    """Lightning's progress bar with the shares on it, and without the version number of the logger."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Lightning's entries, and the shares of the last validation, in percent."""
        items: dict[str, Any] = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        # Not of the trainer's metrics: to ask for these is collective, and only rank 0 has a bar.
        for lines in (each for each in trainer.callbacks if isinstance(each, EpochLines)):  # type: ignore[attr-defined]
            items |= lines.shares
        return items


class EpochLines(pl.Callback):
    """Writes what is trained on at the start, a line per epoch, and what deserves a warning.

    Lines go to stderr through `amr.utils.streams`, from rank 0; `AMR_PROGRESS=0` turns all but the warnings off. The
    warnings: an epoch has fewer than 5 optimizer steps, training lacks a class, AMR ended farther than 0.05 from its
    target.

    Args:
        lines: Whether to write a line per epoch; not where a progress bar shows the same.
    """

    def __init__(self, lines: bool = True) -> None:
        self.lines = lines
        self.best: dict[str, float] = {}
        """Metrics of the best epoch in this process, with `epoch`, counted from 1; empty before one was validated."""
        self.shares: dict[str, str] = {}
        """Each modality's share and decision share in percent, as text, of the last validation."""
        self._began = 0.0
        self._score: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the numbers of clips, classes and steps."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        batches = trainer.num_training_batches
        steps = None if batches == float("inf") else -(-int(batches) // trainer.accumulate_grad_batches)
        parts, data = [], trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, ListedClips):
            counts = data.census().get("clips", {})
            parts += [", ".join(f"{split} {count}" for split, count in counts.items()) + " clips"] if counts else []
            parts += [_classes(data)]
        if steps is not None:
            parts.append(f"{steps} {'step' if steps == 1 else 'steps'} an epoch")
        if parts:
            status("; ".join(parts))
        if steps is not None and steps < FEW_STEPS:
            note(
                f"an epoch has {steps} optimizer {'step' if steps == 1 else 'steps'}: fewer than {FEW_STEPS} train"
                " little; lower data.init_args.batch_size, or train for more epochs"
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the epoch's clock."""
        self._began = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the epoch's line, and keeps the best epoch's numbers."""
        # On all ranks: what has not been computed yet is, over all ranks.
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not trainer.is_global_zero or not isinstance(pl_module, FusionClassifier):
            return
        self.shares = dict(shares_of(metrics, pl_module.model.modalities))
        self._keep(trainer, metrics)
        if self.lines:
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs if trainer.max_epochs != -1 else '?'}"
            parts = [epoch, *_numbers(metrics, pl_module.model.modalities)]
            status("  ".join([*parts, span(time.monotonic() - self._began)]))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warns where AMR ended far from its target."""
        metrics = trainer.callback_metrics  # on all ranks
        if not trainer.is_global_zero or not isinstance(pl_module, FusionClassifier):
            return
        for method in pl_module.regularizers:
            if not isinstance(method, AMR) or method.weight == 0:
                continue
            shares = {m: metrics.get(f"train/amr/share/{m}") for m in pl_module.model.modalities}
            away = [
                f"{m} {100 * float(share):.0f} for {100 * target:.0f} %"
                for m, target in method.final_target(pl_module.model).items()
                if (share := shares[m]) is not None and abs(float(share) - target) > MISSED
            ]
            if away:
                note(f"AMR missed its ratio in the last epoch: {', '.join(away)} of the share that it trains")

    def result(self, modalities: tuple[str, ...]) -> str:
        """The best epoch in a line, such as `best epoch 7: val acc 70.1 ...`; empty before one was validated."""
        if not self.best:
            return ""
        return "  ".join([f"best epoch {self.best['epoch']:.0f}:", *_numbers(self.best, modalities, train=False)])

    def _keep(self, trainer: pl.Trainer, metrics: Mapping[str, float]) -> None:
        monitor, mode = next(
            ((c.monitor, c.mode) for c in trainer.callbacks if isinstance(c, BestCheckpoint)),  # type: ignore[attr-defined]
            ("val/acc", "max"),
        )
        score = metrics.get(monitor or "")
        if score is None:
            return
        if self._score is None or (score > self._score if mode == "max" else score < self._score):
            self._score = score
            self.best = {"epoch": trainer.current_epoch + 1, **metrics}


def shares_of(metrics: Mapping[str, Any], modalities: tuple[str, ...], split: str = "val") -> list[tuple[str, str]]:
    """Each modality's dominance, and in brackets its decision share, in percent: `("audio", "61 (decides 80)")`.

    Args:
        metrics: Logged values by name, shares in [0, 1].
        modalities: Names of the M modalities.
        split: `train`, `val` or `test`.
    """
    found = []
    for name in modalities if len(modalities) > 1 else ():
        share, decides = metrics.get(f"{split}/dominance/{name}"), metrics.get(f"{split}/decision_share/{name}")
        if share is not None:
            more = "" if decides is None else f" (decides {100 * float(decides):.0f})"
            found.append((name, f"{100 * float(share):.0f}{more}"))
    return found


def _numbers(metrics: Mapping[str, float], modalities: tuple[str, ...], train: bool = True) -> list[str]:
    """Loss, accuracy, mAP and shares, as far as they were logged; shares of two modalities by the first."""
    parts = [f"loss {metrics['train/loss']:.3g}"] if train and "train/loss" in metrics else []
    for key, name in (("val/acc", "val acc"), ("val/mAP", "mAP")):
        parts += [f"{name} {100 * metrics[key]:.1f}"] if key in metrics else []
    for key, name in (("val/mae", "val MAE"), ("val/pearson", "correlation")):
        parts += [f"{name} {metrics[key]:.3g}"] if key in metrics else []
    shares = shares_of(metrics, modalities)
    return parts + [" ".join(entry) for entry in (shares[:1] if len(modalities) == 2 else shares)]


def _classes(data: ListedClips) -> str:
    """Number of classes, and the smallest one's clips in train; warns of classes without any."""
    if getattr(data, "regression", False):
        return f"the number {data.labels[0]!r}"
    if getattr(data, "multilabel", False):
        return f"{len(data.labels)} labels"
    counts = Counter(clip.label for clip in data.usable("train"))
    absent = [label for label in data.labels if not counts.get(label)]
    if absent:
        shown = ", ".join(map(repr, absent[:5])) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        note(f"no clip of train has the class {shown}: its accuracy will be 0")
    return f"{len(data.labels)} classes (smallest {min(counts.get(label, 0) for label in data.labels)})"
