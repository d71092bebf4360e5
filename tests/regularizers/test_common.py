"""What every method must survive: more modalities, missing ones, tokens, bf16, resuming, two ranks."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amr import regularizers as methods
from amr.classifier import FusionClassifier
from amr.fusion import Concat, Gated, Shared
from amr.regularizers import AMR, DGL, G2D, MCR, MLA, SMV, DataRemixing, InfoReg, MultiLoss, Relearning, TCMax
from amr.utils.trust import trusting
from tests.ranks import fit_on, on_one_and_two_ranks
from tests.toy import Blind, Tokens, Toy
from tests.training import build, fit, save_teachers, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty|Average precision|ckpt_path)"
)
MAKE: dict[str, Callable[[], dict[str, Any]]] = {
    "multi_loss": lambda: {"multi_loss": MultiLoss(0.7)},
    "dgl": lambda: {"dgl": DGL(2.0)},
    "dgl gated": lambda: {"dgl": DGL(2.0), "fusion": Gated},
    "tcmax": lambda: {"tcmax": TCMax()},
    "tcmax gated": lambda: {"tcmax": TCMax(40), "fusion": Gated},
    "mcr greedy": lambda: {"mcr": MCR("greedy", permutations=3)},
    "mcr independent": lambda: {"mcr": MCR("independent", permutations=3), "fusion": Gated},
    "mcr collaborative": lambda: {"mcr": MCR("collaborative", permutations=3)},
    "mla": lambda: {"mla": MLA(), "fusion": Shared},
    "mla plain": lambda: {"mla": MLA(projection=False, mixing="mean"), "fusion": Shared},
    "g2d": lambda: {"g2d": G2D(dict(TEACHERS), features_weight=0.0, parameters="all")},
    "info_reg": lambda: {"info_reg": InfoReg(threshold=-1.0)},
    "data_remixing": lambda: {"data_remixing": DataRemixing(start_epoch=1)},
    "smv": lambda: {"smv": SMV(start_epoch=1), "fusion": Gated},
    "smv modality": lambda: {"smv": SMV("modality", start_epoch=1, fraction=1.0)},
    "relearning": lambda: {"relearning": Relearning([1, 2])},
    "opm": lambda: {"opm": methods.OPM(p=1.0, start_epoch=0)},
    "arl": lambda: {"arl": methods.ARL(start_epoch=0)},
    "pdmp": lambda: {"pdmp": methods.PDMP("audio")},
    "cml": lambda: {"cml": methods.CML(hinge="batch"), "fusion": Gated},
    "mbsd": lambda: {"mbsd": methods.MBSD()},
    "amco": lambda: {"amco": methods.AMCo(threshold=0.3, full=0.5)},
    "aug": lambda: {"aug": methods.AUG(width=5, every=1, tolerance=0.0), "fusion": Shared},
    "reconboost": lambda: {"reconboost": methods.ReconBoost(1, 1)},
    "greedy": lambda: {"greedy": methods.Greedy(threshold=0.0, steps=2, start_epoch=0), "fusion": Gated},
    "cggm": lambda: {"cggm": methods.CGGM()},
    "lfm": lambda: {"lfm": methods.LFM(0.3, 0.6, epochs=2), "fusion": Gated},
    "synib": lambda: {"synib": methods.SynIB(0.5), "fusion": Gated},
    "midas": lambda: {"midas": methods.MIDAS(rate=0.5, start_epoch=0)},
    "lfm learned": lambda: {"lfm": methods.LFM(0.3, integration="learned", rate=0.1)},
}
TEACHERS: dict[str, str] = {}
"""Checkpoints by modality; set by the fixture, and in each rank's process."""
RANKS: tuple[str, ...] = ("multi_loss", "dgl", "mla", "g2d", "info_reg", "arl", "pdmp")
RANKS += ("cml", "mbsd", "amco", "aug", "reconboost", "greedy", "lfm", "lfm learned")
PER_RANK = ("tcmax", "tcmax gated", "mcr greedy", "opm", "cggm", "synib", "midas")
"""Methods that re-pair clips, or draw for each, within a rank: two ranks are not one process, as their pages say."""


