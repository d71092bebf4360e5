from typing import Any

import pytest
import torch
from pytorch_lightning.loggers.logger import DummyLogger

from amr.callbacks import StepLog
from tests.toy import Toy
from tests.training import build, fit

pytestmark = pytest.mark.filterwarnings("ignore")


class Recorded(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.rows += [(step or 0, values)] if (values := {k: v for k, v in metrics.items() if "step/" in k}) else []


def test_every_second_step_has_its_loss_rate_and_gradient() -> None:
    """48 clips in batches of 4, two accumulated: six steps an epoch; the gradient's norm is that of a step by hand."""
    logger, seen = Recorded(), list[float]()
    model = build()
    before = model.on_before_optimizer_step

    def note(optimizer: Any) -> None:
        before(optimizer)
        seen.append(float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()))

    model.on_before_optimizer_step = note  # type: ignore[method-assign]
    data = Toy(clips=48, batch_size=4)
    options: dict[str, Any] = {
        "max_epochs": 1,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 1e-3,
        "log_every_n_steps": 2,
    }
    trainer = fit(model, data, logger=logger, callbacks=[StepLog()], **options)
    *rows, (_, epoch) = logger.rows
    assert [step for step, _ in rows] == [2, 4, 6]
    assert [values["step/grad_norm"] for _, values in rows] == pytest.approx(seen[1::2], rel=1e-5)
    assert {values["step/lr"] for _, values in rows} == {trainer.optimizers[0].param_groups[0]["lr"]}
    assert all(values["step/loss"] > 0 and values["step/clips_per_s"] > 0 for _, values in rows)
    assert epoch["step/epoch_s"] > 0
