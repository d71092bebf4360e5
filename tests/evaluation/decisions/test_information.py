"""Partial information decomposition: distributions whose terms are known, and a generic optimiser's minimum."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import null_space
from scipy.optimize import minimize
from torch import Tensor

from amr.evaluation.decisions import information as pid
from amr.evaluation.decisions.information import decompose, information, information_rows
from amr.evaluation.use import probe_classes
from amr.model.encoded import Encoded
from amr.utils.errors import UserError
from tests.evaluation.planted import clips, planted

AND_ALONE = 1.5 - 0.75 * math.log2(3)  # H(1/4) − ½ · 1 bit: with a = 0 the output is known, with a = 1 it is a coin
H_QUARTER = 2 - 0.75 * math.log2(3)


def gate(function: Callable[[int, int], int]) -> Tensor:
    """Two fair coins and what a gate makes of them, (1, 2, 2, 2)."""
    table = torch.zeros(1, 2, 2, 2)
    for a in (0, 1):
        for b in (0, 1):
            table[0, a, b, function(a, b)] = 1 / 4
    return table


def copies() -> Tensor:
    table = torch.zeros(1, 2, 2, 2)
    table[0, 0, 0, 0] = table[0, 1, 1, 1] = 1 / 2
    return table


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (gate(lambda a, b: a & b), [0, 0, AND_ALONE, H_QUARTER - AND_ALONE]),  # 0.311 and 0.5 bits
        (gate(lambda a, b: a ^ b), [0, 0, 0, 1]),
        (gate(lambda a, b: a), [1, 0, 0, 0]),
        (gate(lambda a, b: b), [0, 1, 0, 0]),
        (gate(lambda a, b: 0), [0, 0, 0, 0]),
        (copies(), [0, 0, 1, 0]),
    ],
    ids=["and", "xor", "first", "second", "constant", "copies"],
)
def test_gates(table: Tensor, expected: list[float]) -> None:
    assert decompose(table)[0].tolist() == pytest.approx([*expected, sum(expected)], abs=1e-9)
    assert H_QUARTER - AND_ALONE == 0.5


def test_both_halves_of_a_pair_are_unique() -> None:
    """The target is the pair of two fair coins: each knows its own coin, nothing else (COPY)."""
    table = torch.zeros(1, 2, 2, 4)
    for a in (0, 1):
        for b in (0, 1):
            table[0, a, b, 2 * a + b] = 1 / 4
    assert decompose(table)[0].tolist() == pytest.approx([1, 1, 0, 0, 2], abs=1e-9)


def test_a_noisier_copy_has_nothing_unique() -> None:
    """A channel that is another one's output with more noise (Blackwell): all it knows is redundant."""
    noise, more = 0.1, 0.2
    table = torch.zeros(1, 2, 2, 2)
    for y in (0, 1):
        for a in (0, 1):
            for b in (0, 1):
                table[0, a, b, y] = (1 - noise if a == y else noise) * (1 - more if a == b else more) / 2

    def entropy(p: float) -> float:
        return -p * math.log2(p) - (1 - p) * math.log2(1 - p)

    weaker = 1 - entropy(noise * (1 - more) + more * (1 - noise))
    assert decompose(table)[0].tolist() == pytest.approx(
        [1 - entropy(noise) - weaker, 0, weaker, 0, 1 - entropy(noise)], abs=1e-6
    )


def mutual(joint: np.ndarray) -> float:
    """I(Y; X₁X₂) in bits of p(x₁, x₂, y), from its definition."""
    product = joint.sum(2, keepdims=True) * joint.sum((0, 1), keepdims=True)
    kept = joint > 0
    return float((joint[kept] * np.log2(joint[kept] / np.broadcast_to(product, joint.shape)[kept])).sum())


def smallest(joint: np.ndarray) -> float:
    """Least I_q(Y; X₁X₂) over the q with the pairs' margins of p, by sequential quadratic programming."""
    a, b, c = joint.shape
    sums = []
    for y in range(c):
        for x in range(a):
            sums.append(np.array([[[i == x and k == y for k in range(c)] for _ in range(b)] for i in range(a)]).ravel())
        for x in range(b):
            sums.append(np.array([[[j == x and k == y for k in range(c)] for j in range(b)] for _ in range(a)]).ravel())
    free = null_space(np.array(sums, dtype=float))  # the directions that leave the margins as they are

    def value(t: np.ndarray) -> tuple[float, np.ndarray]:
        q = np.maximum(joint.ravel() + free @ t, 1e-13).reshape(joint.shape)
        slope = np.log2(q / q.sum(2, keepdims=True) / q.sum((0, 1)))  # but for a constant, which no direction sees
        return mutual(q), free.T @ slope.ravel()

    sides = {"type": "ineq", "fun": lambda t: joint.ravel() + free @ t, "jac": lambda t: free}
    start = np.zeros(free.shape[1])
    found = minimize(value, start, jac=True, method="SLSQP", constraints=sides, options={"maxiter": 500, "ftol": 1e-12})
    assert found.success, found.message
    return float(found.fun)


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 2, 2), (2, 3, 3)])
def test_the_minimum_is_a_generic_optimisers(shape: tuple[int, int, int]) -> None:
    joint = np.random.default_rng(sum(shape)).dirichlet(np.full(math.prod(shape), 0.7)).reshape(shape)
    first, second, redundant, synergistic, total = decompose(torch.from_numpy(joint)[None])[0].tolist()
    union = smallest(joint)
    alone = [mutual(joint.sum(axis, keepdims=True)) for axis in (1, 0)]
    assert first == pytest.approx(union - alone[1], abs=2e-5)
    assert second == pytest.approx(union - alone[0], abs=2e-5)
    assert redundant == pytest.approx(sum(alone) - union, abs=2e-5)
    assert synergistic == pytest.approx(mutual(joint) - union, abs=2e-5)
    assert total == pytest.approx(mutual(joint), abs=1e-9)


