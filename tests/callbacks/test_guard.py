"""Training that ends before its time, in one process; test_faults.py and test_scaling.py have the rest."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from amr.callbacks import Guard, LastCheckpoint
from amr.callbacks.guard import SIGNALS, _some
from amr.cli.benchmark.grid import Grid
from amr.regularizers import AMR
from amr.utils.distributed import AgreedMaximum
from amr.utils.errors import Stopped, UserError
from tests.faults import At, NotFinite, Signal
from tests.toy import Toy
from tests.training import build, weights
from tests.training import fit as plain_fit

pytestmark = pytest.mark.filterwarnings("ignore")


fit = functools.partial(plain_fit, enable_checkpointing=True)


def guard(folder: Path) -> list[pl.Callback]:
    last = LastCheckpoint(str(folder))
    return [last, Guard(last)]


class SpoiltGradient(pl.Callback):
    """As a square root's at 0, in the second step: the loss is finite."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        if trainer.global_step == 1:
            next(pl_module.parameters()).grad.fill_(torch.nan)  # type: ignore[union-attr]


def test_weights_that_were_spoilt_before_are_not_called_good(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is not finite at epoch 0, step 2, .* so a gradient was not;"):
        fit(build(), callbacks=[*guard(tmp_path), SpoiltGradient()])
    assert list(tmp_path.iterdir()) == []


def test_an_epochs_first_step_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"epoch 1, step 4, in the batch of clip\d+, .*; --ckpt_path last goes on"):
        fit(build(), callbacks=[*guard(tmp_path), NotFinite(5)])
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_many_clips_are_counted() -> None:
    assert _some(["a", "b"]) == "a, b"
    assert _some([str(i) for i in range(20)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 12 more (20 in all)"


def test_overflowed_gradients_do_not_stop(tmp_path: Path) -> None:
    """16-mixed, where the scaler takes no step and looks for a smaller scale."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)  # type: ignore[attr-defined]
    plugins = [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]
    trainer = fit(build(amr=AMR()), max_epochs=1, plugins=plugins, callbacks=guard(tmp_path))
    assert trainer.global_step == 4
    assert scaler.get_scale() < 2.0**127


def test_no_stop_between_a_batch_and_its_validation(tmp_path: Path) -> None:
    """Where validation follows within an epoch, too: the run that goes on would skip it."""
    seen_in_the_second_step = Signal("on_train_batch_end", 1, number=signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        fit(build(), Toy(batch_size=4), callbacks=[*guard(tmp_path), seen_in_the_second_step], val_check_interval=2)
    assert str(stopped.value) == "stopped by SIGTERM at epoch 0, step 3; go on with --ckpt_path last"
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_signals_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    fit(build(), max_epochs=1, callbacks=guard(tmp_path))
    with pytest.raises(Stopped):
        fit(build(), callbacks=[*guard(tmp_path), Signal("on_before_backward", 1, number=signal.SIGUSR1)])
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not Guard.active


class Twice(At):
    """Ctrl-C, and another one while the first is still being heeded."""

    def act(self, trainer: pl.Trainer, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        (Path(self.folder) / "survived").touch()

    def __init__(self, hook: str, call: int, folder: Path) -> None:
        super().__init__(hook, call)
        self.folder = folder


def interrupted_twice(folder: Path) -> None:
    fit(build(), callbacks=[*guard(folder), Twice("on_train_batch_start", 2, folder)])


@pytest.mark.parametrize("launcher", ["none", "torchrun"])
def test_a_second_interrupt_ends_at_once(tmp_path: Path, launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But under torchrun, which hands each of the terminal's on a second time."""
    if launcher == "torchrun":
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    process = multiprocessing.get_context("fork").Process(target=interrupted_twice, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == (-signal.SIGINT if launcher == "none" else 1)  # 1: `Stopped`, which nothing catches
    assert (tmp_path / "survived").exists() == (tmp_path / "last.ckpt").exists() == (launcher == "torchrun")


def test_nohup_is_respected(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        fit(
            build(), max_epochs=1, callbacks=[*guard(tmp_path), Signal("on_train_batch_start", 2, number=signal.SIGHUP)]
        )
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


class Everyone(At):
    """SIGTERM to this process and its loader processes, from yet another one, as SLURM sends it."""

    def act(self, trainer: pl.Trainer, *arguments: Any) -> None:
        pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        assert len(pids) > 1
        subprocess.run(["kill", "-TERM", *map(str, pids)], check=True)


class TwoWorkers(Toy):
    def loader(self, shuffle: bool) -> DataLoader[Any]:
        plain = super().loader(shuffle)
        return DataLoader(plain.dataset, self.batch_size, collate_fn=self.collate, num_workers=2)


def test_a_signal_to_all_spares_loader_processes(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="step 2"):
        fit(build(), TwoWorkers(), callbacks=[*guard(tmp_path), Everyone("on_train_batch_end", 1)])
    assert not multiprocessing.active_children()


def wait_for_a_signal(heeds: bool, folder: Path) -> None:
    """What a cell's process may do when it is told to end."""
    os.setsid()

    def save(*_: Any) -> None:
        (folder / "saved").touch()
        sys.exit(143)

    signal.signal(signal.SIGTERM, save if heeds else signal.SIG_IGN)
    (folder / f"ready-{heeds}").touch()
    time.sleep(60)


def test_a_stopped_grid_lets_its_cells_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amr.cli.benchmark.grid.GRACE", 1.0)
    grid = Grid([], tmp_path)
    processes = []
    for heeds in (True, False):
        process = multiprocessing.get_context("forkserver").Process(target=wait_for_a_signal, args=(heeds, tmp_path))
        process.start()
        processes.append(process)
        grid.running[str(heeds)] = process, 0.0  # type: ignore[index]
    while not all((tmp_path / f"ready-{heeds}").exists() for heeds in (True, False)):
        time.sleep(0.02)
    grid.stop()
    assert [process.exitcode for process in processes] == [143, -signal.SIGKILL]
    assert (tmp_path / "saved").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams are a GPU's")
def test_numbers_come_back_from_a_gpu(tmp_path: Path) -> None:  # pragma: no cover
    assert AgreedMaximum(torch.tensor([1.0, 15.0], device="cuda")).read() == [1.0, 15.0]
    model = build(amr=AMR())
    with pytest.raises(UserError, match="step 2"):
        pl.Trainer(accelerator="gpu", devices=1, logger=False, callbacks=[*guard(tmp_path), NotFinite(3)]).fit(
            model, Toy()
        )
    assert all(bool(value.isfinite().all()) for value in weights(model).values())
