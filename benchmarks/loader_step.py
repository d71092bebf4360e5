"""Seconds a training step with the real loader over seconds with the same tensors in memory.

The small pair of encoders (configs/model/small.yaml) on the GRID letters' settings (configs/data/grid-letters.yaml),
batch 32, naive fusion, through Lightning's Trainer. A fit over a ClipLoader with 2 processes and one over the batches
of its first epoch, kept in a list, take turns. Whole epochs are counted, waits at their beginnings included, after a
first one. The two CPU times say what a loaded machine's ratio cannot: as long as that of a batch's loading, over all
loader processes' cores, is below the step's wall time, loading hides behind it. Prints a table and one JSON line.

AMR would measure what each modality knows alone between epochs, which it can only with the loader.

With as many threads as cores, the step's threads and the loader's processes share the cores, which no loader can make
up for: the default leaves one core to them.

With `--in_memory` the clips stay decoded in the training process (`data.in_memory`), which then transforms the batches.

    python -m benchmarks.loader_step [--threads 1] [--workers 2] [--in_memory] [--clips 352] [--blocks 8] [--epochs 2]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import SGD
from torch.utils.data import DataLoader

from amr.classifier import FusionClassifier
from amr.encoders import SmallCNN, SmallFrameCNN
from amr.fusion import Concat
from benchmarks.common import GRID, clips, machine, quiet, report, spread


class Epochs(pl.Callback):
    """Wall and CPU time when each epoch's last step ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_train_epoch_end(self, *_: Any) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))


def fit(loader: Any, classes: int, epochs: int) -> tuple[float, float]:
    """Wall and CPU seconds a step of all epochs but the first."""
    pl.seed_everything(0, verbose=False)
    encoders = {"audio": SmallCNN(in_channels=1), "video": SmallFrameCNN(in_channels=1)}
    model = FusionClassifier(encoders, Concat, classes, optimizer=lambda p: SGD(p, lr=0.1))
    clock = Epochs()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1 + epochs,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    trainer.fit(model, loader)
    wall, cpu = (
        (end - start) / (epochs * len(loader)) for start, end in zip(clock.ends[0], clock.ends[-1], strict=True)
    )
    return wall, cpu


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    spare = max(1, (os.cpu_count() or 2) - 1)
    parser.add_argument("--threads", type=int, default=spare, help="of the training process")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument("--in_memory", action="store_true", help="data.in_memory, without loader processes")
    parser.add_argument("--clips", type=int, default=352, help="an epoch")
    parser.add_argument("--blocks", type=int, default=8, help="pairs of fits, in memory and with the loader")
    parser.add_argument("--epochs", type=int, default=2, help="counted a fit, after one that is not")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        module = clips("grid", options.clips, Path(name), num_workers=0, batch_size=32, in_memory=options.in_memory)
        next(iter(module.train_dataloader()))
        start = time.process_time()
        batches = list(module.train_dataloader())
        loading = (time.process_time() - start) / len(batches)
        memory: DataLoader[Any] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        module.num_workers = 0 if options.in_memory else options.workers
        seconds: dict[str, list[tuple[float, float]]] = {"memory": [], "loader": []}
        for block in range(options.blocks):
            for variant in ("memory", "loader") if block % 2 == 0 else ("loader", "memory"):
                loader = memory if variant == "memory" else module.train_dataloader()
                seconds[variant].append(fit(loader, module.num_classes, options.epochs))
            in_memory, loaded = seconds["memory"][-1][0], seconds["loader"][-1][0]
            print(f"block {block + 1}/{options.blocks}: in memory {in_memory:.4f} s, ratio {loaded / in_memory:.3f}")
    report(
        {
            "benchmark": "loader_step",
            "data": "grid" if GRID.is_dir() else "made",
            "machine": machine("cpu"),
            "cores": os.cpu_count(),
            "workers": module.num_workers,
            "in_memory": options.in_memory,
            "step_cpu_ms": round(1000 * statistics.median(cpu for _, cpu in seconds["memory"]), 2),
            "loading_cpu_ms": round(1000 * loading, 2),
            "memory_step_ms": round(1000 * statistics.median(wall for wall, _ in seconds["memory"]), 2),
            "loader_step_ms": round(1000 * statistics.median(wall for wall, _ in seconds["loader"]), 2),
            **spread("ratio", [b[0] / a[0] for a, b in zip(seconds["memory"], seconds["loader"], strict=True)]),
        }
    )


if __name__ == "__main__":
    main()
