"""The sparse path's time against sklearn's saga, each run until it has the same objective.

Features are ReLU units that share eight factors, classes depend on a tenth of them. For each λ, as a path goes, the
reference is `sparse_path` at a violation of 1e-6 λ; both are then timed from their own start to within `--gap` of its
objective (relative): ours over falling tolerances, saga over growing numbers of epochs, warm-started on its last
solution so that only its epochs count, and given up at `--cap` seconds a λ. Both get standardised features in double
precision, one thread each, and seconds are of CPU: what else runs does not count. Prints a table and one JSON line;
where saga was given up the ratio is a lower bound, and says so.

    python -m benchmarks.sparse_path [--clips 20000] [--units 512] [--classes 10] [--cap 60]
"""

import argparse
import time
import warnings

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from amr.multiviz.prediction import SparsePath, sparse_path
from benchmarks.common import machine, report

ALPHA = 0.95


def made(clips: int, units: int, classes: int) -> tuple[Tensor, Tensor]:
    """Standardised features (N, D) and labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(clips, 8, generator=generator) @ torch.randn(8, units, generator=generator) / 8**0.5
    x = torch.relu(torch.randn(clips, units, generator=generator) + factors).double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    weight = torch.randn(classes, units, generator=generator) * (torch.rand(units, generator=generator) < 0.1)
    gumbel = -torch.log(-torch.log(torch.rand(clips, classes, generator=generator)))
    return x, (0.3 * x @ weight.t().double() + gumbel).argmax(1)


def objective(x: Tensor, y: Tensor, w: Tensor, b: Tensor, penalty: float) -> float:
    """Mean cross-entropy + λ(α‖W‖₁ + (1 − α)/2 ‖W‖²)."""
    size = ALPHA * w.abs().sum() + (1 - ALPHA) / 2 * w.square().sum()
    return float(F.cross_entropy(x @ w.t() + b, y) + penalty * size)


def values(path: SparsePath, x: Tensor, y: Tensor) -> list[float]:
    """The objective at each λ."""
    parts = zip(path.coefficients, path.intercepts, path.lambdas.tolist(), strict=True)
    return [objective(x, y, w, b, penalty) for w, b, penalty in parts]


def saga(x: Tensor, y: Tensor, penalty: float, goal: float, cap: float) -> tuple[float, float]:
    """Seconds in saga until its objective is at most `goal`, or after `cap`; and the objective."""
    model = LogisticRegression(
        solver="saga", l1_ratio=ALPHA, C=1 / (len(x) * penalty), tol=1e-12, warm_start=True, random_state=0
    )
    spent, value, epochs = 0.0, float("inf"), 2
    while spent < cap and value > goal:
        model.set_params(max_iter=epochs)
        start = time.process_time()
        model.fit(x.numpy(), y.numpy())
        spent += time.process_time() - start
        value = objective(x, y, torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_), penalty)
        epochs *= 2
    return spent, value


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--units", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--lambdas", type=int, default=3, help="how many, from a third to a thirtieth of the largest")
    parser.add_argument("--gap", type=float, default=1e-6, help="objective above the best, as a share of it")
    parser.add_argument("--cap", type=float, default=60, help="seconds of saga a λ")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    x, y = made(options.clips, options.units, options.classes)
    one_hot = F.one_hot(y, options.classes).double()
    largest = float((x.t() @ (one_hot - one_hot.mean(0)) / len(x)).abs().max()) / ALPHA
    lambdas = (largest * torch.logspace(-0.5, -1.5, options.lambdas, dtype=torch.float64)).tolist()
    for tol in (1e-2, 1e-3, 1e-4, 1e-5):  # the loosest that is enough for every λ
        start = time.process_time()
        path = sparse_path(x, y, ALPHA, lambdas, tol=tol)
        ours = time.process_time() - start
        if tol == 1e-2:
            best = values(sparse_path(x, y, ALPHA, lambdas, tol=1e-6), x, y)
        found = values(path, x, y)
        if all(f <= b * (1 + options.gap) for f, b in zip(found, best, strict=True)):
            break
    theirs, capped = 0.0, []
    for penalty, b in zip(lambdas, best, strict=True):
        seconds, value = saga(x, y, penalty, b * (1 + options.gap), options.cap)
        theirs += seconds
        if value > b * (1 + options.gap):
            capped.append(round(value / b - 1, 9))
        print(f"λ {penalty:.5f}: saga {seconds:.1f} s, objective above the best by {value / b - 1:.1e}", flush=True)
    report(
        {
            "benchmark": "sparse_path",
            "machine": machine("cpu"),
            "size": f"{options.clips} x {options.units} x {options.classes}",
            "lambdas": len(lambdas),
            "nonzeros": path.nonzeros.tolist(),
            "gap": options.gap,
            "tol": tol,
            "ours_s": round(ours, 2),
            "saga_s": round(theirs, 2),
            "ratio": round(theirs / ours, 1),
            "saga_given_up_at": capped,
        }
    )


if __name__ == "__main__":
    main()
