"""Runs a grid: its cells' processes, their records, and the table of all."""

import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from statistics import median
from typing import Any

from amr.cli.benchmark.cell import cell_process, forkserver
from amr.cli.benchmark.chosen import HEAD, Chosen
from amr.cli.benchmark.machine import cores, machine
from amr.cli.benchmark.plan import Cell, teachers_argument
from amr.cli.benchmark.times import busy_seconds, duration, time_left
from amr.report import Run, read_run, table_text, write_report, write_results
from amr.utils.errors import UserError
from amr.utils.files import write_text
from amr.utils.readers import read_object
from amr.utils.trust import packages

SELDOM = 20.0  # times as long as it takes to write the table, until it is written again
GRACE = 20.0  # seconds for a cell's step and its checkpoint, when the grid is stopped


class Grid:
    """Cells of a grid and their folder.

    Args:
        cells: Teachers before those that need them.
        out: The folder.
        jobs: How many cells go on at once.
        wandb: W&B's mode and project, as arguments.
        command: The command, for the records.
        tables: Whether `write` writes anything; False for trials, which are no result.
        chosen: Trial of each row that validation chose; None if there were none.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        out: Path,
        jobs: int = 1,
        wandb: Sequence[str] = (),
        command: str = "",
        tables: bool = True,
        chosen: Chosen | None = None,
    ) -> None:
        self.tables, self.chosen = tables, chosen
        self.cells, self.out, self.jobs, self.wandb, self.command = list(cells), out, jobs, list(wandb), command
        # What the user's own grid names, its teachers' and runs' files may name.
        self.trust = [
            f"--trust={name}" for name in sorted(set().union(*(packages(cell.config) for cell in self.cells)))
        ]
        # The cells' runs, whatever their rows were called when they began.
        begun = {path.name.rpartition("-")[2]: path for path in sorted((out / "runs").glob("*-*"), reverse=True)}
        runs = {cell: out / "runs" / f"{cell.name}-{cell.hash[:8]}" for cell in self.cells}
        self._folders = {cell: begun.get(cell.hash[:8], folder) for cell, folder in runs.items()}
        self._runs: dict[Cell, Run] = {}
        self._written = self._cost = 0.0  # when the table was written last, and the seconds that it took
        self._is_behind = False  # whether a cell has finished since
        self.records = {cell: record for cell in self.cells if (record := self._record(cell))}
        self.failed: dict[Cell, str] = {}
        self.running: dict[Cell, tuple[ForkServerProcess, float]] = {}
        self.began = time.monotonic()

    @property
    def waiting(self) -> list[Cell]:
        """Cells that have not begun."""
        return [c for c in self.cells if not (c in self.records or c in self.failed or c in self.running)]

    def folder(self, cell: Cell) -> Path:
        """Folder of the cell's run."""
        return self._folders[cell]

    def best(self, cell: Cell) -> Path:
        """The checkpoint that is tested, and used as a teacher."""
        return self.folder(cell) / "checkpoints" / "best.ckpt"

    def log(self, cell: Cell) -> Path:
        """File with the output of the cell's process."""
        return self.out / "logs" / f"{self.folder(cell).name}.log"

    def _record(self, cell: Cell) -> dict[str, Any] | None:
        """Record of a finished cell; None if it is not finished, or its run is gone."""
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
        """Arguments of `amr fit` for a cell, which resume an interrupted one; of `amr ensemble` for an ensemble's."""
        folder, paths = self.folder(cell), {name: str(self.best(teacher)) for name, teacher in cell.teachers.items()}
        if cell.row.ensemble:
            options = ["--combination", cell.row.ensemble, "--out", str(folder), "--test", "no"]
            return ["ensemble", *paths.values(), *options, *self.trust]
        return [
            *("fit", *cell.arguments, *([teachers_argument(cell.row, paths)] if paths else [])),
            *("--trainer.enable_progress_bar=false", "--runs_dir", str(folder.parent), "--name", folder.name),
            *(*self.wandb, *self.trust, *(["--ckpt_path", "last"] if (folder / "run.json").is_file() else [])),
        ]

    def task(self, cell: Cell) -> dict[str, Any]:
        """Work of the cell's process: `fit`, then `test`, then the record."""
        return {
            "folder": str(self.folder(cell)),
            # An ensemble that is there is whole.
            "fit": [] if cell.row.ensemble and (self.folder(cell) / "run.json").is_file() else self.fit(cell),
            "test": ["test", "--ckpt_path", str(self.best(cell)), *self.wandb, *self.trust],
            "record": str(self.out / "cells" / f"{cell.hash}.json"),
            "facts": {"row": cell.row.name, "seed": cell.seed, "hash": cell.hash, "run": self.folder(cell).name},
        }

    def process(self, cell: Cell) -> ForkServerProcess:
        """The cell's process, not started: forked from one that has imported everything, which takes seconds."""
        environment = {"OMP_NUM_THREADS": str(max(1, cores() // self.jobs)), "PYTHONUNBUFFERED": "1", **os.environ}
        arguments = (self.task(cell), self.log(cell), environment, Path.cwd())
        return forkserver().Process(target=cell_process, args=arguments)

    def describe(self) -> str:
        """Finished cells, and the commands of those that are not finished."""
        lines = []
        for cell in self.cells:
            begun = (self.folder(cell) / "run.json").is_file()
            state = "finished" if cell in self.records else "begun" if begun else "to do"
            lines.append(f"{state:8}  {cell.name:24}  {self.folder(cell)}")
            lines += [] if cell in self.records else [f"  {shlex.join(['amr', *self.fit(cell)])}"]
        return "\n".join([*lines, f"{len(self.records)}/{len(self.cells)} cells finished"])

    def run(self) -> None:
        """Trains and tests unfinished cells. A cell that fails stops only those of which it is a teacher."""
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
        if self._is_behind:
            self._write_or_say()

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
            self._is_behind = True
            if time.monotonic() - self._written >= SELDOM * self._cost:
                self._write_or_say()
            return
        printed = [line.strip() for line in self.log(cell).read_text(errors="replace").splitlines() if line.strip()]
        killed = f"killed by {signal.Signals(-status).name} (out of memory?); " if status < 0 else ""
        self.failed[cell] = f"{killed}{printed[-1][:300]}"
        self._say(f"{cell.name} FAILED: {self.failed[cell]}; {self.status()}", last=True)

    def _write_or_say(self) -> None:
        try:
            self.write()
        except UserError as error:
            self._say(str(error), last=True)

    def stop(self) -> None:
        """Ends running cells: training saves its state, and a process that does not end is killed."""
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
        parts += [f"{duration(now - self.began)} so far"]
        parts += [f"about {duration(left)} left"] if left else []
        return ", ".join(parts)

    def _say(self, line: str, last: bool = False) -> None:
        """A line that stays; on a terminal also one that is rewritten."""
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{line if last else line[:width]}", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last:
            print(f"benchmark: {line}", file=sys.stderr, flush=True)

    def write(self, page: bool = False) -> None:
        """Writes the table and the facts about finished cells, and the page on request."""
        if not self.tables:
            return
        began = time.monotonic()
        finished = [cell for cell in self.cells if cell in self.records]
        self._runs |= {cell: read_run(self.folder(cell)) for cell in finished if cell not in self._runs}
        runs = [self._runs[cell] for cell in finished]
        write_results(runs, self.out / "results.parquet")
        chosen = self.chosen
        text = table_text(runs) if chosen is None else f"{table_text(runs)}\n\n{chosen.text()}"
        write_text(self.out / "table.md", f"{text}\n")
        if page:
            sections = [] if chosen is None else [(chosen.title, chosen.caption, HEAD, chosen.body())]
            write_report(runs, self.out / "report.html", self.command, tables=sections)
        write_text(self.out / "grid.json", f"{json.dumps(self.facts(), indent=1)}\n")
        self._written, self._is_behind = time.monotonic(), False
        self._cost = self._written - began

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
            "tuning": None if self.chosen is None else self.chosen.facts(),
            "versions": [dict(v) for v in sorted({tuple(record["versions"].items()) for record in records})],
        }


def _epoch(folder: Path, config: Mapping[str, Any]) -> str:
    """The last epoch of which a run has metrics, from 1."""
    try:
        file = max(folder.glob("metrics/version_*/metrics.csv"), key=lambda file: file.stat().st_mtime)
        header, *lines = file.read_text(encoding="utf-8").splitlines()
        epoch = 1 + int(lines[-1].split(",")[header.split(",").index("epoch")])
    except (OSError, ValueError, IndexError):  # not there yet, or being written
        epoch = 0
    return f"{epoch}/{config['trainer'].get('max_epochs')} epochs"
