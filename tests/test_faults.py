"""Whatever ends a run, it goes on as if nothing had been: kill -9, signals, NaN, a full disk, no W&B."""

import csv
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from amr.cli import main
from tests.faults import callback, run_each

pytestmark = pytest.mark.filterwarnings("ignore")

METHODS = ["--model.amr.momentum", "0.9", "--model.dropout.p", "0.5", "--model.modality_dropout.p", "0.3"]
BATCHES, EPOCHS = 6, 2
TIMES = {  # how often a hook is called in a run; the sanity check's validation counts, too
    "on_train_batch_start": BATCHES * EPOCHS,
    "on_before_backward": BATCHES * EPOCHS,
    "on_before_optimizer_step": BATCHES * EPOCHS,
    "on_train_batch_end": BATCHES * EPOCHS,
    "on_validation_batch_start": 1 + EPOCHS,
    "on_validation_end": 1 + EPOCHS,
    "on_train_epoch_start": EPOCHS,
    "on_train_epoch_end": EPOCHS,
}
PLACES = 7
SEED = int(os.environ.get("AMR_FAULTS_SEED", "0"))


def places() -> dict[str, str]:
    """Seven places for a kill: three that must be among them, and others by chance, each in a hook of its own."""
    chance = random.Random(SEED)
    chosen = {
        "between epochs": callback("Signal", hook="on_train_epoch_start", call=2),
        "in validation": callback("Signal", hook="on_validation_batch_start", call=2),
        "in a checkpoint": callback("HalfACheckpoint", call=chance.randint(1, (BATCHES + 1) * EPOCHS)),
    }
    for hook in chance.sample(sorted(TIMES), PLACES - len(chosen)):
        call = chance.randint(1, TIMES[hook])
        chosen[f"{hook} {call}"] = callback("Signal", hook=hook, call=call)
    return chosen


SIGNALS = {
    "within an epoch": (signal.SIGTERM, callback("Signal", hook="on_before_backward", call=3, number=15)),
    "by Ctrl-C": (signal.SIGINT, callback("Signal", hook="on_train_batch_start", call=3, number=2)),
    "by a closed terminal": (signal.SIGHUP, callback("Signal", hook="on_before_optimizer_step", call=3, number=1)),
    "after the last batch": (signal.SIGTERM, callback("Signal", hook="on_train_batch_end", call=BATCHES, number=15)),
    "in validation": (signal.SIGUSR1, callback("Signal", hook="on_validation_batch_start", call=2, number=10)),
    "in the sanity check": (signal.SIGTERM, callback("Signal", hook="on_sanity_check_start", call=1, number=15)),
    "accumulating": (signal.SIGTERM, callback("Signal", hook="on_train_batch_start", call=3, number=15)),
}
ACCUMULATE = ["--trainer.accumulate_grad_batches", "2"]


@pytest.fixture(scope="module")
def common(tiny: list[str]) -> list[str]:
    """A run with all randomness on: augmentation, both dropouts, AMR's momentum."""
    return ["fit", *tiny, *METHODS, "--trainer.max_epochs", str(EPOCHS), "--wandb", "disabled"]


