import csv
import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog

from amr.datamodules import Clips, Synthetic
from amr.datamodules.synthetic.planted import TASKS, Planted, Task
from amr.datamodules.synthetic.synthesis import Evidence
from amr.datamodules.transforms import AudioTransform, VideoTransform
from amr.utils.errors import UserError

LOUD = {"audio_snr_db": 10.0, "video_noise": 10.0}


def make(root: Path, task: Task = "synergistic", **kwargs: Any) -> Synthetic:
    defaults = {"task": task, "classes": 3, "clips": 30, "prepare_workers": 0, "num_workers": 0, **LOUD}
    return Synthetic(root, store=root / "store", **{**defaults, **kwargs})


def best_accuracy(task: Task, seen: tuple[str, ...], classes: int, count: int = 2000) -> float:
    """Of the classifier that knows how often each class comes with the cues that it sees."""
    recipe = Planted(classes, 0, task, 0.0, 30.0)
    table = Counter((tuple(recipe.cues(i)[m] for m in seen), recipe.label(i)) for i in range(count))
    cues = {cue for cue, _ in table}
    return sum(max(table[cue, label] for label in range(classes)) for cue in cues) / count


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_what_each_modality_allows(classes: int) -> None:
    none, all_ = 1 / classes, 1.0
    reach: dict[Task, tuple[float, float, float]] = {
        "audio_only": (all_, none, all_),
        "video_only": (none, all_, all_),
        "redundant": (all_, all_, all_),
        "synergistic": (none, none, all_),
    }
    assert tuple(reach) == TASKS
    for task, expected in reach.items():
        for seen, best in zip((("audio",), ("video",), ("audio", "video")), expected, strict=True):
            # The count of the commonest class is above the mean by chance.
            assert best_accuracy(task, seen, classes) == pytest.approx(best, abs=0.04), (task, seen)


def test_every_pair_of_cues_of_the_synergistic_task_comes_as_often() -> None:
    recipe, n = Planted(3, 0, "synergistic", 0.0, 30.0), 9000
    pairs = Counter(tuple(recipe.cues(i).values()) for i in range(n))
    assert set(pairs) == set(product(range(3), repeat=2))
    assert max(abs(count - n / 9) for count in pairs.values()) < 4 * math.sqrt(n / 9)
    assert all(sum(recipe.cues(i).values()) % 3 == recipe.label(i) for i in range(100))


def additive_logits_exist(cells: Sequence[Sequence[int]], classes: int) -> bool:
    """Whether some a_c(u) + b_c(v) are largest for c = u + v mod C in all of the cells."""
    rows = []
    for u, v in cells:
        right = (u + v) % classes
        for wrong in set(range(classes)) - {right}:
            row = np.zeros((2, classes, classes))
            row[0, right, u], row[1, right, v], row[0, wrong, u], row[1, wrong, v] = -1, -1, 1, 1
            rows.append(row.ravel())
    return bool(linprog(np.zeros(rows[0].size), np.array(rows), -np.ones(len(rows)), bounds=(-100, 100)).status == 0)


def test_what_additive_heads_make_of_the_synergistic_task() -> None:
    cells = list(product(range(3), repeat=2))
    assert not any(additive_logits_exist(some, 3) for count in (8, 9) for some in combinations(cells, count))
    assert any(additive_logits_exist(some, 3) for some in combinations(cells, 7))
    # Their cross-entropy is convex, and has no slope where all logits are equal: there is its minimum.
    a, b = (torch.zeros(3, 3, requires_grad=True) for _ in range(2))
    u, v = torch.tensor(cells).T
    torch.nn.functional.cross_entropy(a[u] + b[v], (u + v) % 3).backward()  # type: ignore[no-untyped-call]
    for leaf in (a, b):
        assert leaf.grad is not None
        assert leaf.grad.abs().max() < 1e-7


def test_places_stay_inside_and_do_not_tell_the_class() -> None:
    recipes = [Planted(3, 0, task, 0.0, 30.0) for task in TASKS]
    for i in range(500):
        at = recipes[0].place(i)
        assert 0 <= at.start_s < at.end_s <= 0.96
        assert 0 < at.low_hz < at.high_hz < 8000
        assert 0 <= at.top < at.bottom <= 64
        assert 0 <= at.left < at.right <= 64
        assert 0 <= at.frame < at.end_frame <= 12
        assert {recipe.place(i) for recipe in recipes} == {at}
    tops = [[recipes[0].place(i).top for i in range(k, 3000, 3)] for k in range(3)]
    assert max(map(np.mean, tops)) - min(map(np.mean, tops)) < 4 * np.std(tops) * math.sqrt(2 / 1000)


