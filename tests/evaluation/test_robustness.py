"""`measure` and its callback on runs: what is logged is what the functions say, and nothing is disturbed."""

import copy
import csv
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from captum.attr import IntegratedGradients
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor, nn

from amr.attribution import attribution_shares
from amr.callbacks import Robustness
from amr.cli import main
from amr.datamodules import ClipDataModule
from amr.datamodules.corruptions import SEVERITIES
from amr.encoders.base import Encoder
from amr.evaluation import use
from amr.evaluation.corruption import corruption_rows
from amr.evaluation.probes import evidence_rows
from amr.evaluation.robustness import _digest, measure
from amr.evaluation.table import Row, read_rows, write_rows
from amr.fusion import Concat
from amr.load import load_model
from amr.model import FusionModel
from amr.model.encoded import Encoded, encode
from amr.multiviz.analysis.analysis import datamodule
from amr.utils.errors import UserError
from tests.faults import callback, run_each
from tests.toy import Linear, Toy

pytestmark = pytest.mark.filterwarnings("ignore")
FEW = {"resamples": 50, "train_clips": 20}


@pytest.fixture(scope="module")
def runs(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robustness")
    options = ["--runs_dir", str(folder), "--wandb", "disabled"]
    assert main(["fit", *tiny, *options, "--name", "plain"]) == 0
    assert main(["fit", *tiny, *options, "--name", "watched", "--robustness.every_n_epochs", "1"]) == 0
    robust = ["--robustness.test", "true", "--robustness.resamples", "50", "--robustness.train_clips", "20"]
    checkpoint = str(folder / "plain/checkpoints/best.ckpt")
    assert main(["test", "--ckpt_path", checkpoint, "--wandb", "disabled", *robust]) == 0
    return folder


@pytest.fixture(scope="module")
def subject(runs: Path) -> tuple[FusionModel, ClipDataModule]:
    data = datamodule(yaml.safe_load((runs / "plain/config.yaml").read_text())["data"])
    assert isinstance(data, ClipDataModule)
    data.setup()
    return load_model(runs / "plain/checkpoints/best.ckpt"), data


def logged(run: Path, key: str) -> list[dict[str, str]]:
    rows = []
    for file in sorted((run / "metrics").glob("version_*/metrics.csv")):
        with file.open() as lines:
            rows += [row for row in csv.DictReader(lines) if row.get(key)]
    return rows


def by_name(rows: list[Row]) -> dict[str, Row]:
    found = {row.name: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_the_file_is_what_measure_says(runs: Path, subject: tuple[FusionModel, ClipDataModule]) -> None:
    written = read_rows(runs / "plain/robustness.parquet")
    model, data = subject
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    rows = measure(model, data, **FEW)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert [row.name for row in rows] == [row.name for row in written]
    for mine, theirs in zip(rows, written, strict=True):
        assert mine.value == pytest.approx(theirs.value, abs=1e-6), mine.name
        assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6), mine.name


def test_it_is_logged_and_leaves_the_training_as_it_is(runs: Path) -> None:
    written = by_name(read_rows(runs / "plain/robustness.parquet"))
    (row,) = logged(runs / "plain", "test/robust/acc")
    (tested,) = logged(runs / "plain", "test/acc")
    assert float(tested["test/acc"]) == pytest.approx(written["acc"].value, abs=1e-6)
    assert float(row["test/robust/auc/audio/white"]) == written["auc/audio/white"].value
    assert float(row["test/robust/auc/audio+video/mean"]) == written["auc/audio+video/mean"].value
    assert {key for key in row if key.startswith("test/robust/")} == {
        f"test/robust/{name}" for name, one in written.items() if not one.is_detail
    }
    watched = logged(runs / "watched", "val/robust/shapley/audio")
    assert [int(row["epoch"]) for row in watched] == [0, 1]
    assert not (runs / "watched/robustness.parquet").exists()
    plain, other = (load_model(runs / n / "checkpoints/last.ckpt").state_dict() for n in ("plain", "watched"))
    assert all(torch.equal(plain[key], other[key]) for key in plain)


def test_shares_are_the_runs_own(
    runs: Path, subject: tuple[FusionModel, ClipDataModule], tiny: list[str], tmp_path: Path
) -> None:
    """A run that logs the logit's integrated gradients as its dominance, in `fit` and `test`; captum for reference."""
    run = shutil.copytree(runs / "plain", tmp_path / "run")
    shutil.rmtree(run / "metrics")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["dominance"] |= {"score": "logit", "ig_steps": 5}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    robust = ["--robustness.test", "true", "--robustness.resamples", "20", "--robustness.train_clips", "20"]
    robust += ["--robustness.corruption_clips", "4", "--wandb", "disabled"]
    assert main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), *robust]) == 0
    written, default = (by_name(read_rows(folder / "robustness.parquet")) for folder in (run, runs / "plain"))
    model, data = subject
    clean, train = encode(model, data, "test"), encode(model, data, "train", 20)

    def expected(encodings: dict[str, Tensor], start: dict[str, Tensor]) -> Tensor:
        """Shares (N, M), the gradients integrated by captum's rule, along the line that begins at `start`."""
        names = list(encodings)
        forward = lambda *parts: model.head(dict(zip(names, parts, strict=True)))  # noqa: E731
        begin = tuple(start[m].expand_as(e) for m, e in encodings.items())
        integrated = IntegratedGradients(forward).attribute(
            tuple(encodings.values()),
            begin,
            target=model.head(encodings).argmax(1),
            n_steps=5,
            method="gausslegendre",
            internal_batch_size=None,
        )
        norms = torch.stack([part.flatten(1).norm(dim=1) for part in integrated], dim=1)
        return norms / norms.sum(1, keepdim=True)

    zero = {m: torch.zeros_like(e[:1]) for m, e in clean.encodings.items()}
    shares = expected(clean.encodings, zero)
    centred = expected(clean.encodings, {m: e.mean(0, keepdim=True) for m, e in train.encodings.items()})
    for m, name in enumerate(model.modalities):
        (tested,) = logged(run, f"test/dominance/{name}")
        assert written[f"share/{name}"].value == pytest.approx(float(tested[f"test/dominance/{name}"]), abs=1e-5)
        assert written[f"share/{name}"].value == pytest.approx(float(shares[:, m].mean()), abs=1e-4)
        assert written[f"share_centred/{name}"].value == pytest.approx(float(centred[:, m].mean()), abs=1e-4)
        differing = [f"share/{name}", f"share_centred/{name}", f"evidence_audio+video_share/{name}"]
        assert all(abs(written[key].value - default[key].value) > 1e-3 for key in differing)
    few = clean.some(4)
    dataset = data.corrupted("test", "video", "occlusion", 4, few.ids)
    with torch.no_grad():
        spoilt = model.encoders["video"](torch.stack([dataset[i]["inputs"]["video"] for i in range(4)]))
    corrupted = expected({**few.encodings, "video": spoilt}, zero)[:, 1].mean()
    assert written["share_corrupted/video/occlusion/4"].value == pytest.approx(float(corrupted), abs=1e-4)
    watched = ["--runs_dir", str(tmp_path), "--wandb", "disabled", "--name", "watched", "--trainer.max_epochs", "1"]
    watched += ["--robustness.every_n_epochs", "1", "--dominance.score", "logit", "--dominance.ig_steps", "5"]
    assert main(["fit", *tiny, *watched]) == 0
    (robust_row,) = logged(tmp_path / "watched", "val/robust/share/audio")
    (dominance_row,) = logged(tmp_path / "watched", "val/dominance/audio")
    share, own = robust_row["val/robust/share/audio"], dominance_row["val/dominance/audio"]
    assert float(share) == pytest.approx(float(own), abs=1e-5)


