"""Where output goes must not decide what becomes of a command; and places that are full or missing; the reporter."""

import ast
import ctypes
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import amr
from amr.cli import main
from amr.cli.arguments import lacks_shared_memory
from amr.utils import streams
from amr.utils.streams import Progress, note, plain_warnings, status
from tests.conftest import REPOSITORY
from tests.faults import environment
from tests.processes import warm

TRAIN = [sys.executable, str(REPOSITORY / "train.py")]


def ends(command: list[str], folder: Path, **more: Any) -> tuple[int, str]:
    """Exit status and the last line on stderr."""
    done = subprocess.run(command, cwd=folder, stderr=subprocess.PIPE, **{"env": environment(), **more})
    return done.returncode, done.stderr.decode().strip().rpartition("\n")[2]


@pytest.fixture(scope="module")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    options = ["--runs_dir", str(folder), "--name", "run", "--wandb", "disabled", "--trainer.max_epochs", "1"]
    assert main(["fit", *tiny, *options]) == 0
    return folder / "run"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_stdout_is_named(run: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        status, line = ends([*TRAIN, "compare", str(run)], tmp_path, stdout=full)
    assert status == 2
    assert line == (
        "amr: stdout: No space left on device; it must be writable until the command ends, as a file or /dev/null is"
    )


def test_a_reader_that_leaves_is_named(run: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        status, line = ends([*TRAIN, "compare", str(run)], tmp_path, stdout=writer)
    finally:
        os.close(writer)
    assert (status, line.partition(";")[0]) == (2, "amr: stdout: Broken pipe")


def test_closed_streams_leave_their_numbers_to_no_file(run: Path, tmp_path: Path) -> None:
    """The page would be the first file, with stdout's number."""
    page = tmp_path / "page.html"
    shell = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", shell, "sh", *TRAIN, "compare", str(run), "--out", str(page)], env=environment())
    assert done.returncode == 0
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_an_ascii_locale(run: Path, tmp_path: Path) -> None:
    """Labels of other letters, and Python's own remedy, UTF-8 mode, switched off."""
    import json

    copy = tmp_path / "étude"
    shutil.copytree(run, copy)
    facts = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**facts, "title": "Naïve fusion"}))
    plain = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [*TRAIN, "compare", str(copy), "--out", str(tmp_path / "page.html")]
    done = subprocess.run(command, cwd=tmp_path, env=environment(**plain), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    assert b"Na\\xefve fusion" in done.stdout
    assert "Naïve fusion" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore")
def test_the_configuration_is_ascii(tiny: list[str], tmp_path: Path) -> None:
    """The parser reads it in the locale's encoding."""
    options = [
        "--runs_dir",
        str(tmp_path / "étude"),
        "--name",
        "run",
        "--wandb",
        "disabled",
        "--trainer.max_epochs",
        "0",
    ]
    last = ["--trainer.limit_train_batches", "1", "--trainer.max_epochs", "1"]
    assert main(["fit", *tiny, *options, *last]) == 0
    assert (tmp_path / "étude/run/config.yaml").read_bytes().isascii()


def test_want_of_shared_memory_is_known_by_torchs_words() -> None:
    for text in (
        "unable to allocate shared memory(shm) for file </torch_1_2_3>: Resource temporarily unavailable (11)",
        "DataLoader worker (pid 1) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
    ):
        assert lacks_shared_memory(RuntimeError(text))
        assert not lacks_shared_memory(ValueError(text))
    assert not lacks_shared_memory(OSError(28, "No space left on device"))  # some file's


def _with_small_shared_memory(command: list[str], folder: Path) -> None:
    """For each size in a file system of this process's own: exit status and the last line on stderr, as a file."""
    mount = ["mount", "-t", "tmpfs", "-o"]
    if ctypes.CDLL(None).unshare(CLONE_NEWNS) or subprocess.run(["mount", "--make-rprivate", "/"]).returncode:
        return
    for size in SIZES:
        subprocess.run([*mount, f"size={size}", "tmpfs", "/dev/shm"], check=True)  # noqa: S108  # over the others
        with (folder / "stderr").open("w") as file:
            os.dup2(file.fileno(), 2)
        code = main([*command, "--name", size])
        sys.stderr.flush()
        last = (folder / "stderr").read_text().strip().rpartition("\n")[2]
        (folder / size).write_text(f"{code} {last}")


CLONE_NEWNS = 0x20000
SIZES = ("4k", "64k")  # too small for a queue, and for a batch


def test_a_shared_memory_that_is_too_small(tiny: list[str], tmp_path: Path) -> None:
    options = ["--runs_dir", str(tmp_path), "--wandb", "disabled", "--data.init_args.num_workers", "1"]
    process = warm().Process(target=_with_small_shared_memory, args=(["fit", *tiny, *options], tmp_path))
    process.start()
    process.join()
    if process.exitcode == 0 and not (tmp_path / SIZES[0]).exists():
        pytest.skip("a file system may not be mounted here")
    for size in SIZES:
        said = (tmp_path / size).read_text()
        assert said.partition(";")[0] == "2 amr: /dev/shm: the loader's processes need more room there"


def prints(source: str) -> list[int]:
    """The lines at which a source calls `print`."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_library_code_prints_through_the_reporter_alone() -> None:
    package = REPOSITORY / "amr"
    files = [path for path in package.rglob("*.py") if not path.is_relative_to(package / "cli")]
    printing = {path.relative_to(package).as_posix() for path in files if prints(path.read_text(encoding="utf-8"))}
    assert printing == {"utils/streams.py"}


def test_progress_within_a_piece(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every half minute, not for every part."""
    monkeypatch.setenv("AMR_PROGRESS", "1")
    done = Progress("clips", 3, "clips")
    done.at("occlusion of video")
    done.printed -= 31
    done.at("lime of video")
    done.at("kernel_shap of video")
    assert capsys.readouterr().err.splitlines() == ["clips: 0/3 clips, at lime of video"]


def test_progress_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def lines() -> list[str]:
        done = Progress("encode test", 2, "clips")
        done.advance(2)
        status("half way")
        note("skipped 1 of 3 clips")
        printed = capsys.readouterr()
        assert not printed.out
        return printed.err.splitlines()

    monkeypatch.delenv("AMR_PROGRESS", raising=False)
    assert [line.split(",")[0] for line in lines()] == ["encode test: 2/2 clips", "half way", "skipped 1 of 3 clips"]
    monkeypatch.setenv("AMR_PROGRESS", "0")
    assert lines() == ["skipped 1 of 3 clips"]
    amr.progress(True)
    assert len(lines()) == 3
    amr.progress(False)
    assert lines() == ["skipped 1 of 3 clips"]
    monkeypatch.delenv("AMR_PROGRESS")  # so that monkeypatch puts back what was there


def test_a_warning_of_amrs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    plain_warnings()
    own = str(Path(streams.__file__).parents[1] / "regularizers/harm.py")
    assert warnings.formatwarning(UserWarning("too\nmuch"), UserWarning, own, 3) == "amr: too much\n"
    key = UserWarning("model.amr: is an old spelling")
    assert warnings.formatwarning(key, UserWarning, "parser.py", 3) == "amr: model.amr: is an old spelling\n"
    assert "parser.py:3: UserWarning: x" in warnings.formatwarning(UserWarning("x"), UserWarning, "parser.py", 3)
    assert f"{own}:3: " in warnings.formatwarning(
        DeprecationWarning("x"), DeprecationWarning, own, 3
    )  # a fault of ours