@pytest.fixture(scope="module")
def faults(common: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Every run that is broken off and resumed, and what became of each of the two."""
    folder = tmp_path_factory.mktemp("faults")
    print(f"seed {SEED}: {', '.join(places())}")

    def commands(name: str, fault: str, *more: str) -> list[list[str]]:
        command = [*common, "--runs_dir", str(folder), "--name", name, *more]
        return [[*command, fault], [*command, "--ckpt_path", "last"]]

    chains = {"whole": [[*common, "--runs_dir", str(folder), "--name", "whole"]]}
    chains["whole-2"] = [[*common, "--runs_dir", str(folder), "--name", "whole-2", *ACCUMULATE]]
    for number, fault in enumerate(places().values()):
        chains[f"kill-{number}"] = commands(f"kill-{number}", fault, "--last.every_n_train_steps", "1")
    for number, (case, (_, fault)) in enumerate(SIGNALS.items()):
        chains[f"signal-{number}"] = commands(
            f"signal-{number}", fault, *(ACCUMULATE if case == "accumulating" else [])
        )
    for name, more in (("nan", []), ("nan-2", ACCUMULATE)):
        chains[name] = commands(name, callback("NotFinite", call=10), *more)
        chains[name][1][-1] = str(folder / name / "checkpoints/last-good.ckpt")
    chains["online"] = [[*common, "--runs_dir", str(folder), "--name", "online", "--wandb", "online"]]
    closed = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "3"}
    return folder, dict(zip(chains, run_each(list(chains.values()), folder, **closed), strict=True))


def epoch_rows(run: Path) -> dict[tuple[int, str], float]:
    """Validation's metrics by epoch, over all starts of a run."""
    rows: dict[tuple[int, str], float] = {}
    for file in sorted(run.glob("metrics/version_*/metrics.csv")):
        for row in csv.DictReader(file.open()):
            rows.update({(int(row["epoch"]), k): float(v) for k, v in row.items() if v and k.startswith("val/")})
    return rows


def assert_same_run(folder: Path, name: str, whole: str = "whole") -> None:
    for file in ("last", "best"):
        a, b = (torch.load(folder / run / f"checkpoints/{file}.ckpt", weights_only=True) for run in (whole, name))
        assert (a["global_step"], a["epoch"]) == (b["global_step"], b["epoch"])
        for key, value in a["state_dict"].items():
            assert torch.equal(value, b["state_dict"][key]), key
    assert epoch_rows(folder / name) == epoch_rows(folder / whole)
    assert not list((folder / name).rglob("*.tmp"))


@pytest.mark.parametrize("number", range(PLACES))
def test_killed_anywhere(faults: tuple[Path, dict[str, Any]], number: int) -> None:
    folder, outcomes = faults
    (killed, _), (resumed, errors) = outcomes[f"kill-{number}"]
    assert killed == -signal.SIGKILL, list(places())[number]
    assert resumed == 0, errors[-2000:]
    assert_same_run(folder, f"kill-{number}")


@pytest.mark.parametrize("case", SIGNALS)
def test_signals_end_in_order(faults: tuple[Path, dict[str, Any]], case: str) -> None:
    folder, outcomes = faults
    name = f"signal-{list(SIGNALS).index(case)}"
    (status, said), (resumed, errors) = outcomes[name]
    assert status == 128 + SIGNALS[case][0]
    steps = {"within an epoch": 3, "by Ctrl-C": 3, "by a closed terminal": 4, "accumulating": 2}
    step = {**steps, "in the sanity check": 1}.get(case, BATCHES)
    epoch = 1 if step == BATCHES else 0
    (line,) = (line for line in said.splitlines() if line.startswith("amr: "))
    name_of = signal.Signals(SIGNALS[case][0]).name
    assert line == f"amr: stopped by {name_of} at epoch {epoch}, step {step}; go on with --ckpt_path last"
    assert resumed == 0, errors[-2000:]
    assert_same_run(folder, name, "whole-2" if case == "accumulating" else "whole")


@pytest.mark.parametrize("name", ["nan", "nan-2"])
def test_a_loss_that_is_not_finite(faults: tuple[Path, dict[str, Any]], name: str) -> None:
    """The step is not taken, the batch is named, and what was saved is as good as never having met it."""
    folder, outcomes = faults
    (status, said), (resumed, errors) = outcomes[name]
    assert status == 2, said[-3000:]
    (line,) = (line for line in said.splitlines() if line.startswith("amr: "))
    step = 9 if name == "nan" else 4
    assert f"the loss is not finite at epoch 1, step {step}, in the batch of " in line
    ids = line.partition("in the batch of ")[2].partition(";")[0].split(", ")
    assert len(set(ids)) == 8
    assert resumed == 0, errors[-2000:]
    good = torch.load(folder / name / "checkpoints/last-good.ckpt", weights_only=True)
    assert good["global_step"] == step
    assert_same_run(folder, name, "whole" if name == "nan" else "whole-2")


def test_full_disk(common: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "save", torch.save)  # is put back
    command = [*common, "--runs_dir", str(tmp_path), "--name", "full"]
    assert main([*command, callback("HalfACheckpoint", call=4, then="full")]) == 2  # best and last, twice
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("amr: "))
    assert "full/checkpoints/last.ckpt: No space left on device" in line
    files = sorted(path.name for path in (tmp_path / "full/checkpoints").iterdir())
    assert files == ["best.ckpt", "last.ckpt"]
    assert torch.load(tmp_path / "full/checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    assert main([*command, "--ckpt_path", "last"]) == 0


def test_full_file_system(common: list[str], tmp_path: Path, capsys: Any) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]).returncode:
        pytest.skip("a file system may not be mounted here")
    try:
        command = [*common, "--runs_dir", str(place), "--name", "full"]
        assert main([*command, callback("FillDisk", call=2, folder=str(place))]) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("amr: "))
        assert "No space left on device" in line
        assert str(place / "full") in line
        assert not list(place.rglob("*.tmp"))
        assert torch.load(place / "full/checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
        (place / "filler").unlink()
        assert main([*command, "--ckpt_path", "last"]) == 0
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_wandb_out_of_reach(faults: tuple[Path, dict[str, Any]]) -> None:
    """A closed port of this machine: refused in one line at the start, with what to do, and nothing trained."""
    folder, outcomes = faults
    ((status, errors),) = outcomes["online"]
    assert status == 2, errors[-3000:]
    (line,) = (line for line in errors.splitlines() if line.startswith("amr: "))
    assert "127.0.0.1:9" in line
    assert line.endswith("--wandb offline keeps the record here, for wandb sync")
    assert not (folder / "online/run.json").exists()
