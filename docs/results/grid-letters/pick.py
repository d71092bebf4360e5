"""Picks each method's setting by the validation split and writes the next grid, so that nothing is chosen by hand.

    python docs/results/grid-letters/pick.py tuning            settings.yaml with the best of rates.yaml
    python docs/results/grid-letters/pick.py amr               the best of tuning.yaml, each with three rates of AMR
    python docs/results/grid-letters/pick.py main              the best of both, plain and with AMR
    python docs/results/grid-letters/pick.py rows GRID first   prints GRID's rows of the methods that come first

A trial is a row METHOD-VALUE. The best one has the highest validation accuracy of the best epoch, as a mean over the
seeds; equal ones are told apart by mAP at that epoch, then by their order. What was measured is read from results/.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER.parents[1] / "study"))

from report import Results  # noqa: E402  # of docs/study

from amr.utils.errors import UserError  # noqa: E402
from amr.utils.files import write_text  # noqa: E402

DATASET = "letters"
FIRST = ("naive", "multi_loss", "late_tuned", "umt", "dgl", "tcmax", "mcr", "g2d", "mla")
RATES = (0.05, 0.1, 0.2)  # of AMR's optimizer
SEEDS = 1  # of a trial, as run.sh has them
AMR = ("configs/methods/amr.yaml", "--model.amr.guard=false")  # the guard would weaken what is compared
ENSEMBLES = {"ensemble": "logits", "ensemble_probabilities": "probabilities"}
UNIMODAL = ("audio", "video")
GRIDS = ("tuning", "amr", "main")  # that are written here

Grid = dict[str, Any]


def read(name: str, folder: Path = FOLDER) -> Grid:
    """A grid of the folder."""
    grid: Grid = yaml.safe_load((folder / f"{name}.yaml").read_text())
    return grid


def method_of(trial: str) -> str:
    """METHOD of METHOD-VALUE."""
    return trial.partition("-")[0]


def rows(grid: Grid, half: str) -> list[str]:
    """Names of a grid's rows whose methods come first, or of the others.

    Args:
        grid: The grid.
        half: `first`, with the unimodal rows and the ensembles, `rest`, or `plain`, which is all rows without AMR but
            that of naive fusion.
    """
    if half == "plain":
        methods = [name for name in grid["methods"] if name == "naive-amr" or not name.endswith("-amr")]
        return [*grid["unimodal"], *grid["ensembles"], *methods]
    methods = [name for name in grid["methods"] if (method_of(name) in (*UNIMODAL, *FIRST)) == (half == "first")]
    return [*grid.get("unimodal", {}), *grid.get("ensembles", {}), *methods] if half == "first" else methods


def score(results: Results, grid: str, trial: str) -> tuple[float, float] | None:
    """Validation accuracy and mAP of the best epoch, means over seeds; None of a trial that lacks a seed."""
    accuracies, precisions = (results.curves.get((DATASET, grid, trial, f"val/{name}"), {}) for name in ("acc", "mAP"))
    if len(accuracies) < SEEDS:
        return None
    best = {seed: max(epochs, key=lambda epoch: (epochs[epoch], epoch)) for seed, epochs in accuracies.items()}
    return (
        statistics.fmean(accuracies[seed][epoch] for seed, epoch in best.items()),
        statistics.fmean(precisions[seed][epoch] for seed, epoch in best.items()),
    )


def winners(results: Results, name: str, grid: Grid) -> dict[str, str]:
    """The best trial of each method that has any; a trial that failed on a seed is not chosen.

    Args:
        results: What was measured.
        name: The grid's name there.
        grid: The grid.
    """
    best: dict[str, tuple[tuple[float, float], str]] = {}
    for trial in grid["methods"]:
        known, method = score(results, name, trial), method_of(trial)
        if known is not None and (method not in best or known > best[method][0]):
            best[method] = (known, trial)
    return {method: trial for method, (_, trial) in best.items()}


def tuning_grid(results: Results, folder: Path = FOLDER) -> Grid:
    """Each method's settings, with naive fusion's best rate for all of them, and the best unimodal rows."""
    rates, settings = read("rates", folder), read("settings", folder)
    best = {method: rates["methods"][trial] for method, trial in winners(results, "rates", rates).items()}
    if lacking := sorted({*UNIMODAL, "naive"} - {*best}):
        raise UserError(f"{folder / 'results'}: no trials of {', '.join(lacking)} in rates.yaml; run them first")
    base, unimodal = [*settings["base"], *best["naive"]], {name: best[name] for name in UNIMODAL}
    return {**settings, "base": base, "unimodal": unimodal}


def amr_grid(results: Results, tuning: Grid) -> Grid:
    """Each method's best trial with each rate of AMR."""
    best = winners(results, "tuning", tuning)
    methods = {
        f"{method}-amr{rate}": [*tuning["methods"][trial], *AMR, f"--model.amr.lr={rate}"]
        for method, trial in best.items()
        for rate in RATES
    }
    return assembled(tuning, methods, best)


def main_grid(results: Results, tuning: Grid) -> Grid:
    """Each method with the best setting, plain and with AMR at the best rate."""
    best, amr = winners(results, "tuning", tuning), amr_grid(results, tuning)
    rates = winners(results, "amr", amr)
    methods: dict[str, list[str]] = {}
    for method, trial in best.items():
        methods[method] = tuning["methods"][trial]
        if method in rates:
            methods[f"{method}-amr"] = amr["methods"][rates[method]]
    return {**assembled(tuning, methods, best), "ensembles": dict(ENSEMBLES)}


def assembled(tuning: Grid, methods: Mapping[str, list[str]], best: Mapping[str, str]) -> Grid:
    """A grid of these methods; their teachers are those of the trials that they are made from.

    Args:
        tuning: The grid of the trials.
        methods: Entries by name, METHOD or METHOD-...
        best: The trial of each method.
    """
    made_from = {name: best[method_of(name)] for name in methods}
    teachers = {name: tuning["teachers"][trial] for name, trial in made_from.items() if trial in tuning["teachers"]}
    return {"base": tuning["base"], "unimodal": tuning["unimodal"], "methods": dict(methods), "teachers": teachers}


def next_grid(name: str, results: Results, folder: Path = FOLDER) -> Grid:
    """The grid `tuning`, `amr` or `main`, of the results so far."""
    tuning = tuning_grid(results, folder)
    if name == "tuning":
        return tuning
    return amr_grid(results, tuning) if name == "amr" else main_grid(results, tuning)


def written(grid: Grid, by: str = "pick.py") -> str:
    """A grid as YAML, an entry a line, with the script that wrote it; JSON's lists and strings are YAML's, too."""
    lines = [f"# Written by {by} from what the validation split says; not to be edited."]
    for key, value in grid.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {name}: {json.dumps(entry)}" for name, entry in value.items())]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    listed = commands.add_parser("rows", help="names of a grid's rows")
    listed.add_argument("grid", choices=("rates", *GRIDS))
    listed.add_argument("half", choices=("first", "rest", "plain"))
    for name in GRIDS:
        commands.add_parser(name, help=f"write {name}.yaml")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the grids and of results/")
    options = parser.parse_args(arguments)
    if options.command == "rows":
        print(*rows(read(options.grid, options.folder), options.half))
    else:
        grid = next_grid(options.command, Results(options.folder / "results"), options.folder)
        write_text(options.folder / f"{options.command}.yaml", written(grid))
    return 0


if __name__ == "__main__":
    sys.exit(main())
