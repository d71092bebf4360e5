"""Every command through `main()`, on real clips; what it leaves on disk and in the W&B record; every bad input."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from amr.cli import main
from amr.report.wandb_records import read_record
from tests.cli.records import read_metrics, wandb_records
from tests.conftest import REPOSITORY

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Lightning's and W&B's own; ours are tested where they arise
]
CONF = REPOSITORY / "tests/conf"


@pytest.fixture(scope="session")
def runs(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A naive run, and one with AMR that has been tested, validated and used to predict."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["fit", *tiny, "--runs_dir", str(folder), "--name", "naive"]) == 0
    assert (
        main(
            [
                "fit",
                *tiny,
                "--runs_dir",
                str(folder),
                "--name",
                "amr",
                "--model.amr.weight",
                "1",
                "--seed_everything",
                "7",
                "--trainer.logger",
                "CSVLogger",
                "--trainer.logger.save_dir",
                str(folder.parent / "users"),
            ]
        )
        == 0
    )
    checkpoint = str(folder / "amr/checkpoints/best.ckpt")
    for command in ("test", "validate", "predict"):
        assert main([command, "--ckpt_path", checkpoint]) == 0
    return folder


def test_a_users_logger_is_added(runs: Path) -> None:
    def logged(file: Path) -> list[dict[str, str]]:
        return list(csv.DictReader(file.open()))

    users = runs.parent / "users/lightning_logs/version_0/metrics.csv"
    assert logged(users) == logged(runs / "amr/metrics/version_0/metrics.csv")


def test_help_is_light() -> None:
    code = "import sys\nfrom amr.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'numpy', 'matplotlib', 'pyarrow', 'wandb'} & set(sys.modules)\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in ("fit", "test", "predict", "prepare", "compare", "demo"))


def test_a_run_leaves_its_record(runs: Path) -> None:
    facts = json.loads((runs / "amr/run.json").read_text())
    assert (facts["method"], facts["dataset"], facts["seed"], facts["fusion"]) == ("amr", "synthetic", 7, "Concat")
    assert facts["modalities"] == ["audio", "video"]
    config = yaml.safe_load((runs / "amr/config.yaml").read_text())
    assert config["model"]["amr"]["init_args"]["weight"] == 1
    metrics = read_metrics(runs / "amr")
    for split in ("train", "val", "test"):
        names = ("loss", "acc", "mAP", "dominance/audio", "dominance/video")
        assert {f"{split}/{name}" for name in names} <= metrics.keys()
        assert metrics[f"{split}/dominance/audio"] + metrics[f"{split}/dominance/video"] == pytest.approx(1)
    table = (runs / "amr/per_class.csv").read_text().splitlines()
    assert table[0] == "split,class,clips,acc,dominance/audio,dominance/video"
    assert [line.split(",")[:2] for line in table[1:]] == [[s, f"class{c}"] for s in ("val", "test") for c in range(4)]


def test_checkpoints_hold_plain_types(runs: Path) -> None:
    for name in ("best", "last"):
        state = torch.load(runs / f"amr/checkpoints/{name}.ckpt", weights_only=True)
        assert state["amr"]["modalities"] == ["audio", "video"]


def test_predictions(runs: Path) -> None:
    table = pq.read_table(runs / "amr/predictions.parquet")
    assert table.column_names == ["id", "label", "prediction", "logits", "share/audio", "share/video"]
    rows = table.to_pylist()
    labels = json.loads(table.schema.metadata[b"labels"])
    assert len({row["id"] for row in rows}) == len(rows) == 8
    for row in rows:
        assert row["share/audio"] + row["share/video"] == pytest.approx(1)
        assert row["prediction"] == labels[max(range(4), key=row["logits"].__getitem__)]
    right = sum(row["label"] == row["prediction"] for row in rows) / len(rows)
    metrics = read_metrics(runs / "amr")
    assert right == pytest.approx(metrics["test/acc"])
    assert sum(row["share/audio"] for row in rows) / len(rows) == pytest.approx(
        metrics["test/dominance/audio"], abs=1e-5
    )


def test_compare_reads_what_fit_wrote(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "picture.png"
    assert main(["compare", str(runs), "--out", str(page), "--picture", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "Naive fusion" in out
    assert "validation" in out  # only one of the two has been tested
    assert "audio dominance" in out
    assert "<table" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_wandb_record(runs: Path) -> None:
    """What was really written: two runs in one process must not mix."""
    records = list(wandb_records(runs / "naive"))
    run = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    assert (run.run_group, run.job_type) == ("synthetic/Concat/naive", "train")
    assert set(run.tags) == {"synthetic", "Concat", "naive"}
    config = {c.key: json.loads(c.value_json) for r in records for c in r.config.update}
    assert (config["method"], config["dataset"], config["seed"]) == ("naive", "synthetic", 0)
    assert config["model"]["encoders"]["audio"]["class_path"] == "amr.encoders.SmallCNN"
    metrics = {r.metric.name or r.metric.glob_name: r.metric for r in records if r.HasField("metric")}
    assert metrics["val/*"].step_metric == "epoch"
    assert metrics["val/acc"].summary.max
    history = [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item} for r in records]
    shares = [row["val/dominance/audio"] for row in history if "val/dominance/audio" in row]
    assert len(shares) == 2
    assert shares[-1] == pytest.approx(read_metrics(runs / "naive")["val/dominance/audio"])
    files = {f.path for r in records for f in r.files.files}
    assert "config.yaml" in files
    assert any(path.startswith("media/table/per_class") for path in files)


def test_starts_are_numbered_in_the_wandb_record(runs: Path) -> None:
    """`compare` orders them by it: no clock tells what resumed what."""
    (file,) = {path.name for path in runs.glob("amr/wandb/*/run-*.wandb")}
    folders = [path for path in runs.glob("amr/wandb/*run-*") if not path.is_symlink()]
    records = [read_record(path / file) for path in folders]
    assert sorted(record.config["start"] for record in records if "start" in record.config) == [0, 1, 2]


def test_nothing_is_overwritten_and_finished_runs_go_on(runs: Path, tiny: list[str], capsys: Any) -> None:
    again = ["fit", *tiny, "--runs_dir", str(runs), "--name", "naive", "--wandb", "disabled"]
    before = (runs / "naive/checkpoints/last.ckpt").read_bytes()
    assert main(again) == 2
    assert "holds a run already: go on with it by --ckpt_path last" in capsys.readouterr().err
    assert (runs / "naive/checkpoints/last.ckpt").read_bytes() == before
    assert main([*again, "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    assert torch.load(runs / "naive/checkpoints/last.ckpt", weights_only=True)["epoch"] == 2
    assert len(list((runs / "naive/metrics").iterdir())) == 2  # the first start's metrics are still there


@pytest.fixture(scope="module")
def whole(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A run, and its command."""
    folder = tmp_path_factory.mktemp("whole")
    common = ["fit", *tiny, "--runs_dir", str(folder), "--wandb", "disabled", "--trainer.max_epochs", "3"]
    assert main([*common, "--name", "whole"]) == 0
    return common, folder


