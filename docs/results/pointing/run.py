"""The pointing game on clips with a planted pair: trains the models, scores every method, writes table and plot.

    python docs/results/pointing/run.py

About ten minutes on one idle core. After an interruption it resumes: a run, and a method on a model, are its
units of work.
"""

import argparse
import copy
import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import default_collate

from amr.cli import main
from amr.datamodules import Synthetic
from amr.datamodules.listing import stable_order
from amr.load import load_model
from amr.model import FusionModel
from amr.multiviz import crossmodal as c
from amr.multiviz import unimodal as u
from amr.multiviz.analysis.analysis import datamodule
from amr.multiviz.trust import pointing_game
from amr.utils.files import replacing, write_text
from amr.utils.streams import Progress

HERE = Path(__file__).parent
BLOCKS = {"audio": (4, 4), "video": (1, 4, 4)}  # frequency x time; frames x rows x columns
LEAST = 0.5  # of an atom that lies in the place, for it to count
SAMPLES = 700  # masks of joint LIME and SHAP, for 289 coefficients
CONTROL = "untrained"
Maps = dict[str, Tensor]  # pair (N, A1, A2), or audio (N, A1) and video (N, A2)


def train(seed: int, runs: Path, data: list[str]) -> Path:
    """The checkpoint of a seed's model, trained if it is not there."""
    run = runs / f"s{seed}"
    done = run / "done"
    if not done.is_file():
        last = run / "checkpoints" / "last.ckpt"
        files = ["configs/data/synthetic-synergistic.yaml", "configs/model/small.yaml", "configs/trainer/small.yaml"]
        settings = [part for file in files for part in ("--config", file)]
        settings += ["--model.fusion", "LowRank", "--seed_everything", str(seed), "--wandb", "disabled"]
        settings += ["--data.init_args.num_workers", "0", "--data.init_args.in_memory", "true", *data]
        settings += ["--runs_dir", str(runs), "--name", f"s{seed}", "--trainer.enable_progress_bar", "false"]
        if main(["fit", *settings, *(["--ckpt_path", "last"] if last.is_file() else [])]):
            sys.exit(1)
        done.touch()
    return run / "checkpoints" / "best.ckpt"


def methods(model: FusionModel, inputs: dict[str, Tensor], data: Synthetic) -> dict[str, Callable[[], Maps]]:
    """Every method, to be called for its maps of all clips."""
    atoms = {m: data.atoms(m, BLOCKS[m]) for m in model.modalities}
    mean = {m: x.mean(0) for m, x in inputs.items()}
    with torch.no_grad():
        encodings = model.eval().encode(inputs)
    first, second = ((m, atoms[m]) for m in model.modalities)
    sides = (first, second)

    def pair(found: Tensor) -> Maps:
        return {"pair": found.as_subclass(Tensor)}

    @functools.cache
    def both_parts() -> dict[str, c.Dime]:
        return {
            m: c.dime(model, {m: inputs[m]}, encodings, "predicted", (m, a), mean, samples=256, repeats=1)
            for m, a in atoms.items()
        }

    def dime(part: str) -> Maps:
        return {m: getattr(found, part).values for m, found in both_parts().items()}

    def joint(method: Callable[..., c.JointExplanation]) -> Maps:
        return pair(method(model, inputs, "predicted", *sides, mean, samples=SAMPLES, repeats=1).pairs.values)

    based: dict[str, Callable[..., u.Importance]] = {
        "integrated_gradients": u.integrated_gradients,
        "occlusion": u.occlusion,
        "lime": functools.partial(u.lime, repeats=1),
        "kernel_shap": functools.partial(u.kernel_shap, repeats=1),
    }
    return {
        "ablation": lambda: pair(c.ablation(model, inputs, "predicted", *sides, mean)),
        "second_order": lambda: pair(c.second_order(model, inputs, "predicted", *sides)),
        "joint_lime": lambda: joint(c.joint_lime),
        "joint_shap": lambda: joint(c.joint_shap),
        "dime_multimodal": lambda: dime("multimodal"),
        "dime_unimodal": lambda: dime("unimodal"),
        "gradient_input": lambda: {
            m: u.gradient_input(model, inputs, m, "predicted", a).values for m, a in atoms.items()
        },
        **{
            name: lambda method=method: {  # type: ignore[misc]
                m: method(model, inputs, m, "predicted", a, baseline=mean[m]).values for m, a in atoms.items()
            }
            for name, method in based.items()
        },
    }


