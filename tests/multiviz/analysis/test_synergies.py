"""Rows of synergy from archives of maps of a game whose synergies are known."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amr.datamodules.atoms import flat_atoms, waveform_atoms
from amr.fusion.base import Fusion
from amr.model import FusionModel
from amr.multiviz.analysis import synergies
from amr.utils.arrays import Row, read_table, write_arrays, write_table
from tests.multiviz.nets import Flat

SIZE, COUNT = 8, 3
RIGHT = {"one": 3, "two": 6}


class Both(Fusion):
    """The product of an atom of each modality, as a logit and as the only unit."""

    def __init__(self, dims: dict[str, int]) -> None:
        super().__init__(dims, 2, 1)
        self.classifier.weight.data = torch.tensor([[1.0], [-1.0]])
        self.classifier.bias.data = torch.zeros(2)

    def combine(self, encodings: Any) -> Tensor:
        product: Tensor = encodings["one"][:, RIGHT["one"]] * encodings["two"][:, RIGHT["two"]]
        return product[:, None]


def point(place: int, size: int = SIZE) -> Any:
    """A map of one class, 1 at one atom."""
    return np.eye(size, dtype=np.float32)[[place]]


@pytest.fixture
def analysis(tmp_path: Path) -> Any:
    """What the stage asks of an analysis: clips of ones, with maps that find the atoms and maps that do not."""
    (tmp_path / "clips").mkdir()
    found: dict[str, Any] = {}
    for m, place in RIGHT.items():
        found |= {f"U/{m}/right": point(place), f"U/{m}/beside": point(place - 1)}
        found |= {f"D/{m}/dime_unimodal": point(0, 4), f"D/{m}/dime_multimodal": 2 * point(place // 2, 4)}
        found[f"R/{m}/occlusion"] = point(place)
    found["C/one/two/ablation"] = point(RIGHT["one"])[:, :, None] * point(RIGHT["two"])[:, None]
    found["C/one/two/second_order"] = np.zeros((1, SIZE, SIZE), np.float32)
    found["C_reason/one/two/second_order"] = np.array("a ReLU head")
    found |= {"units": np.array([0]), "activations": np.ones(1, np.float32)}
    for clip in range(COUNT):
        write_arrays(tmp_path / f"clips/{clip}.npz", found)
    return SimpleNamespace(
        model=FusionModel({m: Flat(SIZE) for m in RIGHT}, Both(dict.fromkeys(RIGHT, SIZE))),
        out=tmp_path,
        chosen=[*range(COUNT)],
        archive=lambda position: tmp_path / f"clips/{position}.npz",
        inputs=lambda positions: {m: torch.ones(len(positions), SIZE) for m in RIGHT},
        fine={m: flat_atoms(SIZE) for m in RIGHT},
        coarse={m: waveform_atoms((SIZE,), 4, 1.0) for m in RIGHT},
        atoms=lambda _, coarse=False: {
            m: waveform_atoms((SIZE,), 4, 1.0) if coarse else flat_atoms(SIZE) for m in RIGHT
        },
        baselines=lambda inputs: dict.fromkeys(inputs, torch.zeros(())),
        logits=torch.tensor([[1.0, -1.0]] * COUNT),
        predicted=torch.zeros(COUNT, dtype=torch.long),
        device="cpu",
        seed=0,
    )


def test_every_kind_of_map_has_its_synergy(analysis: Any) -> None:
    work = synergies.work(analysis)
    assert {path.name for path in work} == {
        "trust-synergy-fine-one-two.parquet",
        "trust-synergy-coarse-one-two.parquet",
        "trust-synergy-unit.parquet",
    }
    rows = {(row["stage"], row["method"]): row for make in work.values() for row in make()}
    keys = {("U", "right"), ("U", "beside"), ("D", "dime"), ("C", "ablation"), ("R", "occlusion")}
    assert rows.keys() == keys  # a map of zeros orders nothing
    for (stage, method), row in rows.items():
        assert (row["first"], row["second"], row["modality"]) == ("one", "two", None)
        assert row["atoms"] == ("coarse" if stage == "D" else "fine")
        assert row["synergy_whole"] == 1
        assert row["synergy_clips"] == COUNT
        assert row["synergy"] == pytest.approx(row["synergy_top"] - row["synergy_random"])
        assert row["synergy_low"] <= row["synergy"] <= row["synergy_high"]
        parts = row["synergy_fractions"]
        assert parts == pytest.approx(np.linspace(0, 1, (4 if stage == "D" else SIZE) + 1).tolist())
        assert row["synergy_top"] == pytest.approx(np.trapezoid(row["synergy_curve"], parts))
        assert row["synergy_random"] == pytest.approx(np.trapezoid(row["synergy_random_curve"], parts))
        if method != "beside":
            assert row["synergy_curve"] == [0, *[1] * (len(parts) - 1)]
            assert row["synergy"] > 0.3
    assert rows["U", "beside"]["synergy_curve"][1] == 0


def test_rounding_is_no_synergy(analysis: Any) -> None:
    analysis.logits *= 1e6  # beside scores of this size, 1 is rounding
    rows = [row for path, make in synergies.work(analysis).items() if "unit" not in path.name for row in make()]
    assert {row["synergy"] for row in rows} == {0}
    assert {row["synergy_whole"] for row in rows} == {0}


def test_synergies_join_the_rows_of_the_same_maps(tmp_path: Path) -> None:
    pair: Row = {"modality": None, "first": "one", "second": "two"}
    scored: list[Row] = [
        {"stage": "U", "method": "lime", "modality": "one", "first": None, "second": None, "score": 0.5},
        {"stage": "C", "method": "ablation", **pair, "score": 0.7, "clips": 4, "warnings": ["doubt"]},
    ]
    found: list[Row] = [
        {"stage": "C", "method": "ablation", **pair, "synergy": 0.1, "synergy_clips": 9},
        {"stage": "U", "method": "lime", **pair, "synergy": 0.2, "synergy_clips": 9},
    ]
    rows = synergies.merged(scored, found)
    assert rows[0] == scored[0]
    assert rows[1] == {**scored[1], "synergy": 0.1, "synergy_clips": 9}
    assert (rows[2]["score"], rows[2]["warnings"], rows[2]["clips"], rows[2]["synergy"]) == (None, [], 9, 0.2)
    assert len(rows) == 3
    write_table(tmp_path / "t.parquet", [{name: row.get(name) for name in rows[2]} for row in rows])
    assert [row["synergy"] for row in read_table(tmp_path / "t.parquet")] == [None, 0.1, 0.2]


def test_one_modality_has_no_pairs(analysis: Any) -> None:
    analysis.model = SimpleNamespace(modalities=("one",))
    assert synergies.work(analysis) == {}
