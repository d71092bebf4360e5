import copy
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import captum.metrics
import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from amr.datamodules.atoms import flat_atoms, waveform_atoms
from amr.evaluation.statistics import wilson
from amr.fusion import Attention, Concat
from amr.model import FusionModel
from amr.model.protocol import Explained
from amr.multiviz.base import Unit
from amr.multiviz.crossmodal import Space, ablation, second_order
from amr.multiviz.trust import (
    Area,
    Explain,
    cascading_randomisation,
    deletion,
    infidelity,
    insertion,
    interaction_sensitivity_n,
    max_sensitivity,
    pointing_game,
    randomisation_test,
    sensitivity_n,
    spearman,
    stability,
    trust,
)
from amr.multiviz.trust.randomised import _redraw
from amr.multiviz.trust.sums import random_sets
from amr.multiviz.unimodal import Importance, gradient, gradient_input, kernel_shap, lime, occlusion
from amr.utils.errors import UserError
from tests import toy
from tests.multiviz.nets import Bilinear, Counter, Flat, Net, clips, linear_model, model_of, score_of

ATOMS = flat_atoms(6)


def importance_of(values: Tensor) -> Importance:
    return Importance(values, None, flat_atoms(values.shape[1]), "given")


def explainer(method: Callable[..., Importance], size: int = 6, target: int = 1, **options: Any) -> Explain:
    sampled = method in (lime, kernel_shap)

    def explain(model: Explained, inputs: Mapping[str, Tensor], seed: int) -> Importance:
        drawn = {"seed": seed} if sampled else {}
        return method(model, inputs, "one", target, flat_atoms(size), **drawn, **options)

    return explain


def edges(model: Explained, inputs: Mapping[str, Tensor], seed: int) -> Importance:  # noqa: ARG001
    """Differences of neighbours in the input, whatever the model."""
    x = inputs["one"]
    return importance_of((x - x.roll(1, 1)).abs())


# Insertion and deletion


def linear_case(size: int = 7, count: int = 9) -> tuple[FusionModel, dict[str, Tensor], Tensor, Tensor]:
    """A model that is linear in `one`, clips, what each element adds to logit 1, and the logit without them."""
    model, weight = linear_model(size)
    inputs = clips(count, ("one", "two"), size)
    scores = score_of(model, inputs)(torch.zeros_like(inputs["one"])).detach()
    return model, inputs, inputs["one"] * weight[1], scores


def test_areas_of_a_linear_model_in_closed_form() -> None:
    """The r-th atom put in, from 0, counts in the last A − r − ½ of A steps; taken out, in the first r + ½."""
    model, inputs, values, empty = linear_case()
    size = values.shape[1]
    part = (size - torch.arange(size).double() - 0.5) / size
    for order in (values, -values, torch.randn(values.shape, generator=torch.Generator().manual_seed(5)).double()):
        ordered = values.gather(1, order.argsort(1, descending=True))
        inserted = insertion(model, inputs, "one", 1, importance_of(order))
        torch.testing.assert_close(inserted.area, empty + (ordered * part).sum(1))
        deleted = deletion(model, inputs, "one", 1, importance_of(order), batch=5)
        torch.testing.assert_close(deleted.area, empty + (ordered * (1 - part)).sum(1))
        for area in (inserted, deleted):
            assert area.fraction.tolist() == pytest.approx([k / 7 for k in range(8)])
    # Any order's expectation is half of everything; the perfect one has the best area that there is.
    perfect = insertion(model, inputs, "one", 1, importance_of(values), orders=400)
    error = perfect.random_area.std(0) / 20
    assert ((perfect.random_area.mean(0) - empty - values.sum(1) / 2).abs() < 4.5 * error).all()
    assert (perfect.area >= perfect.random_area.amax(0) - 1e-12).all()
    assert perfect.interval[0] > 0
    assert deletion(model, inputs, "one", 1, importance_of(values)).interval[0] > 0
    assert insertion(model, inputs, "one", 1, importance_of(-values)).interval[1] < 0
    torch.testing.assert_close(perfect.gain, perfect.area - perfect.random_area.mean(0))


