"""`amr benchmark`: a grid of methods, plain and with AMR, x seeds, each cell trained and tested in its own process.

DIR/ holds runs/<row>-s<seed>-<hash>/, logs/, cells/<hash>.json (a record a finished cell), and the outcome:
results.parquet, table.md, report.html and grid.json. A cell is known by the hash of its resolved configuration.
"""

import gc
import hashlib
import io
import json
import multiprocessing
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from statistics import fmean, median
from typing import Any

from amr.compare import read_run, table_text, write_report, write_results
from amr.errors import UserError
from amr.files import locked, sweep, write_text
from amr.readers import YAML_BYTES, parse_yaml, read_object, read_text
from amr.trust import packages

KEYS = ("base", "unimodal", "methods", "amr", "teachers")
WITH_AMR = "+amr"
GRACE = 20.0  # seconds for a cell's step and its checkpoint, when the grid is stopped
SECTIONS = ("seed_everything", "trainer", "model", "data", "best", "dominance")
WITHOUT_EFFECT = {  # beyond rounding, on what a cell ends with
    "trainer": ("enable_progress_bar", "enable_model_summary", "log_every_n_steps", "default_root_dir", "profiler"),
    "model": ("compile_encoders", "channels_last"),
    "data.init_args": ("num_workers", "prepare_workers", "store", "predict_split"),
    "best": ("dirpath",),
    "dominance": ("table",),
}


# --------------------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: Its name: a modality, a method, or a method and `+amr`.
        arguments: Of `amr fit`, after those that all rows have.
        unimodal: Whether it is one modality's.
        teachers: Key that takes the unimodal runs' checkpoints, by modality; None if the method has no teachers.
    """

    name: str
    arguments: tuple[str, ...]
    unimodal: bool = False
    teachers: str | None = None


@dataclass(frozen=True, eq=False)
class Cell:
    """A row with a seed: what is trained and tested once.

    Attributes:
        row: The row.
        seed: The seed.
        arguments: Of `amr fit`, but for the teachers and the run's folder.
        config: The resolved configuration, all defaults filled in.
        teachers: Cells that must be finished before, by modality.
    """

    row: Row
    seed: int
    arguments: tuple[str, ...]
    config: Mapping[str, Any]
    teachers: Mapping[str, "Cell"] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """Of all that decides the result, in hexadecimal."""
        return fingerprint(self.config, {name: teacher.hash for name, teacher in self.teachers.items()})

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.row.name}-s{self.seed}"

    @property
    def kind(self) -> str:
        """Cells of a kind take about as long as each other."""
        return "unimodal" if self.row.unimodal else "fusion"


def fingerprint(config: Mapping[str, Any], teachers: Mapping[str, str]) -> str:
    """Sha256 of what decides a cell's result: neither names, folders, W&B nor loader processes do.

    Args:
        config: A resolved configuration. What is null is as if it were not there.
        teachers: The teachers' hashes, by modality.
    """
    kept = _without_nulls({key: config[key] for key in SECTIONS if key in config})
    for path, names in WITHOUT_EFFECT.items():
        section: Any = kept
        for key in path.split("."):
            section = section.get(key, {})
        for name in names:
            section.pop(name, None)
    if "encoders" in kept.get("model", {}):
        kept["model"]["encoders"] = list(kept["model"]["encoders"].items())  # their order counts
    return hashlib.sha256(json.dumps([kept, teachers], sort_keys=True).encode()).hexdigest()


def _without_nulls(value: Any) -> Any:
    """A copy, so that an option that a later version adds, off by default, changes no hash."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def read_grid(path: Path) -> tuple[list[str], list[Row]]:
    """Reads a grid's YAML: `base`, `unimodal`, `methods`, `amr`, `teachers`; see configs/benchmarks/table1.yaml.

    Returns:
        Arguments of `amr fit` that all rows have, and the rows: unimodal ones, then each method, plain and with AMR.

    Raises:
        UserError: The file, a key, or an entry is not as it should be.
    """
    grid = parse_yaml(path, read_text(path, YAML_BYTES))
    if not isinstance(grid, dict) or not grid.get("methods") or set(grid) - set(KEYS):
        unknown = min((str(key) for key in grid if key not in KEYS), default="") if isinstance(grid, dict) else ""
        raise UserError(
            f"{path}: {f'{unknown}: unknown key' if unknown else 'methods: needed'}; allowed are {', '.join(KEYS)}"
        )
    for key in ("unimodal", "methods", "teachers"):
        if not isinstance(grid.setdefault(key, {}), dict):
            raise UserError(f"{path}: {key}: allowed are names, each with its value")
        for name in grid[key]:
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", str(name), re.ASCII):
                raise UserError(f"{path}: {key}: {name!r}: allowed are letters, digits and . _ -")
    unimodal, methods, teachers = grid["unimodal"], grid["methods"], grid["teachers"]
    if both := unimodal.keys() & methods.keys():
        raise UserError(f"{path}: methods: {min(both)!r} is in `unimodal`, too; names must differ")
    for name, key in teachers.items():
        if name not in methods or not unimodal or not isinstance(key, str) or "." not in key:
            needed = f"a method of that name, `unimodal`, and a key of `amr fit` such as model.{name}.teachers"
            raise UserError(f"{path}: teachers.{name}: {key!r}; needed are {needed}")

    def arguments(key: str, entries: Any) -> list[str]:
        if not isinstance(entries or [], list) or not all(isinstance(entry, str) for entry in entries or []):
            raise UserError(f"{path}: {key}: allowed is a list of configuration files and --key=value")
        return [argument for entry in entries or [] for argument in _entry(f"{path}: {key}", entry)]

    rows = [Row(name, tuple(arguments(f"unimodal.{name}", value)), True) for name, value in unimodal.items()]
    amr = arguments("amr", grid.get("amr"))
    for name, value in methods.items():
        plain = arguments(f"methods.{name}", value)
        rows.append(Row(name, tuple(plain), teachers=teachers.get(name)))
        if amr:
            rows.append(Row(name + WITH_AMR, (*plain, *amr), teachers=teachers.get(name)))
    return arguments("base", grid.get("base")), rows


