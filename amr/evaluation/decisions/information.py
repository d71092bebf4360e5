"""Unique, redundant and synergistic information of two modalities about the label, and about the model's prediction.

The decomposition is that of Bertschinger et al. 2014 ("BROJA"), solved exactly for discrete variables by the
alternating minimisation of Banerjee, Rauh, Montúfar 2018. docs/robustness.md says how encodings become discrete, and
when not to trust the result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.evaluation import use
from amr.evaluation.bootstrap import Bootstrap, Interval
from amr.evaluation.table import Row
from amr.fusion.base import pool_tokens
from amr.model.encoded import Encoded, logits_of
from amr.model.protocol import Explained
from amr.utils.errors import UserError

Variables = Literal["classes", "clusters"]
TERMS = ("unique", "unique", "redundant", "synergistic", "total")
CLIPS_PER_CELL = 5  # of a table of two variables and the target
MOST_STATES = 6
DEALS = 4
RESAMPLES = 200
_TINY = 1e-300


@dataclass(frozen=True)
class Information:
    """A decomposition in bits, each term with its 95 % interval over clips.

    Attributes:
        unique: Information about the target that only the first, and only the second variable has.
        redundant: Information that both variables have.
        synergistic: Information that only both together have.
        total: Mutual information of both with the target.
        entropy: Entropy of the target, or of the group of classes that it is in; an upper bound of `total`.
        groups: How many groups the target's classes were assigned to; the number of classes if each is its own.
    """

    unique: tuple[Interval, Interval]
    redundant: Interval
    synergistic: Interval
    total: Interval
    entropy: float
    groups: int


def decompose(tables: Tensor, *, tolerance: float = 1e-9, most: int = 20_000) -> Tensor:
    r"""Exact partial information decomposition of discrete distributions.

    With Δ the distributions q that share p(x₁, y) and p(x₂, y) with p (Bertschinger et al. 2014, definition 1),

        J = min_{q ∈ Δ} I_q(Y; X₁X₂),   U₁ = J − I(Y; X₂),   U₂ = J − I(Y; X₁),
        R = I(Y; X₁) + I(Y; X₂) − J,    S = I(Y; X₁X₂) − J.

    J = min_{q ∈ Δ} min_r Σ_y p(y) KL(q(·|y) ‖ r) over any distribution r(x₁, x₂). For a given r the best q is
    r(x₁, x₂) α_y(x₁) β_y(x₂), scaled to the margins; for a given q the best r is its mean over y. Both are done in turn
    (Banerjee, Rauh, Montúfar 2018), and only r, α and β are kept: a step is three products of matrices.

    Args:
        tables: Non-negative weights of (x₁, x₂, y), (T, A, B, C), each with a positive sum.
        tolerance: Stops when no J fell by more bits than this in ten steps.
        most: Steps at most. The minimum is approached from above.

    Returns:
        U₁, U₂, R, S and their sum I(Y; X₁X₂) in bits, (T, 5) float64.
    """
    joint = tables.double() / tables.double().sum((1, 2, 3), keepdim=True)
    first, second = joint.sum(2), joint.sum(1)  # (T, A, C), (T, B, C)
    target = first.sum(1, keepdim=True)  # (T, 1, C)
    given_first, given_second = first / target.clamp_min(_TINY), second / target.clamp_min(_TINY)
    r = given_first * target @ given_second.mT
    beta = torch.ones_like(given_second)
    union = torch.full_like(r[:, 0, 0], torch.inf)
    for step in range(most):
        alpha = given_first / (r @ beta).clamp_min(_TINY)
        beta = given_second / (r.mT @ alpha).clamp_min(_TINY)
        r = r * (alpha * target @ beta.mT)
        if step % 10 == 9:
            before, union = union, _xlogy(first, alpha).sum((1, 2)) + _xlogy(second, beta).sum((1, 2))
            if bool((before - union <= tolerance).all()):
                break
    alone = [_mutual(first), _mutual(second)]
    both = _mutual(joint.flatten(1, 2))
    union = torch.minimum(union, both)
    union = torch.maximum(union, torch.maximum(*alone))  # as it must be, but for rounding
    terms = [union - alone[1], union - alone[0], alone[0] + alone[1] - union, both - union, both]
    return torch.stack(terms, dim=1)


def information(
    first: Tensor,
    second: Tensor,
    target: Tensor,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    classes: Sequence[bool] = (True, True),
) -> Information | None:
    """Decomposes what two discrete variables of clips know of a third.

    A table with as many cells as clips shows information where there is none. So the target's classes are dealt at
    random into so few groups that a cell has 5 clips on average, and the terms are means over 4 deals; what they are
    about is the group. The bias that is left is measured by resampling and taken off (Efron 1979): 2 T − mean T*, with
    the basic interval, from 2 T − T*'s upper to 2 T − T*'s lower end. Both are cut at 0, below which no term can be.

    Args:
        first: State of the first variable, (N,) int64 from 0.
        second: State of the second.
        target: Class, (N,) int64 from 0.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of deals and resamples.
        classes: Whether the first, and the second, variable's states are classes, which are dealt like the target's.

    Returns:
        The terms; None where even 2 × 2 × 2 cells are too many for the clips, or the target never changes.

    Raises:
        UserError: A variable has more states than its cells have clips for.
    """
    count, first, second, target = len(target), first.cpu(), second.cpu(), target.cpu()
    if count < CLIPS_PER_CELL * 2**3 or len(set(target.tolist())) < 2:
        return None
    named = [x for x, dealt in zip((first, second), classes, strict=True) if dealt] + [target]
    labels, places = np.unique(torch.cat(named).numpy(), return_inverse=True)
    codes = torch.from_numpy(places).long()
    parts = list(codes.view(len(named), count))
    target = parts.pop()
    first, second = (parts.pop(0) if deal else x for x, deal in zip((first, second), classes, strict=True))
    others = [int(x.max()) + 1 for x, deal in zip((first, second), classes, strict=True) if not deal]
    groups = min(most_groups(count, others), len(labels))
    if groups < 2:
        raise UserError(f"variables of {others} states: must have fewer for {count} clips, 5 of them a cell")
    generator = torch.Generator().manual_seed(seed)
    deals = [torch.arange(len(labels))]
    if groups < len(labels):
        deals = [torch.randperm(len(labels), generator=generator) % groups for _ in range(DEALS)]
    cells: list[Tensor] = []
    shape: tuple[int, ...] = ()
    for deal in deals:
        x, z = (deal[v] if dealt else v for v, dealt in zip((first, second), classes, strict=True))
        sizes = [groups if dealt else int(v.max()) + 1 for v, dealt in zip((first, second), classes, strict=True)]
        shape = (*sizes, groups)
        cells.append(torch.nn.functional.one_hot((x * sizes[1] + z) * groups + deal[target], int(np.prod(shape))))
    bootstrap = Bootstrap(count, resamples=resamples, seed=seed)
    values, draws = bootstrap.draws(partial(_terms, [cell.double() for cell in cells], shape))
    tail = (1 - bootstrap.level) / 2
    best, low, high = 2 * values - draws.mean(0), *(2 * values - draws.quantile(q, dim=0) for q in (1 - tail, tail))
    terms = [Interval(*(max(0.0, float(x[i])) for x in (best, low, high))) for i in range(len(TERMS))]
    entropy = torch.stack([_entropy(torch.bincount(deal[target]).double() / count) for deal in deals]).mean()
    return Information((terms[0], terms[1]), terms[2], terms[3], terms[4], float(entropy), groups)


def most_groups(clips: int, others: Sequence[int] = ()) -> int:
    """Most groups of the target's classes that clips fill a table of, 5 per cell.

    Args:
        clips: N.
        others: Numbers of states of those of the two variables that are not dealt into the same groups.
    """
    room = clips / CLIPS_PER_CELL / float(np.prod([1, *others]))
    power = 3 - len(others)
    return max((g for g in range(1, MOST_STATES + 1) if g**power <= room), default=1)


def cluster_states(clips: int, classes: int) -> int:
    """Number of clusters of each modality for which N clips fill a table with a target of so many classes."""
    groups = min(classes, most_groups(clips))
    return min(MOST_STATES, int((clips / CLIPS_PER_CELL / groups) ** 0.5))


def clusters(train: Tensor, clips: Tensor, states: int, *, seed: int = 0) -> Tensor:
    """Cluster of each clip's encodings by k-means, (N,) int64.

    Args:
        train: Encodings (N', D) or (N', T, D), of which the centres are; standardised, token sequences averaged.
        clips: Encodings of the clips, (N, D) or (N, T, D).
        states: Number of clusters; fewer if the training clips have fewer distinct encodings.
        seed: Seed of the first centres.
    """
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import StandardScaler

    features, others = (pool_tokens(part).double().cpu().numpy() for part in (train, clips))
    scaler = StandardScaler().fit(features)
    features, others = scaler.transform(features), scaler.transform(others)
    states = min(states, len(np.unique(features, axis=0)))
    found = KMeans(states, n_init=4, random_state=seed).fit(features).predict(others)
    return torch.from_numpy(found).long()


def unique_information(
    clean: Encoded, train: Encoded, *, variables: Variables = "classes", seed: int = 0
) -> dict[str, float]:
    """Unique information of each modality about the label, in bits, bias taken off.

    Args:
        clean: The clips; 40 at least.
        train: Training clips that probes, or clusters, are fitted to.
        variables: Form of an encoding: `classes`, the class that a linear probe of it predicts, or `clusters`.
        seed: Seed of clusters, deals and resamples.

    Raises:
        UserError: There are too few clips, one class or one modality only, or no such variables.
    """
    if len(clean.encodings) < 2 or len(set(train.labels.tolist())) < 2:
        raise UserError("unique information: needs two modalities, and training clips of two classes")
    bits = {}
    for name, found in _each(clean, train, clean.labels, variables, {}, RESAMPLES, seed).items():
        if found is None:
            raise UserError(f"{len(clean.ids)} clips: must be at least 40, of two classes, for unique information")
        bits[name] = found.unique[0].value
    return bits


def unique_ratio(unique: Mapping[str, float], *, least: float = 0.1) -> dict[str, float]:
    """A target ratio for AMR: each modality's part of the unique information, but none below a floor.

    Args:
        unique: Bits of each modality, of `unique_information`.
        least: Lowest part of a modality, in (0, 1/M].

    Returns:
        Parts that add up to 1, in the order of `unique`; equal ones where no modality has unique information.

    Raises:
        UserError: `least` is out of its range.
    """
    if not 0 < least <= 1 / len(unique):
        raise UserError(f"least={least}: must be above 0 and at most {1 / len(unique):.3g}, one over the modalities")
    total = sum(unique.values())
    free = 1 - least * len(unique)
    return {m: least + free * (bits / total if total > 0 else 1 / len(unique)) for m, bits in unique.items()}


def information_rows(
    model: Explained,
    clean: Encoded,
    train: Encoded,
    answers: Mapping[str, Tensor],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Row]:
    """Rows of the decomposition of the label and of the model's prediction, by probes' classes and by clusters.

    Args:
        model: The model.
        clean: The clips.
        train: Training clips.
        answers: Class that each modality's linear probe predicts, (N,).
        resamples: Number of resamples of the bootstrap; at most 200 are used.
        seed: Seed of clusters, deals and resamples.

    Returns:
        None for fewer than 40 clips, and none of a target that never changes.
    """
    with undisturbed(model), torch.no_grad():
        predicted = logits_of(model, clean.encodings).argmax(1)
    rows = []
    for variables in get_args(Variables):
        for about, target in (("label", clean.labels), ("prediction", predicted)):
            measure = f"pid_{about}" if variables == "classes" else f"pid_{variables}_{about}"
            every = _each(clean, train, target, variables, answers, min(resamples, RESAMPLES), seed)
            pair = len(every) == 2
            for place, (name, found) in enumerate(every.items()):
                if found is None:
                    continue
                terms = [("unique", name, found.unique[0])]
                if place == 0 or not pair:
                    whole = "+".join(every) if pair else name
                    terms += [(term, whole, getattr(found, term)) for term in TERMS[2:]]
                    terms += [("entropy", whole, Interval(*[found.entropy] * 3))]
                for term, modality, bits in terms:
                    values = (bits.value, bits.low, bits.high)
                    rows.append(Row(f"{measure}_{term}", modality, "", None, *values, len(clean.ids)))
    return rows


def _each(
    clean: Encoded,
    train: Encoded,
    target: Tensor,
    variables: Variables,
    answers: Mapping[str, Tensor],
    resamples: int,
    seed: int,
) -> dict[str, Information | None]:
    """Each modality's decomposition against all the others together, the modality first."""
    if variables not in get_args(Variables):
        raise UserError(f"variables={variables!r}: must be one of {', '.join(get_args(Variables))}")
    names, dealt = list(clean.encodings), variables == "classes"
    states = cluster_states(len(clean.ids), len(set(target.tolist())))

    def variable(members: Sequence[str]) -> Tensor:
        if len(members) == 1 and dealt and members[0] in answers:
            return answers[members[0]]
        old, new = (torch.cat([pool_tokens(part.encodings[m]) for m in members], 1) for part in (train, clean))
        if dealt:
            return use.probe_classes(old, train.labels, new)
        return clusters(old, new, states, seed=seed)

    if len(set(target.tolist())) < 2 or len(clean.ids) < CLIPS_PER_CELL * 2**3:
        return dict.fromkeys(names)
    options = {"resamples": resamples, "seed": seed}
    parts = {name: variable([name]) for name in names}
    if len(names) == 2:
        a, b = names
        found = information(parts[a], parts[b], target, classes=(dealt, dealt), **options)
        assert found is not None
        swapped = replace(found, unique=(found.unique[1], found.unique[0]))
        return {a: found, b: swapped}
    return {
        name: information(
            parts[name], variable([m for m in names if m != name]), target, classes=(dealt, dealt), **options
        )
        for name in names
    }


def _terms(cells: Sequence[Tensor], shape: tuple[int, ...], weights: Tensor) -> Tensor:
    """The five terms under weights (R, N), (R, 5), means over deals of the clips' cells (N, A·B·C) each."""
    tables = torch.cat([weights @ cell for cell in cells]).view(-1, *shape)
    return decompose(tables, tolerance=1e-5, most=1000).view(len(cells), len(weights), -1).mean(0)


def _xlogy(weights: Tensor, values: Tensor) -> Tensor:
    bits: Tensor = torch.special.xlogy(weights, values) / np.log(2)
    return bits


def _entropy(probabilities: Tensor) -> Tensor:
    """Bits of distributions (..., K)."""
    return -_xlogy(probabilities, probabilities).sum(-1)


def _mutual(joint: Tensor) -> Tensor:
    """Mutual information in bits of joint distributions (T, A, B), (T,)."""
    return _entropy(joint.sum(1)) + _entropy(joint.sum(2)) - _entropy(joint.flatten(1))
