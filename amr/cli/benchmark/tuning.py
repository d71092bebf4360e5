"""The same budget for every row: as many candidates, each trained with one seed; validation chooses among them."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from amr.cli.benchmark.grid import Grid
from amr.cli.benchmark.plan import WITH_AMR, Cell, Row, entry_arguments
from amr.report import read_run
from amr.utils.errors import UserError
from amr.utils.files import write_text
from amr.utils.readers import YAML_BYTES, parse_yaml, read_text

ALL = "all"


def read_tuning(path: Path, rows: Sequence[Row]) -> dict[str, list[tuple[str, ...]]]:
    """Reads `tuning` of a grid's YAML: lists of candidates by row, `all` for rows without a list of their own.

    Args:
        path: The grid.
        rows: Its rows.

    Returns:
        For each row that is trained, its candidates: further arguments of `amr fit`. A row with AMR has those of the
        row without unless it has its own. Nothing if the grid has no `tuning`.

    Raises:
        UserError: A name is no row, an entry is not as it should be, or the lists differ in length.
    """
    section = parse_yaml(path, read_text(path, YAML_BYTES)).get("tuning")
    if section is None:
        return {}
    names = [row.name for row in rows if not row.ensemble]
    if not isinstance(section, dict) or not section:
        raise UserError(f"{path}: tuning={section!r}: must be `{ALL}` or names of rows, each with a list of candidates")
    lists: dict[str, list[tuple[str, ...]]] = {}
    for name, given in section.items():
        where = f"{path}: tuning.{name}"
        if name not in (ALL, *names):
            raise UserError(f"{where}: no such row; must be among {', '.join([ALL, *names])}")
        if not isinstance(given, list) or not given or not all(_is_candidate(candidate) for candidate in given):
            raise UserError(f"{where}: must be a list of candidates, each a list of configurations and --key=value")
        lists[name] = [tuple(a for entry in each for a in entry_arguments(where, entry)) for each in given]
    first, *others = lists
    for name in others:
        if len(lists[name]) != len(lists[first]):
            raise UserError(
                f"{path}: tuning.{name}: {len(lists[name])} candidates, {first} has {len(lists[first])}; must be as "
                "many, for a row that is tuned longer wins by that"
            )
    if ALL not in lists and (left := sorted({name for name in names if _list_of(name, lists) is None})):
        raise UserError(f"{path}: tuning: no candidates for {left[0]}; must have `{ALL}` or a list for each row")
    return {name: candidates for name in names if (candidates := _list_of(name, lists)) is not None}


def _is_candidate(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _list_of(name: str, lists: Mapping[str, list[tuple[str, ...]]]) -> list[tuple[str, ...]] | None:
    return lists.get(name) or lists.get(name.removesuffix(WITH_AMR)) or lists.get(ALL)


def tuned(
    rows: Sequence[Row],
    lists: Mapping[str, Sequence[tuple[str, ...]]],
    train: Callable[[Sequence[Row]], Grid],
    out: Path | None = None,
) -> list[Row]:
    """Each row with the arguments of its best candidate.

    The unimodal rows are tuned first, so that their best teach the candidates of the others.

    Args:
        rows: The rows.
        lists: Candidates of each row; a row that is not in it stays as it is.
        train: Trains rows, and gives the grid that did.
        out: A JSON file for what was tried and chosen; None for none.

    Returns:
        The rows, in their order.
    """
    chosen = {row.name: row for row in rows}
    record: dict[str, Any] = {}
    for unimodal in (True, False):
        group = [row for row in rows if row.unimodal == unimodal and row.name in lists]
        if not group:
            continue
        trials = {row.name: _trials(row, lists[row.name]) for row in group}
        teachers = [] if unimodal else [row for row in chosen.values() if row.unimodal]
        grid = train([*teachers, *(trial for each in trials.values() for trial in each)])
        cells = {cell.row.name: cell for cell in grid.cells}
        for row in group:
            scores = [score(grid, cells[trial.name]) for trial in trials[row.name]]
            best = max(range(len(scores)), key=scores.__getitem__)  # of equals, the first
            chosen[row.name] = replace(trials[row.name][best], name=row.name)
            record[row.name] = {
                "candidates": [list(candidate) for candidate in lists[row.name]],
                "val/acc": [number if math.isfinite(number) else None for number in scores],
                "chosen": best,
            }
    if out is not None:
        write_text(out, f"{json.dumps(record, indent=1)}\n")
    return [chosen[row.name] for row in rows]


def _trials(row: Row, candidates: Sequence[tuple[str, ...]]) -> list[Row]:
    return [
        replace(row, name=f"{row.name}.{number}", arguments=(*row.arguments, *candidate))
        for number, candidate in enumerate(candidates)
    ]


def score(grid: Grid, cell: Cell) -> float:
    """Validation accuracy of a cell at its best epoch, which is what `best.ckpt` holds; -inf if it did not finish."""
    if cell not in grid.records:
        return -math.inf
    run = read_run(grid.folder(cell))
    return -math.inf if run.best_epoch is None else run.epochs[run.best_epoch]["val/acc"]
