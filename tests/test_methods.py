"""Every method, and every pair of methods, trains through the command line on real clips."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from amr.cli import main
from amr.compare import read_run
from tests.conftest import REPOSITORY

METHODS = sorted(file.stem for file in (REPOSITORY / "configs/methods").glob("*.yaml"))
CONFLICTS = {frozenset({"ogm", "ogm_ge"}), frozenset({"gge", "gradient_blending"})}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def teachers(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint of each modality's own model."""
    runs = tmp_path_factory.mktemp("teachers")
    encoders = yaml.safe_load((REPOSITORY / "tests/conf/tiny.yaml").read_text())["model"]["encoders"]
    for modality, encoder in encoders.items():
        single = runs / f"{modality}.yaml"
        single.write_text(yaml.safe_dump({"model": {"encoders": {modality: encoder}}}))
        config = [*tiny[2:], "--data.init_args.modalities", f"[{modality}]", "--trainer.max_epochs", "1"]
        tiny_without_encoders = yaml.safe_load((REPOSITORY / "tests/conf/tiny.yaml").read_text())
        del tiny_without_encoders["model"]
        base = runs / "base.yaml"
        base.write_text(yaml.safe_dump(tiny_without_encoders))
        arguments = ["--config", str(base), "--config", str(single), *config]
        assert main(["fit", *arguments, "--runs_dir", str(runs), "--name", modality, "--wandb", "disabled"]) == 0
    return {modality: str(runs / modality / "checkpoints/best.ckpt") for modality in encoders}


def fit(names: tuple[str, ...], tiny: list[str], teachers: dict[str, str], runs: Path, *more: str) -> int:
    """`amr fit` with the methods' own files."""
    files = [part for name in names for part in ("--config", str(REPOSITORY / f"configs/methods/{name}.yaml"))]
    given = ["--model.umt.teachers", json.dumps(teachers)] if "umt" in names else []
    options = ["--runs_dir", str(runs), "--name", "run", "--wandb", "disabled"]
    return main(["fit", *tiny, *files, *given, *options, *more])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_is_tested_and_goes_on(
    name: str, tiny: list[str], teachers: dict[str, str], tmp_path: Path
) -> None:
    assert fit((name,), tiny, teachers, tmp_path, "--trainer.max_epochs", "3") == 0
    assert main(["test", "--ckpt_path", str(tmp_path / "run/checkpoints/best.ckpt")]) == 0
    run = read_run(tmp_path / "run")
    assert run.method == name
    assert len(run.epochs) == 3
    assert all(math.isfinite(value) for row in run.epochs.values() for value in row.values())
    assert math.isclose(run.test["test/dominance/audio"] + run.test["test/dominance/video"], 1, abs_tol=1e-5)
    whole = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    half = tmp_path / "half"
    assert fit((name,), tiny, teachers, half, "--trainer.max_epochs", "1") == 0
    assert fit((name,), tiny, teachers, half, "--trainer.max_epochs", "3", "--ckpt_path", "last") == 0
    resumed = torch.load(half / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert resumed.keys() == whole.keys()
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []


@pytest.mark.parametrize("pair", list(itertools.combinations(METHODS, 2)), ids="+".join)
def test_every_pair_trains_or_is_refused_by_name(
    pair: tuple[str, str],
    tiny: list[str],
    teachers: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = fit(pair, tiny, teachers, tmp_path, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3")
    if frozenset(pair) in CONFLICTS:
        assert status == 2
        message = capsys.readouterr().err
        assert "cannot be combined with" in message
        assert all(name in message for name in pair)
        return
    assert status == 0
    run = read_run(tmp_path / "run")
    assert sorted(run.method.split("+")) == sorted(pair)
    assert all(math.isfinite(value) for row in run.epochs.values() for value in row.values())
