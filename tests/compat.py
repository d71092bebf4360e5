"""A short suite on the lowest and on the newest versions that pyproject.toml allows, each in an environment of its own.

    python -m tests.compat [--lowest PYTHON] [--newest PYTHON] [--folder FOLDER]

What `make compat` runs. It downloads gigabytes, and prints a table of the versions for docs/getting-started.md.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, datetime
from pathlib import Path

from tests.conftest import REPOSITORY

SUITE = (  # attribution and the classifier, models of notebooks, every configuration, every command once, and media
    *("tests/attribution/test_shares.py", "tests/test_classifier.py", "tests/test_load.py", "tests/test_api.py"),
    *("tests/utils/names/test_configs.py", "tests/datamodules/test_configs.py", "tests/callbacks/test_predictions.py"),
    *(
        "tests/cli/test_main.py",
        "tests/datamodules/store/test_media.py",
        "tests/datamodules/store/test_media_source.py",
    ),
)
TOOLS = ("pytest", "pytest-xdist", "captum")
WARNINGS = "default"  # at the lowest versions, other packages' own uses of each other warn


def requirements() -> list[str]:
    """The names of what amr requires itself, in the order of pyproject.toml."""
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    return [re.split(r"[\[<>=~! ]", requirement)[0] for requirement in listed]


def tried(kind: str, python: str, folder: Path) -> tuple[dict[str, str], str]:
    """Makes the environment and runs the suite in it.

    Args:
        kind: `lowest` or `newest`.
        python: The interpreter, as `uv` takes it: a version or a path.
        folder: For the environment.

    Returns:
        Versions by name, Python's among them; and the suite's last line.
    """
    uv = [sys.executable, "-m", "uv"]
    environment = folder / kind
    interpreter = str(environment / "bin/python")
    subprocess.run([*uv, "venv", "--quiet", "--python", python, str(environment)], check=True)
    install = [*uv, "pip", "install", "--quiet", "--python", interpreter]
    resolution = "lowest-direct" if kind == "lowest" else "highest"
    subprocess.run([*install, "--resolution", resolution, "--editable", "."], check=True, cwd=REPOSITORY)
    subprocess.run([*install, *TOOLS], check=True)  # leaves what is there
    code = "import importlib.metadata as m, json, platform, sys; "
    code += "print(json.dumps({'python': platform.python_version(), **{n: m.version(n) for n in sys.argv[1:]}}))"
    told = subprocess.run([interpreter, "-c", code, *requirements()], check=True, capture_output=True, text=True)
    suite = [interpreter, "-m", "pytest", "-n", "2", "-W", WARNINGS, "-p", "no:cacheprovider", *SUITE]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(suite, cwd=REPOSITORY, env=variables, stdout=subprocess.PIPE, text=True)
    print(done.stdout.partition("warnings summary")[0][-3000:], flush=True)
    return json.loads(told.stdout), re.sub(r" in .*", "", done.stdout.strip().splitlines()[-1])


def table(versions: dict[str, dict[str, str]], results: dict[str, str]) -> str:
    """Markdown: a row for each package, a column for each environment."""
    lines = [f"Tried on {datetime.now(UTC):%d %B %Y}.", "", f"| | {' | '.join(versions)} |", "|---|---|---|"]
    for name in next(iter(versions.values())):
        lines.append(f"| {name} | {' | '.join(found[name] for found in versions.values())} |")
    return "\n".join([*lines, f"| the short suite | {' | '.join(results.values())} |"])


def main() -> int:
    """Prints the table; 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    for kind in ("lowest", "newest"):
        about = f"interpreter for the {kind} versions, a path or what uv finds (the one that runs this)"
        parser.add_argument(f"--{kind}", default=sys.executable, metavar="PYTHON", help=about)
    parser.add_argument("--folder", type=Path, help="for the environments, which are removed if it is not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        versions, results = {}, {}
        for kind, python in (("lowest", options.lowest), ("newest", options.newest)):
            versions[kind], results[kind] = tried(kind, python, options.folder or Path(temporary))
    print(table(versions, results))
    return int(any("failed" in line or "error" in line for line in results.values()))


if __name__ == "__main__":
    sys.exit(main())
