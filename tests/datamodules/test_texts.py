"""A listing's text column: clips of a sound, a picture and a text."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from amr.classifier import FusionClassifier
from amr.datamodules import Clips
from amr.datamodules.atoms import ClipAtoms
from amr.datamodules.preprocessing import preprocessing
from amr.datamodules.store.cut import probe
from amr.datamodules.texts import TextColumn
from amr.datamodules.transforms import AudioTransform, VideoTransform
from amr.encoders import MLPEncoder, TextEncoder
from amr.fusion import Concat
from amr.multiviz.analysis.whole import analyze
from amr.report.site import write_site
from amr.report.site.source import Source
from amr.utils.errors import UserError
from tests.datamodules.conftest import write_csv
from tests.training import fit

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX)")

TEXTS = ["a red dog", "a  blue, dog", "", "red red", "emu", "a red cat and more", "a dog", "a"]
SPLITS = ["train"] * 4 + ["val"] * 2 + ["test"] * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pairs of a wav and a png or jpg, with a text each."""
    root = tmp_path_factory.mktemp("pairs")
    samples = (np.sin(np.arange(3200) / 5) * 9000).astype(np.int16)
    rows = []
    for i, (text, split) in enumerate(zip(TEXTS, SPLITS, strict=True)):
        with wave.open(str(root / f"{i}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(samples.tobytes())
        picture = f"{i}.{('png', 'jpg')[i % 2]}"
        Image.new("RGB", (16, 16), (30 * i, 0, 0)).save(root / picture)
        files = {"audio_file": f"{i}.wav", "video_file": picture}
        rows.append({"id": f"c{i}", "label": "xy"[i % 2], "split": split, "said": text, **files})
    write_csv(root / "list.csv", rows)
    make(root).prepare()
    return root


def make(root: Path, text: Any = None, **options: Any) -> Clips:
    return Clips(
        "list.csv",
        root,
        text=TextColumn("said", **(text or {})),
        store=root / "store",
        audio=AudioTransform(seconds=0.2, n_mels=4, n_fft=128),
        video=VideoTransform(frames=1, size=8),
        **{"prepare_workers": 0, "num_workers": 0, "batch_size": 4, **options},
    )


def test_texts_become_ids_beside_sound_and_picture(folder: Path) -> None:
    module = make(folder, missing="keep")
    assert module.modalities == ("audio", "video", "text")
    assert module.texts is not None
    assert module.texts.vocabulary == ["<pad>", "<unknown>", "red", "a", "dog", "blue,"]  # by count, then by name
    clips = module.clips_of("train")
    ids = [clips[i]["inputs"]["text"].tolist() for i in range(4)]
    assert ids == [[3, 2, 4, 0, 0], [3, 5, 4, 0, 0], [0] * 5, [2, 2, 0, 0, 0]]  # padded to the longest text of all
    assert [bool(clips[i]["present"]["text"]) for i in range(4)] == [True, True, False, True]
    assert module.clips_of("val")[0]["inputs"]["text"].tolist() == [1, 0, 0, 0, 0]  # a word that training lacks
    assert [tuple(clips[0]["inputs"][m].shape) for m in ("audio", "video")] == [(1, 4, 21), (1, 3, 8, 8)]
    pictures = [clips[0]["inputs"]["video"], module.clips_of("test")[1]["inputs"]["video"]]
    red = [float(x[0, 0].mean()) for x in pictures]
    assert red == pytest.approx([-1, (210 / 255 - 0.5) / 0.5], abs=0.05)  # each clip's own picture
    batch = next(iter(make(folder, missing="keep", in_memory=True, batch_size=2).val_dataloader()))
    assert batch["inputs"]["text"].tolist() == [[1, 0, 0, 0, 0], [3, 2, 1, 1, 1]]
    assert batch["inputs"]["text"].dtype == torch.int64


def test_a_clip_without_text_is_skipped_or_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = make(folder)
    assert [clip.id for clip in module.usable("train")] == ["c0", "c1", "c3"]
    assert "skipped 1 of 8 clips (text empty in the listing: 1)" in capsys.readouterr().err
    assert module.census()["skipped"] == {"text empty in the listing": 1}
    assert len(make(folder, modalities=["audio", "video"]).usable("train")) == 4
    assert len(make(folder, missing="keep").usable("train")) == 4


def test_a_vocabulary_and_a_length_that_are_given(folder: Path) -> None:
    (folder / "words.txt").write_text("dog\na\n")
    for words in ("words.txt", ["dog", "a"]):
        module = make(folder, {"vocabulary": words, "length": 2})
        assert module.clips_of("train")[0]["inputs"]["text"].tolist() == [3, 1]
    letters = make(folder, {"unit": "character", "most": 3})
    assert letters.texts is not None
    assert letters.texts.vocabulary[2:] == [" ", "d", "e"]


def test_a_checkpoint_keeps_the_vocabulary(folder: Path) -> None:
    module, other = make(folder), make(folder, {"vocabulary": ["emu", "cat", "dog"], "length": 3})
    other.load_state_dict(module.state_dict())
    assert other.clips_of("train")[0]["inputs"]["text"].tolist() == [3, 2, 4, 0, 0]
    assert (
        Clips(folder / "list.csv", store=folder / "store").state_dict() == {}
    )  # checkpoints without texts are as before


def test_words_are_atoms_and_can_be_lost(folder: Path) -> None:
    module = make(folder)
    atoms = module.split_atoms("text", "train")
    assert isinstance(atoms, ClipAtoms)
    assert [[w for w in words if w] for words in atoms.texts] == [
        ["a", "red", "dog"],
        ["a", "blue,", "dog"],
        ["red"] * 2,
    ]
    assert len(module.atoms("text", coarse=True)) == 5
    assert module.window("text", module.clips[0]) is None
    lost = module.corrupted("train", "text", "mask", 5, ["c0", "c3"])
    assert [lost[i]["inputs"]["text"].tolist() for i in range(2)] == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert set(module.corruptions) == {"audio", "video", "text"}
    assert module.joint_corruptions == {}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ({"column": "title"}, {}, r"data.text.column=title: .*list.csv has no such column; must be of id, label"),
        ({"length": 0}, {}, r"data.text.length=0: must be a whole number of at least 1"),
        ({"unit": "piece"}, {}, r"data.text.unit='piece': must be one of word, character"),
        ({"vocabulary": "none.txt"}, {}, r"data.text.vocabulary=.*none.txt: no such file"),
        (None, {"modalities": ["text", "smell"]}, r"data.modalities=.*must be of \['audio', 'video', 'text'\]"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, text: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Clips(folder / "list.csv", text=TextColumn(**{"column": "said", **(text or {})}), **options)


def test_what_a_text_needs(folder: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"id": "1", "label": "a", "split": "train", "file": "1.mp4", "text": ""}])
    with pytest.raises(UserError, match=r"data.text.column=text: no training clip has a text; must be some"):
        Clips(tmp_path / "a.csv", text=TextColumn())
    with pytest.raises(UserError, match=r"data.modalities=\['text'\]: must be of \['audio', 'video'\]"):
        Clips(tmp_path / "a.csv", modalities=["text"])
    with pytest.raises(UserError, match="blocks=.* must be null for a text"):
        make(folder).atoms("text", [2])
    section = {
        "class_path": "amr.datamodules.Clips",
        "init_args": {"csv": str(folder / "list.csv"), "text": {"column": "said"}},
    }
    with pytest.raises(UserError, match="must not have 'text'; export describes sound and frames alone"):
        preprocessing(section)


def test_training_and_the_analysis_show_the_words(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoders = {"video": MLPEncoder(192, [4], 4), "text": TextEncoder(6, "gru", 4)}
    module = make(folder, modalities=["video", "text"], batch_size=2)
    model = FusionClassifier(encoders, Concat, num_classes=2)
    fit(model, module, max_epochs=1)
    few: dict[str, Any] = {"clips": 2, "classes": 1, "units": 1, "samples": 16, "stages": ["clips"]}
    out = analyze(model, tmp_path / "out", data=module, **few)
    source = Source(out)
    shown = {path.stem: source.clip(path)["modalities"]["text"]["text_fine"] for path in (out / "clips").iterdir()}
    assert shown == {"c6": ["a", "dog"], "c7": ["a", ""]}
    assert source.kinds()["text"] == "text"
    write_site([out], tmp_path / "site", [folder])
    for slug in ("c6", "c7"):  # the png or jpg as a film; the text needs no file
        assert probe(tmp_path / f"site/media/{slug}.mp4")["picture"]
    assert {row["problem"] for row in source.rows.values()} == {None}
