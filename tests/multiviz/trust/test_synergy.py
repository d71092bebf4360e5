"""Synergistic faithfulness on games with known synergies, against a loop over the whole model, and its cost."""

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from amr.datamodules.atoms import flat_atoms, waveform_atoms
from amr.fusion import Attention, Concat
from amr.fusion.base import Fusion
from amr.model import FusionModel
from amr.multiviz.base import Unit
from amr.multiviz.trust import insertion, synergies, synergy
from amr.multiviz.trust.synergy import _ranks
from amr.multiviz.unimodal import Importance, gradient, gradient_input, kernel_shap, occlusion
from amr.utils.errors import UserError
from tests import toy
from tests.multiviz.nets import Counter, Flat, clips, model_of

SIZE, PLANTED = 8, {"one": 2, "two": 5, "three": 1}
ATOMS = flat_atoms(SIZE)


class Game(Fusion):
    """A logit that is a given function of the encodings, and its negative."""

    def __init__(self, dims: dict[str, int], function: Callable[..., Tensor]) -> None:
        super().__init__(dims, 2, 1)
        self.function = function
        self.classifier.weight.data = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
        self.classifier.bias.data = torch.zeros(2, dtype=torch.float64)

    def combine(self, encodings: Any) -> Tensor:
        return self.function(*encodings.values())[:, None]


def game(function: Callable[..., Tensor], names: tuple[str, ...] = ("one", "two"), count: int = 30) -> Any:
    """A model of such a game and clips that are all ones."""
    model = FusionModel({m: Flat(SIZE) for m in names}, Game(dict.fromkeys(names, SIZE), function)).double()
    return model, {m: torch.ones(count, SIZE).double() for m in names}


def finder(names: tuple[str, ...] = ("one", "two"), count: int = 30, shift: int = 0) -> dict[str, Importance]:
    """Maps whose most important atom is the planted one, or one that lies `shift` atoms beside it."""
    found = {}
    for m in names:
        values = torch.zeros(count, SIZE).double()
        values[:, (PLANTED[m] + shift) % SIZE] = 1
        found[m] = Importance(values, None, ATOMS, "given")
    return found


def both(one: Tensor, two: Tensor) -> Tensor:
    return one[:, PLANTED["one"]] * two[:, PLANTED["two"]]


def xor(one: Tensor, two: Tensor) -> Tensor:
    """XOR's class of equal bits: 1 where both atoms are there or neither is, else −1. Together 1 + 1 + 1 + 1."""
    return 4 * (one[:, PLANTED["one"]] - 0.5) * (two[:, PLANTED["two"]] - 0.5)


def either(one: Tensor, two: Tensor) -> Tensor:
    return torch.maximum(one[:, PLANTED["one"]], two[:, PLANTED["two"]])


@pytest.mark.parametrize(("function", "whole"), [(both, 1.0), (xor, 4.0), (either, -1.0)])
def test_a_map_that_finds_both_atoms_has_the_whole_synergy(
    function: Callable[[Tensor, Tensor], Tensor], whole: float
) -> None:
    """With k of 8 atoms of each, random ones have both planted ones with probability (k / 8)²."""
    model, inputs = game(function)
    found = synergy(model, inputs, 0, finder(), orders=64)["one", "two"]
    part = torch.arange(SIZE + 1) / SIZE
    torch.testing.assert_close(found.fraction, part.double())
    torch.testing.assert_close(found.curve, whole * (part > 0).double().expand(30, -1))
    expected, sd = whole * part**2, abs(whole) * (part**2 * (1 - part**2) / (64 * 30)).sqrt()
    assert ((found.random.mean((0, 1)) - expected).abs() <= 4 * sd + 1e-12).all()
    torch.testing.assert_close(found.whole, torch.full((30,), whole).double())
    interval = found.interval()
    area = (1 - 1 / (2 * SIZE)) * whole  # trapezoid: half a step is lost at the start
    torch.testing.assert_close(found.area, torch.full((30,), area).double())
    random = float(torch.trapezoid(expected, part))
    assert interval.value == pytest.approx(area - random, abs=0.03 * abs(whole))
    assert interval.low <= interval.value <= interval.high
    assert interval.low * interval.high > 0  # the sign is certain
    beside = synergy(model, inputs, 0, finder(shift=1), orders=64)["one", "two"]  # it takes any order to find both
    assert beside.interval().low < 0 < beside.interval().high
    assert float(beside.curve[:, 1].abs().max()) == 0


