"""Cross-modal and unimodal analyses against the procedure that MultiViz publishes, as ratios in one process.

The published procedure runs the full model for every perturbed clip and explains one clip at a time: its `emap` fills a
table of N² full runs for each clip that it projects, its DIME takes S·N full runs a clip, its LIME S, and its second
derivatives a forward and two backward passes for each atom. Here that is done with a batch of one. Both sides get the
same clips, masks and solver. Two small CNNs as for the GRID letters and a low-rank head, on one core.

`emap_table` is one table of N² runs against all our work, encoders included. `emap` is the projection of all N clips,
for which the published function fills N such tables: one is run, and its time is taken N times. DIME explains a clip
(our encodings of the N clips are at hand), LIME and the second-order map the first 8. `apart` is the largest difference
of the two sides relative to the largest value: in single precision as timed, and in double precision on 4 clips. Prints
a table and one JSON line.

    python -m benchmarks.multiviz [--clips 64] [--repeats 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from amr.datamodules.atoms import Atoms, spectrogram_atoms, video_atoms
from amr.encoders.cnn import SmallCNN, SmallFrameCNN
from amr.fusion import LowRank
from amr.model import FusionModel
from amr.multiviz.crossmodal import dime, emap, second_order
from amr.multiviz.unimodal import lime, lime_kernel, weighted_ridge
from benchmarks.common import machine, report

SAMPLES, RIDGE, WIDTH = 128, 1e-6, 0.25


def made(clips: int) -> tuple[FusionModel, dict[str, Tensor], dict[str, Atoms]]:
    """Model, inputs and atoms: 64 x 64 spectrograms, and one gray frame of 42 x 64 at 16 times."""
    torch.manual_seed(0)
    encoders = {"audio": SmallCNN(), "video": SmallFrameCNN(frames=16)}
    head = LowRank({name: encoder.out_dim for name, encoder in encoders.items()}, 25)
    model = FusionModel(encoders, head).eval()
    inputs = {"audio": torch.randn(clips, 1, 64, 64), "video": torch.randn(clips, 16, 1, 42, 64)}
    audio = spectrogram_atoms(inputs["audio"].shape[1:], 4, 4, seconds=0.64, hz=(0, 8000))
    return model, inputs, {"audio": audio, "video": video_atoms(inputs["video"].shape[1:], (4, 4), 1)}


def timed(function: Callable[[], Any], repeats: int = 1) -> tuple[Any, float]:
    """Result and median seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


@torch.no_grad()
def slow_table(model: FusionModel, inputs: dict[str, Tensor]) -> Tensor:
    """Logits of all pairs, (N, N, C): a full run each."""
    clips = range(len(inputs["audio"]))
    rows = [
        torch.cat([model({"audio": inputs["audio"][i : i + 1], "video": inputs["video"][j : j + 1]}) for j in clips])
        for i in clips
    ]
    return torch.stack(rows)


def slow_projection(table: Tensor) -> Tensor:
    """EMAP of all clips from the table, (N, C)."""
    table = table.double()
    return table.mean(1) + table.mean(0) - table.mean((0, 1))


def masks(samples: int, atoms: int) -> Tensor:
    """The masks that `lime` and `dime` draw in one repeat with seed 0."""
    keep = torch.rand(1, samples, atoms, generator=torch.Generator().manual_seed(0)) < 0.5
    keep[:, 0] = True
    return keep[0]


def solve(keep: Tensor, values: Tensor) -> Tensor:
    """LIME's weights of columns of values (S, K): (K, A)."""
    return weighted_ridge(keep.double(), lime_kernel(keep, WIDTH), values.double(), RIDGE).T


@torch.no_grad()
def slow_dime(model: FusionModel, inputs: dict[str, Tensor], atoms: Atoms, target: int) -> Tensor:
    """DIME of the first clip's audio, (2, A): S·N full runs."""
    keep, clips = masks(SAMPLES, len(atoms)), range(len(inputs["video"]))
    values = []
    for z in keep:
        x = atoms.replace(inputs["audio"][0], z[None])
        scores = torch.cat([model({"audio": x, "video": inputs["video"][j : j + 1]})[:, target] for j in clips])
        unimodal = scores.double().mean()
        values.append(torch.stack([unimodal, scores[0].double() - unimodal]))
    return solve(keep, torch.stack(values))


