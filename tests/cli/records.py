"""What a run leaves, read back."""

import csv
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


def read_metrics(run: Path) -> dict[str, float]:
    values: dict[str, float] = {}
    for file in sorted(run.glob("metrics/version_*/metrics.csv")):
        for row in csv.DictReader(file.open()):
            values.update({key: float(value) for key, value in row.items() if value})
    return values


def wandb_records(run: Path) -> Iterator[Any]:
    """Records of an offline run: protobuf messages in LevelDB's log format, in blocks of 32 KiB."""
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    data, position, message = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or last piece
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(message)
            yield record
            message = b""
