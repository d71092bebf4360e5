"""Schedules that follow the run's length: against torch's, in a Trainer, and where the length changes."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

import amr
from amr.cli.fit import parser_of
from amr.cli.keys.check import check
from amr.regularizers import AMR
from amr.utils.errors import UserError
from amr.utils.optimizers.schedules import Cosine, Schedule, Steps
from amr.utils.resume import settings_of
from amr.utils.trust import check as trusted
from tests.conftest import REPOSITORY
from tests.toy import Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings("ignore")


def rates(make: Callable[[Optimizer], LRScheduler], total: int, length: int | None = None) -> list[float]:
    """The rate before each of `length` steps (all) of a run of `total`."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler = make(optimizer)
    if isinstance(scheduler, Schedule):
        scheduler.follow(total)
    seen = []
    for _ in range(total if length is None else length):
        seen.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("total", [10, 20, 100])
def test_against_torch(total: int) -> None:
    """The demo's and the small recipe's cosine over 10 and 20 epochs, OGM-GE's tenth after 70 of 100."""
    torchs = partial(CosineAnnealingLR, T_max=total, eta_min=0.02)
    assert rates(partial(Cosine, final=0.1), total) == pytest.approx(rates(torchs, total), rel=1e-12)
    for points in ([0.7], [0.29, 0.58]):
        milestones = [math.ceil(round(point * total, 9)) for point in points]
        expected = rates(partial(MultiStepLR, milestones=milestones, gamma=0.3), total)
        assert rates(partial(Steps, at=points, factor=0.3), total) == pytest.approx(expected, rel=1e-12)


