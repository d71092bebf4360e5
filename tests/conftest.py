import functools
import os
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from amr.cli.imports import quick_imports

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many workers as cores: more threads only wait for each other
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each Python that a test starts compiles amr anew
REPOSITORY = Path(__file__).parents[1]
LONG = (  # files that take longest, longest first: what begins late leaves the other worker idle
    *("test_methods.py", "test_docs.py", "test_scaling.py", "test_export.py", "test_faults.py"),
    *("datamodules/store/test_prepare_faults.py", "cli/test_main.py", "multiviz/analysis/test_analyze.py"),
    *("datamodules/store/test_media_time.py", "report/site/test_pages.py", "evaluation/test_robustness.py"),
    *("test_classifier.py", "cli/test_benchmark.py", "test_wheel.py", "report/site/test_grid.py"),
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Imports all modules, and rewrites the tests' assertions: a third of it was the garbage collector's."""
    with quick_imports():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which xdist hands out files, with --no-loadscope-reorder."""
    place = {REPOSITORY / "tests" / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def nothing_twice() -> Iterator[None]:
    """Spares what costs a small training a quarter of its time.

    A Trainer searches all installed packages for plugins, and a seed is put by, with the whole stack, for each kind of
    device that is not there.
    """
    with pytest.MonkeyPatch.context() as patch:
        if "pytorch_lightning" in sys.modules:
            patch.setattr("lightning_fabric.utilities.registry.entry_points", functools.cache(entry_points))
        if "torch" in sys.modules:
            import torch

            for device in (torch.cuda, torch.xpu, torch.mtia):
                if not device.is_available():
                    patch.setattr(device, "manual_seed_all", lambda seed: None)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real clips; CI always has them."""
    folder = Path(os.environ.get("AMR_TEST_DATA", REPOSITORY / "../shared/data")).resolve()
    if not folder.is_dir():
        reason = f"no {folder}; set AMR_TEST_DATA to the folder with the test clips"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments for the tiny clips, made and prepared once."""
    folder = tmp_path_factory.mktemp("tiny")
    data = ["--data.init_args.root", str(folder / "clips"), "--data.init_args.store", str(folder / "store")]
    arguments = ["--config", str(REPOSITORY / "tests/conf/tiny.yaml"), *data]
    config = folder / "data.yaml"
    config.write_text(
        yaml.safe_dump({"data": yaml.safe_load((REPOSITORY / "tests/conf/tiny.yaml").read_text())["data"]})
    )
    from amr.cli import main  # torch reads OMP_NUM_THREADS when it is imported

    assert main(["prepare", "--config", str(config), *data]) == 0
    return arguments
