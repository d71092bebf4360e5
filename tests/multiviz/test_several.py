"""Several scores from the same rows: what one score at a time gives, at the price of one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from amr.datamodules.atoms import flat_atoms
from amr.fusion import Attention, Concat
from amr.fusion.base import Fusion
from amr.model import FusionModel
from amr.multiviz import crossmodal as c
from amr.multiviz import unimodal as u
from amr.multiviz.base import Several, Unit
from amr.multiviz.trust import insertion
from amr.utils.errors import UserError
from tests import toy

CLASSES, CLIPS = 5, 3
ATOMS, FEW = flat_atoms(6), flat_atoms(6)
A, B = ("a", FEW), ("b", FEW)


def dime_parts(model: FusionModel, x: dict[str, Tensor], target: Any) -> list[Tensor | None]:
    found = c.dime(model, x, model.encode(x), target, A, samples=16, repeats=2, clips=range(CLIPS))
    return [found.unimodal.values, found.multimodal.values, found.unimodal.error]


def joint_parts(method: Callable[..., Any]) -> Callable[..., list[Tensor | None]]:
    def parts(model: FusionModel, x: dict[str, Tensor], target: Any) -> list[Tensor | None]:
        found = method(model, x, target, A, B, samples=150, repeats=2)
        return [found.pairs.values, found.pairs.error, found.first.values, found.fit]

    return parts


def values_and_error(method: Callable[..., u.Importance], **options: Any) -> Callable[..., list[Tensor | None]]:
    def parts(model: FusionModel, x: dict[str, Tensor], target: Any) -> list[Tensor | None]:
        found = method(model, x, "a", target, ATOMS, **options)
        return [found.values, found.error]

    return parts


METHODS: dict[str, Callable[..., list[Tensor | None]]] = {
    "occlusion": values_and_error(u.occlusion),
    "lime": values_and_error(u.lime, samples=20, repeats=2),
    "kernel_shap": values_and_error(u.kernel_shap, samples=20, repeats=2),
    "exact kernel_shap": values_and_error(u.kernel_shap, samples=64),
    "gradient": values_and_error(u.gradient),
    "gradient_input": values_and_error(u.gradient_input, batch=2),
    "integrated_gradients": values_and_error(u.integrated_gradients, steps=5, baseline=0.3, batch=4),
    "gradient_shap": values_and_error(u.gradient_shap, samples=6, baselines=torch.randn(4, 6), noise=0.1, batch=4),
    "ablation": lambda model, x, target: [c.ablation(model, x, target, A, B)],
    "joint_lime": joint_parts(c.joint_lime),
    "joint_shap": joint_parts(c.joint_shap),
    "dime": dime_parts,
}


def make(fusion: type[Fusion] = Concat) -> tuple[FusionModel, dict[str, Tensor]]:
    torch.manual_seed(0)
    encoders = {name: toy.Linear() for name in ("a", "b")}
    head: Any = fusion
    model = FusionModel(encoders, head(dict.fromkeys(encoders, 8), CLASSES, hidden=7)).double()
    return model, {name: torch.randn(CLIPS, 6, dtype=torch.float64) for name in encoders}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fusion", [Concat, Attention])
def test_values_are_those_of_one_score_at_a_time(name: str, fusion: type[Fusion]) -> None:
    model, x = make(fusion)
    classes = torch.stack([torch.randperm(CLASSES)[:4] for _ in range(CLIPS)])
    units = torch.tensor([[2, 0], [1, 1], [6, 3]])
    several = METHODS[name](model, x, Several(classes, units))
    for k in range(4):
        for one, together in zip(METHODS[name](model, x, classes[:, k]), several, strict=True):
            assert (one is None) == (together is None)
            if one is not None and together is not None:
                torch.testing.assert_close(together[:, k], one)
    for k in range(2):
        for n in range(CLIPS):
            for one, together in zip(METHODS[name](model, x, Unit(int(units[n, k]))), several, strict=True):
                if one is not None and together is not None:
                    torch.testing.assert_close(together[n, 4 + k], one[n])


@pytest.mark.parametrize("name", METHODS)
def test_rows_do_not_depend_on_how_many_scores(name: str) -> None:
    model, x = make()
    rows = {"encoders": 0, "head": 0}
    for encoder in model.encoders.values():
        encoder.register_forward_hook(lambda _, args, out: rows.update(encoders=rows["encoders"] + len(out)))
    model.head.classifier.register_forward_hook(lambda _, args, out: rows.update(head=rows["head"] + len(out)))
    counts = []
    for target in (
        torch.tensor([0, 1, 2]),
        Several(torch.zeros(CLIPS, 1, dtype=torch.long)),
        Several(torch.arange(CLASSES).expand(CLIPS, -1), torch.zeros(CLIPS, 3, dtype=torch.long)),
    ):
        rows.update(encoders=0, head=0)
        METHODS[name](model, x, target)
        counts.append(dict(rows))
    assert counts[0]["encoders"] > CLIPS
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Several(torch.full((CLIPS, 2), CLASSES)), "must be 0 to 4"),
        (Several(torch.zeros(CLIPS, 2, dtype=torch.long), torch.full((CLIPS, 1), 7)), "unit 7; must be 0 to 6"),
        (Several(torch.zeros(CLIPS, 2, dtype=torch.long), torch.full((CLIPS, 1), -1)), "unit -1; must be 0 to 6"),
        (Several(torch.zeros(2, 2, dtype=torch.long)), "for 3 clips"),
        (Several(torch.zeros(CLIPS, dtype=torch.long)), "for 3 clips"),
    ],
)
def test_impossible_scores_are_refused(target: Several, message: str) -> None:
    model, x = make()
    with pytest.raises(UserError, match=message):
        u.occlusion(model, x, "a", target, ATOMS)


def test_functions_of_one_score_refuse_several() -> None:
    model, x = make()
    several: Any = Several(torch.zeros(CLIPS, 2, dtype=torch.long))
    plain = u.occlusion(model, x, "a", 0, ATOMS)
    calls: list[Callable[[], object]] = [
        lambda: u.guided_backprop(model, x, "a", several, ATOMS),
        lambda: u.grad_cam(model, x, "a", several, ATOMS, layer=model.encoders["a"]),
        lambda: c.second_order(model, x, several, "a", "b"),
        lambda: c.contributions(model, model.encode(x), several),
        lambda: c.modality_shapley(model, model.encode(x), "mean", several),
        lambda: insertion(model, x, "a", several, plain),
    ]
    for call in calls:
        with pytest.raises(UserError, match="one score at a time"):
            call()
