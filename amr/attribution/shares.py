"""Attribution at the encoder outputs: how much each modality counts in a decision.

Pure, differentiable functions; the measure and the penalty of Yerramilli et al. 2024, "Attribution Regularization for
Multimodal Paradigms", and the same measure by integrated gradients.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import factorial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amr.attribution.orders import EXACT_MODALITIES, sampled_orders, say_error
from amr.utils.errors import UserError

Score = Literal["probability", "logit"]
Head = Callable[[dict[str, Tensor]], Tensor]


def attribution_shares(
    head: Head,
    encodings: Mapping[str, Tensor],
    *,
    score: Score = "probability",
    create_graph: bool = False,
    ig_steps: int | None = None,
) -> Tensor:
    r"""Share of each modality in the attribution of the predicted class, by gradient⊙input or integrated gradients.

    With `f` the head's output for its top class, the attribution of modality m is

        α^m = ‖ ∂f/∂e^m ⊙ e^m ‖₂   (over every non-batch dimension),   share^m = α^m / Σ_j α^j.

    `probability` reads f as a probability, as the paper does. Because ∂p = p(1-p) ∂log(p/(1-p)) and factors common to
    all modalities cancel in a share, it is computed from the log-odds: the same shares, and none lost to underflow when
    p reaches 1 (where the gradient of log_softmax drops its own top-class term). `logit` reads f as the logit.

    With `ig_steps`, the gradient is replaced by its mean on the straight line from zero encodings, all modalities' at
    once, to e (Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", eq. 1):

        α^m = ‖ e^m ⊙ ∫₀¹ ∂f/∂e^m (t e) dt ‖₂,

    f being that of the class predicted at e, the integral Gauss and Legendre's sum of `ig_steps` points.

    Encodings are treated as detached leaves of at least single precision, with autocast off; a head that is a module
    runs in eval mode and is put back. So nothing upstream of the encodings, no running statistic and no random state is
    touched, also under `torch.inference_mode`.

    A head that is linear in each encoding separately (two towers whose score is a dot product) has
    e^a · ∂f/∂e^a = e^b · ∂f/∂e^b, dimension by dimension: every share is exactly 1/M, whatever the model has learned.
    `equal_by_construction` detects this. Read `shapley_shares` of such a head.

    Args:
        head: Maps encodings to logits of shape (B, C).
        encodings: Encoding of each modality, (B, D_m) or (B, ..., D_m).
        score: Definition of f.
        create_graph: Keep the graph, so that a function of the shares can be differentiated by the head's parameters.
        ig_steps: Number of points of integrated gradients, each a pass of the head; None for gradient⊙input.

    Returns:
        Shares of shape (B, M), modalities in the mapping's order; a row sums to 1, or is all zeros where the total
        attribution is zero (dead or absent encodings, a constant head).

    Raises:
        ValueError: If `score` is unknown, there is no modality, or `ig_steps` is below 1.
    """
    if ig_steps is not None and ig_steps < 1:
        raise ValueError(f"ig_steps={ig_steps}: must be an integer >= 1, or None")
    _check(score, encodings)
    require_gradient(encodings)
    device_type = next(iter(encodings.values())).device.type
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device_type, enabled=False),
        evaluating(head),
    ):
        leaves = {name: _detached(encoding).requires_grad_() for name, encoding in encodings.items()}
        if ig_steps is None:
            products = _gradient_times_input(head, leaves, score, create_graph)
        else:
            products, _ = _integrated_gradients(head, leaves, score, create_graph, ig_steps)
        products = [product.flatten(1) for product in products]
        # Shares do not depend on a row's scale: divide it out before squaring, which would under- or overflow.
        scale = torch.stack([p.detach().abs().amax(1) for p in products]).amax(0)
        scale = torch.where(scale > 0, scale, 1.0).unsqueeze(1)
        norms = torch.stack([torch.linalg.vector_norm(p / scale, dim=1) for p in products], dim=1)
        shares = absolute_shares(norms)
    return shares if create_graph else shares.detach()


def equal_by_construction(shares: Tensor) -> str:
    """One line for the user if every clip's gradient shares are equal, as for a dot product of towers; else empty.

    Args:
        shares: Shares, (N, M); rows of zeros are left out.
    """
    rows, count = shares[attributed_rows(shares)], shares.shape[1]
    if count < 2 or len(rows) < 2 or bool(((rows - 1 / count).abs() > 1e-4).any()):
        return ""
    return (
        f"dominance: every clip's gradient shares are exactly 1/{count}, as they are by construction where the score "
        "is a product of the encodings (a dot product of towers); read the Shapley shares (decision share) instead"
    )


def shapley_shares(
    head: Head,
    encodings: Mapping[str, Tensor],
    baseline: Mapping[str, Tensor],
    *,
    score: Score = "probability",
    create_graph: bool = False,
) -> Tensor:
    r"""Share of each modality in the Shapley values of the predicted class's score.

    With v(S) the score when the modalities outside S have the baseline's encoding, and φ_m modality m's Shapley value
    (Shapley 1953; Σ_m φ_m = v(all) − v(none)),

        α^m = |φ_m|,   share^m = α^m / Σ_j α^j.

    A part of an encoding that is the same for every clip counts nothing if the baseline has it too, and contributions
    that cancel do. `probability` takes the log-odds of the class that all modalities predict, which a part that every
    class gets alike leaves as they are; `logit` its logit.

    Encodings and random states are treated as by `attribution_shares`. The head sees 2^M rows per clip. Above M = 6 the
    values are estimated from 16 orders of the modalities, the same always: at most 16 (M - 1) + 2 rows, and one line
    says once how large their standard error is.

    Args:
        head: Maps encodings to logits of shape (B, C).
        encodings: Encoding of each modality, (B, D_m) or (B, ..., D_m).
        baseline: Replacement of a modality outside the coalition, (1, D_m) or (1, ..., D_m), e.g. the mean encoding.
        score: Definition of v.
        create_graph: Keep the graph, so that a function of the shares can be differentiated by the head's parameters.

    Returns:
        Shares of shape (B, M), modalities in the order of `encodings`; a row sums to 1, or is all zeros where every
        Shapley value is zero.

    Raises:
        ValueError: If `score` is unknown, or there is no modality.
    """
    _check(score, encodings)
    first, count = next(iter(encodings.values())), len(encodings)
    orders = sampled_orders(count) if count > EXACT_MODALITIES else None
    coalitions = range(1 << count) if orders is None else orders.coalitions
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(create_graph),
        torch.autocast(first.device.type, enabled=False),
        evaluating(head),
    ):
        rows = {}
        for bit, (name, encoding) in enumerate(encodings.items()):
            own = _detached(encoding)
            other = baseline[name].detach().clone().to(own).expand_as(own)
            rows[name] = torch.cat([own if kept >> bit & 1 else other for kept in coalitions])
        flat = head(rows)
        logits = flat.view(len(coalitions), len(first), flat.shape[1])
        if orders is None:
            return predicted_shapley_shares(logits, score)
        values = orders.values(class_score(logits, logits[-1].argmax(1), score))
        say_error(count, values.detach())
        return absolute_shares(values.mean(0))


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
        raise ValueError(f"ratio: shape {tuple(ratio.shape)}, expected ({modalities},), one entry per modality")
    if not bool((torch.isfinite(ratio) & (ratio > 0)).all()):
        raise ValueError(f"ratio={ratio.tolist()}: every entry must be positive and finite")
    return ratio / ratio.sum()


def absolute_shares(values: Tensor) -> Tensor:
    """Each modality's part of the absolute values (N, M) of a clip: rows add up to 1, or to 0 where all are 0."""
    sizes = values.abs()
    sums = sizes.sum(1, keepdim=True)
    return sizes / torch.where(sums > 0, sums, 1.0)


def shapley_values(scores: Tensor) -> Tensor:
    """Shapley value of each modality, (N, M), of the scores (2^M, N) of all coalitions (see `coalition_index`).

    What a modality adds to each coalition without it is weighted by the coalition's size. It is exactly 0 for one that
    changes no score, which the product of a constant matrix and the scores would not be.
    """
    return torch.stack([coalition_index(scores, [m]) for m in range((len(scores) - 1).bit_length())], dim=1)


def predicted_shapley_shares(logits: Tensor, score: Score) -> Tensor:
    """Shapley shares (N, M) in the predicted class's score, from all coalitions' logits (2^M, N, C)."""
    return absolute_shares(shapley_values(class_score(logits, logits[-1].argmax(1), score)))


def coalition_index(scores: Tensor, members: list[int]) -> Tensor:
    """Interaction index (N,) of a set T of modalities: Σ_S (M − s − t)! s! / (M − t + 1)! · Δ_T v(S).

    Args:
        scores: v, (2^M, N), bit m of the first index says whether modality m is kept.
        members: T; of a single modality it is the Shapley value.
    """
    count, whole = (len(scores) - 1).bit_length(), sum(1 << m for m in members)
    total = torch.zeros_like(scores[0])
    for outside in range(1 << count):
        if outside & whole:
            continue
        size = outside.bit_count()
        weight = factorial(count - size - len(members)) * factorial(size) / factorial(count - len(members) + 1)
        for inside in range(1 << len(members)):
            joined = outside | sum(1 << m for k, m in enumerate(members) if inside >> k & 1)
            total += weight * (-1) ** (len(members) - inside.bit_count()) * scores[joined]
    return total


def class_score(logits: Tensor, classes: Tensor, score: Score) -> Tensor:
    """Score (..., N) of each row's class: its logit or, for `probability`, its log-odds.

    Args:
        logits: Logits, (..., N, C).
        classes: One class per row, (N,).
        score: `probability` for log-odds, or `logit`.
    """
    index = classes.expand(logits.shape[:-1]).unsqueeze(-1)
    own = logits.gather(-1, index).squeeze(-1)
    if score == "logit":
        return own
    if logits.shape[-1] == 1:  # the probability of the only class is constant
        return own * 0
    others = logits.masked_fill(torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, index, True), -torch.inf)
    return own - torch.logsumexp(others, dim=-1)


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in single precision, or as it is in double: half precision is too coarse for sums and gradients.

    Integers stay as they are: they are ids to look up, not numbers.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