def test_rows_have_intervals_around_them_and_every_severity(runs: Path) -> None:
    rows = read_rows(runs / "plain/robustness.parquet")
    for row in rows:
        assert row.low <= row.high
        assert row.clips > 0
    found = by_name(rows)
    for modality, names in {"audio": 7, "video": 6, "audio+video": 4}.items():
        assert found[f"dial_auc@audio=0.5/{modality}/mean"].value == pytest.approx(found[f"auc/{modality}/mean"].value)
        curves = {row.corruption for row in rows if row.measure == "acc_corrupted" and row.modality == modality}
        assert len(curves) == names
        areas = []
        for corruption in curves:
            curve = [found["acc"].value]
            curve += [found[f"acc_corrupted/{modality}/{corruption}/{s}"].value for s in SEVERITIES]
            area = sum((a + b) / 2 for a, b in pairwise(curve)) / 5
            assert found[f"auc/{modality}/{corruption}"].value == pytest.approx(area, abs=1e-9)
            areas.append(area)
        assert found[f"auc/{modality}/mean"].value == pytest.approx(sum(areas) / len(areas), abs=1e-9)


class Counter:
    """Rows that each encoder saw."""

    def __init__(self, model: FusionModel) -> None:
        self.rows = dict.fromkeys(model.modalities, 0)
        self.handles = [model.encoders[m].register_forward_hook(self.hook(m)) for m in model.modalities]

    def hook(self, modality: str) -> Any:
        def count(_: nn.Module, inputs: tuple[Tensor], __: Tensor) -> None:
            self.rows[modality] += len(inputs[0])

        return count

    def close(self) -> dict[str, int]:
        for handle in self.handles:
            handle.remove()
        return self.rows


