"""Ensemble: its three combinations against numpy, and its heads against the same heads alone."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from amr.fusion import Attention, Concat, Ensemble, Late
from amr.fusion.ensemble import Combination, combined
from amr.utils.errors import UserError

SIZES = {"a": 6, "b": 4, "c": 8}
HEADS: Any = {"b": lambda d, c: Concat(d, c, hidden=7), "c": lambda d, c: Late(d, c)}


@pytest.mark.parametrize("combination", get_args(Combination))
def test_combinations_by_numpy(combination: Any) -> None:
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    f = logits.numpy()
    expected = {
        "logits": softmax(f.sum(0), axis=1),
        "log_probabilities": softmax(log_softmax(f, axis=2).sum(0), axis=1),
        "probabilities": softmax(f, axis=2).mean(0),
    }
    ours = combined(logits, combination).softmax(1)
    np.testing.assert_allclose(ours, expected[combination])
    # Log-probabilities are logits less a number for each clip.
    np.testing.assert_allclose(expected["logits"], expected["log_probabilities"])
    assert np.abs(expected["logits"] - expected["probabilities"]).max() > 0.05


@pytest.mark.parametrize("combination", get_args(Combination))
@pytest.mark.parametrize("tokens", [None, 3])
def test_each_head_sees_its_modality_alone(combination: Any, tokens: int | None) -> None:
    torch.manual_seed(0)
    head = Ensemble(SIZES, 3, combination, HEADS)
    shape = (5,) if tokens is None else (5, tokens)
    encodings = {name: torch.randn(*shape, size) for name, size in SIZES.items()}
    each = {name: head.heads[name]({name: e}) for name, e in encodings.items()}
    torch.testing.assert_close(head.unimodal_logits(encodings), each)
    torch.testing.assert_close(head(encodings), combined(torch.stack([*each.values()]), combination))
    torch.testing.assert_close(head.classify(head.fuse(encodings)), head(encodings))
    parts = head.additive_logits(encodings)
    assert (parts is None) == (combination == "probabilities")
    if parts is not None:
        torch.testing.assert_close(torch.stack([*parts.values()]).sum(0), head(encodings))


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"model\.fusion\.combination=sum: must be one of logits, log_probabilities"):
        Ensemble(SIZES, 3, "sum")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"model\.fusion\.heads\.d: must be one of the modalities a, b, c"):
        Ensemble(SIZES, 3, heads={"d": lambda d, c: Attention(d, c)})
