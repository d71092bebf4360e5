"""Shipped configurations are found by name."""

from pathlib import Path

import pytest

from amr.utils.errors import UserError
from amr.utils.names.configs import config_folder, find_config, shipped


def test_every_shipped_file_has_a_name() -> None:
    files = {path.resolve() for path in config_folder().rglob("*.yaml")}
    assert {path.resolve() for path in shipped().values()} == files
    for name, path in shipped().items():
        assert find_config(name) == path
        assert find_config(f"configs/{name}.yaml").samefile(path)


def test_a_short_name_must_be_unique() -> None:
    assert find_config("resnet18") == shipped()["model/resnet18"]
    assert find_config("amr") == shipped()["methods/amr"]
    with pytest.raises(UserError, match=r"--config=small: must be one of model/small, trainer/small"):
        find_config("small")


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/methods/amr.yaml") == shipped()["methods/amr"]
    Path("amr").write_text("model: {}\n")
    assert find_config("amr") == Path("amr")


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--config=resnet81: no such file.*did you mean (model/)?resnet18\?"):
        find_config("resnet81")
    with pytest.raises(UserError, match=r"--data=.*: must be a file, this is a folder"):
        find_config(str(tmp_path), "--data")
