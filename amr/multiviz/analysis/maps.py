"""The maps of one clip, as arrays by name (docs/multiviz/files.md)."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amr.datamodules.atoms import ClipAtoms
from amr.evaluation.decisions.intershap import local_intershap, split_indices
from amr.model import encoder_of
from amr.model.protocol import Explained
from amr.multiviz import crossmodal as c
from amr.multiviz import unimodal as u
from amr.multiviz.analysis.analysis import Analysis, last_convolution
from amr.multiviz.analysis.sizes import REPEATS, joint_samples, masks_of, partners_of
from amr.multiviz.base import Several
from amr.multiviz.trust import Explain
from amr.utils.arrays import Arrays
from amr.utils.errors import UserError


def explain(analysis: Analysis, position: int) -> Arrays:
    """All maps of an explained clip."""
    classes, inputs = analysis.classes(position), analysis.inputs([position])
    n = analysis.chosen.index(position)
    arrays = {
        "id": np.array(analysis.clips.ids[position]),
        **_labels(analysis, position),
        "predicted": np.array(int(analysis.predicted[position])),
        "classes": classes.cpu().numpy(),
        "logits": analysis.logits[position].float().numpy(),
        **_pictures(analysis, position, inputs),
        **sparse_parts(analysis, position, classes),
    }
    units = torch.as_tensor(arrays["units"], device=analysis.device)
    for modality in analysis.model.modalities:
        several = Several(classes[None], units[None])
        atoms, nothing = analysis.atoms([position])[modality], analysis.baselines(inputs)[modality]
        importance = u.occlusion(analysis.model, inputs, modality, several, atoms, baseline=nothing).values[0]
        arrays[f"U/{modality}/occlusion"] = _array(importance[: len(classes)])
        if len(units):
            arrays[f"R/{modality}/occlusion"] = _array(importance[len(classes) :])
        for name, method in methods(analysis, modality, classes, [position]).items():
            if name == "occlusion":
                continue
            analysis.at(f"{name} of {modality}")
            found = method(analysis.model, inputs, analysis.seed)
            arrays[f"U/{modality}/{name}"] = _array(found.values)
            if found.error is not None:
                arrays[f"U_error/{modality}/{name}"] = _array(found.error)
            if found.half is not None:
                arrays[f"U_half/{modality}/{name}"] = _array(found.half)
    if len(analysis.model.modalities) > 1:
        arrays |= _interactions(analysis, position, inputs, classes, units)
        arrays |= _dime(analysis, n, classes)
        arrays |= _modalities(analysis, n, classes)
    return arrays


def _labels(analysis: Analysis, position: int) -> Arrays:
    """A clip's class; of several labels all of them, too."""
    every = {"labels": np.array(analysis.truths(position), dtype=np.int64)} if analysis.several else {}
    return {"label": np.array(int(analysis.truth[position])), **every}


def extreme(analysis: Analysis, position: int, units: list[int]) -> Arrays:
    """Maps of a clip for units that it activates most or least."""
    inputs = analysis.inputs([position])
    arrays = {
        "id": np.array(analysis.clips.ids[position]),
        **_labels(analysis, position),
        "units": np.array(units),
        "activations": analysis.features[position, units].float().numpy(),
        **_pictures(analysis, position, inputs),
    }
    arrays |= {f"R/{m}/occlusion": values for m, values in of_units(analysis, position, inputs, units).items()}
    return arrays


def of_units(analysis: Analysis, position: int, inputs: Mapping[str, Tensor], units: list[int]) -> Arrays:
    """Importance of each modality's atoms for units of one clip, (V, A) per modality."""
    nothing = analysis.baselines(inputs)
    index = torch.tensor([units], dtype=torch.long, device=analysis.device)
    several = Several(index.new_empty(1, 0), index)
    return {
        m: _array(u.occlusion(analysis.model, inputs, m, several, atoms, baseline=nothing[m]).values[0])
        for m, atoms in analysis.atoms([position]).items()
    }


