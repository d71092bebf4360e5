"""Writes the grids of the study's second part from what the validation split says, so that nothing is chosen by hand.

    python docs/study/decisions/choose.py trials   forms.yaml as a grid, with the base of docs/results/grid-letters
    python docs/study/decisions/choose.py onto     the three best forms on multi-loss and on DGL, three strengths each
    python docs/study/decisions/choose.py main     the methods, and each form at its best strength
    python docs/study/decisions/choose.py dial     multi-loss, and the form that the dial turns, at targets 0.1 to 0.9
    python docs/study/decisions/choose.py ablation that form at equal targets, with one option changed at a time

The rule is that of docs/results/grid-letters/pick.py: the highest validation accuracy of the best epoch, as a mean over
the seeds; equal ones are told apart by mAP at that epoch, then by their order.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
LETTERS = FOLDER.parents[1] / "results" / "grid-letters"
sys.path += [str(LETTERS), str(FOLDER.parent)]

import pick as letters  # noqa: E402  # of docs/results/grid-letters
from report import Results  # noqa: E402  # of docs/study

from amr.utils.errors import UserError  # noqa: E402
from amr.utils.files import write_text  # noqa: E402

METHODS = (
    "naive",
    "multi_loss",
    "dgl",
    "tcmax",
    "umt",
    "g2d",
    "mcr",
)  # of grid-letters, with the settings chosen there
ONTO = ("multi_loss", "dgl")
BEST = 3
DIAL = "amr_encoder"  # it can push both modalities, up and down
STRENGTH = (
    "--model.amr.weight=1"  # the middle one of those that were tried: the strongest costs much accuracy in the trials
)
GUARDED = ("amr", "amr_weak", "amr_encoder")  # forms that are trained with the guard, too
OFF = "--model.amr.guard=false"
TARGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CHANGES = {  # rows of the ablation: options of the dial's form
    "head": ("gradient=head",),
    "all": ("gradient=all",),
    "weak": ("push=weak",),
    "mean": ("replacement=mean",),
    "zeros": ("gradient=head", "replacement=zeros"),
    "different": ("different_label=true",),
    "k1": ("permutations=1",),
    "k16": ("permutations=16",),
}
GRIDS = ("trials", "onto", "main", "dial", "ablation")

Grid = dict[str, Any]


def forms(folder: Path = FOLDER) -> dict[str, list[str]]:
    """Entries of each form and strength, by FORM-VALUE."""
    found: dict[str, list[str]] = yaml.safe_load((folder / "forms.yaml").read_text())["forms"]
    return found


def controls(folder: Path = LETTERS) -> Grid:
    """The grid of docs/results/grid-letters with what was chosen there.

    Raises:
        UserError: If it has not been made.
    """
    if not (folder / "main.yaml").is_file():
        raise UserError(f"{folder / 'main.yaml'}: not there; run docs/results/grid-letters/run.sh tuning first")
    return letters.read("main", folder)


def grid(methods: dict[str, list[str]], made_from: dict[str, str], control: Grid) -> Grid:
    """A grid with grid-letters' base, unimodal rows and teachers.

    Args:
        methods: Entries by name.
        made_from: The method of grid-letters in each row, whose teachers the row needs.
        control: The grid of grid-letters.
    """
    teachers = {row: control["teachers"][made_from[row]] for row in methods if made_from[row] in control["teachers"]}
    made = {"base": control["base"], "unimodal": control["unimodal"], "methods": methods}
    return {**made, "teachers": teachers} if teachers else made


def trials(control: Grid) -> Grid:
    """Every form and strength on naive fusion."""
    methods = {name: [*control["methods"]["naive"], *entry] for name, entry in forms().items()}
    return grid(methods, dict.fromkeys(methods, "naive"), control)


def best_forms(results: Results, control: Grid) -> dict[str, str]:
    """The best strength of each form, best form first."""
    found = letters.winners(results, "trials", trials(control))
    scores = {form: letters.score(results, "trials", trial) for form, trial in found.items()}
    return dict(sorted(found.items(), key=lambda entry: scores[entry[0]] or (0.0, 0.0), reverse=True))


def onto(results: Results, control: Grid) -> Grid:
    """The three best forms at three strengths on the methods of `ONTO`."""
    chosen = list(best_forms(results, control))[:BEST]
    methods = {
        f"{method}.{trial}": [*control["methods"][method], *entry]
        for method in ONTO
        for trial, entry in forms().items()
        if letters.method_of(trial) in chosen
    }
    return grid(methods, {row: row.partition(".")[0] for row in methods}, control)


def main_grid(results: Results, control: Grid) -> Grid:
    """The methods, and each form, on naive fusion and on others, at its best strength."""
    methods = {method: control["methods"][method] for method in METHODS if method in control["methods"]}
    entries = trials(control)["methods"]
    methods |= {form: entries[trial] for form, trial in sorted(best_forms(results, control).items())}
    methods |= {
        f"{form}_guard": [entry for entry in methods[form] if entry != OFF] for form in GUARDED if form in methods
    }
    combined = onto(results, control)
    for row, trial in letters.winners(results, "onto", combined).items():
        methods[row] = combined["methods"][trial]
    return grid(methods, {row: row.partition(".")[0] for row in methods}, control)


def dial_form(control: Grid) -> tuple[list[str], list[str]]:
    """Entries of multi-loss, and of the form that the dial turns."""
    entry = next(entry for name, entry in forms().items() if letters.method_of(name) == DIAL)
    return control["methods"]["multi_loss"], [*entry[:-1], STRENGTH]


def ablation(control: Grid) -> Grid:
    """Multi-loss, the dial's form on it at equal targets, and that with one option changed."""
    plain, entry = dial_form(control)
    methods = {"multi_loss": plain, "form": [*plain, *entry]}
    methods |= {
        name: [*plain, *entry, *(f"--model.amr.{option}" for option in options)] for name, options in CHANGES.items()
    }
    return grid(methods, dict.fromkeys(methods, "multi_loss"), control)


def dial(control: Grid) -> Grid:
    """Multi-loss, and the form on it at each target."""
    plain, entry = dial_form(control)
    methods = {"multi_loss": plain}
    for target in TARGETS:
        ratio = f"--model.amr.ratio={{audio: {target}, video: {round(1 - target, 1)}}}"
        methods[f"r{target}"] = [*plain, *entry, ratio]
    return grid(methods, dict.fromkeys(methods, "multi_loss"), control)


def next_grid(name: str, results: Results, control: Grid) -> Grid:
    """The grid of that name, of the results so far."""
    if name == "trials":
        return trials(control)
    if name == "dial":
        return dial(control)
    if name == "ablation":
        return ablation(control)
    return onto(results, control) if name == "onto" else main_grid(results, control)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the grids and of results/")
    options = parser.parse_args(arguments)
    made = next_grid(options.grid, Results(options.folder / "results"), controls())
    write_text(options.folder / f"{options.grid}.yaml", letters.written(made, "choose.py"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
