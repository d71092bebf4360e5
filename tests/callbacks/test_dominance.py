"""Decision shares are logged beside dominance, and are what the output owes to each modality."""

import itertools
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import amr
from amr.callbacks import Dominance
from amr.model import FusionModel
from amr.model.encoded import Collected

CLIPS, SIZES = 24, {"a": 3, "b": 2}


def loader(seed: int = 0) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(CLIPS, size, generator=generator) for size in SIZES.values()]
    return DataLoader(TensorDataset(*inputs, torch.arange(CLIPS) % 3), batch_size=8)


def classifier(head: type = amr.fusion.Concat) -> amr.FusionClassifier:
    encoders = {name: amr.as_encoder(nn.Linear(size, 4)) for name, size in SIZES.items()}
    return amr.FusionClassifier(encoders, fusion=head, num_classes=3)


def reference(model: FusionModel, encodings: dict[str, Tensor], mean: dict[str, Tensor]) -> Tensor:
    """Mean share of two modalities' Shapley values in the log-odds of the predicted class, by the two orders."""

    def log_odds(kept: str, label: Tensor) -> Tensor:
        rows = {m: e if m in kept else mean[m].expand_as(e) for m, e in encodings.items()}
        p = model.head(rows).softmax(1).gather(1, label[:, None])[:, 0]
        odds: Tensor = (p / (1 - p)).log()
        return odds

    with torch.no_grad():
        label = model.head(encodings).argmax(1)
        values = []
        for m, other in itertools.permutations("ab"):
            first = log_odds(m, label) - log_odds("", label)
            second = log_odds("ab", label) - log_odds(other, label)
            values.append((first + second).abs() / 2)
        shares = torch.stack(values, 1)
        return (shares / shares.sum(1, keepdim=True)).mean(0)


def fitted(module: amr.FusionClassifier) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[Dominance()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(), loader(1))
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_the_decision_share_of_a_split() -> None:
    """Against all orders by hand, with the split's mean encoding for what is missing; train has its own."""
    pl.seed_everything(1)
    module = classifier()
    trainer = fitted(module)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    *inputs, _ = (torch.cat(parts) for parts in zip(*loader(1), strict=True))
    with torch.no_grad():
        encodings = module.model.eval().encode(dict(zip(SIZES, inputs, strict=True)))
    expected = reference(module.model, encodings, {m: e.mean(0, keepdim=True) for m, e in encodings.items()})
    assert [logged[f"val/decision_share/{m}"] for m in SIZES] == pytest.approx(expected.tolist(), abs=1e-5)
    assert sum(logged[f"train/decision_share/{m}"] for m in SIZES) == pytest.approx(1, abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_head_that_ignores_a_modality_owes_it_nothing() -> None:
    module = classifier(amr.fusion.Late)
    weights = module.model.head.state_dict()
    module.model.head.load_state_dict(
        {key: 0 * value if "b" in key.split(".") else value for key, value in weights.items()}
    )
    module.model.head.requires_grad_(False)
    logged = fitted(module).callback_metrics
    assert float(logged["val/decision_share/a"]) == 1
    assert float(logged["val/decision_share/b"]) == 0


class Product(amr.fusion.Fusion):
    """A head that is linear in either encoding: towers and a product."""

    def __init__(self, dims: Any, num_classes: int) -> None:
        super().__init__(dims, num_classes, 4)

    def combine(self, encodings: Any) -> Tensor:
        product: Tensor = encodings["a"] * encodings["b"]
        return product


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("head", "lines"), [(Product, 1), (amr.fusion.Concat, 0)])
def test_shares_that_are_equal_by_construction_are_said_once(head: type, lines: int, capsys: Any) -> None:
    logged = fitted(classifier(head)).callback_metrics
    assert capsys.readouterr().err.count("exactly 1/2, as they are by construction") == lines
    assert (float(logged["val/dominance/a"]) == pytest.approx(0.5, abs=1e-5)) == bool(lines)
    assert float(logged["val/decision_share/a"]) != pytest.approx(0.5, abs=1e-3)


def test_which_clips_are_kept_does_not_depend_on_their_order() -> None:
    """Of many clips in batches of any size, those with the smallest hashes of their ids."""
    encodings = torch.randn(50, 3)

    def kept(order: list[int], size: int) -> tuple[list[str], Tensor]:
        found = Collected(7)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            about = {"id": [f"clip{i}" for i in rows], "present": None, "label": torch.tensor(rows)}
            found.add({"encodings": {"a": encodings[rows]}, **about})
        clips = found.of_all_ranks()
        return clips.ids, clips.encodings["a"]

    ids, values = kept(list(range(50)), 4)
    assert len(ids) == 7
    other, again = kept(list(reversed(range(50))), 13)
    assert ids == other
    assert torch.equal(values, again)
