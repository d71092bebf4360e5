"""SMV: contributions against orderings, the copies that follow, and that they are what is trained."""

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from amr.classifier import FusionClassifier
from amr.fusion import Gated
from amr.regularizers import SMV, Regularizer, Step
from amr.regularizers.epochs.smv import contributions, repeats, weakest
from amr.utils.errors import UserError
from tests.ranks import fit_on, on_one_and_two_ranks
from tests.toy import Linear, Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty|Average precision)"
)


def by_orderings(right: dict[frozenset[int], bool], has: set[int], count: int) -> list[float]:
    """Each modality's mean gain over all orders in which they join, by the definition of Shapley."""
    phi = [0.0] * count
    for order in itertools.permutations(range(count)):
        joined: set[int] = set()
        for m in order:
            before, after = joined & has, (joined | {m}) & has
            gain = len(after) * right[frozenset(after)] - len(before) * right[frozenset(before)]
            phi[m] += gain / math.factorial(count)
            joined.add(m)
    return phi


@pytest.mark.parametrize("count", [2, 3, 4])
def test_contributions_are_mean_gains_over_orderings(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    present = torch.rand(40, count, generator=generator) < 0.8
    present[:, 0] |= ~present.any(1)
    right = torch.rand(2**count, 40, generator=generator) < 0.5
    for i in range(40):  # what a clip lacks cannot change its prediction
        mask = sum(1 << m for m in range(count) if present[i, m])
        right[:, i] = right[torch.arange(2**count) & mask, i]
    got = contributions(right, present)
    for i in range(40):
        rights = {frozenset(m for m in range(count) if s >> m & 1): bool(right[s, i]) for s in range(2**count)}
        expected = by_orderings(rights, {m for m in range(count) if present[i, m]}, count)
        assert got[i].tolist() == pytest.approx(expected, abs=1e-12)


def test_two_modalities_as_in_the_paper() -> None:
    """φ_a = ½ (v_a + v_av − v_v); one copy for ½, two for 0, three for −½."""
    cases = torch.tensor([*itertools.product([0, 1], repeat=3)]).bool().T  # audio, video, both
    phi = contributions(torch.cat([torch.zeros(1, 8, dtype=torch.bool), cases]), torch.ones(8, 2, dtype=torch.bool))
    times = repeats(phi, torch.ones(8, 2, dtype=torch.bool))
    copies = {1.5: 0, 1.0: 0, 0.5: 1, 0.0: 2, -0.5: 3}
    for i, (a, v, both) in enumerate(cases.T.long().tolist()):
        own, other = (a + 2 * both - v) / 2, (v + 2 * both - a) / 2
        assert phi[i].tolist() == [own, other]
        assert times[i].tolist() == [copies[own], copies[other]]
    assert repeats(phi, torch.zeros(8, 2, dtype=torch.bool)).sum() == 0


def test_the_weakest_modality_and_its_gap() -> None:
    phi = torch.tensor([[1.0, 0.5, 0.0], [1.5, 0.5, 1.0]])
    every, few = torch.ones(2, 3, dtype=torch.bool), torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    for present, least, gap in ((every, 1, (1.25 + 0.5) / 2 - 0.5), (few, 2, (1.25 + 0.5) / 2)):
        index, got = weakest(phi, present)
        assert index == least
        assert got == pytest.approx(gap)
    assert weakest(torch.ones(4, 2), torch.ones(4, 2, dtype=torch.bool))[1] == 0


class Watcher(Regularizer):
    name = "watcher"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Counter[tuple[str, tuple[bool, ...]]]] = []
        self.states: list[dict[str, Tensor]] = []

    def on_epoch_start(self, state: Any) -> None:
        self.seen.append(Counter())
        self.states.append({key: value.clone() for key, value in state.model.state_dict().items()})

    def losses(self, step: Step) -> dict[str, Tensor]:
        masks = step.has([*step.encodings]).T.tolist()
        self.seen[-1].update((id, tuple(mask)) for id, mask in zip(step.id, masks, strict=True))
        return {}