def _entry(where: str, entry: str) -> list[str]:
    """An entry as arguments of `amr fit`."""
    if entry.startswith("--"):
        if "=" not in entry:
            raise UserError(f"{where}: {entry}: allowed are --key=value and configuration files")
        return [entry]
    if not Path(entry).is_file():
        raise UserError(f"{where}: {entry}: no such file (paths are relative to the current folder)")
    return ["--config", entry]


def make_cells(
    rows: Sequence[Row],
    seeds: Sequence[int],
    common: Sequence[str],
    resolve: Callable[[Sequence[str]], Mapping[str, Any]],
    only: Sequence[str] = (),
) -> list[Cell]:
    """Cells in the order of their training: unimodal first, then by seed, so that what is finished makes a table.

    Args:
        rows: Of the grid.
        seeds: Each row has all of them.
        common: Arguments of `amr fit` before each row's own.
        resolve: Gives the whole configuration for arguments of `amr fit`.
        only: Names of the rows to keep, besides the teachers that they need; all if empty.

    Raises:
        UserError: A row is unknown, or its configuration is refused.
    """
    if unknown := [name for name in only if name not in {row.name for row in rows}]:
        raise UserError(f"--only: no row {unknown[0]!r}; allowed are {', '.join(row.name for row in rows)}")
    chosen = [row for row in rows if not only or row.name in only]
    if any(row.teachers for row in chosen):
        chosen = [row for row in rows if row in chosen or row.unimodal]
    modalities = [row.name for row in chosen if row.unimodal]
    configs = {}
    for row in chosen:
        stand_in = [_teachers(row, dict.fromkeys(modalities, "teacher"))] if row.teachers else []
        try:
            configs[row.name] = resolve([*common, *row.arguments, *stand_in, f"--seed_everything={seeds[0]}"])
        except UserError as error:
            raise UserError(f"{row.name}: {error}") from None
    cells: dict[tuple[str, int], Cell] = {}
    for unimodal in (True, False):
        for seed in seeds:
            for row in (row for row in chosen if row.unimodal == unimodal):
                config = {**configs[row.name], "seed_everything": seed}  # all that depends on the seed
                own = (*common, *row.arguments, f"--seed_everything={seed}")
                teachers = {name: cells[name, seed] for name in modalities} if row.teachers else {}
                cells[row.name, seed] = Cell(row, seed, own, config, teachers)
    unique: dict[str, Cell] = {}
    for cell in cells.values():
        if (same := unique.setdefault(cell.hash, cell)) is not cell:
            raise UserError(f"{cell.name}: its configuration is that of {same.name}; take one of the rows out")
    return list(unique.values())