def methods(analysis: Analysis, modality: str, target: Tensor, positions: list[int]) -> dict[str, Explain]:
    """U's methods that fit the network, by name.

    Args:
        analysis: State that they need.
        modality: Modality that they explain.
        target: Classes (T,). Of one clip and several classes they give (T, A), of a clip for each class the same.
        positions: The clips.
    """
    atoms = analysis.atoms(positions)[modality]
    nothing: dict[str, Any] = {"baseline": analysis.baselines(analysis.inputs(positions))[modality]}

    def repeated(method: Callable[..., u.Importance], drawn: bool = False, **options: Any) -> Explain:
        """Methods that watch layers of the network: a copy of the clip for each class."""

        def call(model: Explained, x: Mapping[str, Tensor], seed: int) -> u.Importance:
            copies = {m: v.expand(len(target), *v.shape[1:]) if len(v) == 1 else v for m, v in x.items()}
            return method(model, copies, modality, target, atoms, **options, **({"seed": seed} if drawn else {}))

        return call

    def shared(method: Callable[..., u.Importance], drawn: bool = False, **options: Any) -> Explain:
        """Methods that replace pieces, or differentiate by the input: the classes share the rows."""

        def call(model: Explained, x: Mapping[str, Tensor], seed: int) -> u.Importance:
            given = {**options, **({"seed": seed} if drawn else {})}
            if len(x[modality]) == len(target):
                return method(model, x, modality, target, atoms, **given)
            found = method(model, x, modality, Several(target[None]), atoms, **given)
            error = None if found.error is None else found.error[0]
            return u.Importance(found.values[0], error, atoms, found.method, found.freedom)

        return call

    masks = {"samples": masks_of(analysis.samples, len(atoms)), "repeats": REPEATS, **nothing}
    found: dict[str, Explain] = {
        "occlusion": shared(u.occlusion, **nothing),
        "integrated_gradients": shared(u.integrated_gradients, **nothing),
        "gradient_shap": shared(u.gradient_shap, drawn=True, baselines=analysis.others[modality]),
        "kernel_shap": shared(u.kernel_shap, drawn=True, **masks),
        "lime": shared(u.lime, drawn=True, **masks),
        "gradient_input": shared(u.gradient_input),
        "gradient": shared(u.gradient),
        # The layer of the model that is passed, which may be a copy with other parameters.
        "grad_cam": lambda other, x, seed: repeated(u.grad_cam, layer=last_convolution(encoder_of(other, modality)))(
            other, x, seed
        ),
        "guided_backprop": repeated(u.guided_backprop),
    }
    return {name: one for name, one in found.items() if name not in analysis.unfit[modality]}


def _pictures(analysis: Analysis, position: int, inputs: Mapping[str, Tensor]) -> Arrays:
    """Each modality's input to look at, the atom at each place, and its time in the media file."""
    arrays: Arrays = {}
    clip = analysis.data.clips_of(analysis.split).clips[analysis.index[position]]
    coarse = analysis.atoms([position], coarse=True)
    for modality, atoms in analysis.atoms([position]).items():
        picture = analysis.data.picture(modality, inputs[modality][0].cpu(), atoms)
        low, high = float(picture.image.min()), float(picture.image.max())
        scaled = (picture.image - low) / ((high - low) or 1.0) * 255
        arrays[f"picture/{modality}"] = scaled.round().astype(np.uint8)
        arrays[f"range/{modality}"] = np.array([low, high], dtype=np.float32)
        arrays[f"unit/{modality}"] = np.array(picture.unit)
        for name, some in (("fine", atoms), ("coarse", coarse[modality])):
            label = some.label[0] if isinstance(some, ClipAtoms) else some.label
            if int(label.min()) < 0:  # what is in no atom
                kind: Any = np.int32
            else:
                kind = np.uint8 if len(some) < 256 else np.uint16 if len(some) < 65536 else np.int64
            arrays[f"{name}/{modality}"] = label.flatten().numpy()[picture.element].astype(kind)
            if isinstance(some, ClipAtoms) and some.texts:
                arrays[f"text_{name}/{modality}"] = np.array(some.texts[0])
        for name, shown in analysis.data.looks(modality, inputs[modality][0].cpu(), atoms).items():
            arrays[f"{name}/{modality}"] = shown
        window = analysis.data.window(modality, clip)
        arrays[f"window/{modality}"] = np.array((np.nan, np.nan) if window is None else window)
    return arrays


def sparse_parts(analysis: Analysis, position: int, classes: Tensor) -> Arrays:
    """The sparse classifier's logits of the classes by unit, and the units that count most on this clip."""
    sparse = analysis.sparse
    if sparse is None:
        return {"units": np.zeros(0, dtype=np.int64), "activations": np.zeros(0, dtype=np.float32)}
    features = analysis.features[position].double().numpy()
    used = np.flatnonzero((sparse["coefficients"] != 0).any(0))
    standardised = ((features - sparse["mean"]) / sparse["scale"])[used]
    parts = sparse["coefficients"][classes.cpu().numpy()][:, used] * standardised  # (K, S)
    order = np.argsort(-np.abs(parts).max(0), kind="stable")[: analysis.plan.units]
    units = used[order[np.abs(parts).max(0)[order] > 0]]
    return {
        "units": units,
        "activations": features[units].astype(np.float32),
        "P/units": used,
        "P/contributions": parts.astype(np.float32),
        "P/intercepts": sparse["intercepts"][classes.cpu().numpy()].astype(np.float32),
    }