@pytest.mark.parametrize("lacking", [False, True])
@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio", "video", "touch")], ids=len)
def test_the_sample_level_trains_the_copies(modalities: tuple[str, ...], lacking: bool) -> None:
    model = build(fusion=Gated, extra=[watcher := Watcher()], smv=SMV(start_epoch=1), modalities=modalities)
    data, count = Toy(modalities=modalities, lacking=lacking), len(modalities)
    trainer = fit(model, data, max_epochs=2)
    net = build(fusion=Gated, modalities=modalities).model.eval()
    net.load_state_dict(watcher.states[1])
    clips = data.collate(list(range(32)))
    with torch.no_grad():
        encodings = net.encode(clips["inputs"], clips.get("present"))
    expected: Counter[tuple[str, tuple[bool, ...]]] = Counter()
    for i in range(32):
        has = {m for m, name in enumerate(modalities) if not lacking or name != "video" or i % 4}
        right = {}
        for size in range(count + 1):
            for chosen in itertools.combinations(range(count), size):
                zeroed = {n: e[i : i + 1] * (m in chosen) for m, (n, e) in enumerate(encodings.items())}
                right[frozenset(chosen)] = bool(net.head(zeroed).argmax(1) == data.label[i])
        expected[f"clip{i}", tuple(m in has for m in range(count))] += 1
        for m, phi in enumerate(by_orderings(right, has, count)):
            if m in has and phi < 1:
                expected[f"clip{i}", tuple(k == m for k in range(count))] += math.floor(2 * (1 - phi) + 0.5)
    assert watcher.seen[1] == expected
    assert sum(watcher.seen[0].values()) == 32 < sum(watcher.seen[1].values())
    repeated = sum(trainer.callback_metrics[f"train/smv/repeated/{name}"].item() for name in modalities)
    assert repeated == sum(expected.values()) - 32


def test_the_modality_level_trains_the_weakest_on_further_clips() -> None:
    smv = SMV("modality", start_epoch=1, fraction=0.5, rate=2 / 3)
    model = build(extra=[watcher := Watcher()], smv=smv)
    fit(model, max_epochs=3)
    for seen in watcher.seen[1:]:
        assert all(seen[f"clip{i}", (True, True)] == 1 for i in range(32))
    report = smv.report()
    names = sorted(("audio", "video"), key=lambda name: report[f"contribution/{name}"])
    gap = report[f"contribution/{names[1]}"] - report[f"contribution/{names[0]}"]
    alone = [(id, mask) for id, mask in watcher.seen[2] if not all(mask)]
    assert len(alone) == report[f"repeated/{names[0]}"] == round(32 * 2 / 3 * gap) > 0
    assert {mask for _, mask in alone} == {(names[0] == "audio", names[0] == "video")}
    assert report[f"repeated/{names[1]}"] == 0


def test_a_rate_of_zero_is_naive() -> None:
    """The same clips once, though in an order of its own; so one batch of all."""
    method, naive = build(smv=SMV("modality", rate=0.0, start_epoch=0)), build()
    for model in (method, naive):
        fit(model, Toy(batch_size=32), max_epochs=2)
    assert_equal(weights(method), weights(naive), atol=1e-6)
    later, plain = build(smv=SMV(start_epoch=2)), build()
    for model in (later, plain):
        fit(model, max_epochs=2)
    assert_equal(weights(later), weights(plain))


def train(world: int, case: str) -> dict[str, Tensor]:
    smv = SMV("modality" if case == "modality" else "sample", start_epoch=1, fraction=1.0)
    model = build(smv=smv)
    fit_on(world, model, Toy(batch_size=16, lacking=case == "lacking"))
    copies = model._clips.chosen
    assert copies is not None
    return {**weights(model), "clips": copies["clips"], "report": torch.tensor([*smv.report().values()])}


def test_two_ranks_choose_the_same_clips_as_one_process() -> None:
    """And train on them: an odd number of copies leaves the last out, on two ranks."""
    for one, *ranks in on_one_and_two_ranks(train, ["sample", "modality", "lacking"]).values():
        assert_equal(ranks[0], ranks[1])
        assert torch.equal(one["clips"], ranks[0]["clips"])
        assert torch.equal(one["report"], ranks[0]["report"])
        if len(one["clips"]) % 2 == 0:
            assert_equal(one, ranks[0], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: SMV("clip"), "model.smv.level='clip': must be one of sample, modality"),  # type: ignore[arg-type]
        (lambda: SMV(rate=-0.1), "model.smv.rate=-0.1: must be a finite number >= 0"),
        (lambda: SMV(fraction=0.0), "model.smv.fraction=0.0: must be a number in (0, 1]"),
        (lambda: FusionClassifier({"audio": Linear()}, extra=[SMV()]), "model.smv: needs at least 2 modalities"),
    ],
)
def test_refused_by_name(make: Any, key: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value).startswith(key)