def test_the_warm_up_rises_and_the_shape_begins_at_the_full_rate() -> None:
    seen = rates(partial(Cosine, warmup=0.2), 50, 52)
    assert seen[0] == pytest.approx(0.2 / 11)
    assert seen[:11] == sorted(seen[:11])
    assert seen[10] == 0.2
    assert seen[30] == pytest.approx(0.1)
    assert seen[50:] == [pytest.approx(0.0)] * 2  # a run that goes past its end
    assert rates(partial(Steps, at=(), warmup=0.5), 4) == pytest.approx([0.2 / 3, 0.4 / 3, 0.2, 0.2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(Cosine, warmup=1.0), r"model.lr_scheduler.warmup=1.0: must be in \[0, 1\)"),
        (partial(Cosine, final=-1.0), "model.lr_scheduler.final=-1.0: must be in"),
        (partial(Steps, factor=1.0), "model.lr_scheduler.factor=1.0: must be in"),
        (partial(Steps, at=[0.7, 0.3]), "model.lr_scheduler.at=.*must be ascending"),
        (partial(Steps, at=[70]), "model.lr_scheduler.at=.*fractions"),
    ],
)
def test_mistakes(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        fit(build(lr_scheduler=make))


class Rates(pl.Callback):
    """The rate and AMR's factor in each batch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append(float(trainer.optimizers[0].param_groups[0]["lr"]))


@pytest.mark.parametrize(
    ("interval", "flags", "places"),
    [  # four batches an epoch: the place in the run before each batch
        ("epoch", {"max_epochs": 3}, [i // 4 / 3 for i in range(12)]),
        ("epoch", {"max_epochs": 9, "max_steps": 6}, [i // 4 / 2 for i in range(6)]),
        ("step", {"max_epochs": 2}, [i / 8 for i in range(8)]),
        ("step", {"max_epochs": -1, "max_steps": 5}, [i / 5 for i in range(5)]),
        ("step", {"max_epochs": 2, "limit_train_batches": 3}, [i / 6 for i in range(6)]),
        ("step", {"max_epochs": 2, "accumulate_grad_batches": 3}, [n / 4 for n in (0, 0, 0, 1, 2, 2, 2, 3)]),
        ("epoch", {"max_epochs": 9, "max_steps": 3, "accumulate_grad_batches": 2}, [i // 4 / 2 for i in range(6)]),
    ],
)
def test_it_follows_the_trainer(interval: Any, flags: dict[str, Any], places: list[float]) -> None:
    model, seen = build(optimizer=partial(SGD, lr=0.1), lr_scheduler=Cosine, scheduler_interval=interval), Rates()
    fit(model, callbacks=[seen], **flags)
    assert seen.seen == pytest.approx([0.05 * (1 + math.cos(math.pi * place)) for place in places])


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_the_second_optimizer_follows(interval: Any) -> None:
    method = AMR(lr=0.2)
    trainer = fit(build(amr=method, lr_scheduler=partial(Steps, at=[0.5]), scheduler_interval=interval))
    assert method._optimizer is not None
    assert method._optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)


def test_a_run_without_an_end_is_refused() -> None:
    message = "^trainer.max_epochs=-1: must be positive, for model.lr_scheduler follows the run's length; set it or "
    for flags in ({"max_epochs": -1}, {"max_epochs": None, "max_time": "00:00:01:00"}):
        with pytest.raises(UserError, match=message):
            fit(build(lr_scheduler=Cosine), **flags)


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_resuming_is_bit_for_bit_also_in_mid_epoch(tmp_path: Path, interval: Any) -> None:
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step in (4, 8):
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    options: dict[str, Any] = {"lr_scheduler": partial(Cosine, warmup=0.3), "scheduler_interval": interval}
    whole = build(amr=AMR(momentum=0.9), **options)
    fit(whole, max_epochs=4, callbacks=[Save()])
    for step in (4, 8):
        resumed = build(seed=1, amr=AMR(momentum=0.9), **options)
        fit(resumed, max_epochs=4, ckpt=tmp_path / f"{step}.ckpt")
        assert_equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("rate", [0.1, 0.03])
def test_resuming_with_more_epochs_is_at_that_runs_place(tmp_path: Path, interval: Any, rate: float) -> None:
    """Half of the short run is a quarter of the long one, with the same optimizer and with another rate."""
    options: dict[str, Any] = {"lr_scheduler": Cosine, "scheduler_interval": interval}
    fit(build(optimizer=partial(SGD, lr=0.1), **options), max_epochs=2).save_checkpoint(tmp_path / "short.ckpt")
    seen = Rates()
    model = build(optimizer=partial(SGD, lr=rate), **options)
    fit(model, ckpt=tmp_path / "short.ckpt", max_epochs=8, callbacks=[seen])
    assert seen.seen[0] == pytest.approx(rate * (1 + math.cos(math.pi / 4)) / 2)
    assert len(seen.seen) == 24


def test_the_length_is_a_setting_of_a_run_whose_schedule_follows_it() -> None:
    def settings(schedule: Any) -> dict[str, Any]:
        trainer: dict[str, Any] = settings_of(
            {"trainer": {"max_epochs": 9, "precision": None}, "model": {"lr_scheduler": schedule}, "data": {}}
        )["trainer"]
        return trainer

    assert settings({"class_path": "amr.Cosine"})["max_epochs"] == 9
    assert settings({"class_path": f"{Mine.__module__}.Mine", "init_args": {}})["max_epochs"] == 9
    assert "max_epochs" not in settings({"class_path": "torch.optim.lr_scheduler.StepLR"})
    assert "max_epochs" not in settings(None)


class Mine(amr.Schedule):
    """A user's own."""

    def fraction(self, done: int, total: int) -> float:
        return 1 - done / total


def test_a_schedule_of_the_users_own() -> None:
    trainer = fit(
        build(optimizer=partial(SGD, lr=0.4), lr_scheduler=Mine),
        Toy(batch_size=16),
        max_epochs=4,
        limit_train_batches=1,
    )
    assert trainer.lr_scheduler_configs[0].scheduler.total == 4  # type: ignore[union-attr]
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0


@pytest.mark.filterwarnings("always:model.lr_scheduler=null")
@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({"amr": {}}, 1),
        ({"amr": {}, "lr_scheduler": Cosine}, 0),
        ({"amr": {"weight": 0.0}}, 0),
        ({"amr": {"end_epoch": 1}}, 0),
        ({}, 0),
    ],
    ids=str,
)
def test_a_constant_rate_with_amr_warns_once(
    options: dict[str, Any], warned: int, recwarn: pytest.WarningsRecorder
) -> None:
    if "amr" in options:
        options = {**options, "amr": AMR(**options["amr"])}
    fit(build(**options))
    told = [str(w.message) for w in recwarn if "lr_scheduler" in str(w.message)]
    assert len(told) == warned
    assert all(line.endswith("set --model.lr_scheduler amr.Cosine") and "amr keeps" in line for line in told)


