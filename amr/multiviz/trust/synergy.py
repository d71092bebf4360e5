"""Synergistic faithfulness: whether the atoms that maps of two modalities pick work together in the score."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.datamodules.atoms import Atoms
from amr.evaluation.bootstrap import Bootstrap, Interval
from amr.evaluation.head import Baseline, baseline_values, head_rows
from amr.model import encode_alone, rows_at_once
from amr.model.protocol import Explained
from amr.multiviz.base import Target, at_least, fixed_target
from amr.multiviz.crossmodal.joint import encode, perturbed, scorer
from amr.multiviz.trust.explain import finite_values, ordered, require
from amr.multiviz.unimodal.importance import Importance
from amr.utils.errors import UserError

Maps = Mapping[str, Importance]
"""A method's map of each modality, of the same clips."""
Pair = tuple[str, str]
"""Two modalities, in the model's order."""


@dataclass(frozen=True, eq=False)
class Synergy:
    """Synergy of the first atoms of two modalities, in the order of importance and in random orders.

    Args:
        fraction: Part of each modality's atoms that is kept, (P,), ascending from 0 to 1.
        curve: Synergy of the most important atoms, (N, P), in the unit of the score.
        random: Synergy of random atoms of the same numbers, R draws of each clip, (R, N, P).
    """

    fraction: Tensor
    curve: Tensor
    random: Tensor

    @property
    def area(self) -> Tensor:
        """Area under each clip's curve by the trapezoid rule, (N,): a mean synergy over the numbers of atoms."""
        return torch.trapezoid(self.curve, self.fraction)

    @property
    def random_area(self) -> Tensor:
        """Areas of the random atoms, (R, N)."""
        return torch.trapezoid(self.random, self.fraction)

    @property
    def gain(self) -> Tensor:
        """Area less the mean area of the clip's random atoms, (N,). Below 0: the map's atoms say the same thing."""
        return self.area - self.random_area.mean(0)

    @property
    def whole(self) -> Tensor:
        """Synergy of the two whole modalities, (N,), where every curve ends."""
        return self.curve[:, -1]

    def interval(self, *, resamples: int = 1000, seed: int = 0) -> Interval:
        """Mean gain with its 95 % bootstrap interval over clips; without width for one clip."""
        return Bootstrap(len(self.curve), resamples=resamples, seed=seed).mean(self.gain.cpu())


def synergy(
    model: Explained,
    inputs: Mapping[str, Tensor],
    target: Target,
    maps: Maps,
    baseline: Baseline = "zeros",
    *,
    orders: int = 8,
    steps: int = 16,
    seed: int = 0,
    batch: int = 4096,
    encoder_batch: int = 64,
) -> dict[Pair, Synergy]:
    """Synergistic faithfulness of a method's maps (Ky et al. 2026), against random atoms of the same numbers.

    For the k most important atoms S_a and S_v of two modalities, with all other atoms, also those of a third modality,
    at the baseline:

        v(S_a + S_v) − v(S_a) − v(S_v) + v(∅)

    Insertion and deletion change one modality while the other is whole. Where the two say the same thing, nothing
    changes, whatever the map; and where the two count only together, the map of one is judged with the other's help.
    This is 0 for an additive score, positive where the atoms count only together, negative where one stands in for
    the other. k runs over equal parts of each modality's atoms. Atoms of equal importance come in random order.

    With P = min(steps, atoms) + 1 points and S = (1 + R)(P − 1) sets of atoms, a clip costs at most 2 + S rows of
    each encoder, which gets equal sets once, and 1 + (M + pairs) S of the head; with target "predicted" one more. M
    counts the maps' modalities.

    Args:
        model: The model.
        inputs: Input of each modality, (N, ...).
        target: Class or unit that was explained; "predicted" is the class of the unperturbed clip.
        maps: Map of atoms (N, A) of each of at least two modalities. Its sign counts, as in `insertion`.
        baseline: Replacement of an atom that is not kept.
        orders: Random draws of each clip, R, at least 1.
        steps: Steps from no atoms to all, at least 1; the smallest number of atoms at most.
        seed: Seed of the random draws.
        batch: Head rows at a time.
        encoder_batch: Encoder rows at a time.

    Returns:
        Curves of each pair of the maps' modalities.

    Raises:
        UserError: A map is not one of atoms of these clips or not finite, or a modality, the target, the baseline or
            an option is not allowed.
    """
    options = {"orders": orders, "steps": steps, "seed": seed, "batch": batch, "encoder_batch": encoder_batch}
    return synergies(model, inputs, target, [maps], baseline, **options)[0]