@pytest.fixture(scope="module", autouse=True)
def trained_teachers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    TEACHERS.update(save_teachers(tmp_path_factory.mktemp("teachers"), ("audio", "video", "text")))
    with trusting(["tests"]):
        yield


def make(case: str, modalities: tuple[str, ...] = ("audio", "video"), **options: Any) -> FusionClassifier:
    given = MAKE[case]()
    if "g2d" in given:
        given["g2d"].teachers = {name: TEACHERS[name] for name in modalities}
    return build(fusion=given.pop("fusion", Concat), modalities=modalities, **given, **options)


def everything(model: FusionClassifier) -> dict[str, Tensor]:
    """The model's weights, and the methods' parameters and buffers."""
    own = {f"method.{key}": value.clone() for key, value in model.regularizers.state_dict().items()}
    return {**weights(model), **own}


@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio", "video", "text")], ids=len)
@pytest.mark.parametrize("case", MAKE)
def test_it_trains_with_missing_modalities_and_amr(case: str, modalities: tuple[str, ...]) -> None:
    model = make(case, modalities, amr=AMR())
    before = everything(model)
    epochs = 3 if case == "info_reg" else 2
    trainer = fit(model, Toy(modalities=modalities, lacking=True), max_epochs=epochs)
    batches = epochs * 4
    assert trainer.global_step > batches if "smv" in case else trainer.global_step == batches  # SMV adds copies
    after = everything(model)
    assert [key for key in after if not after[key].isfinite().all()] == []
    for name in modalities:
        assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(f"encoders.{name}"))
    assert all(math.isfinite(value) for value in trainer.callback_metrics.values())


@pytest.mark.parametrize("case", MAKE)
def test_a_modality_that_nobody_has(case: str) -> None:
    model = make(case)
    fit(model, Blind(), max_epochs=1)
    assert all(value.isfinite().all() for value in weights(model).values())


@pytest.mark.parametrize("case", MAKE)
def test_tokens_and_bf16(case: str) -> None:
    model = make(case, encoder=Tokens)
    fit(model, Toy(lacking=True), max_epochs=1, precision="bf16-mixed")
    assert all(value.isfinite().all() for value in weights(model).values())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("case", MAKE)
def test_a_resumed_run_ends_with_the_same_bits(case: str, tmp_path: Path) -> None:
    whole = make(case, amr=AMR())
    fit(whole, max_epochs=3)
    half = make(case, amr=AMR())
    fit(half, max_epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    resumed = make(case, amr=AMR())
    fit(resumed, ckpt=tmp_path / "half.ckpt", max_epochs=3)
    ours = everything(resumed)
    for key, value in everything(whole).items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("case", [case for case in MAKE if case.split()[0] not in ("mla", "aug", "reconboost")])
def test_micro_batches_are_taken_together(case: str) -> None:
    model = make(case)
    trainer = fit(model, Toy(batch_size=4), max_epochs=1, accumulate_grad_batches=2, gradient_clip_val=0.5)
    assert trainer.global_step == 4
    assert all(value.isfinite().all() for value in weights(model).values())


def train(world: int, case: str, teachers: dict[str, str]) -> dict[str, Tensor]:
    TEACHERS.update(teachers)
    with trusting(["tests"]):  # a rank is a process of its own
        model = make(case)
    fit_on(world, model, Toy(lacking=True))
    return everything(model)


@pytest.fixture(scope="module")
def ddp() -> dict[str, Any]:
    """Final state of each case, by one process and by each of two gloo ranks."""
    return on_one_and_two_ranks(partial(train, teachers=TEACHERS), [*RANKS, *PER_RANK])


@pytest.mark.parametrize("case", [*RANKS, *PER_RANK])
def test_ranks_agree(ddp: dict[str, Any], case: str) -> None:
    _, first, second = ddp[case]
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("case", RANKS)
def test_two_ranks_equal_one_process(ddp: dict[str, Any], case: str) -> None:
    alone, first, _ = ddp[case]
    for key, value in alone.items():
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-5, msg=key)
