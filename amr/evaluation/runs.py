"""A run, and how it is read from the folder that `amr fit` and `amr test` leave."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from amr.utils.readers import bad, csv_rows, printable, read_object, read_table, read_yaml, reading
from amr.utils.resume import are_starts, told

Source = Literal["test", "val"]
Key = tuple[str, str, str, int | None]
"""Measure, modality, corruption and severity of one of robustness.parquet's numbers."""
BLANK = "\N{EN DASH}"
ALL = "all"  # the one modality of a foreign run that logged no shares: not a unimodal run
SHARES = ("dominance", "decision_share")  # logged as {split}/{share}/{modality}
SPLITS = ("train/", "val/", "test/")
OUTCOMES = "test_predictions.parquet"  # in a run's folder: id, label and prediction of each test clip
PLACES = ("ckpt_path", "data.init_args.root", "data.init_args.store")  # settings that say where a run took place
NUMBERS = 2_000_000  # of a run, of all epochs: some 250 MB


@dataclass(frozen=True)
class Run:
    """One run, read.

    Attributes:
        path: The run's folder, as it was given.
        method: "naive", "amr", "umt+amr", or the modality's name for a unimodal run.
        dataset: The dataset's name.
        fusion: The fusion's name; a dash where run.json has none.
        seed: The run's seed, or None if it was not seeded.
        modalities: In the model's order.
        labels: The class list.
        epochs: `{epoch: {column: value}}` of `train/*` and `val/*`, fractions as logged.
        test: `{column: value}` of `test/*`; empty if the weights as last trained were never tested.
        per_class: `{split: {class: {column: value}}}`, from per_class.csv.
        settings: config.yaml, flattened to `{"model.amr.weight": "0.5"}`, without the seed and the run's own name.
        has_metrics: Whether any metrics were written.
        title: How tables and plots call the method; the method's name where none is given.
        notes: Problems in reading, and starts with other settings, to report beside the table.
        robustness: Robustness of the test split, by (measure, modality, corruption, severity), from robustness.parquet.
    """

    path: Path
    method: str
    dataset: str
    fusion: str
    seed: int | None
    modalities: tuple[str, ...]
    labels: tuple[str, ...] = ()
    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    per_class: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    has_metrics: bool = False
    title: str = ""
    notes: tuple[str, ...] = ()
    robustness: dict[Key, float] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.title:
            object.__setattr__(self, "title", self.method)

    @property
    def where(self) -> str:
        """The folder as text that is safe to print."""
        return printable(str(self.path))

    @property
    def best_epoch(self) -> int | None:
        """The first epoch with the highest `val/acc`; None before the first validation."""
        accuracy = {e: values["val/acc"] for e, values in self.epochs.items() if values.get("val/acc", -1) >= 0}
        return max(sorted(accuracy), key=accuracy.__getitem__, default=None)

    @property
    def missing(self) -> str | None:
        """Why there is nothing to compare yet; None if there is."""
        if self.best_epoch is not None or "test/acc" in self.test:
            return None
        if any("val/mae" in values for values in self.epochs.values()) or "test/mae" in self.test:
            return "it is of regression (model.task=regression), which has no accuracy to compare"
        return "no validated epoch yet" if self.has_metrics else "no metrics file yet"

    def numbers(self, source: Source) -> dict[str, float]:
        """`{"acc": ..., "mAP": ..., "dominance/<modality>": ...}` on one split; empty if the run has none."""
        best = {} if self.best_epoch is None else self.epochs[self.best_epoch]
        values = self.test if source == "test" else best
        return {key.partition("/")[2]: value for key, value in values.items() if key.startswith(f"{source}/")}


def read_folder(path: Path) -> Run:
    """Read a run's folder: run.json, metrics/version_*/metrics.csv, per_class.csv, config.yaml, robustness.parquet.

    Rows of metrics.csv are merged by epoch. A run that was resumed (`version_1`, ...) continues from the first epoch of
    the later version: what earlier versions had from there on, test results included, belongs to abandoned weights.
    A version that trained nothing (`validate` or `test` alone) adds its test results only.

    Raises:
        UserError: One of the folder's files cannot be read; the message names it.
    """
    file = path / "run.json"
    info = read_object(file)
    check_facts(file, info)
    versions = sorted((path / "metrics").glob("version_*/metrics.csv"), key=_version)
    epochs, test = merge(read_metrics(version) for version in versions)
    return Run(
        path=path,
        method=printable(info["method"]),
        dataset=printable(info["dataset"]),
        fusion=printable(info.get("fusion") or BLANK),
        seed=info.get("seed"),
        modalities=tuple(map(printable, info["modalities"])),
        labels=tuple(map(printable, info.get("labels") or [])),
        epochs=epochs,
        test=test,
        per_class=_per_class(path / "per_class.csv"),
        settings=flat_settings(
            path / "config.yaml", read_yaml(path / "config.yaml"), path.resolve().name, info.get("seed")
        ),
        has_metrics=bool(versions),
        title=printable(info.get("title") or ""),
        notes=tuple(printable(told(start)) for start in read_starts(file, info)),
        robustness=read_robustness(path / "robustness.parquet"),
    )


def read_robustness(file: Path) -> dict[Key, float]:
    """Values that `amr test --robustness.test true` wrote, without the rows by class; empty if the file is absent.

    Raises:
        UserError: It cannot be read, or is another table.
    """
    if not file.is_file():
        return {}
    names = ("measure", "modality", "corruption")
    needed = (*names, "severity", "value")
    found: dict[Key, float] = {}
    allowed = "a table as amr test writes it"
    with reading(file, allowed):
        for row in read_table(file, allowed, needed, needed):
            measure, modality, corruption = (printable(row[name]) for name in names)
            if "@class=" in measure:  # thousands
                continue
            severity = row["severity"]
            if severity is not None and not isinstance(severity, int):
                raise TypeError(f"severity {severity!r}")
            found[measure, modality, corruption, severity] = one_nan(float(row["value"]))
    return found


