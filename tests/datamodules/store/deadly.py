"""Functions for worker processes, some of which they do not survive. Imports little: each process does so anew."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from amr.datamodules.store import prepare
from amr.datamodules.store.media import Clip, Decoded, DecodeOptions, decode


def shard(*task: Any) -> int:
    """Prepares a shard with a decoder that kills its process: at one clip always, or at clip c09 once."""
    prepare.decode = _decode  # type: ignore[attr-defined]
    return prepare._prepare_shard(*task)


def _decode(clip: Clip, root: Path, options: DecodeOptions) -> Decoded:
    flag = os.environ["AMR_TEST_ONCE"]
    if clip.id == os.environ["AMR_TEST_KILLER"] or (flag and clip.id == "c09" and not Path(flag).exists()):
        if flag:
            Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(clip, root, options)


def die(*_: Any) -> int:
    """Does not return."""
    os._exit(1)


def square(x: int) -> int:
    """x squared; 3 kills."""
    return die() if x == 3 else x * x


def sleep(seconds: float) -> None:
    """Says that it has begun."""
    os.write(1, b"asleep\n")  # in one piece
    time.sleep(seconds)
