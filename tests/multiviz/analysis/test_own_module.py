"""`amr analyze --model my_module:make --data my_module:data`: texts, images, tables, series, and what it refuses."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amr.cli import main
from amr.datamodules.atoms import Kind
from amr.multiviz import explained
from amr.multiviz.analysis.whole import analyze
from amr.report.site.source import Source
from amr.utils.errors import UserError
from amr.utils.readers import read_arrays, read_object
from tests.multiviz.early import CLASSES, Bag, clips, early

FILE = """
import torch
from amr.datamodules.atoms import Kind
from tests.multiviz.early import early, clips

WORDS = ["<pad>", "un", "##like", "##ly", "<b>red</b>", "cube", "##s", "a", "b", "c", "d", "e"]
model = early()

def make():
    return model

def plain():
    return model.module

def batch(start, count):
    rows = torch.arange(start, start + count)
    inputs = {m: x[rows] for m, x in clips(24, 6).items()}
    return {"inputs": inputs, "label": rows % 3, "id": [f"q{i}" for i in rows.tolist()]}

def data():
    kinds = {"text": Kind("tokens", vocabulary=WORDS), "image": "image"}
    return {"train": [batch(0, 12)], "test": [batch(12, 8), batch(20, 4)], "labels": ["x", "<i>y", "z"], "kinds": kinds}

def nameless():
    return {**data(), "kinds": {"text": "tokens"}}

def ragged():
    one, two = batch(0, 6), batch(6, 6)
    two["inputs"]["text"] = two["inputs"]["text"][:, :4]
    return [one, two]

def broken():
    raise ValueError("no such\\nfile")

def needs(more):
    return more
"""
FEW: dict[str, Any] = {"clips": 2, "classes": 1, "units": 1, "samples": 16, "stages": ["clips"]}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module in the current folder."""
    (tmp_path / "own_module.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_module", None)


