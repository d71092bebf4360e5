"""Schedules that follow the length of the run."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from amr.utils.errors import UserError
from amr.utils.schedules import Schedule


@pytest.mark.parametrize("total", [10, 20, 100])
def test_against_torch(total: int) -> None:
    def rates(make: type[LRScheduler], **options: object) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = make(optimizer, **options)
        found = []
        for _ in range(total):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    cosine = rates(CosineAnnealingLR, T_max=total, eta_min=0.1)
    assert [Schedule("cosine", final=0.1).rate(i, total) for i in range(total)] == pytest.approx(cosine)
    steps = rates(MultiStepLR, milestones=[round(0.3 * total), round(0.7 * total)], gamma=0.1)
    assert [Schedule("steps", at=(0.3, 0.7)).rate(i, total) for i in range(total)] == pytest.approx(steps)


def test_warmup_rises_and_then_the_shape_begins_at_the_full_rate() -> None:
    rates = [Schedule("cosine", warmup=0.2).rate(i, 50) for i in range(51)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == 1.0
    assert rates[50] == pytest.approx(0.0)
    assert rates[30] == pytest.approx((1 + math.cos(math.pi / 2)) / 2)


def test_other_shapes() -> None:
    assert [Schedule("linear", final=0.5).rate(i, 4) for i in range(5)] == [1.0, 0.875, 0.75, 0.625, 0.5]
    assert {Schedule("constant").rate(i, 4) for i in range(9)} == {1.0}
    assert Schedule("cosine").rate(9, 4) == 0.0  # a resumed run may go past its end


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shape": "cosin"}, "model.schedule.shape=cosin: must be one of cosine"),
        ({"warmup": 1.0}, r"model.schedule.warmup=1.0: must be in \[0, 1\)"),
        ({"final": -1.0}, "model.schedule.final=-1.0"),
        ({"factor": 1.0}, "model.schedule.factor=1.0"),
        ({"at": [0.7, 0.3]}, "model.schedule.at=.*ascending"),
        ({"at": [70]}, "model.schedule.at=.*fractions"),
    ],
)
def test_mistakes(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Schedule(**options)  # type: ignore[arg-type]