@pytest.mark.parametrize("target", [2, Unit(3), "predicted"])
def test_curves_equal_a_loop_over_the_whole_model(target: Any) -> None:
    model, inputs = model_of().eval(), clips(4)
    atoms = waveform_atoms((6,), 5, 1.0)
    values = torch.randn(4, 5, generator=torch.Generator().manual_seed(2)).double()
    importance = Importance(values, None, atoms, "given")
    goal = model(inputs).argmax(1) if target == "predicted" else target
    baseline = inputs["one"].mean(0)
    options: Any = {"baseline": baseline, "steps": 3, "batch": 7}
    inserted = insertion(model, inputs, "one", target, importance, **options)
    deleted = deletion(model, inputs, "one", target, importance, **options)
    assert inserted.fraction.tolist() == pytest.approx([0, 0.2, 0.6, 1])
    assert deleted.fraction.tolist() == pytest.approx([0, 0.4, 0.8, 1])
    for n in range(4):
        order = sorted(range(5), key=lambda a: -float(values[n, a]))
        clip = {m: x[n : n + 1] for m, x in inputs.items()}
        score = score_of(model, clip, goal if isinstance(goal, (int, Unit)) else int(goal[n]))
        for p, kept in enumerate((0, 1, 3, 5)):
            keep = torch.isin(atoms.label, torch.tensor(order[:kept]))
            torch.testing.assert_close(
                inserted.curve[n, p], score(torch.where(keep, clip["one"], baseline)).detach()[0]
            )
        for p, gone in enumerate((0, 2, 4, 5)):
            drop = torch.isin(atoms.label, torch.tensor(order[:gone]))
            torch.testing.assert_close(deleted.curve[n, p], score(torch.where(drop, baseline, clip["one"])).detach()[0])
    assert torch.allclose(inserted.area, torch.tensor(np.trapezoid(inserted.curve, inserted.fraction)))


def test_random_orders_of_a_small_model_are_those_of_all_permutations() -> None:
    model, inputs = model_of({"one": toy.Linear(4), "two": toy.Linear()}), clips(3, ("one", "two"), 4)
    atoms = flat_atoms(4)
    every = []
    for order in itertools.permutations(range(4)):
        ranked = torch.zeros(3, 4).double()
        ranked[:, list(order)] = torch.tensor([4.0, 3.0, 2.0, 1.0]).double()
        every.append(insertion(model, inputs, "one", 0, Importance(ranked, None, atoms, "given"), orders=1).area)
    areas = torch.stack(every)
    for area in (insertion, deletion):
        got = area(model, inputs, "one", 0, Importance(ranked, None, atoms, "given"), orders=600).random_area
        for n in range(3):
            assert {round(float(a), 9) for a in got[:, n]} == {round(float(a), 9) for a in areas[:, n]}
        z = (got.mean(0) - areas.mean(0)) / (areas.std(0, correction=0) / math.sqrt(600))
        assert (z.abs() < 4).all()


def test_constant_and_random_maps_score_as_random() -> None:
    """Also where the atoms with small indices happen to be the important ones: ties are broken at random."""
    model, inputs, values, _ = linear_case(8, 400)
    inputs["one"] = torch.linspace(3, -3, 8).double() * model.head.classifier.weight[1, :8].detach().sign()
    inputs["one"] = inputs["one"].repeat(400, 1)
    inside = 0
    for seed in range(40):
        some = {m: x[:20] for m, x in inputs.items()}
        drawn = torch.randn(20, 8, generator=torch.Generator().manual_seed(seed)).double()
        area = insertion(model, some, "one", 1, importance_of(drawn), orders=4, seed=100 + seed)
        inside += area.interval[0] < 0 < area.interval[1]
    assert 33 <= inside <= 40  # 38 expected
    for area in (
        insertion(model, inputs, "one", 1, importance_of(torch.ones_like(values))),
        deletion(model, inputs, "one", 1, importance_of(torch.ones_like(values))),
    ):
        assert abs(float(area.gain.mean())) < 3.5 * float(area.gain.std()) / 20
        assert len(set(area.area.tolist())) > 300


def test_the_interval_is_student_s() -> None:
    curve = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
    area = Area(torch.tensor([0, 0.5, 1]).double(), curve, curve[None] * 0, 1)
    low, high = scipy.stats.t.interval(0.95, 5, loc=area.gain.mean(), scale=scipy.stats.sem(area.gain))
    assert area.interval == pytest.approx((low, high))
    assert Area(area.fraction, curve[:1], curve[None, :1] * 0, 1).interval == (-math.inf, math.inf)


# Infidelity and sensitivity-n