@pytest.mark.usefixtures("module")
def test_a_model_and_data_of_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--clips", "2", "--classes", "1", "--units", "1", "--samples", "16", "--stages", "clips"]
    assert main(["analyze", "--model", "own_module:make", "--data", "own_module:data", "--out", "out", *options]) == 0
    assert "analyze: about " in capsys.readouterr().err
    found = read_object(Path("out/summary.json"))
    assert (found["title"], found["labels"]) == ("own_module:make", ["x", "<i>y", "z"])
    assert found["baselines"] == {"text": "the token <pad>", "image": "the mean"}
    source = Source(Path("out"))
    assert source.kinds() == {"text": "text", "image": "image"}
    path = next(Path("out/clips").iterdir())
    arrays, page = read_arrays(path), source.clip(path)
    row = int(str(arrays["id"]).removeprefix("q"))
    pieces = [
        ["<pad>", "un", "##like", "##ly", "<b>red</b>", "cube", "##s", "a", "b", "c", "d", "e"][i]
        for i in clips(24, 6)["text"][row].tolist()
    ]
    words = "".join(
        p.removeprefix("##") if n and p.startswith("##") else f" {p.removeprefix('##')}" for n, p in enumerate(pieces)
    )
    assert " ".join(page["modalities"]["text"]["text_fine"]).split() == words.split()
    assert arrays["U/text/lime"].shape == (1, len(arrays["text_fine/text"]))
    assert arrays["C/text/image/ablation"].shape == (1, len(arrays["text_fine/text"]), 16)
    empty = arrays["text_fine/text"] == ""  # of shorter texts
    # Up to rounding: a row of the head may differ by a bit with its place in the batch.
    assert np.abs(arrays["U/text/occlusion"][0][empty]).max(initial=0) < 1e-6 < np.abs(arrays["U/text/occlusion"]).max()
    assert (Path("out/site/index.html")).is_file()


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        ("nowhere:make", "own_module:data", "--model=nowhere:make: no module 'nowhere' in this folder or installed"),
        ("own_module:mak", "own_module:data", "has no 'mak'; did you mean make?"),
        (
            "own_module:plain",
            "own_module:data",
            r"--model=Early: it has no modalities, .*amr\.multiviz\.explained\(module",
        ),
        ("own_module:broken", "own_module:data", r"broken\(\) failed: ValueError: no such file"),
        ("own_module:needs", "own_module:data", r"needs\(\) failed: TypeError: needs\(\) missing 1 required"),
        ("own_module", "own_module:data", "must be a module and a name in it, such as my_module:make"),
        ("own_module:make", None, "--data: must be given with --model"),
        (
            "own_module:make",
            "own_module:nameless",
            "data.kinds.text: no text of the ids is known; must have a vocabulary",
        ),
        (
            "own_module:make",
            "own_module:ragged",
            "inputs.text: its shape differs between batches.*pad tokens to one length",
        ),
        ("own_module:make", "own_module:WORDS", "batch: it is a str"),
        ("own_module:make", "own_module:make", "data=ExplainedModule: must be a LightningDataModule, or a loader"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_cannot_be_analyzed_is_one_line(
    capsys: pytest.CaptureFixture[str], model: str, data: str | None, said: str
) -> None:
    options = ["--model", model, *(["--data", data] if data else []), "--out", "out"]
    assert main(["analyze", *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("amr: ")
    assert re.search(said, error), error


def loaders(inputs: dict[str, torch.Tensor], **about: Any) -> dict[str, Any]:
    count = len(next(iter(inputs.values())))
    batch = {"inputs": inputs, "label": torch.arange(count) % CLASSES, "id": [f"c{i}" for i in range(count)]}
    return {"train": [batch], "test": [{**batch, **about.pop("batch", {})}], **about}


def test_ids_without_a_layer_have_no_gradient(tmp_path: Path) -> None:
    model = early(embeddings={})
    with pytest.raises(UserError, match=r"encodings\.text=torch\.int64: must be floating-point to have a gradient"):
        analyze(model, tmp_path / "out", data=loaders(clips(6)), **FEW)


def test_batches_bring_tokens_and_segments(tmp_path: Path) -> None:
    inputs = clips(4)
    drawn = torch.zeros(4, 8, 8, dtype=torch.int64)
    drawn[:, 4:] = 1
    drawn[:, 0] = -1
    tokens = [["one", "##s", "two"], ["a"], ["b", "c"], ["d", "e", "f", "g", "h"]]
    data = loaders(inputs, batch={"tokens": {"text": tokens}, "segments": {"image": drawn}})
    out = analyze(early(), tmp_path / "out", data=data, **{**FEW, "clips": 4})
    for n, words in enumerate((["ones", "two"], ["a"], ["b", "c"], ["d", "e", "f", "g", "h"])):
        arrays = read_arrays(out / "clips" / f"c{n}.npz")
        assert [word for word in arrays["text_fine/text"].tolist() if word] == words
        assert arrays["U/image/occlusion"].shape == (1, 2)
        assert set(np.unique(arrays["fine/image"])) == {-1, 0, 1}
    other = loaders(inputs, batch={"tokens": {"text": [["x"], *tokens[1:]]}})
    with pytest.raises(UserError, match="holds an analysis of another data"):
        analyze(early(), out, data=other, **FEW)
    with pytest.raises(UserError, match=r"tokens\.text: must be a list of each clip's token texts, 4"):
        analyze(early(), tmp_path / "b", data=loaders(inputs, batch={"tokens": {"text": ["one two"] * 4}}), **FEW)
    with pytest.raises(UserError, match="'sound' is no modality of the model"):
        analyze(early(), tmp_path / "c", data=loaders(inputs, kinds={"sound": "waveform"}), **FEW)
    with pytest.raises(
        UserError, match=r"inputs\.image: float32 \(4, 3, 8, 8\); must be floating-point with 1 dimension"
    ):
        analyze(early(), tmp_path / "d", data=loaders(inputs, kinds={"image": "table"}), **FEW)


def test_batches_alone_are_the_split_and_leave_out_what_needs_training_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = explained(Bag(), modalities=("text", "image"), num_classes=CLASSES, embeddings={"text": "words"})
    inputs = {"text": clips(6)["text"], "image": torch.randn(6, 4).double()}
    data = loaders(inputs)["test"]
    out = analyze(bag, tmp_path / "out", data=data, **{**FEW, "stages": ["prediction"]})
    assert "no sparse classifiers: data={'test'}: it has no loader of 'train'" in capsys.readouterr().err
    assert read_object(out / "summary.json")["clips"] == 6


def test_a_table_and_a_series_are_shown_in_their_own_units(tmp_path: Path) -> None:
    class Sum(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = torch.nn.Linear(10, 3)

        def forward(self, table: torch.Tensor, series: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.out(torch.cat([table, series.flatten(1)], 1))
            return logits

    model = explained(Sum(), modalities=("table", "series"), num_classes=3)
    table = torch.tensor([[37.25, 1, 0, 3], [36.5, 0, 1, 4]]).repeat(3, 1)
    kinds = {
        "table": Kind("table", names=["temperature", "sex=f", "sex=m", "dose"], owner=(0, 1, 1, 2), baseline="zero"),
        "series": Kind("series", names=["heart", "breath"], seconds=30),
    }
    data = loaders({"table": table, "series": torch.randn(6, 3, 2)}, kinds=kinds)
    out = analyze(model, tmp_path / "out", data=data, **FEW)
    source, path = Source(out), next((out / "clips").iterdir())
    page = source.clip(path)["modalities"]
    first = int(path.stem.removeprefix("c")) % 2 == 0
    assert page["table"]["value"] == (["37.25", "f", "3"] if first else ["36.5", "m", "4"])
    assert page["series"]["series"].shape == (3, 2)
    atoms = read_object(out / "atoms.json")
    assert atoms["table"]["fine"]["names"] == ["temperature", "sex", "dose"]
    assert atoms["series"]["fine"]["names"] == ["heart"] * 3 + ["breath"] * 3
    assert source.kinds() == {"table": "table", "series": "series"}
    weights = model.module.out.weight.detach()  # type: ignore[union-attr, operator]
    arrays = read_arrays(path)  # a linear model: occlusion by zeros is weight × value, a category's dimensions together
    wanted = weights[int(arrays["classes"][0]), :4] * table[int(path.stem.removeprefix("c"))]
    wanted = torch.stack([wanted[0], wanted[1] + wanted[2], wanted[3]])
    np.testing.assert_allclose(arrays["U/table/occlusion"][0], wanted, rtol=1e-4, atol=1e-4)
