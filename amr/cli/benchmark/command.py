"""`amr benchmark`: a grid of methods, plain and with AMR, x seeds, each cell trained and tested in its own process.

DIR/ holds runs/<row>-s<seed>-<hash>/, logs/, cells/<hash>.json (one record per finished cell), and the outcome:
results.parquet, table.md, report.html and grid.json. A cell is known by the hash of its resolved configuration. With
`tuning` in the grid, or `--tune`, they and tuning.json say what was tried and chosen.
"""

import json
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from amr.cli.benchmark.chosen import Chosen
from amr.cli.benchmark.grid import Grid
from amr.cli.benchmark.plan import Row, data_arguments, make_cells, needed, read_grid
from amr.cli.benchmark.possible import check_cells
from amr.cli.benchmark.resolve import prepare_stores, resolver
from amr.cli.benchmark.trials import candidates
from amr.cli.benchmark.tuning import read_tuning, tuned
from amr.cli.keys.check import check
from amr.cli.parser import Parser
from amr.utils.errors import Stopped, UserError
from amr.utils.files import locked, sweep
from amr.utils.names.configs import find_config
from amr.utils.readers import read_object
from amr.utils.streams import status


@dataclass(frozen=True)
class Outcome:
    """Result of a grid.

    Attributes:
        folder: The grid's folder, with `results.parquet`, `table.md` and `report.html`.
        table: The table as text; of a dry run, what is finished and what would be run.
        failed: The last line of each cell that failed, by the cell's name.
    """

    folder: Path
    table: str
    failed: Mapping[str, str]


class _Stopped(BaseException):
    """SIGINT or SIGTERM."""


def benchmark(
    grid: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    jobs: int = 1,
    only: Sequence[str] = (),
    wandb: Literal["offline", "online", "disabled"] | None = None,
    project: str = "amr",
    tune: int | None = None,
    dry_run: bool = False,
    options: Mapping[str, Any] | Sequence[tuple[str, Any]] = (),
    command: str = "amr.benchmark",
) -> Outcome:
    """Trains and tests methods x seeds, plain and with AMR; called again, it continues where it stopped.

    Args:
        grid: The grid's file or name, such as `"table1"`.
        data: The data set: a configuration's file or name, or a class's import path.
        out: Folder for everything.
        seeds: Seeds of every row, whole numbers from 0.
        jobs: Cells at once, at least 1.
        only: Names of the rows to keep, besides the teachers that they need; all if empty.
        wandb: W&B's mode for every cell; None for what the grid's `base` says, else `offline`.
        project: W&B project.
        tune: Trials of every row on the first seed, at least 2, over the ranges that its methods declare, in place of
            the grid's own `tuning`; validation chooses. None for the grid's own.
        dry_run: Whether to train nothing, and only say what is finished and what would be run.
        options: Further keys of every cell, before its row's own, such as `{"trainer.max_epochs": 10}`; pairs where a
            key comes twice.
        command: Command that the records name as the grid's origin.

    Returns:
        The folder, the table, and the cells that failed.

    Raises:
        UserError: For anything that the user can mend; nothing has been trained.
        Stopped: At SIGINT or SIGTERM, after what was running has saved where it is.
    """
    out = Path(out)
    if jobs < 1:
        raise UserError(f"--jobs={jobs}: must be a positive number")
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**32]:
        raise UserError(f"--seeds={wrong[0]}: must be 0 to {2**32 - 1}")
    file = find_config(grid, folders=("benchmarks",))
    base, rows = read_grid(file)
    lists, seeds = read_tuning(file, rows), list(dict.fromkeys(seeds))
    if tune is not None and lists:
        status("benchmark: --tune takes the place of the grid's own `tuning`")
    rows = needed(rows, only)
    mode = ["--wandb", wandb or _wandb_of(base), "--project", project]
    pairs = list(options.items() if isinstance(options, Mapping) else options)
    further = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in pairs]
    common = check([*data_arguments(data), *base, *further])
    status(f"benchmark: resolving the configurations of {grid}")  # about 1 s each
    resolve = resolver()

    def planned(rows: Sequence[Row], seeds: Sequence[int], only: Sequence[str] = (), trial: bool = False) -> Grid:
        cells = make_cells(rows, seeds, common, lambda more: resolve([*more, *mode]), only)
        check_cells(cells)
        return Grid(cells, out, jobs, mode, command, tables=not trial)

    # What is wrong is told before anything is trained.
    grids = [planned(rows, seeds, only)]
    if tune is not None:
        lists = candidates(rows, grids[0].cells, tune, (key for key, _ in pairs))
    if lists and not dry_run:
        tuned(rows, lists, lambda rows: planned(rows, seeds[:1], trial=True))
    if dry_run:
        texts = []

        def described(rows: Sequence[Row]) -> Grid:
            trials = planned(rows, seeds[:1], trial=True)
            texts.append(
                f"{trials.describe()}\nof each row's candidates, the one with the best validation accuracy goes on"
            )
            return trials

        final = planned(tuned(rows, lists, described), seeds, only) if lists else grids[-1]
        return Outcome(out, "\n".join([*texts, final.describe()]), {})

    def trained(work: Grid) -> Grid:
        grids.append(work)
        if work.waiting:
            prepare_stores(work.waiting)
        work.run()
        return work

    with locked(out, "choose another --out"), _signals():
        sweep(out)
        (out / "cells").mkdir(exist_ok=True)
        try:
            if lists:
                tries = tuned(
                    rows, lists, lambda rows: trained(planned(rows, seeds[:1], trial=True)), out / "tuning.json"
                )
                grids.append(planned(tries, seeds, only))
                record = read_object(out / "tuning.json")
                grids[-1].chosen = Chosen(seeds[0], record, max(len(lists[name]) for name in record))
            final = trained(grids[-1])
        except _Stopped as stopped:
            grids[-1].stop()
            grids[-1].write(page=True)
            text = f"stopped, {grids[-1].status()}; the same command resumes"
            raise Stopped(text, int(stopped.args[0])) from None
        finally:
            grids[-1].stop()
        final.write(page=True)
    failed = {cell.name: f"{reason} ({final.log(cell)})" for cell, reason in final.failed.items()}
    return Outcome(out, (out / "table.md").read_text(encoding="utf-8"), failed)


