"""Batches: every form in which a loader may give them, and the wrong ones."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from amr.attribution import attribution_shares
from amr.classifier import FusionClassifier
from amr.model.batches import as_batch, inputs_of, made_up
from amr.model.encoded import encode
from amr.regularizers import AMR, GradientBlending
from amr.utils.errors import UserError
from tests.toy import Linear, Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|logging interval)")
A, V, LABEL = torch.randn(4, 6), torch.randn(4, 3, 6), torch.tensor([0, 2, 1, 0])
NAMES = ("audio", "video")
FORMS: dict[str, Any] = {
    "a mapping": {"inputs": {"video": V, "audio": A}, "label": LABEL},
    "a mapping with a sequence": {"inputs": (A, V), "label": LABEL},
    "inputs by name and label": ({"audio": A, "video": V}, LABEL),
    "a list of inputs and label": [[A, V], LABEL],
    "as TensorDataset gives them": [A, V, LABEL],
    "labels of 32 bits": ((A, V), LABEL.int()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_one(form: str) -> None:
    batch = as_batch(FORMS[form], NAMES, (1, 12), num_classes=3)
    assert batch["inputs"]["audio"] is A
    assert batch["inputs"]["video"] is V
    assert batch["label"].dtype == torch.int64
    assert torch.equal(batch["label"], LABEL)
    assert batch["id"] == [f"r1-b000012-0000{row}" for row in range(4)]
    assert made_up(batch["id"])
    assert "present" not in batch


def test_what_is_there_is_kept() -> None:
    present = {"video": torch.tensor([True, False, True, True])}
    given = {"inputs": {"audio": A, "video": V}, "label": LABEL, "id": list("abcd"), "present": present, "more": 1}
    assert as_batch(given, NAMES) == given
    assert as_batch({**given, "id": torch.arange(4)}, NAMES)["id"] == ["0", "1", "2", "3"]
    assert not made_up(list("abcd"))


def test_one_modality() -> None:
    for batch in ((A, LABEL), [[A], LABEL], ({"audio": A}, LABEL), {"inputs": A, "label": LABEL}):
        assert as_batch(batch, ["audio"])["inputs"]["audio"] is A


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (A, "batch: it is a tensor (4, 6) of float32; must be"),
        ("text", "batch: it is a str; must be"),
        ({"inputs": {}}, "batch: it has no 'label', only 'inputs'; must be"),
        ({"audio": A, "video": V}, "batch: it has no 'inputs', only 'audio', 'video'"),
        ((A, LABEL), "but the model has 2 modalities, audio, video; must be"),
        ((A, V), "but the model has 2 modalities"),
        ((A, V, V, LABEL), "but the model has 2 modalities"),
        ((LABEL, V, LABEL), "leave open which is the label"),
        ((LABEL, A, V), "leave open which is the label"),
        (((A,), LABEL), "inputs are 1; must be 2, one of each modality in the order audio, video"),
        (({"audio": A}, LABEL), "no input for the modality 'video'; it has 'audio'"),
        ((3, LABEL), "inputs are a int; must be a mapping"),
        (((A, V), LABEL.float()), "label is a tensor (4,) of float32"),
        (((A, V), LABEL[:, None]), "label is a tensor (4, 1) of int64"),
        (((A, V), LABEL[:3]), "inputs.audio is a tensor (4, 6) of float32; must have as many rows as the label, 3"),
        (((A[:0], V[:0]), LABEL[:0]), "with B at least 1"),
        (((A, V), LABEL + 1), "label is 3; must be at least 0 and below 3"),
        (((A, V), LABEL - 1), "label is -1; must be at least 0"),
        ({"inputs": (A, V), "label": LABEL, "id": ["a"]}, "id is a list of 1; must be a name of each of the 4 clips"),
        ({"inputs": (A, V), "label": LABEL, "present": A}, "present is a tensor"),
        ({"inputs": (A, V), "label": LABEL, "present": {"video": LABEL}}, "present.video is a tensor (4,) of int64"),
    ],
)
def test_a_wrong_batch_is_told_in_one_line(batch: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        as_batch(batch, NAMES, num_classes=3)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class Plain(Toy):
    """The toy in the plainest form: tensors, without names."""

    def collate(self, indices: list[int]) -> Any:
        return [*(x[indices] for x in self.inputs.values()), self.label[indices]]


def test_training_is_that_of_named_clips() -> None:
    models = [build(amr=AMR()) for _ in range(2)]
    for model, data in zip(models, (Toy(), Plain()), strict=True):
        fit(model, data)
    assert_equal(weights(models[0]), weights(models[1]))


def test_a_plain_trainer_with_plain_loaders_does_all_passes() -> None:
    toy = Toy()
    loader = DataLoader(TensorDataset(*toy.inputs.values(), toy.label), batch_size=8)
    model = build()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, loader, loader)
    assert 0 <= trainer.validate(model, loader, verbose=False)[0]["val/acc"] <= 1
    assert trainer.test(model, loader, verbose=False)[0]["test/loss"] > 0
    outputs: Any = trainer.predict(model, loader)
    names = [name for output in outputs for name in output["id"]]
    assert len(set(names)) == len(names) == 32


def test_the_engine_takes_plain_batches() -> None:
    model = build().model
    named, plain = encode(model, Toy(), "test"), encode(model, Plain(), "test")
    assert len(set(plain.ids)) == 32
    order = [int(name.removeprefix("clip")) for name in named.ids]
    back = torch.tensor(order).argsort()
    listed = [int(x) for x in Toy().loader(False).sampler]
    assert torch.equal(named.encodings["audio"][back][listed], plain.encodings["audio"])


def test_gradient_blending_needs_names() -> None:
    with pytest.raises(UserError, match="batch: it has no 'id', by which model.gradient_blending holds"):
        fit(build(gradient_blending=GradientBlending()), Plain())


# --------------------------------------------------------------------------------------------------------------- shares


def shares_by_hand(model: FusionClassifier, inputs: dict[str, Tensor]) -> Tensor:
    """Of a linear head on concatenated encodings: the top logit against the rest, by autograd, norm by norm."""
    rows = []
    for row in range(len(LABEL)):
        leaves = {m: model.model.encoders[m](x[row : row + 1]).detach().requires_grad_() for m, x in inputs.items()}
        p = model.model.head(leaves).softmax(1).max()
        gradients = torch.autograd.grad(torch.log(p / (1 - p)), list(leaves.values()))
        norms = torch.stack([(g * e).norm() for g, e in zip(gradients, leaves.values(), strict=True)])
        rows.append(norms / norms.sum())
    return torch.stack(rows).detach()


def test_shares_of_every_form() -> None:
    model = build(encoder=Linear)
    inputs = {"audio": A, "video": torch.randn(4, 6)}
    expected = shares_by_hand(model, inputs)
    x = tuple(inputs.values())
    before = model.training
    for batch in (
        inputs,
        x,
        [*x, LABEL],
        (x, LABEL),
        (inputs, LABEL),
        {"inputs": inputs},
        {"inputs": x, "label": LABEL},
    ):
        for what in (model, model.model):
            shares = what.shares(batch)
            assert not shares.requires_grad
            torch.testing.assert_close(shares, expected)
    assert model.training == before
    encodings = {m: e.detach() for m, e in model.model.encode(inputs).items()}
    by_paths = attribution_shares(model.model.head, encodings, score="logit", ig_steps=3)
    torch.testing.assert_close(model.shares(inputs, score="logit", ig_steps=3), by_paths)


def test_shares_of_clips_that_lack_a_modality_are_zeros() -> None:
    present = {"video": torch.tensor([True, False, True, True])}
    shares = build().shares({"inputs": (A, torch.randn(4, 6)), "label": LABEL, "present": present})
    assert torch.equal(shares.sum(1) > 0, present["video"])


def test_shares_of_one_modality_and_of_no_batch() -> None:
    assert torch.equal(build(modalities=["audio"]).shares(A), torch.ones(4, 1))
    assert inputs_of((A, LABEL), ["audio"])[0]["audio"] is A
    with pytest.raises(UserError, match="no input for the modality 'video'"):
        build().shares({"audio": A})
    with pytest.raises(UserError, match="batch: it is a tensor"):
        build().shares(A)
