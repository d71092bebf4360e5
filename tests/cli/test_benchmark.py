"""The grid: what is trained in which order, what is recognised as finished, and what survives kill -9."""

import fcntl
import inspect
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import yaml

from amr.callbacks import Dominance
from amr.cli import main
from amr.cli.benchmark.cell import cell_process
from amr.cli.benchmark.grid import Grid
from amr.cli.benchmark.plan import Cell, Row, fingerprint, make_cells, read_grid
from amr.cli.benchmark.times import busy_seconds, time_left
from amr.cli.benchmark.tuning import read_tuning, tuned
from amr.regularizers import AMR
from amr.report import read_run, table_text
from amr.utils.errors import UserError
from tests.cli.cells import finish
from tests.conftest import REPOSITORY
from tests.processes import other_process_holds

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own


def fake_cell(task: dict[str, Any], log: Path, environment: dict[str, str], folder: Path, act: str = "work") -> None:
    """What a cell's process leaves, without training: `act` says how it ends."""
    cell_process(task, log, environment, folder, partial(fake_run, act))


def fake_run(act: str, task: dict[str, Any]) -> int:
    folder = Path(task["folder"])
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    print("working on it")
    match act:
        case "raise":
            raise MemoryError("no room")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            (folder / "hangs").write_text(str(os.getpid()))
            time.sleep(600)
    # Of a row's trials, the last but one is the best on validation; the test split would choose the first.
    trial = {"0": 0.3, "1": 0.6, "2": 0.2}.get(task["facts"]["row"].rpartition(".")[2], 0.5)
    finish(task, trial)
    return 0


def fake_process(process: Any, act: str) -> ForkServerProcess:
    """A cell's process, not started, that does what `act` says."""
    fake: ForkServerProcess = multiprocessing.get_context("forkserver").Process(
        target=fake_cell, args=(*process._args, act)
    )
    return fake


class Here:
    """Stands in for a cell's process: what it does happens here, when it is started."""

    def __init__(self, task: dict[str, Any], act: str = "work") -> None:
        self.task, self.act, self.exitcode = task, act, 0

    def start(self) -> None:
        try:
            fake_run(self.act, self.task)
        except MemoryError:
            self.exitcode = 1


class FakeGrid(Grid):
    """A grid whose cells do what `acts` says, by row, and whose starts are counted."""

    def __init__(self, cells: Sequence[Cell], out: Path, acts: dict[str, str] | None = None, jobs: int = 1) -> None:
        (out / "cells").mkdir(parents=True, exist_ok=True)
        super().__init__(cells, out, jobs, command="amr benchmark")
        self.acts, self.started = acts or {}, list[str]()

    def process(self, cell: Cell) -> ForkServerProcess:
        self.started.append(cell.name)
        return fake_process(super().process(cell), self.acts.get(cell.row.name, "work"))


ROWS = [
    Row("audio", ("--audio",), unimodal=True),
    Row("naive", ()),
    Row("umt", ("--umt",), teachers="model.umt.teachers"),
]


def resolve(arguments: Sequence[str]) -> dict[str, Any]:
    return {"model": {"arguments": [a for a in arguments if "seed" not in a]}, "trainer": {"max_epochs": 2}}


def cells_of(rows: Sequence[Row] = ROWS, seeds: Sequence[int] = (0, 1), **options: Any) -> list[Cell]:
    return make_cells(rows, seeds, ["--common"], resolve, **options)


def names(cells: Sequence[Cell]) -> list[str]:
    return [cell.name for cell in cells]


# --------------------------------------------------------------------------------------------------------- the plan


def test_unimodal_cells_come_first_and_then_seed_by_seed() -> None:
    cells = cells_of()
    assert names(cells) == ["audio-s0", "audio-s1", "naive-s0", "umt-s0", "naive-s1", "umt-s1"]
    assert [names(list(cell.teachers.values())) for cell in cells] == [[], [], [], ["audio-s0"], [], ["audio-s1"]]


def test_only_restricts_the_rows_but_for_teachers() -> None:
    assert names(cells_of(only=["naive"])) == ["naive-s0", "naive-s1"]
    assert names(cells_of(only=["umt"], seeds=[3])) == ["audio-s3", "umt-s3"]
    with pytest.raises(UserError, match="--only=amr: must be one of audio, naive, umt"):
        cells_of(only=["amr"])


