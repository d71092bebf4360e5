"""AMR's extra time a step and extra peak memory with every fusion, as ratios to the naive step.

Two ResNet-18s on the CREMA-D recipe's spectrograms (B, 1, 257, 188) and three 224 x 224 frames, SGD. The steps are
FusionClassifier's own, through Lightning's Trainer on batches in memory. Time is taken within each AMR step, as the
whole step over the step without AMR's own part: steps of two runs, naive and AMR, differ by several per cent on a noisy
machine. Memory is the peak of three steps with AMR over that of three naive ones. Prints a table and one JSON line.

    python -m benchmarks.amr_overhead [--device cpu|cuda] [--fusions Concat ...] [--batch 4] [--steps 6]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import SGD
from torch.utils.data import DataLoader

from amr.classifier import FusionClassifier
from amr.encoders import ResNetEncoder
from amr.fusion import Attention, Concat, FiLM, Gated, Late, LowRank, Sum
from amr.regularizers import AMR, Step
from benchmarks.common import machine, quiet, spread

CLASSES = 6
FUSIONS = {fusion.__name__: fusion for fusion in (Concat, Sum, FiLM, Gated, LowRank, Attention, Late)}


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


def train(fusion: str, amr: bool, device: str, batch: int, steps: int, warm_up: int) -> Timer:
    """Runs some steps; the first `warm_up` of them are not counted."""
    pl.seed_everything(0, verbose=False)
    encoders = {"audio": ResNetEncoder(18, in_channels=1), "video": ResNetEncoder(18)}
    optimizer = lambda p: SGD(p, lr=1e-3, momentum=0.9, weight_decay=1e-4)  # noqa: E731
    model = FusionClassifier(encoders, FUSIONS[fusion], CLASSES, optimizer=optimizer, amr=AMR() if amr else None)  # type: ignore[arg-type]
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


def peak_memory(fusion: str, amr: bool, options: argparse.Namespace) -> float:
    """Peak MiB of a few steps: of the device's allocator, or of a process of its own on the CPU."""
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        train(fusion, amr, "cuda", options.batch, 3, 0)
        return torch.cuda.max_memory_allocated() / 2**20
    # VmHWM, for getrusage's peak is inherited from the parent through fork and exec.
    code = f"from benchmarks.amr_overhead import train; train({fusion!r}, {amr}, 'cpu', {options.batch}, 3, 0); "
    code += "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    # Freed memory goes back at once, so that the peak is that of live tensors and not of the allocator's mood.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1], env={**os.environ, **malloc}
    )
    return int(done.stdout.split()[-2]) / 2**10  # ... VmHWM: 123 kB


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fusions", nargs="+", choices=list(FUSIONS), default=list(FUSIONS))
    parser.add_argument("--batch", type=int, default=4, help="clips a step; the recipe has 64")
    parser.add_argument("--steps", type=int, default=6, help="steps timed a fusion, after one that is not")
    options = parser.parse_args()
    quiet()
    print(f"{'fusion':10} {'step s':>7} {'time':>8} {'min':>8} {'max':>8} {'peak MiB':>9} {'memory':>8}")
    rows = {}
    for name in options.fusions:
        timer = train(name, True, options.device, options.batch, options.steps, 1)
        ratios = [step / (step - part) for step, part in zip(timer.steps, timer.parts, strict=True)]
        naive, amr = (peak_memory(name, amr, options) for amr in (False, True))
        row = {"step_s": round(statistics.median(timer.steps), 4), **spread("time_ratio", ratios, 5)}
        rows[name] = {**row, "naive_peak_mib": round(naive, 1), "memory_ratio": round(amr / naive, 4)}
        step, time_ratio, low, high, peak, memory = rows[name].values()
        print(f"{name:10} {step:7.3f} {time_ratio:8.4f} {low:8.4f} {high:8.4f} {peak:9.1f} {memory:8.4f}", flush=True)
    result = {"benchmark": "amr_overhead", "machine": machine(options.device), "torch": torch.__version__}
    print(json.dumps({**result, "batch": options.batch, "fusions": rows}))


if __name__ == "__main__":
    main()
