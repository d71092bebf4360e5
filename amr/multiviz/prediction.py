"""Prediction (P): which penultimate units a sparse classifier needs, and how many for what accuracy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from amr.errors import UserError

SMALLEST_RATIO = 1e-3  # smallest over largest default λ
METRIC_CLIPS = 8  # clips a feature that the metric is taken on
LEAST_CURVATURE = 0.02  # of a clip in the metric, at most 1/2: saturated clips do not stay so when W moves
PROXIMAL_STEPS = 1000  # most steps of a proximal problem; what is left is seen, and made up for, by the next one
RIDGE_ALPHA = 1e-3  # stands for a smaller α where the largest default λ is sought: with α = 0 no λ makes all 0


@dataclass(frozen=True)
class SparsePath:
    """Sparse multinomial classifiers of standardised features, one for each λ.

    Attributes:
        lambdas: Penalties λ, (L,), in the order they were given.
        coefficients: W, (L, C, D), of the standardised features: logits per standard deviation of a feature.
        intercepts: b, (L, C); −inf for a class without a clip.
        accuracy: Share of clips classified right, (L,), in [0, 1]: of the held-out ones if there were any.
        nonzeros: Number of features with a coefficient other than 0 for some class, (L,) int64.
        residuals: Largest violation of the optimality (KKT) conditions, (L,), in units of λ.
        mean: Mean of each feature, (D,).
        scale: Standard deviation (over n) of each feature, (D,); 1 for a constant one.
        alpha: Share of the L1 penalty.
    """

    lambdas: Tensor
    coefficients: Tensor
    intercepts: Tensor
    accuracy: Tensor
    nonzeros: Tensor
    residuals: Tensor
    mean: Tensor
    scale: Tensor
    alpha: float

    def logits(self, features: Tensor) -> Tensor:
        """Logits of every classifier, (L, N, C), for features (N, D) as they were before standardisation."""
        x = (features.to(self.mean) - self.mean) / self.scale
        return x @ self.coefficients.transpose(1, 2) + self.intercepts[:, None]

    def sparsest(self, within: float = 0.01) -> int:
        """Position of the classifier with the fewest units among those within `within` of the best accuracy."""
        good = self.accuracy >= self.accuracy.max() - within
        return int(torch.where(good, self.nonzeros, self.nonzeros.max() + 1).argmin())


def sparse_path(
    features: Tensor,
    labels: Tensor,
    alpha: float = 0.95,
    lambdas: Sequence[float] | Tensor | int = 30,
    *,
    held_out: tuple[Tensor, Tensor] | None = None,
    num_classes: int | None = None,
    tol: float = 1e-5,
    max_steps: int = 20_000,
) -> SparsePath:
    r"""Multinomial elastic nets of standardised features, for a sequence of penalties.

    Each minimises, over W (C, D) and b (C,), with x the standardised features of n clips,

        F(W, b) = −(1/n) Σ_i log softmax(W x_i + b)[y_i] + λ ( α ‖W‖₁ + (1 − α)/2 ‖W‖² )

    (Friedman, Hastie, Tibshirani 2010, eq. 20; the debuggable layer of Wong, Santurkar, Madry 2021). The intercept is
    not penalised, and a constant feature gets the coefficient 0. Solved by full-batch FISTA (Beck, Teboulle 2009) with
    backtracking, restarted when its momentum points uphill (O'Donoghue, Candès 2015), from the largest λ down, each
    started at the last solution. Features with a coefficient of 0 join as long as one breaks the optimality conditions,
    so the result is that of all features. Everything is in double precision, on the features' device.

    With α = 1 and an even number of classes W is not unique: the loss does not change when all classes' coefficients of
    a feature are shifted. F and the predictions are.

    Args:
        features: Features, (N, D), such as `model.penultimate(encodings)`.
        labels: Classes, (N,) int64, from 0.
        alpha: Share of the L1 penalty, in [0, 1]; 0 is ridge.
        lambdas: Penalties λ > 0, in any order, or how many: evenly spaced in the logarithm from the smallest λ at
            which W = 0 to 1/1000 of it (with α < 0.001 the first is that of α = 0.001).
        held_out: Features and labels to take the accuracy on; None for those that are fitted.
        num_classes: Number of classes C; None for the largest label + 1. A class without a clip gets its limit: the
            intercept −inf and no coefficient.
        tol: Largest violation of the optimality conditions, as a share of λ. F is then within tol λ ‖Δ‖₁ of its
            minimum, Δ being the distance of W and b from the solution.
        max_steps: Most FISTA steps for one λ; `residuals` says where they did not suffice.

    Returns:
        The path, in the order of `lambdas`.

    Raises:
        UserError: Shapes do not fit, values are not finite, fewer than two classes have clips, or an option is out of
            its range.
    """
    features, labels = _checked("features", features, labels)
    x, y = features.detach().double(), labels
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha must be in [0, 1], got {alpha}")
    classes = int(y.max()) + 1 if num_classes is None else num_classes
    if y.min() < 0 or y.max() >= classes:
        raise UserError(f"labels: {int(y.min())} to {int(y.max())}; allowed are 0 to {classes - 1}")
    found = torch.bincount(y).nonzero()[:, 0]
    y = torch.searchsorted(found, y)
    if len(found) < 2:
        raise UserError(f"labels: all are {int(found[0])}; at least two classes are needed")
    mean, scale = _standardisation(x)
    x = F.pad((x - mean) / scale, (0, 1), value=1.0).t().contiguous()  # (D + 1, N): the last row is the intercept's
    target = F.one_hot(y, len(found)).to(x).t()  # (C, N)
    weight = F.pad(x.new_zeros(len(found), len(mean)), (0, 1))
    weight[:, -1] = target.mean(1).log()  # the solution while all else is 0
    gradient = (weight[:, -1:].softmax(0) - target) @ x.t() / x.shape[1]
    steepest = float(gradient[:, :-1].abs().max())
    penalties = _penalties(lambdas, steepest, alpha).to(x)
    penalised = (torch.arange(len(x), device=x.device) < len(mean)).to(x)
    solutions = {}
    for position in penalties.argsort(descending=True, stable=True).tolist():
        penalty = float(penalties[position])
        l1, l2 = penalty * alpha * penalised, penalty * (1 - alpha) * penalised
        # Only features that can help are solved for: those in use, and those whose slope the penalty does not hold.
        kept, solved = (weight != 0).any(0) | (penalised == 0), False
        while True:
            wrong = (gradient.abs().amax(0) > l1 + penalty * tol / 2) & ~kept
            if solved and not bool(wrong.any()):
                break
            kept |= wrong
            start, weight = weight[:, kept], torch.zeros_like(weight)
            weight[:, kept], probability, residual = _fista(
                x[kept], target, start, l1[kept], l2[kept], penalty * tol, max_steps
            )
            gradient, solved = (probability - target) @ x.t() / x.shape[1], True
        solutions[position] = (weight[:, :-1], weight[:, -1] - weight[:, -1].mean(), residual / penalty)
    ordered = [solutions[i] for i in range(len(penalties))]
    coefficients = x.new_zeros(len(ordered), classes, len(mean))
    coefficients[:, found] = torch.stack([w for w, _, _ in ordered])
    intercepts = x.new_full((len(ordered), classes), -torch.inf)
    intercepts[:, found] = torch.stack([b for _, b, _ in ordered])
    path = SparsePath(
        lambdas=penalties,
        coefficients=coefficients,
        intercepts=intercepts,
        accuracy=torch.zeros_like(penalties),
        nonzeros=(coefficients != 0).any(1).sum(1),
        residuals=penalties.new_tensor([r for _, _, r in ordered]),
        mean=mean,
        scale=scale,
        alpha=alpha,
    )
    rows, truth = (features, labels) if held_out is None else _checked("held_out", *held_out)
    if rows.shape[1] != len(mean):
        raise UserError(f"held_out: {rows.shape[1]} features, the fitted ones are {len(mean)}")
    path.accuracy.copy_((path.logits(rows).argmax(2) == truth.to(x.device)).double().mean(1))
    return path


def top_units(path: SparsePath, index: int, k: int) -> list[list[tuple[int, float]]]:
    """The units with the largest coefficients of each class, at one λ.

    Args:
        path: The path.
        index: Position on it.
        k: How many at most; units whose coefficient is 0 are not listed.

    Returns:
        A list a class of (unit, coefficient), by falling size of the coefficient whatever its sign.

    Raises:
        UserError: `index` is not on the path, or `k` is below 1.
    """
    if not -len(path.lambdas) <= index < len(path.lambdas):
        raise UserError(f"index: {index}; allowed are 0 to {len(path.lambdas) - 1}")
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    weight = path.coefficients[index]
    order = weight.abs().argsort(dim=1, descending=True, stable=True)[:, :k].tolist()
    return [[(u, float(row[u])) for u in units if row[u] != 0] for row, units in zip(weight, order, strict=True)]


def _checked(name: str, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) on one device; raises UserError if they are not that."""
    if features.ndim != 2 or labels.shape != features.shape[:1] or not features.numel():
        shapes = f"{tuple(features.shape)} and {tuple(labels.shape)}"
        raise UserError(f"{name}: shapes {shapes}; expected (N, D) and (N,), neither empty")
    if not bool(torch.isfinite(features).all()):
        raise UserError(f"{name}: some values are not finite")
    return features, labels.to(features.device).long()


def _standardisation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of the columns; 1 for a column that is constant up to rounding."""
    scale, largest = x.std(0, correction=0), x.abs().amax(0)
    return x.mean(0), torch.where(x.amax(0) - x.amin(0) > 1e-12 * largest, scale, 1.0)


def _penalties(lambdas: Sequence[float] | Tensor | int, steepest: float, alpha: float) -> Tensor:
    """The λ, (L,); `steepest` is the loss's largest slope at W = 0."""
    if isinstance(lambdas, int):
        if lambdas < 1:
            raise UserError(f"lambdas: their number must be at least 1, got {lambdas}")
        largest = steepest / max(alpha, RIDGE_ALPHA)
        if largest == 0:
            raise UserError("features: none tells the classes apart, every λ gives 0; name the lambdas")
        return largest * torch.logspace(0, math.log10(SMALLEST_RATIO), lambdas, dtype=torch.float64)
    found = torch.as_tensor(lambdas, dtype=torch.float64).detach().reshape(-1)
    if not len(found) or not bool((torch.isfinite(found) & (found > 0)).all()):
        raise UserError(f"lambdas: {found.tolist()[:5]}; at least one is needed, all positive and finite")
    return found


def _fista(
    x: Tensor, target: Tensor, weight: Tensor, l1: Tensor, l2: Tensor, tol: float, steps: int
) -> tuple[Tensor, Tensor, float]:
    """Minimises the mean cross-entropy + Σ l1 |W| + Σ l2/2 W² from a start.

    Steps are taken in a metric, X diag(a_c) Xᵀ/n for class c, so that neither correlated features nor saturated clips
    slow them down; each asks for a proximal problem in the metric alone, whatever n. a_c = 1/2 bounds the curvature
    everywhere (Böhning 1992) and a_c = 2 p_c (1 − p_c) here (Gershgorin's bound of diag(p) − ppᵀ); the metric starts as
    the first and is renewed as the second, on some of the clips, a few times: when as much time has gone into steps,
    and ever more rarely. It is multiplied by a factor found by backtracking. As logits are linear in W, those of an
    extrapolated point need no product with x: a step costs two products, a rejected one a third.

    Args:
        x: Features, (D, N); a row of ones for the intercept is one of them.
        target: One-hot classes, (C, N).
        weight: Start, (C, D).
        l1: Factors of |W|, (D,).
        l2: Factors of W²/2, (D,).
        tol: Largest violation of the optimality conditions.
        steps: Most steps.

    Returns:
        W, the probabilities (C, N) and the largest violation.
    """
    n = x.shape[1]
    stride = max(1, n // (METRIC_CLIPS * len(x)))
    some = x[:, ::stride].contiguous()
    due = max(10, some.shape[1] * len(x) // (2 * n))  # steps that cost as much as the metric of every class
    metric = x @ x.t() / (2 * n)
    steepest = torch.linalg.eigvalsh(metric)[-1:, None]
    factor, momentum, change, age = 1.0, 1.0, math.inf, 0
    logits = weight @ x
    w, z = weight, logits  # the point that the momentum leads to
    for step in range(steps + 1):
        probability = z.softmax(0)
        grad = (probability - target) @ x.t() / n
        if w is weight:
            residual = _violation(weight, grad, l1, l2)
            if residual <= tol or step == steps:
                break
            change = min(change, residual)
            if age >= due:
                curvature = 2 * probability[:, ::stride] * (1 - probability[:, ::stride])
                metric = (some * curvature.clamp_min(LEAST_CURVATURE)[:, None]) @ some.t() / some.shape[1]  # (C, D, D)
                steepest = torch.linalg.eigvalsh(metric)[:, -1:]
                factor, age, due = 1.0, 0, 3 * due  # renewing costs the momentum
        while True:
            new = _proximal(weight, w, grad, factor * metric, factor * steepest, l1, l2, 0.1 * max(change, tol))
            new_logits, moved = new @ x, new - w
            force = factor * _times(moved, metric)
            if _bregman(probability, new_logits - z) <= 0.5 * float((moved * force).sum()) or not moved.any():
                break
            factor *= 2
        new = _centered(new, l1, l2)  # logits and probabilities are equal up to a constant a clip, which has no effect
        change, age = _largest(force), age + 1
        if change <= tol or age >= due or step == steps - 1 or float((force * (new - weight)).sum()) < 0:
            beta, momentum, factor = 0.0, 1.0, max(factor / 2, 1e-6)  # no momentum: look, renew, or turn from uphill
        else:
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            beta, momentum = (momentum - 1) / following, following
        w, z = (new + beta * (new - weight), new_logits + beta * (new_logits - logits)) if beta else (new, new_logits)
        weight, logits = new, new_logits
    return weight, probability, residual


def _proximal(
    start: Tensor, center: Tensor, grad: Tensor, metric: Tensor, steepest: Tensor, l1: Tensor, l2: Tensor, tol: float
) -> Tensor:
    """Minimises <grad, W − V> + ½ (W − V) metric (W − V) + Σ l1 |W| + Σ l2/2 W², by FISTA, to a violation of `tol`."""
    grad = grad - _times(center, metric)
    weight, product, momentum = start, _times(start, metric), 1.0
    point, point_product = weight, product
    for _ in range(PROXIMAL_STEPS):
        if _violation(weight, product + grad, l1, l2) <= tol:
            break
        moved = point - (point_product + grad) / steepest
        moved = (moved - moved.clamp(-l1 / steepest, l1 / steepest)) / (1 + l2 / steepest)
        moved_product = _times(moved, metric)
        if float((steepest * (moved - point) * (moved - weight)).sum()) < 0:  # uphill
            beta, momentum = 0.0, 1.0
        else:
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            beta, momentum = (momentum - 1) / following, following
        point, point_product = moved + beta * (moved - weight), moved_product + beta * (moved_product - product)
        weight, product = moved, moved_product
    return weight


def _times(weight: Tensor, metric: Tensor) -> Tensor:
    """Rows (C, D) times their metrics, (C, D, D), or one for all, (D, D)."""
    return weight @ metric if metric.ndim == 2 else (weight[:, None] @ metric)[:, 0]


def _centered(weight: Tensor, l1: Tensor, l2: Tensor) -> Tensor:
    """Each feature's coefficients less the number s that makes their penalty smallest; no probability changes.

    s minimises Σ_c l1 |w_c − s| + l2/2 (w_c − s)² and is the median of all w_c and of the zeros mean(w) − (2k/C − 1)
    l1/l2, k = 0 ... C, of its slope with k of them below s (Li, Osher 2009). As the loss has no curvature along s,
    steps would be slow to find it.
    """
    classes = len(weight)
    below = torch.linspace(-1, 1, classes + 1, dtype=weight.dtype, device=weight.device)[:, None]
    zeros = weight.mean(0) - below * torch.where(l2 > 0, l1 / l2, torch.inf)
    if classes % 2:  # no k is half of C: without l2 every zero is infinite, and their number even
        return weight - torch.cat([weight, zeros]).median(0).values
    zeros[classes // 2] = weight.mean(0)
    return weight - torch.cat([weight, zeros]).median(0).values


def _violation(weight: Tensor, grad: Tensor, l1: Tensor, l2: Tensor) -> float:
    """Largest entry of the smallest subgradient: 0 at the minimum."""
    grad = grad + l2 * weight
    return _largest(torch.where(weight == 0, (grad.abs() - l1).clamp_min(0), grad + l1 * weight.sign()))


def _bregman(probability: Tensor, change: Tensor) -> float:
    """Mean cross-entropy after a change of the logits (C, N) less its linear model; small ones lose no digits."""
    change = change - (probability * change).sum(0)
    return float((probability * torch.expm1(change)).sum(0).log1p().mean())


def _largest(x: Tensor) -> float:
    """Largest absolute value; 0 if there is none."""
    return float(x.abs().max()) if x.numel() else 0.0
