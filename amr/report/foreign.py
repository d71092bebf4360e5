"""Runs that amr did not leave a folder of: W&B's offline runs and Lightning's CSVLogger."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amr.evaluation.runs import ALL, BLANK, SPLITS, Run, flat_settings, merge, read_metrics
from amr.report.wandb_records import Record, number, read_record
from amr.utils.readers import printable, read_yaml

FACTS = (  # "start" is its number among the starts of the run
    *("method", "title", "dataset", "seed", "fusion", "modalities", "labels", "num_classes", "wandb_id", "start"),
    "_wandb",
)


def wandb_file(folder: Path) -> Path | None:
    """The record file of a W&B run's folder; None if it is none."""
    return min(folder.glob("run-*.wandb"), default=None) if folder.is_dir() else None


def csv_file(path: Path) -> Path | None:
    """The metrics.csv that `path` is or holds; None if it neither is nor does."""
    file = path if path.name == "metrics.csv" else path / "metrics.csv"
    return file if file.is_file() else None


Beside = dict[Path, dict[str, list[Path]]]
"""By folder that holds W&B's runs, and by record file's name: the runs' folders that have it."""


def starts(folder: Path, beside: Beside | None = None) -> list[Path]:
    """The folders of all starts of a W&B run, oldest first: resuming a run makes another beside the first.

    Args:
        folder: One of them.
        beside: Folders that are already known; added to, so that no folder is listed twice.
    """
    folder = folder.resolve() if folder.is_symlink() else folder  # W&B's latest-run
    file = wandb_file(folder)
    assert file is not None
    beside = {} if beside is None else beside
    if folder.parent not in beside:
        known = beside[folder.parent] = defaultdict(list)
        for path in folder.parent.iterdir():
            for other in () if path.is_symlink() or not path.is_dir() else path.glob("run-*.wandb"):
                known[other.name].append(path)
    same = beside[folder.parent][file.name]
    return sorted(same, key=lambda path: path.name.removeprefix("offline-"))  # the rest begins with the time


def read_wandb(folder: Path, beside: Beside | None = None) -> Run:
    """Read a W&B run: amr's, whose config says what it is, or any other that logs `val/acc` and `epoch`.

    Raises:
        UserError: A record file is damaged; the message names it.
    """
    folders = starts(folder, beside)
    records = in_order([read_record(file) for path in folders if (file := wandb_file(path))])
    config = {key: value for record in records for key, value in record.config.items()}
    final = next((record for record in reversed(records) if record.run_id), records[-1])
    epochs, test = merge(_epochs(record) for record in records)
    untimed = [final.summary, *(row for row in final.history if _epoch(row) is None)]
    test = _metrics(untimed, "test/") | test
    notes = []
    if not records[-1].complete:
        notes.append("its W&B record has no end (still running, or killed): read as far as it goes")
    if any("val/acc" in row for record in records for row in record.history if _epoch(row) is None):
        notes.append("rows of its history without a whole number as epoch are left out")
    seed = next((config[k] for k in ("seed", "seed_everything") if _is_int(config.get(k))), None)
    name = final.name or final.group or final.run_id or folder.name
    settings = {key: value for key, value in config.items() if key not in FACTS}
    return Run(
        path=folder,
        method=_text(config.get("method")) or printable(name),
        dataset=_text(config.get("dataset")) or printable(final.project) or BLANK,
        fusion=_text(config.get("fusion")) or BLANK,
        seed=seed,
        modalities=_names(config.get("modalities")) or _modalities([*epochs.values(), test]),
        labels=_names(config.get("labels")),
        epochs=epochs,
        test=test,
        settings=flat_settings(folder, settings, final.name or folder.name, seed),
        has_metrics=any(record.history for record in records),
        title=_text(config.get("title")),
        notes=tuple(notes),
    )


def in_order(records: Sequence[Record]) -> list[Record]:
    """The starts of one run in the order in which they resumed each other.

    amr numbers its starts. Other runs' are taken in the order given, that of their folders' times, as far as that can
    be: a clock may have been set back, and a start that begins at epoch k has resumed one that had reached epoch k - 1.
    """
    logged = [record for record in records if record.history]
    numbers = [record.config.get("start") for record in logged]
    if all(map(_is_int, numbers)) and len(set(numbers)) == len(logged):
        silent = [record for record in records if not record.history]  # `predict`, or killed before its first epoch
        return [*silent, *sorted(logged, key=lambda record: int(record.config["start"]))]
    left = [(record, _epochs(record)) for record in records]
    found, reached = [], -1

    def trained(epochs: Mapping[int, Mapping[str, float]]) -> bool:
        return any(column.startswith("train/") for values in epochs.values() for column in values)

    def ready(epochs: Mapping[int, Mapping[str, float]]) -> bool:
        return not epochs or min(epochs) <= reached + trained(epochs)

    while left:
        first = min(left, key=lambda pair: (not trained(pair[1]), min(pair[1], default=0)))
        record, epochs = pair = next((pair for pair in left if ready(pair[1])), first)
        left.remove(pair)
        found.append(record)
        reached = max(epochs) if trained(epochs) else reached
    return found


def read_csv(path: Path) -> Run:
    """Read what Lightning's CSVLogger left: the method is its folder's name, the dataset the name of the one above.

    Raises:
        UserError: metrics.csv or hparams.yaml cannot be read; the message names the file.
    """
    file = csv_file(path)
    assert file is not None
    names = [p.name for p in file.resolve().parents if p.name and not re.fullmatch(r"version_\d+", p.name)]
    method, dataset = map(printable, [*names, BLANK, BLANK][:2])
    epochs, test = merge([read_metrics(file)])
    hparams = read_yaml(file.parent / "hparams.yaml")
    known = hparams if isinstance(hparams, dict) else {}
    seed = next((known[k] for k in ("seed", "seed_everything") if _is_int(known.get(k))), None)
    return Run(
        path=file.parent,
        method=method,
        dataset=dataset,
        fusion=BLANK,
        seed=seed,
        modalities=_modalities([*epochs.values(), test]),
        epochs=epochs,
        test=test,
        settings=flat_settings(file.parent / "hparams.yaml", known, method, seed),
        has_metrics=True,
    )


def _epochs(record: Record) -> dict[int, dict[str, float]]:
    epochs: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for row in record.history:
        if (epoch := _epoch(row)) is not None and (values := _metrics([row], SPLITS)):
            epochs[epoch] |= values
    return dict(epochs)


def _epoch(row: Mapping[str, Any]) -> int | None:
    epoch = number(row.get("epoch"))
    return int(epoch) if epoch is not None and epoch.is_integer() else None


def _metrics(rows: Iterable[Mapping[str, Any]], prefix: str | tuple[str, ...]) -> dict[str, float]:
    """The numbers among the columns with the prefix; of several rows', the last."""
    columns = [(key, number(value)) for row in rows for key, value in row.items() if key.startswith(prefix)]
    return {printable(key): value for key, value in columns if value is not None}


def _modalities(rows: Iterable[Mapping[str, float]]) -> tuple[str, ...]:
    shares = {c.split("/", 2)[2] for row in rows for c in row if c.startswith(("val/dominance/", "test/dominance/"))}
    return tuple(sorted(shares)) or (ALL,)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return printable(value) if isinstance(value, str) else ""


def _names(value: Any) -> tuple[str, ...]:
    return tuple(map(_text, value)) if isinstance(value, list) and all(isinstance(name, str) for name in value) else ()