def test_a_linear_model_s_gradient_input_is_faithful() -> None:
    model, inputs, _, _ = linear_case()
    importance = gradient_input(model, inputs, "one", 1, flat_atoms(7))
    for normalise in (False, True):
        got = infidelity(model, inputs, "one", 1, importance, normalise=normalise)
        torch.testing.assert_close(got, torch.zeros(9).double(), rtol=0, atol=1e-12)
    correlations = sensitivity_n(model, inputs, "one", 1, importance, sizes=range(1, 7))
    assert [*correlations] == [1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(torch.stack([*correlations.values()]), torch.ones(6, 9).double())
    assert [*sensitivity_n(model, inputs, "one", 1, importance)] == [1, 3, 5]
    # A scaled map is as good for all but the plain infidelity: E[(Σ φ)²] of what is missing.
    half = importance_of(importance.values / 2)
    torch.testing.assert_close(infidelity(model, inputs, "one", 1, half, normalise=True), torch.zeros(9).double())
    nothing = importance_of(torch.zeros(9, 7).double())
    missing = infidelity(model, inputs, "one", 1, nothing)
    torch.testing.assert_close(infidelity(model, inputs, "one", 1, half), missing / 4)
    torch.testing.assert_close(infidelity(model, inputs, "one", 1, nothing, normalise=True), torch.ones(9).double())


@pytest.mark.parametrize("normalise", [False, True])
def test_infidelity_equals_captum(normalise: bool) -> None:
    model, inputs, samples = model_of().eval(), clips(), 30
    importance = gradient_input(model, inputs, "one", 1, ATOMS)
    baseline = inputs["one"].mean(0)
    got = infidelity(
        model, inputs, "one", 1, importance, baseline=baseline, samples=samples, normalise=normalise, seed=3, batch=11
    )
    generator = torch.Generator().manual_seed(3)
    drop = random_sets(6, torch.randint(1, 7, (samples,), generator=generator), generator)
    assert {int(n) for n in drop.sum(1)} == {1, 2, 3, 4, 5, 6}
    draws = iter(drop)

    def perturb(x: Tensor) -> tuple[Tensor, Tensor]:
        gone = next(draws).expand_as(x)
        return gone.to(x), torch.where(gone, baseline, x)

    score = score_of(model, inputs, 1)
    expected = captum.metrics.infidelity(
        score, perturb, inputs["one"], importance.values, n_perturb_samples=samples, max_examples_per_batch=5,
        normalize=normalise,
    )  # fmt: skip
    if normalise:
        changes = [score(inputs["one"]) - score(torch.where(gone, baseline, inputs["one"])) for gone in drop]
        expected = expected / torch.stack(changes).square().mean(0)
    torch.testing.assert_close(got, expected.detach())


def test_sensitivity_n_equals_numpy_over_all_sets_and_says_nothing_of_constants() -> None:
    model, inputs = model_of().eval(), clips(3)
    importance = occlusion(model, inputs, "one", 1, ATOMS)
    got = sensitivity_n(model, inputs, "one", 1, importance, sizes=[1, 3], subsets=20, batch=9)
    score = score_of(model, inputs)
    for n, correlations in got.items():
        sums, changes = [], []
        for members in itertools.combinations(range(6), n):
            gone = torch.zeros(6, dtype=torch.bool)
            gone[list(members)] = True
            sums.append(importance.values[:, gone].sum(1))
            changes.append((score(inputs["one"]) - score(inputs["one"].masked_fill(gone, 0.0))).detach())
        expected = [np.corrcoef(torch.stack(sums)[:, i], torch.stack(changes)[:, i])[0, 1] for i in range(3)]
        assert correlations.tolist() == pytest.approx(expected)
    assert got[1].tolist() == pytest.approx([1, 1, 1])  # occlusion is what n = 1 asks for
    flat = importance_of(torch.full((3, 6), 0.1).double())
    assert torch.stack([*sensitivity_n(model, inputs, "one", 1, flat).values()]).count_nonzero() == 0
    with torch.no_grad():
        model.head.classifier.weight.zero_()
    deaf = sensitivity_n(model, inputs, "one", 1, importance)
    assert torch.stack([*deaf.values()]).count_nonzero() == 0
    assert infidelity(model, inputs, "one", 1, importance, normalise=True).isnan().all()


def bilinear(size1: int = 5, size2: int = 4) -> tuple[FusionModel, dict[str, Tensor], Any]:
    torch.manual_seed(0)
    head = Bilinear({"one": size1, "two": size2})
    model = FusionModel({"one": Flat(size1), "two": Flat(size2)}, head)
    return model, {"one": torch.randn(6, size1).double(), "two": torch.randn(6, size2).double()}, head


def test_interaction_form_of_a_bilinear_head() -> None:
    """f = aᵀ W b: sets S and T together bring Σ a_i W_ij b_j, whatever their size."""
    model, inputs, head = bilinear()
    true = inputs["one"][:, :, None] * head.weight.detach() * inputs["two"][:, None]
    space: Space
    for space in ("inputs", "encodings"):
        got = interaction_sensitivity_n(model, inputs, 0, true, "one", "two", space=space, batch=7)
        assert [*got] == [(1, 1), (2, 2), (3, 3)]
        torch.testing.assert_close(torch.stack([*got.values()]), torch.ones(3, 6).double())
    base = {"one": torch.full((5,), 0.3).double(), "two": torch.full((4,), -0.2).double()}
    shift = (inputs["one"] - base["one"])[:, :, None] * (inputs["two"] - base["two"])[:, None]
    curved = second_order(model, inputs, 0, "one", "two") * shift
    sizes = [(1, 3), (5, 2), (4, 4)]
    got = interaction_sensitivity_n(model, inputs, 0, curved, "one", "two", base, sizes=sizes, subsets=30)
    assert [*got] == sizes
    assert type(got[1, 3]) is Tensor
    torch.testing.assert_close(torch.stack([*got.values()]), torch.ones(3, 6).double())
    wrong = interaction_sensitivity_n(model, inputs, 0, true.roll(2, 1), "one", "two")
    assert float(torch.stack([*wrong.values()]).mean()) < 0.5
    none = interaction_sensitivity_n(model, inputs, 0, torch.ones_like(true), "one", "two")
    assert torch.stack([*none.values()]).abs().max() < 1e-9


def test_interaction_form_equals_numpy_and_ablation_at_one_by_one() -> None:
    model, inputs = model_of({"one": toy.Linear(), "two": toy.Linear()}, Attention, hidden=None).eval(), clips(2)
    del inputs["three"]
    found = ablation(model, inputs, 1, "one", "two")
    counter = Counter(model)
    got = interaction_sensitivity_n(
        model, inputs, 1, found, "one", "two", sizes=[(1, 1), (2, 5), (3, 3)], subsets=90, batch=13
    )
    pairs = 36 + 90 + 90
    assert counter.rows == {"one": 2 * (1 + pairs), "two": 2 * (1 + pairs), "head": 2 * (1 + 3 * pairs)}
    assert counter.largest <= 13
    torch.testing.assert_close(got[1, 1], torch.ones(2).double())
    sums, changes = [], []
    for s, t in itertools.product(itertools.combinations(range(6), 2), itertools.combinations(range(6), 5)):
        sums.append(found[:, list(s)][:, :, list(t)].sum((1, 2)))
        zeros = {"one": inputs["one"].clone(), "two": inputs["two"].clone()}
        zeros["one"][:, list(s)], zeros["two"][:, list(t)] = 0, 0
        corners = [model({"one": a, "two": b})[:, 1].detach() for a in (inputs["one"], zeros["one"])
                   for b in (inputs["two"], zeros["two"])]  # fmt: skip
        changes.append(corners[0] - corners[1] - corners[2] + corners[3])
    expected = [np.corrcoef(torch.stack(sums)[:, i], torch.stack(changes)[:, i])[0, 1] for i in range(2)]
    assert got[2, 5].tolist() == pytest.approx(expected)


# Noise, parameters, seeds


def test_max_sensitivity_of_constant_and_linear_maps_is_zero() -> None:
    model, inputs, values, _ = linear_case()

    def constant(model: Explained, inputs: Mapping[str, Tensor], seed: int) -> Importance:  # noqa: ARG001
        return importance_of(values)

    def nothing(model: Explained, inputs: Mapping[str, Tensor], seed: int) -> Importance:  # noqa: ARG001
        return importance_of(values * 0)

    for explain in (constant, nothing, explainer(gradient, 7)):
        assert max_sensitivity(model, inputs, "one", explain).tolist() == [0.0] * 9


def test_max_sensitivity_equals_captum() -> None:
    model, inputs = model_of().eval(), clips()
    explain, seen = explainer(gradient_input), []

    def watched(model: Explained, inputs: Mapping[str, Tensor], seed: int) -> Importance:
        seen.append(inputs["one"])
        return explain(model, inputs, seed)

    got = max_sensitivity(model, inputs, "one", watched, radius=0.1, draws=6, seed=4)
    clean, *noisy = seen
    assert clean is inputs["one"]
    reach = 0.1 * float(inputs["one"].std(correction=0))
    noise = torch.stack(noisy) - clean
    assert len(noisy) == 6
    assert reach * 0.95 < noise.max() < reach
    assert -reach < noise.min() < -reach * 0.95
    draws = iter(noisy)

    def method(x: Any) -> tuple[Tensor]:
        part = x[0] if isinstance(x, tuple) else x
        return (explain(model, {**inputs, "one": part}, 0).values,)

    expected = captum.metrics.sensitivity_max(
        method, clean, perturb_func=lambda _: next(draws), n_perturb_samples=6, max_examples_per_batch=5
    )
    torch.testing.assert_close(got, expected)


def trained(steps: int = 200) -> tuple[FusionModel, dict[str, Tensor]]:
    """Classes are told by single elements of `one`, and `two` says little."""
    model = model_of(
        {"one": Net(nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 8)), 8), "two": toy.Linear()}
    )
    generator = torch.Generator().manual_seed(3)
    label = torch.arange(60) % 3
    one = torch.randn(60, 10, generator=generator).double()
    one[torch.arange(60), label * 3] += 3
    inputs = {"one": one, "two": torch.randn(60, 6, generator=generator).double()}
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(inputs), label))
        optimizer.step()
    return model, inputs


