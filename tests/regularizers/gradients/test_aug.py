"""AUG: turns, the loss of a head that has grown, and when and where it grows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from amr.fusion import Concat, Shared
from amr.regularizers import AUG, EpochState
from amr.regularizers.gradients.aug import BoostedHead, residual_weights, weaker
from amr.utils.errors import UserError
from tests.regularizers.recorded import steps
from tests.toy import Toy
from tests.training import build, fit

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty|Average precision)"
)


def grown(model: Any, *blocks: float) -> BoostedHead:
    head = model.model.head
    assert isinstance(head, BoostedHead)
    head.grown.copy_(torch.tensor(blocks))
    return head


def outputs(head: BoostedHead, name: str, encoding: torch.Tensor) -> list[torch.Tensor]:
    """Each block's logits, by hand."""
    blocks: Any = head.blocks[name]
    return [head.classifier(torch.relu(block(encoding))) for block in blocks]


def test_each_turns_gradients_by_the_released_formula() -> None:
    """Audio has one block and video three, the newest of which learns CE(y) − λ CE(y ⊙ q), as released."""
    model = build(fusion=Shared, aug=AUG(width=5, most=4, residual=0.5))
    head, batch = grown(model, 1, 3), Toy().collate([*range(8)])
    label = batch["label"]
    recorded = steps(model, batch)
    assert len(recorded) == 2
    for turn, (name, blocks) in enumerate((("audio", 1), ("video", 3))):
        each = outputs(head, name, model.model.encoders[name](batch["inputs"][name]))[:blocks]
        total = torch.stack(each).sum(0)
        loss = F.cross_entropy(total, label)
        if blocks > 1:
            older = torch.stack(each[:-1]).sum(0)
            soft = F.one_hot(label, 3) * older.detach().softmax(1)
            loss = loss + F.cross_entropy(older, label) + F.cross_entropy(each[-1], label)
            loss = loss - 0.5 * F.cross_entropy(each[-1], soft)
        parameters = dict(model.model.named_parameters())
        pieces = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
        for (key, parameter), piece in zip(parameters.items(), pieces, strict=True):
            expected = torch.zeros_like(parameter) if piece is None else piece
            torch.testing.assert_close(recorded[turn][key], expected, msg=f"{name} {key}")


def test_the_prediction_is_the_weighted_mean_over_grown_blocks() -> None:
    model = build(fusion=Shared, aug=AUG(width=5, most=4, weights={"audio": 2, "video": 3}))
    head = grown(model, 2, 1)
    encodings = {name: torch.randn(6, 8) for name in ("audio", "video")}
    each = {name: outputs(head, name, encoding) for name, encoding in encodings.items()}
    expected = 0.4 * (each["audio"][0] + each["audio"][1]) + 0.6 * each["video"][0]
    torch.testing.assert_close(head(encodings), expected)
    parts = head.additive_logits(encodings)
    torch.testing.assert_close(parts["audio"] + parts["video"], expected)
    torch.testing.assert_close(head.unimodal_logits(encodings)["video"], each["video"][0])


def test_blocks_that_no_loss_reaches_do_not_move() -> None:
    """Neither weight decay nor momentum moves them; a block of the other modality waits for its turn."""
    model = build(fusion=Shared, aug=AUG(width=5, most=3))
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    fit(model, max_epochs=1)
    after = model.model.state_dict()
    for key in before:
        if key.startswith("head.blocks"):
            assert torch.equal(before[key], after[key]) == (".0." not in key), key


def test_a_block_is_added_for_the_weaker_modality_and_comes_back(tmp_path: Path) -> None:
    assert weaker(torch.tensor([0.50, 0.60]), 0.1) == 0
    assert weaker(torch.tensor([0.55, 0.60]), 0.1) is None
    assert weaker(torch.tensor([0.5, 0.7, 0.2]), 0.1) == 2

    def model() -> Any:
        return build(fusion=Shared, aug=AUG(width=5, every=2, most=2, tolerance=0.0))

    trained = model()
    trainer = fit(trained, max_epochs=2)
    method, head = trained.regularizers.methods["aug"], trained.model.head
    first = head.grown.tolist()
    assert first == [2.0 if i == int(method.means.compute()[:2].argmin()) else 1.0 for i in (0, 1)]
    for epoch, scores, expected in (
        *((2, (0.1, 0.9), first), (3, (0.5, 0.5), first), (3, (0.1, 0.9), [2.0, first[1]])),
        *((5, (0.1, 0.9), [2.0, first[1]]), (5, (0.9, 0.1), [2.0, 2.0])),
    ):
        method.means.reset()
        method.means.update(torch.tensor([*scores, 1.0, 1.0]))
        method.on_epoch_end(EpochState({}, trained.model, epoch))
        assert head.grown.tolist() == expected
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    fresh = model()
    fresh.load_state_dict(torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"])
    inputs = Toy().collate([0, 1])["inputs"]
    trained.eval(), fresh.eval()
    assert torch.equal(trained(inputs), fresh(inputs))


def test_scores_are_the_epochs_probability_of_the_true_class() -> None:
    model = build(fusion=Shared, aug=AUG(width=5))
    batch = Toy(lacking=True).collate([*range(8)])
    steps(model, batch)
    method, head = model.regularizers.methods["aug"], model.model.head
    assert isinstance(method, AUG)
    encodings = model.model.encode(batch["inputs"], batch["present"])
    has = {"audio": torch.ones(8, dtype=torch.bool), **batch["present"]}
    for index, name in enumerate(("audio", "video")):
        right = head.unimodal_logits(encodings)[name].softmax(1)[torch.arange(8), batch["label"]]
        torch.testing.assert_close(method.means.compute()[index], right[has[name]].mean().detach())


def test_residual_weights_by_hand() -> None:
    older = torch.tensor([[0.7, 0.2, 0.1]]).log()
    assert residual_weights(older, torch.tensor([0]), 0.5).item() == pytest.approx(0.65)


@pytest.mark.parametrize(("fusion", "name"), [(Concat, "Concat"), (lambda d, c: Shared(d, c, hidden=4), "Shared")])
def test_other_fusions_are_refused(fusion: Any, name: str) -> None:
    with pytest.raises(UserError, match=rf"model\.aug: needs the fusion Shared without a hidden layer, not {name}"):
        build(fusion=fusion, aug=AUG())
