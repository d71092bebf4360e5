"""What the benchmarks share: clips to load, one way to report, and the machine's name."""

import csv
import json
import logging
import platform
import statistics
import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from amr.datamodules import Clips
from amr.datamodules.store.media import DecodeOptions
from amr.datamodules.synthetic.synthesis import write_mp4
from amr.datamodules.transforms import AudioTransform, VideoTransform

GRID = Path(__file__).parents[1] / "../shared/data/grid"
Data = Literal["vggsound", "crema-d", "crema-d-256", "grid"]


def machine(device: str) -> str:
    """Name of what ran it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{(names or [platform.processor()])[0]}, {torch.get_num_threads()} threads"


def quiet() -> None:
    """Silence what Lightning says of every fit."""
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)


def spread(key: str, values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median, smallest and largest value."""
    found = {key: statistics.median(values), f"{key}_min": min(values), f"{key}_max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def report(result: Mapping[str, Any]) -> None:
    """Print a table and one JSON line."""
    width = max(map(len, result))
    for key, value in result.items():
        print(f"{key:{width}} {value}")
    print(json.dumps(result))


def clips(data: Data, count: int, folder: Path, **kwargs: Any) -> Clips:
    """Prepared training clips with the settings of configs/data/{vggsound-ogm-ge,crema-d,grid-letters}.yaml.

    VGGSound's (see `vggsound`) and CREMA-D's are made here, the latter 3 s, 25 frames a second, 480 x 360 pixels,
    16 kHz. GRID's are the real ones where they are at hand, and made in their image otherwise.

    Args:
        data: Which; crema-d-256 stores the frames with a shorter side of 256 pixels.
        count: Number of clips.
        folder: For all that is made.
        kwargs: See `ClipDataModule`.
    """
    settings: dict[str, Any] = {"store": folder / f"store-{data}", **kwargs}
    imagenet: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    if data == "vggsound":
        settings["decode"] = DecodeOptions(sample_rate=16000, fps=1.0, size=256)
        settings["audio"] = AudioTransform(
            5.0, "tile", "random", "log_stft", n_fft=256, hop_length=128, normalise=False, padding="zeros"
        )
        settings["video"] = VideoTransform(3, 224, "resized_crop", flip=True, per_frame=True, **imagenet)
        paths = vggsound(folder / data, count)
        rows = [{"id": p.stem, "file": p.name, "label": "0", "split": "train"} for p in paths]
        listing, root = _write(folder / data / "clips.csv", rows), None
    elif data != "grid":
        settings["decode"] = DecodeOptions(sample_rate=16000, fps=1.0, size=256 if data == "crema-d-256" else None)
        stft: dict[str, Any] = {"n_fft": 512, "hop_length": 353, "normalise": False, "padding": "zeros"}
        settings["audio"] = AudioTransform(3.0, "tile", "first", "log_stft", sample_rate=22050, **stft)
        settings["video"] = VideoTransform(1, 224, "resized_crop", flip=True, pick="first", per_frame=True, **imagenet)
        listing, root = _made(folder / data, count, (360, 480), 1), None
    else:
        settings["decode"] = DecodeOptions(crop=(67, 32, 42, 64))
        settings["audio"] = AudioTransform(0.64, n_fft=400, hop_length=160, n_mels=64, time_shift_ms=60)
        shift: dict[str, Any] = {"augment": "shift", "shift": 4, "flip": True, "grayscale": True}
        settings["video"] = VideoTransform(frames=16, size=(42, 64), **shift)
        real = GRID.is_dir()
        listing = _listing(folder, count) if real else _made(folder / data, count, (128, 128), 25, end=1.64)
        root = GRID if real else None
    module = Clips(listing, root, **settings)
    module.prepare()
    module.setup()
    return module


def vggsound(folder: Path, count: int) -> list[Path]:
    """Clips of a moving, grainy picture with a noisy tone, in VGGSound's image.

    10 s, 640 x 360 pixels, 25 frames a second by x264's medium preset, AAC sound at 44.1 kHz.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng, seconds, rate, (height, width) = np.random.default_rng(0), 10, 44100, (360, 640)
    ground = np.kron(rng.integers(30, 226, (height // 20 + 20, width // 20 + 20, 3)), np.ones((20, 20, 1)))
    ground += rng.normal(0, 6, ground.shape)
    picture = ground.clip(0, 255).astype(np.uint8)
    paths = []
    for i in range(count):
        frames = np.stack([picture[k // 2 + i : k // 2 + i + height, k : k + width] for k in range(seconds * 25)])
        wave = 0.3 * np.sin(np.arange(seconds * rate) * (0.02 + i / 1000)) + rng.normal(0, 0.05, seconds * rate)
        paths.append(folder / f"{i:03d}.mp4")
        write_mp4(paths[-1], frames, wave.astype(np.float32), fps=Fraction(25), rate=rate, preset="medium")
    return paths


def _listing(folder: Path, count: int) -> Path:
    """The first training clips of the GRID letters."""
    with (GRID / "letters.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    return _write(folder / "grid.csv", rows[:count])


def _made(folder: Path, count: int, size: tuple[int, int], labels: int, end: float | None = None) -> Path:
    """Clips of a picture that drifts over a grainy ground, with a noisy tone; a window from 1 s to `end` if given."""
    (folder / "media").mkdir(parents=True)
    rng = np.random.default_rng(0)
    height, width = size
    patches = np.kron(rng.integers(40, 216, (height // 40 + 4, width // 40 + 4, 3)), np.ones((40, 40, 1)))
    # The grain makes CREMA-D's frames as large as the real ones, about 32 KB.
    picture, rows = (patches + rng.normal(0, 1.5, patches.shape)).clip(0, 255).astype(np.uint8), []
    for i in range(count):
        x, y = rng.integers(0, 70, 2)
        frames = np.stack([picture[y + k // 2 : y + k // 2 + height, x + k : x + k + width] for k in range(75)])
        wave = 0.3 * np.sin(np.arange(48000) * (0.05 + i / 1000)) + rng.normal(0, 0.05, 48000)
        write_mp4(folder / f"media/{i}.mp4", frames, wave.astype(np.float32), fps=Fraction(25))
        row = {"id": f"{i:04d}", "file": f"media/{i}.mp4", "label": f"{i % labels:02d}", "split": "train"}
        rows.append({**row, **({} if end is None else {"start": 1.0, "end": end})})
    return _write(folder / "clips.csv", rows)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
