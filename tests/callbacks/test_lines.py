from typing import Any

import pytest

from amr.callbacks import BestCheckpoint, Dominance, EpochLines
from amr.callbacks.lines import Bar, shares_of
from amr.datamodules import Tensors
from amr.regularizers import AMR
from tests.toy import Toy
from tests.training import build, fit

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_line_per_epoch_has_what_was_logged(capsys: pytest.CaptureFixture[str]) -> None:
    model, lines = build(), EpochLines()
    trainer = fit(model, Toy(clips=48), max_epochs=2, callbacks=[lines, Dominance()])
    said = capsys.readouterr().err.splitlines()
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert said[0] == "6 steps an epoch"
    assert [line.split("  ")[0] for line in said[1:]] == ["epoch 1/2", "epoch 2/2"]
    _, loss, accuracy, precision, audio, seconds = said[2].split("  ")
    assert loss == f"loss {logged['train/loss']:.3g}"
    assert (accuracy, precision) == (f"val acc {100 * logged['val/acc']:.1f}", f"mAP {100 * logged['val/mAP']:.1f}")
    shares = [100 * logged[f"val/{kind}/audio"] for kind in ("dominance", "decision_share")]
    assert audio == "audio {:.0f} (decides {:.0f})".format(*shares)
    assert seconds.endswith(" s")


@pytest.mark.parametrize(("monitor", "mode", "best"), [("val/acc", "max", 2), ("val/loss", "min", 3)])
def test_the_best_epoch_is_that_of_the_checkpoint(monitor: str, mode: str, best: int) -> None:
    """The first of equal ones, as `BestCheckpoint` keeps it; with another metric, another epoch."""
    values = {"val/acc": (0.5, 0.7, 0.7), "val/loss": (0.9, 0.8, 0.6)}
    lines, kept = EpochLines(), BestCheckpoint(monitor=monitor, mode=mode)

    class Trainer:
        callbacks = (kept,)
        current_epoch = 0

    for epoch in range(3):
        Trainer.current_epoch = epoch
        lines._keep(Trainer, {name: numbers[epoch] for name, numbers in values.items()})  # type: ignore[arg-type]
    assert lines.best["epoch"] == best
    assert lines.result(("audio", "video")) == f"best epoch {best}:  val acc 70.0"


def test_progress_off_leaves_the_warnings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of few steps, a class that training lacks, and AMR that could not reach its ratio."""
    monkeypatch.setenv("AMR_PROGRESS", "0")
    toy, parts = Toy(clips=24), dict[str, Any]()
    for split, rows in {"train": toy.label != 2, "val": toy.label >= 0}.items():
        parts[split] = {**{name: x[rows].numpy() for name, x in toy.inputs.items()}, "label": toy.label[rows].numpy()}
    data = Tensors(parts, {"audio": "vector", "video": "vector"}, labels=toy.labels, batch_size=8)
    model = build(amr=AMR(ratio={"audio": 1.0, "video": 9.0}, lr=1e-6))
    fit(model, data, max_epochs=1, callbacks=[EpochLines()])
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "no clip of train has the class 'class 2': its accuracy will be 0"
    assert said[1].startswith("an epoch has 2 optimizer steps: fewer than 5 train little")
    assert said[2].startswith("AMR missed its ratio in the last epoch: audio ")
    assert len(said) == 3


def test_the_bar_has_shares_and_no_version() -> None:
    bar = Bar()
    trainer = fit(build(), Toy(), max_epochs=1, callbacks=[Dominance(), EpochLines()])
    items = bar.get_metrics(trainer, trainer.lightning_module)
    assert items["audio"] == dict(shares_of(trainer.callback_metrics, ("audio", "video")))["audio"]
    assert "v_num" not in items
