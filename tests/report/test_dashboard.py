"""The dashboard's specification against what a run really logs, and that record itself."""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from amr.cli import main
from amr.report import dashboard, read_run
from tests.conftest import REPOSITORY
from tests.report.wandb_files import flushed_records

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def trained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with AMR."""
    runs = tmp_path_factory.mktemp("runs")
    assert main(["fit", *tiny, "--runs_dir", str(runs), "--name", "amr", "--model.amr.lr", "0.1"]) == 0
    return runs / "amr"


@pytest.fixture(scope="module")
def training(trained: Path) -> list[Any]:
    return flushed_records(trained)


@pytest.fixture(scope="module")
def tested(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the same W&B run, gone on with by `test`, with two pictures of clips."""
    copy = tmp_path_factory.mktemp("tested") / "amr"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("wandb"))
    assert main(["test", "--ckpt_path", str(copy / "checkpoints/best.ckpt"), "--wandb_content.clips", "2"]) == 0
    return copy


@pytest.fixture(scope="module")
def testing(tested: Path) -> list[Any]:
    return flushed_records(tested)


def logged(records: list[Any]) -> set[str]:
    """Keys of the history."""
    return {i.key or i.nested_key[0] for r in records for i in r.history.item}


def summarised(records: list[Any]) -> dict[str, Any]:
    """The summary, with W&B's names: `val/acc.max`."""
    summary: dict[str, Any] = {}
    for record in records:
        for item in record.summary.update:
            name, value = item.key or "/".join(item.nested_key), json.loads(item.value_json)
            parts = value if isinstance(value, dict) else None
            summary.update({f"{name}.{k}": v for k, v in parts.items()} if parts else {name: value})
    return summary


def config_of(records: list[Any]) -> dict[str, Any]:
    return {c.key: json.loads(c.value_json) for r in records for c in r.config.update}


# ----------------------------------------------------------------------------------------------------- the dashboard


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key anywhere, and a network that must not be used."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def specification(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    request.getfixturevalue("no_account")
    out = tmp_path / "new/dashboard.json"
    assert main(["dashboard", "--entity", "me", "--dataset", "synthetic", "--out", str(out)]) == 0
    written: dict[str, Any] = json.loads(out.read_text())
    return written


