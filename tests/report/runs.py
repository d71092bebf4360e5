"""Made-up runs, and what a page says of them."""

from __future__ import annotations

import base64
import csv
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from amr.report import (
    read_run,
    write_report,
)

EVIL = "<img src=x onerror=alert(1)>"
Metrics = dict[str, float]


def write_run(
    path: Path,
    *versions: Sequence[tuple[int, Metrics]],
    method: str = "naive",
    seed: int = 0,
    modalities: Sequence[str] = ("audio", "video"),
    config: dict[str, Any] | None = None,
    **info: Any,
) -> Path:
    """A run's folder; each version is a list of sparse rows (epoch, values)."""
    path.mkdir(parents=True)
    facts = {"dataset": "grid-letters", "fusion": "Concat", "labels": ["a", "b"], "num_classes": 2} | info
    facts |= {"method": method, "seed": seed, "modalities": list(modalities)}
    (path / "run.json").write_text(json.dumps(facts))
    (path / "config.yaml").write_text(yaml.safe_dump({"seed_everything": seed} | (config or {})))
    for number, rows in enumerate(versions):
        folder = path / "metrics" / f"version_{number}"
        folder.mkdir(parents=True)
        columns = ["epoch", "step", *dict.fromkeys(key for _, values in rows for key in values)]
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({"epoch": epoch, "step": 10 * epoch + 9} | values for epoch, values in rows)
    return path


def epoch(number: int, acc: float, audio: float | None = 0.5, **extra: float) -> list[tuple[int, Metrics]]:
    """An epoch as Lightning writes it: validation, training and the learning rate in separate rows."""
    shares = {} if audio is None else {"val/dominance/audio": audio, "val/dominance/video": 1 - audio}
    val = {"val/acc": acc, "val/mAP": acc - 0.05, "val/loss": 1 - acc} | shares
    return [(number, {"lr-SGD": 0.1}), (number, val | extra), (number, {"train/loss": 1.0 / (number + 1)})]


def results(acc: float, audio: float = 0.5) -> list[tuple[int, Metrics]]:
    return [(0, {"test/acc": acc, "test/mAP": acc, "test/dominance/audio": audio, "test/dominance/video": 1 - audio})]


def page_of(runs: Sequence[Path], out: Path) -> str:
    write_report([read_run(run) for run in runs], out)
    return out.read_text(encoding="utf-8")


def table_of(text: str, number: int = 0) -> dict[str, list[str]]:
    """The printed table, or the `number`-th, as {method: cells}."""
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    lines = tables[number].splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {line[cells[0].index("Method")]: line for line in cells[2:]}


class Reader(HTMLParser):
    """Checks that tags nest, and collects tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[str]:
        sources = [attrs["src"] or "" for tag, attrs in self.tags if tag == "img"]
        return [base64.b64decode(source.removeprefix("data:image/svg+xml;base64,")).decode() for source in sources]
