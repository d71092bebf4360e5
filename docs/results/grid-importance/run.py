"""Where the importance of sound and lips falls on the GRID letters: trains, explains the test clips, draws.

    python docs/results/grid-importance/run.py

A quarter of an hour on one idle core. After an interruption it resumes: a run, and 20 clips of a model, are its
units of work.
"""

import argparse
import sys
from collections.abc import Iterator
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
from amr.datamodules.atoms import Atoms
from amr.datamodules.listing import stable_order
from amr.load import load_model
from amr.multiviz.analysis.analysis import datamodule
from amr.multiviz.unimodal import integrated_gradients, lime, occlusion
from amr.utils.files import replacing, write_text
from amr.utils.streams import Progress

HERE = Path(__file__).parent
TRAINED = {"naive": [], "amr": ["--config", "configs/methods/amr.yaml", "--model.amr.lr", "0.2"]}
NAMES = {"naive": "naive fusion", "amr": "with AMR"}
COLOURS = {"naive": "#0072B2", "amr": "#D55E00"}
METHODS = ("integrated_gradients", "occlusion", "lime")
# A modality and its blocks: frequency x time, or frames x rows x columns.
PIECES = {"sound": ("audio", (1, 16)), "frames": ("video", (16, 1, 1)), "face": ("video", (1, 7, 8))}
SAMPLES = {"sound": 48, "frames": 48, "face": 96}  # LIME's masks
BATCH = 20  # clips
SECONDS = 0.64
Row = dict[str, Any]


def train(name: str, seed: int, runs: Path, data: list[str]) -> Path:
    """The checkpoint of a model, trained if it is not there."""
    run = runs / f"{name}-s{seed}"
    done = run / "done"
    if not done.is_file():
        files = ["configs/data/grid-letters.yaml", "configs/model/small.yaml", "configs/trainer/small.yaml"]
        settings = [part for file in files for part in ("--config", file)] + TRAINED[name]
        settings += ["--seed_everything", str(seed), "--wandb", "disabled", "--trainer.enable_progress_bar", "false"]
        settings += ["--data.init_args.num_workers", "0", "--data.init_args.in_memory", "true", *data]
        settings += ["--runs_dir", str(runs), "--name", f"{name}-s{seed}"]
        last = run / "checkpoints" / "last.ckpt"
        if main(["fit", *settings, *(["--ckpt_path", "last"] if last.is_file() else [])]):
            sys.exit(1)
        done.touch()
    return run / "checkpoints" / "best.ckpt"


def explain(checkpoint: Path, out: Path, count: int, progress: Progress) -> None:
    """Writes a model's maps of test clips, and, once, what the clips look like on average."""
    data = datamodule(yaml.safe_load((checkpoint.parent.parent / "config.yaml").read_text())["data"])
    data.prepare_data()
    data.setup()
    model, clips = load_model(checkpoint), data.clips_of("test")
    at = {clip.id: i for i, clip in enumerate(clips.clips)}
    every = default_collate([clips[at[id]] for id in stable_order(at, 0)[:count]])
    look = out / "look.npz"
    if not look.is_file():
        audio, video = every["inputs"]["audio"], every["inputs"]["video"][:, :, 0]
        with replacing(look) as file:
            np.savez(
                file,
                level=audio.mean((0, 1, 2)).numpy(),
                frame=video.mean((0, 1)).numpy(),
                motion=video.diff(dim=1).abs().mean((0, 1)).numpy(),
                when=video.diff(dim=1).abs().mean((0, 2, 3)).numpy(),
            )
    mean = {m: x.mean(0) for m, x in every["inputs"].items()}
    with torch.no_grad():
        predicted = model(every["inputs"]).argmax(1)
    atoms = {piece: data.atoms(m, blocks) for piece, (m, blocks) in PIECES.items()}
    for start in range(0, count, BATCH):
        path = out / f"{checkpoint.parent.parent.name}-{start:04d}.parquet"
        if not path.is_file():
            part = slice(start, start + BATCH)
            inputs = {m: x[part] for m, x in every["inputs"].items()}
            rows = [
                {"clip": id, "right": bool(p == y), "piece": piece, "method": method, "values": values.tolist()}
                for piece, method, found in _maps(model, inputs, predicted[part], mean, atoms)
                for id, p, y, values in zip(
                    every["id"][part], predicted[part], every["label"][part], found.float().numpy(), strict=True
                )
            ]
            with replacing(path) as file:
                pq.write_table(pa.Table.from_pylist(rows), file)
        progress.advance(1)


