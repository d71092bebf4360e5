from typing import Any

import pytest
import torch

from amr.fusion import Attention, Concat
from amr.model import FusionModel
from amr.multiviz.representation import extreme_clips, extreme_features
from amr.utils.errors import UserError
from tests.toy import Linear, Tokens, Toy


def model(modalities: tuple[str, ...] = ("audio", "video")) -> FusionModel:
    torch.manual_seed(0)
    return FusionModel({m: Linear() for m in modalities}, Concat(dict.fromkeys(modalities, 8), 3))


def batches(toy: Toy, size: int) -> list[dict[str, Any]]:
    return [toy.collate(list(range(i, min(i + size, len(toy.label))))) for i in range(0, len(toy.label), size)]


@pytest.mark.parametrize("modalities", [("audio",), ("audio", "video"), ("audio", "video", "text")])
@pytest.mark.parametrize("size", [1, 7, 32])
def test_equals_a_sort_of_everything(modalities: tuple[str, ...], size: int) -> None:
    toy, net = Toy(modalities=modalities), model(modalities)
    found = extreme_clips(batches(toy, size), net, [3, 0, 5], k=4)
    with torch.no_grad():
        features = net.penultimate(net.encode(toy.inputs))[:, [3, 0, 5]]
    order = features.argsort(0)
    assert found.units == [3, 0, 5]
    for u in range(3):
        assert found.least.ids[u] == [f"clip{i}" for i in order[:4, u]]
        assert found.most.ids[u] == [f"clip{i}" for i in order.flip(0)[:4, u]]
        assert found.most.labels[u].tolist() == toy.label[order.flip(0)[:4, u]].tolist()
    torch.testing.assert_close(found.most.values, features.sort(0, descending=True).values[:4].t())
    torch.testing.assert_close(found.least.values, features.sort(0).values[:4].t())
    assert (found.clips, found.lacking) == (32, 0)


@pytest.mark.parametrize("size", [1, 3, 8, 24])
def test_equal_clips_go_by_id_whatever_the_batch(size: int) -> None:
    toy, net = Toy(clips=24), model()
    for name in toy.inputs:
        toy.inputs[name][:] = toy.inputs[name][:1]
    found = extreme_clips(reversed(batches(toy, size)), net, k=3)
    assert len(found.units) == 16
    assert found.most.ids == found.least.ids == [["clip0", "clip1", "clip10"]] * 16


def test_a_planted_unit_finds_its_clips() -> None:
    toy, net = Toy(), model()
    with torch.no_grad():
        net.encoders["video"].get_parameter("net.0.weight")[2] = torch.tensor([0, 9.0, 0, 0, 0, 0])
    toy.inputs["video"][[5, 9], 1] = torch.tensor([10.0, -10.0])
    toy.inputs["video"][[i for i in range(32) if i not in (5, 9)], 1] *= 0.01
    found = extreme_clips(batches(toy, 8), net, [8 + 2], k=1)
    assert (found.most.ids, found.least.ids) == ([["clip5"]], [["clip9"]])


def test_clips_that_lack_a_modality_are_left_out_and_counted() -> None:
    toy, net = Toy(lacking=True), model()
    found = extreme_clips(batches(toy, 4), net, k=50)
    assert (found.clips, found.lacking) == (24, 8)
    assert found.most.values.shape == (16, 24)
    assert all(int(i[4:]) % 4 for row in found.most.ids for i in row)


def test_a_clip_that_comes_twice_counts_once() -> None:
    toy, net = Toy(clips=4), model()
    found = extreme_clips([*batches(toy, 2), toy.collate([1, 1])], net, [0], k=4)
    assert sorted(found.most.ids[0]) == ["clip0", "clip1", "clip2", "clip3"]


def test_tokens_mode_rng_and_inputs_are_left_alone() -> None:
    toy = Toy()
    net = FusionModel({"audio": Tokens(), "video": Linear()}, Attention({"audio": 8, "video": 8}, 3)).train()
    inputs = {m: x.clone() for m, x in toy.inputs.items()}
    state = torch.get_rng_state()
    found = extreme_clips(batches(toy, 5), net, k=2)
    assert found.most.values.shape == (8, 2)
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(inputs[m], toy.inputs[m]) for m in inputs)


def test_mistakes_are_named() -> None:
    toy, net = Toy(), model()
    with pytest.raises(UserError, match="must be 0 to 15"):
        extreme_clips(batches(toy, 8), net, [16])
    with pytest.raises(UserError, match="k=.*: must be"):
        extreme_clips(batches(toy, 8), net, k=0)
    with pytest.raises(UserError, match="no clip has every modality; 0 lack"):
        extreme_clips([], net)
    toy.inputs["audio"][3] = torch.nan
    with pytest.raises(UserError, match="'clip3' is not finite"):
        extreme_clips(batches(toy, 8), net)


def test_known_features_are_ranked_as_batches_are() -> None:
    toy, net = Toy(clips=24), model()
    whole = toy.collate(list(range(24)))
    with torch.no_grad():
        features = net.penultimate(net.encode(whole["inputs"]))
    for units in (None, [3, 0]):
        expected = extreme_clips(batches(toy, 7), net, units, k=4)
        found = extreme_features(features, whole["id"], whole["label"], units, k=4)
        assert found.units == expected.units
        assert (found.most.ids, found.least.ids) == (expected.most.ids, expected.least.ids)
        torch.testing.assert_close(found.least.values, expected.least.values)
        assert torch.equal(found.most.labels, expected.most.labels)
    with pytest.raises(UserError, match="must be 0 to 15"):
        extreme_features(features, whole["id"], whole["label"], [16])
    with pytest.raises(UserError, match="no clip"):
        extreme_features(features[:0], [], whole["label"][:0])
