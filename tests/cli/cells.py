"""What a grid's cell leaves, without training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def finish(task: Mapping[str, Any], accuracy: float = 0.5) -> None:
    """Writes the run's folder and the record of a task that ended well.

    Args:
        task: As `Grid.task` makes it.
        accuracy: On the validation split; on the test split it is 1 minus that.
    """
    folder = Path(task["folder"])
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    facts = {"method": task["facts"]["row"], "dataset": "d", "fusion": "f", "seed": task["facts"]["seed"]}
    (folder / "run.json").write_text(json.dumps({**facts, "modalities": ["a", "v"], "labels": []}))
    (folder / "metrics/version_0").mkdir(parents=True)
    (folder / "metrics/version_0/metrics.csv").write_text(
        f"epoch,step,val/acc,test/acc\n1,2,{accuracy},{1 - accuracy}\n"
    )
    (folder / "checkpoints/best.ckpt").write_text("best")
    times = {"seconds": 10.0, "resumed": False, "finished": "2026-01-01T00:00:10+00:00"}
    Path(task["record"]).write_text(json.dumps({**task["facts"], **times, "versions": {}}))
