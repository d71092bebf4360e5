"""Measures a grid's finished runs: what `amr benchmark` recorded of them, and `amr.evaluation` of their best.ckpt.

    python docs/study/measure.py letters methods

takes the runs that runs/study/letters/grid.json names, right after the grid `methods`, and writes
docs/study/results/letters-methods.parquet: a long table, a number a line; lines of runs that lie elsewhere stay in it.
What was measured is kept beside the runs, so that a second call measures the new ones only. Corrupted inputs depend on
no model, and are made once for all runs.
Another folder of runs, and of results: --runs and --results. --measures clean leaves the corrupted inputs out, and
--measures logged takes what training and testing logged alone.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader

from amr.datamodules import ClipDataModule
from amr.datamodules.corruptions import Corruptible, Corruption
from amr.datamodules.loader import collate_clips
from amr.evaluation.corruption import corruption_rows
from amr.evaluation.metrics import measure_encodings
from amr.evaluation.probes import evidence_rows, probe_rows
from amr.load import load_model
from amr.model import FusionModel
from amr.model.encoded import Encoded
from amr.report import read_run
from amr.utils.files import write_bytes
from amr.utils.parser import OneLineParser
from amr.utils.streams import Progress

RUNS = Path("runs/study")
RESULTS = Path(__file__).parent / "results"
CORRUPTIONS = {"audio": ("white", "time_mask"), "video": ("noise", "occlusion")}  # and both at once
PROBED = ("methods",)  # grids whose encoders are probed, which takes a second a run
RESAMPLES = 2  # intervals are over seeds here, not over clips
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("dataset", "grid", "row")),
        ("seed", pa.int64()),
        *((name, pa.string()) for name in ("measure", "modality", "corruption")),
        *((name, pa.int64()) for name in ("severity", "epoch")),
        ("value", pa.float64()),
    ]
)


class Held(pl.LightningDataModule, Corruptible):
    """A data set's inputs, made once.

    Args:
        data: The data module.
    """

    def __init__(self, data: ClipDataModule) -> None:
        super().__init__()
        self.data, self.batch_size, self._corrupted = data, 256, dict[tuple[Any, ...], list[Any]]()
        self.splits = {split: [*self._items(split)] for split in ("train", "test")}

    def _items(self, split: Any) -> Iterator[dict[str, Any]]:
        clips = self.data.clips_of(split)
        return (clips[i] for i in range(len(clips)))

    @property
    def corruptions(self) -> Mapping[str, Mapping[str, Corruption]]:
        """The few that are measured."""
        return {m: {name: self.data.corruptions[m][name] for name in CORRUPTIONS[m]} for m in self.data.modalities}

    @property
    def joint_corruptions(self) -> Mapping[str, Mapping[str, str]]:
        """Those whose parts are measured."""
        return {
            name: parts
            for name, parts in self.data.joint_corruptions.items()
            if all(part in CORRUPTIONS[m] for m, part in parts.items())
        }

    def corrupted(
        self, split: str, modality: str, corruption: str, severity: int, ids: Sequence[str], seed: int = 0
    ) -> Any:
        """See `Corruptible`; made at the first call."""
        key = (split, modality, corruption, severity, *ids)
        if key not in self._corrupted:
            clips = self.data.corrupted(split, modality, corruption, severity, ids, seed)
            self._corrupted[key] = [clips[i] for i in range(len(clips))]
        return self._corrupted[key]

    def encoded(self, model: FusionModel, split: str) -> Encoded:
        """A split's clips, encoded."""
        ids: list[str] = []
        labels: list[Tensor] = []
        encodings: list[dict[str, Tensor]] = []
        with torch.no_grad():
            for batch in DataLoader(self.splits[split], self.batch_size, collate_fn=collate_clips):  # type: ignore[arg-type]
                ids += batch["id"]
                labels.append(batch["label"])
                encodings.append(model.encode({m: batch["inputs"][m] for m in model.modalities}))
        return Encoded.of(ids, torch.cat(labels), {m: torch.cat([e[m] for e in encodings]) for m in model.modalities})


def data_of(run: Path) -> ClipDataModule:
    """The data module of a run's configuration, with both modalities, ready."""
    section = yaml.safe_load((run / "config.yaml").read_text())["data"]
    section["init_args"].pop("modalities", None)
    parser = OneLineParser()
    parser.add_subclass_arguments(ClipDataModule, "data", required=True)
    data: ClipDataModule = parser.instantiate_classes(parser.parse_object({"data": section})).data
    data.prepare_data()
    data.setup()
    return data


