"""A grid's rows and cells, read from its YAML: what is trained and tested, and the hash that a cell is known by."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from amr.cli.benchmark.ensemble import COMBINATIONS
from amr.utils.errors import UserError
from amr.utils.names.configs import data_source, find_config
from amr.utils.readers import YAML_BYTES, parse_yaml, read_text

KEYS = ("base", "unimodal", "ensembles", "methods", "amr", "teachers", "tuning")
WITH_AMR = "+amr"
SECTIONS = ("seed_everything", "trainer", "model", "data", "best", "dominance")
WITHOUT_EFFECT = {  # beyond rounding, on what a cell ends with
    "trainer": ("enable_progress_bar", "enable_model_summary", "log_every_n_steps", "default_root_dir", "profiler"),
    "model": ("compile_encoders", "channels_last"),
    "data.init_args": ("num_workers", "prepare_workers", "store", "predict_split"),
    "best": ("dirpath",),
    "dominance": ("table",),
}


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: Its name: a modality, a method, or a method and `+amr`.
        arguments: Arguments of `amr fit`, after those that all rows have.
        unimodal: Whether it is one modality's.
        teachers: Key that takes the unimodal runs' checkpoints, by modality; None if the method has no teachers.
        ensemble: How it combines the unimodal runs, which it is made of without training; empty for any other row.
    """

    name: str
    arguments: tuple[str, ...]
    unimodal: bool = False
    teachers: str | None = None
    ensemble: str = ""

    @property
    def needs_unimodal(self) -> bool:
        """Whether the unimodal runs must be finished before."""
        return bool(self.teachers or self.ensemble)


