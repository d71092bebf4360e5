"""Training that resumes with other settings: what is refused, that the rest takes effect, and where it is recorded."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.cli import ReduceLROnPlateau
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR, StepLR

from amr.cli import main
from amr.evaluation.runs import read_folder
from amr.regularizers import AMR, GGE, OGM
from amr.report import read_run
from amr.utils.errors import UserError
from amr.utils.resume import differences, settings_of, starts
from tests.training import build, fit

pytestmark = pytest.mark.filterwarnings("ignore")


def sgd(**settings: Any) -> Callable[[Any], Optimizer]:
    return partial(SGD, **{"lr": 0.1, "momentum": 0.9, **settings})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Makes a checkpoint of two epochs of four steps each."""

    def make(**options: Any) -> Path:
        path = tmp_path / "first.ckpt"
        fit(build(**{"optimizer": sgd(), **options})).save_checkpoint(path)
        return path

    return make


def test_the_rate_is_the_one_that_is_asked_for(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint()
    before = torch.load(path, weights_only=True)["optimizer_states"][0]["state"]
    model = build(optimizer=sgd(lr=0.02, momentum=0.5, weight_decay=0.3))
    trainer = fit(model, ckpt=path, max_epochs=2)  # nothing is left to train: the state is the one restored
    (group,) = trainer.optimizers[0].param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.02, 0.5, 0.3)
    after = trainer.optimizers[0].state_dict()["state"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[i]["momentum_buffer"], after[i]["momentum_buffer"]) for i in before)
    assert model.main_optimizer.factor(trainer.optimizers[0]) == 1


SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "step": lambda optimizer: StepLR(optimizer, 1, gamma=0.5),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=20, eta_min=0.001),
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=0.4, total_steps=30),
    "warm-up": lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer, 0.1, total_iters=2), StepLR(optimizer, 2, gamma=0.5)], [2]
    ),
}


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_where_it_would_be_had_it_been_so_from_the_start(
    checkpoint: Callable[..., Path], name: str, interval: str
) -> None:
    options: dict[str, Any] = {"lr_scheduler": SCHEDULES[name], "scheduler_interval": interval}
    path = checkpoint(**options)
    whole = fit(build(optimizer=sgd(lr=0.03), **options), max_epochs=3)
    resumed = fit(build(optimizer=sgd(lr=0.03), **options), ckpt=path, max_epochs=3)
    unchanged = fit(build(optimizer=sgd(), **options), ckpt=path, max_epochs=3)
    rates = [trainer.optimizers[0].param_groups[0]["lr"] for trainer in (whole, resumed, unchanged)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)
    assert name == "cycle" or rates[0] != pytest.approx(rates[2], rel=1e-3)


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_schedules_own_settings_apply(checkpoint: Callable[..., Path], interval: str) -> None:
    """Among them whether it counts epochs or steps."""
    path = checkpoint(lr_scheduler=lambda optimizer: StepLR(optimizer, 1, gamma=0.5))
    options: dict[str, Any] = {
        "lr_scheduler": lambda optimizer: StepLR(optimizer, 2, gamma=0.1),
        "scheduler_interval": interval,
    }
    trainer = fit(build(optimizer=sgd(), **options), ckpt=path, max_epochs=3)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(
        0.1 * 0.1 ** (12 // 2 if interval == "step" else 1)
    )


def test_a_plateaus_reductions_stay(checkpoint: Callable[..., Path]) -> None:
    def plateau(optimizer: Optimizer, patience: int = 0) -> Any:
        return ReduceLROnPlateau(
            optimizer, monitor="val/acc", mode="max", patience=patience, threshold=10.0, factor=0.5
        )

    path = checkpoint(lr_scheduler=plateau)  # no second epoch is better
    saved = torch.load(path, weights_only=True)
    reduced = saved["optimizer_states"][0]["param_groups"][0]["lr"]
    assert reduced < 0.1
    trainer = fit(build(optimizer=sgd(lr=0.02), lr_scheduler=partial(plateau, patience=9)), ckpt=path, max_epochs=2)
    scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.02 * reduced / 0.1)
    assert (scheduler.patience, scheduler.best) == (9, saved["lr_schedulers"][0]["best"])


