"""The data module of tensors: splits, missing modalities, order, resuming, corruptions, runs."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amr.classifier import FusionClassifier
from amr.cli import main
from amr.datamodules import Tensors
from amr.datamodules.loader import ClipLoader, ClipSampler
from amr.encoders import MLPEncoder
from amr.evaluation.robustness import measure
from amr.multiviz.analysis.analysis import Analysis
from amr.multiviz.analysis.plan import Plan
from amr.regularizers import SMV
from amr.utils.errors import UserError
from tests.datamodules.tensors.columns import columns, options, write_npz, write_parquet
from tests.datamodules.test_loader import batches, ids, of_rank, same
from tests.toy import Linear
from tests.training import build, fit

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|logging interval|does not have many workers)")


def module(**changed: Any) -> Tensors:
    return Tensors(columns(), **options(batch_size=4, **changed))


def test_batch() -> None:
    data = module()
    batch = next(iter(data.train_dataloader()))
    assert batch.keys() == {"inputs", "label", "id"}
    assert {m: (x.shape, x.dtype) for m, x in batch["inputs"].items()} == {
        "a": ((4, 4), torch.float32),
        "b": ((4, 3), torch.float32),
    }
    assert batch["label"].dtype == torch.int64
    assert data.census() == {
        "split": "as listed",
        "listed": 23,
        "clips": {"train": 13, "val": 5, "test": 5},
        "skipped": {},
    }
    assert [len(part) for part in ids(batches(data.train_dataloader()))] == [4, 4, 4, 1]
    assert ids(batches(data.val_dataloader())) == [["c13", "c14", "c15", "c16"], ["c17"]]


def test_batches_do_not_depend_on_workers_or_ranks() -> None:
    whole = batches(module().train_dataloader(), 1)
    assert same(whole, batches(module(num_workers=2).train_dataloader(), 1))
    assert ids(whole) != ids(batches(module().train_dataloader(), 2))
    ranks = [
        batches(of_rank(Tensors(columns(), **options(batch_size=2)), r, 2).train_dataloader(), 1) for r in range(2)
    ]
    for k, parts in enumerate(zip(*ranks, strict=True)):
        assert [id for pair in zip(*(p["id"] for p in parts), strict=True) for id in pair] == whole[k]["id"]


def test_resume_within_an_epoch() -> None:
    loader = module().train_dataloader()
    whole = batches(loader, 3)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    fresh = module().train_dataloader()
    fresh.load_state_dict(state)
    assert same(batches(fresh, 3), whole[1:])
    other = Tensors(columns(), **options(batch_size=2)).train_dataloader()
    other.load_state_dict(state)
    with pytest.raises(UserError, match="cannot resume in the middle of epoch 3"):
        batches(other, 3)


def test_balanced_training_draws_every_class_alike() -> None:
    x = columns(3000)
    x["y"] = (np.arange(3000) % 10 == 0).astype(int)
    x["split"][:] = "train"
    x["split"][-100:] = "val"
    data = Tensors(x, **options(batch_size=100, balance=True, id=None))
    found = batches(data.train_dataloader(), 1)
    ones = sum(int(batch["label"].sum()) for batch in found)
    assert abs(ones / 2900 - 0.5) < 0.05  # 5 standard deviations
    assert ids(found) != ids(batches(data.train_dataloader(), 2))
    assert sum(len(part) for part in ids(found)) == 2900
    ranks = [
        batches(of_rank(Tensors(x, **options(batch_size=50, balance=True, id=None)), r, 2).train_dataloader(), 1)
        for r in range(2)
    ]
    for k, parts in enumerate(zip(*ranks, strict=True)):
        assert [id for pair in zip(*(p["id"] for p in parts), strict=True) for id in pair] == found[k]["id"]
    loader = data.train_dataloader()
    loader.load_state_dict({**loader.state_dict(), "epoch": 1, "batches": 2})
    assert same(batches(loader, 1), found[2:])
    assert ids(batches(data.val_dataloader())) == [[f"{i:06d}" for i in range(2900, 3000)]]
    plain = Tensors(x, **options(batch_size=100, id=None)).train_dataloader()
    plain.load_state_dict({**loader.state_dict(), "epoch": 1, "batches": 2})
    with pytest.raises(UserError, match="cannot resume in the middle of epoch 1"):
        batches(plain, 1)


def test_several_labels_are_balanced_by_the_rarest() -> None:
    x = columns()
    x["y"] = np.stack([np.ones(23), np.arange(23) == 1], 1)
    data = Tensors(x, **options())
    assert data.classes_of("train") == [1 if i == 1 else 0 for i in range(13)]


def test_a_method_that_chooses_clips_goes_with_no_balance() -> None:
    model = FusionClassifier({"a": MLPEncoder(4), "b": MLPEncoder(3)}, num_classes=2, smv=SMV())
    with pytest.raises(UserError, match=r"data.balance=true: must be false with model.smv"):
        fit(model, module(balance=True), max_epochs=3)


def test_files_per_split(tmp_path: Path) -> None:
    x = columns()
    paths = {}
    for split in ("train", "val", "test"):
        part = {name: column[x["split"] == split] for name, column in x.items()}
        paths[split] = str(write_npz(tmp_path / f"{split}.npz", part))
    data = Tensors(paths, **options(split=None))
    assert data.clips == module().clips
    assert data.state_dict() == module().state_dict()


def test_a_file_of_its_own_for_a_modality(tmp_path: Path) -> None:
    x = columns()
    write_npz(tmp_path / "b.npz", {"b": x.pop("b")})
    modalities = {"a": "vector", "b": {"kind": "vector", "file": "b.npz"}}
    data = Tensors(write_parquet(tmp_path / "x.parquet", x), **options(modalities=modalities, root=tmp_path))
    assert torch.equal(data.clips_of("val")[0]["inputs"]["b"], module().clips_of("val")[0]["inputs"]["b"])
    write_npz(tmp_path / "b.npz", {"b": np.ones((3, 2))})
    with pytest.raises(UserError, match=r"b\.npz: 3 rows; must be 23"):
        Tensors(tmp_path / "x.parquet", **options(modalities=modalities, root=tmp_path))


def test_missing_modalities() -> None:
    x = columns()
    x["b"][[0, 14]] = np.nan
    x["a"][[0]] = np.nan
    skip = Tensors(x, **options())
    assert (len(skip.usable("train")), len(skip.usable("val"))) == (12, 4)
    assert skip.census()["skipped"] == {"a missing": 1, "b missing": 2}
    keep = Tensors(x, **options(missing="keep", batch_size=5))
    assert (len(keep.usable("train")), len(keep.usable("val"))) == (12, 5)  # the first lacks both
    batch = next(iter(keep.val_dataloader()))
    assert batch["present"]["b"].tolist() == [True, False, True, True, True]
    assert batch["present"]["a"].all()
    assert batch["inputs"]["b"][1].tolist() == [0, 0, 0]
    x["has b"] = np.arange(23) % 2 > 0
    flagged = Tensors(x, **options(modalities={"a": "vector", "b": {"kind": "vector", "present": "has b"}}))
    assert len(flagged.usable("train")) == 6
    x["has b"] = np.arange(23)
    with pytest.raises(UserError, match="data.modalities.b.present=has b: must be a column of true and false"):
        Tensors(x, **options(modalities={"b": {"kind": "vector", "present": "has b"}}))


def test_skipped_clips_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    x = columns()
    x["b"][0] = np.nan
    data = Tensors(x, **options())
    data.setup()
    data.setup()
    assert capsys.readouterr().err == "tensors: skipped 1 of 23 clips (1 without b)\n"


def test_a_checkpoint_brings_what_was_fitted() -> None:
    state = module().state_dict()
    x = columns()
    x["b"][:13] *= 5
    data = Tensors(x, **options())
    assert data.state_dict() != state
    data.load_state_dict(state)
    assert data.state_dict() == state
    assert torch.equal(data.clips_of("val")[0]["inputs"]["b"], module().clips_of("val")[0]["inputs"]["b"])


def test_files_stay_inside_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write_npz(root / "x.npz", columns())
    write_npz(tmp_path / "out.npz", columns())
    (root / "link.npz").symlink_to(tmp_path / "out.npz")
    Tensors("x.npz", **options(root=root))
    Tensors(str(root / "x.npz"), **options(root=root))
    Tensors("link.npz", **options(root=root))  # its owner made it
    monkeypatch.chdir(root)
    Tensors("x.npz", **options(root="."))
    for name, more in (("../out.npz", {}), (str(tmp_path / "out.npz"), {}), ("link.npz", {"follow_links": False})):
        with pytest.raises(UserError, match="which leaves the root folder"):
            Tensors(name, **options(root=root, **more))
    with pytest.raises(UserError, match=r"data.labels=\.\./x"):
        Tensors("x.npz", **options(root=root, labels="../x"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modalities": {}}, "data.modalities: must be the columns"),
        ({"split": None}, r"data.split: must be a column, or fractions such as \{val: 0.1, test: 0.2\}"),
        ({"split": "y"}, r"data.split: clip 'c00' \(row 0\) has '0'"),
        ({"split": "no"}, "data.source: no column 'no'; it has a, b, y, name, split"),
        ({"label": "a"}, r"data.label: clip 'c00' \(row 0\)"),
        ({"missing": "drop"}, "data.missing='drop': must be skip or keep"),
        ({"batch_size": 0}, "data.batch_size=0: must be at least 1"),
        ({"root": "/no/such"}, "data.root=/no/such: no such folder"),
    ],
)
def test_arguments_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Tensors(columns(), **options(**change))
    assert "\n" not in str(error.value)


def test_splits_of_the_source_and_of_fractions_are_not_both() -> None:
    source = {"train": columns(), "val": columns()}
    with pytest.raises(UserError, match="must not name 'val', which data.source has"):
        Tensors(source, **options(id=None, split={"val": 0.1}))
    with pytest.raises(UserError, match="data.split=split: must be fractions or null"):
        Tensors(source, **options(id=None))
    with pytest.raises(UserError, match=r"no usable clip has split 'test'"):
        Tensors(source, **options(id=None, split=None)).test_dataloader()


KINDS: dict[str, tuple[Any, int, int]] = {
    "vector": (np.ones((23, 40)), 16, 6),
    "table": (np.ones((23, 9)), 9, 6),
    "series": (np.ones((23, 8, 2)), 16, 8),
    "tokens": (np.full((23, 9), 5), 9, 6),
    "image": (np.ones((23, 8, 8)), 16, 4),
    "spectrogram": (np.ones((23, 8, 8)), 16, 4),
    "frames": (np.ones((23, 4, 1, 8, 8)), 64, 8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_atoms_pictures_and_corruptions(kind: str) -> None:
    values, fine, coarse = KINDS[kind]
    if kind != "tokens":
        values = values + np.random.default_rng(0).normal(size=values.shape)
    data = Tensors({**columns(), "x": values}, **options(modalities={"x": kind}))
    item = data.clips_of("val")[0]
    x = item["inputs"]["x"]
    for size, flag in ((fine, False), (coarse, True)):
        atoms = data.atoms("x", coarse=flag)
        assert (len(atoms), atoms.label.shape) == (size, x.shape)
        picture = data.picture("x", x, atoms)
        assert picture.image.shape[:2] == picture.atom.shape
    with pytest.raises(UserError, match="must be null"):
        data.atoms("x", [2])
    for name, corruption in data.corruptions["x"].items():
        spoilt = [data.corrupted("val", "x", name, severity, [item["id"]]) for severity in range(1, 6)]
        changed = [(part[0]["inputs"]["x"] - x).abs().float() for part in spoilt]
        assert len(corruption.levels) == 5
        assert all(float(more.sum()) >= float(less.sum()) for less, more in pairwise(changed))
        assert float(changed[-1].sum()) > 0
        assert torch.equal(spoilt[2][0]["inputs"]["x"], spoilt[2][0]["inputs"]["x"])  # a function of the clip
        if name == "mask":
            assert all(bool(((more > 0) | (less == 0)).all()) for less, more in pairwise(changed))
    with pytest.raises(UserError, match=r"corruption=x blur 1: must be x: .*mask, each from 1 to 5"):
        data.corrupted("val", "x", "blur", 1, [item["id"]])
    with pytest.raises(UserError, match="no usable clip 'c00' in split 'val'"):
        data.corrupted("val", "x", "mask", 1, ["c00"])


RUN = """
data:
  class_path: amr.datamodules.Tensors
  init_args:
    source: x.npz
    modalities: {a: {kind: vector, standardize: false}, b: vector}
    label: y
    split: split
    id: name
    batch_size: 4