def score(maps: Maps, counts: dict[str, Tensor], ids: list[str]) -> Iterator[dict[str, Any]]:
    """Hit and chance a clip: of each side, and of the pair."""
    names = list(counts)
    both = counts[names[0]][:, :, None] & counts[names[1]][:, None, :]
    if "pair" in maps:
        whole = pointing_game(maps["pair"], both)
        found = {"pair": (whole.hits, whole.chance)}
        for axis, name in ((2, names[0]), (1, names[1])):  # where the largest pair has its atom of the modality
            side = pointing_game(maps["pair"].abs().amax(axis), counts[name])
            found[name] = (side.hits, side.chance)
    else:
        sides = {name: pointing_game(maps[name], counts[name]) for name in names}
        found = {name: (side.hits, side.chance) for name, side in sides.items()}
        hits, chance = (torch.stack([part[k] for part in found.values()]).prod(0) for k in (0, 1))
        found["pair"] = (hits, chance)
    for where, (hits, chance) in found.items():
        for id, hit, by_chance in zip(ids, hits.tolist(), chance.tolist(), strict=True):
            yield {"clip": id, "where": where, "hit": hit, "chance": by_chance}


def untrained(model: FusionModel) -> FusionModel:
    """A copy with new parameters."""
    fresh = copy.deepcopy(model)
    torch.manual_seed(0)
    for module in fresh.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return fresh.eval()