def test_a_run_made_longer_says_so(tmp_path: Path) -> None:
    def of(epochs: int) -> Any:
        model = build(lr_scheduler=Cosine)
        section = {"lr_scheduler": {"class_path": "amr.Cosine"}}
        model.settings = settings_of({"trainer": {"max_epochs": epochs}, "model": section, "data": {}})
        return model

    fit(of(2), max_epochs=2).save_checkpoint(tmp_path / "short.ckpt")
    for epochs, changed in ((2, []), (5, ["trainer.max_epochs=5 (was 2)"])):
        model = of(epochs)
        fit(model, ckpt=tmp_path / "short.ckpt", max_epochs=epochs)
        assert [start["with"] for start in model.resumed] == ([changed] if changed else [])


@pytest.fixture(scope="module")
def parser() -> Any:
    return parser_of("fit")


@pytest.mark.parametrize(
    ("arguments", "path", "options"),
    [
        (["--config", "configs/trainer/small.yaml"], "amr.Cosine", {"warmup": 0.0, "final": 0.0}),
        (["--config", "configs/trainer/ogm-ge.yaml"], "amr.Steps", {"at": [0.7], "factor": 0.1, "warmup": 0.0}),
        (
            ["--config", "configs/trainer/ogm-ge.yaml", "--model.lr_scheduler.at", "[0.6]"],
            *("amr.Steps", {"at": [0.6], "factor": 0.1, "warmup": 0.0}),
        ),
        (
            ["--model.lr_scheduler", "Cosine", "--model.lr_scheduler.warmup", "0.1"],
            *("amr.Cosine", {"warmup": 0.1, "final": 0.0}),
        ),
        (
            [
                *("--config", "configs/trainer/small.yaml", "--model.lr_scheduler", "CosineAnnealingLR"),
                *("--model.lr_scheduler.T_max", "25"),
            ],
            "torch.optim.lr_scheduler.CosineAnnealingLR",
            {"T_max": 25, "eta_min": 0.0, "last_epoch": -1},
        ),
    ],
    ids=str,
)
def test_the_command_line_takes_it(
    parser: Any, arguments: list[str], path: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    arguments = check([*arguments, "--data", "amr.datamodules.Synthetic", "--model.encoders", "{}"])
    parsed = parser.parse_args(arguments).model.lr_scheduler.as_dict()
    assert parsed == {"class_path": path, "init_args": options}
    trusted({"model": {"lr_scheduler": parsed}}, "a stranger's")


def test_the_command_line_takes_groups(parser: Any, tmp_path: Path) -> None:
    groups = {"encoders.video": {"lr": 1e-4}, r"encoders\.audio\.layer1": {"lr": 0}}
    (tmp_path / "groups.yaml").write_text("model: {param_groups: " + json.dumps(groups) + "}")
    for given in (["--config", str(tmp_path / "groups.yaml")], ["--model.param_groups", json.dumps(groups)]):
        arguments = check([*given, "--data", "amr.datamodules.Synthetic", "--model.encoders", "{}"])
        config = parser.parse_args(arguments)
        assert config.model.param_groups == groups
        assert yaml.safe_load(parser.dump(config))["model"]["param_groups"] == groups
