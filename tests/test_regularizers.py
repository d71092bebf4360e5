"""Modality dropout: its probabilities, its expectation, and what stands in."""

import pytest
import torch

from amr.fusion import Concat
from amr.model import FusionModel
from amr.regularizers import ModalityDropout
from amr.regularizers.features.modality_dropout import draw_kept
from tests.toy import Linear


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.8])
def test_probability_of_keeping(modalities: int, p: float) -> None:
    torch.manual_seed(0)
    clips = 100_000
    kept = draw_kept(torch.ones(clips, modalities, dtype=torch.bool), p)
    assert kept.any(1).all()
    expected = 1 - p + p**modalities / modalities
    assert kept.float().mean(0).tolist() == pytest.approx([expected] * modalities, abs=0.006)  # four standard errors


def test_only_what_is_there_is_kept() -> None:
    torch.manual_seed(0)
    present = torch.tensor([[True, False, True], [False, True, False], [False, False, False]]).repeat(1000, 1)
    kept = draw_kept(present, 0.7)
    assert not (kept & ~present).any()
    assert torch.equal(kept.any(1), present.any(1))
    assert kept[1::3, 1].all()  # the only one is never dropped


def test_zero_fill_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    encodings = {name: torch.rand(1, 4).expand(200_000, 4) + 1 for name in ("a", "b")}
    present = {"b": torch.arange(200_000) % 2 == 0}
    encodings["b"] = encodings["b"] * present["b"].unsqueeze(1)
    dropped = ModalityDropout(0.4).on_encodings(dict(encodings), present)
    for name, encoding in encodings.items():
        torch.testing.assert_close(dropped[name].mean(0), encoding.mean(0), rtol=0.01, atol=0)
    assert not dropped["b"][1::2].any()
    assert torch.equal(dropped["a"][1::2], encodings["a"][1::2])  # clips with one modality are left alone


def test_mean_fill_takes_the_running_mean() -> None:
    torch.manual_seed(0)
    method = ModalityDropout(0.5, fill="mean", momentum=0.25)
    method.setup(FusionModel({"a": Linear(6, 4), "b": Linear(6, 4)}, Concat({"a": 4, "b": 4}, 2)))
    running: dict[str, torch.Tensor] = {}
    for _ in range(3):
        encodings = {name: torch.randn(64, 4) + 3 for name in ("a", "b")}
        dropped = method.on_encodings(dict(encodings), None)
        for name, encoding in encodings.items():
            mean = encoding.mean(0)
            running[name] = mean if name not in running else 0.75 * running[name] + 0.25 * mean
            changed = (dropped[name] != encoding).any(1)
            assert 0.2 < changed.float().mean() < 0.6
            torch.testing.assert_close(dropped[name][changed], running[name].expand(int(changed.sum()), 4))


def test_token_sequences_are_dropped_whole() -> None:
    torch.manual_seed(0)
    encodings = {"a": torch.randn(50, 3, 4), "b": torch.randn(50, 4)}
    dropped = ModalityDropout(0.5).on_encodings(dict(encodings), None)
    gone = ~dropped["a"].flatten(1).any(1)
    assert 0 < gone.sum() < 50
    assert dropped["b"][gone].any(1).all()