def test_one_modality_at_a_time_cannot_see_redundancy() -> None:
    """Either atom will do: insertion of any map gains nothing while the other modality is whole; the synergy is −1."""
    model, inputs = game(either)
    for shift in (0, 1):
        maps = finder(shift=shift)
        assert insertion(model, inputs, "one", 0, maps["one"]).gain.abs().max() == 0
    gains = [synergy(model, inputs, 0, finder(shift=s))["one", "two"].gain.mean() for s in (0, 1)]
    assert gains[0] < -0.5
    assert abs(gains[1]) < 0.15


def test_additive_models_have_none_whatever_the_map() -> None:
    model = model_of({"one": toy.Linear(), "two": toy.Linear(), "three": toy.Linear()}, Concat, hidden=None)
    inputs = clips(6)
    for method in (gradient_input, occlusion, kernel_shap):
        maps = {m: method(model, inputs, m, 1, flat_atoms(6)) for m in inputs}
        for found in synergy(model, inputs, 1, maps).values():
            assert float(found.curve.abs().max()) < 1e-12
            assert float(found.random.abs().max()) < 1e-12
            assert found.interval().value == pytest.approx(0, abs=1e-12)


def test_of_three_modalities_each_pair_has_its_own() -> None:
    """one · two + three, and a product of all three, which no pair has: the third is at the baseline."""
    names = ("one", "two", "three")

    def product_of_two(one: Tensor, two: Tensor, three: Tensor) -> Tensor:
        return both(one, two) + three[:, PLANTED["three"]]

    def product_of_all(one: Tensor, two: Tensor, three: Tensor) -> Tensor:
        return both(one, two) * three[:, PLANTED["three"]]

    for function, expected in ((product_of_two, [1.0, 0, 0]), (product_of_all, [0.0, 0, 0])):
        model, inputs = game(function, names, 2)
        found = synergy(model, inputs, 0, finder(names, 2))
        assert [*found] == [*combinations(names, 2)]
        assert [float(one.whole[0]) for one in found.values()] == expected
    some = synergy(model, inputs, 0, {m: finder(names, 2)[m] for m in ("one", "three")})
    assert [*some] == [("one", "three")]


@pytest.mark.parametrize("target", ["predicted", 2, Unit(3)])
def test_curves_equal_a_loop_over_the_whole_model(target: Any) -> None:
    """Atoms of several elements, of another number in each modality, and another baseline."""
    model = model_of({"one": toy.Linear(), "two": toy.Tokens(), "three": toy.Linear()}, Attention, None).eval()
    inputs = clips(3)
    goal = model(inputs).argmax(1) if target == "predicted" else target
    base = {m: x.mean(0) for m, x in inputs.items()}
    atoms = {"one": waveform_atoms((6,), 5, 1.0), "three": waveform_atoms((6,), 3, 1.0)}
    generator = torch.Generator().manual_seed(4)
    values = {m: torch.randn(3, len(a), generator=generator).double() for m, a in atoms.items()}
    maps = {m: Importance(values[m], None, atoms[m], "given") for m in atoms}
    found = synergy(model, inputs, target, maps, "mean", steps=9, batch=7, encoder_batch=4)["one", "three"]
    assert found.fraction.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])

    def score(n: int, kept: dict[str, Tensor]) -> Tensor:
        """Of clip n with these atoms kept, everything else of all modalities at the baseline."""
        x = {m: base[m][None] for m in inputs}
        for m, chosen in kept.items():
            x[m] = torch.where(torch.isin(atoms[m].label, chosen), inputs[m][n], base[m])[None]
        encodings = model.encode(x)
        if isinstance(goal, Unit):
            return model.penultimate(encodings)[0, goal.index]
        logits: Tensor = model.head(encodings)
        return logits[0, goal if isinstance(goal, int) else int(goal[n])]

    for n in range(3):
        best = {m: values[m][n].argsort(descending=True) for m in atoms}
        for p, numbers in enumerate(((0, 0), (1, 1), (3, 2), (5, 3))):
            kept = {m: best[m][:k] for m, k in zip(atoms, numbers, strict=True)}
            parts = [score(n, kept), *(score(n, {m: kept[m]}) for m in kept), score(n, {})]
            torch.testing.assert_close(found.curve[n, p], (parts[0] - parts[1] - parts[2] + parts[3]).detach())
    torch.testing.assert_close(found.random[:, :, -1], found.whole.expand(8, -1))