def test_randomisation_tells_gradients_from_edges_and_leaves_the_model_alone() -> None:
    model, inputs = trained()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    model.train()
    got = randomisation_test(model, inputs, explainer(gradient, 10))
    assert [*got] == ["head", "encoders.one", "encoders.two", "model"]
    for part in ("head", "encoders.one", "model"):
        assert got[part].likeness < 0.5
        assert got[part].signed.shape == (60,)
    assert got["encoders.two"].likeness > 0.7  # an encoder that hardly matters
    blind = randomisation_test(model, inputs, edges)
    assert all(r.signed.tolist() == r.absolute.tolist() == [1.0] * 60 for r in blind.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    again = randomisation_test(model, inputs, explainer(gradient, 10))
    assert all(torch.equal(got[part].signed, again[part].signed) for part in got)
    other = randomisation_test(model, inputs, explainer(gradient, 10), seed=1)
    assert not torch.equal(got["head"].signed, other["head"].signed)


def test_randomisation_of_parts() -> None:
    """The maps are of models in which just that part was re-drawn; in an additive head the other encoder has no say."""
    model, inputs = model_of({"one": toy.Linear(), "two": toy.Linear()}, Concat, None), clips(3, ("one", "two"))
    seen: list[dict[str, Tensor]] = []

    def explain(model: Explained, inputs: Mapping[str, Tensor], seed: int) -> Importance:  # noqa: ARG001
        assert isinstance(model, FusionModel)
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return gradient(model, inputs, "one", 1, ATOMS)

    got = randomisation_test(model, inputs, explain)
    assert got["encoders.two"].signed.tolist() == [1.0] * 3
    first, *others = seen
    for part, state in zip(got, others, strict=True):
        changed = {key for key in first if not torch.equal(first[key], state[key])}
        assert changed == {key for key in first if part == "model" or key.startswith(f"{part}.")}
    without = linear_model(6)[0]
    assert [*randomisation_test(without, inputs, explainer(gradient))] == ["head", "encoders.two", "model"]


def test_cascade_redraws_one_layer_more_at_a_time() -> None:
    model, inputs = trained(0)
    seen: list[dict[str, Tensor]] = []

    def explain(model: Explained, inputs: Mapping[str, Tensor], seed: int) -> Importance:  # noqa: ARG001
        assert isinstance(model, FusionModel)
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return gradient(model, inputs, "one", 1, flat_atoms(10))

    got = cascading_randomisation(model, inputs, "one", explain)
    assert [*got] == ["head", "encoders.one.net.2", "encoders.one.net.0"]
    first, *others = seen
    parts: list[str] = []
    for part, state in zip(got, others, strict=True):
        parts.append(f"{part}.")
        changed = {key for key in first if not torch.equal(first[key], state[key])}
        assert changed == {key for key in first if key.startswith(tuple(parts))}
    blind = cascading_randomisation(model, inputs, "one", edges)
    assert all(r.likeness == 1 for r in blind.values())


class Odd(nn.Module):
    """Parameters that no `reset_parameters` covers: bare ones, an attention's, and a weight norm's old and new form."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(5 + 0.1 * torch.randn(400))
        self.scale = nn.Parameter(torch.full((3,), 0.2))
        self.attention = nn.MultiheadAttention(8, 2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.norm = nn.BatchNorm1d(8)


def test_redrawn_parameters() -> None:
    torch.manual_seed(0)
    odd = Odd()
    odd.norm.running_mean.fill_(3.0)  # type: ignore[union-attr]
    with torch.no_grad():
        odd.norm.weight.fill_(7.0)
    before = {name: p.detach().clone() for name, p in odd.named_parameters()}
    state = torch.random.get_rng_state()
    other = copy.deepcopy(odd)
    _redraw(odd, 5)
    _redraw(other, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    kept = {name for name, p in odd.named_parameters() if torch.equal(p, before[name])}
    assert kept == {"scale", "attention.in_proj_bias"} | {n for n in kept if n.endswith("norm.bias")}
    token = odd.token.detach()
    assert float(token.mean()) == pytest.approx(5, abs=0.03)
    assert float(token.std()) == pytest.approx(0.1, rel=0.2)
    assert abs(float(torch.corrcoef(torch.stack([token, before["token"]]))[0, 1])) < 0.2
    assert odd.norm.weight.tolist() == [1.0] * 8
    assert odd.norm.running_mean is not None
    assert odd.norm.running_mean.tolist() == [0.0] * 8
    assert all(torch.equal(p, q) for p, q in zip(odd.parameters(), other.parameters(), strict=True))


def test_spearman_equals_scipy_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(5, (30, 9), generator=generator).double() for _ in range(2))
    expected = [scipy.stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert spearman(a, b).tolist() == pytest.approx(expected)
    flat = torch.ones(2, 4)
    assert spearman(flat, flat).tolist() == [1.0, 1.0]
    assert spearman(flat, torch.arange(8.0).reshape(2, 4)).tolist() == [0.0, 0.0]
    assert spearman(torch.ones(1, 1), torch.zeros(1, 1)).tolist() == [0.0]


def test_stability() -> None:
    model, inputs = model_of().eval(), clips()
    fixed = stability(model, inputs, explainer(occlusion))
    assert fixed.correlation.tolist() == fixed.overlap.tolist() == [1.0] * 5
    assert fixed.top == 1
    maps: list[Tensor] = []

    def noisy(model: Explained, inputs: Mapping[str, Tensor], seed: int) -> Importance:  # noqa: ARG001
        maps.append(torch.randn(5, 12, generator=torch.Generator().manual_seed(seed)))
        return importance_of(maps[-1])

    got = stability(model, inputs, noisy, seeds=4, top=5, seed=7)
    assert len(maps) == 4
    for n in range(5):
        pairs = list(itertools.combinations([m[n] for m in maps], 2))
        assert float(got.correlation[n]) == pytest.approx(
            np.mean([scipy.stats.spearmanr(x, y).statistic for x, y in pairs])
        )
        best = [(set(x.argsort()[-5:].tolist()), set(y.argsort()[-5:].tolist())) for x, y in pairs]
        assert float(got.overlap[n]) == pytest.approx(np.mean([len(x & y) / 5 for x, y in best]))
    few, many = (stability(model, inputs, explainer(lime, samples=s, repeats=1)) for s in (9, 400))
    assert many.correlation.mean() > max(0.9, float(few.correlation.mean()))


# All together


def test_trust_finds_nothing_against_a_good_map_and_agrees_with_the_single_scores() -> None:
    model, inputs, _, _ = linear_case(10, 12)
    result = trust(model, inputs, "one", 1, explainer(gradient_input, 10), seed=2)
    assert result.warnings == ()
    importance = result.importance
    assert torch.equal(importance.values, gradient_input(model, inputs, "one", 1, flat_atoms(10)).values)
    for area, own in ((insertion, result.insertion), (deletion, result.deletion)):
        alone = area(model, inputs, "one", 1, importance, seed=2)
        torch.testing.assert_close(own.curve, alone.curve)
        torch.testing.assert_close(own.random, alone.random)
        assert own.fraction.tolist() == alone.fraction.tolist()
    torch.testing.assert_close(result.sensitivity_n, sensitivity_n(model, inputs, "one", 1, importance, seed=2))
    torch.testing.assert_close(
        result.infidelity, infidelity(model, inputs, "one", 1, importance, normalise=True, seed=2), atol=1e-12, rtol=0
    )
    summary = result.summary()
    assert summary["sensitivity_1"] == pytest.approx(1)
    assert summary["infidelity"] == pytest.approx(0, abs=1e-9)
    assert summary["stability"] == summary["top_overlap"] == 1
    assert 0 < summary["max_sensitivity"] < 0.1
    assert [*summary] == [
        "insertion_gain", "deletion_gain", "infidelity", "sensitivity_1", "sensitivity_2", "sensitivity_5",
        "sensitivity_7", "max_sensitivity", "randomised/head", "randomised/encoders.two", "randomised/model",
        "stability", "top_overlap",
    ]  # fmt: skip


def test_trust_warns_in_words() -> None:
    model, inputs = trained()
    blind = trust(model, inputs, "one", 1, edges)
    for part in ("the head", "the encoder of 'one'", "the whole model"):
        assert any(w == f"hardly changes when {part} is randomised (rank correlation 1.00)" for w in blind.warnings)

    def dice(model: Explained, inputs: Mapping[str, Tensor], seed: int) -> Importance:  # noqa: ARG001
        noise = int(1e6 * abs(float(inputs["one"].sum())))
        return importance_of(torch.randn(60, 10, generator=torch.Generator().manual_seed(seed + noise)))

    text = "\n".join(trust(model, inputs, "one", 1, dice).warnings)
    for part in (
        "insertion: not better than a random order (gain",
        "deletion: not better than a random order (gain",
        "sensitivity-n: sums of importance do not follow the score (correlation",
        "differs between seeds (rank correlation",
        "noise of 0.02 standard deviations changes it by 1.",
    ):
        assert part in text
    one = {m: x[:1] for m, x in inputs.items()}
    assert (
        "one clip: there are no intervals over clips" in trust(model, one, "one", 1, explainer(gradient, 10)).warnings
    )
    with torch.no_grad():
        model.head.classifier.weight.zero_()
    deaf = trust(model, inputs, "one", 1, explainer(gradient, 10))
    assert deaf.warnings[0] == "the score of 60 of 60 clips does not depend on 'one'"
    assert math.isnan(deaf.summary()["infidelity"])


def test_rows() -> None:
    """N clips, A = 6, R orders: the other encoders see every clip once, whatever is asked."""
    model, inputs = (
        model_of({"one": toy.Linear(), "two": toy.Tokens(), "three": toy.Linear()}, Attention, None),
        clips(),
    )
    importance = occlusion(model, inputs, "one", 1, ATOMS)
    cases: list[tuple[Callable[..., Any], dict[str, Any], int]] = [
        (insertion, {"orders": 3, "steps": 4}, 2 + 4 * 3),
        (deletion, {"orders": 3}, 2 + 4 * 5),
        (infidelity, {"samples": 9}, 1 + 9),
        (sensitivity_n, {"subsets": 14, "sizes": [1, 2]}, 1 + 6 + 14),
    ]
    for function, options, rows in cases:
        counter = Counter(model)
        function(model, inputs, "one", 1, importance, batch=7, **options)
        assert counter.rows == {
            "one": 5 * rows,
            "two": 5,
            "three": 5,
            "head": 5 * (rows - (function is not sensitivity_n) * 0 - (function is sensitivity_n)),
        }
        assert counter.largest <= 7


def test_trust_s_rows_and_explanations() -> None:
    model, inputs = model_of({"one": toy.Linear(), "two": toy.Linear()}), clips(5, ("one", "two"))
    values = occlusion(model, inputs, "one", 1, ATOMS).values
    calls = []

    def explain(model: Explained, inputs: Mapping[str, Tensor], seed: int) -> Importance:  # noqa: ARG001
        calls.append(seed)
        return importance_of(values)

    counter = Counter(model)
    trust(model, inputs, "one", 1, explain, orders=3, steps=4, samples=20, draws=2, seeds=3)
    assert counter.rows["one"] == 5 * (2 + 5 * 3 + 20 + 6 + 20 + 15)
    assert counter.rows["two"] == 5
    assert calls == [0, 0, 0, 0, 0, 0, 0, 1, 2]  # the map, two with noise, head, encoders and model, two more seeds


def test_nothing_depends_on_the_batch_or_leaves_a_trace() -> None:
    model, inputs = model_of({"one": toy.Tokens(), "two": toy.Linear()}, Attention, None), clips(5, ("one", "two"))
    before = {m: x.clone() for m, x in inputs.items()}
    state = torch.random.get_rng_state()
    model.train()
    explain = explainer(kernel_shap)
    with torch.inference_mode():
        one = trust(model, inputs, "one", 1, explain, batch=3)
    two = trust(model, inputs, "one", 1, explain, batch=1000)
    assert one.summary() == pytest.approx(two.summary())
    assert model.training
    assert all(m.training for m in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(inputs[m], before[m]) for m in inputs)
    assert all(p.grad is None for p in model.parameters())
    assert one.summary() != trust(model, inputs, "one", 1, explain, seed=1).summary()


def test_gradients_can_be_checked_under_inference_mode() -> None:
    model = model_of({"one": toy.Linear()}, Concat)  # one modality
    with torch.inference_mode():
        result = trust(model, {"one": clips()["one"].clone()}, "one", 0, explainer(gradient_input))
    assert [*result.randomisation] == ["head", "encoders.one", "model"]


def test_one_atom() -> None:
    model, inputs = model_of(), clips()
    whole = occlusion(model, inputs, "one", 1, waveform_atoms((6,), 1, 1.0))
    for area in (insertion, deletion):
        got = area(model, inputs, "one", 1, whole)
        assert got.fraction.tolist() == [0, 1]
        assert got.gain.tolist() == pytest.approx([0] * 5)
    assert infidelity(model, inputs, "one", 1, whole).tolist() == pytest.approx([0] * 5)
    with pytest.raises(UserError, match="at least 2 atoms"):
        sensitivity_n(model, inputs, "one", 1, whole)


def test_refusals() -> None:
    model, inputs = model_of(), clips()
    good = occlusion(model, inputs, "one", 1, ATOMS)
    bad = {
        "pass atoms to gradient": gradient(model, inputs, "one", 1),
        r"shape \(5, 4\), expected \(5, 6\)": Importance(good.values[:, :4], None, ATOMS, "cut"),
        "nan_map has values that are not finite": Importance(good.values * torch.nan, None, ATOMS, "nan_map"),
    }
    for message, importance in bad.items():
        for function in (insertion, deletion, infidelity, sensitivity_n):
            with pytest.raises(UserError, match=message):
                function(model, inputs, "one", 1, importance)
    options: list[tuple[Callable[[], Any], str]] = [
        (lambda: insertion(model, inputs, "one", 1, good, orders=0), "orders=0: must be at least 1"),
        (lambda: deletion(model, inputs, "one", 1, good, steps=0), "steps=0: must be at least 1"),
        (lambda: insertion(model, inputs, "four", 1, good), "'four': must be one of one, two, three"),
        (lambda: insertion(model, inputs, "one", 1, good, batch=0), "batch=0: must be at least 1"),
        (lambda: infidelity(model, inputs, "one", 1, good, samples=0), "samples=0: must be at least 1"),
        (lambda: sensitivity_n(model, inputs, "one", 1, good, sizes=[6]), "must be 1 to 5"),
        (lambda: sensitivity_n(model, inputs, "one", 1, good, subsets=1), "subsets=1: must be at least 2"),
        (lambda: max_sensitivity(model, inputs, "four", edges), "'four': must be one of one, two, three"),
        (lambda: max_sensitivity(model, inputs, "one", edges, radius=0), "radius=0: must be positive"),
        (lambda: max_sensitivity(model, inputs, "one", edges, draws=0), "draws=0: must be at least 1"),
        (lambda: cascading_randomisation(model, inputs, "four", edges), "'four': must be one of one, two, three"),
        (lambda: stability(model, inputs, edges, seeds=1), "seeds=1: must be at least 2"),
        (lambda: stability(model, inputs, edges, top=7), "must be 1 to 6"),
        (lambda: interaction_sensitivity_n(model, inputs, 1, torch.ones(5, 6, 5), "one", "two"), "expected"),
        (
            lambda: interaction_sensitivity_n(model, inputs, 1, torch.ones(5, 6, 6) / 0, "one", "two"),
            "not finite|finite",
        ),
        (
            lambda: interaction_sensitivity_n(model, inputs, 1, torch.ones(5, 6, 6), "one", "two", sizes=[(0, 1)]),
            "must be pairs of 1 to 6 and 1 to 6",
        ),
    ]
    for call, message in options:
        with pytest.raises(UserError, match=message):
            call()


def test_pointing_game() -> None:
    counts = torch.zeros(3, 4, 5, dtype=torch.bool)
    counts[0, 1, 2] = counts[1, :, 4] = counts[2, 3] = True
    perfect = pointing_game(-2.0 * counts, counts)  # the sign does not matter
    assert perfect.rate == 1
    assert perfect.chance.tolist() == [1 / 20, 4 / 20, 5 / 20]
    assert pointing_game((~counts).float(), counts).rate == 0
    assert torch.equal(pointing_game(torch.zeros(3, 4, 5), counts).hits, perfect.chance)  # a constant map knows nothing
    values = torch.randn(4000, 20, generator=torch.Generator().manual_seed(0))
    random = pointing_game(values, counts[1].flatten().expand(4000, -1))
    assert random.rate == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 4000) ** 0.5)
    assert set(random.hits.tolist()) == {0, 1}


def test_wilson_interval_solves_its_equation() -> None:
    for rate, count in ((0.3, 20), (0.0, 7), (1.0, 50)):
        for bound in wilson(rate, count):  # |rate - p| = z sqrt(p (1 - p) / n)
            assert (rate - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / count, abs=1e-7)


@pytest.mark.parametrize(
    ("values", "counts", "message"),
    [
        (torch.zeros(2, 3), torch.ones(2, 2, dtype=torch.bool), "a boolean for each value"),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), "no atom that counts"),
        (torch.full((2, 3), torch.nan), torch.ones(2, 3, dtype=torch.bool), "not finite"),
    ],
)
def test_pointing_game_refuses(values: Tensor, counts: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pointing_game(values, counts)
