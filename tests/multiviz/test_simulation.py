import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from amr.multiviz.simulation import Level, krippendorff_alpha, simulate
from amr.utils.errors import UserError

N = math.nan
# Krippendorff 2011, section D: four observers, twelve units, some missing.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]


def brute_force(ratings: NDArray[np.float64], level: Level) -> float:
    """From the definition: mean δ² of pairs within items over that of all pairs, pairs weighted as published."""
    items = [[v for v in column if not math.isnan(v)] for column in ratings.T]
    items = [item for item in items if len(item) > 1]
    pool = [v for item in items for v in item]

    def distance(c: float, k: float) -> float:
        match level:
            case "nominal":
                return float(c != k)
            case "interval":
                return (c - k) ** 2
            case "ratio":
                return 0.0 if c == k else ((c - k) / (c + k)) ** 2
            case "ordinal":
                low, high = min(c, k), max(c, k)
                between = sum(low <= v <= high for v in pool)
                return 0.0 if c == k else (between - (pool.count(c) + pool.count(k)) / 2) ** 2

    observed = sum(distance(c, k) / (len(item) - 1) for item in items for c, k in itertools.permutations(item, 2))
    expected = sum(distance(c, k) for c, k in itertools.permutations(pool, 2))
    return 1 - (observed / len(pool)) / (expected / (len(pool) * (len(pool) - 1)))


LEVELS: list[Level] = ["nominal", "ordinal", "interval", "ratio"]


@pytest.mark.parametrize(("level", "alpha"), [*zip(LEVELS, [0.743, 0.815, 0.849, 0.797], strict=True)])
def test_published_alphas(level: Level, alpha: float) -> None:
    assert krippendorff_alpha(PUBLISHED, level) == pytest.approx(alpha, abs=5e-4)


def test_published_alpha_of_two_observers_and_two_values() -> None:  # Krippendorff 2011, section A
    first, second = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert krippendorff_alpha([first, second], "nominal") == pytest.approx(0.095, abs=5e-4)


def test_published_alpha_with_none_for_missing() -> None:  # three coders, fifteen units; a widely quoted example
    a = [None, None, None, None, None, 3, 4, 1, 2, 1, 1, 3, 3, None, 3]
    b = [1, None, 2, 1, 3, 3, 4, 3, None, None, None, None, None, None, None]
    c = [None, None, 2, 1, 3, 4, 4, None, 2, 1, 1, 3, 3, None, 4]
    assert krippendorff_alpha([a, b, c], "nominal") == pytest.approx(0.691, abs=5e-4)
    assert krippendorff_alpha([a, b, c], "interval") == pytest.approx(0.811, abs=5e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_equals_the_definition(level: Level) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        ratings = rng.choice([0, 1, 2.5, 7], (4, 9))
        ratings[rng.random(ratings.shape) < 0.3] = np.nan
        before = ratings.copy()
        assert krippendorff_alpha(ratings, level) == pytest.approx(brute_force(ratings, level))
        np.testing.assert_array_equal(ratings, before)


def test_perfect_and_opposed_raters() -> None:
    assert krippendorff_alpha([[1, 2, 3], [1, 2, 3]], "interval") == 1
    assert krippendorff_alpha([[0, 1], [1, 0]], "nominal") == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("ratings", "level", "message"),
    [
        ([[1, 1], [1, 1]], "nominal", "needs some variation"),
        ([[1, 2, 3]], "nominal", "at least two raters"),
        ([1, 2, 3], "nominal", "at least two raters"),
        ([[1, N], [N, 2]], "nominal", "no item has two"),
        ([[1, 2], [3]], "nominal", "a table of numbers"),
        ([["a", "b"], ["c", "d"]], "nominal", "a table of numbers"),
        ([[1, 2], [2, 1]], "cardinal", "must be one of nominal, ordinal, interval, ratio"),
        ([[-1, 2], [2, 1]], "ratio", "ratings=-1: must be numbers >= 0"),
        ([[math.inf, 2], [2, 1]], "interval", "infinite"),
    ],
)
def test_ratings_without_an_alpha(ratings: list[list[float]], level: Level, message: str) -> None:
    with pytest.raises(UserError, match=message):
        krippendorff_alpha(ratings, level)


def page(n: int = 90) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """A first stage without information, a second with some, a third with all that is left."""
    rng = np.random.default_rng(0)
    predicted = np.arange(n) % 3
    one_hot = np.eye(3)[predicted]
    blocks = {"U": rng.normal(size=(n, 2)), "U+C": one_hot[:, :1] * 3 + rng.normal(size=(n, 1))}
    return {**blocks, "+P": one_hot * 4 + rng.normal(size=(n, 3))}, predicted


def test_students_learn_what_the_page_shows() -> None:
    blocks, predicted = page()
    found = simulate(blocks, predicted)
    assert list(found) == ["U", "U+C", "+P"]
    assert found["U"].gain_interval[0] < 0 < found["U"].gain_interval[1]
    assert found["U+C"].gain_interval[0] > 0
    assert found["+P"].gain_interval[0] > 0.3
    assert found["U"].mean < found["U+C"].mean < found["+P"].mean
    assert found["+P"].mean > 0.9
    assert found["+P"].alpha > 0.85 > found["U"].alpha
    for stage in found.values():
        assert len(stage.accuracies) == len(stage.shuffled) == 5
        assert stage.shuffled.mean() == pytest.approx(1 / 3, abs=0.12)
        assert stage.mean == pytest.approx(stage.accuracies.mean())
        assert stage.sd == pytest.approx(np.std(stage.accuracies, ddof=1))
        half = 2.7764 * stage.sd * math.sqrt(1 / 5 + 1)  # t of 4 degrees of freedom, as many test as training clips
        assert stage.interval == pytest.approx((stage.mean - half, stage.mean + half), abs=1e-4)
        assert stage.gain == pytest.approx((stage.accuracies - stage.shuffled).mean())


def test_a_stage_sees_what_came_before_and_seeds_repeat() -> None:
    blocks, predicted = page(60)
    rng = np.random.default_rng(1)
    found = simulate({"+P": blocks["+P"], "noise": rng.normal(size=(60, 1))}, predicted, [3, 1, 4, 5, 9])
    assert found["noise"].gain_interval[0] > 0.2
    again = simulate({"+P": blocks["+P"]}, predicted + 7, [3, 1, 4, 5, 9])
    np.testing.assert_array_equal(found["+P"].accuracies, again["+P"].accuracies)
    np.testing.assert_array_equal(found["+P"].shuffled, again["+P"].shuffled)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 4}, "at least 5"),
        ({"seeds": [1, 1, 1, 1, 1]}, "1 different"),
        ({"train_fraction": 1.0}, "between 0 and 1"),
        ({"stages": {}}, "at least one"),
        ({"stages": {"U": np.ones((3, 2))}}, "'U' has shape \\(3, 2\\)"),
        ({"stages": {"U": np.full((90, 2), N)}}, "expected finite"),
        ({"predicted": np.zeros(90)}, "two classes or more"),
        ({"predicted": np.arange(90) == 0}, "2 clips in each part"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], message: str) -> None:
    blocks, predicted = page()
    with pytest.raises(UserError, match=message):
        simulate(**({"stages": blocks, "predicted": predicted} | change))  # type: ignore[arg-type]
