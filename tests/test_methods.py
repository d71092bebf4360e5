"""Every method trains through the command line on real clips, and every pair of methods without it, on vectors."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import yaml

from amr.callbacks import Dominance
from amr.classifier import FusionClassifier
from amr.cli import main
from amr.fusion import Concat, Shared
from amr.regularizers import Regularizer
from amr.report import read_run
from amr.utils.errors import UserError
from amr.utils.trust import trusting
from tests.conftest import REPOSITORY
from tests.regularizers.probes import Convolution
from tests.training import build, save_teachers
from tests.training import fit as train

METHODS = sorted(file.stem for file in (REPOSITORY / "configs/methods").glob("*.yaml"))
CONFLICTS = {
    frozenset(pair)
    for pair in (
        *(("ogm", "ogm_ge"), ("umt", "g2d"), ("info_reg", "mla"), ("mmcosine", "mla")),
        *(("data_remixing", "mla"), ("data_remixing", "smv")),
        # each replaces the main loss
        *itertools.combinations(("gge", "gradient_blending", "tcmax", "mla", "aug", "reconboost"), 2),
        *itertools.product(("aug", "reconboost"), ("dgl", "dropout", "modality_dropout", "amco", "info_reg")),
        *itertools.product(("aug", "reconboost"), ("mmcosine", "data_remixing", "greedy", "opm")),
        *(("cml", "dgl"), ("amco", "tcmax"), ("amco", "mla"), ("greedy", "mla"), ("greedy", "mmcosine")),
        *(("dgl", other) for other in ("gge", "gradient_blending", "tcmax", "mla")),
        *itertools.product(("dropout", "modality_dropout"), ("tcmax", "mla")),
        *(("opm", other) for other in ("modality_dropout", "tcmax", "mla")),
    )
}
TAUGHT = ("umt", "g2d")
SHARED = {"mla", "aug"}  # need the fusion Shared
EARLY = {  # these begin after epochs that a test does not have
    "data_remixing": ["--model.data_remixing.start_epoch", "1"],
    "smv": ["--model.smv.start_epoch", "0"],
    "relearning": ["--model.relearning.epochs", "[1]"],
    "opm": ["--model.opm.start_epoch", "0"],
    "arl": ["--model.arl.start_epoch", "0"],
    "midas": ["--model.midas.start_epoch", "0"],
    "aug": ["--model.aug.every", "1"],
    "greedy": ["--model.greedy.start_epoch", "0"],
    "reconboost": ["--model.reconboost.boosting_epochs", "1"],
}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def teachers(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint of each modality's own model."""
    runs = tmp_path_factory.mktemp("teachers")
    encoders = yaml.safe_load((REPOSITORY / "tests/conf/tiny.yaml").read_text())["model"]["encoders"]
    for modality, encoder in encoders.items():
        alone = ["--model.encoders", json.dumps({modality: encoder}), "--data.init_args.modalities", f"[{modality}]"]
        options = ["--trainer.max_epochs", "1", "--runs_dir", str(runs), "--name", modality, "--wandb", "disabled"]
        assert main(["fit", *tiny, *alone, *options]) == 0
    return {modality: str(runs / modality / "checkpoints/best.ckpt") for modality in encoders}


