"""Every file in configs/model builds, with nothing but the two keys."""

from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from amr.encoders import Encoder
from amr.fusion import Fusion, FusionFactory

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "model").glob("*.yaml"))
INPUTS = {"audio": torch.randn(2, 1, 64, 65), "video": torch.randn(2, 4, 3, 32, 48)}
GREY = {**INPUTS, "video": torch.randn(2, 4, 1, 32, 48)}


def build(*args: str) -> tuple[dict[str, Encoder], FusionFactory]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--model.encoders", type=dict[str, Encoder])
    parser.add_argument("--model.fusion", type=FusionFactory)
    parsed = parser.instantiate_classes(parser.parse_args(args))
    return parsed.model.encoders, parsed.model.fusion


def head(encoders: dict[str, Encoder], factory: FusionFactory) -> Fusion:
    return factory({name: encoder.out_dim for name, encoder in encoders.items()}, 5)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds(path: Path) -> None:
    encoders, factory = build("--config", str(path))
    fusion = head(encoders, factory)
    inputs = GREY if path.stem.startswith("small") else INPUTS
    assert fusion({name: encoder(inputs[name]) for name, encoder in encoders.items()}).shape == (2, 5)


def test_there_are_configs() -> None:
    assert {path.stem for path in CONFIGS} >= {"small", "small-audio", "small-video", "resnet18", "r2plus1d"}


@pytest.mark.parametrize(
    ("fusion", "options"),
    [
        ("Concat", {"hidden": 7}),
        ("Sum", {"dim": 8}),
        ("FiLM", {"conditioner": "video"}),
        ("Gated", {"dim": 8}),
        ("LowRank", {"rank": 2}),
        ("Attention", {"heads": 8, "layers": 2}),
        ("Late", {"hidden": 7}),
    ],
)
def test_fusion_by_option(fusion: str, options: dict[str, object]) -> None:
    small = next(path for path in CONFIGS if path.stem == "small")
    choice = [f"--model.fusion=amr.fusion.{fusion}"]
    encoders, factory = build(
        "--config", str(small), *choice, *(f"--model.fusion.{key}={value}" for key, value in options.items())
    )
    built = head(encoders, factory)
    assert type(built).__name__ == fusion
    assert all(getattr(built, key) == value for key, value in options.items() if key in ("conditioner", "rank"))
