"""Attribution by what the output does: how far the prediction moves when one modality is another clip's."""

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from amr.attribution.shares import Head, absolute_shares, at_least_float32, evaluating
from amr.utils.errors import listed

Gradient = Literal["head", "encoder", "all"]
LEAST_CHANGE = 1e-12
"""A clip whose changes sum to no more has no share: single precision cannot tell its predictions apart."""


def output_change(
    head: Head,
    encodings: Mapping[str, Tensor],
    picks: Tensor,
    *,
    donors: Mapping[str, Tensor] | None = None,
    gradient: Gradient | None = None,
) -> Tensor:
    r"""How far a clip's prediction moves when one modality is taken from another clip.

    With p(e) the prediction, K the number of other clips, and e^m ← e_j^m the encodings with modality m of clip j,

        D^m = mean over k of JS( p(e, e^m ← e_{j_k}^m) ‖ p(e) )   in [0, log 2],

    JS being the Jensen-Shannon divergence in nats. A head that ignores modality m has D^m = 0.

    The head sees K M + 1 rows per clip, in eval mode, with autocast off, in at least single precision; the divergence
    is computed in double precision where the device has it. Random states and running statistics stay as they are.

    Args:
        head: Maps encodings to logits of shape (B, C).
        encodings: Encoding of each modality, (B, D_m) or (B, ..., D_m).
        picks: Donor that replaces the modality in each of K re-pairings, (B, K) int64 in [0, N); -1 for none.
        donors: Encodings that replace a modality, (N, ..., D_m) by modality; None for `encodings` themselves.
        gradient: Where gradient flows. `head`: to the head, by the re-paired predictions. `encoder`: also to the
            donor's encoding of modality m in D^m. `all`: to everything, the clip's other encodings and p(e) included.
            None: no gradient, also under `torch.inference_mode`.

    Returns:
        D, (B, M), modalities in the order of `encodings`; zeros for a clip without any pick.

    Raises:
        ValueError: If `gradient` is unknown, or there is no modality.
    """
    if gradient is not None and gradient not in get_args(Gradient):
        raise ValueError(f"gradient={gradient!r}: must be one of {', '.join(get_args(Gradient))}, or None")
    if not encodings:
        raise ValueError("encodings: must have at least one modality")
    device = next(iter(encodings.values())).device
    donors = encodings if donors is None else donors
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(gradient is not None),
        torch.autocast(device.type, enabled=False),
        evaluating(head),
    ):
        clips = {name: _leaf(encoding, gradient == "all") for name, encoding in encodings.items()}
        pool = {name: _leaf(donors[name], gradient in ("encoder", "all")) for name in encodings}
        counted = (picks >= 0).to(next(iter(clips.values())).dtype)
        if len(picks) == 0 or picks.shape[1] == 0:  # a head may refuse a batch without clips
            return counted.new_zeros(len(picks), len(clips))
        with torch.set_grad_enabled(gradient == "all"):
            reference = head(dict(clips))
        rows = torch.arange(len(picks), device=device).repeat_interleave(picks.shape[1])
        changes = []
        for name in clips:
            places = {**dict.fromkeys(clips, rows), name: picks.flatten().clamp_min(0)}
            moved = recombined_logits(head, {**clips, name: pool[name]}, places)
            each = jensen_shannon(*(at_least_float32(x).to(_double(x)) for x in (moved, reference[rows])))
            total = (each.view_as(picks) * counted).sum(1) / counted.sum(1).clamp_min(1)
            changes.append(total.to(counted))
        return torch.stack(changes, dim=1)


def output_shares(
    head: Head,
    encodings: Mapping[str, Tensor],
    picks: Tensor,
    *,
    donors: Mapping[str, Tensor] | None = None,
    gradient: Gradient | None = None,
) -> Tensor:
    """Share of each modality in the changes of the output: D^m / Σ_j D^j of each clip; see `output_change`.

    Args:
        head: Maps encodings to logits of shape (B, C).
        encodings: Encoding of each modality, (B, ..., D_m).
        picks: Donor that replaces the modality in each of K re-pairings, (B, K) int64 in [0, N); -1 for none.
        donors: Encodings that replace a modality, (N, ..., D_m) by modality; None for `encodings` themselves.
        gradient: Where gradient flows: `head`, `encoder`, `all`, or None for nowhere.

    Returns:
        Shares, (B, M); a row sums to 1, or is all zeros where nothing changes the prediction.
    """
    return change_shares(output_change(head, encodings, picks, donors=donors, gradient=gradient))


