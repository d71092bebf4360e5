"""The right/wrong table on tasks whose answer is known."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amr.evaluation import use
from amr.evaluation.decisions.outcomes import outcome_counts, outcome_names, outcomes
from amr.evaluation.head import coalition_outputs
from amr.evaluation.metrics import measure_encodings
from amr.model import FusionModel
from amr.model.encoded import Encoded
from tests.evaluation.decisions.heads import clips, known

CELLS = ["outcome_redundant", "outcome_unique/a", "outcome_unique/b", "outcome_synergistic"]
CELLS += ["outcome_lost/a", "outcome_lost/b", "outcome_lost/a+b", "outcome_neither"]


def values(model: FusionModel, data: Encoded) -> dict[str, float]:
    return {row.name: row.value for row in measure_encodings(model, data, resamples=20)}


def only(cell: str, found: dict[str, float]) -> None:
    assert [found[name] for name in CELLS] == [float(name == cell) for name in CELLS]


def test_the_eight_cells_by_hand() -> None:
    """A clip in each cell, two in the last."""
    a, b = [1, 1, 0, 0, 1, 0, 1, 0, 0], [1, 0, 1, 0, 0, 1, 1, 0, 0]
    both = [1, 1, 1, 1, 0, 0, 0, 0, 0]
    correct = torch.tensor([[0] * 9, a, b, both]).double()
    names = outcome_names(["a", "b"])
    told = ["/".join(filter(None, names[cell])) for cell in outcomes(correct).tolist()]
    assert told == ["outcome_redundant/a+b", *CELLS[1:], "outcome_neither"]
    assert len(set(names)) == 8
    labels = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2, 2])
    counts = outcome_counts(correct, labels, 3)
    assert counts.sum(1).tolist() == [4, 0, 5]
    assert counts[2, names.index(("outcome_neither", ""))] == 2
    assert counts[0, names.index(("outcome_unique", "b"))] == 1


def test_exclusive_or_is_synergistic_only() -> None:
    """The third class is the answer where one of both is missing, so nothing is right by default."""
    a, b = torch.tensor([1.0, 1, -1, -1] * 4)[:, None], torch.tensor([1.0, -1, 1, -1] * 4)[:, None]
    labels = (a * b > 0).long().flatten()
    model = known(lambda a, b: torch.cat([-a * b, a * b, 0 * a + 0.5], 1), 3, a=1, b=1)
    found = values(model, clips(labels, a=a, b=b))
    only("outcome_synergistic", found)
    assert found["outcome_synergistic@class=0"] == found["outcome_synergistic@class=1"] == 1
    assert "outcome_synergistic@class=2" not in found


def test_a_planted_redundant_task_and_unique_ones() -> None:
    labels = torch.arange(12) % 3
    code, noise = F.one_hot(labels, 3).float(), torch.zeros(12, 3)
    default = torch.tensor([-0.1, -0.1, -0.1, 0.9])  # without evidence: a class that no clip is of

    def logits(a: Tensor, b: Tensor) -> Tensor:
        return F.pad(a + b, (0, 1)) + default

    model = known(logits, 4, a=3, b=3)
    only("outcome_redundant", values(model, clips(labels, a=code * 2, b=code * 2)))
    only("outcome_unique/a", values(model, clips(labels, a=code * 2, b=noise)))
    only("outcome_unique/b", values(model, clips(labels, a=noise, b=code * 2)))
    only("outcome_neither", values(model, clips(labels, a=noise, b=noise)))
    found = values(model, clips(labels, a=code * 2, b=code.roll(1, 1) * 4))  # b is louder, and wrong
    only("outcome_lost/a", found)
    assert found["outcome_lost"] == found["outcome_lost@class=2"] == 1


def test_three_modalities_add_up() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(3, (200,), generator=generator)
    code = F.one_hot(labels, 3).float()
    encodings = {m: code + torch.randn(200, 3, generator=generator) for m in "abc"}
    model = known(lambda a, b, c: a + b + 0.5 * c + a * b, 3, a=3, b=3, c=3)
    found = values(model, clips(labels, **encodings))
    cells = ["/".join(filter(None, name)) for name in outcome_names("abc")]
    assert len(set(cells)) == 16
    assert sum(found[name] for name in cells) == pytest.approx(1)
    right = ("outcome_synergistic", "outcome_unique", "outcome_redundant/")
    assert sum(found[name] for name in cells if name.startswith(right)) == pytest.approx(found["acc"])
    several = [name for name in cells if name.startswith("outcome_redundant/")]
    assert len(several) == 4
    assert found["outcome_redundant"] == pytest.approx(sum(found[name] for name in several))
    means = {m: e.mean(0, keepdim=True) for m, e in encodings.items()}
    correct = use.right(coalition_outputs(model, encodings, means), labels)
    for m, name in enumerate("abc"):
        lost = sum(found[cell] for cell in cells if cell.startswith("outcome_lost/") and name in cell.split("/")[1])
        assert lost == pytest.approx(found[f"confusion/{name}"])
        one = correct[1 << m] * correct[7]
        for n in range(3):
            one = one * (1 - correct[1 << n]) if n != m else one
        assert found[f"outcome_unique/{name}"] == pytest.approx(float(one.mean()))
    for c in range(3):
        of_class = [found[f"{name.partition('/')[0]}@class={c}/{name.partition('/')[2]}".rstrip("/")] for name in cells]
        assert sum(of_class) == pytest.approx(1)
