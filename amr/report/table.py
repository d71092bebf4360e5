"""Runs grouped by (dataset, fusion, method): the table, and what to know before trusting it."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from amr.evaluation.runs import ALL, BLANK, Run, Source
from amr.evaluation.statistics import Difference
from amr.utils.errors import UserError, listed

SPLIT_NAMES: dict[Source, str] = {"test": "test", "val": "validation"}
# The controls, then the order of the paper's Table 1, then newer methods; what is not here follows by name.
ORDER = (
    *("naive", "multi_loss", "dropout", "modality_dropout", "umt", "ogm", "ogm_ge", "gradient_blending"),
    *("gge", "pmr", "agm", "mmpareto", "mmcosine", "dgl", "tcmax", "mcr", "mla", "g2d", "info_reg"),
    *("data_remixing", "smv", "relearning"),
    *("opm", "arl", "pdmp", "cml", "mbsd", "amco", "aug", "reconboost", "greedy"),
    *("cggm", "lfm", "synib", "midas"),
)
TOP = 80  # rows of a dataset that are shown in full: the grid of all methods, without and with AMR, has fewer
METRICS = {"mAP": "mAP", "acc": "Accuracy"}
Sort = Literal["method", "acc", "mAP"]


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
        title: How the method is called.
        source: The split that all the numbers are from.
        runs: The runs, by seed.
        accuracy: Over the runs.
        mean_ap: Over the runs; None if not logged.
        dominance: By modality; empty for a unimodal run, whose 100 % says nothing.
        decision: Decision share by modality; empty like dominance, or if it was not logged.
        baseline: The method that the row is compared with.
    """

    dataset: str
    fusion: str
    method: str
    title: str
    source: Source
    runs: tuple[Run, ...]
    accuracy: Stat | None
    mean_ap: Stat | None
    dominance: dict[str, Stat]
    decision: dict[str, Stat]
    baseline: str = "naive"

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """The runs' seeds, in their order."""
        return tuple(run.seed for run in self.runs)

    @property
    def unimodal(self) -> bool:
        """Whether its models have one modality; false for a foreign run that merely logged no shares."""
        return len(self.runs[0].modalities) == 1 and self.runs[0].modalities != (ALL,)

    @property
    def with_amr(self) -> bool:
        """Whether AMR is part of the method."""
        return "amr" in self.method.split("+")

    @property
    def base(self) -> str:
        """The method without AMR: "naive" for "amr", "umt" for "umt+amr" and for "umt"."""
        return "+".join(part for part in self.method.split("+") if part != "amr") or "naive"

    @property
    def target(self) -> dict[str, float]:
        """AMR's target share by modality: the setting model.amr.ratio, or equal shares."""
        modalities, settings = union_of_modalities([self]), self.runs[0].settings
        for prefix in ("model.amr.ratio", "model.amr.init_args.ratio"):
            with suppress(KeyError, ValueError, ZeroDivisionError):
                ratio = {m: float(settings[f"{prefix}.{m}"]) for m in modalities}
                return {m: part / sum(ratio.values()) for m, part in ratio.items()}
        return dict.fromkeys(modalities, 1 / len(modalities))

    def by_seed(self, metric: str) -> dict[int, float]:
        """A metric ("acc", "mAP") by seed; over runs with the same seed, their mean."""
        values: defaultdict[int, list[float]] = defaultdict(list)
        for run in self.runs:
            numbers = run.numbers(self.source)
            if run.seed is not None and metric in numbers:
                values[run.seed].append(numbers[metric])
        return {seed: statistics.fmean(found) for seed, found in values.items()}


def choose_source(runs: Iterable[Run]) -> Source:
    """Pick "test" if every run that has numbers has been tested, else "val": one table never mixes the two."""
    finished = [run for run in runs if run.missing is None]
    return "test" if finished and all("test/acc" in run.test for run in finished) else "val"


def incomplete(runs: Iterable[Run], split: Source | None = None) -> list[tuple[Run, str]]:
    """The runs that `summarise` leaves out, each with the reason.

    Args:
        runs: Runs.
        split: The split of the table; None for `choose_source`'s.
    """
    runs = list(runs)
    source = split or choose_source(runs)
    lacking = "no validated epoch yet" if source == "val" else "not tested yet"
    reasons = [(run, run.missing or ("" if run.numbers(source) else lacking)) for run in runs]
    return [(run, reason) for run, reason in reasons if reason]