model:
  encoders:
    a: {class_path: amr.encoders.MLPEncoder, init_args: {in_dim: 4, out_dim: 8}}
    b: {class_path: amr.encoders.MLPEncoder, init_args: {in_dim: 3, out_dim: 8}}
  fusion: {class_path: amr.fusion.Concat}
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false}
"""


def test_a_run_from_a_yaml_and_from_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "x.npz", columns())
    (tmp_path / "run.yaml").write_text(RUN)
    fit = ["fit", "--config", "run.yaml", "--wandb", "disabled", "--name"]
    assert main([*fit, "one"]) == 0
    assert main([*fit, "two", "--data.init_args.modalities", "{a: vector, c: vector}"]) == 2
    assert "no column 'c'; it has a, b, y, name, split" in capsys.readouterr().err
    assert main([*fit, "two", "--data.init_args.modalities", "{a: {kind: song}}"]) == 2
    said = capsys.readouterr().err
    assert "song" in said
    assert "Traceback" not in said
    os.chdir("/")  # paths of a run are found from anywhere
    assert (
        main(
            [
                "test",
                "--ckpt_path",
                str(tmp_path / "runs/one/checkpoints/best.ckpt"),
                "--wandb",
                "disabled",
                "--robustness.test",
                "true",
            ]
        )
        == 0
    )
    assert (tmp_path / "runs/one/robustness.parquet").is_file()
    analyze = ["analyze", "--ckpt", str(tmp_path / "runs/one"), "--out", str(tmp_path / "maps"), "--clips", "2"]
    assert main([*analyze, "--samples", "160"]) == 0
    assert (tmp_path / "maps/site/index.html").is_file()
    other = columns()
    other["b"] = 10 * other["b"] + 5
    write_npz(tmp_path / "other.npz", other)
    (tmp_path / "other.yaml").write_text(RUN.replace("x.npz", str(tmp_path / "other.npz")))
    plan = Plan(tmp_path / "runs/one/checkpoints/best.ckpt", tmp_path / "others", tmp_path / "other.yaml", clips=2)
    scaled, plain = (data.state_dict()["b"] for data in (Analysis.open(plan).data, Tensors(columns(), **options())))
    assert scaled == plain  # other clips are scaled as those that the model was trained with


def test_robustness_of_tensors() -> None:
    data = module()
    model = build(modalities=["a"], encoder=lambda: Linear(4))
    rows = measure(model, data, "val", resamples=10)
    corrupted = {(row.corruption, row.severity) for row in rows if row.measure == "acc_corrupted"}
    assert corrupted == {(name, severity) for name in ("noise", "mask") for severity in range(1, 6)}
    assert isinstance(data.val_dataloader(), ClipLoader)
    assert isinstance(data.val_dataloader().sampler, ClipSampler)
