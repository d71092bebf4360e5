"""Simulated user: can a student tell from the explanations alone what the model says?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from amr.evaluation.statistics import t_quantile
from amr.utils.errors import UserError

Level = Literal["nominal", "ordinal", "interval", "ratio"]
Array = NDArray[Any]
PENALTIES = (0.001, 0.01, 0.1, 1.0)  # the student's C, chosen by cross-validation on its own clips


@dataclass(frozen=True)
class Stage:
    """How well a student predicts the model's output from the explanations up to one stage.

    Attributes:
        accuracies: Share of held-out clips whose output class it names, (S,), in [0, 1], one per seed.
        shuffled: The same when explanations are dealt to other clips, (S,).
        mean: Mean of `accuracies`.
        sd: Their standard deviation (n − 1).
        interval: 95 % interval of the mean, (low, high).
        gain: Mean of accuracies − shuffled.
        gain_interval: 95 % interval of it; above 0, the explanations tell something.
        alpha: Krippendorff's alpha (nominal) among the seeds' students, over clips that two or more of them were asked
            about; NaN if there are none or all give one answer.
    """

    accuracies: Array
    shuffled: Array
    mean: float
    sd: float
    interval: tuple[float, float]
    gain: float
    gain_interval: tuple[float, float]
    alpha: float


def krippendorff_alpha(ratings: ArrayLike | Sequence[Sequence[float | None]], level: Level = "nominal") -> float:
    """Agreement of raters: 1 is perfect, 0 what chance gives, negative worse.

    α = 1 − D_o / D_e (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"): with o_ck the coincidences of
    the values c and k, of which an item with m ratings gives 1/(m − 1) for each ordered pair, n_c = Σ_k o_ck and
    n = Σ_c n_c, D_o = Σ o_ck δ²_ck / n and D_e = Σ n_c n_k δ²_ck / (n (n − 1)). δ² is 1 for unequal values (nominal),
    (Σ_{g=c..k} n_g − (n_c + n_k)/2)² (ordinal), (c − k)² (interval) or ((c − k)/(c + k))² (ratio).

    Args:
        ratings: Values, (raters, items); None or NaN where a rater was not asked. Items with fewer than two ratings
            do not count.
        level: Level of measurement of the values.

    Returns:
        α, at most 1.

    Raises:
        UserError: The level is unknown, `ratings` is not a table of numbers, fewer than two raters, no item has two
            ratings, all paired ratings are equal (α is then 0/0), or a ratio is negative.
    """
    if level not in get_args(Level):
        raise UserError(f"level={level!r}: must be one of {', '.join(get_args(Level))}")
    try:
        table = np.array(ratings, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError("ratings: must be a table of numbers (raters, items), with None or NaN for missing") from None
    if table.ndim != 2 or len(table) < 2:
        raise UserError(f"ratings: shape {table.shape}; expected (raters, items) with at least two raters")
    if np.isinf(table).any():
        raise UserError("ratings: some are infinite")
    table = table[:, (~np.isnan(table)).sum(0) >= 2]
    if not table.size:
        raise UserError("ratings: no item has two of them, so nothing can be compared")
    values, codes = np.unique(table[~np.isnan(table)], return_inverse=True)
    if len(values) == 1:
        raise UserError(f"ratings: all are {values[0]:g}; alpha needs some variation")
    if level == "ratio" and values[0] < 0:
        raise UserError(f"ratings={values[0]:g}: must be numbers >= 0 for level ratio")
    counts = np.zeros((table.shape[1], len(values)))  # ratings of each item with each value
    np.add.at(counts, (np.nonzero(~np.isnan(table))[1], codes), 1)
    weighted = counts / (counts.sum(1, keepdims=True) - 1)
    coincidences = weighted.T @ counts - np.diag(weighted.sum(0))
    totals = coincidences.sum(1)
    distance = _distances(values, totals, level)
    observed = (coincidences * distance).sum()
    expected = (np.outer(totals, totals) * distance).sum() / (totals.sum() - 1)
    return float(1 - observed / expected)


def simulate(
    stages: Mapping[str, ArrayLike],
    predicted: ArrayLike,
    seeds: int | Sequence[int] = 5,
    train_fraction: float = 0.5,
) -> dict[str, Stage]:
    """Students that see explanations, and nothing else, learn to name the model's output on other clips.

    After the user study of Liang et al. 2023 (MultiViz, section 4.1), with a classifier in the user's place. Each seed
    splits the clips again, the classes evenly. A stage's student sees its own block of features and those of all stages
    before it: L2-penalised multinomial logistic regression (sklearn) on standardised features, its penalty chosen by
    3-fold cross-validation on its training clips. The control deals the same explanations to other clips.

    Intervals are Student's t over seeds. As the splits share clips, the variance of the mean is taken as
    sd² (1/S + n_test/n_train) (Nadeau, Bengio 2003).

    Args:
        stages: Features that each stage adds to the page, (N, d), from the first to the last; e.g. U, U+C, +R_local,
            +R_global, +P.
        predicted: The model's output class of each clip, (N,).
        seeds: How many, or which; at least 5.
        train_fraction: Share of the clips that students learn from, in (0, 1).

    Returns:
        What came of each stage, in their order.

    Raises:
        UserError: Shapes do not fit, values are not finite, an option is out of its range, or there are fewer than two
            output classes, or one with fewer than 2 clips in a part of the split.
    """
    classes, target, sizes = np.unique(np.asarray(predicted).reshape(-1), return_inverse=True, return_counts=True)
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    if len(chosen) < 5:
        raise UserError(f"seeds: {len(chosen)} different ones; must be at least 5")
    if not 0 < train_fraction < 1:
        raise UserError(f"train_fraction={train_fraction}: must be between 0 and 1")
    if len(classes) < 2 or sizes.min() * min(train_fraction, 1 - train_fraction) < 2:
        raise UserError(
            f"predicted: {sizes.tolist()} clips per class; must be two classes or more, with 2 clips in each part"
        )
    if not stages:
        raise UserError("stages: must be at least one")
    blocks = {name: np.asarray(block, dtype=np.float64) for name, block in stages.items()}
    for name, block in blocks.items():
        if block.ndim != 2 or len(block) != len(target) or not block.size or not np.isfinite(block).all():
            raise UserError(f"stages: {name!r} has shape {block.shape}; expected finite numbers ({len(target)}, d)")
    count = round(train_fraction * len(target))
    found, seen = {}, np.empty((len(target), 0))
    for name, block in blocks.items():
        seen = np.concatenate([seen, block], axis=1)
        right, control, answers = [], [], np.full((len(chosen), len(target)), np.nan)
        for i, seed in enumerate(chosen):
            train, test = train_test_split(np.arange(len(target)), train_size=count, stratify=target, random_state=seed)
            answers[i, test] = _answers(seen, target, train, test, seed)
            right.append(np.mean(answers[i, test] == target[test]))
            dealt = seen[np.random.default_rng(seed).permutation(len(seen))]
            control.append(np.mean(_answers(dealt, target, train, test, seed) == target[test]))
        found[name] = _stage(np.array(right), np.array(control), answers, (len(target) - count) / count)
    return found


def _answers(features: Array, target: Array, train: Array, test: Array, seed: int) -> Array:
    """Predictions for the `test` rows by a student that has learned from the `train` rows."""
    folds = StratifiedKFold(min(3, int(np.bincount(target[train]).min())), shuffle=True, random_state=seed)
    student = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    student = GridSearchCV(student, {"logisticregression__C": PENALTIES}, cv=folds)
    answers: Array = student.fit(features[train], target[train]).predict(features[test])
    return answers


def _stage(right: Array, control: Array, answers: Array, ratio: float) -> Stage:
    """Summary over seeds; `ratio` is that of test to training clips."""
    try:
        alpha = krippendorff_alpha(answers, "nominal")
    except UserError:  # no clip was asked about twice, or all answers are the same
        alpha = math.nan
    return Stage(
        accuracies=right,
        shuffled=control,
        mean=float(right.mean()),
        sd=float(right.std(ddof=1)),
        interval=_interval(right, ratio),
        gain=float((right - control).mean()),
        gain_interval=_interval(right - control, ratio),
        alpha=alpha,
    )


def _interval(values: Array, ratio: float) -> tuple[float, float]:
    """95 % interval of the mean over splits that share clips."""
    half = t_quantile(len(values) - 1) * values.std(ddof=1) * math.sqrt(1 / len(values) + ratio)
    return float(values.mean() - half), float(values.mean() + half)


def _distances(values: Array, totals: Array, level: Level) -> Array:
    """δ² of each pair of values, (V, V)."""
    first, second = values[:, None], values[None]
    match level:
        case "nominal":
            return np.not_equal(first, second).astype(np.float64)
        case "interval":
            return (first - second) ** 2
        case "ratio":
            total = first + second
            return ((first - second) / np.where(total == 0, 1, total)) ** 2
        case "ordinal":
            middle = np.cumsum(totals) - totals / 2  # ratings below a value, and half of its own
            return (middle[:, None] - middle[None]) ** 2
