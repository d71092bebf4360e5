"""Damaged media end in a reason: never in a signal, a hang, an exception or gigabytes."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.datamodules.store import fuzzed_media, timed

TRIES = 30  # a file


@pytest.mark.parametrize(
    "suffixes",
    [
        ("mp4", "mkv", "wav"),
        ("webm", "avi", "mp3"),
        ("flv", "ts", "m4a"),
        ("mpg", "wmv", "flac"),
        ("ogg", "gif", "png"),
    ],
)
def test_damaged_media(tmp_path: Path, suffixes: tuple[str, ...]) -> None:
    for suffix in suffixes:
        if suffix in timed.CONTAINERS:
            timed.write(tmp_path / f"a.{suffix}", 1.2)
        else:
            pictures = [Image.new("RGB", (24, 16), (40 * i, 90, 9)) for i in range(4)]
            pictures[0].save(tmp_path / f"a.{suffix}", save_all=suffix == "gif", append_images=pictures[1:])
    command = [sys.executable, fuzzed_media.__file__, str(tmp_path), str(TRIES * len(suffixes))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500)
    said = ended.stdout.splitlines()
    assert ended.returncode == 0, f"{ended.returncode} at {said[-1:]}: {ended.stderr[-2000:]}"
    assert said[-1] == "done"
