"""Data Remixing: who trains what, in which order, and with which gradients."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amr.classifier import FusionClassifier
from amr.fusion import Concat, Gated
from amr.regularizers import DataRemixing, Regularizer, Step
from amr.regularizers.epochs.data_remixing import certainty, remixed
from amr.utils.errors import UserError
from tests.ranks import fit_on, on_one_and_two_ranks
from tests.regularizers.recorded import one_step
from tests.toy import Linear, Tokens, Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty|Average precision)"
)


def test_certainty_is_the_divergence_from_a_uniform_prediction() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(6, 5, dtype=torch.float64)
    for row, value in zip(logits, certainty(logits).tolist(), strict=True):
        p = [math.exp(x) / sum(math.exp(y) for y in row.tolist()) for x in row.tolist()]
        assert value == pytest.approx(sum(q * math.log(q * 5) for q in p), abs=1e-12)
    assert certainty(torch.zeros(1, 7)).item() == pytest.approx(0, abs=1e-6)
    assert certainty(torch.tensor([[1e4, 0.0, 0.0]])).item() == pytest.approx(math.log(3))
    assert certainty(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_clip_trains_the_modality_that_is_least_certain_and_there() -> None:
    certainties = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.1, 0.2, 0.3], [0.5, 0.5, 0.5]])
    present = torch.tensor([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]]).bool()
    assert remixed(certainties, present).tolist() == [0, 2, 1, 0]


class Watcher(Regularizer):
    """What each step trains, and the state before the epoch's first."""

    name = "watcher"

    def __init__(self, method: DataRemixing) -> None:
        super().__init__()
        self.__dict__["method"] = method
        self.seen: list[tuple[int, str, tuple[bool, ...]]] = []
        self.states: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def on_epoch_start(self, state: Any) -> None:
        copies = [{k: v.clone() for k, v in m.state_dict().items()} for m in (state.model, self.__dict__["method"])]
        self.states.append((copies[0], copies[1]))

    def losses(self, step: Step) -> dict[str, Tensor]:
        masks = step.has([*step.encodings]).T.tolist()
        self.seen += [(step.epoch, id, tuple(mask)) for id, mask in zip(step.id, masks, strict=True)]
        return {}


@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio", "video", "touch")], ids=len)
def test_each_epoch_trains_every_clip_on_one_modality(modalities: tuple[str, ...]) -> None:
    method = DataRemixing(start_epoch=1)
    model = build(extra=[watcher := Watcher(method)], data_remixing=method, modalities=modalities)
    data = Toy(modalities=modalities, lacking=True)
    trainer = fit(model, data, max_epochs=3)
    there = data.collate(list(range(32)))["present"]["video"]
    for epoch in range(3):
        seen = {id: mask for e, id, mask in watcher.seen if e == epoch}
        assert len(seen) == sum(e == epoch for e, *_ in watcher.seen) == 32
        if epoch == 0:
            assert all(sum(mask) == len(modalities) - (not there[int(id[4:])]) for id, mask in seen.items())
            continue
        net, own = watcher.states[epoch]
        start = build(modalities=modalities).model
        start.load_state_dict(net)
        with torch.no_grad():
            encodings = start.eval().encode(data.inputs)
        divergence = []
        for name in modalities:  # log C − H, with the classifiers as they were
            p = F.linear(encodings[name], own[f"heads.heads.{name}.weight"], own[f"heads.heads.{name}.bias"]).softmax(1)
            divergence.append(math.log(3) + (p * p.log()).sum(1))
        for i in range(32):
            values = {m: float(d[i]) for m, d in zip(modalities, divergence, strict=True) if m != "video" or there[i]}
            least = min(values, key=lambda m: values[m])
            assert seen[f"clip{i}"] == tuple(m == least for m in modalities)
        order = [mask.index(True) for e, _, mask in watcher.seen if e == epoch]
        assert order == sorted(order, reverse=True)  # the last modality's clips first
        assert len(set(order)) > 1
    assert trainer.global_step == 12
    counts = method.report()
    assert sum(counts.values()) == 32
    assert counts["clips/audio"] == order.count(0)


@pytest.mark.parametrize("fusion", [Concat, Gated])
@pytest.mark.parametrize("epoch", [0, 1])
def test_gradients_are_those_of_the_equation(fusion: Any, epoch: int) -> None:
    """Warm-up: CE + ½ Σ CE_m. Then a clip's loss is CE with zeros for the other encodings, plus γ CE_m."""
    method = DataRemixing(weight=0.7, warm_up_weight=0.3, start_epoch=1)
    model = build(fusion=fusion, data_remixing=method)
    batch = Toy().collate(list(range(8)))
    if epoch:  # as the loader gives it: half the clips train the audio, half the video
        batch["present"] = {"audio": torch.arange(8) % 2 == 0, "video": torch.arange(8) % 2 == 1}
        method.window.start = 0
    # One batch as a loader has no clips to choose from.
    method.__class__ = type("Given", (DataRemixing,), {"name": "data_remixing", "select": Regularizer.select})
    net = model.model
    encodings = net.encode(batch["inputs"])
    loss = torch.zeros(())
    for i in range(8):
        has = [m for m in net.modalities if not epoch or batch["present"][m][i]]
        clip = {m: e[i : i + 1] if m in has else torch.zeros(1, 8) for m, e in encodings.items()}
        loss = loss + F.cross_entropy(net.head(clip), batch["label"][i : i + 1]) / 8
        for m in has:
            own = F.cross_entropy(method.heads.heads[m](clip[m]), batch["label"][i : i + 1])
            loss = loss + (0.7 if epoch else 0.3) * own / 8
    named = dict(net.named_parameters())
    slopes = torch.autograd.grad(loss, [*named.values()], materialize_grads=True)
    assert_equal(one_step(model, batch), dict(zip(named, slopes, strict=True)), atol=1e-6)


def test_without_weights_it_is_naive_until_it_starts() -> None:
    method, naive = build(data_remixing=DataRemixing(warm_up_weight=0.0, start_epoch=2)), build()
    for model in (method, naive):
        fit(model, max_epochs=2)
    assert_equal(weights(method), weights(naive))


def train(world: int, case: str) -> dict[str, Tensor]:
    method = DataRemixing(start_epoch=1)
    model = build(data_remixing=method, encoder=Tokens if case == "tokens" else Linear)
    fit_on(world, model, Toy(batch_size=16, lacking=case == "lacking"))
    return {**weights(model), **method.state_dict(), "report": torch.tensor([*method.report().values()])}


def test_two_ranks_equal_one_process_on_the_joined_batch() -> None:
    for one, *ranks in on_one_and_two_ranks(train, ["plain", "lacking", "tokens"]).values():
        assert_equal(ranks[0], ranks[1])
        assert_equal(one, ranks[0], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataRemixing(weight=-1.0), "model.data_remixing.weight=-1.0: must be a finite number >= 0"),
        (lambda: DataRemixing(warm_up_weight=math.inf), "model.data_remixing.warm_up_weight=inf: must be"),
        (lambda: DataRemixing(start_epoch=3, end_epoch=3), "model.data_remixing: start_epoch=3, end_epoch=3"),
        (lambda: FusionClassifier({"audio": Linear()}, extra=[DataRemixing()]), "data_remixing: needs at least 2"),
    ],
)
def test_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert message.split(": ")[0] in str(caught.value)
    assert message.split(": ")[1] in str(caught.value)
