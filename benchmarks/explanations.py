"""Explanations of clips against captum's on the same model, clips and number of samples, as ratios in one process.

Two small CNNs as for the GRID letters and a low-rank head, eight clips, 16 atoms a modality, both modalities explained
one after the other, on one core, 64 rows at once where captum lets one say so and fewer on our side where inputs are
large. captum gets the whole model, and the other modality's input beside the explained one, as its manual has it; LIME
and KernelSHAP take its clips one by one, for it asks for that.
`by_default` is captum as it comes, one perturbation at a time, and `3_classes` explains three classes of every clip.
`apart` is the largest difference relative to the largest value, of the methods that draw nothing. CPU time; the sides
take turns. Prints a table and one JSON line.

    python -m benchmarks.explanations [--clips 8] [--blocks 5]
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from captum.attr import FeatureAblation, GradientShap, IntegratedGradients, KernelShap, Lime
from captum.metrics import infidelity as captum_infidelity
from torch import Tensor

from amr.datamodules.atoms import Atoms
from amr.model import FusionModel
from amr.multiviz.base import Several
from amr.multiviz.trust import infidelity
from amr.multiviz.unimodal import gradient_shap, integrated_gradients, kernel_shap, lime, occlusion
from benchmarks.common import machine, quiet, report, spread
from benchmarks.multiviz import made

SAMPLES, STEPS, DRAWS, SETS, ROWS, TARGET, CLASSES = 128, 32, 32, 64, 64, 3, 3
Case = tuple[Callable[[], Tensor], Callable[[], Tensor]]


def cases(model: FusionModel, inputs: dict[str, Tensor], modality: str, atoms: Atoms) -> dict[str, Case]:
    """Our side and captum's of each method, of one modality."""
    (other,) = (m for m in inputs if m != modality)
    x, beside, label = inputs[modality], inputs[other], atoms.label[None]
    count = len(atoms)

    def forward(explained: Tensor, rest: Tensor) -> Tensor:
        logits: Tensor = model({modality: explained, other: rest})
        return logits

    def each(method: Any, at_once: int) -> Tensor:
        found = []
        for i in range(len(x)):
            given = {"target": TARGET, "additional_forward_args": (beside[i : i + 1],), "feature_mask": label}
            sampled = {"n_samples": SAMPLES, "perturbations_per_eval": at_once}
            found.append(method(forward).attribute(x[i : i + 1], **given, **sampled))
        return torch.cat(found)

    def removed(at_once: int) -> Tensor:
        method = FeatureAblation(forward)
        found: Tensor = method.attribute(x, feature_mask=label, perturbations_per_eval=at_once, **options)
        return found

    def of_classes(method: Any, **more: Any) -> Tensor:
        given = {"additional_forward_args": (beside,), **more}
        return torch.stack([method(forward).attribute(x, target=c, **given) for c in range(CLASSES)], dim=1)

    def perturb(explained: Tensor) -> tuple[Tensor, Tensor]:
        gone = (torch.rand(len(explained), count) < 0.5)[:, atoms.label]
        return gone.to(explained), explained.masked_fill(gone, 0.0)

    options: dict[str, Any] = {"target": TARGET, "additional_forward_args": (beside,)}
    sampled: dict[str, Any] = {"samples": SAMPLES, "repeats": 1}
    importance = occlusion(model, inputs, modality, TARGET, atoms)
    per_element = importance.values.float()[:, atoms.label]
    classes = Several(torch.arange(CLASSES).expand(len(x), -1))
    ours: dict[str, Callable[[], Tensor]] = {
        "lime": lambda: lime(model, inputs, modality, TARGET, atoms, **sampled).values,
        "kernel_shap": lambda: kernel_shap(model, inputs, modality, TARGET, atoms, **sampled).values,
        "occlusion": lambda: occlusion(model, inputs, modality, TARGET, atoms).values,
    }
    path: dict[str, Any] = {"n_steps": STEPS, "internal_batch_size": ROWS}
    random: dict[str, Any] = {"baselines": x, "n_samples": DRAWS}
    return {
        "lime": (ours["lime"], lambda: each(Lime, ROWS)),
        "lime_by_default": (ours["lime"], lambda: each(Lime, 1)),
        "kernel_shap": (ours["kernel_shap"], lambda: each(KernelShap, ROWS)),
        "kernel_shap_by_default": (ours["kernel_shap"], lambda: each(KernelShap, 1)),
        "occlusion": (ours["occlusion"], lambda: removed(max(1, ROWS // len(x)))),
        "occlusion_by_default": (ours["occlusion"], lambda: removed(1)),
        "integrated_gradients": (
            lambda: integrated_gradients(model, inputs, modality, TARGET, atoms, steps=STEPS).values,
            lambda: IntegratedGradients(forward).attribute(x, **path, **options),
        ),
        "integrated_gradients_3_classes": (
            lambda: integrated_gradients(model, inputs, modality, classes, atoms, steps=STEPS).values,
            lambda: of_classes(IntegratedGradients, **path),
        ),
        "gradient_shap": (
            lambda: gradient_shap(model, inputs, modality, TARGET, atoms, baselines=x, samples=DRAWS).values,
            lambda: GradientShap(forward).attribute(x, **random, **options),
        ),
        "gradient_shap_3_classes": (
            lambda: gradient_shap(model, inputs, modality, classes, atoms, baselines=x, samples=DRAWS).values,
            lambda: of_classes(GradientShap, **random),
        ),
        "infidelity": (
            lambda: infidelity(model, inputs, modality, TARGET, importance, samples=SETS),
            lambda: captum_infidelity(
                forward, perturb, x, per_element, n_perturb_samples=SETS, max_examples_per_batch=ROWS, **options
            ),
        ),
    }


def of_atoms(values: Tensor, atoms: Atoms, *, repeated: bool) -> Tensor:
    """Captum's values, an element each, by atom: their sum, or, where each element has its atom's value, that value."""
    sums = atoms.sum(values.double())
    return sums / torch.bincount(atoms.label.flatten(), minlength=len(atoms)) if repeated else sums


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((ours.double() - theirs).abs().max() / theirs.abs().max())


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=5, help="turns of each side, after one that is not counted")
    options = parser.parse_args()
    quiet()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    model, inputs, atoms = made(options.clips)
    each = [cases(model, inputs, modality, atoms[modality]) for modality in inputs]
    result: dict[str, Any] = {"benchmark": "explanations", "machine": machine("cpu"), "clips": options.clips}
    for name in each[0]:
        ratios = []
        for block in range(options.blocks + 1):
            seconds = [0.0, 0.0]
            for side in (0, 1) if block % 2 else (1, 0):
                began = time.process_time()
                for case in each:
                    case[name][side]()
                seconds[side] = time.process_time() - began
            if block:
                ratios.append(seconds[1] / seconds[0])
        result |= spread(name, ratios, 2)
    for name in ("occlusion", "integrated_gradients"):
        gaps = []
        for modality, case in zip(inputs, each, strict=True):
            ours, theirs = (side() for side in case[name])
            gaps.append(apart(ours, of_atoms(theirs, atoms[modality], repeated=name == "occlusion")))
        result[f"{name}_apart"] = float(f"{max(gaps):.1e}")
    report(result)


if __name__ == "__main__":
    main()
