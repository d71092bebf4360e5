from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.datamodules.conftest import parse_data

CONFIGS = sorted((REPOSITORY / "configs/data").glob("*.yaml"))


SHAPES = {  # what the recipes' sources make
    "crema-d": ((1, 257, 188), (1, 3, 224, 224)),
    "crema-d-ogm-split": ((1, 257, 188), (1, 3, 224, 224)),
    "crema-d-mmpareto": ((1, 257, 188), (2, 3, 224, 224)),
    "crema-d-pmr": ((1, 257, 299), (1, 3, 224, 224)),
    "vggsound": ((1, 257, 1004), (3, 3, 224, 224)),
    "vggsound-ogm-ge": ((1, 129, 626), (3, 3, 224, 224)),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path: Path, shared_data: Path) -> None:
    root = {"crema": "crema_d_sample", "grid-": "grid", "vggso": "vggsound_meta"}.get(path.stem[:5])
    changes = [] if root is None else ["--data.root", str(shared_data / root)]
    if path.stem == "crema-d-ogm-split":
        changes += ["--data.ogm_split", str(shared_data / "crema_d_meta/ogm_split")]
    elif path.stem.startswith("crema-d"):  # six clips of one actor have no actor split
        changes += ["--data.split", "all"]
    if path.stem.startswith("vggsound"):
        changes += ["--data.csv", "test.csv"]
    module = parse_data(path, *changes, "--data.audio.noise_snr_db", "3")
    assert module.audio.noise_snr_db == 3
    assert module.num_classes in (3, 6, 10, 25, 309)
    if path.stem in SHAPES:
        assert (module.audio.shape(module.decode.sample_rate), module.video.shape()) == SHAPES[path.stem]
        assert (module.video.augment, module.video.flip, module.video.per_frame) == ("resized_crop", True, True)
        assert module.decode.sample_rate == 16000


def section(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / f"configs/data/{name}.yaml").read_text())["data"]["init_args"]
    return loaded


def test_the_crema_d_recipes_differ_in_what_they_say_alone() -> None:
    base = section("crema-d")
    assert (base["audio"]["sample_rate"], base["video"]["frames"], base["video"]["pick"]) == (22050, 1, "first")
    for name, keys in (
        ("crema-d-ogm-split", {"split", "ogm_split"}),
        ("crema-d-mmpareto", {"video.frames", "video.pick"}),
        ("crema-d-pmr", {f"audio.{key}" for key in ("sample_rate", "kind", "hop_length", "padding", "normalise")}),
    ):
        assert difference(base, section(name)) == keys
    assert difference(section("vggsound"), section("vggsound-ogm-ge")) == {
        f"audio.{key}" for key in ("seconds", "crop", "kind", "n_fft", "hop_length", "padding", "normalise")
    }


def difference(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Keys, dotted, in which two sections differ."""
    keys = set()
    for key in one.keys() | other.keys():
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            keys |= {f"{key}.{inner}" for inner in difference(a, b)}
        elif a != b:
            keys.add(key)
    return keys
