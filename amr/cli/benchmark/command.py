"""`amr benchmark`: a grid of methods, plain and with AMR, x seeds, each cell trained and tested in its own process.

DIR/ holds runs/<row>-s<seed>-<hash>/, logs/, cells/<hash>.json (a record a finished cell), and the outcome:
results.parquet, table.md, report.html and grid.json. A cell is known by the hash of its resolved configuration. With
`tuning` in the grid, tuning.json says what was tried and chosen.
"""

import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amr.cli.benchmark.grid import Grid
from amr.cli.benchmark.plan import Row, entry_arguments, make_cells, needed, read_grid
from amr.cli.benchmark.resolve import prepare_stores, resolver
from amr.cli.benchmark.tuning import read_tuning, tuned
from amr.cli.parser import Parser
from amr.utils.errors import UserError
from amr.utils.files import locked, sweep


class _Stopped(BaseException):
    """SIGINT or SIGTERM."""


def run(arguments: Sequence[str]) -> int:
    """The command.

    Returns:
        Exit status: 0, 1 if a cell failed, 130 or 143 after SIGINT or SIGTERM.

    Raises:
        UserError: For anything that the user can mend; nothing has been trained.
    """
    parser = Parser(
        prog="amr benchmark",
        description="Trains and tests methods x seeds, plain and with AMR; the same command goes on where it stopped.",
        epilog="Further --data.*, --trainer.* and --model.* arguments go to every cell, before its row's own. Paths are"
        " relative to the current folder. The table has the rows and seeds of the command only.",
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
        raise UserError(f"--jobs={options.jobs}: must be a positive number")
    if wrong := [seed for seed in options.seeds if not 0 <= seed < 2**32]:
        raise UserError(f"--seeds={wrong[0]}: must be 0 to {2**32 - 1}")
    base, rows = read_grid(options.config)
    wandb = ["--wandb", options.wandb, "--project", options.project]
    common = [*entry_arguments("--data", options.data), *base, *further]
    print(f"benchmark: resolving the configurations of {options.config}", file=sys.stderr, flush=True)  # about 1 s each
    resolve = resolver()
    lists, seeds = read_tuning(options.config, rows), list(dict.fromkeys(options.seeds))
    command = shlex.join(["amr", "benchmark", *arguments])

    def planned(rows: Sequence[Row], seeds: Sequence[int], only: Sequence[str] = (), trial: bool = False) -> Grid:
        cells = make_cells(rows, seeds, common, lambda more: resolve([*more, *wandb]), only)
        return Grid(cells, options.out, options.jobs, wandb, command, tables=not trial)

    rows = needed(rows, options.only)
    grids = [planned(rows, seeds, options.only)]  # what is wrong is told before anything is trained
    if options.dry_run:

        def described(rows: Sequence[Row]) -> Grid:
            trials = planned(rows, seeds[:1], trial=True)
            print(f"{trials.describe()}\nof each row's candidates, the one with the best validation accuracy goes on")
            return trials

        print((planned(tuned(rows, lists, described), seeds, options.only) if lists else grids[-1]).describe())
        return 0

    def trained(grid: Grid) -> Grid:
        grids.append(grid)
        if grid.waiting:
            prepare_stores(grid.waiting)
        grid.run()
        return grid

    with locked(options.out, "choose another --out"), _signals():
        sweep(options.out)
        (options.out / "cells").mkdir(exist_ok=True)
        try:
            if lists:
                tries = tuned(
                    rows,
                    lists,
                    lambda rows: trained(planned(rows, seeds[:1], trial=True)),
                    options.out / "tuning.json",
                )
                grids.append(planned(tries, seeds, options.only))
            grid = trained(grids[-1])
        except _Stopped as stopped:
            grids[-1].stop()
            grids[-1].write(page=True)
            print(f"\nbenchmark: stopped, {grids[-1].status()}; the same command goes on", file=sys.stderr)
            return 128 + int(stopped.args[0])
        finally:
            grids[-1].stop()
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