def modules_in(model: object, depth: int = 2) -> list[nn.Module]:
    """The module itself or, for an object that is not a module, the modules among its attributes and theirs."""
    if isinstance(model, nn.Module):
        return [model]
    if isinstance(owner := getattr(model, "__self__", None), nn.Module):  # a method of it
        return [owner]
    found: list[nn.Module] = []
    for value in vars(model).values() if depth and hasattr(model, "__dict__") else ():
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        found += [each for each in inside if isinstance(each, nn.Module)] or modules_in(value, depth - 1)
    return found


@contextmanager
def evaluating(head: object) -> Iterator[None]:
    """Runs the modules of an object in eval mode and restores each submodule's own mode."""
    modes = [(module, module.training) for each in modules_in(head) for module in each.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def undisturbed(model: object) -> Iterator[None]:
    """Evaluation mode in fp32, gradients only where asked for; mode, RNG state and `.grad` fields are as before after.

    Inference mode, which Lightning validates in, is left: tensors made inside it must be cloned to get a gradient.
    """
    parameters = [parameter for module in modules_in(model) for parameter in module.parameters()]
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
    with (
        torch.random.fork_rng(devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        evaluating(model),
    ):
        yield


def _check(score: Score, encodings: Mapping[str, Tensor]) -> None:
    if score not in get_args(Score):
        raise ValueError(f"score={score!r}: must be one of {', '.join(get_args(Score))}")
    if not encodings:
        raise ValueError("encodings: must have at least one modality")


def require_gradient(encodings: Mapping[str, Tensor]) -> None:
    """Raises UserError, naming it, for an encoding of ids, which has no gradient."""
    for name, encoding in encodings.items():
        if not encoding.is_floating_point():
            raise UserError(
                f"encodings.{name}={encoding.dtype}: must be floating-point to have a gradient; name the modality's "
                "embedding layer, or use Shapley shares"
            )


def _detached(encoding: Tensor) -> Tensor:
    """A separate copy in at least single precision."""
    return at_least_float32(encoding.detach().clone())


def _gradient_times_input(head: Head, leaves: Mapping[str, Tensor], score: Score, create_graph: bool) -> list[Tensor]:
    """∂f/∂e^m ⊙ e^m of each modality, (B, ..., D_m), up to a positive factor per row."""
    logits = head(dict(leaves))
    gradients = _row_gradients(class_score(logits, logits.argmax(1), score), leaves, create_graph)
    return [gradient * leaf for gradient, leaf in zip(gradients, leaves.values(), strict=True)]


def _integrated_gradients(
    head: Head, leaves: Mapping[str, Tensor], score: Score, create_graph: bool, steps: int
) -> tuple[list[Tensor], Tensor]:
    """e^m ⊙ ∫ ∂f/∂e^m of each modality, (B, ..., D_m), and the logarithm (B,) of the factor that they lack, a row's.

    ∂p = p(1-p) ∂(log-odds), and p(1-p) differs from point to point. It is the logarithm's that is known wherever p is,
    so the largest a row is divided out, as a constant: shares do not depend on it, nor do their derivatives.
    """
    with torch.no_grad():
        top = head(dict(leaves)).argmax(1).repeat(steps)  # (S·B,): points, then rows
    points, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(steps))  # on [-1, 1], summing to 2
    first = next(iter(leaves.values()))
    points, weights = ((points + 1) / 2).to(first), (weights / 2).to(first)
    line = {
        name: (points.view(-1, *[1] * leaf.ndim) * leaf.detach()).flatten(0, 1).requires_grad_()
        for name, leaf in leaves.items()
    }
    values = class_score(head(dict(line)), top, score)  # (S·B,)
    gradients = _row_gradients(values, line, create_graph)
    if score == "probability":
        log_slope = (F.logsigmoid(values) + F.logsigmoid(-values)).view(steps, -1)  # log p(1-p)
        log_factor = log_slope.detach().amax(0)
        weights = weights.unsqueeze(1) * (log_slope - log_factor).exp()
    else:
        log_factor = torch.zeros_like(values.detach().view(steps, -1)[0])
        weights = weights.unsqueeze(1).expand(steps, len(first))
    products = [
        leaf * torch.einsum("sb,sbd->bd", weights, gradient.reshape(steps, len(leaf), -1)).view_as(leaf)
        for gradient, leaf in zip(gradients, leaves.values(), strict=True)
    ]
    return products, log_factor


def _row_gradients(values: Tensor, inputs: Mapping[str, Tensor], create_graph: bool) -> tuple[Tensor, ...]:
    """Each row's own gradient: rows are independent, so one backward of the sum gives them all."""
    total = values.sum()
    if not total.requires_grad:  # the head ignores its input
        return tuple(torch.zeros_like(x) for x in inputs.values())
    return torch.autograd.grad(total, list(inputs.values()), create_graph=create_graph, materialize_grads=True)
