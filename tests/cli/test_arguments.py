"""Arguments of the Trainer that people give, and mistakes in them: training, or one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from amr.cli import main
from amr.cli.arguments import told_by_lightning

pytestmark = pytest.mark.filterwarnings("ignore")

CALLBACKS = "pytorch_lightning.callbacks"
REFUSED = {
    "interval": (
        ["--trainer.val_check_interval", "50"],
        "trainer: `val_check_interval` (50) must be less than or equal",
    ),
    "interval 0": (["--trainer.val_check_interval", "0"], "trainer.val_check_interval=0: must be positive"),
    "accumulate": (["--trainer.accumulate_grad_batches", "0"], "trainer.accumulate_grad_batches=0: must be positive"),
    "clip": (["--trainer.gradient_clip_val", "-1"], "trainer.gradient_clip_val=-1: must be positive"),
    "monitor": (
        ["--trainer.callbacks", f"{CALLBACKS}.EarlyStopping", "--trainer.callbacks.monitor", "val_loss"],
        "trainer.callbacks: EarlyStopping has monitor=val_loss, which is not logged; must be one of val/loss, val/acc",
    ),
    "checkpoint": (
        ["--trainer.callbacks", f"{CALLBACKS}.ModelCheckpoint", "--trainer.callbacks.monitor", "acc"],
        "trainer.callbacks: ModelCheckpoint has monitor=acc",
    ),
    "schedule": (
        ["--model.lr_scheduler", "pytorch_lightning.cli.ReduceLROnPlateau", "--model.lr_scheduler.monitor", "val_loss"],
        "model.lr_scheduler: the schedule has monitor=val_loss",
    ),
    "cycle": (
        [
            "--model.lr_scheduler",
            "torch.optim.lr_scheduler.OneCycleLR",
            "--model.lr_scheduler.max_lr",
            "0.1",
            "--model.lr_scheduler.total_steps",
            "1",
            "--model.scheduler_interval",
            "step",
        ],
        "model.lr_scheduler: Tried to step 2 times",
    ),
    "finder": (
        ["--trainer.callbacks", f"{CALLBACKS}.LearningRateFinder"],
        "LearningRateFinder needs a model with a fie",
    ),
    "no logger": (
        ["--trainer.callbacks", f"{CALLBACKS}.LearningRateMonitor", "--trainer.logger", "false"],
        "trainer: Cannot use `LearningRateMonitor` callback with `Trainer` that has no logger",
    ),
    "barebones": (["--trainer.barebones", "true"], "trainer.barebones=true: must be false"),
    "no checkpoints": (["--trainer.enable_checkpointing", "false"], "trainer.enable_checkpointing=false: must be true"),
    "max_time": (["--trainer.max_time", "1h"], "trainer: `Timer(duration='1h')` is not a valid duration"),
    "a folder": (
        ["--runs_dir", "/proc/nowhere"],
        "/proc/nowhere/it: No such file or directory; must be a folder that can",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_line(tiny: list[str], tmp_path: Path, capsys: Any, case: str) -> None:
    arguments, message = REFUSED[case]
    capsys.readouterr()
    command = ["fit", *tiny, "--runs_dir", str(tmp_path), "--name", "it", "--wandb", "disabled"]
    assert main([*command, *arguments]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("amr: "))
    assert message in line
    assert not (tmp_path / "it/checkpoints").exists()


TRAINED = {
    "timer": ["--trainer.callbacks", f"{CALLBACKS}.Timer", "--trainer.callbacks.duration", "00:00:10:00"],
    "interval": [
        "--trainer.callbacks",
        f"{CALLBACKS}.ModelCheckpoint",
        "--trainer.callbacks.train_time_interval",
        "0:10:00",
    ],
    "stopping": [
        "--trainer.callbacks",
        f"{CALLBACKS}.EarlyStopping",
        "--trainer.callbacks.monitor",
        "val/dominance/audio",
    ],
    "own metric": [
        '--trainer.callbacks+={"class_path": "tests.faults.Slow"}',
        f'--trainer.callbacks+={{"class_path": "{CALLBACKS}.ModelCheckpoint", "init_args": {{"monitor": "val/own"}}}}',
        *("--trainer.limit_val_batches", "0"),
    ],
}


@pytest.mark.parametrize("case", TRAINED)
def test_what_trains_can_be_given_back(tiny: list[str], tmp_path: Path, case: str) -> None:
    """Time spans and members of enumerations, too, are in config.yaml in plain types."""
    options = ["--runs_dir", str(tmp_path), "--wandb", "disabled", "--trainer.max_epochs", "1"]
    options += ["--trainer.limit_train_batches", "1"]
    assert main(["fit", *tiny, *options, *TRAINED[case], "--name", "first"]) == 0
    config = tmp_path / "first/config.yaml"
    assert main(["fit", "--config", str(config), "--name", "again"]) == 0
    first, again = (yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("first", "again"))
    assert first["trainer"] == again["trainer"]


def test_a_bug_keeps_its_traceback() -> None:
    def outcome(raises: Any) -> str | None:
        try:
            raises()
        except Exception as error:
            return told_by_lightning(error)
        raise AssertionError

    assert outcome(lambda: [].pop()) is None
    from pytorch_lightning import Trainer

    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    assert outcome(lambda: Trainer(max_steps=-5, **options)) is not None
    assert outcome(lambda: Trainer(accelerator="cpu", callbacks=3, **options)) is None  # type: ignore[arg-type]  # no statement of Lightning's