def test_encoders_run_once_and_then_only_on_what_is_corrupted(subject: tuple[FusionModel, ClipDataModule]) -> None:
    model, data = subject
    clips = len(data.clips_of("test"))
    counter = Counter(model)
    rows = measure(model, data, corruptions=False, **FEW)  # type: ignore[arg-type]
    assert counter.close() == dict.fromkeys(model.modalities, clips + FEW["train_clips"])
    assert {"shapley", "probe", "emap_gap", "evidence_follows"} & {row.measure for row in rows}
    clean, train = encode(model, data, "test"), encode(model, data, "train", 20)
    counter = Counter(model)
    measure(model, data, clean=clean, train=train, corruption_clips=5, resamples=50)
    assert counter.close() == {"audio": 7 * 5 * 5, "video": 6 * 5 * 5}


def test_a_killed_sweep_goes_on(runs: Path, tmp_path: Path) -> None:
    """kill -9 in its midst: what was done is not done again, and the table is the uninterrupted one's."""
    run = shutil.copytree(runs / "plain", tmp_path / "run")
    (run / "robustness.parquet").unlink()
    command = ["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), "--wandb", "disabled"]
    sweep = [*command, "--robustness.test", "true", "--robustness.resamples", "50", "--robustness.train_clips", "20"]
    ((_, (killed, _), (status, errors)),) = run_each(
        [[command, [*sweep, callback("KillAtPart", call=5), "--trust", "tests"], sweep]], tmp_path
    )
    assert (killed, status) == (-9, 0)
    assert "corrupt test: 4 of 17 corruptions were done" in errors
    # White noise, the picture's and both together, and the time mask, which is to be joined with occlusion, were done.
    assert "corrupt test: 440/440 clips" in errors  # of 13 x 5 x 8
    rows, whole = read_rows(run / "robustness.parquet"), read_rows(runs / "plain/robustness.parquet")
    assert [row.name for row in rows] == [row.name for row in whole]
    for mine, theirs in zip(rows, whole, strict=True):
        assert (mine.value, mine.low, mine.high) == pytest.approx((theirs.value, theirs.low, theirs.high), abs=1e-9)
    assert not (run / "robustness-parts").exists()
    assert not (runs / "plain/robustness-parts").exists()


def test_what_is_done_is_used_only_where_all_is_the_same(
    subject: tuple[FusionModel, ClipDataModule], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = subject
    clean, train = encode(model, data, "test"), encode(model, data, "train", 20)
    clips = clean.some(2)
    parts = tmp_path / "parts"

    def sweep(
        model: FusionModel = model, clips: Encoded = clips, train: Encoded = train, **options: Any
    ) -> tuple[list[Row], dict[str, int]]:
        counter = Counter(model)
        key = (parts, _digest(model, clips, train))
        rows = corruption_rows(model, data, "test", clips, resamples=20, parts=key, **options)
        return rows, counter.close()

    all_of_it = {"audio": 7 * 5 * 2, "video": 6 * 5 * 2}
    expected = corruption_rows(model, data, "test", clips, resamples=20)
    assert sweep() == (expected, all_of_it)
    assert len(list(parts.iterdir())) == 17
    assert sweep() == (expected, {"audio": 0, "video": 0})
    (babble,) = parts.glob("audio_babble-*.npz")
    (mask,) = parts.glob("audio_video_mask-*.npz")
    content = babble.read_bytes()
    middle = len(content) // 2
    for damaged in (
        content[:middle],
        b"",
        b"no",
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    ):
        babble.write_bytes(damaged)
        capsys.readouterr()
        assert sweep() == (expected, {"audio": 5 * 2, "video": 0})
        assert f"{babble}: damaged (" in capsys.readouterr().err
    mask.unlink()
    assert sweep() == (expected, {"audio": 5 * 2, "video": 5 * 2})
    moved = copy.deepcopy(model)
    with torch.no_grad():
        next(moved.parameters()).view(-1)[0] += 1e-3
    others: list[dict[str, Any]] = [
        {"model": moved},
        {"clips": clean.part([0, 1] if clips.ids != clean.ids[:2] else [1, 2])},
        {"clips": Encoded(clips.ids, clips.labels.flip(0) + 1, clips.encodings)},
        {"train": train.part(range(19))},
        {"seed": 1},
        {"score": "logit"},
        {"ig_steps": 2},
    ]
    kept = shutil.copytree(parts, tmp_path / "kept")
    for other in others:
        shutil.rmtree(parts)
        shutil.copytree(kept, parts)
        capsys.readouterr()
        assert sweep(**other)[1] == all_of_it, other
        assert capsys.readouterr().err.count("of another model, data or options; made again") == 17
        assert sweep(**other)[1] == {"audio": 0, "video": 0}


def test_a_corrupted_modality_is_the_only_one_that_changes(subject: tuple[FusionModel, ClipDataModule]) -> None:
    """A second derivation of one number: both inputs by hand, through the whole model."""
    model, data = subject
    rows = by_name(measure(model, data, **FEW))  # type: ignore[arg-type]
    dataset = data.clips_of("test")
    spoilt = data.corrupted("test", "video", "occlusion", 4, [clip.id for clip in dataset.clips])
    right = 0
    for i in range(len(dataset)):
        x = {"audio": dataset[i]["inputs"]["audio"][None], "video": spoilt[i]["inputs"]["video"][None]}
        assert list(spoilt[i]["inputs"]) == ["video"]
        with torch.no_grad():
            right += int(model(x).argmax()) == dataset[i]["label"]
    assert rows["acc_corrupted/video/occlusion/4"].value == pytest.approx(right / len(dataset))


def test_a_process_without_clips_takes_part(
    subject: tuple[FusionModel, ClipDataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two, where one clip is wanted: what it gives, and what both make of it."""
    model, data = subject
    alone = encode(model, data, "test", 1)
    monkeypatch.setattr("amr.model.encoded.rank_and_world", lambda: (1, 2))
    given = []

    def gather(own: Any) -> list[Any]:
        given.append(own[0])
        return [(alone.ids, alone.labels, alone.encodings, 0), own]

    monkeypatch.setattr("amr.model.encoded.gather_objects", gather)
    found = encode(model, data, "test", 1)
    assert given == [[]]
    assert found.ids == alone.ids
    assert torch.equal(found.labels, alone.labels)
    assert all(torch.equal(found.encodings[m], e) for m, e in alone.encodings.items())
    monkeypatch.setattr("amr.model.encoded.gather_objects", lambda own: [own, own])
    with pytest.raises(UserError, match="no clip of test has every modality"):
        encode(model, data, "test", 1)


def test_the_unimodal_models(subject: tuple[FusionModel, ClipDataModule], tiny: list[str], tmp_path: Path) -> None:
    model, data = subject
    options = ["--runs_dir", str(tmp_path), "--wandb", "disabled", "--name", "audio", "--trainer.max_epochs", "1"]
    assert main(["fit", *tiny, *options, "--model.encoders", '{"audio": {"class_path": "amr.encoders.SmallCNN"}}']) == 0
    teacher = load_model(tmp_path / "audio/checkpoints/best.ckpt")
    given: Any = {"audio": teacher, "video": 0.75}
    rows = by_name(measure(model, data, unimodal=given, corruptions=False, **FEW))  # type: ignore[arg-type]
    clips = encode(teacher, data, "test")
    alone = use.right(teacher.head(clips.encodings), clips.labels).mean()
    assert rows["unimodal/audio"].value == pytest.approx(float(alone))
    for name in given:
        gap = rows[f"probe_gap/{name}"]
        assert gap.value == pytest.approx(rows[f"unimodal/{name}"].value - rows[f"probe/{name}"].value)
        assert gap.low <= gap.value <= gap.high
    alone_rows = by_name(measure(teacher, data, corruption_clips=4, **FEW))  # type: ignore[arg-type]
    assert {row.measure for row in alone_rows.values()} == {"acc", "ece", "probe", "acc_corrupted", "auc"}
    with pytest.raises(UserError, match="unimodal.smell: no such modality; must be one of audio, video"):
        measure(model, data, unimodal={"smell": 0.5}, corruptions=False, **FEW)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unimodal.video: it is a model of audio"):
        measure(model, data, unimodal={"video": teacher}, corruptions=False, **FEW)  # type: ignore[arg-type]
    teacher.head.num_classes += 1  # as of another data set
    with pytest.raises(UserError, match=r"unimodal.audio: a model of 5 classes; must have the 4 of this model"):
        measure(model, data, unimodal={"audio": teacher}, corruptions=False, **FEW)  # type: ignore[arg-type]


def test_a_wrong_unimodal_model_is_told_before_the_pass(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Robustness, "on_test_epoch_start", lambda *_: pytest.fail("the pass began"))
    command = ["test", "--ckpt_path", str(runs / "plain/checkpoints/best.ckpt"), "--wandb", "disabled"]
    assert main([*command, "--robustness.test", "true", "--robustness.unimodal.audio", "nowhere.ckpt"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "amr: robustness.unimodal.audio=nowhere.ckpt does not exist; must be a checkpoint or a run's folder"


def test_dominance_by_what_is_really_there(subject: tuple[FusionModel, ClipDataModule]) -> None:
    """The made clips' own cues; a second derivation of every number."""
    model, data = subject
    clean = encode(model, data, "train")
    rows = by_name(evidence_rows(model, data, clean, resamples=50))
    shares, evidence = attribution_shares(model.head, clean.encodings), data.evidence()
    kinds = [evidence[id] for id in clean.ids]
    with torch.no_grad():
        right = (model.head(clean.encodings).argmax(1) == clean.labels).double()
    for kind, label in (({"audio"}, "audio"), ({"audio", "video"}, "audio+video")):
        group = torch.tensor([found == kind for found in kinds])
        assert 0 < rows[f"evidence_{label}_acc"].clips == int(group.sum())
        assert rows[f"evidence_{label}_acc"].value == pytest.approx(float(right[group].mean()))
        for m, name in enumerate(model.modalities):
            expected = float(shares[group, m].mean())
            assert rows[f"evidence_{label}_share/{name}"].value == pytest.approx(expected, abs=1e-6)
    if only := [found for found in kinds if found == {"video"}]:
        inside, outside = (torch.tensor([found == {m} for found in kinds]) for m in ("audio", "video"))
        follows = rows["evidence_follows/audio"]
        assert follows.value == pytest.approx(float(shares[inside, 0].mean() - shares[outside, 0].mean()), abs=1e-6)
        assert follows.clips == int(inside.sum()) + len(only)


def test_tags_that_are_not_installed_are_left_out_with_a_line(
    subject: tuple[FusionModel, ClipDataModule], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = subject

    def absent(_: ClipDataModule) -> None:
        raise UserError("VGGSounder's tags are not installed; pip install 'amr-fusion[vggsound]'")

    monkeypatch.setattr(type(data), "evidence", absent)
    assert evidence_rows(model, data, encode(model, data, "test")) == []
    assert "left out, where each class is really there: VGGSounder's tags are not installed" in capsys.readouterr().err


def test_any_modalities_and_clips_that_lack_one() -> None:
    """A data module of another make: three modalities, no corruptions, a quarter of the clips without `video`."""
    data = Toy(clips=40, modalities=("audio", "video", "touch"), lacking=True)
    encoders: dict[str, Encoder] = {name: Linear() for name in data.inputs}
    model = FusionModel(encoders, Concat(dict.fromkeys(encoders, 8), 3)).eval()
    rows = by_name(measure(model, data, resamples=50))
    assert rows["acc"].clips == 30
    whole = [i for i in range(40) if i % 4]
    with torch.no_grad():
        logits = model({name: x[whole] for name, x in data.inputs.items()})
    assert rows["acc"].value == pytest.approx(float((logits.argmax(1) == data.label[whole]).double().mean()))
    assert {f"shapley/{name}" for name in encoders} | {"cooperation/audio+touch", "probe/touch"} <= rows.keys()
    assert not any("corrupted" in name for name in rows)
    total = sum(rows[f"shapley/{name}"].value for name in encoders)
    none = {name: e.mean(0, keepdim=True) for name, e in encode(model, data, "train").encodings.items()}
    with torch.no_grad():
        blind = (model.head(none).argmax(1) == data.label[whole]).double().mean()
    assert total == pytest.approx(rows["acc"].value - float(blind))


def test_the_table_goes_to_wandb(runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tables: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        WandbLogger, "log_table", lambda _, name, columns, data, **kw: tables.append((name, columns, data))
    )
    options = ["--robustness.test", "true", "--robustness.corruptions", "false", "--robustness.resamples", "20"]
    copy = shutil.copytree(runs / "plain", tmp_path / "copy")
    assert main(["test", "--ckpt_path", str(copy / "checkpoints/best.ckpt"), "--wandb", "offline", *options]) == 0
    ((_, columns, data),) = [table for table in tables if table[0] == "test/robustness"]
    rows = read_rows(copy / "robustness.parquet")
    assert columns == ["measure", "modality", "corruption", "severity", "value", "low", "high", "clips"]
    assert [Row(*line) for line in data] == rows
    assert not any(row.severity for row in rows)


def test_the_table_comes_back(tmp_path: Path) -> None:
    rows = [Row("acc", "", "", None, 0.5, 0.4, 0.6, 10), Row("acc_corrupted", "audio", "white", 3, 0.2, 0.1, 0.3, 9)]
    write_rows(tmp_path / "r.parquet", rows)
    assert read_rows(tmp_path / "r.parquet") == rows
    assert [row.name for row in rows] == ["acc", "acc_corrupted/audio/white/3"]
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(UserError, match=r"bad.parquet: cannot be read .* a table of robustness"):
        read_rows(tmp_path / "bad.parquet")


@pytest.mark.parametrize("key", ["every_n_epochs", "resamples", "corruption_clips", "train_clips"])
def test_bad_options(key: str) -> None:
    options: Any = {key: -1}
    with pytest.raises(UserError, match=f"robustness.{key}=-1: must be"):
        Robustness(**options)
