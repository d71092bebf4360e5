"""results.parquet: a row per run, with flat columns for pandas and everything that `compare` needs to read it back."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amr.evaluation.runs import BLANK, SHARES, Run, check_facts, one_nan
from amr.report.page import check_target
from amr.report.table import choose_source
from amr.utils.files import write_bytes
from amr.utils.readers import bad, parse_json, printable, read_table, reading

NESTED = {"curves": (2, float), "test": (1, float), "per_class": (3, float), "settings": (1, str)}  # depth, leaves
NEEDED = ("dataset", "fusion", "method", "title", "seed", "modalities", "labels", "run", *NESTED)
OPTIONAL = ("has_metrics", "notes")


def write_results(runs: Sequence[Run], path: str | Path) -> None:
    """Write runs to a parquet file, put in place in one step; the same runs give the same bytes.

    The numbers are those of the table, as fractions: from the test split if every run with numbers has been tested,
    else from each run's best validated epoch; null where a run has none. Shares are left out for unimodal runs.

    Args:
        runs: Finished and unfinished runs.
        path: The file, ending in .parquet; its folder is made.

    Raises:
        UserError: `path` is no such name or cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    check_target(path, ".parquet")
    text, number, whole, names = pa.string(), pa.float64(), pa.int64(), pa.list_(pa.string())
    modalities = list(dict.fromkeys(m for run in runs if len(run.modalities) > 1 for m in run.modalities))
    schema = {
        **dict.fromkeys(("dataset", "fusion", "method", "title"), text),
        "seed": whole,
        **dict.fromkeys(("modalities", "labels"), names),
        "split": text,
        **dict.fromkeys(("accuracy", "mAP", *(f"{kind}_{m}" for kind in SHARES for m in modalities)), number),
        **dict.fromkeys(("best_epoch", "epochs"), whole),
        **dict.fromkeys(("run", *NESTED), text),
        "has_metrics": pa.bool_(),
        "notes": names,
    }
    source = choose_source(runs)
    rows = []
    for run in runs:
        numbers = run.numbers(source)
        several = run.modalities if len(run.modalities) > 1 else ()
        shares = {f"{kind}_{m}": numbers.get(f"{kind}/{m}") for kind in SHARES for m in several}
        nested = {"curves": run.epochs, "test": run.test, "per_class": run.per_class, "settings": run.settings}
        rows.append(
            {key: getattr(run, key) for key in ("dataset", "fusion", "method", "title", "seed", "best_epoch")}
            | {"modalities": list(run.modalities), "labels": list(run.labels), "notes": list(run.notes)}
            | {"split": source if numbers else None, "accuracy": numbers.get("acc"), "mAP": numbers.get("mAP")}
            | {"epochs": len(run.epochs), "run": str(run.path), "has_metrics": run.has_metrics, **shares}
            | {key: json.dumps(value, ensure_ascii=False) for key, value in nested.items()}  # keys differ by run
        )
    table = pa.Table.from_pylist(rows, pa.schema(list(schema.items())))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def read_results(path: str | Path) -> list[Run]:
    """Read the runs of a results.parquet: equal to those that were written.

    Raises:
        UserError: The file cannot be read or was not written by `write_results`; the message names it.
    """
    path = Path(path)
    allowed = f"a results.parquet of amr, with {', '.join(NEEDED)}"
    rows = read_table(path, allowed, NEEDED, (*NEEDED, *OPTIONAL))
    with reading(path, allowed):
        return [_run(path, f"row {number}, ", row) for number, row in enumerate(rows)]


def _run(file: Path, where: str, row: Mapping[str, Any]) -> Run:
    seed = row["seed"]
    if isinstance(seed, float):  # pandas' column of whole numbers of which one is missing
        seed = None if seed != seed else int(seed) if seed.is_integer() else seed
    check_facts(file, {**row, "seed": seed}, where)
    nested: dict[str, Any] = {}
    for key, (depth, leaf) in NESTED.items():
        try:
            nested[key] = _checked(parse_json(row[key]), depth, leaf)
            if key == "curves":
                nested[key] = {int(epoch): values for epoch, values in nested[key].items()}
        except (TypeError, ValueError, OverflowError):
            raise bad(file, f"{where}{key}={str(row[key])[:60]!r}: must be JSON as amr writes it") from None
    notes = row.get("notes") or []
    if not isinstance(row["run"], str) or not isinstance(notes, list):
        raise bad(file, f"{where}run={row['run']!r}: must be a path, and notes as a list")
    return Run(
        path=Path(row["run"]),
        method=printable(row["method"]),
        dataset=printable(row["dataset"]),
        fusion=printable(row["fusion"] or BLANK),
        seed=seed,
        modalities=tuple(map(printable, row["modalities"])),
        labels=tuple(map(printable, row["labels"] or [])),
        epochs=nested["curves"],
        test=nested["test"],
        per_class=nested["per_class"],
        settings=nested["settings"],
        has_metrics=bool(row.get("has_metrics", True)),
        title=printable(row["title"] or ""),
        notes=tuple(printable(str(note)) for note in notes),
    )


def _checked(value: Any, depth: int, leaf: type) -> Any:
    """`value`, nested `depth` objects deep with leaves of the type."""
    if depth:
        return {printable(key): _checked(item, depth - 1, leaf) for key, item in dict.items(value)}
    if isinstance(value, str) != (leaf is str):
        raise TypeError
    return printable(value) if isinstance(value, str) else one_nan(float(value))
