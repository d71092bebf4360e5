"""Every file in configs/model builds, with nothing but the two keys."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from amr.datamodules.transforms import AudioTransform, VideoTransform
from amr.encoders import Encoder
from amr.fusion import Fusion, FusionFactory

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs" / "model").glob("*.yaml"))
LARGE = [path for path in CONFIGS if "# Data: " in path.read_text()]  # with data options of their own
INPUTS = {"audio": torch.randn(2, 1, 64, 65), "video": torch.randn(2, 4, 3, 32, 48)}
GREY = {**INPUTS, "video": torch.randn(2, 4, 1, 32, 48)}
OTHERS: dict[str, dict[str, torch.Tensor]] = {
    "mult": {
        "text": torch.tensor([[2, 10001, 0], [1, 0, 0]]),
        "audio": torch.randn(2, 5, 74),
        "video": torch.randn(2, 4, 35),
    },
    "table-series": {"table": torch.randn(2, 5), "series": torch.randn(2, 24, 12)},
}


def build(*args: str) -> tuple[dict[str, Encoder], FusionFactory]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--model.encoders", type=dict[str, Encoder])
    parser.add_argument("--model.fusion", type=FusionFactory)
    parsed = parser.instantiate(parser.parse_args(args))
    return parsed.model.encoders, parsed.model.fusion


def head(encoders: dict[str, Encoder], factory: FusionFactory) -> Fusion:
    return factory({name: encoder.out_dim for name, encoder in encoders.items()}, 5)


@pytest.mark.parametrize("path", [path for path in CONFIGS if path not in LARGE], ids=lambda path: path.stem)
def test_config_builds(path: Path) -> None:
    encoders, factory = build("--config", str(path))
    fusion = head(encoders, factory)
    inputs = OTHERS.get(path.stem, GREY if path.stem.startswith("small") else INPUTS)
    assert fusion({name: encoder(inputs[name]) for name, encoder in encoders.items()}).shape == (2, 5)


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_large_config_fits_the_data_options_in_it(path: Path) -> None:
    data = yaml.safe_load((REPOSITORY / "configs/data/crema-d.yaml").read_text())["data"]["init_args"]
    for group, key, value in re.findall(r"--data\.init_args\.(audio|video|decode)\.(\w+) (\S+)", path.read_text()):
        data[group][key] = yaml.safe_load(value)
    for key in ("mean", "std"):  # of no effect on shapes, and lists where the class wants tuples
        del data["video"][key]
    shapes = {
        "audio": AudioTransform(**data["audio"]).shape(data["decode"]["sample_rate"]),
        "video": VideoTransform(**data["video"]).shape(),
    }
    assert data["decode"]["fps"] * data["audio"]["seconds"] >= shapes["video"][0]  # enough frames in a clip
    with torch.device("meta"):  # shapes alone
        encoders, factory = build("--config", str(path))
        fusion = head(encoders, factory)
        inputs = {name: torch.empty(2, *shapes[name]) for name in encoders}
        assert fusion({name: encoder.eval()(inputs[name]) for name, encoder in encoders.items()}).shape == (2, 5)


def test_there_are_configs() -> None:
    assert {path.stem for path in CONFIGS} >= {"small", "small-audio", "small-video", "resnet18", "r2plus1d"}
    assert {path.stem for path in LARGE} == {"ast", "mvit", "swin3d", "wav2vec2"}


@pytest.mark.parametrize(
    ("fusion", "options"),
    [
        ("Concat", {"hidden": 7}),
        ("Sum", {"dim": 8}),
        ("FiLM", {"conditioner": "video"}),
        ("Gated", {"dim": 8}),
        ("LowRank", {"rank": 2}),
        ("Attention", {"heads": 8, "layers": 2}),
        ("MulT", {"dim": 8, "heads": 2}),
        ("Late", {"hidden": 7}),
        ("Shared", {"hidden": 7}),
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
