"""The head on encodings that are recombined: other clips', a baseline's. No encoder runs."""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from amr.attribution import undisturbed
from amr.model import head_of, rows_at_once
from amr.model.protocol import Explained
from amr.utils.errors import UserError

Baseline = Literal["zeros", "mean"] | Mapping[str, Tensor]
"""Replacement of missing encodings: zeros, the mean over the given clips, or one tensor per modality."""


def baseline_values(values: Mapping[str, Tensor], baseline: Baseline) -> dict[str, Tensor]:
    """The baseline of each modality, expanded to the shape of its values.

    Args:
        values: Inputs or encodings, (N, ...), of the modalities that are replaced.
        baseline: Tensors must broadcast to the values: one clip's, or one per clip. Further keys are ignored.

    Raises:
        UserError: The name is unknown, or a modality's tensor is missing or of another shape.
    """
    if isinstance(baseline, str):
        ids = [m for m, x in values.items() if not x.is_floating_point()]
        if ids and baseline == "mean":
            raise UserError(f"baseline='mean': {ids[0]!r} holds ids, which have no mean; give {{{ids[0]!r}: an id}}")
        match baseline:
            case "zeros":
                return {m: torch.zeros_like(x) for m, x in values.items()}
            case "mean":
                return {m: x.mean(0, keepdim=True).expand_as(x) for m, x in values.items()}
        raise UserError(f"baseline={baseline!r}: must be 'zeros', 'mean', or a tensor for each modality")
    found = {}
    for name, x in values.items():
        if name not in baseline:
            raise UserError(f"baseline: none for the modality {name!r}; it has {', '.join(map(repr, baseline))}")
        try:
            found[name] = baseline[name].to(x).expand_as(x)
        except RuntimeError as error:
            shapes = f"{tuple(baseline[name].shape)} for values of {tuple(x.shape)}"
            raise UserError(f"baseline: {name!r} has the shape {shapes}") from error
    return found


def head_rows(
    function: Callable[[dict[str, Tensor]], Tensor],
    pools: Mapping[str, Tensor],
    picks: Callable[[Tensor], Mapping[str, Tensor]],
    count: int,
    batch: int,
) -> Iterator[Tensor]:
    """Runs the head on rows whose encodings are drawn from pools: `batch` of them are in memory at a time.

    Args:
        function: Maps encodings (R, ...) to (R, ...); `head_of(model)`, or a score.
        pools: Encodings of each modality to draw from, (P_m, ...).
        picks: Maps row numbers (R,) to each modality's positions in its pool, (R,).
        count: Number of rows.
        batch: Rows at a time.

    Yields:
        What `function` returned for rows 0 to batch - 1, and so on.

    Raises:
        UserError: `batch` is below 1.
    """
    if batch < 1:
        raise UserError(f"batch={batch}: must be at least 1")
    device = next(iter(pools.values())).device
    for start in range(0, count, batch):
        chosen = picks(torch.arange(start, min(start + batch, count), device=device))
        yield function({name: pool[chosen[name]] for name, pool in pools.items()})


def repaired_answers(
    model: Explained, encodings: Mapping[str, Tensor], single: Tensor, rest: Tensor, batch: int
) -> Tensor:
    """The class that the model gives when one modality is of one clip and the rest is of another: M · P head rows.

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, ...).
        single: Position of the clip that gives the one modality, (P,).
        rest: Position of the clip that gives the others, (P,).
        batch: Head rows at a time.

    Returns:
        (M, P) int64, each modality in turn being the one.
    """
    answers = []
    with undisturbed(model), torch.no_grad():
        for name in encodings:

            def picks(rows: Tensor, name: str = name) -> dict[str, Tensor]:
                return {**dict.fromkeys(encodings, rest[rows]), name: single[rows]}

            rows = head_rows(head_of(model), encodings, picks, len(single), rows_at_once(model, batch))
            answers.append(torch.cat([logits.argmax(1) for logits in rows]))
    return torch.stack(answers)


def coalition_outputs(
    model: Explained,
    encodings: Mapping[str, Tensor],
    baseline: Baseline,
    *,
    function: Callable[[dict[str, Tensor]], Tensor] | None = None,
    batch: int = 4096,
) -> Tensor:
    """The head's output for every set of modalities: 2^M · N head rows.

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, ...).
        baseline: Replacement of a modality outside the coalition.
        function: Maps encodings (R, ...) to (R, K); None: the head.
        batch: Head rows at a time.

    Returns:
        (2^M, N, K); bit m of the first index says whether modality m is kept.

    Raises:
        UserError: The baseline does not exist.
    """
    bits, clips = {name: bit for bit, name in enumerate(encodings)}, len(next(iter(encodings.values())))
    # Each modality's pool is its N encodings, then their N baselines.
    pools = {name: torch.cat([encodings[name], b]) for name, b in baseline_values(encodings, baseline).items()}

    def picks(rows: Tensor) -> dict[str, Tensor]:
        coalition, clip = rows // clips, rows % clips
        return {name: torch.where((coalition >> bit) & 1 == 1, clip, clip + clips) for name, bit in bits.items()}

    with undisturbed(model), torch.no_grad():
        rows = torch.cat(
            [*head_rows(function or head_of(model), pools, picks, clips << len(bits), rows_at_once(model, batch))]
        )
    return rows.reshape(-1, clips, rows.shape[1])
