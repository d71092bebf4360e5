from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from amr.fusion import Concat
from amr.model import FusionModel
from amr.multiviz.errors import classify_errors, compare_selections, error_units, select_clips
from amr.utils.errors import UserError
from tests.toy import Linear

CLASSES, NAMES = 4, ("first", "second", "third")


class Paired(Concat):
    """Additive, but for a strong vote against the class of two encodings that carry the mark of a forbidden pair."""

    def __init__(self, dims: Mapping[str, int], num_classes: int) -> None:
        super().__init__(dims, num_classes)
        self.strength = 0.0

    def classify(self, fused: Tensor) -> Tensor:
        additive = super().classify(fused)
        pair = fused[:, CLASSES] * fused[:, 2 * CLASSES + 1]  # the last entries of the first two encodings
        return additive - self.strength * pair[:, None] * nn.functional.one_hot(additive.argmax(1), CLASSES)


def planted(size: int, n: int = 160, tokens: bool = False) -> tuple[FusionModel, dict[str, Tensor], Tensor]:
    """Encodings that name the class, and a mark that is 0; a head that adds them up. No prediction is wrong."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % CLASSES
    names = NAMES[:size]
    encodings = {}
    for m in names:
        e = torch.zeros(n, CLASSES + 1)
        e[:, :CLASSES] = 2 * torch.eye(CLASSES)[labels] + 0.15 * torch.randn(n, CLASSES, generator=generator)
        encodings[m] = torch.stack([e, e], 1) if tokens else e
    head = (Paired if size > 1 else Concat)(dict.fromkeys(names, CLASSES + 1), CLASSES)
    with torch.no_grad():
        head.classifier.bias.zero_()
        head.classifier.weight.copy_(torch.cat([torch.eye(CLASSES + 1)[:CLASSES]] * size, 1))
    model = FusionModel({m: Linear(6, CLASSES + 1) for m in names}, head)
    assert torch.equal(head(encodings).argmax(1), labels)
    return model, encodings, labels


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_a_bad_encoding_is_a_perception_error(size: int, tokens: bool) -> None:
    model, encodings, labels = planted(size, tokens=tokens)
    for i in (3, 20, 77):  # it names another class, loudly
        encodings["second"][i, ..., :CLASSES] = 8 * torch.eye(CLASSES)[(labels[i] + 1) % CLASSES]
    report = classify_errors(model, encodings, labels)
    assert report.clips.tolist() == [3, 20, 77]
    assert report.kinds == ["perception"] * 3
    assert report.modalities == ["second"] * 3
    expected = torch.zeros(3, size)
    expected[:, 1] = 1
    assert torch.equal(report.perception, expected)
    assert not report.interaction.any()
    assert report.references.tolist() == [39, 39, 39]
    assert report.head_rows == 160 + 3 * 20 * (3 if size == 2 else 7)


def test_a_noisy_encoder_is_a_perception_error() -> None:
    model, encodings, labels = planted(2)
    encodings["first"][:60] += 4 * torch.randn(60, CLASSES + 1, generator=torch.Generator().manual_seed(1))
    report = classify_errors(model, encodings, labels)
    assert len(report.clips) > 15
    blamed = [kind == "perception" and m == "first" for kind, m in zip(report.kinds, report.modalities, strict=True)]
    assert sum(blamed) > 0.9 * len(blamed)
    assert "second" not in report.modalities


@pytest.mark.parametrize("size", [2, 3])
def test_a_wrong_interaction_term_is_an_interaction_error(size: int) -> None:
    model, encodings, labels = planted(size)
    assert isinstance(model.head, Paired)
    model.head.strength = 50.0
    for m in ("first", "second"):
        encodings[m][[8, 9, 50], -1] = 1.0  # each mark alone is harmless
    report = classify_errors(model, encodings, labels)
    assert report.clips.tolist() == [8, 9, 50]
    assert report.kinds == ["interaction"] * 3
    assert report.modalities == [None] * 3
    assert torch.equal(report.interaction, torch.ones(3))
    assert not report.perception.any()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_corrupted_row_is_a_prediction_error(size: int) -> None:
    model, encodings, labels = planted(size)
    with torch.no_grad():
        model.head.classifier.weight[2] *= -1.0
    report = classify_errors(model, encodings, labels)
    assert report.clips.tolist() == (labels == 2).nonzero()[:, 0].tolist()
    assert set(report.kinds) == {"prediction"}
    assert report.prediction.min() == 1
    assert not report.references.any()


def test_a_row_that_is_partly_corrupted_is_a_prediction_error() -> None:
    model, encodings, labels = planted(2)
    with torch.no_grad():
        model.head.classifier.bias[2] = -3.7  # much of the class is still right, so that there are references
    report = classify_errors(model, encodings, labels)
    assert 8 < len(report.clips) < 32
    assert report.references.min() > 5
    assert report.kinds.count("prediction") > 0.9 * len(report.kinds)
    assert "interaction" not in report.kinds


def test_one_modality_without_a_repair_is_a_perception_error() -> None:
    model, encodings, labels = planted(1)
    encodings["first"][5, :CLASSES] = 4 * torch.eye(CLASSES)[(labels[5] + 1) % CLASSES]
    report = classify_errors(model, encodings, labels)
    assert (report.kinds, report.modalities, report.head_rows) == (["perception"], ["first"], 160)


def test_what_nothing_repairs_is_unresolved() -> None:
    model, encodings, labels = planted(2)
    for e in encodings.values():
        e[5, :CLASSES] = 8 * torch.eye(CLASSES)[(labels[5] + 1) % CLASSES]
    report = classify_errors(model, encodings, labels)
    assert (report.kinds, report.modalities) == (["unresolved"], [None])


def test_seeds_repeat_batches_do_not_matter_and_nothing_is_touched() -> None:
    model, encodings, labels = planted(3)
    encodings["first"][:80] += 2 * torch.randn(80, CLASSES + 1, generator=torch.Generator().manual_seed(1))
    before = {m: e.clone() for m, e in encodings.items()}
    state, _ = torch.get_rng_state(), model.train()
    reports = [classify_errors(model, encodings, labels, seed=7, batch=b, refits=1) for b in (5, 4096)]
    assert reports[0].kinds == reports[1].kinds
    assert torch.equal(reports[0].perception, reports[1].perception)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[m], encodings[m]) for m in before)


def test_a_model_without_errors_has_an_empty_report() -> None:
    report = classify_errors(*planted(2))
    assert (report.clips.tolist(), report.kinds, report.head_rows) == ([], [], 160)


def test_mistakes_of_the_caller_are_named() -> None:
    model, encodings, labels = planted(2)
    for options, message in (({"draws": 0}, "at least 1"), ({"threshold": 0.0}, "threshold in")):
        with pytest.raises(UserError, match=message):
            classify_errors(model, encodings, labels, **options)
    with pytest.raises(UserError, match="labels: shape"):
        classify_errors(model, encodings, labels[:3])
    with pytest.raises(UserError, match="must be 0 to 3"):
        classify_errors(model, encodings, labels + 1)


def errors_with_units(n: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (n, 12); unit 4, of either sign, is large on errors, which are a fifth, and unit 9 small."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 12, generator=generator)
    wrong = torch.rand(n, generator=generator) < 0.2
    x[wrong, 4] *= 4
    x[wrong, 9] *= 0.2
    return x, wrong


def test_units_that_are_active_on_errors_are_found() -> None:
    x, wrong = errors_with_units()
    found = error_units(x, wrong)
    assert set(found.units[:2].tolist()) == {4, 9}
    assert found.weights[found.units == 4] > 0 > found.weights[found.units == 9]
    assert 0.8 < found.auc < 1
    assert found.probability(x)[wrong].mean() > 2 * found.probability(x)[~wrong].mean()
    noise = error_units(x[:, [0, 1, 2, 3]], wrong)
    assert noise.auc < 0.62


def test_targeted_selection_finds_more_errors_than_chance() -> None:
    found = error_units(*errors_with_units())
    new, wrong = errors_with_units(seed=1)
    logits = nn.functional.one_hot(torch.arange(400) % 3).float()
    logits[100:150] = 0
    by_errors = select_clips(logits, 50, "errors", predictor=found, penultimate=new)
    at_random = select_clips(logits, 50, "random", seed=3)
    assert wrong[by_errors].float().mean() > 0.7
    assert wrong[at_random].float().mean() < 0.4
    assert select_clips(logits, 50, "entropy").tolist() == list(range(100, 150))
    assert torch.equal(at_random, select_clips(logits, 50, "random", seed=3))
    assert not torch.equal(at_random, select_clips(logits, 50, "random", seed=4))
    assert len(set(at_random.tolist())) == len(set(by_errors.tolist())) == 50


def test_mistakes_are_named() -> None:
    x, wrong = errors_with_units()
    with pytest.raises(UserError, match="at least 5 wrong"):
        error_units(x, torch.zeros(400, dtype=torch.bool))
    with pytest.raises(UserError, match="one entry for each row"):
        error_units(x, wrong[:3])
    with pytest.raises(UserError, match="must be 1 to 400"):
        select_clips(x, 401, "random")
    with pytest.raises(UserError, match="needs a predictor"):
        select_clips(x, 4, "errors")
    with pytest.raises(UserError, match="must be one of errors, entropy, random"):
        select_clips(x, 4, "best")  # type: ignore[arg-type]


def test_selections_are_compared_at_the_same_budget() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(240, 6, generator=generator)
    hidden = torch.rand(240, generator=generator) < 0.2  # a third class, which the model takes for one of the two
    features[:, 5] = 4 * hidden
    labels = torch.where(hidden, 2, (features[:, 0] > 0).long())
    logits = torch.stack([-features[:, 0], features[:, 0], torch.full((240,), -9.0)], 1)
    trials = compare_selections(features, logits, labels, seeds=3)
    assert trials == compare_selections(features, logits, labels, seeds=3)
    assert {trial.budget for trial in trials} == {0, 20, 80}
    assert [trial.by for trial in trials[:5]] == ["none", "all", "errors", "entropy", "random"]
    found = {by: [t.errors_found for t in trials if t.by == by] for by in ("errors", "random", "all")}
    assert [t.errors_found for t in trials if t.by == "none"] == [None] * 3
    pairs = zip(found["errors"], found["random"], strict=True)
    assert all(a is not None and b is not None and a > 2 * b for a, b in pairs)
    whole = [t.accuracy for t in trials if t.by == "all"]
    assert sum(whole) > 3 * 0.9  # the third class is learned; without it 0.8 is the most
    more = (features[:100], labels[:100])
    assert compare_selections(features, logits, labels, seeds=1, fitted=more) != trials[:5]


def test_comparisons_that_cannot_be_made_are_refused() -> None:
    features, labels = torch.randn(60, 3), torch.arange(60) % 2
    with pytest.raises(UserError, match="0 of 20; must be at least 5 wrong"):
        compare_selections(features, torch.eye(2)[labels], labels)
    with pytest.raises(UserError, match="share=.*: must be in"):
        compare_selections(features, torch.eye(2)[labels], labels, share=1.0)
