import csv
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from amr.datamodules import ClipDataModule, Clips
from amr.datamodules.synthetic.synthesis import write_mp4
from amr.datamodules.transforms import AudioTransform, VideoTransform


def write_clip(
    path: Path, *, seconds: float = 0.8, fps: int = 25, hz: float = 440.0, audio: bool = True, video: bool = True
) -> Path:
    """An mp4 whose i-th frame has brightness 3 i, and whose sound is a tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.arange(round(seconds * fps), dtype=np.uint8)[:, None, None, None] * 3 + np.zeros((32, 48, 3), np.uint8)
    wave = 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * 16000)) / 16000).astype(np.float32)
    write_mp4(path, frames if video else None, wave if audio else None, fps=Fraction(fps))
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 sound clips, two classes: 13 train, 5 val, 5 test."""
    root = tmp_path_factory.mktemp("clips")
    rows = []
    for i in range(23):
        write_clip(root / f"media/c{i:02d}.mp4", seconds=0.4, hz=300 + 200 * (i % 2))
        split = "train" if i < 13 else "val" if i < 18 else "test"
        rows.append({"id": f"c{i:02d}", "file": f"media/c{i:02d}.mp4", "label": "ab"[i % 2], "split": split})
    write_csv(root / "clips.csv", rows)
    return root


@pytest.fixture(scope="session")
def clip_store(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    Clips(clip_folder / "clips.csv", store=store, prepare_workers=0).prepare()
    return store


@pytest.fixture
def make_module(clip_folder: Path, clip_store: Path) -> Callable[..., Clips]:
    """The clips of `clip_folder` with small, augmented inputs."""

    def make(**kwargs: Any) -> Clips:
        defaults = {
            "store": clip_store,
            "audio": AudioTransform(
                seconds=0.3, n_fft=256, n_mels=16, time_shift_ms=20, freq_mask=2, noise_snr_db=10.0
            ),
            "video": VideoTransform(frames=2, size=16, augment="shift", shift=2, flip=True),
            "batch_size": 4,
            "num_workers": 0,
            "prepare_workers": 0,
        }
        return Clips(clip_folder / "clips.csv", **{**defaults, **kwargs})

    return make


def parse_data(path: Path, *arguments: str) -> ClipDataModule:
    """The data module of a configuration file, with changes of the command line (`--data.key value`)."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(ClipDataModule, "data")
    module: Any = parser.instantiate(parser.parse_args(["--config", str(path), *arguments])).data
    assert isinstance(module, ClipDataModule)
    return module