def step_schedule(optimizer: Optimizer) -> StepLR:
    return StepLR(optimizer, 1)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "optimizer": ({}, {"optimizer": partial(Adam, lr=0.1)}, "model.optimizer=Adam: the checkpoint's is SGD;"),
    "variant": (
        {"optimizer": partial(Adam, lr=0.1)},
        {"optimizer": partial(AdamW, lr=0.1)},
        "model.optimizer=AdamW: the checkpoint's is Adam;",
    ),
    "schedule": (
        {"lr_scheduler": step_schedule},
        {"lr_scheduler": SCHEDULES["cosine"]},
        "model.lr_scheduler=CosineAnnealingLR: the checkpoint's is StepLR;",
    ),
    "schedule added": ({}, {"lr_scheduler": step_schedule}, "model.lr_scheduler=StepLR: the checkpoint's is null"),
    "schedule removed": ({"lr_scheduler": step_schedule}, {}, "model.lr_scheduler=null .* checkpoint's is StepLR;"),
    "cycle": (
        {"lr_scheduler": SCHEDULES["cycle"], "scheduler_interval": "step"},
        {"lr_scheduler": partial(OneCycleLR, max_lr=0.4, total_steps=5), "scheduler_interval": "step"},
        "model.lr_scheduler: .*; 8 steps of it are done already",
    ),
    "second optimizer": (
        {"amr": AMR},
        {"amr": partial(AMR, optimizer="adam")},
        "model.amr.optimizer=adam: the checkpoint's is sgd;",
    ),
    "second becomes main": (
        {"amr": AMR},
        {"amr": partial(AMR, optimizer="main")},
        "model.amr.optimizer=main: the checkpoint's is sgd;",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_optimizer_or_schedule_is_refused_and_both_are_named(
    checkpoint: Callable[..., Path], case: str
) -> None:
    first, second, message = REFUSED[case]
    first, second = (
        {**options, "amr": options["amr"]()} if "amr" in options else options for options in (first, second)
    )
    path = checkpoint(**first)
    with pytest.raises(UserError, match=message):
        fit(build(**{"optimizer": sgd(), **second}), ckpt=path, max_epochs=3)


def test_a_checkpoint_of_an_earlier_version(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint(amr=AMR())
    content = torch.load(path, weights_only=True)
    for key in ("recipe", "settings", "resumed"):
        del content["amr"][key]
    del content["amr"]["methods"]["amr"]["optimizer_name"]
    torch.save(content, path)
    trainer = fit(build(optimizer=sgd(lr=0.02), amr=AMR()), ckpt=path, max_epochs=3)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.02
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"optimizer": partial(Adam, lr=0.1), "amr": AMR()}, "model.optimizer=Adam: the checkpoint's is another"),
        ({"optimizer": sgd(), "lr_scheduler": step_schedule, "amr": AMR()}, "lr_scheduler=StepLR: the checkpoint's is"),
        ({"optimizer": sgd(), "amr": AMR(optimizer="adam")}, "amr.optimizer=adam: the checkpoint's is sgd"),
    )
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            fit(build(**options), ckpt=path, max_epochs=3)