def interval(values: np.ndarray[Any, Any], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval over clips of a mean over clips and models, (models, clips)."""
    drawn = np.random.default_rng(seed).integers(values.shape[1], size=(5000, values.shape[1]))
    low, high = np.quantile(values.mean(0)[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)


def summarize(rows: list[dict[str, Any]], accuracies: dict[str, float]) -> tuple[str, list[dict[str, Any]]]:
    """The table, and its numbers."""
    trained = [seed for seed in accuracies if seed != CONTROL]
    order = list(dict.fromkeys(row["method"] for row in rows))
    lines = ["| method | pair | audio segment | video patch | pair, by model | pair, untrained |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    numbers = []
    for method in [*order, "chance"]:
        cells: dict[str, str] = {}
        for where in ("pair", "audio", "video"):
            mine = [
                r for r in rows if r["where"] == where and r["method"] == (order[0] if method == "chance" else method)
            ]
            key = "chance" if method == "chance" else "hit"
            table = np.array([[r[key] for r in mine if r["model"] == seed] for seed in trained])
            low, high = (table.mean(), table.mean()) if method == "chance" else interval(table)
            chance = np.array([r["chance"] for r in mine]).mean()
            cells[where] = f"{100 * table.mean():.1f}"
            if method != "chance":
                cells[where] += f" [{100 * low:.1f}, {100 * high:.1f}]"
            control = float(np.mean([r[key] for r in mine if r["model"] == CONTROL]))
            found = {"rate": table.mean(), "low": low, "high": high, "chance": chance, "control": control}
            numbers.append({"method": method, "where": where, **found})
            if where == "pair" and method != "chance":
                cells["models"] = ", ".join(f"{100 * part.mean():.0f}" for part in table)
                cells["control"] = f"{100 * control:.1f}"
        lines.append(
            f"| {method} | {cells['pair']} | {cells['audio']} | {cells['video']} "
            f"| {cells.get('models', '')} | {cells.get('control', '')} |"
        )
    return "\n".join(lines) + "\n", numbers


def draw(numbers: list[dict[str, Any]], path: Path) -> None:
    """Hit rates with their intervals; a line at chance."""
    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    axes: Any = figure.subplots(1, 3, sharey=True)
    titles = {"pair": "the pair", "audio": "audio segment", "video": "video patch"}
    for axis, (where, title) in zip(axes, titles.items(), strict=True):
        shown = [n for n in numbers if n["where"] == where and n["method"] != "chance"][::-1]
        for y, n in enumerate(shown):
            rate = 100 * n["rate"]
            below, above = max(rate - 100 * n["low"], 0), max(100 * n["high"] - rate, 0)
            cross = n["method"] in CROSS
            axis.errorbar(rate, y, xerr=[[below], [above]], fmt="o" if cross else "s", capsize=3,
                          color="#0072B2" if cross else "#D55E00")  # fmt: skip
            axis.plot(100 * n["control"], y, "x", color="0.45")
        axis.axvline(100 * shown[0]["chance"], color="black", linestyle=":", linewidth=1)
        axis.set(title=title, xlabel="hits (% of clips)", xlim=(-2, 102), yticks=range(len(shown)))
        axis.set_yticklabels([n["method"].replace("_", " ") for n in shown])
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle(
        "Blue: cross-modal methods; orange: unimodal ones; grey crosses: an untrained model; dotted: chance",
        fontsize=11,
    )
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]


CROSS = ("ablation", "second_order", "joint_lime", "joint_shap", "dime_multimodal")


def run(options: argparse.Namespace) -> None:
    """Everything."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    accuracies: dict[str, float] = {}
    progress = None
    names = [name for name in [*(f"s{seed}" for seed in options.seeds), CONTROL] if options.only in (None, name)]
    for name in names:
        seed = options.seeds[0] if name == CONTROL else int(name[1:])
        checkpoint = train(seed, options.runs, options.data)
        data = datamodule(yaml.safe_load((checkpoint.parent.parent / "config.yaml").read_text())["data"])
        assert isinstance(data, Synthetic)
        data.prepare_data()
        data.setup()
        model = load_model(checkpoint)
        if name == CONTROL:
            model = untrained(model)
        clips = data.clips_of("test")
        every = default_collate([clips[i] for i in range(len(clips))])
        with torch.no_grad():
            right = model(every["inputs"]).argmax(1) == every["label"]
        accuracies[name] = float(right.double().mean())
        at = {id: i for i, id in enumerate(every["id"])}
        ids = stable_order(at, 0)[: options.clips]
        inputs = {m: x[[at[id] for id in ids]] for m, x in every["inputs"].items()}
        counts = {}
        for m in model.modalities:
            places = [{k: v for k, v in data.place(id)[m].items() if "frame" not in k} for id in ids]
            counts[m] = torch.stack([data.atoms(m, BLOCKS[m]).overlap(place) >= LEAST for place in places])
        todo = methods(model, inputs, data)
        progress = progress or Progress("point", len(todo) * len(names), "maps")
        for method, explain in todo.items():
            path = options.runs / "hits" / f"{name}-{method}-{len(ids)}.parquet"
            if not path.is_file():
                with replacing(path) as file:
                    pq.write_table(pa.Table.from_pylist(list(score(explain(), counts, ids))), file)
            rows += [{"model": name, "method": method, **row} for row in pq.read_table(path).to_pylist()]
            progress.advance(1)
    if options.only:
        return
    pq.write_table(pa.Table.from_pylist(rows), HERE / "hits.parquet", compression="zstd")
    table, numbers = summarize(rows, accuracies)
    write_text(HERE / "table.md", table)
    write_text(HERE / "accuracy.json", json.dumps(accuracies) + "\n")
    draw(numbers, HERE / "pointing.png")
    print(table, accuracies)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a model each (0 1 2)")
    parser.add_argument("--clips", type=int, default=60, help="of the test split (60)")
    parser.add_argument("--runs", type=Path, default=Path("runs/pointing"), help="for models and hits (runs/pointing)")
    parser.add_argument("--only", help="one model, such as s1 or untrained, and no table: for several at once")
    parser.add_argument("--data", nargs=argparse.REMAINDER, default=[], help="options of the data, such as its root")
    run(parser.parse_args())