def data_key(run: Path) -> str:
    """What inputs depend on; augmentation is in training only."""
    init = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    skip = {"modalities", "num_workers", "prepare_workers", "seed"}
    return json.dumps({key: value for key, value in init.items() if key not in skip}, sort_keys=True)


def measured(run: Path, data: Held, probe: bool, corrupted: bool = True) -> list[dict[str, Any]]:
    """The numbers of a run's best.ckpt on the test split; without `corrupted`, only those of clean inputs."""
    model = load_model(run / "checkpoints" / "best.ckpt")
    clean, train = data.encoded(model, "test"), data.encoded(model, "train")
    rows = measure_encodings(model, clean, train, resamples=RESAMPLES)
    if corrupted:
        rows += evidence_rows(model, data.data, clean, resamples=RESAMPLES)
        rows += corruption_rows(model, data, "test", clean, train, resamples=RESAMPLES)
    if probe:
        rows += probe_rows(model, data, "test", clean, train, {}, resamples=RESAMPLES)
    keys = ("measure", "modality", "corruption", "severity", "value")
    kept = [row for row in rows if "@" not in row.measure or row.measure.startswith("dial_")]  # not those by class
    return [{key: getattr(row, key) for key in keys} for row in kept]


def recorded(folder: Path) -> list[dict[str, Any]]:
    """What training and testing logged: every epoch's validation metrics, and the test's."""
    run, rows = read_run(folder), list[dict[str, Any]]()
    for epoch, metrics in run.epochs.items():
        rows += [
            {"measure": name, "epoch": epoch, "value": value}
            for name, value in metrics.items()
            if name in ("val/acc", "val/mAP", "train/loss") or name.startswith("val/dominance/")
        ]
    return rows + [{"measure": name, "value": value} for name, value in run.test.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", help="folder under --runs")
    parser.add_argument("grid", help="name of the grid, that of its YAML file")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the data sets' runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the parquet files")
    parser.add_argument("--measures", choices=("all", "clean", "logged"), default="all", help="what is measured (all)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    out = options.runs / options.dataset
    facts = json.loads((out / "grid.json").read_text())
    (out / "measured").mkdir(exist_ok=True)
    known = out / "measured" / f"grid-{options.grid}.json"  # the command may have had --only, or fewer seeds, before
    runs: dict[str, str] = json.loads(known.read_text()) if known.is_file() else {}
    names = "|".join(map(re.escape, (options.grid, options.dataset)))
    if not runs or re.search(rf"--config \S*\b({names})\.yaml ", facts["command"]):
        runs |= facts["runs"]
    write_bytes(known, json.dumps(runs).encode())
    records = [json.loads(file.read_text()) for file in (out / "cells").glob("*.json")]
    costs = ("seconds", "cpu_seconds")  # the second does not depend on what else the machine does
    taken = {r["run"]: {name: r[name] for name in costs if name in r} for r in records if not r["resumed"]}
    held: dict[str, Held] = {}
    table: list[dict[str, Any]] = []
    progress = Progress(f"measure {options.dataset} {options.grid}", len(runs), "runs")
    for name, folder in runs.items():
        run, kept = out / "runs" / folder, out / "measured" / f"{folder}.json"
        probe = options.grid in PROBED and options.measures == "all"
        rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else []
        if options.measures == "logged":
            rows = rows or recorded(run)
        elif not rows or (probe and not any(row["measure"] == "probe" for row in rows)):
            key = data_key(run)
            if key not in held:
                held = {key: Held(data_of(run))}  # one at a time: they fill memory
            rows = recorded(run) + measured(run, held[key], probe, options.measures == "all")
            write_bytes(kept, json.dumps(rows).encode())
        rows += [{"measure": cost, "value": value} for cost, value in taken.get(folder, {}).items()]
        row, _, seed = name.rpartition("-s")
        about = {"dataset": options.dataset, "grid": options.grid, "row": row, "seed": int(seed)}
        table += [{**dict.fromkeys(SCHEMA.names), "modality": "", "corruption": "", **about, **line} for line in rows]
        progress.advance(1)
    options.results.mkdir(exist_ok=True)
    file = options.results / f"{options.dataset}-{options.grid}.parquet"
    if file.is_file():  # runs of another folder, as of a grid's rows that were trained before, stay
        here = {name.rpartition("-s")[::2] for name in runs}
        others = [line for line in pq.read_table(file).to_pylist() if (line["row"], str(line["seed"])) not in here]
        table = others + table
    pq.write_table(pa.Table.from_pylist(table, SCHEMA), file, compression="zstd")
    write_bytes(options.results / "machine.json", f"{json.dumps(facts['machine'], indent=1)}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
