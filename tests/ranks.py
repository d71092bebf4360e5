"""Two ranks at little cost: what they take long for is to import torch and to start."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from amr.classifier import FusionClassifier
from amr.encoders.base import Encoder
from tests.processes import warm
from tests.training import assert_equal

T = TypeVar("T")


class Plain(Encoder):
    """Without batch norm, whose statistics are each rank's own."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.out_dim, self.conv = 8, nn.Conv2d(channels, 8, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x.flatten(1, -3)).tanh().mean((2, 3))
        return out


def free_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return str(sock.getsockname()[1])


def fit_on(world: int, model: FusionClassifier, data: pl.LightningDataModule, **flags: Any) -> None:
    """Two epochs on that many ranks, of which this process is one."""
    trainer_on(world, **{"max_epochs": 2, **flags}).fit(model, data)


def trainer_on(world: int, **flags: Any) -> pl.Trainer:
    """A trainer on that many ranks, of which this process is one."""
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the toy's own knows the ranks
        **flags,
    )
    assert trainer.world_size == world
    return trainer


def on_one_and_two_ranks(train: Callable[[int, str], T], cases: Iterable[str]) -> dict[str, tuple[T, T, T]]:
    """What `train(world, case)` returns: of this process alone, and of each of two, launched as torchrun does.

    `train` is a module's function, and what it returns is tensors and numbers in tuples and dicts.
    """
    context = warm()
    port, cases = free_port(), list(cases)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = [context.Process(target=_rank, args=(rank, port, folder, train, cases)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(300)
            process.kill()
            process.join()
        said = [(folder / str(rank)).read_text()[-3000:] for rank, process in enumerate(ranks) if process.exitcode]
        assert not said, "\n".join(said)
        first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    return {case: (train(1, case), first[case], second[case]) for case in cases}


def assert_ranks_equal(results: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]], atol: float) -> None:
    """One process's tensors are those of two ranks, up to rounding, and the two ranks' are the same bit for bit."""
    one, first, second = results
    assert_equal(first, second)
    assert_equal(one, first, atol=atol)


def _rank(rank: int, port: str, folder: Path, train: Callable[[int, str], Any], cases: list[str]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "NODE_RANK": 0}
    os.environ |= {key: str(value) for key, value in place.items()}
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.dup2(os.open(folder / str(rank), os.O_CREAT | os.O_WRONLY), 2)
    torch.save({case: train(2, case) for case in cases}, folder / f"{rank}.pt")
