"""Files and folders that several processes share."""

import multiprocessing
import os
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from amr.utils import files
from amr.utils.errors import UserError
from amr.utils.files import locked, sweep, write_text
from tests.processes import dead_process


def _hold(folder: Path, held: Event, done: Event) -> None:
    with locked(folder, "choose another --name"):
        held.set()
        done.wait(60)


def _outlive(folder: Path, held: Event) -> None:
    with locked(folder, "choose another --name"):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        held.set()
        time.sleep(60)


def test_a_second_process_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held, done))
    process.start()
    assert held.wait(60)
    said = f"in use by process {process.pid} on .*or choose another --name"
    with pytest.raises(UserError, match=said), locked(tmp_path, "choose another --name"):
        pass
    done.set()
    process.join()
    with locked(tmp_path, "choose another --name"):  # and is let in afterwards
        pass


def test_a_killed_process_frees_the_folder_although_its_child_lives(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=_outlive, args=(tmp_path, held))
    process.start()
    assert held.wait(60)
    process.kill()
    process.join()
    with locked(tmp_path, "choose another --name"):
        pass


def test_a_process_is_let_in_again_and_an_empty_folder_goes(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with locked(folder, "choose another --name"):
        with locked(folder, "choose another --name"):
            assert (folder / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        assert (folder / ".lock").read_text() != ""  # still held
    assert not folder.exists()
    with locked(folder, "choose another --name"):
        (folder / "file").touch()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "file"]


def test_only_what_dead_processes_of_this_machine_left_is_swept(tmp_path: Path) -> None:
    here, dead, alive = files._host(), dead_process(), os.getpid()
    names = [f".a.{here}.{dead}.tmp", f".a.{here}.{alive}.tmp", f".a.elsewhere.{dead}.tmp", ".a.tmp", "a.tmp"]
    for folder in (tmp_path, tmp_path / "below"):
        folder.mkdir(exist_ok=True)
        for name in [*names, f".b.{here}.{dead}.tmp"]:
            (folder / name).touch()
    sweep(tmp_path, "a")
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:], f".b.{here}.{dead}.tmp", "below"}
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:], "below"}
    assert {path.name for path in (tmp_path / "below").iterdir()} == {*names[1:]}


def test_a_file_that_is_being_written_says_by_whom(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "a"):
        assert [path.name for path in tmp_path.iterdir()] == [f".a.{files._host()}.{os.getpid()}.tmp"]
    write_text(tmp_path / "a", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
