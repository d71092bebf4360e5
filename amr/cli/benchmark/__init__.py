"""`amr benchmark`: a grid of methods x seeds, each cell trained and tested in its own process."""

from amr.cli.benchmark.cell import cell_process
from amr.cli.benchmark.grid import Grid
from amr.cli.benchmark.plan import Cell, Row, fingerprint, make_cells, read_grid
from amr.cli.benchmark.resolve import resolver
from amr.cli.benchmark.times import busy_seconds, time_left

__all__ = [
    "Cell",
    "Grid",
    "Row",
    "busy_seconds",
    "cell_process",
    "fingerprint",
    "make_cells",
    "read_grid",
    "resolver",
    "time_left",
]