def summarise(
    runs: Iterable[Run], *, split: Source | None = None, baseline: str = "naive", sort: Sort = "method"
) -> list[Row]:
    """Mean and standard deviation over seeds, a row for each (dataset, fusion, method).

    Args:
        runs: Runs.
        split: `test` or `val`, from which all numbers are; None for test if every run was tested, else val.
        baseline: Name of the method that rows are compared with.
        sort: `method` for unimodal rows, then naive, then the other methods, each followed by the same with AMR; `acc`
            or `mAP` for a dataset's highest mean first.

    Raises:
        UserError: No run has the baseline's method.
    """
    runs = list(runs)
    source = split or choose_source(runs)
    methods = {run.method for run in runs}
    if baseline != "naive" and baseline not in methods:
        raise UserError(
            f"--baseline={baseline}: no such method among the runs; must be one of {listed(sorted(methods))}"
        )
    groups: defaultdict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if run.missing is None and run.numbers(source):
            groups[run.dataset, run.fusion, run.method].append(run)
    rows = []
    for (dataset, fusion, method), members in groups.items():
        members.sort(key=lambda run: (run.seed is None, run.seed or 0, run.path))
        numbers = [run.numbers(source) for run in members]
        multimodal = list(dict.fromkeys(m for run in members if len(run.modalities) > 1 for m in run.modalities))

        def stat(name: str, numbers: list[dict[str, float]] = numbers) -> Stat | None:
            return Stat.of([found[name] for found in numbers if name in found])

        dominance, decision = (
            {m: found for m in multimodal if (found := stat(f"{kind}/{m}"))} for kind in ("dominance", "decision_share")
        )
        about = (dataset, fusion, method, members[0].title, source, tuple(members))
        rows.append(Row(*about, stat("acc"), stat("mAP"), dominance, decision, baseline))
    rows.sort(key=_order)
    if sort != "method":
        rows.sort(key=lambda row: (row.dataset, -_mean(row, sort)))
    return rows


def leading(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows to show first, and the others.

    Up to `TOP` rows of a dataset keep their order. Of more, the ones with the highest mean accuracy come first, with
    the baseline at its place among them or at their end; the others follow by accuracy.
    """
    shown, further = [], []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        members = [row for row in rows if row.dataset == dataset]
        if len(members) > TOP:
            members.sort(key=lambda row: -_mean(row, "acc"))
        shown += [row for place, row in enumerate(members) if place < TOP or row.method == row.baseline]
        further += [row for place, row in enumerate(members) if place >= TOP and row.method != row.baseline]
    return shown, further


def _order(row: Row) -> tuple[str | int, ...]:
    if row.unimodal:
        return row.dataset, 0, row.runs[0].modalities[0], 0, row.method
    rank = ORDER.index(row.base) if row.base in ORDER else len(ORDER)
    return row.dataset, 1, row.fusion, rank, row.base, row.with_amr, row.method


def baseline_of(row: Row, rows: Iterable[Row]) -> Row | None:
    """The baseline to compare a row with: the one with its fusion, else the dataset's only one; None for itself."""
    found = [other for other in rows if (other.dataset, other.method) == (row.dataset, row.baseline)]
    chosen = [other for other in found if other.fusion == row.fusion] or found
    return chosen[0] if len(chosen) == 1 and row.method != row.baseline else None


def gains(row: Row, rows: Iterable[Row]) -> dict[str, Difference | None]:
    """The row's paired difference to its baseline in each of `METRICS`."""
    other = baseline_of(row, rows)
    return {metric: difference(row, other, metric) for metric in METRICS}


def plain_of(row: Row, rows: Iterable[Row]) -> Row | None:
    """The same method without AMR; None if there is none, or if the row has no AMR."""
    key = (row.dataset, row.fusion, row.base)
    found = (other for other in rows if (other.dataset, other.fusion, other.method) == key)
    return next(found, None) if row.with_amr else None


def difference(row: Row, other: Row | None, metric: str) -> Difference | None:
    """The row's paired difference to another, over the seeds that both have; None for fewer than two."""
    if other is None:
        return None
    mine, theirs = row.by_seed(metric), other.by_seed(metric)
    return Difference.of([mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())])


class Bold(str):
    """A cell to be set in bold."""

    __slots__ = ()


def union_of_modalities(rows: Iterable[Row]) -> list[str]:
    """Union of the rows' modalities, in the order of the models with most of them."""
    runs = sorted((run for row in rows for run in row.runs), key=lambda run: -len(run.modalities))
    return list(dict.fromkeys(m for run in runs for m in run.modalities if run.modalities != (ALL,)))


def cells(shown: Sequence[Row], rows: Sequence[Row] | None = None) -> tuple[list[str], list[list[str]]]:
    """The table's header and lines as text; Dataset and Fusion only where they differ.

    Args:
        shown: The rows of the table.
        rows: All rows, which they are compared with; None if these are all.
    """
    rows = shown if rows is None else rows
    modalities = union_of_modalities(rows)
    named = _named(shown, rows)
    baselines = [row for row in rows if row.method == row.baseline]
    best = {metric: _best_means(rows, metric) for metric in METRICS}
    gained = [gains(row, baselines) for row in shown]
    compared = [metric for metric in METRICS if any(found[metric] for found in gained)]
    shares = [f"{m} dominance" for m in modalities]
    decided = [m for m in modalities if any(m in row.decision for row in rows)]
    shares += [f"{m} decides" for m in decided]
    versus = [f"{METRICS[metric]} vs {rows[0].baseline}" for metric in compared]
    head = [*named, "mAP", "Accuracy", *shares, *versus, "Seeds"]
    body = []
    for index, row in enumerate(shown):
        stats = [row.mean_ap, row.accuracy, *(row.dominance.get(m) for m in modalities)]
        stats += [row.decision.get(m) for m in decided]
        seeds = ", ".join(BLANK if seed is None else str(seed) for seed in row.seeds)
        values = [show(stat, len(row.runs)) for stat in [*stats, *(gained[index][metric] for metric in compared)]]
        for place, metric in enumerate(METRICS):
            gain, stat = gained[index][metric], _stat(row, metric)
            if gain is not None and gain.low > 0 and stat and stat.mean == best[metric][row.dataset]:
                values[place] = Bold(values[place])
        body.append([*(column[index] for column in named.values()), *values, f"{seeds} (n={len(row.runs)})"])
    return head, body


