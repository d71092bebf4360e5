"""The room that a store will take, told before it is filled."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from amr.datamodules import Clips, CremaD
from amr.datamodules.store.media import Clip, DecodeOptions
from amr.datamodules.store.prepare import prepare
from amr.datamodules.store.room import estimate
from tests.datamodules.conftest import write_clip


def ratio(clips: Sequence[Clip], root: Path, store: Path, options: DecodeOptions) -> float:
    """Estimate over truth."""
    estimated = estimate(clips, options, root, workers=0)
    assert estimated is not None
    return estimated[0] / prepare(clips, store, options, root=root, workers=0).bytes


@pytest.mark.parametrize("options", [DecodeOptions(), DecodeOptions(fps=5.0, size=64)])
def test_real_windows_and_whole_clips(shared_data: Path, tmp_path: Path, options: DecodeOptions) -> None:
    root = shared_data / "grid"
    windows = Clips("letters.csv", root=root).clips[::40]
    assert 1 / 1.5 < ratio(windows, root, tmp_path / "windows", options) < 1.5
    mixed = [replace(c, start=None, end=None) if i % 4 == 0 else c for i, c in enumerate(windows)]
    assert 1 / 1.5 < ratio(mixed, root, tmp_path / "mixed", options) < 1.5
    lengths = [replace(c, start=0.0, end=(0.2, 0.4, 2.8)[i % 3]) for i, c in enumerate(windows)]
    assert 1 / 1.5 < ratio(lengths, root, tmp_path / "lengths", options) < 1.5


def test_real_crema_d_beside_grid(shared_data: Path, tmp_path: Path) -> None:
    """Other codecs, sizes and lengths in one listing."""
    crema = CremaD(shared_data / "crema_d_sample", split="all").clips
    clips = [replace(c, files={m: "crema_d_sample" / f for m, f in c.files.items()}) for c in crema]
    options = DecodeOptions(fps=1.0, size=128)
    assert 1 / 1.5 < ratio(clips, shared_data, tmp_path / "crema", options) < 1.5
    for clip in Clips("letters.csv", root=shared_data / "grid").clips[::40]:
        files = {m: "grid" / file for m, file in clip.files.items()}
        clips.append(replace(clip, files=files, start=None, end=None))
    assert 1 / 1.5 < ratio(clips, shared_data, tmp_path / "both", options) < 1.5


def test_few_long_clips_count_for_what_they_are(tmp_path: Path) -> None:
    """Three of sixty are a hundred times as long, and ten are not there; the mean of a few clips would not know."""
    write_clip(tmp_path / "short.mp4", seconds=0.4)
    write_clip(tmp_path / "long.mp4", seconds=40)
    names = ["long"] * 3 + ["short"] * 47 + ["gone"] * 10
    clips = [
        Clip(f"{i:02d}", "a", "train", dict.fromkeys(("audio", "video"), Path(f"{name}.mp4")))
        for i, name in enumerate(names)
    ]
    assert 1 / 1.5 < ratio(clips, tmp_path, tmp_path / "store", DecodeOptions(fps=5.0)) < 1.5


def test_nothing_is_told_of_nothing(tmp_path: Path) -> None:
    clips = [Clip("1", "a", "train", {"audio": Path("gone.wav")})]
    assert estimate(clips, DecodeOptions(), tmp_path, workers=0) is None
