import os
from pathlib import Path

import pytest
import yaml

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores: more threads only wait for each other
REPOSITORY = Path(__file__).parents[1]
LONG = (  # files that take longest, longest first: what begins late leaves the other worker idle
    *("test_methods.py", "test_docs.py", "test_scaling.py", "test_export.py", "test_faults.py"),
    *("datamodules/store/test_prepare_faults.py", "cli/test_main.py", "multiviz/analysis/test_analyze.py"),
    *("datamodules/store/test_media_time.py", "report/site/test_pages.py", "evaluation/test_robustness.py"),
    *("test_classifier.py", "cli/test_benchmark.py", "test_wheel.py", "report/site/test_grid.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which xdist hands out files, with --no-loadscope-reorder."""
    place = {REPOSITORY / "tests" / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


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
