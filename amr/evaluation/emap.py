"""EMAP: the additive function of the modalities that is nearest to a model. What is left of a score is interaction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.evaluation.head import head_rows
from amr.fusion.base import Fusion
from amr.model import head_of, rows_at_once
from amr.model.protocol import Explained
from amr.utils.errors import UserError

_EXACT_ROWS = 2**20
"""EMAP enumerates all N^M combinations up to here: seconds of a linear head."""

_OTHERS = 32
"""Combinations of the other modalities' encodings in one pairing."""

_CHECKED = 16
"""Clips on which a declared form is checked."""

Form = Literal["additive", "multiaffine"]
"""Declared form of a function of the encodings; see `amr.fusion.Fusion`."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """Values and their standard error, of the same shape: 0 where they are exact, None of one repeat."""

    values: Tensor
    error: Tensor | None


def emap(
    model: Explained, encodings: Mapping[str, Tensor], *, pairings: int = 8, seed: int = 0, batch: int = 4096
) -> Tensor:
    """Empirical multimodally-additive projection of the logits (Hessel & Lee 2020, section 3).

    The additive function Σ_m f_m(x^m) that is nearest to the model, in mean square over all combinations of the clips'
    modalities. With E the mean over all clips of each modality, drawn independently,

        f̂(x_i) = Σ_m E[f | e^m = e^m_i] − (M − 1) E[f].

    Where the head allows it this is a closed form, in about M · N head rows (`closed_form`). Otherwise it is N²
    head rows for M = 2. For M > 2 all N^M combinations are run up to 2^20 rows; beyond, see `emap_estimate`.

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, ...); a clip's row is the same in all.
        pairings: See `emap_estimate`; of no effect where the projection is exact.
        seed: Seed of the pairings.
        batch: Head rows at a time.

    Returns:
        Projected logits, (N, C).
    """
    return emap_estimate(model, encodings, pairings=pairings, seed=seed, batch=batch).values


def emap_estimate(
    model: Explained, encodings: Mapping[str, Tensor], *, pairings: int = 8, seed: int = 0, batch: int = 4096
) -> Estimate:
    """`emap` with its standard error, which is 0 where it is exact: in closed form, for M = 2, or up to 2^20 rows.

    Elsewhere it is estimated. One pairing takes, for every modality m, each clip's encoding of m with the same
    min(N, 32) combinations of the others' encodings, and for E[f] N combinations of all, put together by random
    permutations: (M · min(N, 32) + 1) · N head rows. Its estimate has no bias and is exact for additive models. The
    standard error is that of the mean over the pairings, and falls with the square root of their number.

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, ...).
        pairings: Random pairings, at least 1.
        seed: Seed of the pairings.
        batch: Head rows at a time.

    Returns:
        Projected logits, (N, C), and their standard errors; None of a single pairing.

    Raises:
        UserError: `pairings` or `batch` is below 1.
    """
    with undisturbed(model), torch.no_grad():
        function, rows = head_of(model), rows_at_once(model, batch)
        return projection(function, encodings, pairings, seed, rows, closed_form(model))


def emap_gap(
    model: Explained,
    encodings: Mapping[str, Tensor],
    labels: Tensor,
    *,
    pairings: int = 8,
    seed: int = 0,
    batch: int = 4096,
) -> float:
    """Accuracy of the model minus that of its projection: what interactions are worth (Hessel & Lee 2020, section 5).

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, ...).
        labels: Class of each clip, (N,).
        pairings: See `emap_estimate`.
        seed: Seed of the pairings.
        batch: Head rows at a time.

    Returns:
        Difference in [-1, 1].
    """
    projected = emap(model, encodings, pairings=pairings, seed=seed, batch=batch)
    with undisturbed(model), torch.no_grad():
        logits = clip_rows(head_of(model), encodings, rows_at_once(model, batch))
    labels = labels.to(logits.device)
    return float((logits.argmax(1) == labels).double().mean() - (projected.argmax(1) == labels).double().mean())


def clip_rows(function: Callable[[dict[str, Tensor]], Tensor], encodings: Mapping[str, Tensor], batch: int) -> Tensor:
    """The function's outputs for the clips as they are, (N, K)."""
    count = len(next(iter(encodings.values())))
    return torch.cat([*head_rows(function, encodings, lambda rows: dict.fromkeys(encodings, rows), count, batch)])


def closed_form(model: Explained) -> Form | None:
    """Form that the model's head declares for its logits and penultimate features: additive, multiaffine or None."""
    head = head_of(model)
    if not isinstance(head, Fusion):
        return None
    return "additive" if head.additive else "multiaffine" if head.multiaffine else None


