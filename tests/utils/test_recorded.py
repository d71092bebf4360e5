"""Objects that know how they were made."""

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amr.encoders import Encoder, MLPEncoder, SmallCNN, as_encoder
from amr.fusion import Concat, Fusion
from amr.utils.recorded import NotPlainError, Recorded, description


class Takes(Encoder):
    def __init__(self, a: int, b: Any = None, *, c: Any = 3, **more: Any) -> None:
        super().__init__()
        self.out_dim = a


def test_arguments_are_kept_as_they_were_given() -> None:
    assert description(MLPEncoder(12, [5, 6], 7)) == {
        "class_path": "amr.encoders.mlp.MLPEncoder",
        "init_args": {"in_dim": 12, "hidden": [5, 6], "out_dim": 7},
    }
    assert description(SmallCNN())["init_args"] == {}
    given = description(Takes(1, (2, Path("x")), c={"k": None}, d=1.5))
    assert given == {
        "class_path": f"{__name__}.Takes",
        "init_args": {"a": 1, "b": [2, "x"], "c": {"k": None}, "d": 1.5},
    }


def test_what_a_fusion_is_given_by_the_model_is_left_out() -> None:
    head = Concat({"a": 3, "b": 4}, 5, hidden=8)
    assert description(head, without=2) == {"class_path": "amr.fusion.concat.Concat", "init_args": {"hidden": 8}}


def test_recorded_objects_nest() -> None:
    inner = description(Takes(1, SmallCNN(2)))["init_args"]["b"]
    assert inner == {"class_path": "amr.encoders.cnn.SmallCNN", "init_args": {"in_channels": 2}}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])  # noqa: S301
def test_a_copy_knows_it_too(copied: Any) -> None:
    assert description(copied(MLPEncoder(12, [5], 7))) == description(MLPEncoder(12, [5], 7))


def test_signatures_are_those_of_init() -> None:
    assert list(inspect.signature(MLPEncoder).parameters)[:1] == ["in_dim"]
    assert list(inspect.signature(Fusion).parameters)[:2] == ["dims", "num_classes"]


def test_what_no_configuration_holds_is_named() -> None:
    with pytest.raises(NotPlainError, match=r"WrappedEncoder\.module is a Linear"):
        description(as_encoder(nn.Linear(2, 3)))
    with pytest.raises(NotPlainError, match=r"Takes\.b\[1\] is a Tensor"):
        description(Takes(1, [1, torch.zeros(1)]))

    class Local(Recorded):
        pass

    with pytest.raises(NotPlainError, match="Local is defined inside a function"):
        description(Local())
