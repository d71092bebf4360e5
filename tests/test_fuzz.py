"""Strangers' files, spoilt by seeded chance: each is read, or refused in one line that names it."""

import io
import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from wandb.proto import wandb_internal_pb2

from amr.report import read_results, read_run, table_text, write_results
from amr.report.card import write_card
from amr.report.site import write, write_site
from amr.report.site.agreement import agreement
from tests.report.runs import epoch, results, write_run
from tests.report.site.analysis import write_analysis
from tests.spoil import ODD, altered, damaged, hammer

ROWS = [*epoch(0, 0.4), *epoch(1, 0.6, 0.7), *results(0.55, 0.45)]
CONFIG = {"model": {"amr": {"weight": 0.5}, "encoders": {"a": {"class_path": "x", "init_args": {"n": 1}}}}, "seed": 3}


@pytest.fixture(autouse=True)
def _without_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that a try writes need not survive a failing machine."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def files_of(*paths: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in paths}


def spoiler(
    files: dict[Path, bytes], shape: Callable[[Path, bytes, random.Random], bytes], where: Path
) -> Callable[[random.Random], Path]:
    """Puts all files back, then spoils one: its bytes, or by `shape` what it holds."""

    def spoil(rng: random.Random) -> Path:
        for path, data in files.items():
            path.write_bytes(data)
        path = rng.choice(list(files))
        path.write_bytes(damaged(files[path], rng) if rng.random() < 0.5 else shape(path, files[path], rng))
        return where

    return spoil


def reshaped(path: Path, data: bytes, rng: random.Random) -> bytes:
    """The file with an odd value somewhere in what it holds."""
    match path.suffix:
        case ".json":
            return json.dumps(altered(json.loads(data), rng)).encode()
        case ".yaml":
            return yaml.safe_dump(altered(yaml.safe_load(data), rng)).encode("utf-8", "surrogatepass")
        case ".csv":
            lines = [line.split(",") for line in data.decode().splitlines()]
            cells = [
                [str(cell) for cell in line] if isinstance(line, list) else [] for line in altered(lines, rng) or []
            ]
            return "\n".join(map(",".join, cells)).encode("utf-8", "surrogatepass")
        case ".npz":
            return odd_arrays(data, rng)
        case _:
            return odd_columns(data, rng)


def odd_columns(data: bytes, rng: random.Random) -> bytes:
    table = pq.read_table(io.BytesIO(data))
    rows = table.to_pylist()
    for _ in range(rng.choice((1, 1, 3))):
        name = rng.choice(table.column_names)
        if rng.random() < 0.2:
            rows = [{key: value for key, value in row.items() if key != name} for row in rows]
            continue
        value = rng.choice(ODD)
        for row in rng.sample(rows, rng.choice((1, len(rows)))):
            row[name] = value
    buffer = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist(rows), buffer)
    except (pa.ArrowException, OverflowError, UnicodeError):  # of a mixture of types
        return damaged(data, rng)
    return buffer.getvalue()


