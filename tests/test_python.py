"""The door for Python users: a model made in a notebook, with modules of its own and plain loaders, goes everywhere."""

import ast
import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import amr
from amr.regularizers import UMT
from amr.utils.errors import UserError
from amr.utils.readers import read_object, read_table
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("ignore")
SPLITS = {"train": slice(0, 90), "test": slice(90, 120)}
CLIPS = (torch.ones(2, 6), torch.ones(2, 3, 8, 8), torch.arange(2))
FLAGS: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


def encoders() -> dict[str, Any]:
    pictures = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    return {"numbers": amr.as_encoder(nn.Linear(6, 8)), "pictures": amr.as_encoder(pictures)}


@dataclass
class Notebook:
    """What the first cells of a notebook have made.

    Attributes:
        inputs: Of all clips, by modality.
        label: Their classes.
        loaders: By split.
        model: Trained.
        file: Its checkpoint, by Lightning.
        loaded: Back from the checkpoint.
    """

    inputs: dict[str, Tensor]
    label: Tensor
    loaders: dict[str, DataLoader[Any]]
    model: amr.FusionClassifier
    file: Path
    loaded: amr.FusionModel


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Notebook:
    pl.seed_everything(0)
    label = torch.arange(120) % 3
    numbers = nn.functional.one_hot(label, 6) * 2.0 + torch.randn(120, 6)
    inputs = {"numbers": numbers, "pictures": torch.randn(120, 3, 8, 8) + 0.5 * label[:, None, None, None]}
    loaders = {
        split: DataLoader(TensorDataset(*(x[rows] for x in inputs.values()), label[rows]), 20, shuffle=split == "train")
        for split, rows in SPLITS.items()
    }
    model = amr.FusionClassifier(encoders(), num_classes=3)
    trainer = pl.Trainer(max_epochs=3, **FLAGS)
    trainer.fit(model, loaders["train"])
    file = tmp_path_factory.mktemp("notebook") / "model.ckpt"
    trainer.save_checkpoint(file)
    skeleton = amr.FusionClassifier(encoders(), num_classes=3)
    return Notebook(inputs, label, loaders, model, file, amr.load_model(file, model=skeleton))


def test_it_is_measured(notebook: Notebook) -> None:
    rows = {
        (row.measure, row.modality): row.value for row in amr.measure(notebook.loaded, notebook.loaders, resamples=10)
    }
    with torch.no_grad():
        logits = notebook.loaded({m: x[90:] for m, x in notebook.inputs.items()})
    assert rows["acc", ""] == pytest.approx(float((logits.argmax(1) == notebook.label[90:]).double().mean()))
    assert {modality for measure, modality in rows if measure == "probe"} == {"numbers", "pictures"}


class Module(pl.LightningDataModule):
    """A data module of the user's own, which needs its `setup`."""

    labels = ("red", "green", "blue")

    def __init__(self, loaders: dict[str, Any]) -> None:
        super().__init__()
        self.given = loaders

    def setup(self, stage: str) -> None:
        self.loaders = self.given

    def train_dataloader(self) -> Any:
        return self.loaders["train"]

    def test_dataloader(self) -> Any:
        return self.loaders["test"]


def analyse(notebook: Notebook, out: Path, data: Any, **options: Any) -> Path:
    return amr.analyze(notebook.loaded, out, data=data, clips=2, samples=8, units=1, **options)


