"""What the framework adds to a step of a tiny model, over Lightning with the same model and nothing else.

CPU time, one thread. A step of two linear encoders and Concat, batch 64, ids of 20 characters: Lightning alone with a
loss; `FusionClassifier`; the same with the callbacks of `amr fit` (dominance, guard); the same with AMR. A validation
step in the same way. The fits run in turn, and what stands is the median of the parts. Prints a table and a JSON line.

    python -m benchmarks.step [--steps 300] [--parts 5]
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amr import AMR, FusionClassifier
from amr.callbacks import Dominance, Guard, LastCheckpoint
from amr.encoders.base import Encoder
from amr.fusion import Concat
from benchmarks.common import machine, quiet, report

BATCH, CLASSES, SIZE = 64, 6, 32


class Linear(Encoder):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.out_dim, self.net = SIZE, nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        """Encoding (B, 32)."""
        out: Tensor = self.net(x)
        return out


class Batches:
    """The same batches again and again, made beforehand."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        inputs = {name: torch.randn(BATCH, SIZE) for name in ("audio", "video")}
        label = torch.randint(0, CLASSES, (BATCH,))
        self.batch = {"inputs": inputs, "label": label, "id": [f"clip{i:016d}" for i in range(BATCH)]}

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _ in range(self.steps):
            yield dict(self.batch)


class Bare(pl.LightningModule):
    """The same network in Lightning, which logs its loss once an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.model = FusionClassifier({"audio": Linear(), "video": Linear()}, Concat, num_classes=CLASSES).model

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss."""
        return F.cross_entropy(self.model(batch["inputs"]), batch["label"])

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss."""
        return F.cross_entropy(self.model(batch["inputs"]), batch["label"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """That of `FusionClassifier`."""
        return torch.optim.SGD(self.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-4)


def classifier(**methods: Any) -> FusionClassifier:
    """The framework's."""
    return FusionClassifier({"audio": Linear(), "video": Linear()}, Concat, num_classes=CLASSES, **methods)


def spent(module: pl.LightningModule, steps: int, callbacks: list[pl.Callback], validation: bool) -> float:
    """CPU milliseconds per step."""
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False, callbacks=callbacks,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    batches: Any = Batches(steps)
    start = time.process_time()
    if validation:
        trainer.validate(module, batches, verbose=False)
    else:
        trainer.fit(module, batches)
    return (time.process_time() - start) / steps * 1000


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="of each part")
    parser.add_argument("--parts", type=int, default=5, help="parts, after one that is not counted")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    cases: dict[str, Any] = {
        "bare": lambda: (Bare(), []),
        "classifier": lambda: (classifier(), []),
        "with_callbacks": lambda: (classifier(), [Dominance(), Guard(LastCheckpoint())]),
        "with_amr": lambda: (classifier(amr=AMR()), [Dominance(), Guard(LastCheckpoint())]),
    }
    times: dict[str, list[float]] = {}
    for part in range(options.parts + 1):
        for validation in (False, True):
            for name, make in cases.items():
                module, callbacks = make()
                if validation:
                    callbacks = callbacks[:1]
                found = spent(module, options.steps, callbacks, validation)
                if part:
                    times.setdefault(f"{'val' if validation else 'train'}_{name}", []).append(found)
    result: dict[str, Any] = {"benchmark": "step", "machine": machine("cpu"), "steps": options.steps}
    for key, values in times.items():
        result[f"{key}_ms"] = round(statistics.median(values), 2)
    for kind in ("train", "val"):
        bare = times[f"{kind}_bare"]
        for name in list(cases)[1:]:
            pairs = list(zip(times[f"{kind}_{name}"], bare, strict=True))
            result[f"{kind}_{name}_added_ms"] = round(statistics.median(a - b for a, b in pairs), 2)
            result[f"{kind}_{name}_ratio"] = round(statistics.median(a / b for a, b in pairs), 2)
    report(result)


if __name__ == "__main__":
    main()
