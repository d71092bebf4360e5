"""The clips that a method chooses: which are trained, how scores are made, and that nothing else changes."""

import copy
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from amr.datamodules.selected import Copies, copies_of
from amr.model.passes import ClipPass, Scores
from amr.regularizers import AMR, EpochState, Regularizer
from amr.utils.errors import UserError
from tests.ranks import assert_ranks_equal, fit_on, on_one_and_two_ranks
from tests.regularizers.epochs.choosers import Chooser, Plain
from tests.regularizers.losses.test_gradient_blending import ResumableToy, Saver
from tests.regularizers.probes import Convolution
from tests.toy import Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty|not resumable"
    "|multi-threaded|Average precision|callbacks used to create)"
)


def audio_only(scores: Scores) -> Copies:
    """Every clip, and an even number of those that are predicted wrong once more without their video."""
    wrong = (scores.logits.argmax(1) != scores.labels).nonzero().flatten()
    wrong = wrong[: len(wrong) // 2 * 2]
    kept = torch.cat([torch.ones(len(scores), dtype=torch.bool), torch.zeros(len(wrong), dtype=torch.bool)])
    return Copies(torch.cat([torch.arange(len(scores)), wrong]), {"video": kept})


RULES: dict[str, Any] = {
    "copies": lambda epoch, scores: torch.arange(32) % 4,
    "weights": lambda epoch, scores: (torch.arange(32) % 4 == 1).float(),
    "masks": lambda epoch, scores: audio_only(scores) if epoch else None,
}


@pytest.mark.parametrize("data", [Toy, Plain, lambda: Plain(workers=1)], ids=["sampler", "shuffle", "workers"])
@pytest.mark.parametrize("rule", RULES)
def test_the_chosen_clips_are_trained(rule: str, data: Any) -> None:
    method = Chooser(RULES[rule])
    trainer = fit(build(extra=[method]), data(), max_epochs=3)
    for epoch in range(3):
        seen = [(id, mask) for e, id, mask in method.seen if e == epoch]
        counts = Counter(id for id, _ in seen)
        if rule == "copies":
            assert counts == Counter({f"clip{i}": i % 4 for i in range(32) if i % 4})
        elif rule == "weights":
            assert len(seen) == 32
            assert all(int(id[4:]) % 4 == 1 for id, _ in seen)
            assert len(counts) > 4
        else:
            assert {id for id, mask in seen if mask} == {f"clip{i}" for i in range(32)}
            assert sum(mask for _, mask in seen) == 32
            assert (len(seen) > 32) == (epoch > 0)
        assert seen != [(id, mask) for e, id, mask in method.seen if e == epoch - 1]  # another order
    batches = [-(-sum(e == epoch for e, *_ in method.seen) // 8) for epoch in range(3)]
    assert trainer.global_step == sum(batches)
    assert method.started == [0, 1, 2]
    assert trainer.callback_metrics["val/acc"].isfinite()


def test_scores_are_the_bare_models_and_leave_no_trace() -> None:
    """Logits of a copy in eval mode; with dropout, batch statistics and every random state untouched."""
    kept: list[Any] = []

    def look(_: int, scores: Scores) -> None:
        before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
        kept.append((scores.logits, scores.labels, scores.ids, scores.present, len(scores), scores.modalities))
        after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]

    model = build(encoder=Convolution, extra=[Chooser(look)])
    start, data = copy.deepcopy(model.model), Toy(lacking=True)
    fit(model, data, max_epochs=2)
    logits, labels, ids, present, count, names = kept[0]
    clips = data.collate(list(range(32)))
    with torch.no_grad():
        expected = start.eval()(clips["inputs"], clips["present"])
    torch.testing.assert_close(logits, expected)
    assert torch.equal(labels, data.label)
    assert ids == clips["id"]
    assert torch.equal(present[:, 1], clips["present"]["video"])
    assert (count, names, bool(present[:, 0].all())) == (32, ("audio", "video"), True)
    assert not torch.equal(kept[1][0], logits)
    naive = build(encoder=Convolution)
    fit(naive, Toy(lacking=True), max_epochs=2)
    assert_equal(weights(model), weights(naive))  # bit for bit, though every epoch had a pass


@pytest.mark.parametrize("workers", [0, 1])
def test_a_choice_of_nothing_is_naive_on_an_ordinary_loader(workers: int) -> None:
    looking, naive = build(extra=[Chooser(lambda epoch, scores: scores.logits.sum() and None)]), build()
    for model in (looking, naive):
        torch.manual_seed(0)
        fit(model, Plain(noise=0.1, workers=workers), max_epochs=2)
    assert_equal(weights(looking), weights(naive))


class Asker(Regularizer):
    """Asks for encodings at both ends of an epoch."""

    name = "asker"

    def __init__(self, name: str) -> None:
        super().__init__()
        self.__dict__["name"] = name
        self.got: list[Any] = []

    def on_epoch_start(self, state: EpochState) -> None:
        self.got.append({split: state.encodings(split) for split in ("train", "val")})

    def on_epoch_end(self, state: EpochState) -> None:
        self.on_epoch_start(state)


def test_encodings_are_computed_once_for_all_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []
    encoded = ClipPass.encoded

    def counted(self: ClipPass, most: int | None = None) -> Any:
        passes.append(self.name)
        return encoded(self, most)

    monkeypatch.setattr(ClipPass, "encoded", counted)
    first, second = Asker("first"), Asker("second")
    model, naive = build(extra=[first, second]), build()
    start, data = copy.deepcopy(model.model), Toy(lacking=True)
    for each in (model, naive):
        fit(each, Toy(lacking=True), max_epochs=2)
    assert passes == ["train_dataloader", "val_dataloader"] * 4
    assert all(a["train"] is b["train"] for a, b in zip(first.got, second.got, strict=True))
    complete = sorted((f"clip{i}", i) for i in range(32) if i % 4)
    for split in ("train", "val"):
        got = first.got[0][split]
        assert (got.ids, got.lacking) == ([id for id, _ in complete], 8)
        rows = [i for _, i in complete]
        assert torch.equal(got.labels, data.label[rows])
        with torch.no_grad():
            expected = start.eval().encode({name: x[rows] for name, x in data.inputs.items()})
        assert_equal(got.encodings, expected, atol=1e-6)
    assert not torch.equal(first.got[0]["train"].encodings["audio"], first.got[1]["train"].encodings["audio"])
    assert_equal(weights(model), weights(naive))


# ------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("data", [ResumableToy, Plain], ids=["stateful", "ordinary"])
def test_resuming_within_an_epoch_and_between(data: Any, tmp_path: Path) -> None:
    """Epochs of 4, 4 or 5, 2 and 4 batches; the weights of mid-epoch would choose other clips."""

    def choose(epoch: int, scores: Scores) -> Any:
        return [None, None, torch.arange(32) % 2, audio_only(scores), audio_only(scores)][epoch]

    def run(ckpt: Path | None = None) -> tuple[dict[str, Tensor], int]:
        method = Chooser(choose)
        model = build(seed=1 if ckpt else 0, extra=[method], amr=AMR())
        saves = [
            Saver(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1),
            Saver(tmp_path, filename="end-{epoch}", save_top_k=-1, save_on_train_epoch_end=True),
            Saver(tmp_path, filename="val-{epoch}", save_top_k=-1, save_on_train_epoch_end=False),
        ]
        trainer = fit(model, data(), max_epochs=5, ckpt=ckpt, enable_checkpointing=True, callbacks=saves)
        return weights(model), trainer.global_step

    whole, steps = run()
    names = sorted(file.stem for file in tmp_path.glob("*.ckpt") if "-v" not in file.stem)
    inside = [f"step={step}" for step in range(9, steps)]  # of the last three epochs, their last batches too
    for name in [*inside[:: 1 if data is ResumableToy else 3], *[n for n in names if n[:3] in ("end", "val")]]:
        if data is Plain and name in ("end-epoch=0", "val-epoch=0"):
            continue  # the next epoch's order is torch's, and drawn after another number of numbers
        resumed, count = run(tmp_path / f"{name}.ckpt")
        assert count == steps, name
        assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == [], name


# ------------------------------------------------------------------------------------------------------------ refused


class Stream(IterableDataset[Any]):
    """Clips that come one after the other."""

    def __init__(self, toy: Toy) -> None:
        self.toy = toy

    def __iter__(self) -> Any:
        yield from (self.toy.collate([i]) for i in range(32))


def loaders(toy: Toy) -> dict[str, Any]:
    listed, one = Plain(batch_size=8).loader(True), lambda items: items[0]
    return {
        "stream": DataLoader(Stream(toy), batch_size=1, collate_fn=one),
        "two": {"a": listed, "b": Plain().loader(True)},
        "batches": DataLoader(listed.dataset, batch_sampler=[[0, 1], [2, 3]]),
        "few": DataLoader(listed.dataset, batch_size=8, drop_last=True),
    }


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("stream", "^data.train_dataloader=DataLoader: must be one DataLoader over a data set with a length"),
        ("two", "^data.train_dataloader=dict: must be one DataLoader"),
        ("batches", "^data.train_dataloader=DataLoader: must have a batch_size, not a batch_sampler of its own"),
        ("few", "^data.batch_size=8: must be smaller; the 3 clips of epoch 0 make no batch"),
    ],
)
def test_loaders_that_cannot_serve_are_refused_by_name(case: str, message: str) -> None:
    model = build(extra=[Chooser(lambda *_: Copies(torch.arange(3)))])
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match=message) as caught:
        trainer.fit(model, loaders(Toy())[case], Plain().loader(False))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "chosen", [torch.ones(31), -torch.ones(32), torch.zeros(32), Copies(torch.tensor([32])), Copies(torch.arange(0))]
)
def test_a_choice_of_other_clips_is_refused_by_name(chosen: Any) -> None:
    with pytest.raises(UserError, match="^model.chooser: select of epoch 0: "):
        fit(build(extra=[Chooser(lambda *_: chosen)]))


