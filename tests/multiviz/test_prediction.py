import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from amr.multiviz.prediction import SparsePath, sparse_path, top_units
from amr.utils.errors import UserError


def clips(n: int = 240, d: int = 12, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated features of different sizes; the class depends on the first three."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x = x + x[:, :1] * 0.8
    w = torch.randn(classes, 3, generator=generator, dtype=torch.float64) * 2
    gumbel = -torch.log(-torch.log(torch.rand(n, classes, generator=generator, dtype=torch.float64)))
    labels = (x[:, :3] @ w.t() + gumbel).argmax(1)
    return x * torch.logspace(-2, 3, d, dtype=torch.float64) + 5, labels


def objective(
    path: SparsePath, i: int, x: Tensor, y: Tensor, w: Tensor | None = None, b: Tensor | None = None
) -> float:
    """The definition, written out again."""
    w = path.coefficients[i] if w is None else w
    b = path.intercepts[i] if b is None else b
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    penalty = path.alpha * w.abs().sum() + (1 - path.alpha) / 2 * w.square().sum()
    return float(F.cross_entropy(standard @ w.t() + b, y) + path.lambdas[i] * penalty)


def gradients(path: SparsePath, i: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    w, b = path.coefficients[i].clone().requires_grad_(), path.intercepts[i].clone().requires_grad_()
    loss = F.cross_entropy(standard @ w.t() + b, y)
    first, second = torch.autograd.grad(loss, (w, b))
    return first, second


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_optimality_holds_at_every_penalty(alpha: float, classes: int) -> None:
    x, y = clips(classes=classes)
    path = sparse_path(x, y, alpha, 4)
    for i, penalty in enumerate(path.lambdas.tolist()):
        grad, grad_b = gradients(path, i, x, y)
        w = path.coefficients[i]
        grad = grad + penalty * (1 - alpha) * w
        used = w != 0
        assert grad_b.abs().max() <= 2e-5 * penalty
        assert (grad + penalty * alpha * w.sign())[used].abs().max().item() <= 2e-5 * penalty if used.any() else True
        assert bool((grad[~used].abs() <= penalty * (alpha + 2e-5)).all())
    assert float(path.residuals.max()) <= 1e-5


@pytest.mark.filterwarnings("ignore")  # saga says that it could go on
@pytest.mark.parametrize(("alpha", "penalty"), [(0.5, 0.05), (0.9, 0.01), (1.0, 0.02)])
@pytest.mark.parametrize("classes", [2, 4])
def test_objective_equals_saga(alpha: float, penalty: float, classes: int) -> None:
    x, y = clips(classes=classes)
    path = sparse_path(x, y, alpha, [penalty])
    standard = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    # With two classes sklearn fits one vector β = w_1 − w_0 = 2 w_1: λ(α‖β‖₁ + (1 − α)/4 ‖β‖²).
    l1, l2 = alpha, (1 - alpha) / (2 if classes == 2 else 1)
    saga = LogisticRegression(
        solver="saga", l1_ratio=l1 / (l1 + l2), C=1 / (len(x) * penalty * (l1 + l2)), tol=1e-9, max_iter=20_000
    ).fit(standard, y.numpy())
    w, b = torch.from_numpy(saga.coef_), torch.from_numpy(saga.intercept_)
    if classes == 2:
        w, b = torch.cat([-w, w]) / 2, torch.cat([-b, b]) / 2
    assert objective(path, 0, x, y) == pytest.approx(objective(path, 0, x, y, w, b), abs=1e-8)
    if alpha < 1:
        torch.testing.assert_close(path.coefficients[0], w, atol=1e-4, rtol=1e-3)


def test_ridge_equals_lbfgs() -> None:
    x, y = clips()
    path = sparse_path(x, y, 0.0, [0.03])
    standard = (x - x.mean(0)) / x.std(0, correction=0)

    found = LogisticRegression(C=1 / (0.03 * len(x)), tol=1e-10, max_iter=5000).fit(standard.numpy(), y.numpy())
    w, b = torch.from_numpy(found.coef_), torch.from_numpy(found.intercept_)
    assert objective(path, 0, x, y) == pytest.approx(objective(path, 0, x, y, w, b), abs=1e-9)
    torch.testing.assert_close(path.coefficients[0], w, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_largest_default_penalty_is_the_smallest_that_leaves_nothing(alpha: float) -> None:
    x, y = clips()
    path = sparse_path(x, y, alpha, 3)
    largest = float(path.lambdas[0])
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    one_hot = F.one_hot(y).double()
    assert largest == pytest.approx(float((standard.t() @ (one_hot - one_hot.mean(0)) / len(x)).abs().max()) / alpha)
    assert path.nonzeros[0] == 0
    assert path.lambdas[-1] == pytest.approx(largest / 1000)
    torch.testing.assert_close(path.intercepts[0].softmax(0), one_hot.mean(0))
    assert sparse_path(x, y, alpha, [largest * 0.999]).nonzeros[0] == 1


def test_warm_starts_change_nothing_and_the_order_is_the_callers() -> None:
    x, y = clips()
    path = sparse_path(x, y, 0.8, [0.01, 0.1, 0.03])
    assert path.lambdas.tolist() == [0.01, 0.1, 0.03]
    for i, penalty in enumerate(path.lambdas.tolist()):
        alone = sparse_path(x, y, 0.8, [penalty])
        torch.testing.assert_close(path.coefficients[i], alone.coefficients[0], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(path.intercepts[i], alone.intercepts[0], atol=1e-4, rtol=1e-3)


def test_planted_units_come_first() -> None:
    x, y = clips(n=600, d=30)
    path = sparse_path(x[:400], y[:400], 0.95, 10, held_out=(x[400:], y[400:]))
    first = int((path.nonzeros > 0).nonzero()[0])
    assert {u for units in top_units(path, first, 5) for u, _ in units} <= {0, 1, 2}
    best = path.sparsest(within=0.01)
    assert path.accuracy[best] >= path.accuracy.max() - 0.01
    assert path.nonzeros[best] < 30
    units = top_units(path, best, 4)
    for c, row in enumerate(units):
        sizes = [abs(value) for _, value in row]
        assert sizes == sorted(sizes, reverse=True)
        assert all(value == path.coefficients[best, c, u] for u, value in row)


def test_units_without_a_coefficient_are_not_listed() -> None:
    x, y = clips()
    assert top_units(sparse_path(x, y, 1.0, 2), 0, 3) == [[], [], [], []]


def test_accuracy_is_that_of_the_logits() -> None:
    x, y = clips()
    other, truth = clips(seed=1)
    path = sparse_path(x, y, 0.9, 4, held_out=(other, truth))
    for i in range(4):
        standard = (other - x.mean(0)) / x.std(0, correction=0)
        logits = standard @ path.coefficients[i].t() + path.intercepts[i]
        torch.testing.assert_close(path.logits(other)[i], logits)
        assert path.accuracy[i] == (logits.argmax(1) == truth).double().mean()
    assert torch.equal(sparse_path(x, y, 0.9, 4).accuracy, (path.logits(x).argmax(2) == y).double().mean(1))


def test_constant_features_get_nothing_and_input_stays() -> None:
    x, y = clips()
    x[:, 4] = 0.1
    x, before = x.float(), x.float().clone()
    path = sparse_path(x, y, 0.5, 5)
    assert not path.coefficients[:, :, 4].any()
    assert path.scale[4] == 1
    assert torch.equal(x, before)
    rest = [j for j in range(12) if j != 4]
    without = sparse_path(x[:, rest], y, 0.5, 5)
    torch.testing.assert_close(path.coefficients[:, :, rest], without.coefficients, atol=1e-5, rtol=1e-4)


def test_a_class_without_clips_gets_its_limit() -> None:
    x, y = clips(classes=3)
    full = sparse_path(x, y, 0.9, [0.02])
    spread = sparse_path(x, torch.tensor([0, 2, 3])[y], 0.9, [0.02], num_classes=6)
    assert spread.coefficients.shape == (1, 6, 12)
    assert torch.equal(spread.coefficients[:, [0, 2, 3]], full.coefficients)
    assert spread.intercepts[0, [1, 4, 5]].tolist() == [-math.inf] * 3
    assert not spread.coefficients[:, [1, 4, 5]].any()
    assert spread.accuracy == full.accuracy


def test_separable_classes_are_no_trouble() -> None:
    x = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
    path = sparse_path(x, torch.tensor([0, 0, 1, 1]), 1.0, 10)
    assert path.accuracy[-1] == 1
    assert float(path.residuals.max()) <= 1e-5


def test_saturated_clips_and_a_rare_unit_take_few_steps() -> None:
    y = torch.arange(160) % 4
    x = 2 * torch.eye(4)[y] + 0.15 * torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, (torch.arange(160) % 55 == 8)[:, None]], 1)
    for alpha in (0.0, 0.5):
        path = sparse_path(x, y, alpha, [1.0, 0.1, 0.01, 0.001], tol=1e-2, max_steps=100)
        assert float(path.residuals.max()) <= 1e-2


def test_too_few_steps_are_said() -> None:
    x, y = clips()
    assert float(sparse_path(x, y, 0.9, [1e-4], max_steps=2).residuals[0]) > 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.5}, "alpha=1.5: must be in"),
        ({"lambdas": [0.1, 0.0]}, "lambdas=.* positive"),
        ({"lambdas": []}, "at least one"),
        ({"lambdas": 0}, "at least 1"),
        ({"labels": torch.zeros(240, dtype=torch.long)}, "at least two classes"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "expected \\(N, D\\)"),
        ({"num_classes": 2}, "must be 0 to 1"),
        ({"features": torch.full((240, 12), torch.nan)}, "not finite"),
        ({"features": torch.ones(240, 12)}, "none tells the classes apart"),
        ({"held_out": (torch.ones(2, 3), torch.zeros(2))}, "held_out: 3 features"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], message: str) -> None:
    x, y = clips()
    with pytest.raises(UserError, match=message):
        sparse_path(**({"features": x, "labels": y, "lambdas": 3} | change))  # type: ignore[arg-type]
    path = sparse_path(x, y, 1.0, [0.1])
    with pytest.raises(UserError, match="must be 0 to 0"):
        top_units(path, 1, 3)
    with pytest.raises(UserError, match="k=.*: must be"):
        top_units(path, 0, 0)
