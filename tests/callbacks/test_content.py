"""What W&B gets besides numbers, in W&B's own objects; tests/report/test_dashboard.py reads an offline record of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
from pytorch_lightning.loggers import WandbLogger

from amr.callbacks import BestCheckpoint, WandbContent
from amr.callbacks.content import log_confusion
from amr.utils.errors import UserError


class Recorded:
    """Stands for W&B's run: it keeps what it is given, and sends nothing."""

    id, disabled = "abc123", False

    def __init__(self, offline: bool) -> None:
        self.offline = offline
        self.artifacts: list[tuple[wandb.Artifact, list[str]]] = []
        self.logged: dict[str, Any] = {}

    def log_artifact(self, artifact: wandb.Artifact, aliases: list[str]) -> None:
        self.artifacts.append((artifact, aliases))

    def log(self, values: dict[str, Any]) -> None:
        self.logged |= values


class Logger(WandbLogger):
    """A logger of a run that is `Recorded`."""

    def __init__(self, offline: bool) -> None:
        self.run = Recorded(offline)
        self.tables: dict[str, tuple[list[str], list[Any]]] = {}

    @property
    def experiment(self) -> Any:
        return self.run

    def log_table(  # type: ignore[override]  # what the callback gives
        self, key: str, columns: Any = None, data: Any = None, **kwargs: Any
    ) -> None:
        self.tables[key] = (columns, data)


def ended(folder: Path, logger: Logger, rank: int = 0) -> Any:
    """A trainer at the end of a training that has a best checkpoint."""
    best = BestCheckpoint(str(folder))
    (folder / "best.ckpt").write_bytes(b"weights")
    best.best_model_path, best.best_model_score = str(folder / "best.ckpt"), torch.tensor(0.75)
    return SimpleNamespace(is_global_zero=rank == 0, checkpoint_callbacks=[best], loggers=[logger])


@pytest.mark.parametrize(
    ("asked", "offline", "rank", "sent"),
    [(True, False, 0, 1), (False, False, 0, 0), (True, True, 0, 0), (True, False, 1, 0)],
)
def test_the_best_checkpoint_is_sent_if_asked_and_online(
    asked: bool, offline: bool, rank: int, sent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    logger = Logger(offline)
    WandbContent(checkpoint=asked).on_fit_end(ended(tmp_path, logger, rank), torch.nn.Module())  # type: ignore[arg-type]
    assert len(logger.run.artifacts) == sent
    for artifact, aliases in logger.run.artifacts:
        assert (artifact.name, artifact.type, aliases) == ("checkpoint-abc123", "model", ["best"])
        assert artifact.metadata == {"monitor": "val/acc", "value": 0.75}
        assert {name: entry.size for name, entry in artifact.manifest.entries.items()} == {"best.ckpt": 7}


def test_a_chart_of_few_classes_and_a_table_of_many() -> None:
    counts = torch.zeros(101, 101, dtype=torch.long)
    counts[0, 1], counts[2, 2] = 3, 5
    logger = Logger(offline=True)
    log_confusion(logger, counts, [f"c{i}" for i in range(101)])
    columns, rows = logger.tables["test/confusions"]
    assert (columns, rows) == (["class", "predicted", "clips"], [["c2", "c2", 5], ["c0", "c1", 3]])
    assert not logger.run.logged
    log_confusion(logger, counts[:100, :100], [f"c{i}" for i in range(100)])
    chart = logger.run.logged["test/confusion"]
    assert chart.spec.spec_name == "wandb/confusion_matrix/v1"
    assert len(chart.table.data) == 100**2
    assert [row for row in chart.table.data if row[2]] == [["c0", "c1", 3], ["c2", "c2", 5]]


def test_a_negative_number_of_clips() -> None:
    with pytest.raises(UserError, match="wandb_content.clips=-1: must be at least 0"):
        WandbContent(clips=-1)