def change_shares(change: Tensor) -> Tensor:
    """Shares (B, M) of the changes D, (B, M); zeros in a row whose changes sum to no more than `LEAST_CHANGE`."""
    counts = change.detach().sum(1, keepdim=True) > LEAST_CHANGE
    return absolute_shares(torch.where(counts, change, 0.0))


def jensen_shannon(logits: Tensor, others: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two predictions, (...), in [0, log 2], of their logits, (..., C)."""
    p, q = logits.log_softmax(-1), others.log_softmax(-1)
    mean = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, dtype=p.dtype, device=p.device))
    return ((p.exp() * (p - mean)).sum(-1) + (q.exp() * (q - mean)).sum(-1)) / 2


def other_clips(
    clips: Tensor,
    count: int,
    generator: torch.Generator,
    *,
    labels: Tensor | None = None,
    rows: slice = slice(None),
) -> Tensor:
    """Draws, for each clip, other clips without replacement.

    The draw is a random permutation of the clips in the order of their numbers. Each clip takes those that follow it
    in the cycle, so that without `labels` each of the K re-pairings is a permutation that leaves no clip in its place.
    It does not depend on the order in which clips come, and so not on how a batch is split into micro-batches or ranks.

    Args:
        clips: A number of each clip, (N,) int64; clips of one number are the same clip, and are never paired.
        count: K, the largest number of other clips, >= 1.
        generator: Source of the draw, on the CPU.
        labels: Class indices, (N,): only clips of another class are taken; None for any.
        rows: The B clips whose picks are wanted; all of them by default.

    Returns:
        Indices of clips, (B, min(K, N - 1)) int64; -1 where a clip has fewer others.
    """
    total = len(clips)
    order = clips.argsort(stable=True)[torch.randperm(total, generator=generator).to(clips.device)]
    place = order.argsort()[rows]
    after = torch.arange(1, max(total, 1), device=clips.device)
    others = order[(place.unsqueeze(1) + after) % max(total, 1)]  # (B, N - 1): the cycle from the clip on
    allowed = clips[rows].unsqueeze(1) != clips[others]
    if labels is not None:
        allowed &= labels[rows].unsqueeze(1) != labels[others]
    nearest = torch.where(allowed, total - after, 0).topk(min(count, others.shape[1]), dim=1).indices
    return torch.where(allowed.gather(1, nearest), others.gather(1, nearest), -1)


def recombined_logits(
    head: Head, encodings: Mapping[str, Tensor], picks: Mapping[str, Tensor | None], detach: Iterable[str] = ()
) -> Tensor:
    """Logits of re-paired, zeroed or partly detached encodings.

    Args:
        head: Maps encodings to logits.
        encodings: Encoding of each modality, (B, ..., D_m); B may differ where `picks` names the modality.
        picks: By modality, which clip's encoding takes each of N places: indices (N,) in [0, B), or -1 for zeros; None
            zeroes all N. A modality that is not named keeps its B encodings, and N must be B.
        detach: Modalities whose encodings get no gradient.

    Returns:
        Logits, (N, C); N is B if no indices are given.

    Raises:
        ValueError: If a name is not a modality, or if the numbers of places differ.
    """
    detached = set(detach)
    if unknown := (picks.keys() | detached) - encodings.keys():
        raise ValueError(f"recombined: {listed(sorted(unknown))}: must be modalities of {listed(encodings)}")
    sizes = {len(pick) for pick in picks.values() if pick is not None}
    sizes |= {len(encoding) for name, encoding in encodings.items() if name not in picks}
    if len(sizes) > 1:
        raise ValueError(f"recombined: modalities of {', '.join(map(str, sorted(sizes)))} places; they must be equal")
    changed = {}
    for name, given in encodings.items():
        encoding = given.detach() if name in detached else given
        if name in picks:
            pick = picks[name]
            if pick is None:
                encoding = encoding.new_zeros(next(iter(sizes), len(encoding)), *encoding.shape[1:])
            else:
                kept = (pick >= 0).view(-1, *[1] * (encoding.ndim - 1))
                encoding = torch.where(kept, encoding[pick.clamp_min(0)], 0.0)
        changed[name] = encoding
    return head(changed)


def _leaf(encoding: Tensor, graph: bool) -> Tensor:
    """The encoding in at least single precision; without its graph, and out of inference mode, unless asked for."""
    return at_least_float32(encoding if graph else encoding.detach().clone())


def _double(x: Tensor) -> torch.dtype:
    """Double precision if the device has it: the divergence is a small difference of large terms."""
    return x.dtype if x.device.type == "mps" else torch.float64