def test_rows_of_one_configuration_are_refused() -> None:
    with pytest.raises(UserError, match="other-s0: its configuration is that of naive-s0"):
        cells_of([*ROWS, Row("other", ())])


def test_the_hash_is_of_what_decides_the_result() -> None:
    before = {cell.name: cell.hash for cell in cells_of()}
    assert len(set(before.values())) == 6
    renamed = {cell.name: cell.hash for cell in cells_of([ROWS[0], Row("plain", ()), ROWS[2]])}
    assert renamed == {name.replace("naive", "plain"): value for name, value in before.items()}
    retaught = {cell.name: cell.hash for cell in cells_of([Row("audio", ("--other",), True), *ROWS[1:]])}
    assert {name for name in before if retaught[name] != before[name]} == {"audio-s0", "audio-s1", "umt-s0", "umt-s1"}


@pytest.mark.parametrize(("part", "counted"), [(AMR, 10), (Dominance, 3)])
def test_later_options_are_off_by_null(part: Any, counted: int) -> None:
    """So a grid that is trained already keeps its hashes."""
    parameters = list(inspect.signature(part).parameters.values())
    assert all(parameter.default is None for parameter in parameters[counted:])


def test_the_fingerprint_of_a_configuration() -> None:
    def config(**changes: Any) -> dict[str, Any]:
        data = {"root": "r", "num_workers": 2, "store": None, "batch_size": 8}
        model = {"encoders": {"a": {"class_path": "A"}, "v": {"class_path": "V"}}, "amr": None}
        return {"seed_everything": 0, "name": "x", "model": model, "data": {"init_args": {**data, **changes}}}

    first = fingerprint(config(), {})
    without = config(num_workers=0, store="elsewhere") | {"name": "y", "runs_dir": "z"}
    without["model"]["umt"] = None  # a slot of a later version
    assert fingerprint(without, {}) == first
    swapped = config()
    swapped["model"]["encoders"] = dict(reversed(swapped["model"]["encoders"].items()))
    others = [config(batch_size=4), config(root="s"), config() | {"seed_everything": 1}, swapped]
    assert len({first, fingerprint(config(), {"a": "teacher"}), *(fingerprint(other, {}) for other in others)}) == 6


def write_grid(folder: Path, **keys: Any) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


BAD_GRIDS: list[tuple[dict[str, Any], str]] = [
    ({}, "methods: missing; must be among base, unimodal, ensembles, methods, amr, teachers, tuning"),
    ({"methods": {"naive": []}, "method": {}}, "method: unknown key; must be among base"),
    (
        {"methods": {"naive": "x.yaml"}},
        "methods.naive: must be a list of configurations (files or names) and --key=value",
    ),
    ({"methods": {"naive": ["nowhere.yaml"]}}, "methods.naive=nowhere.yaml: no such file"),
    ({"methods": {"naive": []}, "amr": ["--model.amr.lr"]}, "amr: --model.amr.lr: must be --key=value"),
    ({"methods": {"a/b": []}}, "methods='a/b': must be letters"),
    ({"methods": {"audio": []}, "unimodal": {"audio": []}}, "methods: 'audio' is in `unimodal`, too"),
    ({"methods": {"umt": []}, "teachers": {"umt": "model.umt.teachers"}}, "teachers.umt='model.umt.teachers': must be"),
]


