"""The gradients with which a real training steps, for tests that read them off."""

import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader

from amr.classifier import FusionClassifier


def one_step(model: FusionClassifier, *batches: dict[str, Any], epochs: int = 1) -> dict[str, Tensor]:
    """The model's gradients at the last step of a training on the given batches; the rate is 0, so nothing moves."""
    return steps(model, *batches, epochs=epochs)[-1]


def steps(
    model: FusionClassifier, *batches: dict[str, Any], epochs: int = 1, lr: float = 0.0
) -> list[dict[str, Tensor]]:
    """The model's gradients at each step, or turn, as the optimizer finds them: after the methods, before it moves."""
    recorded: list[dict[str, Tensor]] = []

    class Recording(SGD):
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            def then_record() -> Any:
                loss = None if closure is None else closure()
                parameters = model.model.named_parameters()
                recorded.append({k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in parameters})
                return loss

            return super().step(then_record)

    model.main_optimizer.optimizer = lambda parameters: Recording(parameters, lr=lr)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no validation, and few batches
        trainer.fit(model, DataLoader([*batches], batch_size=None))  # type: ignore[arg-type]
    return recorded
