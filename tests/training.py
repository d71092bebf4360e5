"""Small classifiers, trained quickly, and their weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from amr.classifier import FusionClassifier
from amr.encoders.base import Encoder
from amr.fusion import Concat
from amr.fusion.base import FusionFactory
from tests.toy import Linear, Toy


def build(
    seed: int = 0,
    fusion: FusionFactory = Concat,
    encoder: Any = Linear,
    modalities: Sequence[str] = ("audio", "video"),
    **options: Any,
) -> FusionClassifier:
    pl.seed_everything(seed)
    return FusionClassifier({name: encoder() for name in modalities}, fusion, num_classes=3, **options)


def fit(
    model: FusionClassifier, data: pl.LightningDataModule | None = None, ckpt: Path | None = None, **flags: Any
) -> pl.Trainer:
    flags = {"max_epochs": 2, "enable_checkpointing": False, "logger": False, "num_sanity_val_steps": 0, **flags}
    trainer = pl.Trainer(accelerator="cpu", devices=1, enable_progress_bar=False, enable_model_summary=False, **flags)
    trainer.fit(model, data or Toy(), ckpt_path=ckpt, weights_only=True)
    return trainer


def weights(model: FusionClassifier) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.model.state_dict().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=atol, msg=key)


def save_teachers(folder: Path, modalities: Sequence[str], encoder: type[Encoder] = Linear) -> dict[str, str]:
    """A checkpoint of each modality's own model, as the command line writes one, trained for an epoch."""
    paths = {}
    for seed, name in enumerate(modalities, 10):
        model = build(seed, encoder=encoder, modalities=[name])
        named = {"class_path": f"{encoder.__module__}.{encoder.__name__}"}
        model.config = {"encoders": {name: named}, "fusion": {"class_path": "amr.fusion.Concat"}}
        paths[name] = str(folder / f"{name}.ckpt")
        fit(model, Toy(modalities=tuple(modalities)), max_epochs=1).save_checkpoint(paths[name])
    return paths
