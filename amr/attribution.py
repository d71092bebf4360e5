"""Gradient-times-input attribution at the encoder outputs: how much each modality counts in a decision.

Pure, differentiable functions; the measure and the penalty of Yerramilli et al.
2024, "Attribution Regularization for Multimodal Paradigms".
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Score = Literal["probability", "logit"]
Head = Callable[[dict[str, Tensor]], Tensor]


def attribution_shares(
    head: Head, encodings: Mapping[str, Tensor], *, score: Score = "probability", create_graph: bool = False
) -> Tensor:
    r"""Share of each modality in the gradient⊙input attribution of the predicted class.

    With `f` the head's output for its top class, the attribution of modality m is

        α^m = ‖ ∂f/∂e^m ⊙ e^m ‖₂   (over every non-batch dimension),   share^m = α^m / Σ_j α^j.

    `probability` reads f as a probability, as the paper does. Because ∂p = p(1-p) ∂log(p/(1-p)) and factors common to
    all modalities cancel in a share, it is computed from the log-odds: the same shares, and none lost to underflow when
    p reaches 1 (where the gradient of log_softmax drops its own top-class term). `logit` reads f as the logit.

    Encodings are treated as detached leaves of at least single precision, with autocast off; a head that is a module
    runs in eval mode and is put back. So nothing upstream of the encodings, no running statistic and no random state is
    touched, also under `torch.inference_mode`.

    Args:
        head: Maps encodings to logits of shape (B, C).
        encodings: Encoding of each modality, (B, D_m) or (B, ..., D_m).
        score: What f is.
        create_graph: Keep the graph, so that a function of the shares can be differentiated by the head's parameters.

    Returns:
        Shares of shape (B, M), modalities in the mapping's order; a row sums to 1, or is all zeros where the total
        attribution is zero (dead or absent encodings, a constant head).

    Raises:
        ValueError: If `score` is unknown or there is no modality.
    """
    if score not in get_args(Score):
        raise ValueError(f"score={score!r}: allowed are {', '.join(get_args(Score))}")
    if not encodings:
        raise ValueError("encodings: at least one modality is needed")
    device_type = next(iter(encodings.values())).device.type
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device_type, enabled=False),
        evaluating(head),
    ):
        leaves = {
            name: encoding.detach().clone().to(torch.promote_types(encoding.dtype, torch.float32)).requires_grad_()
            for name, encoding in encodings.items()
        }
        total = _top_class_score(head(leaves), score).sum()  # rows are independent: one backward gives every row's own
        if total.requires_grad:
            gradients = torch.autograd.grad(
                total, list(leaves.values()), create_graph=create_graph, materialize_grads=True
            )
        else:  # the head ignores its input
            gradients = tuple(torch.zeros_like(leaf) for leaf in leaves.values())
        products = [(g * leaf).flatten(1) for g, leaf in zip(gradients, leaves.values(), strict=True)]
        # Shares do not depend on a row's scale: divide it out before squaring, which would under- or overflow.
        scale = torch.stack([p.detach().abs().amax(1) for p in products]).amax(0)
        scale = torch.where(scale > 0, scale, 1.0).unsqueeze(1)
        norms = torch.stack([torch.linalg.vector_norm(p / scale, dim=1) for p in products], dim=1)
        sums = norms.sum(1, keepdim=True)
        shares = norms / torch.where(sums > 0, sums, 1.0)
    return shares if create_graph else shares.detach()


def ratio_penalty(shares: Tensor, ratio: Tensor) -> Tensor:
    """Distance of the batch's mean shares from the target ratio (Yerramilli et al. 2024, eq. 1).

    R = Σ_m | a^m / Σ_j a^j − r^m / Σ_j r^j |, with a the mean of the rows that have any attribution.

    Args:
        shares: Shares, (B, M); rows of zeros are left out of the mean.
        ratio: Target ratio, (M,), every entry positive; only the proportions count.

    Returns:
        Scalar in [0, 2); 0 if no row has any attribution.

    Raises:
        ValueError: If the ratio's shape is not (M,) or an entry is not positive and finite.
    """
    target = normalised_ratio(ratio, shares.shape[1]).to(shares)
    mean = shares.sum(0) / attributed_rows(shares).sum().clamp_min(1)
    total = mean.sum()
    return (mean / torch.where(total > 0, total, 1.0) - target).abs().sum() * (total.detach() > 0)


def attributed_rows(shares: Tensor) -> Tensor:
    """Boolean (B,): the rows of `shares` (B, M) that have any attribution."""
    return shares.detach().sum(1) > 0


def normalised_ratio(ratio: Tensor, modalities: int) -> Tensor:
    """The ratio (M,) divided by its sum; raises ValueError unless it has M positive, finite entries."""
    if ratio.shape != (modalities,):
        raise ValueError(f"ratio: shape {tuple(ratio.shape)}, expected ({modalities},), one entry a modality")
    if not bool((torch.isfinite(ratio) & (ratio > 0)).all()):
        raise ValueError(f"ratio={ratio.tolist()}: every entry must be positive and finite")
    return ratio / ratio.sum()


@contextmanager
def evaluating(head: object) -> Iterator[None]:
    """Runs a module in eval mode and restores each submodule's own mode; any other callable is left alone."""
    modes = [(module, module.training) for module in head.modules()] if isinstance(head, nn.Module) else []
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _top_class_score(logits: Tensor, score: Score) -> Tensor:
    """Score (B,) of the predicted class, up to a positive factor a row."""
    top = logits.argmax(1, keepdim=True)
    best = logits.gather(1, top).squeeze(1)
    if score == "logit":
        return best
    if logits.shape[1] == 1:  # the probability of the only class is constant
        return best * 0
    others = logits.masked_fill(torch.zeros_like(logits, dtype=torch.bool).scatter_(1, top, True), -torch.inf)
    return best - torch.logsumexp(others, dim=1)  # log-odds
