"""Prediction (P): which penultimate units a sparse classifier needs, and how many for what accuracy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from amr.utils.errors import UserError

SMALLEST_RATIO = 1e-3  # smallest over largest default λ
WORKING = 3000  # most coefficients that one step solves for: their curvatures are a matrix of this size
ADDED = 100  # coefficients that may join a step, or half as many as are in use if that is more
DAMPING = 1e-4  # λ's share added to the curvature, which is 0 along a shift of all classes
ROUNDING = 1e-13  # of a curvature, at most: features are standardised
CHUNK = 4096  # clips of the curvature at a time
QUADRATIC_STEPS = 100  # most changes of the signs in a step's quadratic problem; the next step goes on
HALVINGS = 30  # most halvings of a step
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
    max_steps: int = 500,
) -> SparsePath:
    r"""Multinomial elastic nets of standardised features, for a sequence of penalties.

    Each minimises, over W (C, D) and b (C,), with x the standardised features of n clips,

        F(W, b) = −(1/n) Σ_i log softmax(W x_i + b)[y_i] + λ ( α ‖W‖₁ + (1 − α)/2 ‖W‖² )

    (Friedman, Hastie, Tibshirani 2010, eq. 20; the debuggable layer of Wong, Santurkar, Madry 2021). The intercept is
    not penalised, and a constant feature gets the coefficient 0. Solved by a proximal Newton method (Lee, Sun, Saunders
    2014) on the coefficients in use and those that break the optimality conditions, from the largest λ down, each
    started at the last solution; it ends when none of all coefficients breaks them, so the result is that of all
    features. Everything is in double precision, on the features' device.

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
        max_steps: Most Newton steps for one λ; `residuals` says where they did not suffice.

    Returns:
        The path, in the order of `lambdas`.

    Raises:
        UserError: Shapes do not fit, values are not finite, fewer than two classes have clips, or an option is out of
            its range.
    """
    features, labels = _checked("features", features, labels)
    x, y = features.detach().double(), labels
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha={alpha}: must be in [0, 1]")
    classes = int(y.max()) + 1 if num_classes is None else num_classes
    if y.min() < 0 or y.max() >= classes:
        raise UserError(f"labels: {int(y.min())} to {int(y.max())}; must be 0 to {classes - 1}")
    found = torch.bincount(y).nonzero()[:, 0]
    y = torch.searchsorted(found, y)
    if len(found) < 2:
        raise UserError(f"labels: all are {int(found[0])}; must be of at least two classes")
    mean, scale = _standardisation(x)
    x = F.pad((x - mean) / scale, (0, 1), value=1.0).t().contiguous()  # (D + 1, N): the last row is the intercept's
    target = F.one_hot(y, len(found)).to(x).t()  # (C, N)
    weight = F.pad(x.new_zeros(len(found), len(mean)), (0, 1))
    weight[:, -1] = target.mean(1).log()  # the solution while all else is 0
    steepest = float(((weight[:, -1:].softmax(0) - target) @ x.t() / x.shape[1])[:, :-1].abs().max())
    penalties = _penalties(lambdas, steepest, alpha).to(x)
    penalised = F.pad(torch.ones_like(mean), (0, 1)).expand_as(weight)
    solutions = {}
    for position in penalties.argsort(descending=True, stable=True).tolist():
        penalty = float(penalties[position])
        l1, l2 = penalty * alpha * penalised, penalty * (1 - alpha) * penalised
        weight, residual = _newton(x, target, weight, l1, l2, penalty * tol, max_steps)
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
        One list per class of (unit, coefficient), by decreasing absolute value of the coefficient.

    Raises:
        UserError: `index` is not on the path, or `k` is below 1.
    """
    if not -len(path.lambdas) <= index < len(path.lambdas):
        raise UserError(f"index={index}: must be 0 to {len(path.lambdas) - 1}")
    if k < 1:
        raise UserError(f"k={k}: must be at least 1")
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
            raise UserError(f"lambdas={lambdas}: must be at least 1")
        largest = steepest / max(alpha, RIDGE_ALPHA)
        if largest == 0:
            raise UserError("features: none tells the classes apart, every λ gives 0; name the lambdas")
        return largest * torch.logspace(0, math.log10(SMALLEST_RATIO), lambdas, dtype=torch.float64)
    found = torch.as_tensor(lambdas, dtype=torch.float64).detach().reshape(-1)
    if not len(found) or not bool((torch.isfinite(found) & (found > 0)).all()):
        raise UserError(f"lambdas={found.tolist()[:5]}: must be at least one, all positive and finite")
    return found


