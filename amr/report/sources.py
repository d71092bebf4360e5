"""Where runs are: run folders, W&B's and Lightning's folders, results.parquet, and folders of these."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from amr.evaluation.runs import Run, read_folder
from amr.report.foreign import csv_file, read_csv, read_wandb, starts, wandb_file
from amr.report.results import read_results
from amr.utils.readers import bad

ALLOWED = (
    "a folder with run.json (amr fit writes it), a results.parquet, a W&B run's folder (with run-*.wandb), "
    "Lightning's metrics.csv or its folder, a folder of these (also in runs/ or wandb/ below it), or a glob"
)


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """What `paths` name: each a run, a results.parquet, a folder of runs, or a glob of these; doubles are dropped.

    What lies in an amr run's folder (its wandb/, its metrics/) is that run.

    Raises:
        UserError: A path leads to no run.
    """
    found: dict[Path, Path] = {}
    for given in map(Path, paths):
        matches = [given] if given.exists() else sorted(Path(given.anchor).glob(str(given.relative_to(given.anchor))))
        runs = [run for match in matches for run in ([match] if match.suffix == ".parquet" else _runs(match))]
        if not runs:
            raise bad(given, f"no run here; must be {ALLOWED}")
        found |= {run.resolve(): run for run in reversed(runs) if run.resolve() not in found}
    return [found[key] for key in sorted(found)]


def read_run(path: str | Path) -> Run:
    """Read one run: amr's folder, a W&B run's, or what Lightning's CSVLogger left.

    Raises:
        UserError: It is no run, or one of its files cannot be read; the message names the file.
    """
    path = Path(path)
    if (path / "run.json").is_file():
        return read_folder(path)
    if wandb_file(path):
        return read_wandb(path)
    if csv_file(path):
        return read_csv(path)
    raise bad(path, f"not a run; must be {ALLOWED}")


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Find and read runs, those in results.parquet files too; of equal ones (the same folder, too), one is kept.

    Raises:
        UserError: A path leads to no run, or a file cannot be read.
    """
    runs: list[Run] = []
    for path in find_runs(paths):
        read = read_results(path) if path.suffix == ".parquet" else [read_run(path)]
        runs += [run for run in read if run not in runs]
    return runs


def _runs(path: Path) -> list[Path]:
    """The run that `path` is or lies in, or else the runs in it, in its runs/ and in its wandb/."""
    if own := _run(path):
        return [own]
    inside = [child for folder in (path, path / "runs", path / "wandb") for child in _children(folder)]
    return [run for child in inside if (run := _run(child))]


def _run(path: Path) -> Path | None:
    if (path / "run.json").is_file():
        return path
    if not (wandb_file(path) or csv_file(path)):
        return None
    for above in path.resolve().parents[:3]:  # metrics/version_0/metrics.csv
        if (above / "run.json").is_file():
            return above
    return starts(path)[0] if wandb_file(path) else path.parent if path.is_file() else path


def _children(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else []