def test_the_second_optimizers_settings_are_those_asked_for(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint(amr=AMR(momentum=0.9, lr=0.1))
    amr = AMR(momentum=0.3, lr=0.05)
    fit(build(optimizer=sgd(), amr=amr), ckpt=path, max_epochs=3)
    assert amr._optimizer is not None
    (group,) = amr._optimizer.param_groups
    assert (group["momentum"], group["lr"]) == (0.3, 0.05)


def test_methods_come_and_go_and_each_parameter_keeps_its_state(checkpoint: Callable[..., Path]) -> None:
    """GGE has parameters of its own, which the main optimizer trains."""

    def buffers(trainer: Any, model: Any) -> dict[str, torch.Tensor]:
        state = trainer.optimizers[0].state
        return {n: state[p]["momentum_buffer"] for n, p in model.trained_parameters().items() if p in state}

    plain = build(optimizer=sgd())
    path = checkpoint()
    kept = buffers(fit(plain, ckpt=path), plain)
    added = build(optimizer=sgd(), gge=GGE())
    with_gge = buffers(fit(added, ckpt=path), added)
    assert with_gge.keys() == kept.keys() < added.trained_parameters().keys()
    assert all(torch.equal(kept[name], with_gge[name]) for name in kept)
    trainer = fit(build(optimizer=sgd(), gge=GGE(), ogm=OGM(parameters="all")), ckpt=path, max_epochs=3)
    trainer.save_checkpoint(path)
    removed = build(optimizer=sgd())
    without = buffers(fit(removed, ckpt=path, max_epochs=3), removed)
    assert without.keys() == kept.keys()
    assert not any(torch.equal(kept[name], without[name]) for name in kept)


def test_differences_are_named() -> None:
    config = {"seed_everything": 0, "trainer": {"max_epochs": 2, "precision": None}, "data": {"class_path": "A"}}
    config["data"]["init_args"] = {"root": "here", "batch_size": 8}  # type: ignore[index]
    model = {"fusion": "Sum", "amr": None, "ogm": {"alpha": 0.5}, "optimizer": {"init_args": {"lr": 0.1}}}
    before = settings_of({**config, "model": model})
    moved = {"class_path": "A", "init_args": {"root": "there", "batch_size": 4}}
    changed = {**model, "amr": {"weight": 1.0}, "ogm": None, "optimizer": {"init_args": {"lr": 0.2}}}
    now = settings_of(
        {**config, "trainer": {"max_epochs": 9, "precision": "bf16-mixed"}, "model": changed, "data": moved}
    )
    assert differences(before, before) == []
    assert differences(before, now) == [
        "trainer.precision=bf16-mixed (was null)",
        "model.amr added",
        "model.ogm removed",
        "model.optimizer.init_args.lr=0.2 (was 0.1)",
        "data.init_args.batch_size=4 (was 8)",
    ]


def test_a_damaged_record_is_refused() -> None:
    with pytest.raises(UserError, match="what it says of its starts is not whole"):
        starts({"amr": {"resumed": [{"epoch": "1", "with": []}]}}, None)


@pytest.fixture(scope="module")
def resumed(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three starts, each of an epoch: as it was, with another rate and AMR, and with the same once more."""
    folder = tmp_path_factory.mktemp("starts")
    command = ["fit", *tiny, "--runs_dir", str(folder), "--name", "run", "--wandb", "disabled"]
    other = ["--model.optimizer.lr", "0.003", "--model.amr.weight", "1"]
    for epochs, more in ((1, []), (2, other), (3, other)):
        resume = ["--ckpt_path", "last"] if epochs > 1 else []
        assert main([*command, *more, *resume, "--trainer.max_epochs", str(epochs)]) == 0
        if epochs == 1:
            assert "resumed" not in json.loads((folder / "run/run.json").read_text())
            assert (folder / "run/config.yaml").read_text().startswith("# pytorch_lightning")
    return folder / "run"


def test_what_was_resumed_with_other_settings_says_so_everywhere(resumed: Path, capsys: Any) -> None:
    changes = "model.optimizer.init_args.lr=0.003 (was 0.01), model.amr added"
    (start,) = json.loads((resumed / "run.json").read_text())["resumed"]
    assert (start["epoch"], start["step"], ", ".join(start["with"])) == (1, 6, changes)
    assert (resumed / "config.yaml").read_text().startswith(f"# resumed at epoch 1 with {changes}\n# pytorch_lightning")
    card = (resumed / "card.md").read_text()
    assert "| resumed | at epoch 1 with model.optimizer.init\\_args.lr=0.003" in card
    assert "not trained with these settings from the start" in card
    assert read_folder(resumed).notes == (f"resumed at epoch 1 with {changes}",)
    assert read_run(resumed).notes == (f"resumed at epoch 1 with {changes}",)
    assert main(["compare", str(resumed.parent), "--out", str(resumed.parent / "page.html")]) == 0
    assert f"run: resumed at epoch 1 with {changes}." in capsys.readouterr().out
    assert "resumed at epoch 1 with" in (resumed.parent / "page.html").read_text()
    last = torch.load(resumed / "checkpoints/last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == 0.003


def test_the_run_of_the_issue(resumed: Path, tiny: list[str], capsys: Any) -> None:
    command = ["fit", *tiny, "--runs_dir", str(resumed.parent), "--name", "run", "--wandb", "disabled"]
    capsys.readouterr()
    assert main([*command, "--ckpt_path", "last", "--model.optimizer", "torch.optim.Adam"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("amr: "))
    assert line.startswith("amr: model.optimizer=Adam: the checkpoint's is SGD; training can resume with SGD alone")
