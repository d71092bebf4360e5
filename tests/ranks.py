"""Two ranks at little cost: what they take long for is to import torch and to start."""

import json
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from amr.encoders.base import Encoder


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


def run_two_ranks(function: Callable[..., Any], *arguments: Any) -> None:
    """Calls a module's function in each of two processes, launched as torchrun does.

    They are forked from a process that has imported everything and lives as long as this one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_classifier"])
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / str(rank) for rank in range(2)]
        ranks = [
            context.Process(target=_rank, args=(rank, port, file, function, arguments))
            for rank, file in enumerate(said)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(300)
            process.kill()
            process.join()
        failed = [file.read_text()[-3000:] for process, file in zip(ranks, said, strict=True) if process.exitcode]
        assert not failed, "\n".join(failed)


def _rank(rank: int, port: str, said: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "NODE_RANK": 0}
    os.environ |= {key: str(value) for key, value in place.items()}
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), 2)
    function(*arguments)


if __name__ == "__main__":
    from amr.cli import main

    folder = Path(sys.argv[1])
    statuses = [main(command) for command in json.loads((folder / "commands.json").read_text())]
    (folder / f"statuses-{os.environ['RANK']}.json").write_text(json.dumps(statuses))
