"""Memory of prepare and of training against the number of clips (e).

VGGSound listings of 1,000, 10,000 and 100,000 rows with a tiny clip each (links to a few files), prepared and then
trained on for some steps by the command line. What is compared is each process's anonymous memory, the largest seen in
samples every 20 ms: what it allocated, without the code of its libraries and without the pages of the mapped shards,
which the system may drop at any time. Prints a table and one JSON line.

    python -m benchmarks.memory [--rows 1000 10000 100000] [--steps 30]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from amr.datamodules.synthetic.synthesis import write_mp4
from benchmarks.common import machine, report

REPOSITORY = Path(__file__).parents[1]
LINKS = 50_000  # to one file; ext4 allows 65,000


def anonymous(pid: int) -> float:
    """MiB of a process's own pages."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0


def children(pid: int) -> list[int]:
    """Processes that it started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def make(folder: Path, rows: int) -> None:
    """A listing and its clips."""
    folder.mkdir(exist_ok=True)
    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    wave = np.random.default_rng(0).normal(0, 0.1, 4800).astype(np.float32)
    source = folder / "source"
    with (folder / f"{rows}.csv").open("w") as listing:
        for i in range(rows):
            clip = folder / f"{i:011d}_{i % 300}.mp4"
            if i % LINKS == 0:
                source = folder / f"source-{i}"
                if not source.exists():
                    write_mp4(source, frames, wave)
            if not clip.exists():
                os.link(source, clip)
            listing.write(f'{i:011d},{i % 300},"sound {i % 300}",{"test" if i % 10 == 0 else "train"}\n')


def peak(command: list[str], cwd: Path) -> tuple[float, float]:
    """Largest memory of a command's process, and of any that it started."""
    own = worker = 0.0
    with (cwd / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            try:
                own = max(own, anonymous(process.pid))
                worker = max([worker, *map(anonymous, children(process.pid))])
            except OSError:  # one that has just ended
                continue
            time.sleep(0.02)
    if process.returncode:
        raise RuntimeError((cwd / "log.txt").read_text()[-2000:])
    return own, worker


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    result: dict[str, object] = {"benchmark": "memory", "machine": machine("cpu"), "rows": options.rows}
    own: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = folder / "clips"
        for rows in options.rows:
            make(clips, rows)
            settings: dict[str, object] = {"root": str(clips), "csv": f"{rows}.csv", "store": str(folder / f"s{rows}")}
            settings |= {"prepare_workers": 2, "num_workers": 2, "batch_size": 16}
            settings["audio"] = {"seconds": 0.3, "n_fft": 256, "n_mels": 16}
            settings["video"] = {"frames": 2, "size": 32}
            data = {"data": {"class_path": "amr.datamodules.VGGSound", "init_args": settings}}
            (folder / "data.json").write_text(json.dumps(data))
            encoders = {"audio": "SmallCNN", "video": "ResNetEncoder"}
            model = {"encoders": {m: {"class_path": f"amr.encoders.{e}"} for m, e in encoders.items()}}
            trainer = {"max_steps": options.steps, "limit_val_batches": 0, "accelerator": "cpu", "devices": 1}
            (folder / "fit.json").write_text(json.dumps({"model": model, "trainer": trainer}))
            amr = [sys.executable, str(REPOSITORY / "train.py")]
            config = ["--config", str(folder / "data.json")]
            fit = ["fit", *config, "--config", str(folder / "fit.json"), "--name", f"r{rows}", "--wandb", "disabled"]
            for what, command in (("prepare", ["prepare", *config]), ("train", fit)):
                start = time.perf_counter()
                mib, worker = peak([*amr, *command], folder)
                own.setdefault(what, []).append(round(mib, 1))
                own.setdefault(f"{what}_worker", []).append(round(worker, 1))
                seconds = time.perf_counter() - start
                print(f"{rows:7} rows, {what}: {mib:.0f} MiB, a worker {worker:.0f} MiB ({seconds:.0f} s)", flush=True)
    for what, values in own.items():
        result[f"{what}_mib"] = values
        result[f"{what}_growth"] = round(values[-1] / values[0], 3)
    report(result)


if __name__ == "__main__":
    main()
