"""LIME and SHAP over the atoms of two modalities with one joint mask, and what they share with DIME."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.datamodules.atoms import Atoms, flat_atoms
from amr.evaluation.emap import Estimate, over_repeats
from amr.evaluation.head import Baseline, baseline_values, head_rows
from amr.model import encode_alone, rows_at_once
from amr.model.protocol import Explained
from amr.multiviz.base import Fixed, Several, Target, fixed_targets, target_scores, targets_of
from amr.multiviz.held import encoder_rows
from amr.multiviz.unimodal.surrogate import efficient_regression, lime_kernel, shapley_kernel, weighted_ridge
from amr.utils.errors import UserError

Space = Literal["inputs", "encodings"]
"""Space that is perturbed or differentiated: inputs, or encodings, in which case no encoder runs."""

Side = str | tuple[str, Atoms]
"""A modality and its atoms; the name alone stands for every element an atom, in vectors (D,) and tokens (T, D)."""


@dataclass(frozen=True, eq=False)
class JointExplanation:
    """A surrogate of the score in the atoms of two modalities: f ≈ c + Σ a_i z_i + Σ b_j z_j + Σ p_ij z_i z_j.

    Args:
        first: a, (N, A1): the gain from keeping an atom while the other modality is all baseline.
        second: b, (N, A2).
        pairs: p, (N, A1, A2): what the two atoms bring together beyond that.
        fit: Weighted R² of the surrogate on its samples, (N,), the mean of the repeats; 1 is perfect. All in float64,
            and with a dimension more, (N, T, ...), for several targets.
    """

    first: Estimate
    second: Estimate
    pairs: Estimate
    fit: Tensor


def joint_lime(
    model: Explained,
    inputs: Mapping[str, Tensor],
    target: Target | Several,
    first: Side,
    second: Side,
    baseline: Baseline = "zeros",
    *,
    space: Space = "inputs",
    samples: int = 1000,
    repeats: int = 4,
    width: float = 0.25,
    ridge: float = 1e-6,
    seed: int = 0,
    batch: int = 4096,
    encoder_batch: int = 64,
) -> JointExplanation:
    """LIME (Ribeiro et al. 2016, eq. 1) with one mask over the atoms of two modalities and their products.

    The first mask of a repeat keeps all atoms, the others keep each with probability ½. A mask has the weight that
    `lime_kernel` gives to A1 + A2 atoms. The surrogate has the 1 + A1 + A2 + A1·A2 coefficients of `JointExplanation`.
    S·repeats rows per clip of the head and, at most, of each of the two encoders, which get equal masks once; and one
    more of each encoder.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...); their encodings with space="encodings".
        target: Explained class or unit, fixed on the clips as they are; `Several` share all rows.
        first: A modality and its atoms.
        second: Another one.
        baseline: Replacement of an atom that is not kept.
        space: Space that is perturbed.
        samples: Masks a repeat, S; at least as many as coefficients.
        repeats: Independent sets of masks; values are their mean, and their spread gives the errors.
        width: Width of the kernel; large for a surrogate that is right on average over all masks.
        ridge: Penalty on the squared coefficients but c.
        seed: Seed of the masks, which all clips share.
        batch: Head rows at a time.
        encoder_batch: Encoder rows at a time.

    Raises:
        UserError: A modality, the target or the baseline does not exist, or `samples` are too few.
    """
    one, two = sides(inputs, first, second)
    atoms, split = len(one[1]) + len(two[1]), len(one[1])
    _require_samples(samples, repeats, 1 + atoms + split * (atoms - split))
    if not (width > 0 and ridge >= 0):
        raise UserError(f"joint_lime: width={width}, ridge={ridge}: must be a positive width and a ridge of 0 or more")
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(repeats, samples, atoms, generator=generator) < 0.5
    keep[:, 0] = True
    features, weights = _with_pairs(keep, split), lime_kernel(keep, width)
    weighted_ridge(features, weights, features.new_zeros(repeats, samples, 1), ridge)  # refused before a row is run
    scores = _joint_scores(model, inputs, target, one, two, baseline, keep.flatten(0, 1), space, batch, encoder_batch)
    values = scores.reshape(repeats, samples, -1)
    coefficients = weighted_ridge(features, weights, values, ridge)
    r2 = _r2(values, features @ coefficients, weights)
    return _explanation(coefficients, r2, split, scores.shape[1:], inputs[one[0]].device)


def joint_shap(
    model: Explained,
    inputs: Mapping[str, Tensor],
    target: Target | Several,
    first: Side,
    second: Side,
    baseline: Baseline = "zeros",
    *,
    space: Space = "inputs",
    samples: int = 1000,
    repeats: int = 4,
    seed: int = 0,
    batch: int = 4096,
    encoder_batch: int = 64,
) -> JointExplanation:
    """KernelSHAP (Lundberg & Lee 2017, theorem 2) with one mask over the atoms of two modalities and their products.

    Weighted least squares with the Shapley kernel (n − 1) / (C(n, s) s (n − s)), n = A1 + A2, s atoms kept, where
    c = f(all replaced) and the other coefficients sum to f(clip) − f(all replaced). With the products among the
    regressors these are the faithful interactions of order 2 (Tsai et al. 2023), those within a modality left at zero;
    a_i + ½ Σ_j p_ij is atom i's share.

    If `samples` reaches all 2^n − 2 masks, each is taken once, and the errors are 0. Otherwise every
    repeat has the masks of one atom and of all but one, and the others are drawn by the kernel, each with its
    complement. 2 + 2n + repeats·(S − 2n) rows per clip of the head, or 2^n; of each of the two encoders at most one
    more, for they get equal masks once.

    Args and errors are those of `joint_lime`.
    """
    one, two = sides(inputs, first, second)
    atoms, split = len(one[1]) + len(two[1]), len(one[1])
    exact = 2**atoms - 2 <= max(samples, 2 * atoms)
    if not exact:
        _require_samples(samples, repeats, max(atoms + split * (atoms - split), 2 * atoms + 2))
    ends = torch.stack([torch.zeros(atoms), torch.ones(atoms)]).bool()
    if exact:
        once = (torch.arange(1, 2**atoms - 1)[:, None] >> torch.arange(atoms)) & 1 == 1
        drawn, weight = torch.empty(1, 0, atoms, dtype=torch.bool), 0.0
    else:
        once = torch.cat([torch.eye(atoms), 1 - torch.eye(atoms)]).bool()
        drawn, weight = _inner_masks(atoms, (samples - 2 * atoms) // 2, repeats, seed)
    fits = len(drawn)
    features = _with_pairs(torch.cat([once.expand(fits, -1, -1), drawn], dim=1), split)
    of_drawn = features.new_full(drawn.shape[:2], weight)
    weights = torch.cat([shapley_kernel(atoms)[once.sum(1)].expand(fits, -1), of_drawn], dim=1)
    nothing = features.new_zeros(1)
    efficient_regression(features, weights, nothing.expand(*weights.shape, 1), nothing)  # refused before a row is run
    masks = torch.cat([ends, once, drawn.flatten(0, 1)])
    scores = _joint_scores(model, inputs, target, one, two, baseline, masks, space, batch, encoder_batch)
    shape, scores = scores.shape[1:], scores.flatten(1)  # (N,) or (N, T)
    empty, whole = scores[0], scores[1]
    shared, own = scores[2 : 2 + len(once)], scores[2 + len(once) :].reshape(fits, drawn.shape[1], len(empty))
    values = torch.cat([shared.expand(fits, -1, -1), own], dim=1) - empty
    coefficients = efficient_regression(features, weights, values, whole - empty)
    r2 = _r2(values, features @ coefficients, weights)
    return _explanation(coefficients, r2, split, shape, inputs[one[0]].device, exact=exact)


def sides(inputs: Mapping[str, Tensor], *given: Side) -> list[tuple[str, Atoms]]:
    """Each side's modality and atoms.

    Raises:
        UserError: A modality does not exist or comes twice, or has no atoms and is neither vectors nor tokens.
    """
    found: list[tuple[str, Atoms]] = []
    for side in given:
        name = side if isinstance(side, str) else side[0]
        if name not in inputs or name in [known for known, _ in found]:
            raise UserError(f"modality={name!r}: must be different ones of {', '.join(map(repr, inputs))}")
        found.append((name, flat_atoms(inputs[name].shape[1:]) if isinstance(side, str) else side[1]))
    return found


def encode(model: Explained, inputs: Mapping[str, Tensor], space: Space, encoder_batch: int) -> dict[str, Tensor]:
    """Encodings of all modalities, (N, ...), `encoder_batch` rows at a time at most.

    Raises:
        UserError: A modality has no input, or `space` or `encoder_batch` is not allowed.
    """
    if space not in ("inputs", "encodings"):
        raise UserError(f"space={space!r}: must be 'inputs' or 'encodings'")
    if encoder_batch < 1:
        raise UserError(f"encoder_batch={encoder_batch}: must be at least 1")
    lacking = [name for name in model.modalities if name not in inputs]
    if lacking:
        raise UserError(f"inputs: none for the modality {lacking[0]!r}; they have {', '.join(map(repr, inputs))}")
    if len({len(inputs[name]) for name in model.modalities}) != 1:
        raise UserError(f"inputs: {[len(inputs[name]) for name in model.modalities]} clips; all must be of the same")
    if space == "encodings":
        return {name: inputs[name] for name in model.modalities}
    return {
        name: torch.cat([encode_alone(model, name, x) for x in _split(inputs[name], rows)])
        for name, rows in ((name, encoder_rows(inputs[name], encoder_batch)) for name in model.modalities)
    }


def perturbed(
    model: Explained, name: str, x: Tensor, atoms: Atoms, keep: Tensor, baseline: Tensor, space: Space, rows: int
) -> Tensor:
    """Encodings (S, ...) of one clip's input x, (*input shape), with the atoms outside keep (S, A) replaced.

    Equal masks, of which few atoms have many, are encoded once.
    """
    rows = encoder_rows(x[None], rows)
    masks, place = torch.unique(keep.to(x.device), dim=0, return_inverse=True)
    copies = (atoms.replace(x, part, baseline) for part in _split(masks, rows))
    return torch.cat([encode_alone(model, name, copy) if space == "inputs" else copy for copy in copies])[place]


def scorer(model: Explained, fixed: Fixed, clip: int) -> Callable[[dict[str, Tensor]], Tensor]:
    """Maps encodings (R, ...), all perturbed copies of one clip, to that clip's scores, (R,) or (R, T) of several."""

    def score(encodings: dict[str, Tensor]) -> Tensor:
        like = next(iter(encodings.values()))
        rows = torch.full((len(like),), clip, device=like.device)
        return target_scores(model, encodings, targets_of(fixed, rows))

    return score


