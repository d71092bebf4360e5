from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from amr.datamodules import Clips, Synthetic
from amr.datamodules.synthetic.synthesis import Evidence, Recipe
from amr.utils.errors import UserError


def make(root: Path, **kwargs: Any) -> Synthetic:
    return Synthetic(root, **{"classes": 3, "clips": 30, "prepare_workers": 0, "num_workers": 0, **kwargs})


def test_evidence_is_as_asked() -> None:
    recipe, n = Recipe(6, 0, Evidence(audio=0.95, video=0.6), -18, 30), 6000
    shown = [recipe.cues(i) for i in range(n)]
    for modality, e in (("audio", 0.95), ("video", 0.6)):
        rate = sum(cues[modality] == recipe.label(i) for i, cues in enumerate(shown)) / n
        expected = e + (1 - e) / 6
        assert rate == pytest.approx(expected, abs=4 * (expected * (1 - expected) / n) ** 0.5)
    # One modality's choice does not change with the other's knob.
    other = Recipe(6, 0, Evidence(audio=0.1, video=0.6), -18, 30)
    assert [other.cues(i)["video"] for i in range(100)] == [cues["video"] for cues in shown[:100]]


def test_split_is_stratified(tmp_path: Path) -> None:
    module = Synthetic(tmp_path)
    assert Counter(clip.split for clip in module.clips) == {"train": 420, "val": 90, "test": 90}
    assert set(Counter((clip.split, clip.label) for clip in module.clips).values()) == {70, 15}
    assert not any(tmp_path.iterdir())  # nothing is written before it is needed


def test_names_tell_what_shows_a_class(tmp_path: Path) -> None:
    named = make(tmp_path, names="cues")
    assert named.labels == ["300 Hz, 0°", "600 Hz, 60°", "1200 Hz, 120°"]  # an octave and 60 degrees apart
    plain = make(tmp_path)
    assert named.root != plain.root  # whose clips.csv has the other names
    renamed = dict(zip(plain.labels, named.labels, strict=True))
    assert [renamed[clip.label] for clip in plain.clips] == [clip.label for clip in named.clips]
    with pytest.raises(UserError, match="data.names=cues: must be numbers with data.task=redundant"):
        make(tmp_path, task="redundant", names="cues")


def test_same_knobs_same_bytes(tmp_path: Path) -> None:
    a, b, other = make(tmp_path / "a"), make(tmp_path / "b"), make(tmp_path / "a", clips_seed=1)
    for module in (a, b, other):
        module.generate()
    files = sorted(path.name for path in (a.root / "clips").iterdir())
    assert len(files) == 30
    for name in files:
        assert (a.root / "clips" / name).read_bytes() == (b.root / "clips" / name).read_bytes()
        assert (a.root / "clips" / name).read_bytes() != (other.root / "clips" / name).read_bytes()
    assert len(list((tmp_path / "a").iterdir())) == 2  # other knobs, another folder


def test_generation_is_carried_on(tmp_path: Path) -> None:
    module = make(tmp_path)
    module.generate()
    path = module.root / "clips/00007.mp4"
    data, before = path.read_bytes(), {p: p.stat().st_mtime_ns for p in path.parent.iterdir()}
    path.unlink()
    module.generate()
    assert path.read_bytes() == data
    assert [p for p in path.parent.iterdir() if p.stat().st_mtime_ns != before[p]] == [path]


def test_fit_from_nothing_and_read_as_a_listing(tmp_path: Path) -> None:
    module = make(tmp_path, store=tmp_path / "store", batch_size=30)
    module.prepare_data()
    (batch,) = module.train_dataloader()
    assert batch["inputs"]["audio"].shape[0] == batch["inputs"]["video"].shape[0] == len(batch["id"]) == 18
    listing = Clips(module.root / "clips.csv")
    assert [(c.id, c.label, c.split, c.files) for c in listing.clips] == [
        (c.id, c.label, c.split, c.files) for c in module.clips
    ]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"classes": 1}, "data.classes=1"), ({"clips": 20}, "data.clips=20: must be at least 30")],
)
def test_bad_knobs(tmp_path: Path, kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path, **kwargs)
    with pytest.raises(UserError, match=r"data.evidence.video=1.5"):
        Evidence(video=1.5)


def test_unwritable_root(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write clips .*name another data.root"):
        make(tmp_path / "file").generate()