def projection(
    function: Callable[[dict[str, Tensor]], Tensor],
    encodings: Mapping[str, Tensor],
    pairings: int,
    seed: int,
    batch: int,
    form: Form | None = None,
) -> Estimate:
    """Additive projection of a function of the encodings, (N, K).

    Args:
        function: Maps encodings (R, ...) to (R, K).
        encodings: Encoding of each modality, (N, ...).
        pairings: See `emap_estimate`.
        seed: Seed of the pairings.
        batch: Rows at a time.
        form: Declared form of the function. It is checked on combinations of the clips: a subclass or another
            layer in a head's place may have changed it, and then the projection is found without it.
    """
    if pairings < 1:
        raise UserError(f"pairings={pairings}: must be at least 1")
    exact = None if form is None else _in_closed_form(function, encodings, form, batch)
    if exact is not None:
        return over_repeats(exact[None], next(iter(encodings.values())), exact=True)
    names, like = list(encodings), next(iter(encodings.values()))
    count, modalities = len(like), len(names)
    others = min(count, _OTHERS)
    estimated = pairings * (modalities * others + 1) * count
    if modalities <= 2 or count**modalities <= max(_EXACT_ROWS, estimated):

        def every(rows: Tensor) -> dict[str, Tensor]:
            return {name: rows // count ** (modalities - 1 - m) % count for m, name in enumerate(names)}

        means = _conditional_means(function, encodings, every, count**modalities, names, batch)
        values = means.sum(0) - (modalities - 1) * means.mean((0, 1))
        return over_repeats(values[None], like, exact=True)
    generator, estimates = torch.Generator().manual_seed(seed), []
    for _ in range(pairings):
        shuffled = _shuffled(names, count, generator, like.device)
        estimate = clip_rows(function, {m: encodings[m][p] for m, p in shuffled.items()}, batch).double().mean(0)
        for given in names:
            shuffled = _shuffled([m for m in names if m != given], count, generator, like.device)

            def paired(rows: Tensor, given: str = given, shuffled: dict[str, Tensor] = shuffled) -> dict[str, Tensor]:
                return {given: rows // others, **{m: p[rows % others] for m, p in shuffled.items()}}

            (mean,) = _conditional_means(function, encodings, paired, count * others, [given], batch)
            estimate = estimate + mean - mean.mean(0)
        estimates.append(estimate)
    return over_repeats(torch.stack(estimates), like)


def _shuffled(names: list[str], count: int, generator: torch.Generator, device: torch.device) -> dict[str, Tensor]:
    """A random permutation of the clips for each name, (N,)."""
    return {name: torch.randperm(count, generator=generator).to(device) for name in names}


def _in_closed_form(
    function: Callable[[dict[str, Tensor]], Tensor], encodings: Mapping[str, Tensor], form: Form, batch: int
) -> Tensor | None:
    """The projection, float64 (N, K), of an additive or a multi-affine function; None if the clips show it is neither.

    Additive: the function itself. Multi-affine: E[f | e^m = e^m_i] = f(e^m_i, the others' means), and E[f] = f(means).
    """

    def at(rows: Mapping[str, Tensor]) -> Tensor:
        return clip_rows(function, rows, batch).double()

    if form == "additive":
        values = at(encodings)
    else:
        means = {name: x.mean(0, keepdim=True).expand_as(x) for name, x in encodings.items()}
        given = torch.stack([at({**means, name: x}) for name, x in encodings.items()])
        values = given.sum(0) - (len(encodings) - 1) * given.mean((0, 1))
    return values if _holds(at, encodings, form) else None


def _holds(at: Callable[[Mapping[str, Tensor]], Tensor], encodings: Mapping[str, Tensor], form: Form) -> bool:
    """Whether a function has its declared form at a few combinations of the clips' encodings.

    Additive: exchanging one modality between two rows leaves their sum as it is. Multi-affine: halfway between two
    encodings of one modality lies half the sum. To a thousandth of the outputs' range, beside rounding.
    """
    some = {name: x[:_CHECKED] for name, x in encodings.items()}
    others = {name: x.roll(m + 1, 0)[:_CHECKED] for m, (name, x) in enumerate(encodings.items())}
    seen, gaps = [at(some), at(others)], []
    for name in encodings:
        first, second = at({**others, name: some[name]}), at({**some, name: others[name]})
        if form == "additive":
            gaps.append(first + second - seen[0] - seen[1])
        else:
            gaps.append(at({**others, name: (some[name] + others[name]) / 2}) - (first + seen[1]) / 2)
        seen += [first, second]
    outputs = torch.cat(seen)
    allowed = 1e-3 * (outputs.amax(0) - outputs.amin(0)) + 1e-5 * outputs.abs().amax()
    return bool((torch.cat(gaps).abs() <= allowed).all())


def _conditional_means(
    function: Callable[[dict[str, Tensor]], Tensor],
    encodings: Mapping[str, Tensor],
    picks: Callable[[Tensor], Mapping[str, Tensor]],
    count: int,
    given: list[str],
    batch: int,
) -> Tensor:
    """Mean output over the rows in which modality m is clip i, for all i and each m given: float64 (len(given), N, K).

    Outputs are added up as they come, so no more than `batch` rows are ever in memory.
    """
    clips, start, sums = len(next(iter(encodings.values()))), 0, None
    for output in head_rows(function, encodings, picks, count, batch):
        if sums is None:
            sums = output.new_zeros(len(given), clips, output.shape[1], dtype=torch.float64)
        chosen = picks(torch.arange(start, start + len(output), device=output.device))
        for total, name in zip(sums, given, strict=True):
            total.index_add_(0, chosen[name], output.double())
        start += len(output)
    assert sums is not None
    return sums * clips / count


def over_repeats(values: Tensor, like: Tensor, *, exact: bool = False) -> Estimate:
    """Mean over repeats (R, ...) and its standard error, in the dtype and on the device of `like`."""
    mean = values.mean(0).to(like)
    if exact:
        return Estimate(mean, torch.zeros_like(mean))
    return Estimate(mean, (values.std(0) / len(values) ** 0.5).to(like) if len(values) > 1 else None)