def _split(x: Tensor, rows: int) -> list[Tensor]:
    return [x[start : start + rows] for start in range(0, len(x), rows)]


def _joint_scores(
    model: Explained,
    inputs: Mapping[str, Tensor],
    target: Target | Several,
    one: tuple[str, Atoms],
    two: tuple[str, Atoms],
    baseline: Baseline,
    keep: Tensor,
    space: Space,
    batch: int,
    encoder_batch: int,
) -> Tensor:
    """Scores of the clips under joint masks (S, A1 + A2): float64 (S, N), or (S, N, T) of several, on the CPU."""
    masks = {one[0]: keep[:, : len(one[1])], two[0]: keep[:, len(one[1]) :]}
    replacement, scores = baseline_values({name: inputs[name] for name in masks}, baseline), []

    def same(rows: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(model.modalities, rows)

    with undisturbed(model), torch.no_grad():
        encodings = encode(model, inputs, space, encoder_batch)
        fixed = fixed_targets(model, encodings, target)
        for clip in range(len(inputs[one[0]])):
            pools = {name: e[clip : clip + 1].expand(len(keep), *e.shape[1:]) for name, e in encodings.items()}
            for name, atoms in (one, two):
                x, base = inputs[name][clip], replacement[name][clip]
                pools[name] = perturbed(model, name, x, atoms.of(clip), masks[name], base, space, encoder_batch)
            scores.append(
                torch.cat([*head_rows(scorer(model, fixed, clip), pools, same, len(keep), rows_at_once(model, batch))])
            )
    return torch.stack(scores, dim=1).double().cpu()


def _with_pairs(keep: Tensor, split: int) -> Tensor:
    """Regressors, float64 (..., A1 + A2 + A1·A2): the masks and the products of the two modalities' atoms."""
    z = keep.double()
    pairs = z[..., :split, None] * z[..., None, split:]
    return torch.cat([z, pairs.flatten(-2)], dim=-1)


def _inner_masks(atoms: int, pairs: int, repeats: int, seed: int) -> tuple[Tensor, float]:
    """Masks of 2 to n − 2 atoms drawn by the Shapley kernel, then their complements: (R, 2 · pairs, n).

    Also the weight of one, such that all together have the kernel's weight of these sizes.
    """
    sizes = range(2, atoms - 1)
    mass = torch.stack([shapley_kernel(atoms)[s] * math.comb(atoms, s) for s in sizes])
    generator, half = torch.Generator().manual_seed(seed), []
    for _ in range(repeats):
        size = 2 + torch.multinomial(mass, pairs, replacement=True, generator=generator)
        ranks = torch.rand(pairs, atoms, generator=generator).argsort(1).argsort(1)
        half.append(ranks < size[:, None])
    masks = torch.stack(half)
    return torch.cat([masks, ~masks], dim=1), float(mass.sum()) / (2 * pairs)


def _r2(values: Tensor, fitted: Tensor, weights: Tensor) -> Tensor:
    """Weighted R², (R, N), of values and fits (R, S, N), up to a constant; 1 if constant values are fitted."""
    share = (weights / weights.sum(-1, keepdim=True))[..., None]

    def variance(x: Tensor) -> Tensor:
        return (share * (x - (share * x).sum(-2, keepdim=True)) ** 2).sum(-2)

    total = variance(values)
    return 1 - variance(values - fitted) / torch.where(total > 0, total, 1.0)


def _explanation(
    coefficients: Tensor, r2: Tensor, split: int, shape: torch.Size, device: torch.device, *, exact: bool = False
) -> JointExplanation:
    """Coefficients (R, A1 + A2 + A1·A2, scores) and R² (R, scores), put into their places; scores as in `shape`."""
    other, like = (coefficients.shape[1] - split) // (split + 1), coefficients.new_empty(0, device=device)
    ordered = coefficients.transpose(1, 2).reshape(len(r2), *shape, -1)
    first, second, pairs = ordered[..., :split], ordered[..., split : split + other], ordered[..., split + other :]
    pairs = pairs.reshape(*pairs.shape[:-1], split, other)
    one, two, both = (over_repeats(part, like, exact=exact) for part in (first, second, pairs))
    return JointExplanation(one, two, both, r2.mean(0).to(like).reshape(shape))


def _require_samples(samples: int, repeats: int, least: int) -> None:
    if repeats < 1:
        raise UserError(f"repeats={repeats}: must be at least 1")
    if samples < least:
        raise UserError(f"samples={samples}: must be {least} or more; larger atoms need fewer")