def check_facts(file: Path, info: Mapping[str, Any], where: str = "") -> None:
    """Check what identifies a run, as run.json and results.parquet hold it.

    Raises:
        UserError: A value is of a wrong type; the message names the file, `where` in it, and the key.
    """
    kinds = {"method": str, "dataset": str, "seed": int | None, "fusion": str | None, "title": str | None}
    for key, kind in kinds.items():
        if not isinstance(info.get(key), kind):
            raise bad(file, f"{where}{key}={info.get(key)!r}: must be of type {getattr(kind, '__name__', kind)}")
    for key, least in (("modalities", 1), ("labels", 0)):
        value = info.get(key) or []
        if not isinstance(value, list) or len(value) < least or not all(isinstance(item, str) for item in value):
            raise bad(file, f"{where}{key}={value!r}: must be a list of names")


def read_starts(file: Path, info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The starts of a run with other settings than before, as run.json's `resumed` holds them.

    Raises:
        UserError: They are of a wrong type.
    """
    starts = info.get("resumed") or []
    if not are_starts(starts):
        raise bad(file, f"resumed={starts!r}: must be a list, each with an epoch and the settings that differ")
    return starts


def _version(file: Path) -> int:
    number = file.parent.name.removeprefix("version_")
    return int(number) if number.isdecimal() else -1


def _number(file: Path, line: int, column: str, text: str) -> float:
    try:
        return one_nan(float(text))
    except ValueError:
        raise bad(file, f"line {line}, column {column}={text!r}: must be a number or nothing") from None


def one_nan(value: float) -> float:
    """`value` with one object for every NaN: containers compare by identity first, so equal runs compare equal."""
    return math.nan if math.isnan(value) else value


def read_metrics(file: Path) -> dict[int, dict[str, float]]:
    """Read one metrics.csv as `{epoch: {column: last value}}`: Lightning spreads an epoch over several sparse rows."""
    epochs: defaultdict[int, dict[str, float]] = defaultdict(dict)
    count = 0
    for line, row in csv_rows(file, ["epoch"]):
        if "epoch" not in row:
            continue
        epoch = _number(file, line, "epoch", row["epoch"])
        if not epoch.is_integer():
            raise bad(file, f"line {line}, column epoch={epoch}: must be a whole number")
        values = epochs[int(epoch)]
        count -= len(values)
        for column, value in row.items():
            if column.startswith(SPLITS):
                values[column] = _number(file, line, column, value)
        count += len(values)
        if count > NUMBERS or len(epochs) > NUMBERS // 10:
            raise bad(
                file, f"{len(epochs):,} epochs, {count:,} numbers; must be at most {NUMBERS // 10:,} and {NUMBERS:,}"
            )
    return dict(epochs)


def merge(versions: Iterable[dict[int, dict[str, float]]]) -> tuple[dict[int, dict[str, float]], dict[str, float]]:
    """Join a run's versions, oldest first, into (epochs, test)."""
    epochs: dict[int, dict[str, float]] = {}
    test: dict[str, float] = {}
    for version in versions:
        fitted = {e: {c: v for c, v in row.items() if not c.startswith("test/")} for e, row in version.items()}
        fitted = {e: row for e, row in fitted.items() if row}
        trained = any(column.startswith("train/") for row in fitted.values() for column in row)
        if trained or not epochs:
            epochs = {e: row for e, row in epochs.items() if e < min(fitted, default=0)} | fitted
        if trained:
            test = {}
        test |= {c: v for e in sorted(version) for c, v in version[e].items() if c.startswith("test/")}
    return dict(sorted(epochs.items())), test


def _per_class(file: Path) -> dict[str, dict[str, dict[str, float]]]:
    table: defaultdict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    if file.is_file():
        count = 0
        for line, row in csv_rows(file, ["split", "class"]):
            if (count := count + len(row)) > NUMBERS:
                raise bad(file, f"more than {NUMBERS:,} numbers; must be one line per split and class")
            cells = {c: _number(file, line, c, text) for c, text in row.items() if c not in ("split", "class")}
            table[row.get("split", "")][printable(row.get("class", ""))] = cells
    return dict(table)


def flat_settings(file: Path, config: Any, name: str, seed: int | None) -> dict[str, str]:
    """Flatten a configuration without what differs between any two runs: the seed, its teachers, `name`, places.

    Raises:
        UserError: The configuration, which is `file`'s, contains itself or is nested too deeply.
    """
    own = re.compile(rf"(^|/){re.escape(name)}(?=/|$)")
    settings = {}
    try:
        leaves = list(_flatten(config))
    except RecursionError:
        raise bad(file, "nested too deeply, or in a circle; must be a few levels deep") from None
    for key, value in leaves:
        last = key.rpartition(".")[2]
        if key in PLACES or ".teachers." in key or ".ratio_from." in key or ("seed" in last and value == seed):
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        if "/" in text or last == "name":
            text = own.sub(r"\1<run>", text)
        settings[printable(key)] = printable(text)
    return settings


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf) pairs; null leaves are left out, so that "off" and "not there" are the same."""
    if isinstance(value, dict):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = enumerate(value)
    else:
        if value is not None and prefix:
            yield prefix, value
        return
    for key, item in items:
        yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