def _teachers(row: Row, paths: Mapping[str, str]) -> str:
    return f"--{row.teachers}={json.dumps(paths)}"


def resolver() -> Callable[[Sequence[str]], Mapping[str, Any]]:
    """A function from arguments of `amr fit` to the whole configuration; it builds nothing."""
    from amr.runs import AmrCLI

    class ParserOnly(AmrCLI):
        def _set_seed(self) -> None:
            pass

        def instantiate_classes(self) -> None:
            pass

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    cli: list[ParserOnly] = []

    def resolve(arguments: Sequence[str]) -> Mapping[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each run will give its own
            if cli:
                cli[0].parse_arguments(cli[0].parser, ["fit", *arguments])
            else:
                cli.append(ParserOnly(["fit", *arguments]))
            text = cli[0]._parser("fit").dump(cli[0].config.fit, skip_unset=False, format="json_compact")
        config: Mapping[str, Any] = json.loads(text)
        return config

    return resolve


def prepare_stores(cells: Sequence[Cell]) -> None:
    """Decodes what the cells' stores lack, before the cells could all start to.

    Raises:
        UserError: The data module refuses its configuration.
    """
    from pytorch_lightning import LightningDataModule

    from amr.datamodules import ClipDataModule
    from amr.parser import OneLineParser

    parser = OneLineParser()
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    sections = {json.dumps(cell.config["data"], sort_keys=True): cell.config["data"] for cell in cells}
    stores = set()
    for section in sections.values():
        datamodule = parser.instantiate_classes(parser.parse_object({"data": section})).data
        if isinstance(datamodule, ClipDataModule) and datamodule.store not in stores:
            datamodule.prepare()
            stores.add(datamodule.store)


# -------------------------------------------------------------------------------------------------------- the grid


def time_left(
    seconds: Mapping[str, Sequence[float]], waiting: Sequence[str], running: Sequence[tuple[str, float]], jobs: int
) -> float | None:
    """Seconds that a grid will take from now on; None before a cell is finished.

    Args:
        seconds: What finished cells took, by kind.
        waiting: The kinds of the cells that have not begun.
        running: Kind and seconds so far of those that have.
        jobs: How many go on at once.
    """
    known = [value for values in seconds.values() for value in values]
    if not known:
        return None
    mean = {kind: fmean(seconds.get(kind) or known) for kind in {*waiting, *(kind for kind, _ in running)}}
    left = [*(mean[kind] for kind in waiting), *(max(mean[kind] - so_far, 0.0) for kind, so_far in running)]
    return max(sum(left) / jobs, max(left, default=0.0))


def busy_seconds(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of (begin, end): time in which anything ran."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(end - max(begin, until), 0.0)
        until = max(until, end)
    return total


class Grid:
    """Cells and the folder they go to.

    Args:
        cells: Teachers before those that need them.
        out: The folder.
        jobs: How many cells go on at once.
        wandb: W&B's mode and project, as arguments.
        command: The command, for the records.
    """

    def __init__(
        self, cells: Sequence[Cell], out: Path, jobs: int = 1, wandb: Sequence[str] = (), command: str = ""
    ) -> None:
        self.cells, self.out, self.jobs, self.wandb, self.command = list(cells), out, jobs, list(wandb), command
        # What the user's own grid names, its teachers' and runs' files may name.
        self.trust = [
            f"--trust={name}" for name in sorted(set().union(*(packages(cell.config) for cell in self.cells)))
        ]
        self.records = {cell: record for cell in self.cells if (record := self._record(cell))}
        self.failed: dict[Cell, str] = {}
        self.running: dict[Cell, tuple[ForkServerProcess, float]] = {}
        self.began = time.monotonic()

    @property
    def waiting(self) -> list[Cell]:
        """Cells that have not begun."""
        return [c for c in self.cells if not (c in self.records or c in self.failed or c in self.running)]

    def folder(self, cell: Cell) -> Path:
        """The cell's run, whatever its row was called when it began."""
        runs, short = self.out / "runs", cell.hash[:8]
        return next(iter(sorted(runs.glob(f"*-{short}"))), runs / f"{cell.name}-{short}")

    def best(self, cell: Cell) -> Path:
        """The checkpoint that is tested, and that teaches."""
        return self.folder(cell) / "checkpoints" / "best.ckpt"

    def log(self, cell: Cell) -> Path:
        """What the cell's process printed."""
        return self.out / "logs" / f"{self.folder(cell).name}.log"

    def _record(self, cell: Cell) -> dict[str, Any] | None:
        """What a finished cell left; None if it is not finished, or its run is gone."""
        try:
            record = read_object(self.out / "cells" / f"{cell.hash}.json")
            if not isinstance(record["resumed"], bool) or not isinstance(record["seconds"], int | float):
                raise TypeError("resumed, seconds")
            datetime.fromisoformat(record["finished"])
            dict.items(record["versions"])
        except (KeyError, TypeError, ValueError):  # not there, or damaged: the cell is measured again
            return None
        return record if self.best(cell).is_file() else None

    def fit(self, cell: Cell) -> list[str]:
        """Arguments of `amr fit` for a cell; where it was interrupted, it goes on."""
        folder, paths = self.folder(cell), {name: str(self.best(teacher)) for name, teacher in cell.teachers.items()}
        return [
            *("fit", *cell.arguments, *([_teachers(cell.row, paths)] if paths else [])),
            *("--trainer.enable_progress_bar=false", "--runs_dir", str(folder.parent), "--name", folder.name),
            *(*self.wandb, *self.trust, *(["--ckpt_path", "last"] if (folder / "run.json").is_file() else [])),
        ]

    def task(self, cell: Cell) -> dict[str, Any]:
        """What the cell's process does: `fit`, then `test`, then the record."""
        return {
            "folder": str(self.folder(cell)),
            "fit": self.fit(cell),
            "test": ["test", "--ckpt_path", str(self.best(cell)), *self.wandb, *self.trust],
            "record": str(self.out / "cells" / f"{cell.hash}.json"),
            "facts": {"row": cell.row.name, "seed": cell.seed, "hash": cell.hash, "run": self.folder(cell).name},
        }

    def process(self, cell: Cell) -> ForkServerProcess:
        """The cell's process, not started: forked from one that has imported everything, which takes seconds."""
        environment = {"OMP_NUM_THREADS": str(max(1, cores() // self.jobs)), "PYTHONUNBUFFERED": "1", **os.environ}
        arguments = (self.task(cell), self.log(cell), environment, Path.cwd())
        return _forkserver().Process(target=cell_process, args=arguments)

    def describe(self) -> str:
        """What is finished, and the commands of what is not."""
        lines = []
        for cell in self.cells:
            begun = (self.folder(cell) / "run.json").is_file()
            state = "finished" if cell in self.records else "begun" if begun else "to do"
            lines.append(f"{state:8}  {cell.name:24}  {self.folder(cell)}")
            lines += [] if cell in self.records else [f"  {shlex.join(['amr', *self.fit(cell)])}"]
        return "\n".join([*lines, f"{len(self.records)}/{len(self.cells)} cells finished"])

    def run(self) -> None:
        """Trains and tests what is not finished. A cell that fails stops only those that it would have taught."""
        while self.waiting or self.running:
            for cell in self.waiting:
                if lost := [teacher for teacher in cell.teachers.values() if teacher in self.failed]:
                    self.failed[cell] = f"skipped: its teacher {lost[0].name} failed"
                elif len(self.running) < self.jobs and all(t in self.records for t in cell.teachers.values()):
                    self._start(cell)
            for cell, (process, began) in list(self.running.items()):
                if process.exitcode is not None:
                    del self.running[cell]
                    self._ended(cell, process.exitcode, time.monotonic() - began)
            if sys.stderr.isatty():
                self._say(self.status())
            time.sleep(0.2)

    def _start(self, cell: Cell) -> None:
        self.log(cell).parent.mkdir(parents=True, exist_ok=True)
        with self.log(cell).open("a", encoding="utf-8") as log:
            log.write(f"\n{shlex.join(['amr', *self.fit(cell)])}\n")
        process = self.process(cell)
        process.start()
        self.running[cell] = process, time.monotonic()

    def _ended(self, cell: Cell, status: int, seconds: float) -> None:
        if record := self._record(cell):  # the exit status may be 0 without, after a signal
            self.records[cell] = record
            self._say(f"{cell.name} finished in {seconds:.0f} s; {self.status()}", last=True)
            try:
                self.write()
            except UserError as error:
                self._say(str(error), last=True)
            return
        printed = [line.strip() for line in self.log(cell).read_text(errors="replace").splitlines() if line.strip()]
        killed = f"killed by {signal.Signals(-status).name} (out of memory?); " if status < 0 else ""
        self.failed[cell] = f"{killed}{printed[-1][:300]}"
        self._say(f"{cell.name} FAILED: {self.failed[cell]}; {self.status()}", last=True)

    def stop(self) -> None:
        """Ends what is running: training saves where it is, and what does not end is killed; nothing is left half."""
        for process, _ in self.running.values():
            process.terminate()
        until = time.monotonic() + GRACE
        for process, _ in self.running.values():
            process.join(max(until - time.monotonic(), 0))
            with suppress(ProcessLookupError):  # ended, or not yet the leader of a group
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()
            process.join()
        self.running.clear()

    def status(self) -> str:
        """How far the grid is, on one line."""
        seconds: dict[str, list[float]] = {}
        for cell, record in self.records.items():
            if not record["resumed"]:
                seconds.setdefault(cell.kind, []).append(record["seconds"])
        now = time.monotonic()
        running = [(cell.kind, now - began) for cell, (_, began) in self.running.items()]
        left = time_left(seconds, [cell.kind for cell in self.waiting], running, self.jobs)
        parts = [f"{len(self.records)}/{len(self.cells)} cells"]
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        parts += [f"{cell.name} {_epoch(self.folder(cell), cell.config)}" for cell in self.running]
        parts += [f"{_duration(now - self.began)} so far"]
        parts += [f"about {_duration(left)} left"] if left else []
        return ", ".join(parts)

    def _say(self, line: str, last: bool = False) -> None:
        """A line that stays; on a terminal also one that is rewritten."""
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{line if last else line[:width]}", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last:
            print(f"benchmark: {line}", file=sys.stderr, flush=True)

    def write(self, page: bool = False) -> None:
        """Writes the table and the facts of what is finished, and the page if asked."""
        runs = [read_run(self.folder(cell)) for cell in self.cells if cell in self.records]
        write_results(runs, self.out / "results.parquet")
        write_text(self.out / "table.md", f"{table_text(runs)}\n")
        if page:
            write_report(runs, self.out / "report.html", self.command)
        write_text(self.out / "grid.json", f"{json.dumps(self.facts(), indent=1)}\n")

    def facts(self) -> dict[str, Any]:
        """The machine, the time that the grid took, and what it was made with."""
        records = list(self.records.values())
        whole = [record["seconds"] for record in records if not record["resumed"]]
        ended = [(record["seconds"], datetime.fromisoformat(record["finished"]).timestamp()) for record in records]
        return {
            "command": self.command,
            "machine": machine(),
            "jobs": self.jobs,
            "seeds": sorted({cell.seed for cell in self.cells}),
            "cells": len(self.cells),
            "finished": len(records),
            "runs": {cell.name: self.folder(cell).name for cell in self.records},
            "failed": {cell.name: reason for cell, reason in self.failed.items()},
            "hours": round(busy_seconds([(end - seconds, end) for seconds, end in ended]) / 3600, 3),
            "seconds_a_run": {"median": median(whole), "max": max(whole), "runs": len(whole)} if whole else None,
            "versions": [dict(v) for v in sorted({tuple(record["versions"].items()) for record in records})],
        }


def machine() -> dict[str, Any]:
    """CPU model, cores that may be used, and GPUs."""
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"^model name\s*:\s*(.+)$", info.read_text() if info.is_file() else "", re.MULTILINE)
    gpus: list[str] = []
    if tool := shutil.which("nvidia-smi"):  # asking torch would take memory of the GPU
        command = [tool, "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        gpus = answer.stdout.splitlines() if answer.returncode == 0 else []
    return {"cpu": cpu[1] if cpu else platform.processor(), "cores": cores(), "gpus": gpus}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _epoch(folder: Path, config: Mapping[str, Any]) -> str:
    """The last epoch of which a run has metrics, from 1."""
    try:
        file = max(folder.glob("metrics/version_*/metrics.csv"), key=lambda file: file.stat().st_mtime)
        header, *lines = file.read_text(encoding="utf-8").splitlines()
        epoch = 1 + int(lines[-1].split(",")[header.split(",").index("epoch")])
    except (OSError, ValueError, IndexError):  # not there yet, or being written
        epoch = 0
    return f"{epoch}/{config['trainer'].get('max_epochs')} epochs"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


# ------------------------------------------------------------------------------------------------------ the command


class _Stopped(BaseException):
    """SIGINT or SIGTERM."""


def run(arguments: Sequence[str]) -> int:
    """The command.

    Returns:
        Exit status: 0, 1 if a cell failed, 130 or 143 after SIGINT or SIGTERM.

    Raises:
        UserError: For anything that the user can mend; nothing has been trained.
    """
    from amr.cli import _Parser

    parser = _Parser(
        prog="amr benchmark",
        description="Trains and tests methods x seeds, plain and with AMR; the same command goes on where it stopped.",
        epilog="Further --data.*, --trainer.* and --model.* arguments go to every cell, before its row's own. Paths are"
        " relative to the current folder. The table has the rows and seeds of the command only.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, help="the grid, e.g. configs/benchmarks/table1.yaml")
    parser.add_argument("--data", required=True, metavar="CONFIG", help="the data set, e.g. configs/data/crema-d.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="(0 1 2)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for everything")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at once (1)")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="these rows and their teachers")
    parser.add_argument("--wandb", choices=["offline", "online", "disabled"], default="offline", help="W&B's mode")
    parser.add_argument("--project", default="amr", help="W&B project (amr)")
    parser.add_argument("--dry_run", action="store_true", help="print what is finished and what would be run")
    options, further = parser.parse_known_args(list(arguments))
    if unknown := [a for i, a in enumerate(further) if not re.match(r"--\w+\." if i == 0 or a[:2] == "--" else "", a)]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.jobs < 1:
        raise UserError(f"--jobs={options.jobs}: allowed are positive numbers")
    if wrong := [seed for seed in options.seeds if not 0 <= seed < 2**32]:
        raise UserError(f"--seeds: {wrong[0]}: allowed are 0 to {2**32 - 1}")
    base, rows = read_grid(options.config)
    wandb = ["--wandb", options.wandb, "--project", options.project]
    common = [*_entry("--data", options.data), *base, *further]
    print(f"benchmark: resolving the configurations of {options.config}", file=sys.stderr, flush=True)  # about 1 s each
    resolve = resolver()
    cells = make_cells(
        rows, list(dict.fromkeys(options.seeds)), common, lambda more: resolve([*more, *wandb]), options.only
    )
    grid = Grid(cells, options.out, options.jobs, wandb, shlex.join(["amr", "benchmark", *arguments]))
    if options.dry_run:
        print(grid.describe())
        return 0
    with locked(options.out, "choose another --out"), _signals():
        sweep(options.out)
        (options.out / "cells").mkdir(exist_ok=True)
        try:
            if grid.waiting:
                prepare_stores(grid.waiting)
            grid.run()
        except _Stopped as stopped:
            grid.stop()
            grid.write(page=True)
            print(f"\nbenchmark: stopped, {grid.status()}; the same command goes on", file=sys.stderr)
            return 128 + int(stopped.args[0])
        finally:
            grid.stop()
        grid.write(page=True)
    print(f"\n{(options.out / 'table.md').read_text(encoding='utf-8')}\nPage: {options.out / 'report.html'}")
    for cell, reason in grid.failed.items():
        print(f"failed: {cell.name}: {reason} ({grid.log(cell)})", file=sys.stderr)
    return 1 if grid.failed else 0


@contextmanager
def _signals() -> Iterator[None]:
    """SIGINT and SIGTERM end the grid in order, once."""

    def stop(number: int, _: Any) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # what is written now shall not be cut
        raise _Stopped(number)

    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------- a cell's process


def _forkserver() -> ForkServerContext:
    """Makes processes out of one that has imported what `fit` needs, and has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["amr.runs"])
    return context


def cell_process(
    task: Mapping[str, Any],
    log: Path,
    environment: Mapping[str, str],
    folder: Path,
    run: Callable[[Mapping[str, Any]], int] | None = None,
) -> None:
    """A forked process becomes what `python -m amr.benchmark TASK >> LOG` in the grid's folder would be."""
    os.setsid()  # so that it is stopped together with its loader processes
    with Path(os.devnull).open("rb") as nothing, log.open("ab") as file:
        for number, source in enumerate((nothing, file, file)):
            os.dup2(source.fileno(), number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    os.chdir(folder)
    if "OMP_NUM_THREADS" not in os.environ:  # torch has read it, if it was there
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"].split(",")[0]))
    os.environ.clear()
    os.environ.update(environment)
    # DDP starts this command for each further rank.
    sys.argv, sys.modules["__main__"] = [__file__, json.dumps(task)], sys.modules[__name__]
    sys.exit((run or run_cell)(task))


def run_cell(task: Mapping[str, Any]) -> int:
    """Trains and tests one cell and writes its record, in a process of its own.

    Args:
        task: As `Grid.task` makes it.
    """
    from amr.cli import main

    began = time.monotonic()
    follower = int(os.environ.get("LOCAL_RANK", "0")) > 0  # DDP starts the command again for each further rank
    _end_with_parent()
    folder = Path(task["folder"])
    # A killed grid's processes are about to end. Further ranks work in the first one's folder.
    with nullcontext() if follower else locked(folder, "choose another --out", wait=True):
        resumed = (folder / "checkpoints" / "last.ckpt").is_file()
        status = main(task["fit"])
        gc.collect()  # what training held, before testing takes its own
        status = status or main(task["test"])
        if status == 0 and not follower:
            record = {
                **task["facts"],
                "resumed": resumed,
                "seconds": round(time.monotonic() - began, 1),
                "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "versions": {name: version(name) for name in ("amr", "torch", "pytorch-lightning")},
            }
            write_text(Path(task["record"]), f"{json.dumps(record, indent=1)}\n")
    return status


def _end_with_parent() -> None:
    """Kills this process and its loaders once what started it, the grid or the first rank, is gone."""
    starter, parent = multiprocessing.parent_process(), os.getppid()

    def watch() -> None:
        if starter is not None:
            starter.join()
        while starter is None and os.getppid() == parent:
            time.sleep(0.5)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(run_cell(json.loads(sys.argv[1])))
