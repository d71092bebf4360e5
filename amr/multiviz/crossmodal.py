"""Cross-modal interactions (C): what a score owes to modalities together, beyond what each brings by itself.

An interaction can only come from the head, so encoders run once an atom and the head does the rest. LIME and SHAP over
two modalities are in `joint`, exact Shapley values of whole modalities in `shapley`; all names can be imported here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from amr.attribution import undisturbed
from amr.datamodules.atoms import Atoms
from amr.evaluation.emap import Estimate, clip_rows, emap, emap_estimate, emap_gap, over_repeats, projection
from amr.evaluation.head import Baseline, baseline_values, head_rows
from amr.model import FusionModel
from amr.multiviz.base import Several, Target, Unit, fixed_target, fixed_targets, target_scores
from amr.multiviz.joint import JointExplanation, Side, Space, encode, joint_lime, joint_shap, perturbed, scorer, sides
from amr.multiviz.shapley import interaction_index, modality_shapley
from amr.multiviz.unimodal import lime_kernel, weighted_ridge
from amr.utils.errors import UserError

__all__ = [
    "Dime",
    "Estimate",
    "InteractionMap",
    "JointExplanation",
    "Side",
    "Space",
    "ablation",
    "contributions",
    "dime",
    "emap",
    "emap_estimate",
    "emap_gap",
    "interaction_index",
    "joint_lime",
    "joint_shap",
    "modality_shapley",
    "second_order",
]


class InteractionMap(Tensor):
    """A map (N, A1, A2) that can say why it is all zeros.

    Attributes:
        reason: Empty, or why every entry is zero and what to do instead.
    """

    reason: str = ""


@dataclass(frozen=True, eq=False)
class Dime:
    """LIME weights of the two parts of a score, K clips and the A atoms of one modality.

    Args:
        unimodal: Weights for the additive part, (K, A); (K, T, A) of several targets.
        multimodal: Weights for the rest, (K, A). The two add up to LIME's weights for the score.
        clips: Which clips, positions among the N.
    """

    unimodal: Estimate
    multimodal: Estimate
    clips: tuple[int, ...]


def contributions(
    model: FusionModel,
    encodings: Mapping[str, Tensor],
    target: Target,
    *,
    pairings: int = 8,
    seed: int = 0,
    batch: int = 4096,
) -> tuple[Tensor, Tensor]:
    """Splits each clip's score into f = UC + MC (Lyu et al. 2022, eqs. 1 and 2).

    UC is the additive projection of the score, MC what is left of it. The head rows of `emap`, and N more.

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, ...).
        target: What is explained.
        pairings: See `emap_estimate`.
        seed: Of the pairings.
        batch: Head rows at a time.

    Returns:
        Unimodal and multimodal contribution, each (N,), in the unit of the score.
    """
    with undisturbed(model), torch.no_grad():
        function = model.penultimate if isinstance(target, Unit) else model.head
        whole = clip_rows(function, encodings, batch)
        known = whole.argmax(1) if isinstance(target, str) and target == "predicted" else target
        fixed = fixed_target(model, encodings, known)
        index = torch.full_like(whole[:, 0], fixed.index).long() if isinstance(fixed, Unit) else fixed
        score = whole.gather(1, index[:, None])[:, 0]
        unimodal = projection(function, encodings, pairings, seed, batch).values.gather(1, index[:, None])[:, 0]
    return unimodal, score - unimodal


def dime(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    encodings: Mapping[str, Tensor],
    target: Target | Several,
    side: Side,
    baseline: Baseline = "zeros",
    *,
    clips: Iterable[int] | None = None,
    space: Space = "inputs",
    samples: int = 256,
    repeats: int = 4,
    width: float = 0.25,
    ridge: float = 1e-6,
    pairings: int = 8,
    seed: int = 0,
    batch: int = 4096,
    encoder_batch: int = 64,
) -> Dime:
    """DIME: LIME on the unimodal and on the multimodal part of a score (Lyu et al. 2022, section 3).

    Of the terms of UC only E[f | e^m = e'] changes when atoms of modality m are replaced; what stays falls into the
    surrogate's constant. So a mask costs one encoder row of m, and one head row for each of the N clips that lend it
    their other modalities: S·N head rows a clip and repeat for M = 2. For M > 2 the others are put together at random
    as in `emap_estimate`: S·(N · pairings + 1). "predicted" costs N head rows more.

    Args:
        model: The model.
        inputs: Input of the explained modality, (N, ...); others are not used.
        encodings: Encoding of each modality, (N, ...), of the same clips: what UC is a mean over.
        target: What is explained; `Several` share all rows.
        side: The explained modality and its atoms.
        baseline: What an atom that is not kept becomes.
        clips: Which of the clips to explain; None for all.
        space: What is perturbed.
        samples: Masks a repeat, S; the first keeps all atoms, the others each with probability ½.
        repeats: Independent sets of masks; values are their mean, and their spread gives the errors.
        width: Of `lime_kernel`.
        ridge: Penalty on the surrogate's squared weights.
        pairings: For M > 2.
        seed: Of masks and pairings; all clips share them.
        batch: Head rows at a time.
        encoder_batch: Encoder rows at a time.

    Returns:
        Weights in float64.

    Raises:
        UserError: A modality, a clip, the target or the baseline does not exist, or an option has a value that is not
            allowed.
    """
    ((name, atoms),) = sides(inputs, side)
    count = len(inputs[name])
    if name not in encodings or any(len(e) != count for e in encodings.values()):
        raise UserError(f"encodings: must be of the same {count} clips as the inputs, {name!r} among them")
    chosen = tuple(range(count) if clips is None else clips)
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        raise UserError(f"clips: {list(chosen)[:5]}; allowed are 0 to {count - 1}, at least one")
    if repeats < 1 or pairings < 1 or samples < len(atoms) + 2 or not (width > 0 and ridge >= 0):
        allowed = f"repeats and pairings of 1 or more, samples of {len(atoms) + 2} or more, width > 0 and ridge >= 0"
        raise UserError(f"dime: allowed are {allowed}")
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(repeats, samples, len(atoms), generator=generator) < 0.5
    keep[:, 0] = True
    replacement, parts = baseline_values({name: inputs[name]}, baseline)[name], []
    others = [m for m in encodings if m != name]
    rounds = pairings if len(others) > 1 else min(len(others), 1)
    drawn = {m: _permutations(count, rounds, generator).flatten() for m in others}
    with undisturbed(model), torch.no_grad():
        fixed = fixed_targets(model, encodings, target)
        for clip in chosen:
            row = perturbed(
                model, name, inputs[name][clip], atoms, keep.flatten(0, 1), replacement[clip], space, encoder_batch
            )
            if len(others) == 1:  # its own clip is one of the N
                partners, own = {others[0]: torch.arange(count)}, clip
            else:
                partners, own = {m: torch.cat([p, torch.tensor([clip])]) for m, p in drawn.items()}, rounds * count
            span = max(rounds * count + (len(others) != 1), 1)
            pools, table = {**encodings, name: row}, {m: p.to(row.device) for m, p in partners.items()}

            def picks(rows: Tensor, table: dict[str, Tensor] = table, span: int = span) -> dict[str, Tensor]:
                return {name: rows // span, **{m: p[rows % span] for m, p in table.items()}}

            scores = torch.cat([*head_rows(scorer(model, fixed, clip), pools, picks, len(row) * span, batch)])
            scores = scores.reshape(repeats, samples, span, *scores.shape[1:]).double().cpu()  # (R, S, span[, T])
            unimodal = scores[:, :, : rounds * count].mean(2) if others else scores[:, :, 0]
            parts.append(torch.stack([unimodal, scores[:, :, own] - unimodal], dim=2))
    values = torch.stack(parts, dim=3)  # (R, S, 2, K), or (R, S, 2, K, T)
    weights = weighted_ridge(keep.double(), lime_kernel(keep, width), values.flatten(2), ridge).transpose(1, 2)
    weights = weights.reshape(repeats, *values.shape[2:], -1)  # (R, 2, K, A), or (R, 2, K, T, A)
    like = replacement.new_empty(0, dtype=torch.float64)
    return Dime(over_repeats(weights[:, 0], like), over_repeats(weights[:, 1], like), chosen)


def second_order(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    target: Target,
    first: str | tuple[str, Atoms | Tensor],
    second: str | tuple[str, Atoms | Tensor],
    *,
    space: Space = "inputs",
    batch: int = 64,
) -> InteractionMap:
    """Mixed second derivatives of the score between atoms of two modalities (Liang et al. 2023, section 2.2).

        map[n, i, j] = Σ_{p in i} Σ_{q in j} ∂²f / ∂x^first_p ∂x^second_q   at clip n

    Two forward passes, one without gradients; one backward pass that keeps its graph, and one more for each atom of the
    modality that has fewer. A set of elements as one side gives MultiViz's map: the gradient of a gradient that is
    summed over the set.

    A ReLU network is piecewise linear, so its map is zero although it interacts. Where every entry is zero, a 4-point
    ablation of whole modalities (against zeros, the negated encodings and the next clip's) tells whether the head
    interacts at all, and the map's `reason` says which it is.

    Args:
        model: The model. Convolutions, smooth activations and attention can be differentiated twice; cuDNN's recurrent
            layers and compiled encoders cannot.
        inputs: Input of each modality, (N, ...); their encodings with space="encodings".
        target: What is explained.
        first: A modality, whose every element is an atom; or with it atoms, or one set of elements, boolean of the
            shape of one input.
        second: Another one.
        space: What is differentiated by.
        batch: Clips at a time.

    Returns:
        Map (N, A1, A2), A = 1 for a set.

    Raises:
        UserError: A modality or the target does not exist, or a layer cannot be differentiated twice.
    """
    one, two = _set_sides(inputs, first, second)
    names = (one[0], two[0])
    _refuse(model, inputs, names, space, cudnn=inputs[names[0]].is_cuda and torch.backends.cudnn.enabled)
    swap = one[2] > two[2]
    outer, inner = (two, one) if swap else (one, two)
    with undisturbed(model):
        with torch.no_grad():
            encodings = encode(model, inputs, space, batch)
            fixed = fixed_target(model, encodings, target)
        maps = []
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            for start in range(0, len(inputs[names[0]]), batch):
                rows = slice(start, start + batch)
                part = {name: e[rows] for name, e in encodings.items()}
                goal = fixed if isinstance(fixed, Unit) else fixed[rows]
                leaves = {name: inputs[name][rows].detach().clone().requires_grad_() for name in names}
                maps.append(_mixed(model, part, goal, leaves, outer, inner, space))
        values = torch.cat(maps)
        result = (values.transpose(1, 2) if swap else values).as_subclass(InteractionMap)
        if not values.any():
            with torch.no_grad():
                result.reason = _why_zero(model, encodings, fixed, names)
    return result


def ablation(
    model: FusionModel,
    inputs: Mapping[str, Tensor],
    target: Target | Several,
    first: Side,
    second: Side,
    baseline: Baseline = "zeros",
    *,
    space: Space = "inputs",
    batch: int = 4096,
    encoder_batch: int = 64,
) -> Tensor:
    """4-point ablation: what two atoms bring together beyond what each brings by itself.

        map[n, i, j] = f(x) − f(x−i) − f(x−j) + f(x−ij)

    x−i is clip n with atom i of `first` replaced, x−j with atom j of `second`, x−ij with both. It is the finite form of
    `second_order`, with the same sign, and right for piecewise linear networks too. An atom is encoded once, whatever
    it is paired with: A1 + A2 + M encoder rows a clip, and (A1 + 1)(A2 + 1) head rows.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...); their encodings with space="encodings".
        target: What is explained, fixed on the clips as they are; `Several` share all rows.
        first: A modality and its atoms.
        second: Another one.
        baseline: What a replaced atom becomes.
        space: What is perturbed.
        batch: Head rows at a time.
        encoder_batch: Encoder rows at a time.

    Returns:
        Map (N, A1, A2), or (N, T, A1, A2), in the unit of the score.

    Raises:
        UserError: A modality, the target or the baseline does not exist.
    """
    one, two = sides(inputs, first, second)
    replacement, maps = baseline_values({name: inputs[name] for name, _ in (one, two)}, baseline), []
    height, width = len(one[1]) + 1, len(two[1]) + 1

    def picks(rows: Tensor) -> dict[str, Tensor]:
        return {**dict.fromkeys(model.modalities, rows * 0), one[0]: rows // width, two[0]: rows % width}

    with undisturbed(model), torch.no_grad():
        encodings = encode(model, inputs, space, encoder_batch)
        fixed = fixed_targets(model, encodings, target)
        for clip in range(len(inputs[one[0]])):
            pools = {name: e[clip : clip + 1] for name, e in encodings.items()}
            for name, atoms in (one, two):  # the last row of a pool is the clip as it is
                x, base, keep = inputs[name][clip], replacement[name][clip], ~torch.eye(len(atoms), dtype=torch.bool)
                without = perturbed(model, name, x, atoms, keep, base, space, encoder_batch)
                pools[name] = torch.cat([without, pools[name]])
            scores = torch.cat([*head_rows(scorer(model, fixed, clip), pools, picks, height * width, batch)])
            f = scores.reshape(height, width, *scores.shape[1:]).movedim((0, 1), (-2, -1))  # ([T,] A1 + 1, A2 + 1)
            maps.append(f[..., -1:, -1:] - f[..., :-1, -1:] - f[..., -1:, :-1] + f[..., :-1, :-1])
    return torch.stack(maps)


def _permutations(count: int, rounds: int, generator: torch.Generator) -> Tensor:
    """Random permutations, (rounds, count)."""
    drawn = [torch.randperm(count, generator=generator) for _ in range(rounds)]
    return torch.stack(drawn) if drawn else torch.empty(0, count, dtype=torch.long)


def _set_sides(inputs: Mapping[str, Tensor], *given: str | tuple[str, Atoms | Tensor]) -> list[tuple[str, Atoms, int]]:
    """Modality, atoms, and how many of the atoms are wanted: a set is the first of two."""
    plain: list[Side] = []
    wanted: list[int | None] = []
    for side in given:
        if isinstance(side, str):
            plain.append(side)
        elif isinstance(side[1], Atoms):
            plain.append((side[0], side[1]))
        else:
            plain.append((side[0], _set_and_rest(inputs, side[0], side[1])))
        wanted.append(1 if not isinstance(side, str) and isinstance(side[1], Tensor) else None)
    return [(name, atoms, n or len(atoms)) for (name, atoms), n in zip(sides(inputs, *plain), wanted, strict=True)]


def _set_and_rest(inputs: Mapping[str, Tensor], name: str, members: Tensor) -> Atoms:
    """Two atoms, a set of elements and all others; one if there are no others."""
    shape = inputs[name].shape[1:] if name in inputs else members.shape
    if members.shape != shape or members.dtype != torch.bool or not members.any():
        given = f"{members.dtype} {tuple(members.shape)} with {int((members != 0).sum())} members"
        raise UserError(f"{name!r}: a set of elements is boolean, of the input's shape {tuple(shape)}, got {given}")
    count = 1 if bool(members.all()) else 2
    return Atoms((~members).long(), ({},) * count, (count,))


def _mixed(
    model: FusionModel,
    encodings: Mapping[str, Tensor],
    target: Tensor | Unit,
    leaves: Mapping[str, Tensor],
    outer: tuple[str, Atoms, int],
    inner: tuple[str, Atoms, int],
    space: Space,
) -> Tensor:
    """Mixed derivatives (n, A_outer, A_inner); a backward pass for each of the outer atoms."""
    # Clones: a first layer may work in place, which a leaf does not allow.
    own = {name: model.encoders[name](x.clone()) if space == "inputs" else x for name, x in leaves.items()}
    score = target_scores(model, {name: own.get(name, e) for name, e in encodings.items()}, target).sum()
    slope = _gradient(score, leaves[outer[0]], create_graph=True)
    label = outer[1].label.to(slope.device)
    rows = []
    for atom in range(outer[2]):
        curvature = _gradient(slope[:, label == atom].sum(), leaves[inner[0]])
        rows.append(inner[1].sum(curvature)[:, : inner[2]])
    return torch.stack(rows, dim=1)


def _gradient(output: Tensor, leaf: Tensor, *, create_graph: bool = False) -> Tensor:
    """Gradient of a sum, zeros where the output does not depend on the leaf."""
    if not output.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(
        output, leaf, create_graph=create_graph, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradient


def _refuse(
    model: FusionModel, inputs: Mapping[str, Tensor], names: Iterable[str], space: Space, *, cudnn: bool
) -> None:
    """Raises UserError, naming it, for an input or a layer that has no second derivative."""
    used = ["head"]
    for name in names:
        used += [f"encoders.{name}"] * (space == "inputs")
        if not inputs[name].is_floating_point():
            raise UserError(f"second_order: {name!r} must be floating-point, got {inputs[name].dtype}; use ablation")
    for path, module in model.named_modules():
        if not any(f"{path}.".startswith(f"{part}.") for part in used):
            continue
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise UserError(f"second_order: {path} is compiled and so has no second derivative; use ablation")
        if cudnn and isinstance(module, nn.RNNBase):
            raise UserError(
                f"second_order: {path} ({type(module).__name__}) has no second derivative with cuDNN; "
                "use ablation, or run on the CPU"
            )


def _why_zero(
    model: FusionModel, encodings: Mapping[str, Tensor], target: Tensor | Unit, names: tuple[str, str]
) -> str:
    """What an all-zero map means, by 4-point ablations of the two modalities' whole encodings."""
    one, two = names
    largest, scale = 0.0, 0.0

    def score(replaced: Mapping[str, Tensor]) -> Tensor:
        return target_scores(model, {**encodings, **replaced}, target)

    for change in (torch.zeros_like, torch.neg, lambda e: e.roll(1, 0)):
        a, b = change(encodings[one]), change(encodings[two])
        corners = torch.stack([score({}), score({one: a}), score({two: b}), score({one: a, two: b})])
        largest = max(largest, float((corners[0] - corners[1] - corners[2] + corners[3]).abs().max()))
        scale = max(scale, float(corners.abs().max()))
    if largest <= 1e-5 * scale:
        return f"{one!r} and {two!r} do not interact: the score is additive in them"
    return (
        f"the second derivative is zero although {one!r} and {two!r} interact (4-point ablation of their encodings: "
        f"up to {largest:.3g}), as in networks of ReLUs, which are piecewise linear; use ablation"
    )
