"""What heads declare of their form, checked by numbers; and every fusion trains with 2 to 8 modalities."""

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amr.fusion import Attention, Concat, Ensemble, FiLM, Fusion, Gated, Late, LowRank, MulT, Shared, Sum
from amr.fusion.ensemble import Combination
from amr.regularizers.features.mmcosine import CosineHead

SMALL: dict[str, Any] = {"dim": 8, "heads": 2, "layers": 1}
FUSIONS: dict[str, Callable[..., Fusion]] = {
    **{kind.__name__: kind for kind in (Concat, Sum, FiLM, Gated, LowRank, Late, Shared)},
    "Attention": partial(Attention, **SMALL),
    "MulT": partial(MulT, **SMALL),
}
DIMS = {"a": 5, "b": 5, "c": 5}
HEADS: dict[str, Callable[[], Fusion]] = {
    **{name: partial(kind, DIMS, 3) for name, kind in FUSIONS.items()},
    **{f"{name}, hidden": partial(kind, DIMS, 3, hidden=32) for name, kind in FUSIONS.items()},
    **{f"Ensemble, {how}": partial(Ensemble, DIMS, 3, how) for how in get_args(Combination)},
    "Ensemble of hidden": lambda: Ensemble(DIMS, 3, heads={"a": lambda d, c: Concat(d, c, hidden=32)}),
    "Cosine": lambda: CosineHead(Concat(DIMS, 3), 2.0),
}
ADDITIVE = {"Concat", "Sum", "Late", "Late, hidden", "Shared", "Shared, hidden", "Ensemble, logits", "Cosine"}
ADDITIVE |= {"Ensemble, log_probabilities", "Ensemble of hidden"}
MULTIAFFINE = {"Concat", "Sum", "Late", "Shared", "FiLM", "LowRank", "Ensemble, logits"}
OF_FEATURES = {"Ensemble, probabilities"}  # only the features have a form, and nothing is declared


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("tokens", [0, 3])
def test_declared_forms_are_the_true_ones(name: str, features: bool, tokens: int) -> None:
    """Second differences across modalities vanish in additive heads, those within one in multi-affine heads."""
    torch.manual_seed(0)
    head = HEADS[name]().double()
    shape = (64, tokens, 5) if tokens else (64, 5)
    first, second = ({m: 2 * torch.randn(shape, dtype=torch.float64) for m in DIMS} for _ in range(2))

    def at(encodings: dict[str, Tensor]) -> Tensor:
        out: Tensor = head.fuse(encodings) if features else head(encodings)
        return out

    def vanish(gaps: list[Tensor]) -> bool:
        return max(float(gap.detach().abs().max()) for gap in gaps) < 1e-9

    across = [at({**first, m: second[m]}) + at({**second, m: first[m]}) - at(first) - at(second) for m in DIMS]
    ends = [(at({**first, m: second[m]}) + at(first)) / 2 for m in DIMS]
    within = [at({**first, m: (first[m] + second[m]) / 2}) - end for m, end in zip(DIMS, ends, strict=True)]
    assert (head.additive, head.multiaffine) == (name in ADDITIVE, name in MULTIAFFINE)
    if name in OF_FEATURES and features:
        assert vanish(across)
    elif not (features and name in ("Cosine", "Ensemble of hidden", "Ensemble, log_probabilities")):
        assert (vanish(across), vanish(within)) == (head.additive, head.multiaffine)
    else:  # features may be simpler than logits
        assert vanish(across)


def planted(modalities: int, clips: int, seed: int, same: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Four classes; every modality holds a weak cue of the class, in its own directions and size."""
    cues, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    label = torch.randint(4, (clips,), generator=noise)
    encodings = {}
    for m in range(modalities):
        size = 8 if same else 6 + m
        codes = torch.randn(4, size, generator=cues)
        encodings[f"m{m}"] = codes[label] + torch.randn(clips, size, generator=noise)
    return encodings, label


@pytest.mark.parametrize("name", [*FUSIONS, "Ensemble"])
@pytest.mark.parametrize("modalities", range(2, 9))
def test_every_fusion_trains(name: str, modalities: int) -> None:
    torch.manual_seed(0)
    encodings, label = planted(modalities, 96, 1, name == "Shared")
    head = {**FUSIONS, "Ensemble": Ensemble}[name]({m: e.shape[1] for m, e in encodings.items()}, 4)
    optimizer = torch.optim.SGD(head.parameters(), 0.1, momentum=0.9)
    for _ in range(6 if name == "MulT" else 15):  # MulT has M² transformers
        optimizer.zero_grad()
        loss: Tensor = F.cross_entropy(head(encodings), label)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    fresh, truth = planted(modalities, 512, 2, name == "Shared")
    with torch.no_grad():
        accuracy = float((head(fresh).argmax(1) == truth).double().mean())
    assert accuracy > 0.55, "chance is 0.25"
