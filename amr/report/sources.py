"""Where runs are: run folders, W&B's and Lightning's folders, results.parquet, and folders of these."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from amr.evaluation.runs import Run, read_folder
from amr.report.foreign import Beside, csv_file, read_csv, read_wandb, starts, wandb_file
from amr.report.results import read_results
from amr.utils.files import run_folder
from amr.utils.readers import bad

ALLOWED = (
    "a folder with run.json (amr fit writes it), a results.parquet, a W&B run's folder (with run-*.wandb), "
    "Lightning's metrics.csv or its folder, a folder of these (also in runs/ or wandb/ below it), or a glob"
)


def find_runs(paths: Iterable[str | Path], beside: Beside | None = None) -> list[Path]:
    """Runs that `paths` name: each path is a run, a results.parquet, a folder of runs, or a glob; doubles are dropped.

    What lies in an amr run's folder (its wandb/, its metrics/) is that run.

    Args:
        paths: Files, folders and globs.
        beside: Known folders that hold W&B's runs; added to.

    Raises:
        UserError: A path leads to no run.
    """
    beside = {} if beside is None else beside
    found: dict[Path, Path] = {}
    for given in map(Path, paths):
        if given.suffix == ".ckpt" and given.is_file():
            given = run_folder(given)
        matches = [given] if given.exists() else sorted(Path(given.anchor).glob(str(given.relative_to(given.anchor))))
        runs = [run for match in matches for run in ([match] if match.suffix == ".parquet" else _runs(match, beside))]
        if not runs:
            raise bad(given, f"no run here; must be {ALLOWED}")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return [found[key] for key in sorted(found)]


def read_run(path: str | Path, beside: Beside | None = None) -> Run:
    """Read one run: amr's folder, a W&B run's, or what Lightning's CSVLogger left.

    Args:
        path: The run.
        beside: Known folders that hold W&B's runs; added to.

    Raises:
        UserError: It is not a run, or one of its files cannot be read; the message names the file.
    """
    path = Path(path)
    if (path / "run.json").is_file():
        return read_folder(path)
    if wandb_file(path):
        return read_wandb(path, beside)
    if csv_file(path):
        return read_csv(path)
    raise bad(path, f"not a run; must be {ALLOWED}")


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Find and read runs, those in results.parquet files too; of equal ones (the same folder, too), one is kept.

    Raises:
        UserError: A path leads to no run, or a file cannot be read.
    """
    beside: Beside = {}
    runs: defaultdict[Path, list[Run]] = defaultdict(list)  # equal runs have one path
    for path in find_runs(paths, beside):
        read = read_results(path) if path.suffix == ".parquet" else [read_run(path, beside)]
        for run in read:
            if run not in runs[run.path]:
                runs[run.path].append(run)
    return [run for equal in runs.values() for run in equal]


def _runs(path: Path, beside: Beside) -> list[Path]:
    """The run that `path` is or lies in, or else the runs in it, in its runs/ and in its wandb/."""
    if own := _run(path, beside):
        return [own]
    inside = [child for folder in (path, path / "runs", path / "wandb") for child in _children(folder)]
    return [run for child in inside if (run := _run(child, beside))]


def _run(path: Path, beside: Beside) -> Path | None:
    if (path / "run.json").is_file():
        return path
    if not (wandb_file(path) or csv_file(path)):
        return None
    for above in path.resolve().parents[:3]:  # metrics/version_0/metrics.csv
        if (above / "run.json").is_file():
            return above
    return starts(path, beside)[0] if wandb_file(path) else path.parent if path.is_file() else path


def _children(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else []