def test_a_moved_run_remembers_its_best(whole: tuple[list[str], Path], tmp_path: Path) -> None:
    common, folder = whole
    moved = tmp_path / "moved"
    shutil.copytree(folder / "whole", moved)
    best = torch.load(moved / "checkpoints/last.ckpt", weights_only=True)
    (state,) = (value for key, value in best["callbacks"].items() if "Checkpoint" in key)
    state["best_model_score"] = torch.tensor(1.5)  # which no epoch can beat
    del best["checksum"]
    torch.save(best, moved / "checkpoints/last.ckpt")
    before = (moved / "checkpoints/best.ckpt").read_bytes()
    again = [
        *common,
        "--runs_dir",
        str(tmp_path),
        "--name",
        "moved",
        "--ckpt_path",
        "last",
        "--trainer.max_epochs",
        "4",
    ]
    assert main(again) == 0
    assert (moved / "checkpoints/best.ckpt").read_bytes() == before


# ------------------------------------------------------------------------------------------------------- bad input


def check_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amr: ")]
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.fuzion", "Sum"], "--model.fuzion: unknown key; did you mean fusion?"),
        (["--model.amr.wait", "1"], "--model.amr.wait: unknown key; did you mean weight?"),
        (["--model.amr.weight", "-1"], "model.amr.weight=-1.0: must be a finite number >= 0"),
        (["--model.amr.weight", "much"], "model.amr"),
        (["--model.amr.ratio", "{audio: -1, video: 1}"], "model.amr.ratio.audio=-1.0: must be a positive"),
        (["--model.amr.ratio", "{audio: 1, smell: 1}"], "exactly the model's modalities 'audio', 'video'"),
        (["--model.amr.score", "margin"], "margin"),
        (["--model.encoders", "{audio: {class_path: amr.encoders.SmallCNN}}", "--model.amr.lr", "0.1"], "at least 2"),
        (["--model.encoders.audio.class_path", "amr.encoders.Nope"], "amr.encoders.Nope"),
        (["--trainer.precision", "bf16-true"], "trainer.precision=bf16-true: must be one of 32-true"),
        (["--trainer.precision", "16-mixed"], "trainer.precision=16-mixed: must be bf16-mixed or 32-true on a CPU"),
        (["--data.init_args.audio.n_fft", "0"], "n_fft"),
        (["--data.init_args.modalities", "[audio]"], "no input for the modality 'video'"),
        (["--ckpt_path", "nowhere.ckpt"], "--ckpt_path=nowhere.ckpt does not exist"),
        (["--ckpt_path", str(CONF / "tiny.yaml")], "tiny.yaml is not a checkpoint"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--name", "../up"], "--name='../up': must be letters, digits"),
        (["--trainer.strategy", "fsdp"], "trainer.strategy=fsdp: must be auto"),
        (["--trainer.accelerator", "gpu"], "gpu"),
        (["--trainer.devices", "none"], "devices"),
        (["--model.optimizer", "AdamW", "--model.optimizer.lr", "-1"], "model.optimizer: Invalid learning rate: -1.0"),
        (["--best.monitor", "val/f1"], "best.monitor=val/f1: must be one of val/loss, val/acc, val/mAP"),
        (["--last.every_n_train_steps", "0"], "last.every_n_train_steps=0: must be a positive"),
        (["--model.encoders", "{'a.b': {class_path: amr.encoders.SmallCNN}}"], "'a.b' cannot name a modality"),
        (["--wandb", "offline", "--project", "a/b"], "--project='a/b': must be letters"),
    ],
)
def test_bad_input_of_fit(tiny: list[str], tmp_path: Path, capsys: Any, arguments: list[str], message: str) -> None:
    common = ["fit", *tiny, "--runs_dir", str(tmp_path / "runs"), "--name", "bad", "--wandb", "disabled"]
    check_refused(capsys, [*common, *arguments], message)
    left = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert left == []


