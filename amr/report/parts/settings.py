"""Which settings differ between runs, one line per value: narrow enough for a phone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from amr.evaluation.runs import Run
from amr.report.table import Row, row_names

HEAD = ["Setting", "Value", "Methods"]
CAPTION = "Settings (config.yaml) that are not the same in all runs. A method that is not named has no such setting."
AMR = "model.amr"
AMR_CAPTION = f" {AMR}: its ratio, weight and learning rate, and what is not AMR's default."
# Of `amr.AMR`, as config.yaml writes them; those that are null there are not among a run's settings.
AMR_DEFAULTS = {
    "optimizer": "sgd",
    "momentum": "0.0",
    "start_epoch": "0",
    "score": "probability",
    "level": "batch",
    "follow_schedule": "true",
}
_FIRST = ("ratio", "weight", "lr")  # always named, in this order


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Settings in which the runs differ; runs without config.yaml are not asked.

    `settings` leaves out what equals the run's seed: a fixed seed, such as that of a measurement, does not differ.
    """
    known = [run for run in runs if run.settings]

    def value(run: Run, key: str) -> str | None:
        return run.settings.get(key, str(run.seed) if "seed" in key.rpartition(".")[2] else None)

    keys = {key for run in known for key in run.settings}
    return sorted(key for key in keys if len({value(run, key) for run in known}) > 1)


def settings_cells(rows: Sequence[Row]) -> tuple[str, list[list[str]]]:
    """The caption and the lines of the table with `HEAD`: a setting, a value, and which rows have it."""
    keys = differing_settings([run for row in rows for run in row.runs])
    names = [key for key in keys if not key.startswith(f"{AMR}.")]
    folded = len(names) < len(keys)
    values_of = {id(run): {**run.settings, **_folded(run)} for row in rows for run in row.runs}
    body, titles = [], row_names(rows)
    for key in [*([AMR] if folded else []), *names]:
        values: defaultdict[str, list[str]] = defaultdict(list)
        for name, row in zip(titles, rows, strict=True):
            settings = [values_of[id(run)] for run in row.runs]
            for value in dict.fromkeys(each[key] for each in settings if key in each):
                having = [run for run, each in zip(row.runs, settings, strict=True) if each.get(key) == value]
                only = "" if len(having) == len(row.runs) else f" (seed {', '.join(str(run.seed) for run in having)})"
                values[value].append(name + only)
        body += [[key, value, ", ".join(members)] for value, members in values.items()]
    return CAPTION + (AMR_CAPTION if folded else ""), body


def _folded(run: Run) -> dict[str, str]:
    """AMR's settings as one, `ratio=equal, weight=1.0, lr=0.1`; empty for a run without."""
    own = {
        key.removeprefix(f"{AMR}.").removeprefix("init_args."): value
        for key, value in run.settings.items()
        if key.startswith(f"{AMR}.")
    }
    if not own:
        return {}
    if own.get("class_path") in ("amr.AMR", None):  # another class has other defaults
        own = {key: value for key, value in own.items() if key != "class_path" and AMR_DEFAULTS.get(key) != value}
    if not any(key.partition(".")[0] in ("ratio", "ratio_from") for key in own):
        own["ratio"] = "equal"
    first = [key for name in _FIRST for key in own if key.partition(".")[0] == name]
    return {AMR: ", ".join(f"{key}={own[key]}" for key in [*first, *(key for key in own if key not in first)])}