@dataclass(frozen=True, eq=False)
class Cell:
    """A row with a seed: what is trained and tested once.

    Attributes:
        row: The row.
        seed: The seed.
        arguments: Arguments of `amr fit`, without the teachers and the run's folder.
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
        """Hash of all settings that decide the result, in hexadecimal."""
        return fingerprint(self.config, {name: teacher.hash for name, teacher in self.teachers.items()})

    @property
    def name(self) -> str:
        """Name of the cell for people."""
        return f"{self.row.name}-s{self.seed}"

    @property
    def kind(self) -> str:
        """Cells of a kind take about as long as each other."""
        return "unimodal" if self.row.unimodal else "ensemble" if self.row.ensemble else "fusion"


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
    """Reads a grid's YAML: `base`, `unimodal`, `ensembles`, `methods`, `amr`, `teachers`; see configs/benchmarks.

    `tuning` is read by `amr.cli.benchmark.tuning`.

    Returns:
        Arguments of `amr fit` that all rows have, and the rows: unimodal ones, then each method, plain and with AMR.

    Raises:
        UserError: The file, a key, or an entry is not as it should be.
    """
    grid = parse_yaml(path, read_text(path, YAML_BYTES))
    if not isinstance(grid, dict) or not grid.get("methods") or set(grid) - set(KEYS):
        unknown = min((str(key) for key in grid if key not in KEYS), default="") if isinstance(grid, dict) else ""
        raise UserError(
            f"{path}: {f'{unknown}: unknown key' if unknown else 'methods: missing'}; must be among {', '.join(KEYS)}"
        )
    for key in ("unimodal", "ensembles", "methods", "teachers"):
        if not isinstance(grid.setdefault(key, {}), dict):
            raise UserError(f"{path}: {key}: must be names, each with its value")
        for name in grid[key]:
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", str(name), re.ASCII):
                raise UserError(f"{path}: {key}={name!r}: must be letters, digits and . _ -")
    unimodal, methods, teachers = grid["unimodal"], grid["methods"], grid["teachers"]
    if both := unimodal.keys() & methods.keys():
        raise UserError(f"{path}: methods: {min(both)!r} is in `unimodal`, too; names must differ")
    for name, combination in grid["ensembles"].items():
        if combination not in COMBINATIONS or len(unimodal) < 2 or name in {*unimodal, *methods}:
            needed = f"a name of its own, two `unimodal` rows, and one of {', '.join(COMBINATIONS)}"
            raise UserError(f"{path}: ensembles.{name}={combination!r}: must have {needed}")
    for name, key in teachers.items():
        if name not in methods or not unimodal or not isinstance(key, str) or "." not in key:
            needed = f"a method of that name, `unimodal`, and a key of `amr fit` such as model.{name}.teachers"
            raise UserError(f"{path}: teachers.{name}={key!r}: must be {needed}")

    def arguments(key: str, entries: Any) -> list[str]:
        if not isinstance(entries or [], list) or not all(isinstance(entry, str) for entry in entries or []):
            raise UserError(f"{path}: {key}: must be a list of configurations (files or names) and --key=value")
        return [argument for entry in entries or [] for argument in entry_arguments(f"{path}: {key}", entry)]

    rows = [Row(name, tuple(arguments(f"unimodal.{name}", value)), True) for name, value in unimodal.items()]
    rows += [Row(name, (), ensemble=combination) for name, combination in grid["ensembles"].items()]
    amr = arguments("amr", grid.get("amr"))
    for name, value in methods.items():
        plain = arguments(f"methods.{name}", value)
        rows.append(Row(name, tuple(plain), teachers=teachers.get(name)))
        if amr:
            rows.append(Row(name + WITH_AMR, (*plain, *amr), teachers=teachers.get(name)))
    return arguments("base", grid.get("base")), rows


def entry_arguments(where: str, entry: str) -> list[str]:
    """An entry as arguments of `amr fit`."""
    if entry.startswith("--"):
        if "=" not in entry:
            raise UserError(f"{where}: {entry}: must be --key=value, or a configuration (a file or a name)")
        return [entry]
    return ["--config", str(find_config(entry, where))]


def data_arguments(data: str | Path) -> list[str]:
    """The data set, as a user names it, as arguments of `amr fit`."""
    source = data_source(data)
    return ["--data", source] if isinstance(source, str) else ["--config", str(source)]


def needed(rows: Sequence[Row], only: Sequence[str] = ()) -> list[Row]:
    """The named rows, all if none is named, and the unimodal rows if one of them needs those.

    Raises:
        UserError: A row is unknown.
    """
    if unknown := [name for name in only if name not in {row.name for row in rows}]:
        raise UserError(f"--only={unknown[0]}: must be one of {', '.join(row.name for row in rows)}")
    chosen = [row for row in rows if not only or row.name in only]
    if any(row.needs_unimodal for row in chosen):
        return [row for row in rows if row in chosen or row.unimodal]
    return chosen


def make_cells(
    rows: Sequence[Row],
    seeds: Sequence[int],
    common: Sequence[str],
    resolve: Callable[[Sequence[str]], Mapping[str, Any]],
    only: Sequence[str] = (),
) -> list[Cell]:
    """Cells in the order of their training: unimodal first, then by seed, so that what is finished makes a table.

    Args:
        rows: Rows of the grid.
        seeds: Each row has all of them.
        common: Arguments of `amr fit` before each row's own.
        resolve: Gives the whole configuration for arguments of `amr fit`.
        only: Names of the rows to keep, besides the teachers that they need; all if empty.

    Raises:
        UserError: A row is unknown, or its configuration is refused.
    """
    chosen = needed(rows, only)
    modalities = [row.name for row in chosen if row.unimodal]
    configs = {}
    for row in (row for row in chosen if not row.ensemble):
        stand_in = [teachers_argument(row, dict.fromkeys(modalities, "teacher"))] if row.teachers else []
        try:
            configs[row.name] = resolve([*common, *row.arguments, *stand_in, f"--seed_everything={seeds[0]}"])
        except UserError as error:
            raise UserError(f"{row.name}: {error}") from None
    cells: dict[tuple[str, int], Cell] = {}
    for unimodal in (True, False):
        for seed in seeds:
            for row in (row for row in chosen if row.unimodal == unimodal):
                teachers = {name: cells[name, seed] for name in modalities} if row.needs_unimodal else {}
                resolved = configs[row.name] if not row.ensemble else _of_ensemble(row, [*teachers.values()])
                config = {**resolved, "seed_everything": seed}  # all that depends on the seed
                own = (*common, *row.arguments, f"--seed_everything={seed}")
                cells[row.name, seed] = Cell(row, seed, own, config, teachers)
    unique: dict[str, Cell] = {}
    for cell in cells.values():
        if (same := unique.setdefault(cell.hash, cell)) is not cell:
            raise UserError(f"{cell.name}: its configuration is that of {same.name}; take one of the rows out")
    return list(unique.values())


def _of_ensemble(row: Row, members: Sequence[Cell]) -> dict[str, Any]:
    """Identity of an ensemble's cell besides its members; it replaces the configuration of `amr fit`."""
    return {"model": {"combination": row.ensemble}, "data": members[0].config.get("data"), "trainer": {"max_epochs": 0}}


def teachers_argument(row: Row, paths: Mapping[str, str]) -> str:
    """The argument of `amr fit` that names a row's teachers, by modality."""
    return f"--{row.teachers}={json.dumps(paths)}"
