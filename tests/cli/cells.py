"""What a grid's cell leaves, without training, and what its arguments say of the model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


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


class AtOnce:
    """Stands in for a cell's process: the cell is finished when it is started."""

    exitcode = 0

    def __init__(self, task: Mapping[str, Any], accuracy: float) -> None:
        self.task, self.accuracy = task, accuracy

    def start(self) -> None:
        finish(self.task, self.accuracy)


def section_of(arguments: Sequence[str]) -> dict[str, Any]:
    """The `model` section of a row's arguments."""

    def merge(into: dict[str, Any], more: dict[str, Any]) -> None:
        for key, value in more.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict) and "class_path" not in value:
                merge(into[key], value)
            else:
                into[key] = value

    model: dict[str, Any] = {}
    for argument in arguments:
        key, _, value = argument.removeprefix("--").partition("=")
        if argument.endswith(".yaml"):
            merge(model, (yaml.safe_load(Path(argument).read_text()) or {}).get("model") or {})
        elif key.startswith("model."):
            given: Any = yaml.safe_load(value)
            for name in reversed(key.split(".")[1:]):
                given = {name: given}
            merge(model, given)
    return model