@pytest.mark.parametrize(("keys", "message"), BAD_GRIDS)
def test_bad_grids(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path = write_grid(tmp_path, **keys)
    with pytest.raises(UserError) as refused:
        read_grid(path)
    assert str(refused.value).startswith(f"{path}: {message}")


def test_every_benchmark_file_lists_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    files = sorted(Path("configs/benchmarks").glob("*.yaml"))
    assert files
    for file in files:
        _, rows = read_grid(file)
        fused = [row.name for row in rows if not row.unimodal and not row.ensemble]
        assert fused[:2] == ["naive", "naive+amr"]
        assert fused[1::2] == [f"{name}+amr" for name in fused[::2]]


# --------------------------------------------------------------------------------------------- ensembles and tuning


def test_an_ensemble_is_made_of_the_unimodal_runs_of_its_seed(tmp_path: Path) -> None:
    rows = [ROWS[0], Row("video", ("--video",), unimodal=True), Row("both", (), ensemble="probabilities"), ROWS[1]]
    cells = cells_of(rows, only=["both"])
    assert names(cells) == ["audio-s0", "video-s0", "audio-s1", "video-s1", "both-s0", "both-s1"]
    cell, other = cells[4:]
    assert names([*cell.teachers.values()]) == ["audio-s0", "video-s0"]
    assert (cell.kind, cell.hash != other.hash) == ("ensemble", True)
    grid = Grid(cells, tmp_path)
    best = [str(grid.best(member)) for member in cells[:2]]
    assert grid.task(cell)["fit"][:3] == ["ensemble", *best]
    grid.folder(cell).mkdir(parents=True)
    (grid.folder(cell) / "run.json").write_text("{}")
    assert grid.task(cell)["fit"] == []  # whole, but perhaps not yet tested
    logits = cells_of([*rows[:2], Row("both", (), ensemble="logits")], only=["both"])
    assert logits[4].hash != cell.hash


def test_validation_chooses_each_rows_candidate_and_its_trial_is_the_first_seeds_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The unimodal rows are tuned first, and their best teach; a second start trains nothing."""
    started: list[str] = []

    def process(self: Grid, cell: Cell) -> Here:
        started.append(cell.name)
        assert all("--lr=1" in teacher.arguments for teacher in cell.teachers.values())
        return Here(self.task(cell))

    monkeypatch.setattr(Grid, "process", process)
    monkeypatch.setattr("amr.cli.benchmark.command.resolver", lambda: resolve)
    monkeypatch.setattr("amr.cli.benchmark.command.check_cells", lambda cells: None)
    monkeypatch.setattr("amr.cli.benchmark.command.prepare_stores", lambda cells: None)
    keys: dict[str, Any] = {
        "unimodal": {"audio": ["--m=a"], "video": ["--m=v"]},
        "methods": {"naive": [], "umt": ["--u=1"]},
    }
    tuning = {"all": [[], ["--lr=1"], ["--lr=2"]], "umt": [[], ["--lr=1", "--w=1"], ["--w=2"]]}
    file = write_grid(tmp_path, **keys, tuning=tuning)
    command = ["benchmark", "--config", str(file), "--data", "synthetic", "--out", str(tmp_path / "out"), "--jobs", "4"]
    assert main([*command, "--seeds", "0", "1"]) == 0
    trials = {f"{name}.{n}-s0" for name in ("audio", "video", "naive", "umt") for n in range(3)}
    assert set(started) == trials | {"audio-s1", "video-s1", "naive-s1", "umt-s1"}
    assert len(started) == 16
    record = json.loads((tmp_path / "out/tuning.json").read_text())
    assert {name: entry["chosen"] for name, entry in record.items()} == dict.fromkeys(
        ("audio", "video", "naive", "umt"), 1
    )
    assert record["umt"] == {"candidates": tuning["umt"], "val/acc": [0.3, 0.6, 0.2], "chosen": 1}
    facts = json.loads((tmp_path / "out/grid.json").read_text())
    assert (facts["cells"], facts["finished"]) == (8, 8)
    started.clear()
    assert main([*command, "--seeds", "0", "1"]) == 0
    assert started == []
    capsys.readouterr()
    assert main([*command, "--seeds", "0", "1", "--dry_run"]) == 0
    assert capsys.readouterr().out.endswith("8/8 cells finished\n")


def test_a_trial_that_fails_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def process(self: Grid, cell: Cell) -> Here:
        return Here(self.task(cell), "raise" if cell.row.name == "naive.1" else "work")

    def train(rows: Sequence[Row]) -> Grid:
        grid = Grid(cells_of(rows, seeds=(0,)), tmp_path, jobs=3, tables=False)
        grid.run()
        return grid

    monkeypatch.setattr(Grid, "process", process)
    (tmp_path / "cells").mkdir()

    (chosen,) = tuned([ROWS[1]], {"naive": [("--lr=0",), ("--lr=1",), ("--lr=2",)]}, train)
    assert (chosen.name, chosen.arguments) == ("naive", ("--lr=0",))


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"all": [[], ["--a=1"]], "naive": [[]]}, "tuning.naive: 1 candidates, all has 2; must be as many"),
        ({"nave": [[]]}, "tuning.nave: no such row; must be among all, amr, naive"),
        ({"naive": [[]]}, "tuning: no candidates for amr; must have `all` or a list for each row"),
        ({"all": ["--a=1"]}, "tuning.all: must be a list of candidates"),
        ([], "tuning=[]: must be `all` or names of rows"),
    ],
)
def test_an_unequal_budget_is_refused(tmp_path: Path, tuning: Any, message: str) -> None:
    path = write_grid(tmp_path, methods={"naive": [], "amr": ["--b=1"]}, tuning=tuning)
    _, rows = read_grid(path)
    with pytest.raises(UserError) as refused:
        read_tuning(path, rows)
    assert str(refused.value).startswith(f"{path}: {message}")


def test_a_row_with_amr_has_the_candidates_of_the_row_without(tmp_path: Path) -> None:
    path = write_grid(
        tmp_path, methods={"naive": [], "umt": []}, amr=["--b=1"], tuning={"all": [[]], "umt": [["--w=1"]]}
    )
    _, rows = read_grid(path)
    given = read_tuning(path, rows)
    assert given == {"naive": [()], "naive+amr": [()], "umt": [("--w=1",)], "umt+amr": [("--w=1",)]}


# ------------------------------------------------------------------------------------------------------- scheduling


def test_one_failure_stops_only_what_it_would_have_taught(tmp_path: Path) -> None:
    grid = FakeGrid(cells_of(), tmp_path, {"audio": "die"}, jobs=2)
    grid.run()
    assert sorted(names(list(grid.records))) == ["naive-s0", "naive-s1"]
    reasons = {cell.name: reason for cell, reason in grid.failed.items()}
    assert reasons["audio-s0"] == "killed by SIGKILL (out of memory?); working on it"
    assert reasons["umt-s1"] == "skipped: its teacher audio-s1 failed"
    assert sorted(grid.started) == ["audio-s0", "audio-s1", "naive-s0", "naive-s1"]
    facts = json.loads((tmp_path / "grid.json").read_text())
    assert (facts["cells"], facts["finished"]) == (6, 2)
    assert facts["seconds_a_run"] == {"median": 10, "max": 10, "runs": 2}
    assert {name: run.rpartition("-")[0] for name, run in facts["runs"].items()} == {
        "naive-s0": "naive-s0",
        "naive-s1": "naive-s1",
    }

    again = FakeGrid(cells_of(), tmp_path, {"naive": "raise"})
    again.run()
    assert again.started == ["audio-s0", "audio-s1", "umt-s0", "umt-s1"]
    assert not again.failed


def test_the_last_line_of_the_log_is_the_reason(tmp_path: Path) -> None:
    grid = FakeGrid(cells_of(only=["naive"], seeds=[0]), tmp_path, {"naive": "raise"})
    grid.run()
    assert list(grid.failed.values()) == ["MemoryError: no room"]
    grid.write(page=True)  # of nothing


def test_finished_cells_are_known_by_their_configuration(tmp_path: Path) -> None:
    FakeGrid(cells_of(seeds=[0]), tmp_path).run()
    renamed = [ROWS[0], Row("plain", ()), ROWS[2]]
    changed = [*renamed[:2], Row("umt", ("--umt", "--more"), teachers="model.umt.teachers")]
    for rows, seeds, expected in (
        (renamed, [0], []),
        (renamed, [0, 1], ["audio-s1", "plain-s1", "umt-s1"]),
        (changed, [0, 1], ["umt-s0", "umt-s1"]),
    ):
        grid = FakeGrid(cells_of(rows, seeds), tmp_path)
        grid.run()
        assert grid.started == expected
    runs = [grid.folder(cell) for cell in grid.cells]
    assert len({run.name for run in tmp_path.glob("runs/*")} - {run.name for run in runs}) == 2  # the older umt's
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "results.parquet")["run"].to_pylist() == [str(run) for run in runs]
    assert not FakeGrid(cells_of(changed), tmp_path).waiting
    grid.best(grid.cells[0]).unlink()  # a record without its run is none
    assert names(FakeGrid(cells_of(changed), tmp_path).waiting) == ["audio-s0"]


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_the_grid_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, status: int
) -> None:
    def process(self: Grid, cell: Cell) -> ForkServerProcess:
        return fake_process(real(self, cell), "hang" if cell.row.name == "naive+amr" else "work")

    real = Grid.process
    monkeypatch.setattr(Grid, "process", process)
    monkeypatch.setattr("amr.cli.benchmark.command.resolver", lambda: resolve)
    monkeypatch.setattr("amr.cli.benchmark.command.check_cells", lambda cells: None)
    monkeypatch.setattr("amr.cli.benchmark.command.prepare_stores", lambda cells: None)
    grid = write_grid(tmp_path, methods={"naive": []}, amr=["--model.amr.weight=1"])
    pids: list[int] = []

    def send() -> None:
        file = wait_for(lambda: list(tmp_path.glob("out/runs/*/hangs")))[0]
        pids.append(int(wait_for(file.read_text)))
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    before = signal.getsignal(number)
    out = ["--out", str(tmp_path / "out"), "--seeds", "0"]
    assert main(["benchmark", "--config", str(grid), "--data", "synthetic", *out]) == status
    thread.join()
    assert signal.getsignal(number) is before
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    assert "benchmark: stopped, 1/2 cells" in (said := capsys.readouterr().err)
    assert said.rstrip().endswith("the same command resumes")
    assert "| naive " in (tmp_path / "out/table.md").read_text()


def test_time_left() -> None:
    seconds = {"unimodal": [10.0, 20.0], "fusion": [40.0]}
    assert time_left({}, ["fusion"], [], 1) is None
    assert time_left(seconds, ["unimodal", "fusion"], [("fusion", 30.0)], 1) == 15 + 40 + 10
    assert time_left(seconds, ["unimodal", "fusion"], [("fusion", 30.0)], 2) == 40  # one cell is never shared
    assert time_left({"unimodal": [10.0]}, ["fusion"] * 6, [("unimodal", 99.0)], 2) == 30
    assert time_left(seconds, [], [], 2) == 0


def test_busy_seconds() -> None:
    assert busy_seconds([]) == 0
    assert busy_seconds([(20, 30), (0, 10), (5, 12), (6, 7)]) == 22


# ---------------------------------------------------------------------------------------------------- the real thing

AUDIO = "--model.encoders={audio: {class_path: amr.encoders.SmallCNN, init_args: {width: 4, out_dim: 8}}}"
UNIMODAL = {"audio": [AUDIO, "--data.init_args.modalities=[audio]"]}
EPOCHS = 5


@pytest.fixture
def command(tiny: list[str], tmp_path: Path) -> list[str]:
    (tmp_path / "amr.yaml").write_text("model: {amr: {weight: 1.0, momentum: 0.5}}")
    grid = write_grid(tmp_path, unimodal=UNIMODAL, methods={"naive": []}, amr=[str(tmp_path / "amr.yaml")])
    further = [*tiny[2:], f"--trainer.max_epochs={EPOCHS}"]
    options = ["--out", str(tmp_path / "out"), "--seeds", "3", "--wandb", "disabled"]
    return ["benchmark", "--config", str(grid), "--data", tiny[1], *further, *options]


def check_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("benchmark: resolving")]
    assert len(lines) == 1
    assert message in lines[0]


def test_what_is_refused_before_anything_is_made(command: list[str], tmp_path: Path, capsys: Any) -> None:
    unknown = "amr: unrecognized arguments: --seed; did you mean --seeds?; see amr benchmark --help"
    check_refused(capsys, [*command, "--seed", "1"], unknown)
    check_refused(capsys, [*command, "--jobs", "0"], "amr: --jobs=0: must be a positive number")
    check_refused(capsys, [*command, "--seeds", "-1"], "amr: --seeds=-1: must be 0 to")
    check_refused(capsys, [*command, "--data", "nowhere.yaml"], "amr: --data=nowhere.yaml: no such file")
    check_refused(capsys, [*command, "--only", "agm"], "amr: --only=agm: must be one of audio, naive, naive+amr")
    check_refused(capsys, [*command, "--wandb", "offline", "--project", "a/b"], "--project='a/b': must be letters")
    (tmp_path / "amr.yaml").write_text("model: {amr: {wait: 1.0}}")
    check_refused(capsys, command, "naive+amr: ")
    assert not (tmp_path / "out").exists()
    file = [*command, "--only", "naive", "--out", str(tmp_path / "amr.yaml")]
    check_refused(capsys, file, "amr.yaml: File exists; must be a folder that can be written")


def test_a_second_instance_is_refused(command: list[str], tmp_path: Path, capsys: Any) -> None:
    with other_process_holds(tmp_path / "out") as holder:
        said = f"{tmp_path / 'out'} is in use by process {holder} "
        check_refused(capsys, [*command, "--only", "naive", "--out", str(tmp_path / "out")], said)
    assert not (tmp_path / "out/runs").exists()


def test_dry_run_and_what_a_changed_file_trains_again(command: list[str], tmp_path: Path, capsys: Any) -> None:
    def planned() -> dict[str, str]:
        capsys.readouterr()
        assert main([*command, "--dry_run"]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("to do")]
        return {name: folder for _, _, name, folder in lines}

    before = planned()
    assert not (tmp_path / "out").exists()
    assert list(before) == ["audio-s3", "naive-s3", "naive+amr-s3"]
    (tmp_path / "amr.yaml").write_text("model: {amr: {lr: 0.2, momentum: 0.5, weight: 1}}")
    after = planned()
    assert [name for name in before if before[name] != after[name]] == ["naive+amr-s3"]


def test_a_grid_that_was_killed_ends_as_an_uninterrupted_one(command: list[str], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    command = [*command, "--only", "naive", "naive+amr"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with (tmp_path / "log").open("w") as log:
        grid = subprocess.Popen([sys.executable, str(REPOSITORY / "train.py"), *command], env=environment, stderr=log)
    try:
        wait_for(lambda: list(out.glob("runs/naive+amr-*/checkpoints/last.ckpt")) or grid.poll() is not None)
    finally:
        grid.kill()
        grid.wait()
    assert [json.loads(file.read_text())["row"] for file in out.glob("cells/*.json")] == ["naive"]

    def checkpoints(row: str) -> dict[str, tuple[int, int]]:
        files = out.glob(f"runs/{row}-s3-*/checkpoints/*.ckpt")
        return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}

    naive = checkpoints("naive")
    assert naive.keys() == {"best.ckpt", "last.ckpt"}
    (killed,) = out.glob("runs/naive+amr-*")
    with (killed / ".lock").open("a") as lock:  # the child follows its parent

        def is_free() -> bool:
            with suppress(BlockingIOError):
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        wait_for(is_free)

    assert main(command) == 0
    records = {record["row"]: record for record in (json.loads(file.read_text()) for file in out.glob("cells/*.json"))}
    assert {row: record["resumed"] for row, record in records.items()} == {"naive": False, "naive+amr": True}
    assert json.loads((out / "grid.json").read_text())["seconds_a_run"]["runs"] == 1  # the resumed one is not a whole
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert (out / "report.html").is_file()

    amr = checkpoints("naive+amr")
    assert main(command) == 0
    assert (checkpoints("naive"), checkpoints("naive+amr")) == (naive, amr)
    assert (out / "table.md").read_text() == table

    reference = []  # without the grid
    fit = ["fit", "--config", command[4], *command[5 : command.index("--out")], "--seed_everything", "3"]
    folder = ["--runs_dir", str(tmp_path / "reference"), "--wandb", "disabled"]
    for row, more in (("naive", []), ("naive+amr", ["--config", str(tmp_path / "amr.yaml")])):
        assert main([*fit, *more, *folder, "--name", row]) == 0
        assert main(["test", "--ckpt_path", str(tmp_path / f"reference/{row}/checkpoints/best.ckpt")]) == 0
        reference.append(read_run(tmp_path / "reference" / row))
        assert read_run(out / "runs" / records[row]["run"]).epochs == reference[-1].epochs
    assert table == f"{table_text(reference)}\n"