def _maps(
    model: Any, inputs: dict[str, Tensor], target: Tensor, mean: dict[str, Tensor], atoms: dict[str, Atoms]
) -> Iterator[tuple[str, str, Tensor]]:
    """Piece, method and values (N, A); all against the mean input, for the predicted class."""
    for m in inputs:
        whole = integrated_gradients(model, inputs, m, target, baseline=mean[m], steps=16).values
        for piece in (piece for piece, (modality, _) in PIECES.items() if modality == m):
            a = atoms[piece]
            yield piece, "integrated_gradients", a.sum(whole)
            yield piece, "occlusion", occlusion(model, inputs, m, target, a, baseline=mean[m]).values
            found = lime(model, inputs, m, target, a, baseline=mean[m], samples=SAMPLES[piece], repeats=1)
            yield piece, "lime", found.values


# -------------------------------------------------------------------------------------------------------- what is drawn


class Maps:
    """All maps, each as shares: absolute values that add up to 100 % in a clip."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.seeds = sorted({row["seed"] for row in rows})

    def shares(self, model: str, method: str, piece: str, right: bool | None = None) -> list[np.ndarray[Any, Any]]:
        """(clips, atoms) of each seed."""
        found = []
        for seed in self.seeds:
            values = np.array(
                [
                    row["values"]
                    for row in self.rows
                    if (row["model"], row["method"], row["piece"], row["seed"]) == (model, method, piece, seed)
                    and (right is None or row["right"] == right)
                ]
            )
            if len(values):
                size = np.abs(values)
                found.append(100 * size / size.sum(1, keepdims=True))
        return found


def band(seeds: list[np.ndarray[Any, Any]]) -> tuple[np.ndarray[Any, Any], ...]:
    """Mean over clips and seeds, and the 95 % bootstrap interval over clips."""
    mean = np.stack([part.mean(0) for part in seeds]).mean(0)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(500):
        drawn.append(np.mean([part[rng.integers(len(part), size=len(part))].mean(0) for part in seeds], 0))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return mean, low, high


def draw_time(maps: Maps, look: Any, path: Path) -> None:
    """Importance over time, of sound and of the frames, by method."""
    figure = Figure(figsize=(12, 6.2), dpi=100, layout="constrained")
    axes: Any = figure.subplots(2, len(METHODS), sharex=True, sharey="row")
    references = {"sound": ("mean level", look["level"]), "frames": ("mean motion", look["when"])}
    for row, piece in zip(axes, ("sound", "frames"), strict=True):
        for axis, method in zip(row, METHODS, strict=True):
            count = PIECES[piece][1][1 if piece == "sound" else 0]
            middle = (np.arange(count) + 0.5) * SECONDS / count
            label, reference = references[piece]
            scaled = (reference - reference.min()) / (reference.max() - reference.min())
            at = (
                (np.arange(len(scaled)) + (0.5 if piece == "sound" else 1))
                * SECONDS
                / (len(scaled) + (piece != "sound"))
            )
            axis.fill_between(at, 0, scaled * 100 / count, color="0.85", label=label, linewidth=0)
            for model in TRAINED:
                mean, low, high = band(maps.shares(model, method, piece))
                axis.plot(middle, mean, color=COLOURS[model], label=NAMES[model])
                axis.fill_between(middle, low, high, color=COLOURS[model], alpha=0.25, linewidth=0)
            axis.axhline(100 / count, color="black", linestyle=":", linewidth=1)
            axis.set(title=f"{piece}: {method.replace('_', ' ')}", xlim=(0, SECONDS))
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        row[0].set_ylabel("share of importance (%)")
    for axis in axes[1]:
        axis.set_xlabel("time in the clip (s)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    labels = [
        "mean level (above) or motion (below) of the clips, no scale" if "mean" in text else text for text in labels
    ]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle("Test clips, mean and 95 % interval; dotted: evenly spread", fontsize=11)
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]


def draw_right_and_wrong(maps: Maps, path: Path) -> None:
    """Sound over time for right and wrong predictions, by occlusion."""
    figure = Figure(figsize=(10, 3.4), dpi=100, layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    count = PIECES["sound"][1][1]
    middle = (np.arange(count) + 0.5) * SECONDS / count
    for axis, model in zip(axes, TRAINED, strict=True):
        for right, style in ((True, "-"), (False, "--")):
            seeds = maps.shares(model, "occlusion", "sound", right)
            mean, low, high = band(seeds)
            label = f"{'right' if right else 'wrong'} ({sum(map(len, seeds))} clips)"
            axis.plot(middle, mean, style, color=COLOURS[model], label=label)
            axis.fill_between(middle, low, high, color=COLOURS[model], alpha=0.2, linewidth=0)
        axis.axhline(100 / count, color="black", linestyle=":", linewidth=1)
        axis.set(title=NAMES[model], xlabel="time in the clip (s)", xlim=(0, SECONDS))
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("share of sound's importance (%)")
    figure.suptitle("Occlusion of sound: right and wrong predictions", fontsize=11)
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]


def draw_face(maps: Maps, look: Any, path: Path) -> None:
    """Heat maps over the mean frame: methods across, models and right or wrong down; and the motion itself."""
    rows = [(model, right) for model in TRAINED for right in (True, False)]
    figure = Figure(figsize=(11, 8.4), dpi=100, layout="constrained")
    axes: Any = figure.subplots(len(rows), len(METHODS) + 1)
    height, width = look["frame"].shape
    _, blocks_y, blocks_x = PIECES["face"][1]
    label = (np.arange(height) * blocks_y // height)[:, None] * blocks_x + np.arange(width) * blocks_x // width
    found = {
        (model, right, method): np.mean([part.mean(0) for part in maps.shares(model, method, "face", right)], 0)
        for model, right in rows
        for method in METHODS
    }
    top = max(values.max() for values in found.values())
    for line, (model, right) in zip(axes, rows, strict=True):
        for axis, method in zip(line, METHODS, strict=False):
            image = axis.imshow(
                found[model, right, method][label], cmap="viridis", vmin=0, vmax=top, extent=(0, width, height, 0)
            )
            # Contours of the mean frame: a grey picture below or above would change the colours.
            x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
            axis.contour(x, y, look["frame"], levels=6, colors="white", linewidths=0.7, alpha=0.7)
            axis.set_title(f"{NAMES[model]}, {'right' if right else 'wrong'}: {method.replace('_', ' ')}", fontsize=8)
    for axis, (title, key) in zip(axes[:, -1], (("mean frame", "frame"), ("mean motion |Δ|", "motion")), strict=False):
        axis.imshow(look[key], cmap="gray" if key == "frame" else "viridis", extent=(0, width, height, 0))
        axis.set_title(title, fontsize=8)
    for axis in axes[2:, -1]:
        axis.set_axis_off()
    for axis in axes.flat:
        axis.tick_params(labelsize=7)
    for axis in axes[-1, :-1]:
        axis.set_xlabel("pixels", fontsize=7)
    for axis in axes[:, 0]:
        axis.set_ylabel("pixels", fontsize=7)
    bar = figure.colorbar(image, ax=axes[:, :-1], shrink=0.6, aspect=40, location="bottom")
    bar.set_label(f"share of the video's importance (%); evenly spread: {100 / (blocks_x * blocks_y):.1f}")
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]


def table(maps: Maps, accuracy: dict[str, list[float]], motion: np.ndarray[Any, Any]) -> str:
    """What the plots say, in numbers."""
    sound, (_, ny, nx) = PIECES["sound"][1][1], PIECES["face"][1]
    height, width = motion.shape
    label = (np.arange(height) * ny // height)[:, None] * nx + np.arange(width) * nx // width
    moves = np.array([motion[label == patch].mean() for patch in range(ny * nx)])
    lively = np.argsort(moves)[-len(moves) // 4 :]
    corners = [0, nx - 1, (ny - 1) * nx, ny * nx - 1]
    columns = ["model", "method", "clips", "centre of sound (s)", "sound: its best quarter", "centre of frames (s)"]
    columns += ["face: the quarter that moves most", "face: the 4 corners"]
    lines = [f"| {' | '.join(columns)} |"]
    lines += ["|---|---|---|---:|---:|---:|---:|---:|"]
    middle = (np.arange(sound) + 0.5) * SECONDS / sound
    for model in TRAINED:
        for method in METHODS:
            for which, right in (("right", True), ("wrong", False)):
                parts = {piece: np.concatenate(maps.shares(model, method, piece, right)) for piece in PIECES}
                centre = parts["sound"] @ middle / 100
                best = np.sort(parts["sound"].mean(0))[-sound // 4 :].sum()
                cells = [
                    f"{centre.mean():.3f} ± {centre.std():.3f}",
                    f"{best:.1f} %",
                    f"{(parts['frames'] @ middle / 100).mean():.3f}",
                    f"{parts['face'][:, lively].sum(1).mean():.1f} %",
                    f"{parts['face'][:, corners].sum(1).mean():.1f} %",
                ]
                lines.append(f"| {NAMES[model]} | {method} | {which}, {len(centre)} | {' | '.join(cells)} |")
    lines += ["", "| model | seed | method | accuracy | face: the quarter that moves most | face: the 4 corners |"]
    lines += ["|---|---:|---|---:|---:|---:|"]
    for model in TRAINED:
        for seed, right in zip(maps.seeds, accuracy[model], strict=True):
            for method in METHODS:
                face = maps.shares(model, method, "face")[maps.seeds.index(seed)].mean(0)
                cells = [f"{100 * right:.1f} %", f"{face[lively].sum():.1f} %", f"{face[corners].sum():.1f} %"]
                lines.append(f"| {NAMES[model]} | {seed} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run(options: argparse.Namespace) -> None:
    """Everything."""
    torch.set_num_threads(1)
    out = options.runs / "maps"
    todo = [(name, seed) for seed in options.seeds for name in TRAINED if options.only in (None, f"{name}-s{seed}")]
    checkpoints = {key: train(*key, options.runs, options.data) for key in todo}
    progress = Progress("explain", options.clips // BATCH * len(todo), f"batches of {BATCH} clips")
    for checkpoint in checkpoints.values():
        explain(checkpoint, out, options.clips, progress)
    if options.only:
        return
    rows = [
        {"model": name, "seed": seed, **row, "values": [float(f"{v:.4g}") for v in row["values"]]}
        for name, seed in todo
        for path in sorted(out.glob(f"{name}-s{seed}-*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "values"}
    values = pa.array([row["values"] for row in rows], pa.list_(pa.float32()))
    pq.write_table(pa.table({**columns, "values": values}), HERE / "maps.parquet", compression="zstd")
    maps, look = Maps(rows), np.load(out / "look.npz")
    accuracy = {
        name: [
            float(np.mean([r["right"] for r in rows if (r["model"], r["seed"]) == (name, seed)])) for seed in maps.seeds
        ]
        for name in TRAINED
    }
    draw_time(maps, look, HERE / "time.png")
    draw_right_and_wrong(maps, HERE / "right-and-wrong.png")
    draw_face(maps, look, HERE / "face.png")
    text = table(maps, accuracy, look["motion"])
    write_text(HERE / "table.md", text)
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="a model of each kind each (0 1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/grid-importance"), help="for models and maps")
    parser.add_argument("--clips", type=int, default=120, help="of the test split, a multiple of 20 (120)")
    parser.add_argument("--only", help="one model, such as amr-s1, and no drawing: for several at once")
    parser.add_argument("--data", nargs=argparse.REMAINDER, default=[], help="options of the data, such as its root")
    run(parser.parse_args())