HEADER = "id,file,label,split"
CLIPS = {
    "a column": ("id,file,split\nx,x.mp4,train\n", [], "label"),
    "a label": (f"{HEADER}\nx,x.mp4,c,train\n", ["--data.labels", "[a, b]"], "label='c': must be one of a, b"),
    "duplicate ids": (f"{HEADER}\nx,x.mp4,a,train\nx,y.mp4,b,train\n", [], "'x' is listed 2 times"),
    "leaves the root": (f"{HEADER}\nx,../x.mp4,a,train\ny,x.mp4,b,val\n", [], "leaves the root folder"),
    "absolute path": (f"{HEADER}\nx,/etc/passwd,a,train\ny,x.mp4,b,val\n", [], "leaves the root folder"),
    "a split": (f"{HEADER}\nx,x.mp4,a,dev\ny,x.mp4,b,train\n", [], "split='dev': must be one of train, val, test"),
}


@pytest.mark.parametrize("case", CLIPS)
@pytest.mark.parametrize("command", ["fit", "prepare"])
def test_bad_listing(tmp_path: Path, capsys: Any, case: str, command: str) -> None:
    text, extra, message = CLIPS[case]
    (tmp_path / "clips.csv").write_text(text)
    data = ["--data", "amr.datamodules.Clips", "--data.csv", str(tmp_path / "clips.csv"), *extra]
    encoders = ["--model.encoders", "{audio: {class_path: amr.encoders.SmallCNN}}"] if command == "fit" else []
    check_refused(capsys, [command, *data, "--data.store", str(tmp_path / "store"), *encoders], message)
    assert not (tmp_path / "store").exists()