def power(wave: NDArray[np.float32], at: Any) -> tuple[float, float]:
    """Mean power density of a waveform within its place and outside, by a spectrogram of numpy's."""
    step, size = 64, 512
    starts = np.arange(0, len(wave) - size, step)
    spectrum = np.abs(np.fft.rfft([wave[s : s + size] * np.hanning(size) for s in starts])) ** 2
    seconds, hz = (starts + size / 2) / 16000, np.fft.rfftfreq(size, 1 / 16000)
    inside = ((seconds >= at.start_s) & (seconds < at.end_s))[:, None] & ((hz >= at.low_hz) & (hz < at.high_hz))
    # A window's half around the segment, and the main lobe around the band, belong to neither.
    near = ((seconds >= at.start_s - 0.016) & (seconds < at.end_s + 0.016))[:, None]
    near = near & ((hz >= at.low_hz - 70) & (hz < at.high_hz + 70))
    return float(spectrum[inside].mean()), float(spectrum[~near].mean())


def test_energy_is_in_the_place_and_nowhere_else() -> None:
    quiet = Planted(3, 0, "synergistic", 60.0, 0.0)
    for i in range(24):
        at, (frames, wave) = quiet.place(i), quiet.draw(i)
        inside, outside = power(wave, at)
        assert outside < 1e-3 * inside, i
        shown = (frames != 100).any(3)
        assert shown[at.frame : at.end_frame].any((1, 2)).all()
        shown[at.frame : at.end_frame, at.top : at.bottom, at.left : at.right] = False
        assert not shown.any()
    # At the configurations' level the noise is white: it has no place.
    noisy = Planted(3, 0, "synergistic", 10.0, 10.0)
    assert all(inside > outside for inside, outside in (power(noisy.draw(i)[1], noisy.place(i)) for i in range(24)))


def test_place_in_the_inputs_is_where_their_signal_is(tmp_path: Path) -> None:
    """Through mp4, store and transforms: what the two kinds of clip have in common but for the cue."""
    module = make(
        tmp_path,
        audio_snr_db=40.0,
        video_noise=0.0,
        batch_size=30,
        audio=AudioTransform(seconds=0.8, n_mels=32, hop_length=128, normalise=False),
        video=VideoTransform(frames=4, size=(32, 48), grayscale=True),
    )
    module.prepare_data()
    clips = module.clips_of("train")
    edges = torch.tensor(module.audio.bin_edges(16000))
    for n in range(len(clips)):
        clip = clips[n]
        where = module.place(clip["id"])
        x, at = clip["inputs"]["audio"][0].exp(), where["audio"]  # power (32, 101)
        seconds = torch.arange(x.shape[1]) * 128 / 16000
        heard = (seconds > at["start_s"] - 0.02) & (seconds < at["end_s"] + 0.02)
        band = (edges[1:] > at["low_hz"] - 50) & (edges[:-1] < at["high_hz"] + 50)
        assert x[band][:, heard].sum() > 0.97 * x.sum()
        v, at = clip["inputs"]["video"][:, 0], where["video"]  # (4, 32, 48)
        bright = v > v.median() + 0.2
        assert bright.flatten(1).any(1).tolist() == [at["frame"] <= k < at["end_frame"] for k in range(4)]
        _, rows, columns = bright.nonzero(as_tuple=True)
        assert at["top"] - 1 <= rows.min()
        assert rows.max() <= at["bottom"]
        assert at["left"] - 1 <= columns.min()
        assert columns.max() <= at["right"]


def test_listing_has_cues_and_places(tmp_path: Path) -> None:
    module = make(tmp_path)
    module.generate()
    assert module.name == "synthetic-synergistic"
    with (module.root / "clips.csv").open() as file:
        rows = list(csv.DictReader(file))
    recipe = module.recipe
    assert isinstance(recipe, Planted)
    assert len(rows) == 30
    for row in rows:
        assert (int(row["audio_cue"]) + int(row["video_cue"])) % 3 == int(row["label"].removeprefix("class"))
        for name, value in vars(recipe.place(int(row["id"]))).items():
            assert float(row[name]) == value
    assert [c.label for c in Clips(module.root / "clips.csv").clips] == [c.label for c in module.clips]
    assert make(tmp_path, "redundant").root != module.root


def test_evidence_is_what_each_modality_tells(tmp_path: Path) -> None:
    for task in TASKS:
        told = {m for m in ("audio", "video") if best_accuracy(task, (m,), 3) > 0.9}
        assert set(make(tmp_path, task).evidence().values()) == {frozenset(told)}


def test_folder_of_clips_without_a_task_is_what_it_was() -> None:
    assert Synthetic("x").root.name == "6x600-db658be3"
    assert Synthetic("x", task=None).root.name == Synthetic("x").root.name


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.task='both': must be one of audio_only"):
        make(tmp_path, "both")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="data.evidence has no effect with data.task=redundant"):
        make(tmp_path, "redundant", evidence=Evidence(0.5, 0.5))
    with pytest.raises(UserError, match="data.task is null"):
        Synthetic(tmp_path).place("00000")
    with pytest.raises(UserError, match="no clip '00030'"):
        make(tmp_path).place("00030")
    with pytest.raises(UserError, match=r"fit=tile; set data.audio.seconds to 0\.96"):
        make(tmp_path, audio=AudioTransform(seconds=2, fit="tile")).place("00000")
