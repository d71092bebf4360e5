"""Commands that a process runs one after another; Lightning starts this again as the second rank.

    python -m tests.commands FOLDER

They are in the folder's commands.json; their exit statuses go to statuses-RANK.json.
"""

import atexit
import json
import os
import sys
from pathlib import Path

from amr.cli import main


def _tell() -> None:
    import torch

    print("group open at exit:", torch.distributed.is_initialized())


if __name__ == "__main__":
    # The first to be registered is the last of all to run.
    atexit.register(_tell)
    folder = Path(sys.argv[1])
    statuses = [main(command) for command in json.loads((folder / "commands.json").read_text())]
    (folder / f"statuses-{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(statuses))