def test_missing_folder(tmp_path: Path, capsys: Any) -> None:
    data = ["--data", "amr.datamodules.CremaD", "--data.root", str(tmp_path / "nowhere")]
    check_refused(capsys, ["prepare", *data], "nowhere: no such folder")


def test_wrong_checkpoints(runs: Path, tiny: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = ["--ckpt_path", str(runs / "amr/checkpoints/best.ckpt")]
    check_refused(
        capsys, ["test", *checkpoint, "--model.fusion.hidden", "4"], "of another architecture, it lacks model.head"
    )
    for name, content in (("half", Path(checkpoint[1]).read_bytes()[:5000]), ("empty", b"")):
        broken = runs / f"{name}.ckpt"
        broken.write_bytes(content)
        check_refused(capsys, ["test", *tiny, "--ckpt_path", str(broken)], f"{name}.ckpt is not a checkpoint, or not a")
    foreign = runs / "foreign.ckpt"
    torch.save({"state_dict": {}}, foreign)
    check_refused(capsys, ["test", *tiny, "--ckpt_path", str(foreign)], "foreign.ckpt was not written by amr")
    other = ["fit", *tiny, "--runs_dir", str(runs), "--name", "naive", "--wandb", "disabled"]
    check_refused(capsys, [*other, *checkpoint], "holds a run already")
    check_refused(capsys, ["predict", *checkpoint, "--out", str(runs)], "must be a file, not a folder")
    check_refused(capsys, ["test"], "--ckpt_path: test needs a checkpoint")
    monkeypatch.chdir(runs / "amr/checkpoints")  # the run is found from within it
    check_refused(capsys, ["predict", "--ckpt_path", "best.ckpt", "--out", str(runs)], "must be a file, not a folder")
    check_refused(capsys, ["fitt"], "fitt: no such command; did you mean fit?")
    check_refused(capsys, ["compare", str(runs / "nowhere")], "nowhere")


# ------------------------------------------------------------------------------------------------- configs and data

OTHER_CONFIGS = ("benchmarks", "sweeps")  # not `fit`'s; they have tests of their own


PARTS = [path for path in sorted((REPOSITORY / "configs").rglob("*.yaml")) if path.parent.name not in OTHER_CONFIGS]


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_every_config_parses_in_fit(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--config", str(CONF / "tiny.yaml")]
    with pytest.raises(SystemExit) as done:
        main(["fit", *base, "--config", str(path), "--print_config"])
    assert done.value.code == 0
    for section, keys in yaml.safe_load(path.read_text()).items():
        printed = yaml.safe_load(capsys.readouterr().out) if section else {}
        assert printed[section].keys() >= keys.keys()
        break


def test_six_real_crema_d_clips_prepare_and_overfit(shared_data: Path, tmp_path: Path) -> None:
    """As downloaded, through the recipe's transforms, with encoders small enough for a test."""
    common = [
        *("--config", str(REPOSITORY / "configs/data/crema-d.yaml"), "--data.init_args.split", "all"),
        *(
            "--data.init_args.root",
            str(shared_data / "crema_d_sample"),
            "--data.init_args.store",
            str(tmp_path / "store"),
        ),
        *("--data.init_args.batch_size", "6", "--data.init_args.num_workers", "0"),
        *(
            "--data.init_args.video.augment",
            "none",
            "--data.init_args.video.flip",
            "false",
            "--data.init_args.video.size",
            "64",
        ),
    ]
    assert main(["prepare", *common]) == 0
    encoders = {
        "audio": {"class_path": "amr.encoders.SmallCNN"},
        "video": {"class_path": "amr.encoders.SmallFrameCNN", "init_args": {"in_channels": 3, "frames": 1}},
    }
    model = ["--model.encoders", json.dumps(encoders), "--model.optimizer", "AdamW", "--model.optimizer.lr", "0.003"]
    trainer = ["--trainer.max_epochs", "40", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    options = ["--runs_dir", str(tmp_path), "--name", "overfit", "--wandb", "disabled", "--model.amr.lr", "0.02"]
    assert main(["fit", *common, *model, *trainer, *options]) == 0
    metrics = read_metrics(tmp_path / "overfit")
    assert metrics["train/acc"] == 1
    assert metrics["train/dominance/audio"] == pytest.approx(0.5, abs=0.1)