@pytest.fixture(scope="module")
def analysed(notebook: Notebook, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return analyse(notebook, tmp_path_factory.mktemp("analysed") / "out", Module(notebook.loaders))


def test_it_is_analysed(notebook: Notebook, analysed: Path) -> None:
    summary = read_object(analysed / "summary.json")
    assert summary["labels"] == ["red", "green", "blue"]
    assert (summary["clips"], summary["root"], summary["dataset"]) == (30, None, "Module")
    with torch.no_grad():
        logits = notebook.loaded({m: x[90:] for m, x in notebook.inputs.items()})
    rows = sorted(read_table(analysed / "predictions.parquet", ""), key=lambda row: str(row["id"]))
    assert [summary["labels"].index(row["predicted"]) for row in rows] == logits.argmax(1).tolist()
    archive = np.load(next((analysed / "clips").glob("*.npz")))
    assert archive["U/pictures/occlusion"].shape[1] == 16
    assert archive["U/numbers/occlusion"].shape[1] == 6
    before = (analysed / "predictions.parquet").stat().st_mtime_ns
    assert analyse(notebook, analysed, Module(notebook.loaders)) == analysed  # nothing is made again
    assert (analysed / "predictions.parquet").stat().st_mtime_ns >= before


def test_another_order_of_clips_is_another_analysis(notebook: Notebook, analysed: Path) -> None:
    x = [*(x[90:].flip(0) for x in notebook.inputs.values()), notebook.label[90:].flip(0)]
    other = {**notebook.loaders, "test": DataLoader(TensorDataset(*x), 20)}
    with pytest.raises(UserError, match="it holds an analysis of another data"):
        analyse(notebook, analysed, Module(other))


def test_it_has_a_site(analysed: Path, tmp_path: Path) -> None:
    amr.write_site([analysed], str(tmp_path / "site"))
    assert len(list((tmp_path / "site/data/0/clips").glob("*.js"))) == 2
    assert (tmp_path / "site/index.html").is_file()


def test_it_is_exported(notebook: Notebook, tmp_path: Path) -> None:
    assert amr.export(notebook.model, tmp_path, format="torch", data=notebook.loaders) == ["model.pt2"]
    program = torch.export.load(tmp_path / "model.pt2").module()
    inputs = {m: x[:7] for m, x in notebook.inputs.items()}
    with torch.no_grad():
        torch.testing.assert_close(program(**inputs)["logits"], notebook.loaded(inputs), atol=1e-4, rtol=0)
    described = json.loads((tmp_path / "preprocessing.json").read_text())
    assert described["inputs"]["pictures"]["shape"] == ["batch", 3, 8, 8]
    assert described["labels"] is None
    assert "not how they are made" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("by", ["model", "classifier", "file"])
def test_it_is_a_teacher(by: str, notebook: Notebook, tmp_path: Path) -> None:
    teacher = amr.FusionClassifier({"numbers": amr.encoders.MLPEncoder(6, out_dim=8)}, num_classes=3)
    given: Any = {"model": teacher.model, "classifier": teacher, "file": tmp_path / "teacher.pt"}[by]
    if by == "file":
        amr.save_model(teacher, given)
    model = amr.FusionClassifier(encoders(), num_classes=3, umt=UMT({"numbers": given}))
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    pl.Trainer(max_epochs=1, limit_train_batches=2, **FLAGS).fit(model, notebook.loaders["train"])
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_that_is_none() -> None:
    with pytest.raises(UserError, match="model.umt.teachers.numbers=int: must be a FusionModel"):
        amr.FusionClassifier(encoders(), num_classes=3, umt=UMT({"numbers": 3}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"val": []}, "data={'val'}: it has no loader of 'test', which is needed"),
        (
            {"test": [CLIPS]},
            "data={'test'}: it has no loader of 'train', which is needed",
        ),
        ({"exam": []}, "data={'exam'}: must be a LightningDataModule, or a loader of each split by name"),
        ([1], "data=list: must be"),
    ],
)
def test_wrong_data_are_told(data: Any, message: str, notebook: Notebook) -> None:
    with pytest.raises(UserError) as caught:
        amr.measure(notebook.loaded, data, corruptions=False)
    assert message in str(caught.value)


def test_a_model_without_data_is_told(notebook: Notebook, tmp_path: Path) -> None:
    for function in (amr.analyze, amr.export):
        with pytest.raises(UserError, match=r"data: must be .*, with a model that no run"):
            function(notebook.loaded, tmp_path)


def test_a_loader_that_shuffles_anew_is_no_split_to_compare_two_models_on(notebook: Notebook) -> None:
    alone = amr.FusionClassifier({"numbers": amr.as_encoder(nn.Linear(6, 8))}, num_classes=3).model
    items: Any = [
        {"inputs": {m: x[i] for m, x in notebook.inputs.items()}, "label": label}
        for i, label in enumerate(notebook.label)
    ]
    for shuffle in (False, True):
        data = {
            "train": DataLoader(items, 20),
            "test": DataLoader(items, 20, shuffle=shuffle, generator=torch.Generator()),
        }
        with pytest.raises(UserError, match="must not shuffle") if shuffle else nullcontext():
            amr.measure(notebook.loaded, data, unimodal={"numbers": alone}, resamples=10)


def test_the_model_is_in_a_file_for_another_program(tmp_path: Path) -> None:
    """Its classes are those of the program's own, which is not there when the file is read."""
    program = """
import amr, torch
class Net(amr.Encoder):
    def __init__(self, size):
        super().__init__()
        self.out_dim, self.net = size, torch.nn.Linear(4, size)
    def forward(self, x):
        return self.net(x)
amr.save_model(amr.FusionClassifier({"x": Net(3), "y": Net(5)}, amr.fusion.Gated), "net.pt")
print(amr.load_model("net.pt", trust=("__main__",)).head.dims)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "{'x': 3, 'y': 5}\n"), done.stderr
    with pytest.raises(UserError, match=r"net\.pt: .*__main__\.Net may not be built.*load_model\(path, model=\.\.\.\)"):
        amr.load_model(tmp_path / "net.pt")


def test_ten_lines_do_the_first_thing() -> None:
    """tests/test_docs.py runs them."""
    page = (REPOSITORY / "docs/getting-started.md").read_text()
    block = page.partition("## From Python")[2].partition("```python\n")[2].partition("```")[0]
    assert len([line for line in block.splitlines() if line]) == 10
    imports = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [alias.name for node in imports for alias in node.names] == ["amr", "torch", "pytorch_lightning"]