def odd_arrays(data: bytes, rng: random.Random) -> bytes:
    with np.load(io.BytesIO(data)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    name = rng.choice(list(arrays))
    array = arrays[name]
    odd: Sequence[Any] = (
        *(array[..., None], array.ravel()[:1], array.ravel()[:0], array.astype("U8"), np.array("x"), np.array(-1)),
        *(np.array(2**62), np.zeros((0, 3)), np.full(array.shape, np.nan), np.zeros((3, 0, 2), np.uint8)),
    )
    arrays[name] = rng.choice(odd)
    if rng.random() < 0.2:
        del arrays[rng.choice(list(arrays))]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_run_folders(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", ROWS, config=CONFIG, seed=3, method="umt+amr")
    (run / "per_class.csv").write_text("split,class,clips,acc\ntest,a,3,0.5\nval,b,4,nan\n")
    one = {"measure": "auc", "modality": "audio", "corruption": "white", "severity": 3, "value": 0.5}
    pq.write_table(pa.Table.from_pylist([one]), run / "robustness.parquet")
    facts = json.loads((run / "run.json").read_text())
    facts |= {
        "clips": {"train": 3, "val": 1, "test": 2},
        "listed": 6,
        "split": "x",
        "skipped": {"y": 1},
        "versions": {},
    }
    (run / "run.json").write_text(json.dumps(facts))
    names = ("run.json", "config.yaml", "per_class.csv", "robustness.parquet", "metrics/version_0/metrics.csv")
    files = files_of(*(run / name for name in names))

    def read() -> None:
        table_text([read_run(run)])
        (run / "robustness.parquet").unlink()  # the card's own table has more columns
        write_card(run)

    assert hammer(300, spoiler(files, reshaped, run), read) > 60


def test_results(tmp_path: Path) -> None:
    file = tmp_path / "results.parquet"
    write_results([read_run(write_run(tmp_path / f"r{i}", ROWS, config=CONFIG, seed=i)) for i in range(3)], file)
    assert hammer(300, spoiler(files_of(file), reshaped, file), lambda: table_text(read_results(file))) > 60


def framed(messages: Sequence[bytes]) -> bytes:
    """Messages in the frame of W&B's record file, with checksums that are right."""
    out = bytearray(b":W&B\xe1\xbe\x00")
    for message in messages:
        assert len(message) + 7 < 32768 - len(out) % 32768
        out += struct.pack("<IHB", zlib.crc32(message, zlib.crc32(b"\1")), len(message), 1) + message
    return bytes(out)


def wandb_messages() -> list[bytes]:
    messages = []
    for number, values in ROWS:
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        for key, value in {"epoch": number, **values}.items():
            record.history.item.add(key=key, value_json=json.dumps(value))
        messages.append(record)
    start = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
    start.run.run_id, start.run.display_name, start.run.project = "abc", "r", "p"
    for key, setting in {"method": "naive", "seed": 1, "modalities": ["a", "b"], **CONFIG}.items():
        start.run.config.update.add(key=key, value_json=json.dumps(setting))
    summary = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
    summary.summary.update.add(nested_key=["a", "b"], value_json="1")
    end = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
    end.exit.exit_code = 0
    return [record.SerializeToString() for record in (start, *messages, summary, end)]


def test_wandb_records(tmp_path: Path) -> None:
    folder = tmp_path / "offline-run-1-abc"
    folder.mkdir()
    file, messages = folder / "run-abc.wandb", wandb_messages()
    file.write_bytes(framed(messages))
    assert read_run(folder).epochs[1]["val/acc"] == 0.6

    def odd_message(_: Path, __: bytes, rng: random.Random) -> bytes:
        spoilt = list(messages)
        number = rng.randrange(len(spoilt))
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(spoilt[number])
        items = [*record.history.item, *record.run.config.update, *record.summary.update]
        if not items or rng.random() < 0.3:
            spoilt[number] = damaged(spoilt[number], rng)
        else:
            rng.choice(items).value_json = json.dumps(rng.choice(ODD))
            spoilt[number] = record.SerializeToString()
        return framed(spoilt)

    read = spoiler(files_of(file), odd_message, file)
    assert hammer(300, read, lambda: table_text([read_run(folder)])) > 50


def test_analysis_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`amr site` of a stranger's analysis; nothing outside of it, and nothing of a film's decoder, is in question."""
    monkeypatch.setattr(write, "cut", lambda *_: "not cut")
    analysis, site = write_analysis(tmp_path / "one", 4, 2, units=4), tmp_path / "site"
    shutil.rmtree(analysis / "extremes", ignore_errors=True)
    write_site([analysis], site)
    paths = [path for path in sorted(analysis.rglob("*")) if path.suffix in (".json", ".parquet", ".npz")]
    assert {path.suffix for path in paths} == {".json", ".parquet", ".npz"}
    assert hammer(120, spoiler(files_of(*paths), reshaped, analysis), lambda: write_site([analysis], site)) > 30


def test_what_a_site_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "cut", lambda *_: "not cut")
    analysis, site = write_analysis(tmp_path / "one", 4, 1, units=2), tmp_path / "site"
    write_site([analysis], site)

    def spoil(rng: random.Random) -> Path:
        name = rng.choice(("site.json", "made.txt"))
        (site / name).write_bytes(damaged((site / name).read_bytes() or b"{}", rng))
        return site

    def read() -> None:
        try:
            write_site([analysis], site)
        finally:
            (site / "site.json").write_text("{}")

    hammer(60, spoil, read)


def test_exported_names(tmp_path: Path) -> None:
    content = {"format": "amr-concepts-1", "checkpoint": "c", "names": {str(unit): f"n{unit % 3}" for unit in range(9)}}
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    other.write_text(json.dumps(content))
    one.write_text(json.dumps(content))
    assert hammer(300, spoiler(files_of(one), reshaped, one), lambda: agreement(one, other)) > 60