def test_invariances() -> None:
    """Names of states say nothing, a state that is split by a coin says nothing, variables may be swapped."""
    tables = torch.rand(4, 3, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    terms = decompose(tables)
    assert bool((terms >= -1e-9).all())
    torch.testing.assert_close(terms[:, :4].sum(1), terms[:, 4])
    torch.testing.assert_close(decompose(7 * tables[:, [2, 0, 1]][:, :, :, [1, 2, 0]]), terms, atol=1e-6, rtol=0)
    torch.testing.assert_close(decompose(tables.transpose(1, 2))[:, [1, 0, 2, 3, 4]], terms, atol=1e-6, rtol=0)
    split = torch.cat([tables[:, :2], 0.3 * tables[:, 2:], 0.7 * tables[:, 2:]], dim=1)
    torch.testing.assert_close(decompose(split), terms, atol=1e-6, rtol=0)
    torch.testing.assert_close(decompose(tables[2:3]), terms[2:3], atol=1e-6, rtol=0)  # alone as in company


def noisy(count: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Two independent readings of a uniform class, right 8 and 5 times in ten, else any class."""
    y = torch.randint(classes, (count,), generator=generator)
    readings = [
        torch.where(
            torch.rand(count, generator=generator) < part, y, torch.randint(classes, (count,), generator=generator)
        )
        for part in (0.8, 0.5)
    ]
    return readings[0], readings[1], y


def test_intervals_cover_the_truth_and_the_bias_is_taken_off() -> None:
    sizes = torch.eye(3) * torch.tensor([0.8, 0.5])[:, None, None] + torch.tensor([0.2, 0.5])[:, None, None] / 3
    truth = decompose(torch.einsum("ac,bc->abc", *sizes)[None])[0]
    generator, covered, values = torch.Generator().manual_seed(0), torch.zeros(5), []
    for _ in range(60):
        found = information(*noisy(500, 3, generator), resamples=100)
        assert found is not None
        terms = [*found.unique, found.redundant, found.synergistic, found.total]
        covered += torch.tensor(
            [t.low - 1e-6 <= x <= t.high + 1e-6 for t, x in zip(terms, truth.tolist(), strict=True)]
        )
        values.append([t.value for t in terms])
    assert covered.min() / 60 > 0.85  # of 0.95; the second's unique information is 0, an end of its range
    torch.testing.assert_close(torch.tensor(values).double().mean(0), truth, atol=0.02, rtol=0)


@pytest.mark.parametrize(("count", "classes", "groups"), [(200, 25, 3), (2000, 25, 6), (200, 2, 2)])
def test_shuffled_labels_tell_nothing(count: int, classes: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(1)
    first, second, y = noisy(count, classes, generator)
    found = information(first, second, y[torch.randperm(count, generator=generator)], resamples=50)
    assert found is not None
    assert found.groups == groups
    assert found.entropy == pytest.approx(math.log2(groups), abs=0.05)
    for term in (*found.unique, found.redundant, found.synergistic, found.total):
        assert term.value < 0.06


def test_too_few_clips_or_too_many_states() -> None:
    bits = torch.arange(40) % 2
    assert information(bits[:39], bits[:39], bits[:39]) is None
    assert information(bits, bits, 0 * bits) is None
    many = torch.arange(40) % 20
    with pytest.raises(UserError, match="variables of .20, 20. states: must have fewer for 40 clips"):
        information(many, many, bits, classes=(False, False))
    assert pid.most_groups(39) == 1
    assert pid.most_groups(40) == 2
    assert pid.cluster_states(200, 2) == 4  # 4 · 4 · 2 cells of 6 clips


TRUTH: dict[str, list[float]] = {
    "xor": [0, 0, 0, 1],
    "and": [0, 0, AND_ALONE, 0.5],
    "first": [1, 0, 0, 0],
    "copies": [0, 0, 1, 0],
}


@pytest.mark.parametrize("kind", TRUTH)
def test_encodings_with_a_planted_gate(kind: str) -> None:
    """k-means finds the coins, and the rows have the gate's terms, of the label and of a model that is always right."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.arange(320) % 2, torch.arange(320) // 2 % 2
    b = a if kind == "copies" else b
    y = {"xor": a ^ b, "and": a & b}.get(kind, a)
    values = {
        name: (2 * x - 1 + 0.1 * torch.randn(320, generator=generator)).tolist() for name, x in (("a", a), ("b", b))
    }
    odds = {"xor": lambda e: -e["a"] * e["b"], "and": lambda e: e["a"] + e["b"] - 1}.get(kind, lambda e: e["a"])
    data = clips(y.tolist(), **values)
    answers = {m: probe_classes(e, data.labels, e) for m, e in data.encodings.items()}
    rows = {row.name: row for row in information_rows(planted(odds, "a", "b"), data, data, answers, resamples=50)}
    for about in ("label", "prediction"):
        found = [rows[f"pid_clusters_{about}_unique/{m}"].value for m in "ab"]
        found += [rows[f"pid_clusters_{about}_{term}/a+b"].value for term in ("redundant", "synergistic")]
        assert found == pytest.approx(TRUTH[kind], abs=0.03)
        total = rows[f"pid_clusters_{about}_total/a+b"]
        assert total.value == pytest.approx(sum(TRUTH[kind]), abs=0.03)
        assert total.low <= total.value <= total.high
        assert total.clips == 320
    assert rows["pid_clusters_label_entropy/a+b"].value == pytest.approx(H_QUARTER if kind == "and" else 1)
    if kind in ("first", "copies"):  # a probe reads these; of XOR it reads nothing, and of AND too little
        assert rows["pid_label_unique/a"].value == pytest.approx(TRUTH[kind][0], abs=0.03)
        assert rows["pid_label_redundant/a+b"].value == pytest.approx(TRUTH[kind][2], abs=0.03)


def test_three_modalities_are_each_against_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    coins = {name: torch.randint(2, (400,), generator=generator) for name in "abc"}
    y = coins["a"]
    values = {name: (2.0 * x - 1).tolist() for name, x in coins.items()}
    data = clips(y.tolist(), **(values | {"b": values["a"]}))
    rows = {r.name: r.value for r in information_rows(planted(lambda e: e["a"], *"abc"), data, data, {}, resamples=20)}
    for kind in ("pid_label", "pid_clusters_prediction"):
        assert rows[f"{kind}_redundant/a"] == pytest.approx(1, abs=0.02)
        assert rows[f"{kind}_redundant/b"] == pytest.approx(1, abs=0.02)
        assert rows[f"{kind}_unique/c"] == rows[f"{kind}_redundant/c"] == pytest.approx(0, abs=0.02)


def test_few_clips_and_a_constant_prediction_have_no_row() -> None:
    bits = (torch.arange(80) % 2).tolist()
    data = clips(bits, a=[2.0 * x - 1 for x in bits], b=[0.5] * 80)
    model = planted(lambda e: 0 * e["a"] + 1, "a", "b")
    answers = {m: probe_classes(e, data.labels, e) for m, e in data.encodings.items()}
    names = {row.measure for row in information_rows(model, data, data, answers, resamples=10)}
    assert "pid_label_unique" in names
    assert not [name for name in names if "prediction" in name]
    assert information_rows(model, data.part(range(39)), data, {m: x[:39] for m, x in answers.items()}) == []


def test_a_ratio_of_unique_information() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(2, (600,), generator=generator) for _ in range(2))
    label = 2 * a + b  # each modality has a bit of its own
    data = clips(label.tolist(), a=(2.0 * a - 1).tolist(), b=(2.0 * b - 1).tolist())
    bits = pid.unique_information(data, data, variables="clusters")
    assert list(bits.values()) == pytest.approx([1, 1], abs=0.02)
    assert list(pid.unique_ratio(bits).values()) == pytest.approx([0.5, 0.5], abs=0.01)
    assert pid.unique_ratio({"a": 3.0, "b": 0.0}) == pytest.approx({"a": 0.9, "b": 0.1})
    assert pid.unique_ratio({"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}
    with pytest.raises(UserError, match=r"least=0.6: must be above 0 and at most 0.5"):
        pid.unique_ratio(bits, least=0.6)
    with pytest.raises(UserError, match="variables='atoms': must be one of classes, clusters"):
        pid.unique_information(data, data, variables="atoms")  # type: ignore[arg-type]
    few = Encoded(data.ids[:9], data.labels[:9], {m: e[:9] for m, e in data.encodings.items()})
    with pytest.raises(UserError, match="9 clips: must be at least 40"):
        pid.unique_information(few, data)
    with pytest.raises(UserError, match="needs two modalities, and training clips of two classes"):
        pid.unique_information(data, data.part(range(1)))
