import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores: more threads only wait for each other
REPOSITORY = Path(__file__).parents[1]


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
