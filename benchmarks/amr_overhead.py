"""AMR's extra time a step and extra peak memory, as ratios to the naive step in the same process.

Two ResNet-18s at the CREMA-D recipe's shapes: spectrograms (B, 1, 257, 188), three 224 x 224 frames, Concat, SGD. The
steps are FusionClassifier's own, through Lightning's Trainer on batches in memory. Time is measured twice: naive
against AMR in alternating blocks, which a noisy machine blurs by several per cent, and within each AMR step, as the
whole step over the step without AMR's own part, which it does not. Prints a table and one JSON line.

    python -m benchmarks.amr_overhead [--device cpu|cuda] [--batch 8] [--blocks 5] [--steps 4]
"""

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import SGD
from torch.utils.data import DataLoader

from amr.classifier import FusionClassifier
from amr.encoders import ResNetEncoder
from amr.fusion import Concat
from amr.regularizers import AMR, Step

CLASSES = 6


class Timer(pl.Callback):
    """Seconds of each step, from before the forward to after the last optimizer's step, and of AMR's part of it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.steps: list[float] = []
        self.parts: list[float] = []
        self.start = 0.0

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FusionClassifier)
        after_step = pl_module.regularizers.after_step

        def timed(steps: Sequence[Step]) -> None:
            start = self.now()
            after_step(steps)
            self.parts.append(self.now() - start)

        pl_module.regularizers.after_step = timed  # type: ignore[method-assign]

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = self.now()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append(self.now() - self.start)


def batches(batch: int, steps: int) -> Any:
    """The same clips every step, kept in memory."""
    generator = torch.Generator().manual_seed(0)
    one = {
        "inputs": {
            "audio": torch.randn(batch, 1, 257, 188, generator=generator),
            "video": torch.randn(batch, 3, 3, 224, 224, generator=generator),
        },
        "label": torch.arange(batch) % CLASSES,
        "id": [str(i) for i in range(batch)],
    }

    class Repeated(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter([one] * steps)

        def __len__(self) -> int:
            return steps

    return DataLoader(Repeated(), batch_size=None)


def train(amr: bool, device: str, batch: int, steps: int, warm_up: int) -> Timer:
    """Runs some steps; the first `warm_up` of them are not counted."""
    pl.seed_everything(0, verbose=False)
    encoders = {"audio": ResNetEncoder(18, in_channels=1), "video": ResNetEncoder(18)}
    optimizer = lambda p: SGD(p, lr=1e-3, momentum=0.9, weight_decay=1e-4)  # noqa: E731
    model = FusionClassifier(encoders, Concat, CLASSES, optimizer=optimizer, amr=AMR() if amr else None)  # type: ignore[arg-type]
    timer = Timer(device)
    trainer = pl.Trainer(
        accelerator=device,
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[timer],
    )
    trainer.fit(model, batches(batch, warm_up + steps))
    timer.steps, timer.parts = timer.steps[warm_up:], timer.parts[warm_up:]
    return timer


def peak_memory(amr: bool, options: argparse.Namespace) -> float:
    """Peak MiB of a few steps: of the device's allocator, or of a process of its own on the CPU."""
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        train(amr, "cuda", options.batch, 3, 0)
        return torch.cuda.max_memory_allocated() / 2**20
    # VmHWM, for getrusage's peak is inherited from the parent through fork and exec.
    code = f"from benchmarks.amr_overhead import train; train({amr}, 'cpu', {options.batch}, 3, 0); "
    code += "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    # Freed memory goes back at once, so that the peak is that of live tensors and not of the allocator's mood.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1], env={**os.environ, **malloc}
    )
    return int(done.stdout.split()[-2]) / 2**10  # ... VmHWM: 123 kB


def machine(device: str) -> str:
    """Name of what ran it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{(names or [platform.processor()])[0]}, {torch.get_num_threads()} threads"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8, help="clips a step; the recipe has 64")
    parser.add_argument("--blocks", type=int, default=5, help="pairs of blocks, naive and AMR in turn")
    parser.add_argument("--steps", type=int, default=4, help="steps counted a block, after one that is not")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    train(True, options.device, options.batch, 2, 0)
    ratios, naive, within = [], [], []
    for block in range(options.blocks):
        medians = {}
        for amr in (False, True) if block % 2 == 0 else (True, False):  # the order alternates too
            timer = train(amr, options.device, options.batch, options.steps, 1)
            medians[amr] = statistics.median(timer.steps)
            if amr:
                within += [step / (step - part) for step, part in zip(timer.steps, timer.parts, strict=True)]
        naive.append(medians[False])
        ratios.append(medians[True] / medians[False])
        print(
            f"block {block + 1}/{options.blocks}: naive {medians[False]:.3f} s, AMR/naive {ratios[-1]:.4f}", flush=True
        )
    memory = {amr: [peak_memory(amr, options) for _ in range(3)] for amr in (False, True)}
    result = {
        "benchmark": "amr_overhead",
        "machine": machine(options.device),
        "torch": torch.__version__,
        "batch": options.batch,
        "naive_step_s": round(statistics.median(naive), 4),
        "time_ratio": round(statistics.median(within), 5),
        "time_ratio_min": round(min(within), 5),
        "time_ratio_max": round(max(within), 5),
        "blocks_ratio": round(statistics.median(ratios), 4),
        "blocks_ratio_min": round(min(ratios), 4),
        "blocks_ratio_max": round(max(ratios), 4),
        "naive_peak_mib": round(statistics.median(memory[False]), 1),
        "memory_ratio": round(statistics.median(memory[True]) / statistics.median(memory[False]), 4),
    }
    for key, value in result.items():
        print(f"{key:16} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
