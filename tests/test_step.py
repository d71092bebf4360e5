"""What a training step costs besides the network: counted, not timed."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_utilities.core import apply_func
from pytorch_lightning.trainer.connectors.logger_connector.result import _ResultCollection
from torchmetrics import Metric

from amr.callbacks import Dominance
from amr.callbacks.dominance import _joined
from amr.datamodules import ListedClips
from amr.model.batches import Ids
from amr.model.passes import reseed
from amr.regularizers import MultiLoss
from tests.toy import Toy
from tests.training import build, fit

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's


def test_a_metric_is_logged_once_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight batches and four of validation in each of two epochs: as many calls as with one batch."""
    calls: list[str] = []
    log = _ResultCollection.log

    def spy(self: Any, fx: str, name: str, *args: Any, **kwargs: Any) -> None:
        calls.append(name)
        log(self, fx, name, *args, **kwargs)

    monkeypatch.setattr(_ResultCollection, "log", spy)
    fit(build(multi_loss=MultiLoss()), Toy(clips=64))
    assert sorted(calls) == sorted(
        2 * ["train/loss", "train/acc", "train/mAP", "train/loss/multi_loss/audio", "train/loss/multi_loss/video"]
        + 2 * ["val/loss", "val/acc", "val/mAP"]
    )


class Mean(pl.Callback):
    """The plain means of what each step gave."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.losses = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        assert isinstance(outputs["id"], Ids)


@pytest.mark.parametrize("interval", [1.0, 0.25])
def test_the_logged_mean_is_of_all_steps(interval: float) -> None:
    """Also with a validation within the epoch, where Lightning computes what the training metrics are by then."""
    mean = Mean()
    trainer = fit(build(), Toy(clips=64), callbacks=[mean], val_check_interval=interval)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(sum(mean.losses) / 8, abs=1e-6)
    assert len(mean.losses) == 8


class Moved(Toy):
    """Batches that are moved as those of amr's own data modules are."""

    transfer_batch_to_device: Any = ListedClips.transfer_batch_to_device


def test_names_are_not_walked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to move a batch nor to detach an output."""
    seen: list[Any] = []
    walk = apply_func._apply_to_collection_slow

    def spy(data: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(data)
        return walk(data, *args, **kwargs)

    monkeypatch.setattr(apply_func, "_apply_to_collection_slow", spy)
    fit(build(), Moved(), max_epochs=1)
    assert seen
    assert not any(isinstance(data, str) and data.startswith("clip") for data in seen)


def test_reseeding_draws_what_manual_seed_draws() -> None:
    torch.manual_seed(2**63 - 5)
    expected = torch.rand(3)
    reseed(2**63 - 5, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("every", "clips", "measured"), [(None, 32, 4), (3, 32, 2), (None, 8 * 36, 18)])
def test_training_measures_every_kth_batch(every: int | None, clips: int, measured: int) -> None:
    counts: list[int] = []

    class Counting(Dominance):
        def _add(self, split: str, *args: Any, **kwargs: Any) -> None:
            counts.append(split == "train")
            super()._add(split, *args, **kwargs)

    fit(build(), Toy(clips=clips), max_epochs=1, callbacks=[Counting(every=every)], limit_val_batches=0)
    assert sum(counts) == measured


def test_batches_are_measured_together_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = []
    for rows in (1, 512):
        monkeypatch.setattr("amr.callbacks.dominance.WAITING_ROWS", rows)
        callback = Dominance()
        trainer = fit(build(), Toy(lacking=True), max_epochs=1, callbacks=[callback])
        logged.append(
            {key: float(value) for key, value in trainer.callback_metrics.items() if "share" in key or "dom" in key}
        )
    assert logged[0] == pytest.approx(logged[1], abs=1e-6)
    assert len(logged[0]) == 8


def test_joined_outputs_keep_who_lacks_what() -> None:
    def output(present: Any) -> Any:
        rows = {"logits": torch.zeros(2, 3), "label": torch.zeros(2, dtype=torch.int64), "id": Ids(["a", "b"])}
        return {**rows, "loss": torch.zeros(()), "encodings": {"x": torch.zeros(2, 4)}, "present": present}

    joined = _joined([output(None), output({"x": torch.tensor([True, False])})])
    assert joined["present"] is not None
    assert joined["present"]["x"].tolist() == [True, True, True, False]
    assert joined["id"] == ["a", "b", "a", "b"]
    assert _joined([output(None)] * 2)["present"] is None


def test_metrics_do_not_look_for_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """No update of a training metric needs a value on the CPU, for which a GPU would have to be waited for."""
    model = build()
    output: Any = {"logits": torch.randn(4, 3), "label": torch.tensor([0, 1, 2, 0]), "loss": torch.tensor(1.0)}

    def refuse(_: torch.Tensor) -> Any:
        raise AssertionError("the CPU waits")

    for name in ("item", "tolist", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    model._record("train", output)
    assert all(isinstance(metric, Metric) for metric in model.metrics["train/"].values())  # type: ignore[operator]