def fit(name: str, tiny: list[str], teachers: dict[str, str], runs: Path, *more: str) -> int:
    """`amr fit` with the method's own file."""
    file = ["--config", str(REPOSITORY / f"configs/methods/{name}.yaml")]
    given = [f"--model.{name}.teachers", json.dumps(teachers)] if name in TAUGHT else []
    given += ["--model.fusion", "amr.fusion.Shared"] if name in SHARED else []
    given += EARLY.get(name, [])
    options = ["--runs_dir", str(runs), "--name", "run", "--wandb", "disabled"]
    return main(["fit", *tiny, *file, *given, *options, *more])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_is_tested(
    name: str, tiny: list[str], teachers: dict[str, str], tmp_path: Path
) -> None:
    chooses = overrides(name, "select")  # clips, which only a whole epoch shows
    short = [] if chooses else ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    assert fit(name, tiny, teachers, tmp_path, "--trainer.max_epochs", "2", *short) == 0
    # The others are measured as naive fusion is; these change the head, name files or choose clips.
    tested = chooses or overrides(name, "wrap_head") or name in ("amr", *TAUGHT, *SHARED)
    assert not tested or main(["test", "--ckpt_path", str(tmp_path / "run/checkpoints/best.ckpt")]) == 0
    run = read_run(tmp_path / "run")
    assert run.method == name
    assert len(run.epochs) == 2
    assert all(math.isfinite(value) for row in run.epochs.values() for value in row.values())
    shares = run.test if tested else run.epochs[1]
    split = "test" if tested else "val"
    assert math.isclose(shares[f"{split}/dominance/audio"] + shares[f"{split}/dominance/video"], 1, abs_tol=1e-5)
    if not chooses:  # what chooses clips reaches into the data module
        return
    whole = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    half = tmp_path / "half"
    assert fit(name, tiny, teachers, half, "--trainer.max_epochs", "1") == 0
    assert fit(name, tiny, teachers, half, "--trainer.max_epochs", "2", "--ckpt_path", "last") == 0
    resumed = torch.load(half / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert resumed.keys() == whole.keys()
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []


@pytest.fixture(scope="module")
def toy_teachers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with trusting(["tests"]):  # the encoders are the tests' own
        yield save_teachers(tmp_path_factory.mktemp("toy"), ("audio", "video"), Convolution)


def made(name: str, teachers: dict[str, str]) -> Regularizer:
    """The method with its own file's options, which are all that the file has: two files cannot clash."""
    content = yaml.safe_load((REPOSITORY / f"configs/methods/{name}.yaml").read_text())
    options = content["model"][name]
    assert content == {"model": {name: options}}
    method: type[Regularizer] = get_args(get_type_hints(FusionClassifier.__init__)[name])[0]
    return method(**{**options, **({"teachers": teachers} if name in TAUGHT else {})})


def overrides(name: str, hook: str) -> bool:
    method: type[Regularizer] = get_args(get_type_hints(FusionClassifier.__init__)[name])[0]
    return getattr(method, hook) is not getattr(Regularizer, hook)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resumes_as_if_nothing_had_been(name: str, toy_teachers: dict[str, str], tmp_path: Path) -> None:
    """Without the command line; tests/test_faults.py resumes with it."""

    def model() -> FusionClassifier:
        fusion = Shared if name in SHARED else Concat
        options: dict[str, Any] = {name: made(name, toy_teachers)}
        return build(encoder=Convolution, fusion=fusion, **options)

    whole, resumed = model(), model()
    short: dict[str, Any] = {"limit_train_batches": 2, "limit_val_batches": 1}
    train(whole, max_epochs=2, **short)
    train(model(), max_epochs=1, **short).save_checkpoint(tmp_path / "half.ckpt")
    train(resumed, max_epochs=2, ckpt=tmp_path / "half.ckpt", **short)
    expected, found = whole.state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


@pytest.mark.parametrize("pair", list(itertools.combinations(METHODS, 2)), ids="+".join)
def test_every_pair_trains_or_is_refused_by_name(pair: tuple[str, str], toy_teachers: dict[str, str]) -> None:
    """Without the command line, which takes longer than they train; tests/cli/test_sweep.py gives it two files."""
    methods: dict[str, Any] = {name: made(name, toy_teachers) for name in pair}
    options = {"encoder": Convolution, "fusion": Shared if SHARED & {*pair} else Concat, **methods}
    if frozenset(pair) in CONFLICTS:
        with pytest.raises(UserError, match="cannot be combined with") as caught:
            build(**options)
        assert all(name in str(caught.value) for name in pair)
        return
    model = build(**options)
    assert sorted(model.method.split("+")) == sorted(pair)
    epochs = 2 if "pmr" in pair else 1  # its prototypes, and so its loss, begin with the second
    trainer = train(model, max_epochs=epochs, limit_train_batches=1, limit_val_batches=1, callbacks=[Dominance()])
    assert {"train/loss", "val/loss", "val/dominance/audio"} <= trainer.callback_metrics.keys()
    for values in (trainer.callback_metrics, model.state_dict()):
        assert [key for key, value in values.items() if not value.isfinite().all()] == []