def amr_cells(shown: Sequence[Row], rows: Sequence[Row] | None = None) -> tuple[list[str], list[list[str]]] | None:
    """The table of what AMR changes in each method that is there without it, too; None if there is no such pair.

    Args:
        shown: Rows, of which those with AMR are in the table.
        rows: All rows, which they are compared with; None if these are all.
    """
    rows = shown if rows is None else rows
    pairs = [(row, plain) for row in shown if (plain := plain_of(row, rows))]
    if not pairs:
        return None
    modalities = union_of_modalities([row for row, _ in pairs])
    named = _named([plain for _, plain in pairs], rows)
    decided = [m for m in modalities if any(m in row.decision for pair in pairs for row in pair)]
    head = [*named, "mAP", "Accuracy", *(f"{m} dominance" for m in modalities), *(f"{m} decides" for m in decided)]
    body = []
    for index, (row, plain) in enumerate(pairs):
        changes = [show(difference(row, plain, metric), len(row.runs)) for metric in METRICS]
        both = [(plain.dominance.get(m), row.dominance.get(m)) for m in modalities]
        both += [(plain.decision.get(m), row.decision.get(m)) for m in decided]
        for before, after in both:
            changes.append(" → ".join(f"{100 * stat.mean:.1f}" if stat else BLANK for stat in (before, after)))
        body.append([*(column[index] for column in named.values()), *changes])
    return head, body


AMR_CAPTION = (
    "Paired differences to the same method without AMR, over the seeds that both have, in percentage points, with 95 % "
    "t-intervals; mean dominance and decision share in %, without → with AMR."
)


def explanation(rows: Sequence[Row]) -> str:
    """How the differences and the bold cells are to be read; empty if there are no differences."""
    baselines = [row for row in rows if row.method == row.baseline]
    if not any(found for row in rows for found in gains(row, baselines).values()):
        return ""
    name = rows[0].baseline
    title = "naive fusion" if name == "naive" else baselines[0].title
    return (
        f"vs {name}: mean of the paired differences to {title} over the seeds that both have, in percentage points, "
        "with its 95 % t-interval. Bold: a dataset's highest mean, only where this interval lies wholly above 0; the "
        "intervals are not corrected for the number of rows."
    )


def _best_means(rows: Iterable[Row], metric: str) -> dict[str, float]:
    """The highest mean of each dataset."""
    best: dict[str, float] = {}
    for row in rows:
        if stat := _stat(row, metric):
            best[row.dataset] = max(best.get(row.dataset, stat.mean), stat.mean)
    return best


def _stat(row: Row, metric: str) -> Stat | None:
    return row.accuracy if metric == "acc" else row.mean_ap


def _mean(row: Row, metric: str) -> float:
    """A mean to order rows by; -1 where there is none."""
    stat = _stat(row, metric)
    return stat.mean if stat and stat.mean >= 0 else -1.0


def _named(chosen: Sequence[Row], rows: Sequence[Row]) -> dict[str, list[str]]:
    """The columns that name the chosen ones of the rows; Dataset and Fusion only where the rows differ in them."""
    titles = {id(row): title for row, title in zip(rows, _titles(rows), strict=True)}
    columns = {
        "Dataset": ([row.dataset for row in chosen], len({row.dataset for row in rows})),
        "Fusion": ([row.fusion for row in chosen], len({row.fusion for row in rows})),
        "Method": ([titles[id(row)] for row in chosen], 2),
    }
    return {name: column for name, (column, different) in columns.items() if different > 1}


def _titles(rows: Sequence[Row]) -> list[str]:
    """The rows' titles, with the method's name where two methods have the same one."""
    methods: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        methods[row.title].add(row.method)
    return [row.title if len(methods[row.title]) == 1 else f"{row.title} ({row.method})" for row in rows]


def show(stat: Stat | Difference | None, runs: int) -> str:
    """A cell: a dash for nothing, and how many of the `runs` had the number if not all."""
    return BLANK if stat is None else str(stat) + ("" if stat.n == runs else f" (n={stat.n})")


def row_names(rows: Sequence[Row]) -> list[str]:
    """How plots and lists call each row: its title, with dataset and fusion where those differ."""
    datasets, fusions = {row.dataset for row in rows}, {(row.dataset, row.fusion) for row in rows}
    parts = [
        ([row.dataset] if len(datasets) > 1 else []) + ([row.fusion] if len(fusions) > len(datasets) else []) + [title]
        for row, title in zip(rows, _titles(rows), strict=True)
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
