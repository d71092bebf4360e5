"""Re-learning: purities against scikit-learn's own counts, and what becomes of each weight."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from sklearn.cluster import KMeans
from sklearn.preprocessing import scale
from torch import Tensor

from amr.regularizers import EpochState, Regularizer, Relearning
from amr.regularizers.epochs.relearning import purity, return_weight, separability
from amr.utils.errors import UserError
from tests.ranks import fit_on, on_one_and_two_ranks
from tests.regularizers.epochs.choosers import Plain
from tests.regularizers.probes import Convolution
from tests.toy import Tokens, Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty|have no `val_dataloader`)"
)


def counted(labels: list[int], clusters: list[int]) -> float:
    members = {c: Counter(x for x, y in zip(labels, clusters, strict=True) if y == c) for c in set(clusters)}
    return sum(max(counter.values()) for counter in members.values()) / len(labels)


def reference(encodings: Tensor, labels: Tensor, classes: int) -> float:
    x = encodings if encodings.ndim == 2 else encodings.mean(1)
    clusters = KMeans(classes, n_init=10, random_state=0).fit_predict(scale(x.double().numpy()))
    return counted(labels.tolist(), clusters.tolist())


def test_purity_counts_the_most_frequent_label_of_each_cluster() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        labels, clusters = (torch.randint(0, 4, (15,), generator=generator) for _ in range(2))
        assert purity(labels, clusters) == pytest.approx(counted(labels.tolist(), clusters.tolist()))
    assert purity(torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1])) == 1
    assert purity(torch.tensor([0, 1, 0, 1]), torch.zeros(4, dtype=torch.int64)) == 0.5


def test_separability_is_that_of_standardized_encodings() -> None:
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    mixed = torch.randn(60, 5) * torch.tensor([1e3, 1.0, 1.0, 1e-3, 0.0])
    mixed[:, 3] += 5e-3 * labels  # only the scaling makes it count
    assert separability(mixed, labels, 3) == pytest.approx(reference(mixed, labels, 3))
    apart = 10 * torch.nn.functional.one_hot(labels).float() + 0.1 * torch.randn(60, 3)
    assert separability(apart, labels, 3) == 1
    assert separability(torch.ones(6, 2), torch.arange(6) % 3, 3) == pytest.approx(1 / 3)  # all clips are equal
    assert separability(apart[:2], labels[:2], 3) == 1  # fewer clips than classes


def test_return_weight() -> None:
    assert return_weight(0.0) == 0
    assert return_weight(0.2) == pytest.approx((math.exp(1.2) - 1) / (math.exp(1.2) + 1))
    assert return_weight(0.9, 0.0) == 0


class Watcher(Regularizer):
    """The weights and encodings just before and just after the method."""

    name = "watcher"

    def __init__(self, order: int) -> None:
        super().__init__()
        self.__dict__.update(order=order, name=f"watcher{order}")
        self.states: dict[int, dict[str, Tensor]] = {}
        self.encodings: dict[int, Any] = {}

    def on_epoch_start(self, state: EpochState) -> None:
        self.states[state.epoch] = {key: value.clone() for key, value in state.model.state_dict().items()}
        self.encodings[state.epoch] = {split: state.encodings(split) for split in ("train", "val")}


@pytest.mark.parametrize("encoder", [Convolution, Tokens])
def test_each_weight_goes_back_by_its_encoders_gap(encoder: Any) -> None:
    before, after, method = Watcher(40), Watcher(60), Relearning([1, 3], strength=2.0)
    model = build(encoder=encoder, extra=[before, after], relearning=method)
    start = weights(model)
    trainer = fit(model, Plain(noise=0.5), max_epochs=4)
    parameters = {name for name, _ in model.model.named_parameters()}
    for epoch in range(4):
        got, moved = after.states[epoch], before.states[epoch]
        if epoch not in (1, 3):
            assert_equal(got, moved)
            continue
        encoded, factor = before.encodings[epoch], {}
        for name in ("audio", "video"):
            values = [reference(encoded[s].encodings[name], encoded[s].labels, 3) for s in ("train", "val")]
            factor[name] = math.tanh(2 * abs(values[0] - values[1]))
        for key in got:
            if key.endswith("num_batches_tracked"):
                continue
            w = factor.get(key.split(".")[1], 0.0) if key in parameters and key.startswith("encoders") else 0.0
            torch.testing.assert_close(got[key], w * start[key] + (1 - w) * moved[key], msg=key)
    assert max(factor.values()) > 0
    logged = trainer.callback_metrics
    assert [logged[f"train/relearning/return/{name}"].item() for name in factor] == pytest.approx([*factor.values()])


def test_without_strength_it_is_naive() -> None:
    method, naive = build(relearning=Relearning([1], strength=0.0)), build()
    for model in (method, naive):
        fit(model, max_epochs=2)
    assert_equal(weights(method), weights(naive))


def test_a_frozen_encoder_stays() -> None:
    model = build(relearning=Relearning([1], strength=50.0))
    model.model.encoders["audio"].requires_grad_(False)
    start = weights(model)
    fit(model, Plain(noise=0.5), max_epochs=2)
    assert all(torch.equal(start[k], v) for k, v in weights(model).items() if k.startswith("encoders.audio"))


def train(world: int, case: str) -> dict[str, Tensor]:
    method = Relearning([1])
    model = build(relearning=method)
    fit_on(world, model, Toy(batch_size=16, lacking=case == "lacking"))
    return {**weights(model), "gaps": method.means.sums.clone()}


def test_two_ranks_equal_one_process_on_the_joined_batch() -> None:
    for one, *ranks in on_one_and_two_ranks(train, ["plain", "lacking"]).values():
        assert_equal(ranks[0], ranks[1])
        assert_equal(one, ranks[0], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Relearning([0]), "model.relearning.epochs=[0]: must be a list of integers >= 1"),
        (lambda: Relearning(strength=math.nan), "model.relearning.strength=nan: must be"),
    ],
)
def test_refused_by_name(make: Any, key: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value).startswith(key)


def test_a_run_without_validation_is_refused_by_name() -> None:
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="^data.val_dataloader=None: must be a DataLoader"):
        trainer.fit(build(relearning=Relearning([1])), Toy().train_dataloader())