def _newton(
    x: Tensor, target: Tensor, weight: Tensor, l1: Tensor, l2: Tensor, tol: float, steps: int
) -> tuple[Tensor, float]:
    """Minimises the mean cross-entropy + Σ l1 |W| + Σ l2/2 W² from a start.

    Each step minimises the loss's quadratic model and the penalty over the coefficients in use and the worst of those
    that should be, with the others held, and is halved until the objective falls enough (Tseng, Yun 2009). Where more
    are in use than a step takes, it takes the worst.

    Args:
        x: Features, (D, N); a row of ones for the intercept is one of them.
        target: One-hot classes, (C, N).
        weight: Start, (C, D).
        l1: Factors of |W|, (C, D).
        l2: Factors of W²/2, (C, D).
        tol: Largest violation of the optimality conditions.
        steps: Most steps.

    Returns:
        W and its largest violation.
    """
    n, logits, damping = x.shape[1], weight @ x, DAMPING * float((l1 + l2).max()) + ROUNDING

    def objective(weight: Tensor, logits: Tensor) -> float:
        penalty = l1 * weight.abs() + l2 / 2 * weight.square()
        return float(penalty.sum() - (logits.log_softmax(0) * target).sum() / n)

    for step in range(steps + 1):
        probability = logits.softmax(0)
        grad = (probability - target) @ x.t() / n + l2 * weight
        wrong = _subgradient(weight, grad, l1).abs()
        residual = float(wrong.max())
        if residual <= tol or step == steps:
            break
        free = (weight != 0) | (l1 == 0)
        used = int(free.sum())
        if used < WORKING:
            wrong[free] = torch.inf
        size = min(int((wrong > 0).sum()), used + max(ADDED, used // 2), WORKING)
        chosen = wrong.flatten().topk(size).indices.sort().values
        classes, units = chosen // len(x), chosen % len(x)
        old, slope, first = weight[classes, units], grad[classes, units], l1[classes, units]
        curvature = _curvature(x, probability, classes, units)
        curvature.diagonal().add_(l2[classes, units] + damping)
        moved = weight.clone()
        moved[classes, units] = _quadratic(curvature, slope, old, first, max(tol, residual) / 10)
        moved_logits = moved @ x
        change, now, size_of = moved - weight, objective(weight, logits), 1.0
        promised = float((grad * change + l1 * (moved.abs() - weight.abs())).sum())
        for _ in range(HALVINGS):
            if objective(moved, moved_logits) <= now + 1e-4 * size_of * promised + 1e-13 * abs(now):
                break
            size_of /= 2
            moved, moved_logits = (weight + moved) / 2, (logits + moved_logits) / 2
        weight, logits = moved, moved_logits
    return weight, residual


def _curvature(x: Tensor, probability: Tensor, classes: Tensor, units: Tensor) -> Tensor:
    """Second derivatives of the mean cross-entropy, (K, K), for K coefficients, sorted by class.

    That of (c, j) and (d, k) is Σ_i x_ij x_ik p_ic (δ_cd − p_id) / n.
    """
    ends = torch.bincount(classes, minlength=len(probability)).cumsum(0).tolist()
    found = x.new_zeros(len(units), len(units))
    for some, p in zip(torch.split(x, CHUNK, 1), torch.split(probability, CHUNK, 1), strict=True):
        rows = some[units]
        weighted = rows * p[classes]
        for start, end in zip([0, *ends], ends, strict=False):
            found[start:end, :end] -= weighted[start:end] @ weighted[:end].t()
            found[start:end, start:end] += weighted[start:end] @ rows[start:end].t()
    return (found.tril() + found.tril(-1).t()) / x.shape[1]


def _quadratic(curvature: Tensor, grad: Tensor, start: Tensor, l1: Tensor, tol: float) -> Tensor:
    """Minimises <grad, w − start> + ½ (w − start) curvature (w − start) + Σ l1 |w|, to a violation of `tol`.

    With the signs of w given it is solved at once. So: take the signs of w, and for a 0 that should not be one the
    sign it would get; solve; and go towards the solution, where a w that would change its sign stays at 0, as far as
    is best. No step goes uphill: a 0 that would get the other sign takes no part.
    """
    w, linear = start, curvature @ start - grad
    sizes = 2.0 ** -torch.arange(HALVINGS, dtype=w.dtype, device=w.device)[:, None]
    for _ in range(QUADRATIC_STEPS):
        wrong = _subgradient(w, curvature @ w - linear, l1)
        if float(wrong.abs().max()) <= tol:
            break
        sign = torch.where(w == 0, -wrong.sign(), w.sign())
        free = ((sign != 0) | (l1 == 0)).nonzero()[:, 0]
        inner, sign, penalty = curvature[free][:, free], torch.where(l1 > 0, sign, 0.0)[free], l1[free]
        solved = torch.cholesky_solve((linear[free] - penalty * sign)[:, None], torch.linalg.cholesky(inner))[:, 0]
        paths = torch.where(sizes == 1, solved, w[free] + sizes * (solved - w[free]))
        paths = torch.where(paths * sign < 0, 0.0, paths)
        values = ((paths @ inner / 2 - linear[free]) * paths + penalty * paths.abs()).sum(1)
        w = torch.zeros_like(w).index_put((free,), paths[values.argmin()])
    return w


def _subgradient(weight: Tensor, grad: Tensor, l1: Tensor) -> Tensor:
    """The smallest subgradient: 0 at the minimum."""
    return torch.where(weight == 0, grad - grad.clamp(-l1, l1), grad + l1 * weight.sign())