def test_a_checkpoint_of_other_batches_is_refused_by_name(tmp_path: Path) -> None:
    saves = [Saver(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)]
    rule: Any = lambda *_: torch.ones(32)  # noqa: E731
    fit(build(extra=[Chooser(rule)]), max_epochs=1, enable_checkpointing=True, callbacks=saves)
    with pytest.raises(UserError, match="^checkpoint: it is of the middle of epoch 0, whose batches were made with"):
        fit(build(extra=[Chooser(rule)]), Toy(batch_size=4), max_epochs=1, ckpt=tmp_path / "step=2.ckpt")


def test_weights_draw_in_proportion() -> None:
    weights = torch.arange(5).double() / 7
    counts = torch.stack([torch.bincount(copies_of(weights, 5, seed).clips, minlength=5) for seed in range(4000)])
    expected = 5 * weights / weights.sum()
    assert counts[:, 0].sum() == 0
    assert (counts.sum(1) == 5).all()
    torch.testing.assert_close(counts.double().mean(0), expected.double(), rtol=0, atol=0.1)  # five standard errors


def test_limits_of_the_trainer_hold() -> None:
    method = Chooser(lambda *_: torch.full((32,), 2))
    trainer = fit(build(extra=[method]), max_epochs=2, limit_train_batches=3)
    assert trainer.global_step == 6
    half = fit(build(extra=[Chooser(lambda *_: torch.full((32,), 2))]), max_epochs=2, limit_train_batches=0.5)
    assert half.global_step == 2 * 4


# ---------------------------------------------------------------------------------------------------------------- DDP

CASES: dict[str, dict[str, Any]] = {"copies": {}, "lacking": {"lacking": True}, "accumulated": {"accumulate": 2}}


def train(world: int, case: str) -> dict[str, Tensor]:
    options = CASES[case]
    asker = Asker("asker")
    model = build(extra=[Chooser(lambda _, scores: audio_only(scores)), asker], amr=AMR())
    data = Toy(batch_size=16, lacking=options.get("lacking", False))
    fit_on(world, model, data, accumulate_grad_batches=options.get("accumulate", 1))
    last = asker.got[-1]["train"]
    return {**weights(model), "encoded": torch.cat([*last.encodings.values(), last.labels[:, None]], 1)}


def test_two_ranks_equal_one_process_on_the_joined_batch() -> None:
    for results in on_one_and_two_ranks(train, CASES).values():
        assert_ranks_equal(results, atol=1e-5)