def run(arguments: Sequence[str]) -> int:
    """The command.

    Returns:
        Exit status: 0, 1 if a cell failed, 130 or 143 after SIGINT or SIGTERM.

    Raises:
        UserError: For anything that the user can mend; nothing has been trained.
    """
    parser = Parser(
        prog="amr benchmark",
        description="Trains and tests methods x seeds, plain and with AMR; the same command resumes.",
        epilog="Further --data.*, --trainer.* and --model.* arguments go to every cell, before its row's own. Paths are"
        " relative to the current folder. The table has the rows and seeds of the command only.",
    )
    parser.add_argument("--config", type=Path, required=True, help="the grid's file or name, such as table1")
    about = "the data set: a configuration's file or name, such as crema-d, or a class's import path"
    parser.add_argument("--data", required=True, metavar="CONFIG", help=about)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="(0 1 2)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for everything")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at once (1)")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="these rows and their teachers")
    parser.add_argument(
        "--wandb",
        choices=["offline", "online", "disabled"],
        help="W&B's mode (the grid's, else offline)",
    )
    about = "trials of every row on the first seed, over its methods' ranges; validation chooses"
    parser.add_argument("--tune", type=int, metavar="N", help=about)
    parser.add_argument("--project", default="amr", help="W&B project (amr)")
    parser.add_argument("--dry_run", action="store_true", help="print what is finished and what would be run")
    options, further = parser.parse_known_args(list(arguments))
    if unknown := [a for i, a in enumerate(further) if not re.match(r"--\w+\." if i == 0 or a[:2] == "--" else "", a)]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        outcome = benchmark(
            options.config,
            options.data,
            options.out,
            seeds=options.seeds,
            jobs=options.jobs,
            only=options.only,
            wandb=options.wandb,
            project=options.project,
            tune=options.tune,
            dry_run=options.dry_run,
            options=_pairs(further),
            command=shlex.join(["amr", "benchmark", *arguments]),
        )
    except Stopped as stopped:
        print(f"\nbenchmark: {stopped}", file=sys.stderr)
        return stopped.status
    if options.dry_run:
        print(outcome.table)
        return 0
    print(f"\n{outcome.table}\nPage: {options.out / 'report.html'}")
    for name, reason in outcome.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _pairs(further: Sequence[str]) -> list[tuple[str, str]]:
    """Keys and values of arguments like `--data.x 1` and `--data.x=1`; a key without a value is true."""
    pairs: list[tuple[str, str]] = []
    for argument in further:
        if argument.startswith("--"):
            key, given, value = argument[2:].partition("=")
            pairs.append((key, value if given else "true"))
        else:
            pairs[-1] = pairs[-1][0], argument
    return pairs


@contextmanager
def _signals() -> Iterator[None]:
    """SIGINT and SIGTERM end the grid in order, once."""

    def stop(number: int, _: Any) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # what is written now shall not be cut
        raise _Stopped(number)

    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wandb_of(base: Sequence[str]) -> str:
    """W&B's mode as a grid's base gives it; `offline` where it does not."""
    given = [value for option, value in zip(base, [*base[1:], ""], strict=False) if option == "--wandb"]
    given += [argument.partition("=")[2] for argument in base if argument.startswith("--wandb=")]
    return given[-1] if given else "offline"
