"""Runs grouped by (dataset, fusion, method): the table, and what to know before trusting it."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from amr.compare.runs import BLANK, Run, Source

SPLIT_NAMES: dict[Source, str] = {"test": "test", "val": "validation"}


@dataclass(frozen=True)
class Stat:
    """Mean over `n` seeds and sample standard deviation (ddof 1; None for one seed), both fractions."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Stat | None:
        """Summary of `values`; None if there are none."""
        if not values:
            return None
        sd = (statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan) if len(values) > 1 else None
        return cls(statistics.fmean(values), sd, len(values))

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f}" + ("" if self.sd is None else f" ± {100 * self.sd:.1f}")


@dataclass(frozen=True)
class Row:
    """One line of the table: a method on a dataset with a fusion, over its seeds.

    Attributes:
        dataset: The dataset's name.
        fusion: The fusion's name.
        method: The method's name.
        source: The split that all the numbers are from.
        runs: The runs, by seed.
        accuracy: Over the runs.
        mean_ap: Over the runs; None if not logged.
        dominance: By modality; empty for a unimodal run, whose 100 % says nothing.
    """

    dataset: str
    fusion: str
    method: str
    source: Source
    runs: tuple[Run, ...]
    accuracy: Stat | None
    mean_ap: Stat | None
    dominance: dict[str, Stat]

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """The runs' seeds, in their order."""
        return tuple(run.seed for run in self.runs)


def choose_source(runs: Iterable[Run]) -> Source:
    """Pick "test" if every run that has numbers has been tested, else "val": one table never mixes the two."""
    finished = [run for run in runs if run.missing is None]
    return "test" if finished and all("test/acc" in run.test for run in finished) else "val"


def incomplete(runs: Iterable[Run]) -> list[tuple[Run, str]]:
    """The runs that `summarise` leaves out, each with the reason."""
    runs = list(runs)
    source = choose_source(runs)
    reasons = [(run, run.missing or ("" if run.numbers(source) else "no validated epoch yet")) for run in runs]
    return [(run, reason) for run, reason in reasons if reason]


def summarise(runs: Iterable[Run]) -> list[Row]:
    """Mean and standard deviation over seeds, a row for each (dataset, fusion, method): unimodal, naive, the others."""
    runs = list(runs)
    source = choose_source(runs)
    groups: defaultdict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if run.missing is None and run.numbers(source):
            groups[run.dataset, run.fusion, run.method].append(run)
    rows = []
    for (dataset, fusion, method), members in groups.items():
        members.sort(key=lambda run: (run.seed is None, run.seed or 0, run.path))
        numbers = [run.numbers(source) for run in members]
        multimodal = {m: f"dominance/{m}" for run in members if len(run.modalities) > 1 for m in run.modalities}
        stats = {c: Stat.of([n[c] for n in numbers if c in n]) for c in ("acc", "mAP", *multimodal.values())}
        dominance = {m: stat for m, column in multimodal.items() if (stat := stats[column])}
        rows.append(Row(dataset, fusion, method, source, tuple(members), stats["acc"], stats["mAP"], dominance))
    return sorted(rows, key=_order)