def panels(specification: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Those of the workspace and those of the report."""
    sections = specification["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    grids = [block["metadata"] for block in specification["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]
    return [
        [panel for section in sections for panel in section["panels"]],
        [panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]],
    ]


def runsets(specification: dict[str, Any]) -> list[dict[str, Any]]:
    grids = [block["metadata"] for block in specification["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]
    return [*specification["workspace"]["spec"]["section"]["runSets"], *(grid["runSets"][0] for grid in grids)]


def test_panels_draw_what_runs_log(specification: dict[str, Any], training: list[Any], testing: list[Any]) -> None:
    history, summary = logged(training), {**summarised(training), **summarised(testing)}
    for drawn in panels(specification):
        curves = [p["config"] for p in drawn if p["viewType"] == "Run History Line Plot"]
        assert {config["xAxis"] for config in curves} == {"epoch"} <= history
        metrics = {metric for config in curves for metric in config["metrics"]}
        assert metrics <= history
        assert metrics >= {"val/acc", "val/mAP", "val/dominance/audio", "val/decision_share/video"}
        bars = {m for p in drawn if p["viewType"] == "Bar Chart" for m in p["config"]["metrics"]}
        shares = {f"test/{kind}/{m}" for kind in ("dominance", "decision_share") for m in ("audio", "video")}
        assert bars == {"test/acc", "test/mAP", *shares} <= summary.keys()
        scatter = [p["config"] for p in drawn if p["viewType"] == "Scatter Plot"]
        axes = {config[axis] for config in scatter for axis in ("xAxis", "yAxis")}
        assert axes == {"summary:test/acc", "summary:test/dominance/audio", "summary:test/dominance/video"}
        tables = re.findall(r'"val": "(\w+)"', json.dumps(drawn))
        assert tables == ["per_class", "per_class_epochs"]
        assert set(tables) <= history


def test_coefficients_are_found_by_their_names(specification: dict[str, Any]) -> None:
    for drawn in panels(specification):
        coefficients, losses = (p["config"]["metricRegex"] for p in drawn if "metricRegex" in p["config"])
        for name in ("train/amr/x", "train/modality_dropout/k/audio"):
            assert re.search(coefficients, name)
        for name in ("train/dominance/audio", "train/loss/umt/features", "train/acc", "val/amr/x"):
            assert not re.search(coefficients, name)
        assert re.search(losses, "train/loss/umt/features")
        assert not re.search(losses, "train/loss")


def test_the_table_averages_seeds(specification: dict[str, Any], training: list[Any], testing: list[Any]) -> None:
    known = {f"summary:{key}" for key in {**summarised(training), **summarised(testing)}}
    run = next(r.run for r in training if r.WhichOneof("record_type") == "run")
    assert run.run_group == "synthetic/Concat/amr"  # without the seed
    for runset in runsets(specification):
        assert runset["grouping"] == [{"section": "run", "name": "group"}]
        name, *columns = runset["runFeed"]["columnOrder"]
        assert name == "run:displayName"
        assert set(columns) <= known
        assert {"summary:test/acc", "summary:test/mAP", "summary:test/dominance/audio"} <= set(columns)
        (only,) = runset["filters"]["filters"]
        assert config_of(training)[only["key"]["name"]] == only["value"] == "synthetic"


@pytest.mark.usefixtures("no_account")
def test_other_modalities(tmp_path: Path) -> None:
    out = tmp_path / "dashboard.json"
    assert main(["dashboard", "--modalities", "speech", "depth", "--out", str(out)]) == 0
    text = out.read_text()
    assert "val/dominance/speech" in text
    assert "test/dominance/depth" in text
    assert "dominance/audio" not in text


@pytest.mark.usefixtures("no_account")
def test_without_an_account(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["dashboard"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "no W&B account here" in line
    assert "dashboard.json; nothing was sent" in line
    assert json.loads((tmp_path / "dashboard.json").read_text()).keys() == {"workspace", "report"}


@pytest.mark.usefixtures("no_account")
def test_accounts_are_found_without_a_server(tmp_path: Path, monkeypatch: Any) -> None:
    assert not dashboard.has_account()
    (tmp_path / "none").write_text("machine api.wandb.ai\n  login user\n  password " + "0" * 40 + "\n")
    assert dashboard.has_account()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not dashboard.has_account()
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "none").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert dashboard.has_account()


@pytest.mark.usefixtures("no_account")
def test_with_an_account_both_are_saved(monkeypatch: Any, capsys: Any) -> None:
    from wandb_workspaces.reports.v2.interface import Report, Runset
    from wandb_workspaces.workspaces import Workspace

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    saved: list[Any] = []

    def save(self: Any) -> Any:
        saved.append(self)
        return self

    for kind in (Workspace, Report):
        monkeypatch.setattr(kind, "save", save)
        monkeypatch.setattr(kind, "url", property(lambda self: f"https://wandb.example/{self.entity}"))
    assert main(["dashboard", "--entity", "me", "--project", "p"]) == 0
    assert [type(one) for one in saved] == [Workspace, Report]
    runs = [block.runsets[0] for block in saved[1].blocks if hasattr(block, "runsets")]
    assert runs
    assert all(isinstance(one, Runset) and (one.entity, one.project) == ("me", "p") for one in runs)
    out = capsys.readouterr().out.splitlines()
    assert out == ["workspace: https://wandb.example/me", "report: https://wandb.example/me"]


@pytest.mark.usefixtures("no_account")
def test_refusals(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    assert main(["dashboard", "--out", str(tmp_path)]) == 2
    assert f"amr: {tmp_path}: Is a directory" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2.interface", None)
    assert main(["dashboard"]) == 2
    assert (
        capsys.readouterr().err == "amr: dashboard: wandb-workspaces is missing; pip install 'amr-fusion[dashboards]'\n"
    )


# ----------------------------------------------------------------------------------------------------------- records


def test_what_training_records(trained: Path, training: list[Any]) -> None:
    run = next(r.run for r in training if r.WhichOneof("record_type") == "run")
    assert (run.run_group, run.job_type) == ("synthetic/Concat/amr", "train")
    assert set(run.tags) == {"synthetic", "Concat", "amr"}
    assert run.run_id == json.loads((trained / "run.json").read_text())["wandb_id"]
    config = config_of(training)
    assert (config["method"], config["title"], config["seed"]) == ("amr", "Naive fusion w/ AMR", 0)
    assert config["model"]["amr"]["init_args"]["lr"] == 0.1
    summary = summarised(training)
    rows = [{i.key: json.loads(i.value_json) for i in r.history.item if i.key} for r in training]
    rows += [{"/".join(i.nested_key): json.loads(i.value_json) for i in r.history.item} for r in training]
    for metric, best in (("acc", max), ("mAP", max), ("loss", min)):
        values = [row[f"val/{metric}"] for row in rows if f"val/{metric}" in row]
        assert len(values) == 2
        assert summary[f"val/{metric}.{best.__name__}"] == best(values)
    assert all("epoch" in row for row in rows if any(key.startswith(("val/", "train/")) for key in row))


def test_every_metric_is_drawn_over_epochs(training: list[Any]) -> None:
    metrics = {r.metric.name or r.metric.glob_name: r.metric for r in training if r.HasField("metric")}
    for name in (*(f"{split}/*" for split in ("train", "val", "test")), "val/acc", "val/mAP", "val/loss"):
        assert metrics[name].step_metric == "epoch"
    assert metrics["val/acc"].summary.max
    assert metrics["val/mAP"].summary.max
    assert metrics["val/loss"].summary.min


def test_numbers_by_class_are_one_table(trained: Path, training: list[Any]) -> None:
    assert not [key for key in logged(training) if "class0" in key]
    (path,) = {f.path for r in training for f in r.files.files if "per_class_epochs" in f.path}
    (file,) = trained.glob(f"wandb/offline-run-*/files/{path}")
    table = json.loads(file.read_text())
    assert table["columns"] == ["epoch", "class", "clips", "acc", "dominance/audio", "dominance/video"]
    assert [row[:2] for row in table["data"]] == [[e, f"class{c}"] for e in range(2) for c in range(4)]
    last = [line.split(",") for line in (trained / "per_class.csv").read_text().splitlines() if line.startswith("val")]
    for row, expected in zip(table["data"][4:], last, strict=True):
        assert row[2:] == pytest.approx([float(value) for value in expected[2:]])


def test_what_testing_adds(training: list[Any], testing: list[Any]) -> None:
    first, second = (next(r.run for r in rs if r.WhichOneof("record_type") == "run") for rs in (training, testing))
    assert (second.run_id, second.run_group) == (first.run_id, first.run_group)
    assert second.job_type == "eval"
    assert {"test/acc", "test/mAP", "test/loss", "test/dominance/audio", "test/dominance/video"} <= logged(testing)


def test_the_confusion_matrix_and_pictures_of_a_test(trained: Path, tested: Path, testing: list[Any]) -> None:
    """W&B's own record has them; training, which was not asked for pictures, has none."""
    assert {"test/confusion_table", "test/clips"} <= logged(testing)
    files = {f.path for r in testing for f in r.files.files}
    (path,) = (path for path in files if path.startswith("media/table/test/confusion"))
    (file,) = tested.glob(f"wandb/offline-run-*/files/{path}")
    table = json.loads(file.read_text())
    assert table["columns"] == ["Actual", "Predicted", "nPredictions"]
    rows = pq.read_table(tested / "test_predictions.parquet").to_pylist()
    counts = Counter((row["label"], row["prediction"]) for row in rows)
    assert {(a, b): n for a, b, n in table["data"]} == {
        (f"class{a}", f"class{b}"): counts[f"class{a}", f"class{b}"] for a in range(4) for b in range(4)
    }
    right = sum(n for (label, predicted), n in counts.items() if label == predicted)
    assert right / len(rows) == pytest.approx(read_run(tested).test["test/acc"], abs=1e-6)
    pictures = [path for path in files if path.startswith("media/images/test/clips")]
    assert len(pictures) == 2
    for path in pictures:
        (file,) = tested.glob(f"wandb/offline-run-*/files/{path}")
        assert Image.open(file).format == "PNG"
    assert not list(trained.glob("wandb/offline-run-*/files/media/images"))


def test_a_resumed_runs_table_has_all_epochs_and_a_teacher_is_one(tiny: list[str], tmp_path: Path, capsys: Any) -> None:
    encoder = "{audio: {class_path: amr.encoders.SmallCNN, init_args: {width: 4, out_dim: 8}}}"
    single = ["--model.encoders", encoder, "--data.init_args.modalities", "[audio]"]
    common = ["fit", *tiny, *single, "--runs_dir", str(tmp_path), "--name", "audio"]
    assert main([*common, "--trainer.max_epochs", "1"]) == 0
    (folder,) = (tmp_path / "audio/wandb").glob("offline-run-*")
    assert f"W&B, offline; to upload: wandb sync {folder}\n" in capsys.readouterr().out
    records = flushed_records(tmp_path / "audio")
    assert next(r.run for r in records if r.WhichOneof("record_type") == "run").job_type == "teacher"
    (tmp_path / "audio/wandb").rename(tmp_path / "aside")
    assert main([*common, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0
    (file,) = (tmp_path / "audio/wandb").glob("offline-run-*/files/media/table/per_class_epochs*.json")
    assert sorted({row[0] for row in json.loads(file.read_text())["data"]}) == [0, 1]


def test_help_names_the_command_and_stays_light() -> None:
    code = "import sys\nfrom amr.cli import main\ntry: main(['dashboard', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'wandb', 'wandb_workspaces'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "--entity" in done.stdout