def synergies(
    model: Explained,
    inputs: Mapping[str, Tensor],
    target: Target,
    maps: Sequence[Maps],
    baseline: Baseline = "zeros",
    *,
    orders: int = 8,
    steps: int = 16,
    seed: int = 0,
    batch: int = 4096,
    encoder_batch: int = 64,
) -> list[dict[Pair, Synergy]]:
    """`synergy` of several methods' maps of the same atoms, which share the random sets: S = (methods + R)(P − 1)."""
    at_least("synergy", orders=(orders, 1), steps=(steps, 1), batch=(batch, 1))
    with undisturbed(model), torch.no_grad():
        encodings = encode(model, inputs, "inputs", encoder_batch)
        atoms = _atoms_of(model, inputs, maps)
        fixed = fixed_target(model, encodings, target)
        replacement = baseline_values({name: inputs[name] for name in model.modalities}, baseline)
        count, points = len(encodings[model.modalities[0]]), min(steps, *map(len, atoms.values()))
        ranks = _ranks(maps, atoms, count, orders, seed)
        curves = []
        for clip in range(count):
            pools = {}
            for name in model.modalities:  # nothing kept, then the sets of atoms
                x, base = inputs[name][clip], replacement[name][clip]
                pools[name] = encode_alone(model, name, base[None])
                if name in atoms:
                    numbers = torch.arange(1, points + 1) * len(atoms[name]) // points
                    keep = (ranks[name][:, clip, None] < numbers[:, None]).flatten(0, 1)
                    sets = perturbed(model, name, x, atoms[name].of(clip), keep, base, "inputs", encoder_batch)
                    pools[name] = torch.cat([pools[name], sets])
            curves.append(_synergies_of_clip(scorer(model, fixed, clip), pools, [*atoms], rows_at_once(model, batch)))
    found = torch.stack(curves, dim=1)
    found = found.reshape(*found.shape[:2], len(maps) + orders, points)  # (pairs, N, O, P - 1)
    found = torch.nn.functional.pad(found, (1, 0)).movedim(2, 1)  # without atoms there is no synergy
    fraction = torch.arange(points + 1, dtype=torch.float64, device=found.device) / points
    return [
        {pair: Synergy(fraction, one[m], one[len(maps) :]) for pair, one in zip(_pairs(atoms), found, strict=True)}
        for m in range(len(maps))
    ]


def _synergies_of_clip(
    score: Callable[[dict[str, Tensor]], Tensor], pools: Mapping[str, Tensor], names: Sequence[str], batch: int
) -> Tensor:
    """Synergy of each pair of modalities and set of atoms, (pairs, S) float64; a pool is v(∅)'s encoding, then S."""
    sets = len(pools[names[0]]) - 1
    coalitions = [*((name,) for name in names), *_pairs(names)]
    device = pools[names[0]].device

    def picks(rows: Tensor) -> dict[str, Tensor]:
        """Row 0 is v(∅); then come the sets of each coalition."""
        which, one = (rows - 1).div(sets, rounding_mode="floor"), 1 + (rows - 1) % sets
        chosen = {}
        for name in pools:
            member = torch.tensor([*(name in some for some in coalitions), False], device=device)  # the last: row 0
            chosen[name] = torch.where(member[which], one, 0)
        return chosen

    scores = torch.cat([*head_rows(score, pools, picks, 1 + len(coalitions) * sets, batch)]).double()
    value = dict(zip(coalitions, scores[1:].reshape(-1, sets), strict=True))
    return torch.stack([value[a, b] - value[a,] - value[b,] + scores[0] for a, b in _pairs(names)])


def _pairs(names: Iterable[str]) -> list[Pair]:
    return [*combinations(names, 2)]


def _atoms_of(model: Explained, inputs: Mapping[str, Tensor], maps: Sequence[Maps]) -> dict[str, Atoms]:
    """Atoms of each modality that the maps are of, in the model's order; refuses maps that do not fit."""
    require(bool(maps), "maps: must be of one method at least")
    names = [name for name in model.modalities if name in maps[0]]
    if len(names) < 2 or any(set(one) != set(names) for one in maps):
        known = ", ".join(model.modalities)
        raise UserError(f"maps: must be of the same two or more modalities of {known}; got {[*map(list, maps)]}")
    found: dict[str, Atoms] = {}
    for name in names:
        for one in maps:
            atoms = one[name].atoms
            if atoms is None:
                raise UserError(f"maps.{name}: must be a map of atoms; pass atoms to {one[name].method}")
            first = found.setdefault(name, atoms)
            require(first.alike(atoms), f"maps.{name}: must all be of the same atoms")
            given, shape = tuple(one[name].values.shape), (len(inputs[name]), len(atoms))
            require(given == shape, f"maps.{name}: values of shape {given}, expected {shape}: clips and atoms")
            fits = atoms.shape == inputs[name].shape[1:]
            require(fits, f"maps.{name}: atoms of inputs {tuple(atoms.shape)}, got {tuple(inputs[name].shape)}")
    return found


def _ranks(maps: Sequence[Maps], atoms: Mapping[str, Atoms], count: int, orders: int, seed: int) -> dict[str, Tensor]:
    """Place of each atom in each order, (methods + R, N, A) per modality: the methods' orders, then random ones."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, some in atoms.items():
        drawn = torch.rand(orders + 1, count, len(some), generator=generator, dtype=torch.float64).argsort(2)
        best = [ordered(finite_values(one[name]).cpu(), drawn[0]) for one in maps]
        found[name] = torch.stack([*best, *drawn[1:]]).argsort(2)
    return found
