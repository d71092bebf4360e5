"""Time to `train.py --help` and to the first optimizer step (f), each beside a process that imports torch alone.

Fresh processes, in turn. Seconds depend on the machine, so each is given with its ratio to `import torch`. The first
step is that of a fit on two hundred tiny clips that are prepared already, the small encoders, two loader processes; its
yardstick is a process that imports torch and pytorch_lightning. Prints a table and one JSON line.

    python -m benchmarks.startup [--runs 5]
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import machine, report

REPOSITORY = Path(__file__).parents[1]
FIRST_STEP = """
import sys
from amr.cli.imports import quick_imports  # as the command does
with quick_imports():
    import pytorch_lightning as pl
    from amr.cli.fit import AmrCLI
class First(pl.Callback):
    def on_train_batch_end(self, *_):
        print("STEP", flush=True)
        import os; os._exit(0)
make = AmrCLI.instantiate_trainer
AmrCLI.instantiate_trainer = lambda self, **k: (t := make(self, **k), t.callbacks.append(First()))[0]
from amr.cli import main
sys.exit(main(sys.argv[1:]))
"""


def seconds(command: list[str], cwd: Path) -> float:
    """Wall time of a process that must succeed."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
    subprocess.run(command, check=True, cwd=cwd, env=environment, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each command, in turn, after one that is not counted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = ["--config", str(REPOSITORY / "configs/data/synthetic.yaml"), "--data.init_args.clips", "200"]
        amr = [sys.executable, str(REPOSITORY / "train.py")]
        subprocess.run([*amr, "prepare", *data], check=True, cwd=folder, capture_output=True)
        fit = ["fit", *data, "--config", str(REPOSITORY / "configs/model/small.yaml")]
        fit += ["--config", str(REPOSITORY / "configs/trainer/small.yaml"), "--name", "first"]
        commands = {
            "import_torch": [sys.executable, "-c", "import torch"],
            "help": [*amr, "--help"],
            "import_lightning": [sys.executable, "-c", "import torch, pytorch_lightning"],
            "fit_help": [*amr, "fit", "--help"],
            "first_step": [sys.executable, "-c", FIRST_STEP, *fit],
        }
        times: dict[str, list[float]] = {key: [] for key in commands}
        for run in range(options.runs + 1):
            for key, command in commands.items():
                shutil.rmtree(folder / "runs", ignore_errors=True)
                spent = seconds(command, folder)
                if run:
                    times[key].append(spent)
            print(f"run {run}/{options.runs}", flush=True)
    median = {key: statistics.median(values) for key, values in times.items()}
    result = {"benchmark": "startup", "machine": machine("cpu"), "runs": options.runs}
    for key, values in times.items():
        result[f"{key}_s"] = round(median[key], 2)
        result[f"{key}_s_max"] = round(max(values), 2)
    result["help_to_import_torch"] = round(median["help"] / median["import_torch"], 3)
    result["first_step_to_import_lightning"] = round(median["first_step"] / median["import_lightning"], 2)
    report(result)


if __name__ == "__main__":
    main()
