from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from amr.datamodules import ClipDataModule, CremaD

from ..conftest import REPOSITORY

CONFIGS = sorted((REPOSITORY / "configs/data").glob("*.yaml"))


def parse(path: Path, *arguments: str) -> ClipDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(ClipDataModule, "data")
    module: Any = parser.instantiate_classes(parser.parse_args(["--config", str(path), *arguments])).data
    assert isinstance(module, ClipDataModule)
    return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path: Path, shared_data: Path) -> None:
    root = {"crema": "crema_d_sample", "grid-": "grid", "vggso": "vggsound_meta"}.get(path.stem[:5])
    changes = [] if root is None else ["--data.root", str(shared_data / root)]
    if path.stem == "crema-d":  # six clips of one actor have no actor split
        changes += ["--data.split", "all"]
    if path.stem == "crema-d-ogm-split":
        changes += ["--data.ogm_split", str(shared_data / "crema_d_meta/ogm_split")]
    if path.stem.startswith("vggsound"):
        changes += ["--data.csv", "test.csv"]
    module = parse(path, *changes, "--data.audio.noise_snr_db", "3")
    assert module.audio.noise_snr_db == 3
    assert module.num_classes in (3, 6, 10, 25, 309)
    if isinstance(module, CremaD):
        assert module.audio.shape(module.decode.sample_rate) == (1, 257, 188)
        assert module.video.shape() == (3, 3, 224, 224)
