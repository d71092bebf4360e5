"""The conflict test on heads that take one modality's word, and its partners."""

from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from amr.evaluation.decisions.conflict import conflicts, partners_of_other_classes
from amr.evaluation.metrics import measure_encodings
from amr.utils.errors import UserError
from tests.evaluation.decisions.heads import clips, known

LABELS = torch.arange(24) % 4
CODE = F.one_hot(LABELS, 4).float()


def values(model, data) -> dict[str, float]:  # type: ignore[no-untyped-def]
    return {row.name: row.value for row in measure_encodings(model, data, resamples=20)}


@pytest.mark.parametrize(
    "labels",
    [[0, 1], [0, 0, 0, 0, 0, 1], [2, 2, 5, 5, 5, 0], [0] * 30 + [1] * 2 + [2]],
)
def test_partners_are_of_another_class_and_each_is_as_likely(labels: list[int]) -> None:
    truth = torch.tensor(labels)
    partners = partners_of_other_classes(truth, repeats=800, seed=1)
    assert partners.shape == (800, len(labels))
    assert bool((truth[partners] != truth).all())
    for clip in (0, len(labels) - 1):
        others = [other for other in range(len(labels)) if labels[other] != labels[clip]]
        counts = Counter(partners[:, clip].tolist())
        assert set(counts) == set(others)
        assert all(abs(counts[other] / 800 - 1 / len(others)) < 0.07 for other in others)
    assert torch.equal(partners, partners_of_other_classes(truth, repeats=800, seed=1))
    assert not torch.equal(partners, partners_of_other_classes(truth, repeats=800, seed=2)) or len(labels) == 2


def test_one_class_has_no_conflict() -> None:
    model = known(lambda a, b: a + b, 4, a=4, b=4)
    with pytest.raises(UserError, match="conflict: every clip is of class 3; must be clips of at least 2 classes"):
        conflicts(model, {"a": CODE, "b": CODE}, torch.full((24,), 3))
    assert not any(name.startswith("conflict") for name in values(model, clips(torch.full((24,), 3), a=CODE, b=CODE)))
    with pytest.raises(UserError, match="conflict: the model has 1 modality"):
        conflicts(known(lambda a: a, 4, a=4), {"a": CODE}, LABELS)


@pytest.mark.parametrize(("winner", "loser"), [("a", "b"), ("b", "a")])
def test_a_head_that_ignores_a_modality_loses_every_conflict_of_it(winner: str, loser: str) -> None:
    model = known(lambda a, b: {"a": a, "b": b}[winner] * 5, 4, a=4, b=4)
    found = values(model, clips(LABELS, a=CODE, b=CODE))
    assert found[f"conflict/{winner}"] == found[f"conflict_rest/{loser}"] == found[f"conflict_share/{winner}"] == 1
    assert found[f"conflict/{loser}"] == found[f"conflict_rest/{winner}"] == found[f"conflict_share/{loser}"] == 0
    assert found["conflict_neither"] == found["conflict_neither/a"] == found["conflict_neither/b"] == 0
    for condition in (*(f"class={c}" for c in range(4)), "right", "confidence=0.75-1"):
        assert found[f"conflict@{condition}/{winner}"] == 1
        assert found[f"conflict@{condition}/{loser}"] == found[f"conflict_neither@{condition}/{winner}"] == 0
    assert "conflict@confidence=0.5-0.75/a" not in found  # every clip is surer


def test_a_third_class_is_neither() -> None:
    """A head that says class 3 unless both agree."""
    model = known(lambda a, b: a * b + torch.tensor([0, 0, 0, 0.5]), 4, a=4, b=4)
    labels = torch.arange(24) % 3
    code = F.one_hot(labels, 4).float()
    found = values(model, clips(labels, a=code, b=code))
    assert found["acc"] == found["conflict_neither"] == found["conflict_neither@class=1/a"] == 1
    assert found["conflict/a"] == found["conflict_rest/b"] == 0
    assert "conflict_share/a" not in found  # no decision to share
    assert "conflict@class=3/a" not in found  # no clip


def test_three_modalities_against_a_loop() -> None:
    """m of clip i with all others of clip j, by hand; a majority outvotes each alone."""
    generator = torch.Generator().manual_seed(0)
    encodings = {name: CODE + 0.4 * torch.randn(24, 4, generator=generator) for name in "abc"}
    model = known(lambda a, b, c: 1.3 * a + b + 0.8 * c, 4, a=4, b=4, c=4)
    found = conflicts(model, encodings, LABELS, repeats=3, seed=5, batch=7)
    for m, name in enumerate("abc"):
        for repeat in range(3):
            for i in range(24):
                j = int(found.partners[repeat, i])
                mixed = {other: e[[i if other == name else j]] for other, e in encodings.items()}
                said = int(model.head(mixed).argmax())
                assert bool(found.wins[m, repeat, i]) == (said == int(LABELS[i]))
                assert bool(found.rest[m, repeat, i]) == (said == int(LABELS[j]))
                assert bool(found.neither[m, repeat, i]) == (said not in (int(LABELS[i]), int(LABELS[j])))
    rows = values(model, clips(LABELS, **encodings))
    assert sum(rows[f"conflict_share/{name}"] for name in "abc") == pytest.approx(1)
    for name in "abc":
        parts = [rows[f"{kind}/{name}"] for kind in ("conflict", "conflict_rest", "conflict_neither")]
        assert sum(parts) == pytest.approx(1)
        assert rows[f"conflict/{name}"] < rows[f"conflict_rest/{name}"]
        by_class = [rows[f"conflict@class={c}/{name}"] for c in range(4)]  # of six clips each
        assert sum(by_class) / 4 == pytest.approx(rows[f"conflict/{name}"])


def test_only_pairs_that_are_right_and_by_confidence() -> None:
    """Half the clips are told wrong by both modalities; the breakdowns against sums over pairs."""
    truth = torch.where(torch.arange(24) < 12, LABELS, (LABELS + 1) % 4)
    strength = torch.linspace(0.2, 3, 24)[:, None]
    model = known(lambda a, b: 2 * a + b, 4, a=4, b=4)
    encodings = {"a": CODE * strength, "b": CODE * strength}
    rows = values(model, clips(truth, **encodings))
    found = conflicts(model, encodings, truth)
    confidence = model.head(encodings).double().softmax(1).amax(1)
    hits: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for repeat in range(10):
        for i in range(24):
            j = int(found.partners[repeat, i])
            lower = min(float(confidence[i]), float(confidence[j]))
            names = [next(f"confidence={b / 4:g}-{b / 4 + 0.25:g}" for b in range(4) if lower < b / 4 + 0.25)]
            names += ["right"] if i < 12 and j < 12 else []
            counts.update(names)
            hits.update(names * bool(found.wins[0, repeat, i]))
    assert len(counts) > 3
    for name, count in counts.items():
        assert rows[f"conflict@{name}/a"] == pytest.approx(hits[name] / count), name
    assert rows["conflict@right/a"] > rows["conflict/a"]
