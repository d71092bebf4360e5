"""EMAP: the additive function of the modalities that is nearest to a model. What is left of a score is interaction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.evaluation.head import head_rows
from amr.model import head_of, rows_at_once
from amr.model.protocol import Explained
from amr.utils.errors import UserError

_EXACT_ROWS = 2**20
"""EMAP enumerates all N^M combinations up to here: seconds of a linear head."""


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

    For M = 2 that is N² head rows. For M > 2 all N^M combinations are run up to 2^20 rows; beyond, see `emap_estimate`.

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, ...); a clip's row is the same in all.
        pairings: See `emap_estimate`; of no effect where the projection is exact.
        seed: Of the pairings.
        batch: Head rows at a time.

    Returns:
        Projected logits, (N, C).
    """
    return emap_estimate(model, encodings, pairings=pairings, seed=seed, batch=batch).values


def emap_estimate(
    model: Explained, encodings: Mapping[str, Tensor], *, pairings: int = 8, seed: int = 0, batch: int = 4096
) -> Estimate:
    """`emap` with its standard error, which is 0 where all N^M combinations are run.

    Where N^M is more than both 2^20 and pairings · M · N², it is estimated from the latter: for every m, all N² of a
    clip's modality m with the others' encodings, these being put together by a random permutation each. One pairing's
    estimate has no bias and is exact for additive models; the error is that of the mean over the pairings.

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, ...).
        pairings: Random pairings, at least 1.
        seed: Of the pairings.
        batch: Head rows at a time.

    Returns:
        Projected logits, (N, C).

    Raises:
        UserError: `pairings` or `batch` is below 1.
    """
    with undisturbed(model), torch.no_grad():
        return projection(head_of(model), encodings, pairings, seed, rows_at_once(model, batch))


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
        seed: Of the pairings.
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


def projection(
    function: Callable[[dict[str, Tensor]], Tensor],
    encodings: Mapping[str, Tensor],
    pairings: int,
    seed: int,
    batch: int,
) -> Estimate:
    """Additive projection of a function of the encodings, (N, K)."""
    if pairings < 1:
        raise UserError(f"pairings={pairings}: must be at least 1")
    names, like = list(encodings), next(iter(encodings.values()))
    count, modalities = len(like), len(names)
    if count**modalities <= max(_EXACT_ROWS, pairings * modalities * count**2):

        def every(rows: Tensor) -> dict[str, Tensor]:
            return {name: rows // count ** (modalities - 1 - m) % count for m, name in enumerate(names)}

        means = _conditional_means(function, encodings, every, count**modalities, names, batch)
        values = means.sum(0) - (modalities - 1) * means.mean((0, 1))
        return over_repeats(values[None], like, exact=True)
    generator, estimates = torch.Generator().manual_seed(seed), []
    for _ in range(pairings):
        deviations, averages = [], []
        for given in names:
            shuffled = {m: torch.randperm(count, generator=generator).to(like.device) for m in names if m != given}

            def paired(rows: Tensor, given: str = given, shuffled: dict[str, Tensor] = shuffled) -> dict[str, Tensor]:
                return {given: rows // count, **{m: p[rows % count] for m, p in shuffled.items()}}

            (mean,) = _conditional_means(function, encodings, paired, count**2, [given], batch)
            deviations.append(mean - mean.mean(0))
            averages.append(mean.mean(0))
        estimates.append(torch.stack(deviations).sum(0) + torch.stack(averages).mean(0))
    return over_repeats(torch.stack(estimates), like)


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