def _interactions(
    analysis: Analysis, position: int, inputs: Mapping[str, Tensor], classes: Tensor, units: Tensor
) -> Arrays:
    """C: pairs of atoms of each two modalities; for units by the cheapest method."""
    arrays: Arrays = {}
    model, several, nothing = analysis.model, Several(classes[None]), analysis.baselines(inputs)
    atoms, larger = analysis.atoms([position]), analysis.atoms([position], coarse=True)
    copies = {m: x.expand(len(classes), *x.shape[1:]) for m, x in inputs.items()}
    for first, second in combinations(model.modalities, 2):
        pair = f"{first}/{second}"
        fine = (first, atoms[first]), (second, atoms[second])
        coarse = (first, larger[first]), (second, larger[second])
        analysis.at(f"ablation of {pair}")
        arrays[f"C/{pair}/ablation"] = _array(c.ablation(model, inputs, several, *fine, nothing)[0])
        try:
            curved = c.second_order(model, copies, classes, *fine)
        except UserError as error:
            analysis.note(f"second_order {pair}", f"left out for {first} and {second}: {error}")
        else:
            arrays[f"C/{pair}/second_order"] = _array(curved.as_subclass(Tensor))
            if curved.reason:
                arrays[f"C_reason/{pair}/second_order"] = np.array(curved.reason)
        samples = joint_samples(analysis.samples, len(coarse[0][1]), len(coarse[1][1]))
        sampled: Any = {"baseline": nothing, "samples": samples, "repeats": REPEATS, "seed": analysis.seed}
        for name, method in (("joint_shap", c.joint_shap), ("joint_lime", c.joint_lime)):
            analysis.at(f"{name} of {pair}")
            pairs = _determined(method, model, inputs, several, *coarse, **sampled).pairs
            arrays[f"C/{pair}/{name}"] = _array(pairs.values[0])
            if pairs.error is not None:
                arrays[f"C_error/{pair}/{name}"] = _array(pairs.error[0])
        if len(units):
            only_units = Several(units.new_empty(1, 0), units[None])
            arrays[f"RC/{pair}/ablation"] = _array(c.ablation(model, inputs, only_units, *coarse, nothing)[0])
    return arrays


def _determined(method: Callable[..., Any], *arguments: Any, samples: int, **options: Any) -> Any:
    """Result of a method; if its draws do not determine one, which it sees before a row is run, it gets more."""
    for more in (1, 1.25, 1.5, 2, 3, 4):
        with suppress(UserError):
            return method(*arguments, samples=round(more * samples / 2) * 2, **options)
    return method(*arguments, samples=8 * samples, **options)


def _dime(analysis: Analysis, n: int, classes: Tensor) -> Arrays:
    """DIME of the n-th explained clip, its modalities paired with those of all explained clips."""
    arrays: Arrays = {}
    samples, count = partners_of(analysis)
    position = analysis.chosen[n]
    pool = [position, *(other for other in analysis.chosen if other != position)][:count]
    pool = pool if count < len(analysis.chosen) else analysis.chosen
    encodings, place = analysis.encodings(pool), pool.index(position)
    own = analysis.inputs([position])
    several, nothing = Several(classes.expand(len(pool), -1)), analysis.baselines(own)
    for modality, atoms in analysis.atoms([position], coarse=True).items():
        analysis.at(f"dime of {modality}")
        part = c.dime(
            analysis.model,
            {modality: own[modality].expand(len(pool), *own[modality].shape[1:])},  # only its own is used
            encodings,
            several,
            (modality, atoms),
            {modality: nothing[modality]},
            clips=[place],
            samples=max(samples, len(atoms) + 2),
            repeats=REPEATS,
            seed=analysis.seed,
        )
        for name, estimate in (("dime_unimodal", part.unimodal), ("dime_multimodal", part.multimodal)):
            arrays[f"D/{modality}/{name}"] = _array(estimate.values[0])
            if estimate.error is not None:
                arrays[f"D_error/{modality}/{name}"] = _array(estimate.error[0])
    return arrays


def _modalities(analysis: Analysis, n: int, classes: Tensor) -> Arrays:
    """Shapley values and interactions of whole modalities for the n-th explained clip's logits."""
    encodings = analysis.encodings(analysis.chosen)
    means = {m: e.mean(0, keepdim=True) for m, e in encodings.items()}
    copies = {m: e[n : n + 1].expand(len(classes), *e.shape[1:]) for m, e in encodings.items()}
    pairs = c.interaction_index(analysis.model, copies, classes, means)
    half = c.interaction_error(analysis.model, copies, encodings, classes).half
    additive = analysis.projected[n, classes.cpu()]
    return {
        "pairs": _array(pairs),
        "pairs_half": _array(half),
        "shapley": _array(pairs.diagonal(dim1=1, dim2=2)),
        "shapley_half": _array(half.diagonal(dim1=1, dim2=2)),
        "intershap": _array(local_intershap(split_indices(pairs))),
        "additive": _array(additive),
        "interaction": _array(analysis.logits[analysis.chosen[n], classes.cpu()] - additive),
    }


def _array(values: Tensor) -> Any:
    return values.detach().float().cpu().numpy()