@torch.no_grad()
def slow_lime(model: FusionModel, inputs: dict[str, Tensor], atoms: Atoms, target: int) -> Tensor:
    """LIME of every clip's audio, (N, A): S full runs a clip."""
    keep, found = masks(SAMPLES, len(atoms)), []
    for clip in range(len(inputs["audio"])):
        x, other = inputs["audio"][clip], inputs["video"][clip : clip + 1]
        runs = [model({"audio": atoms.replace(x, z[None]), "video": other})[:, target] for z in keep]
        found.append(solve(keep, torch.stack(runs)))
    return torch.cat(found)


def slow_second_order(model: FusionModel, inputs: dict[str, Tensor], atoms: dict[str, Atoms], target: int) -> Tensor:
    """The full map, (N, A1, A2): a forward and two backward passes for each clip and atom."""
    maps = []
    for clip in range(len(inputs["audio"])):
        for atom in range(len(atoms["audio"])):
            x = {name: value[clip : clip + 1].clone().requires_grad_() for name, value in inputs.items()}
            score = model(x)[0, target]
            (slope,) = torch.autograd.grad(score, x["audio"], create_graph=True)
            (curvature,) = torch.autograd.grad(slope[:, atoms["audio"].label == atom].sum(), x["video"])
            maps.append(atoms["video"].sum(curvature)[0])
    return torch.stack(maps).reshape(len(inputs["audio"]), len(atoms["audio"]), -1)


def encodings(model: FusionModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """All encodings, in one batch."""
    with torch.no_grad():
        return model.encode(inputs)


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


Case = tuple[Callable[[], Tensor], Callable[[], Tensor]]


def cases(model: FusionModel, inputs: dict[str, Tensor], atoms: dict[str, Atoms], target: int = 3) -> dict[str, Case]:
    """Our side and the published one of each analysis."""
    e, few = encodings(model, inputs), {name: x[:8] for name, x in inputs.items()}
    one, two = (("audio", atoms["audio"]), ("video", atoms["video"]))
    options: dict[str, Any] = {"samples": SAMPLES, "repeats": 1, "width": WIDTH, "ridge": RIDGE}

    def our_dime() -> Tensor:
        found = dime(model, inputs, e, target, one, clips=[0], **options)
        return torch.cat([found.unimodal.values, found.multimodal.values])

    return {
        "emap_table": (
            lambda: emap(model, encodings(model, inputs)),
            lambda: slow_projection(slow_table(model, inputs)),
        ),
        "dime": (our_dime, lambda: slow_dime(model, inputs, atoms["audio"], target)),
        "lime": (
            lambda: lime(model, few, "audio", target, atoms["audio"], **options).values,
            lambda: slow_lime(model, few, atoms["audio"], target),
        ),
        "second_order": (
            lambda: second_order(model, few, target, one, two).as_subclass(Tensor),
            lambda: slow_second_order(model, few, atoms, target),
        ),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5, help="of our side; the other is run once")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, inputs, atoms = made(options.clips)
    result: dict[str, Any] = {"benchmark": "multiviz", "machine": machine("cpu"), "torch": torch.__version__}
    result |= {"clips": options.clips, "samples": SAMPLES}
    for name, (fast, slow) in cases(model, inputs, atoms).items():
        fast()
        ours, seconds = timed(fast, options.repeats)
        theirs, slow_seconds = timed(slow)
        result |= {f"{name}_ms": round(1e3 * seconds, 2), f"{name}_published_s": round(slow_seconds, 3)}
        result |= {f"{name}_ratio": round(slow_seconds / seconds, 1), f"{name}_apart": apart(ours, theirs)}
        if name == "emap_table":
            result["emap_ratio"] = round(options.clips * slow_seconds / seconds, 1)
    double = {name: x[:4].double() for name, x in inputs.items()}
    for name, (fast, slow) in cases(model.double(), double, atoms).items():
        result[f"{name}_apart_double"] = apart(fast(), slow())
    report(result)


if __name__ == "__main__":
    main()
