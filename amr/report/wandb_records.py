"""W&B's record file (run-<id>.wandb): protobuf messages in LevelDB's log format. wandb is imported only to read one."""

from __future__ import annotations

import math
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from amr.evaluation.runs import NUMBERS, SPLITS, one_nan
from amr.utils.readers import DEPTH, bad, opened, parse_json

BLOCK = 32768  # no piece of a message crosses a multiple of this
FILE_HEADER = b":W&B\xe1\xbe\x00"
PIECE = struct.Struct("<IHB")  # checksum, length, kind
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
LARGEST = 1 << 40  # it is read in pieces
MESSAGE_BYTES = 16 << 20  # of one message
VALUES = 5 * NUMBERS  # of the history: some 1 GB


@dataclass
class Record:
    """Record of one start of a run.

    Attributes:
        name: The run's display name; may be empty.
        group: The run's group; may be empty.
        project: The run's project; may be empty.
        run_id: The run's id; empty if the file ends before it.
        config: The run's config.
        summary: The summary, nested keys joined by "/".
        history: The logged rows, nested keys joined by "/": of each the epoch, and what begins with train/, val/ or
            test/.
        complete: Whether the run was ended and everything is there.
        values: Number of values in the history.
    """

    name: str = ""
    group: str = ""
    project: str = ""
    run_id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False
    values: int = 0


def read_record(file: Path) -> Record:
    """Read a run-<id>.wandb as far as it goes: a killed run's ends within a message.

    Raises:
        UserError: The file cannot be read, is not such a file, or is damaged before its end.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto import wandb_internal_pb2

    found = Record()
    try:
        with opened(file, LARGEST) as stream:
            for message in _messages(stream):
                record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
                record.ParseFromString(message)
                _take(found, record)
    except OSError as error:
        raise bad(file, error.strerror or "cannot be read") from None
    except (DecodeError, ValueError, RecursionError) as error:
        raise bad(file, f"damaged ({error}); must be a run-<id>.wandb as wandb wrote it, or its beginning") from None
    return found


def _messages(stream: BinaryIO) -> Iterator[bytes]:
    """The whole messages up to the end of the file, or to where a killed run's last one is cut off.

    Raises:
        ValueError: The framing is not LevelDB's, or a checksum is wrong.
    """
    header = stream.read(len(FILE_HEADER))
    if not FILE_HEADER.startswith(header):
        raise ValueError(f"it begins with {header!r}, not {FILE_HEADER!r}")
    message: bytearray | None = None
    start = len(FILE_HEADER)  # the first block is shorter by it
    while block := stream.read(BLOCK - start):
        last, start, position = len(block) < BLOCK - start, 0, 0
        while position + PIECE.size <= len(block):
            checksum, length, kind = PIECE.unpack_from(block, position)
            piece = block[position + PIECE.size : position + PIECE.size + length]
            if len(piece) < length and last:
                return
            if len(piece) < length or zlib.crc32(piece, zlib.crc32(bytes([kind]))) != checksum:
                raise ValueError("wrong length or checksum")
            if kind not in (WHOLE, FIRST, MIDDLE, LAST) or (message is None) != (kind in (WHOLE, FIRST)):
                raise ValueError("pieces out of order")
            if message is None:
                message = bytearray()
            message += piece
            if len(message) > MESSAGE_BYTES:
                raise ValueError(f"a message of more than {MESSAGE_BYTES:,} bytes")
            if kind in (WHOLE, LAST):
                yield bytes(message)
                message = None
            position += PIECE.size + length


def _take(found: Record, record: Any) -> None:
    """Add one protobuf message to what was found; of most kinds, nothing."""
    match record.WhichOneof("record_type"):
        case "run":
            run = record.run
            found.name, found.group = run.display_name, run.run_group
            found.project, found.run_id = run.project, run.run_id
            _update(found.config, run.config)
            found.summary |= _flat(run.summary.update)
        case "config":
            _update(found.config, record.config)
        case "summary":
            found.summary |= _flat(record.summary.update)
        case "history":
            row = {
                sys.intern(k): v for k, v in _flat(record.history.item).items() if k == "epoch" or k.startswith(SPLITS)
            }
            found.history.append(row)
            found.values += 1 + len(row)
            if found.values > VALUES:
                raise ValueError(f"more than {VALUES:,} logged values")
        case "exit":
            found.complete = True


def _update(config: dict[str, Any], change: Any) -> None:
    for item in change.update:
        *outer, key = item.nested_key or [item.key]
        if len(outer) > DEPTH:
            raise ValueError(f"config: nested deeper than {DEPTH} levels")
        section = config
        for name in outer:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise ValueError(f"config: {name} has no sections")
        section[key] = parse_json(item.value_json)
    for item in change.remove:
        if not item.nested_key:
            config.pop(item.key, None)


def _flat(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: parse_json(item.value_json) for item in items}


def number(value: Any) -> float | None:
    """A logged value as a number; W&B writes what JSON lacks as text. None for anything else."""
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        return one_nan(float(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return one_nan(float(value))
    except OverflowError:
        return math.inf
