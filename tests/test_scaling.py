"""Several processes are one: the same weights, one stop for all, under every launcher; SLURM is played by a script."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from amr.cli import main
from amr.evaluation.table import read_rows
from tests.conftest import REPOSITORY
from tests.faults import callback, environment
from tests.ranks import free_port

pytestmark = pytest.mark.filterwarnings("ignore")

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
METHODS = {
    "naive": [],
    "ogm": ["--model.ogm.alpha", "0.5"],
    "umt": ["--model.umt.features_weight", "5"],
    "amr": ["--model.amr.momentum", "0.5", "--model.amr.lr", "0.2"],
}
PLAIN = {
    "audio": {"class_path": "tests.ranks.Plain"},
    "video": {"class_path": "tests.ranks.Plain", "init_args": {"channels": 2}},
}


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return state


def assert_close(a: Path, b: Path, atol: float = 1e-6) -> None:
    theirs = weights(b)
    for key, value in weights(a).items():
        # What is logged only: sums of logarithms of shares, which are further from each other than the weights.
        allowed = 1e-4 if atol and ".measures." in key else atol
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=allowed, msg=key)


def make_scontrol(folder: Path) -> Path:
    """A folder with a `scontrol` that writes down its arguments, and fails where told to."""
    script = folder / "bin/scontrol"
    script.parent.mkdir()
    denied = '[ -z "$DENIED" ] || { echo "$DENIED" >&2; exit 1; }'
    script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/called\n{denied}\n')
    script.chmod(0o755)
    return script.parent


def two(common: list[str]) -> list[str]:
    """The same global batches, by two processes."""
    return [*common, "--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.init_args.batch_size", "4"]


@pytest.fixture(scope="module")
def common(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    folder = tmp_path_factory.mktemp("scaling")
    model = ["--model.encoders", json.dumps(PLAIN)]
    return ["fit", *tiny, *model, "--runs_dir", str(folder), "--wandb", "disabled", "--trust", "tests"], folder


@pytest.fixture(scope="module")
def ranks(common: tuple[list[str], Path]) -> tuple[Path, list[list[int]]]:
    """Each method by one process and by two, which also meet a signal and a NaN of rank 1's alone."""
    command, folder = common
    teachers = {}
    for name, encoder in PLAIN.items():
        run = [*command, "--model.encoders", json.dumps({name: encoder}), "--name", name, "--trainer.max_epochs", "1"]
        assert main(run) == 0
        teachers[name] = str(folder / name / "checkpoints/best.ckpt")
    methods = {**METHODS, "umt": [*METHODS["umt"], "--model.umt.teachers", json.dumps(teachers)]}
    for name, method in methods.items():
        assert main([*command, *method, "--name", name]) == 0
    commands = [[*two(command), *method, "--name", f"{name}-2"] for name, method in methods.items()]
    for name, fault in (
        ("signal", callback("Signal", hook="on_train_batch_start", call=3, rank=1, number=10)),
        ("nan", callback("NotFinite", call=3, rank=1)),
    ):
        again = ["--ckpt_path", "last" if name == "signal" else str(folder / name / "checkpoints/last-good.ckpt")]
        commands += [[*two(command), *METHODS["amr"], "--name", name, *more] for more in ([fault], again)]
    measure = ["test", "--trust", "tests", "--ckpt_path", str(folder / "naive/checkpoints/best.ckpt")]
    measure += ["--robustness.test", "true"]
    assert main([*measure, "--robustness.resamples", "20"]) == 0
    (folder / "naive/robustness.parquet").rename(folder / "naive/robustness-1.parquet")
    commands.append([*two(measure), "--robustness.resamples", "20"])
    (folder / "commands.json").write_text(json.dumps(commands))
    launch = [sys.executable, "-m", "tests.commands", str(folder)]  # which Lightning starts again as the second rank
    slurm = {"PATH": f"{make_scontrol(folder)}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
    done = subprocess.run(launch, env=environment(**slurm), cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "said").write_text(done.stderr)
    assert done.stdout.count("group open at exit: False") == 2
    return folder, [json.loads((folder / f"statuses-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_equal_one(ranks: tuple[Path, list[list[int]]], method: str) -> None:
    folder, statuses = ranks
    assert [status[:4] for status in statuses] == [[0] * 4] * 2
    assert_close(folder / method, folder / f"{method}-2")


def test_two_processes_measure_robustness_as_one_does(ranks: tuple[Path, list[list[int]]]) -> None:
    folder, statuses = ranks
    assert [status[8:] for status in statuses] == [[0], [0]]
    one, two = (read_rows(folder / f"naive/robustness{suffix}.parquet") for suffix in ("-1", ""))
    assert [row.name for row in one] == [row.name for row in two]
    for mine, theirs in zip(one, two, strict=True):
        for key in ("value", "low", "high", "clips"):
            assert getattr(mine, key) == pytest.approx(getattr(theirs, key), abs=1e-5), (mine.name, key)


def test_what_one_rank_meets_stops_all(ranks: tuple[Path, list[list[int]]]) -> None:
    """At one step, with one line, and the resumed run ends as one that met nothing."""
    folder, statuses = ranks
    assert [status[4:8] for status in statuses] == [[138, 0, 2, 0], [0, 0, 0, 0]]  # the first rank speaks for all
    lines = [line for line in (folder / "said").read_text().splitlines() if line.startswith("amr: ")]
    assert lines[0] == "amr: stopped by SIGUSR1 at epoch 0, step 3; go on with --ckpt_path last"
    assert lines[1] == "amr: job 4711 requeued"
    assert (folder / "called").read_text() == "requeue 4711\n"  # once
    assert "the loss is not finite at epoch 0, step 2, in the batch of " in lines[2]
    assert len(lines) == 3
    assert_close(folder / "amr", folder / "signal")
    assert_close(folder / "amr", folder / "nan")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_results_do_not_depend_on_loader_processes(common: tuple[list[str], Path], workers: str) -> None:
    command, folder = common
    short = [*command, "--trainer.max_epochs", "1", "--data.init_args.num_workers"]
    if not (folder / "workers-0").exists():
        assert main([*short, "0", "--name", "workers-0"]) == 0
    assert main([*short, workers, "--name", f"workers-{workers}"]) == 0
    assert_close(folder / "workers-0", folder / f"workers-{workers}", atol=0)


def test_torchrun_is_preempted_and_goes_on_on_two_nodes(ranks: tuple[Path, list[list[int]]], common: Any) -> None:
    """SIGTERM to torchrun, which hands it on; then a torchrun a node, each with one process."""
    command, folder = common
    command = [str(REPOSITORY / "train.py"), *two(command), *METHODS["amr"], "--name", "torchrun"]
    launch = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", *command, callback("Slow")]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(launch, env=environment(), cwd=REPOSITORY, **pipes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "step 2" in line:
                process.send_signal(signal.SIGTERM)
                break
        said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert said.count("amr: stopped by SIGTERM at epoch ") == 1, said[-3000:]
    rendezvous = ["--master_addr", "127.0.0.1", "--master_port", free_port()]
    spread = ["--trainer.devices", "1", "--trainer.num_nodes", "2", "--ckpt_path", "last"]
    nodes = [
        subprocess.Popen(
            [*TORCHRUN, "--nnodes", "2", "--node_rank", rank, *rendezvous, *command, *spread],
            env=environment(),
            cwd=REPOSITORY,
            **pipes,
        )
        for rank in "01"
    ]
    for node in nodes:
        errors = node.communicate(timeout=120)[1]
        assert node.returncode == 0, errors[-3000:]
    assert_close(ranks[0] / "amr", folder / "torchrun")


# --------------------------------------------------------------------------------------------------------------- SLURM


@pytest.fixture
def scontrol(tmp_path: Path) -> Path:
    return make_scontrol(tmp_path)


def slurm(path: Path, more: dict[str, str]) -> dict[str, str]:
    variables = {"JOB_ID": "4711", "JOB_NAME": "train", "NTASKS": "1", "NTASKS_PER_NODE": "1", "NNODES": "1"}
    variables |= {"PROCID": "0", "LOCALID": "0", "NODEID": "0", "NODELIST": "127.0.0.1"}
    return {"PATH": f"{path}:{os.environ['PATH']}", **{f"SLURM_{k}": v for k, v in (variables | more).items()}}


CASES = {
    "job": ({}, "requeue 4711\n", "amr: job 4711 requeued"),
    "array": ({"ARRAY_JOB_ID": "40", "ARRAY_TASK_ID": "7"}, "requeue 40_7\n", "amr: job 40_7 requeued"),
    "interactive": ({"JOB_NAME": "bash"}, "", "stopped by SIGUSR1"),
}


@pytest.mark.parametrize("case", CASES)
def test_slurm_requeues_at_sigusr1(
    case: str, common: Any, scontrol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The script's one command begins, goes on and ends; Lightning's own checkpoints for SLURM play no part."""
    more, called, last = CASES[case]
    for key, value in slurm(scontrol, more).items():
        monkeypatch.setenv(key, value)
    command = [*common[0], "--runs_dir", str(tmp_path), "--name", "job", "--ckpt_path", "last"]
    assert main([*command, callback("Signal", hook="on_before_backward", call=3, number=10)]) == 138
    assert (tmp_path / "called").read_text() == called if called else not (tmp_path / "called").exists()
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("amr: ")][-1].startswith(
        last if case != "interactive" else "amr: stopped by SIGUSR1"
    )
    assert main(command) == 0
    assert torch.load(tmp_path / "job/checkpoints/last.ckpt", weights_only=True)["epoch"] == 1
    assert not list(tmp_path.rglob("hpc_ckpt*"))


def test_the_sbatch_script(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell takes it, and `amr fit` takes its command."""
    script = REPOSITORY / "examples/train.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert "#SBATCH --signal=USR1@300" in text
    command = shlex.split(text.replace("\\\n", " ").partition("srun amr ")[2].replace("gpu", "cpu"))
    assert command[-2:] == ["--ckpt_path", "last"]
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as done:
        main([*command, "--print_config"])
    assert done.value.code == 0
    assert "num_nodes: 2" in capsys.readouterr().out


def test_slurm_sigterm_and_refusals(
    common: Any, scontrol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for key, value in slurm(scontrol, {}).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("DENIED", "Access denied")
    command = [*common[0], "--runs_dir", str(tmp_path), "--ckpt_path", "last"]
    fault = {"hook": "on_before_backward", "call": 3}
    assert main([*command, "--name", "a", callback("Signal", **fault, number=15)]) == 143
    assert not (tmp_path / "called").exists()
    assert main([*command, "--name", "b", callback("Signal", **fault, number=10)]) == 138
    assert "amr: job 4711 could not be requeued: Access denied" in capsys.readouterr().err