def table_markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown with padded columns: reads well in a terminal and in a README."""
    head, body = cells(rows)
    lines = [[re.sub(r"([\\|<`])", r"\\\1", cell) for cell in line] for line in [head, *body]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = [cell in ("Dataset", "Fusion", "Method", "Seeds") for cell in head]
    rule = ["-" * width if is_left else "-" * (width - 1) + ":" for width, is_left in zip(widths, left, strict=True)]
    padded = [
        [f"{cell:{'<' if is_left else '>'}{w}}" for cell, w, is_left in zip(line, widths, left, strict=True)]
        for line in [lines[0], rule, *lines[1:]]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _order(row: Row) -> tuple[str, str, int, str]:
    unimodal = len(row.runs[0].modalities) == 1
    first = row.runs[0].modalities[0]
    rank = 0 if unimodal else 1 if row.method == "naive" else 2
    return row.dataset, row.fusion, rank, first if unimodal else row.method


def union_of_modalities(rows: Iterable[Row]) -> list[str]:
    """Union of the rows' modalities, in the order of the models with most of them."""
    runs = sorted((run for row in rows for run in row.runs), key=lambda run: -len(run.modalities))
    return list(dict.fromkeys(m for run in runs for m in run.modalities))


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The table's header and lines as text; Dataset and Fusion only where they differ."""
    modalities = union_of_modalities(rows)
    named = {"Dataset": [row.dataset for row in rows], "Fusion": [row.fusion for row in rows]}
    named = {name: column for name, column in named.items() if len(set(column)) > 1}
    head = [*named, "Method", "mAP", "Accuracy", *(f"{m} dominance" for m in modalities), "Seeds"]
    body = []
    for index, row in enumerate(rows):
        stats = [row.mean_ap, row.accuracy, *(row.dominance.get(m) for m in modalities)]
        seeds = ", ".join(BLANK if seed is None else str(seed) for seed in row.seeds)
        values = [show(stat, len(row.runs)) for stat in stats]
        body.append(
            [*(column[index] for column in named.values()), row.method, *values, f"{seeds} (n={len(row.runs)})"]
        )
    return head, body


def show(stat: Stat | None, runs: int) -> str:
    """A cell: a dash for nothing, and how many of the `runs` had the number if not all."""
    return BLANK if stat is None else str(stat) + ("" if stat.n == runs else f" (n={stat.n})")


def row_names(rows: Sequence[Row]) -> list[str]:
    """How plots and lists call each row: the method, with dataset and fusion where those differ."""
    datasets, fusions = {row.dataset for row in rows}, {(row.dataset, row.fusion) for row in rows}
    parts = [
        ([row.dataset] if len(datasets) > 1 else [])
        + ([row.fusion] if len(fusions) > len(datasets) else [])
        + [row.method]
        for row in rows
    ]
    return [" · ".join(part) for part in parts]


def statement(source: Source) -> str:
    """Where the table's numbers are from, in words."""
    if source == "test":
        return (
            "Numbers are from the test split (test/*), as last logged for each run's trained weights; "
            "every compared run has been tested."
        )
    return (
        "Numbers are from the validation split, for each run at its epoch with the highest val/acc (the first such "
        "epoch); not every compared run has test results. The epoch is picked on the split that is reported, so "
        "expect less on test."
    )


def notes_on(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    """What a reader must know before trusting the table."""
    notes = [f"Incomplete, not in the table: {run.where}: {reason}." for run, reason in incomplete(runs)]
    tested = [run for row in rows for run in row.runs if "test/acc" in run.test]
    if rows and rows[0].source == "val" and tested:
        total = sum(len(row.runs) for row in rows)
        notes.append(f"{len(tested)} of {total} runs have test results; they are not shown, to compare like with like.")
    for name, row in zip(row_names(rows), rows, strict=True):
        doubles = [str(seed) for seed, count in Counter(row.seeds).items() if count > 1 and seed is not None]
        if doubles:
            notes.append(
                f"{name}: seed {', '.join(doubles)} is there more than once; its ± is not over independent runs."
            )
        if keys := differing_settings(row.runs):
            shown = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
            notes.append(f"{name}: its runs differ in more than the seed: {shown}.")
        for run in row.runs:
            done, planned = max(run.epochs, default=-1) + 1, run.settings.get("trainer.max_epochs", "")
            if planned.isdecimal() and 0 < done < int(planned):
                notes.append(f"{run.where}: {done} of {planned} epochs so far (still running, or stopped early).")
    for dataset in dict.fromkeys(row.dataset for row in rows):
        if len({run.labels for row in rows if row.dataset == dataset for run in row.runs}) > 1:
            notes.append(f"{dataset}: the runs' class lists differ, so their numbers are not comparable.")
    return notes


def differing_settings(runs: Iterable[Run]) -> list[str]:
    """Settings in which the runs differ; runs without config.yaml are not asked."""
    known = [run.settings for run in runs if run.settings]
    return sorted(key for key in {k for s in known for k in s} if len({s.get(key) for s in known}) > 1)
