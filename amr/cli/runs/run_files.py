"""Files of a run: its record, and what a checkpoint's folder says of it."""

import json
import subprocess
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from amr.classifier import FusionClassifier
from amr.datamodules import ClipDataModule, ListedClips
from amr.report.card import versions
from amr.utils.checkpoints import check_checkpoint
from amr.utils.errors import UserError
from amr.utils.files import run_folder, write_text
from amr.utils.resume import told


class RunRecord(Callback):
    """Writes run.json and config.yaml when training starts and all checks have passed.

    Args:
        folder: The run's folder.
        facts: Contents of run.json.
        config: Contents of config.yaml, as text.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], config: str) -> None:
        self.folder, self.facts, self.config = folder, facts, config

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes both files from rank 0; a resumed start brings them up to date, and adds what is other than before."""
        assert isinstance(pl_module, FusionClassifier)
        if pl_module.resumed:
            self.facts["resumed"] = pl_module.resumed  # which W&B's run gets, too
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        remarks = [f"# {' '.join(told(start).split())}\n" for start in pl_module.resumed]
        write_text(self.folder / "config.yaml", "".join(remarks) + self.config)
        data, strategy = trainer.datamodule, trainer.strategy  # type: ignore[attr-defined]
        facts = {
            **self.facts,
            "folder": str(self.folder.resolve()),
            **({"store": str(data.store.resolve())} if isinstance(data, ClipDataModule) else {}),
            "device": f"{trainer.world_size} x {strategy.root_device.type}, {trainer.precision}",
            "versions": versions(),
            **git_commit(),
            **(data.census() if isinstance(data, ListedClips) else {}),
        }
        write_text(self.folder / "run.json", json.dumps(facts, indent=1) + "\n")


def git_commit() -> dict[str, str]:
    """The commit of the current folder's repository, `+` after it where files differ; nothing outside of one."""
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        commit, changed = (
            subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()  # noqa: S603
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git": commit + ("+" if changed else "")}


def last_checkpoint(folder: Path) -> str | None:
    """The run's last checkpoint, or None where it was interrupted before the first."""
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file():
        print(f"{last} is not there yet: starting from the beginning")
        return None
    check_checkpoint(last, "--ckpt_path=")
    return str(last)


def config_of_checkpoint(arguments: list[str]) -> Path | None:
    """The run's own config.yaml, where a checkpoint of a run is given and no configuration; it may be a stranger's."""
    if arguments[0] == "fit" or any(a in ("-h", "--help") for a in arguments):
        return None
    if not any(a.startswith("--ckpt_path") for a in arguments):
        raise UserError(f"--ckpt_path: {arguments[0]} needs a checkpoint, e.g. runs/NAME/checkpoints/best.ckpt")
    if any(a in ("-c", "--config") or a.startswith("--config=") for a in arguments):
        return None
    for position, argument in enumerate(arguments):
        if argument == "--ckpt_path" and position + 1 < len(arguments):
            path = arguments[position + 1]
        elif argument.startswith("--ckpt_path="):
            path = argument.partition("=")[2]
        else:
            continue
        config = run_folder(Path(path)) / "config.yaml"
        if config.is_file():
            return config
    return None
