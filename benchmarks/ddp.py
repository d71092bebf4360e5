"""Two processes against one on the same global batches (g): clips a second, gloo on a CPU, nccl on GPUs.

The small encoders on the GRID letters' shapes, tensors in memory, one torch thread a process: what is compared is the
step with its all-reduce, not the loader. One process and two take turns; each is a fresh Trainer, its first steps not
counted. On two hyper-threads of one core, or on a busy machine, two processes cannot be twice as fast: the ratio of two
processes that do not talk to each other is measured beside it. Prints a table and one JSON line.

    python -m benchmarks.ddp [--batch 64] [--steps 20] [--blocks 3] [--method naive|amr]
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine, quiet, report, spread

REPOSITORY = Path(__file__).parents[1]
WARM_UP = 3


def train(processes: int, batch: int, steps: int, amr: bool) -> None:
    """One rank's training; rank 0 prints the seconds of the counted steps."""
    import pytorch_lightning as pl
    from pytorch_lightning.strategies import DDPStrategy
    from torch.utils.data import DataLoader, IterableDataset

    from amr.classifier import FusionClassifier
    from amr.encoders import SmallCNN, SmallFrameCNN
    from amr.regularizers import AMR

    quiet()
    torch.set_num_threads(1)
    gpus = torch.cuda.device_count() >= processes
    generator = torch.Generator().manual_seed(0)
    one: dict[str, Any] = {
        "inputs": {
            "audio": torch.randn(batch // processes, 1, 64, 65, generator=generator),
            "video": torch.randn(batch // processes, 16, 1, 42, 64, generator=generator),
        },
        "label": torch.arange(batch // processes) % 25,
        "id": [str(i) for i in range(batch // processes)],
    }

    class Repeated(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([one] * (WARM_UP + steps))

    class Clock(pl.Callback):
        start = 0.0

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx + 1 == WARM_UP:
                self.start = time.perf_counter()
            if batch_idx + 1 == WARM_UP + steps and trainer.is_global_zero:
                print(f"RESULT {time.perf_counter() - self.start}", flush=True)

    trainer = pl.Trainer(
        accelerator="gpu" if gpus else "cpu",
        devices=processes,
        strategy="auto" if processes == 1 else DDPStrategy(process_group_backend="nccl" if gpus else "gloo"),
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Clock()],
    )
    encoders = {"audio": SmallCNN(), "video": SmallFrameCNN()}
    model = FusionClassifier(encoders, num_classes=25, amr=AMR() if amr else None)
    trainer.fit(model, DataLoader(Repeated(), batch_size=None))


def launch(processes: int, options: argparse.Namespace) -> "subprocess.Popen[str]":
    """A training of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ddp", "--processes", str(processes)]
    command += ["--batch", str(options.batch), "--steps", str(options.steps), "--method", options.method]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)


def seconds(*running: "subprocess.Popen[str]") -> float:
    """The slowest one's."""
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("a training failed")
    return max(float(output.split("RESULT")[1].split()[0]) for output in outputs)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64, help="clips a global batch")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--method", choices=("naive", "amr"), default="amr")
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.processes:
        train(options.processes, options.batch, options.steps, options.method == "amr")
        return
    half = argparse.Namespace(**{**vars(options), "batch": options.batch // 2})
    speedups, ceilings, rates = [], [], []
    for block in range(options.blocks):
        one = seconds(launch(1, options))
        two = seconds(launch(2, options))
        apart = seconds(launch(1, half), launch(1, half))  # the same work a process, and no all-reduce
        speedups.append(one / two)
        ceilings.append(one / apart)
        rates.append(options.batch * options.steps / two)
        print(f"block {block + 1}/{options.blocks}: {one / two:.2f}, without talking {one / apart:.2f}", flush=True)
    result = {
        "benchmark": "ddp",
        "machine": f"{machine('cuda' if torch.cuda.device_count() > 1 else 'cpu')}",
        "method": options.method,
        "global_batch": options.batch,
        **spread("clips_a_second", rates, 1),
        **spread("two_to_one", speedups),
        **spread("two_apart_to_one", ceilings),
        **spread("of_what_is_possible", [s / c for s, c in zip(speedups, ceilings, strict=True)]),
    }
    report(result)


if __name__ == "__main__":
    main()