def test_methods_share_the_random_atoms_and_nothing_depends_on_the_batch() -> None:
    model, inputs = model_of({"one": toy.Linear(), "two": toy.Linear()}), clips(4, ("one", "two"))
    maps = [{m: f(model, inputs, m, 1, flat_atoms(6)) for m in inputs} for f in (gradient_input, occlusion)]
    state = torch.random.get_rng_state()
    model.train()
    shared = synergies(model, inputs, 1, maps, orders=3)
    for one, some in zip(maps, shared, strict=True):
        alone = synergy(model, inputs, 1, one, orders=3, batch=5, encoder_batch=2)
        for pair, found in alone.items():
            torch.testing.assert_close(found.curve, some[pair].curve)
            torch.testing.assert_close(found.random, some[pair].random)
    other = synergy(model, inputs, 1, maps[0], orders=3, seed=1)["one", "two"]
    assert not torch.equal(other.random, shared[0]["one", "two"].random)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_equal_values_come_in_random_order() -> None:
    model, inputs = game(both, count=400)
    flat = {m: Importance(torch.ones(400, SIZE).double(), None, ATOMS, "flat") for m in inputs}
    found = synergy(model, inputs, 0, flat, orders=1)["one", "two"]
    assert abs(float(found.gain.mean())) < 4 * float(found.gain.std()) / 20


def test_rows() -> None:
    """M = 3 of which two have maps, S = (methods + R)(P − 1) sets: what the docstring says.

    Every order ends with the same set, of all atoms, which is encoded once.
    """
    model, inputs = (
        model_of({"one": toy.Linear(), "two": toy.Tokens(), "three": toy.Linear()}, Attention, None),
        clips(),
    )
    one = {m: occlusion(model, inputs, m, 1, flat_atoms(6)) for m in ("one", "three")}
    all_three = one | {"two": occlusion(model, inputs, "two", 1, flat_atoms(6))}
    for maps, sets, pairs in (([one], (1 + 3) * 4, 1), ([one, one], (2 + 3) * 4, 1), ([all_three], (1 + 3) * 4, 3)):
        counter = Counter(model)
        synergies(model, inputs, 1, maps, orders=3, steps=4, batch=9, encoder_batch=7)
        names, size = [*maps[0]], len(inputs["one"])
        in_order = [m for m in model.modalities if m in names]
        ranks = _ranks(maps, dict.fromkeys(in_order, flat_atoms(6)), size, 3, 0)
        for m in inputs:
            encoded = 2 * size  # the clip as it is, and nothing kept
            for clip in range(size) if m in names else ():
                chosen = ranks[m][:, clip, None] < (torch.arange(1, 5) * 6 // 4)[:, None]
                encoded += len(torch.unique(chosen.flatten(0, 1), dim=0))
            assert counter.rows[m] == encoded
        assert counter.rows["head"] == size * (1 + (len(names) + pairs) * sets)
        assert counter.largest <= 9
    counter = Counter(model)
    synergy(model, inputs, "predicted", one, orders=3, steps=4)
    assert counter.rows["head"] == size * (2 + 3 * 16)


def test_one_clip_and_one_atom() -> None:
    model, inputs = game(both, count=1)
    atoms = waveform_atoms((SIZE,), 1, 1.0)
    maps = {m: Importance(torch.ones(1, 1).double(), None, atoms, "whole") for m in inputs}
    found = synergy(model, inputs, 0, maps)["one", "two"]
    assert found.curve.tolist() == [[0, 1]]
    interval = found.interval()
    assert interval.value == interval.low == interval.high == 0


def test_refusals() -> None:
    model, inputs = model_of({"one": toy.Linear(), "two": toy.Linear()}), clips(5, ("one", "two"))
    good = {m: occlusion(model, inputs, m, 1, flat_atoms(6)) for m in inputs}
    values = good["one"].values
    coarse = waveform_atoms((6,), 3, 1.0)
    cases: list[tuple[list[Any], str]] = [
        ([], "must be of one method at least"),
        ([{"one": good["one"]}], "two or more modalities of one, two"),
        ([{**good, "four": good["one"]}], "must be of the same two or more modalities of one, two"),
        ([{**good, "one": gradient(model, inputs, "one", 1)}], "pass atoms to gradient"),
        ([{**good, "one": Importance(values[:, :4], None, flat_atoms(6), "cut")}], r"\(5, 4\), expected \(5, 6\)"),
        ([{**good, "one": Importance(values * math.nan, None, flat_atoms(6), "nan_map")}], "nan_map has values"),
        ([good, {**good, "one": Importance(values[:, :3], None, coarse, "coarse")}], "maps.one: must all be of"),
    ]  # fmt: skip
    for maps, message in cases:
        with pytest.raises(UserError, match=message):
            synergies(model, inputs, 1, maps)
    bad: list[Any] = [{"orders": 0}, {"steps": 0}, {"batch": 0}]
    for options in bad:
        with pytest.raises(UserError, match="=0: must be at least 1"):
            synergy(model, inputs, 1, good, **options)
    with pytest.raises(UserError, match="baseline='none'"):
        synergy(model, inputs, 1, good, "none")  # type: ignore[arg-type]
