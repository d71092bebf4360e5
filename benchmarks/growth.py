"""How CPU time grows: the exponent p of time ~ size^p of what users make larger.

Each quantity is taken at sizes a factor of 2 apart; the exponent is that of the line through the logarithms of the
median times of its larger half, where what is the same for every size counts least. Nothing that can be linear should
be above 1.2. One thread, some minutes in all. Prints a table and one JSON line.

    python -m benchmarks.growth [--parts 3]
"""

import argparse
import atexit
import contextlib
import io
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from amr.attribution import attribution_shares, ratio_penalty, shapley_shares
from amr.datamodules import Tensors
from amr.datamodules.store.media import Decoded
from amr.datamodules.store.shards import ClipStore, shard_path, write_shard
from amr.encoders import as_encoder
from amr.evaluation.emap import emap
from amr.fusion import Concat, LowRank
from amr.model import FusionModel
from amr.multiviz.analysis.whole import analyze
from amr.report.parts.settings import differing_settings
from benchmarks.common import machine, report


def head(modalities: int, classes: int, width: int) -> Concat:
    """An affine head."""
    return Concat({f"m{k}": width for k in range(modalities)}, classes)


def encodings(modalities: int, clips: int, width: int) -> dict[str, Tensor]:
    """Random ones."""
    return {f"m{k}": torch.randn(clips, width) for k in range(modalities)}


def penalty(modalities: int = 2, classes: int = 10, width: int = 128, clips: int = 256) -> Callable[[], Any]:
    """AMR's shares, penalty and gradient."""
    fusion, given = head(modalities, classes, width), encodings(modalities, clips, width)
    parameters, ratio = list(fusion.parameters()), torch.ones(modalities)

    def call() -> None:
        shares = attribution_shares(fusion, given, create_graph=True)
        torch.autograd.grad(ratio_penalty(shares, ratio), parameters, materialize_grads=True)

    return call


def shapley(modalities: int) -> Callable[[], Any]:
    """Shapley shares, exact up to six modalities."""
    fusion, given = head(modalities, 10, 32), encodings(modalities, 64, 32)
    return lambda: shapley_shares(fusion, given, {m: e.mean(0, keepdim=True) for m, e in given.items()})


def projection(clips: int) -> Callable[[], Any]:
    """EMAP of an affine head."""
    model = FusionModel({f"m{k}": as_encoder(nn.Linear(4, 32)) for k in range(2)}, head(2, 10, 32)).eval()
    given = encodings(2, clips, 32)
    return lambda: emap(model, given)


def settings(runs: int) -> Callable[[], Any]:
    """What differs between runs: a part of compare."""
    rng = np.random.default_rng(0)
    given: list[Any] = [
        SimpleNamespace(seed=k, settings={f"key{i}": str(rng.integers(3)) for i in range(60)}) for k in range(runs)
    ]
    return lambda: differing_settings(given)


def opened(rows: int) -> Callable[[], Any]:
    """A store of clips with a few samples each is opened, all of its ids looked for, and 1,000 clips read at random."""
    largest = CASES["a store, rows"][1][-1]
    if not STORE:
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder)
        clip = Decoded(np.zeros(16, np.int16), [b"a frame"])
        for group in range(largest // SHARD):
            ids = [f"clip{number:08d}" for number in range(group * SHARD, (group + 1) * SHARD)]
            write_shard(shard_path(folder, group), "key", ((id, clip) for id in ids))
        STORE.append(folder)
    part = Path(tempfile.mkdtemp(dir=STORE[0]))
    for group in range(rows // SHARD):
        os.link(shard_path(STORE[0], group), shard_path(part, group))
    ids = [f"clip{number:08d}" for number in range(rows)]
    drawn = np.random.default_rng(0).integers(rows, size=1000)

    def call() -> None:
        store = ClipStore(part)
        assert store.first_missing(ids) is None
        for number in drawn:
            store.get(ids[number])

    return call


def analysed(split: int = 64, clips: int = 2) -> Callable[[], Any]:
    """An analysis of so many explained clips of a split, every stage that does not need sparse classifiers."""
    generator = torch.Generator().manual_seed(0)
    columns: dict[str, Any] = {m: torch.randn(split + 64, 16, generator=generator).numpy() for m in ("audio", "video")}
    columns["label"] = np.arange(split + 64) % 3
    columns["split"] = ["test"] * split + ["train"] * 64
    data = Tensors(columns, dict.fromkeys(("audio", "video"), "vector"), split="split")
    encoders = {m: as_encoder(nn.Sequential(nn.Linear(16, 32), nn.Tanh())) for m in ("audio", "video")}
    model = FusionModel(encoders, LowRank(dict.fromkeys(encoders, 32), 3)).eval()

    def call() -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            analyze(model, folder, data=data, clips=clips, classes=1, samples=40, stages=("errors", "clips"))

    return call


SHARD = 64  # clips, as prepare has them
STORE: list[Path] = []  # the largest one, once it is written

CASES: dict[str, tuple[Callable[[int], Callable[[], Any]], list[int]]] = {
    "EMAP, affine head, clips N": (projection, [4096, 8192, 16384, 32768]),
    "Shapley shares, modalities M (2 to 16)": (shapley, [2, 4, 8, 16]),
    "AMR's penalty, modalities M": (lambda n: penalty(modalities=n), [4, 8, 16, 32]),
    "AMR's penalty, classes C": (lambda n: penalty(classes=n), [512, 1024, 2048, 4096]),
    "AMR's penalty, width D": (lambda n: penalty(width=n), [1024, 2048, 4096, 8192]),
    "AMR's penalty, clips B": (lambda n: penalty(clips=n), [1024, 2048, 4096, 8192]),
    "compare's settings, runs": (settings, [250, 500, 1000, 2000]),
    "analyze, clips of the split": (lambda n: analysed(split=n), [1024, 2048, 4096, 8192]),
    "analyze, explained clips": (lambda n: analysed(clips=n), [8, 16, 32, 64]),
    "a store, rows": (opened, [25_600, 51_200, 102_400, 204_800]),
}


def exponent(sizes: list[int], times: list[float]) -> float:
    """Slope of the logarithms over the larger half."""
    x, y = ([math.log(value) for value in values[len(values) // 2 - 1 :]] for values in (sizes, times))
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=3, help="times that each size is measured, after one more")
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)  # of BLAS, whose threads wait for each other in the fits of an analysis
    torch.manual_seed(0)
    result: dict[str, Any] = {"benchmark": "growth", "machine": machine("cpu")}
    for name, (make, sizes) in CASES.items():
        calls = [make(size) for size in sizes]
        spent: list[list[float]] = [[] for _ in sizes]
        for part in range(options.parts + 1):
            for place, call in enumerate(calls):
                began = time.process_time()
                call()
                if part:
                    spent[place].append(time.process_time() - began)
        times = [statistics.median(each) for each in spent]
        result[name] = round(exponent(sizes, times), 2)
        result[f"{name}, s at the largest"] = round(times[-1], 4)
    report(result)


if __name__ == "__main__":
    main()
