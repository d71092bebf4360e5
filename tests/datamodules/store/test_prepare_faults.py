"""What goes wrong in hours of decoding: dying workers, a full disk, bit rot, files that go. And a cluster."""

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from amr.cli import main
from amr.datamodules import Clips
from amr.datamodules.store import prepare as prepare_module
from amr.datamodules.store.media import Clip, Decoded, DecodeOptions
from amr.datamodules.store.prepare import prepare, verify
from amr.datamodules.store.report import PrepareReport
from amr.datamodules.store.shards import ClipStore, is_sound, read_key, read_rows, write_shard
from amr.utils.errors import UserError
from amr.utils.streams import span
from amr.utils.work import Processes, run_tasks
from tests.datamodules.conftest import write_clip, write_csv
from tests.datamodules.store import deadly

OPTIONS = DecodeOptions(fps=5)


def listing(folder: Path) -> list[Clip]:
    return Clips(folder / "clips.csv").clips


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.glob("shard-*"))}


@pytest.fixture(scope="session")
def whole(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store as one undisturbed process makes it."""
    store = tmp_path_factory.mktemp("whole")
    prepare(listing(clip_folder), store, OPTIONS, root=clip_folder, workers=0, shard_size=4)
    return store


@pytest.fixture
def dangerous(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives worker processes a decoder that kills them at a clip, always or once."""

    def arm(killer: str, once: str = "") -> None:
        monkeypatch.setenv("AMR_TEST_KILLER", killer)
        monkeypatch.setenv("AMR_TEST_ONCE", once)
        monkeypatch.setattr(prepare_module, "run_tasks", lambda _, *args, **kw: run_tasks(deadly.shard, *args, **kw))

    return arm


def test_a_killed_worker_loses_one_shards_work(
    clip_folder: Path, whole: Path, tmp_path: Path, dangerous: Any, capfd: Any
) -> None:
    dangerous("none", once=str(tmp_path / "flag"))
    report = prepare(listing(clip_folder), tmp_path / "s", OPTIONS, root=clip_folder, workers=2, shard_size=4)
    assert (tmp_path / "flag").exists()
    assert report.deaths == 1
    assert contents(tmp_path / "s") == contents(whole)
    assert capfd.readouterr().err.count("its worker process died; trying again") == 1
    assert "died 1 times" in (tmp_path / "s/report.html").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_clip_that_kills_is_left_out(
    clip_folder: Path, whole: Path, tmp_path: Path, dangerous: Any, workers: int
) -> None:
    dangerous("c09")
    store = tmp_path / "s"
    report = prepare(listing(clip_folder), store, OPTIONS, root=clip_folder, workers=workers, shard_size=4)
    assert report.deaths == 2
    assert (report.ok, report.total) == (22, 23)
    assert report.reasons == {("audio", "killed the worker"): 1, ("video", "killed the worker"): 1}
    assert ClipStore(store).problems == {"c09": {"audio": "killed the worker", "video": "killed the worker"}}
    ours, theirs = contents(store), contents(whole)
    assert [name for name in theirs if ours[name] != theirs[name]] == ["shard-00002.arrow"]
    assert ours.keys() == theirs.keys()  # nor is a journal left
    assert prepare(listing(clip_folder), store, OPTIONS, root=clip_folder, workers=0, shard_size=4).decoded == 0


def test_workers_that_never_reach_a_clip_end_it(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "run_tasks", lambda _, *args, **kw: run_tasks(deadly.die, *args, **kw))
    with pytest.raises(UserError, match=r"a worker process was killed .*; run the same command again"):
        prepare(listing(clip_folder), tmp_path, OPTIONS, root=clip_folder, workers=2, shard_size=4)


def test_the_pool_replaces_a_dead_process() -> None:
    pool = Processes(2)
    futures = [pool.submit(deadly.square, i) for i in range(8)]
    assert [f.result() for i, f in enumerate(futures) if i != 3] == [0, 1, 4, 16, 25, 36, 49]
    assert "terminated abruptly" in str(futures[3].exception())
    pool.shutdown()


def test_tasks_are_drawn_as_they_are_needed() -> None:
    drawn = 0

    def tasks() -> Iterator[tuple[int]]:
        nonlocal drawn
        for drawn in range(4, 1000):
            yield (drawn,)

    results = run_tasks(deadly.square, tasks(), workers=1)
    assert next(results) in (16, 25)  # two are handed out, and both may be done when the first is asked for
    assert drawn < 10
    results.close()


def test_whole_prepare_killed_again_and_again(clip_folder: Path, whole: Path, tmp_path: Path) -> None:
    """kill -9 of the whole process group at three places; nothing is decoded twice, or blamed on a clip."""
    code = (
        "import pickle, sys, time\n"
        "import amr.datamodules.store.prepare as p\n"
        "write = p.write_shard\n"
        "p.write_shard = lambda *args: (write(*args), print(args[0].name, flush=True), time.sleep(0.2))\n"
        "clips, store, options, root = pickle.load(sys.stdin.buffer)\n"
        "p.prepare(clips, store, options, root=root, workers=0, shard_size=4)"
    )
    done: list[str] = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin as pipe:
            pickle.dump((listing(clip_folder), tmp_path, OPTIONS, clip_folder), pipe)
        with process.stdout as output:
            done.append(output.readline().decode().strip())
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert done == [f"shard-0000{i}.arrow" for i in range(3)]
    report = prepare(listing(clip_folder), tmp_path, OPTIONS, root=clip_folder, workers=0, shard_size=4)
    assert (report.decoded, report.ok) == (11, 23)
    assert contents(tmp_path) == contents(whole)


# ------------------------------------------------------------------ disk


def test_full_disk_is_told_and_carried_on(
    clip_folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 6:  # two a shard: file and folder
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"the disk is full after 12 of 23 clips; finished shards are kept: make room"):
        prepare(listing(clip_folder), tmp_path, OPTIONS, root=clip_folder, workers=0, shard_size=4)
    assert not list(tmp_path.glob(".*.tmp"))
    monkeypatch.undo()
    report = prepare(listing(clip_folder), tmp_path, OPTIONS, root=clip_folder, workers=0, shard_size=4)
    assert report.decoded == 11
    assert contents(tmp_path) == contents(whole)


def test_full_disk_for_real(clip_folder: Path, tmp_path: Path) -> None:
    """A small tmpfs that worker processes fill."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        clips = [c for i in range(4) for c in (replace(c, id=f"{c.id}-{i}") for c in listing(clip_folder))]
        with pytest.raises(UserError, match=r"the disk is full after [1-9]\d? of 92 clips") as error:
            prepare(clips, disk / "store", OPTIONS, root=clip_folder, workers=2, shard_size=4)
        assert "\n" not in str(error.value)
        shards = sorted((disk / "store").glob("shard-*.arrow"))
        assert shards
        assert all(is_sound(path) for path in shards)
        stamps = {path: path.stat().st_mtime_ns for path in shards}
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert prepare(clips, disk / "store", OPTIONS, root=clip_folder, workers=0, shard_size=4).ok == 92
        assert {path: path.stat().st_mtime_ns for path in shards} == stamps
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_room_is_estimated_before_it_starts(
    clip_folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(prepare_module, "_SMALL", 10)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20_000))
    with pytest.raises(UserError, match=r"about 0.\d MB \(± 0.\d MB\) for 23 clips, 0.0 MB free; name another folder"):
        prepare(listing(clip_folder), tmp_path, OPTIONS, root=clip_folder, workers=0, shard_size=4)
    assert not list(tmp_path.glob("shard-*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**12))
    prepare(listing(clip_folder), tmp_path, OPTIONS, root=clip_folder, workers=0, shard_size=4)
    said = capsys.readouterr().err
    estimate = float(said.partition("about ")[2].split(" MB")[0])
    assert estimate == pytest.approx(sum(map(len, contents(whole).values())) / 1e6, rel=0.25)
    assert "1000.0 GB free" in said


# --------------------------------------------------------------- bit rot


def test_any_flipped_byte_is_detected(whole: Path, tmp_path: Path) -> None:
    original = (whole / "shard-00001.arrow").read_bytes()
    shard = tmp_path / "shard-00001.arrow"
    shard.write_bytes(original)
    assert is_sound(shard)
    for place in [0, len(original) - 1, *np.random.default_rng(0).integers(len(original), size=200).tolist()]:
        damaged = bytearray(original)
        damaged[place] ^= 1 << (place % 8)
        shard.write_bytes(damaged)
        assert not is_sound(shard), place
    shard.write_bytes(original[:-100])
    assert not is_sound(shard)


def test_verify_names_the_shard(clip_folder: Path, whole: Path, tmp_path: Path, capsys: Any) -> None:
    store = tmp_path / "store"
    shutil.copytree(whole, store)
    clips = listing(clip_folder)
    assert verify(clips, store, OPTIONS, shard_size=4) == 6
    assert "6 shards with 23 clips are as they were written" in capsys.readouterr().err
    content = bytearray((store / "shard-00003.arrow").read_bytes())
    content[len(content) // 2] ^= 8
    (store / "shard-00003.arrow").write_bytes(content)
    with pytest.raises(UserError, match=r"1 shard \(shard-00003.arrow\) changed since written .*delete and run"):
        verify(clips, store, OPTIONS, shard_size=4)
    (store / "shard-00003.arrow").unlink()
    with pytest.raises(UserError, match=r"1 shard \(shard-00003.arrow\) missing or of other clips or options"):
        verify(clips, store, OPTIONS, shard_size=4)
    assert prepare(clips, store, OPTIONS, root=clip_folder, workers=0, shard_size=4).decoded == 4
    assert contents(store) == contents(whole)


def test_verify_from_the_command_line(
    clip_folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amr.utils.work._PATIENCE", 1)
    data = {"class_path": "amr.datamodules.Clips", "init_args": {"csv": str(clip_folder / "clips.csv")}}
    data["init_args"] |= {"store": str(tmp_path / "store"), "prepare_workers": 0}  # type: ignore[operator]
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": data}))
    arguments = ["prepare", "--config", str(tmp_path / "data.yaml")]
    assert main([*arguments, "--verify"]) == 2
    assert "1 shard (shard-00000.arrow) missing" in capsys.readouterr().err
    assert main(arguments) == 0
    assert main([*arguments, "--verify"]) == 0
    assert main([*arguments, "--scheduler", "tcp://127.0.0.1:9"]) == 2
    assert "no Dask scheduler answers; give tcp://host:port" in capsys.readouterr().err.splitlines()[-1]
    assert main([*arguments, "--scheduler", str(tmp_path / "none.json")]) == 2


# ---------------------------------------------------------- sources that go


def test_a_store_outlives_its_clips(clip_folder: Path, tmp_path: Path) -> None:
    """Clips deleted after they were decoded stay in the store, even where a neighbour turns up and is added."""
    root = tmp_path / "clips"
    shutil.copytree(clip_folder, root)
    late = root / "media/c05.mp4"
    late.rename(tmp_path / "c05.mp4")
    clips, store = listing(root), tmp_path / "store"
    assert prepare(clips, store, OPTIONS, root=root, workers=0, shard_size=4).ok == 22
    for path in (root / "media").iterdir():
        path.unlink()
    assert prepare(clips, store, OPTIONS, root=root, workers=0, shard_size=4, recheck=True).ok == 22
    before = {id: ClipStore(store).get(id) for id in ("c04", "c06")}
    shutil.move(tmp_path / "c05.mp4", late)
    report = prepare(clips, store, OPTIONS, root=root, workers=0, shard_size=4, recheck=True)
    assert (report.ok, report.decoded) == (23, 4)
    after = ClipStore(store)
    for id, data in before.items():
        np.testing.assert_array_equal(after.get(id)["audio"], data["audio"])
        assert list(map(bytes, after.get(id)["video"])) == list(map(bytes, data["video"]))
    assert is_sound(store / "shard-00001.arrow")


def test_rows_survive_being_rewritten(tmp_path: Path) -> None:
    rows = [
        ("a", Decoded(np.arange(5, dtype=np.int16), [b"x", b""], {}, still=True)),
        ("b", Decoded(None, [b"y"], {"audio": "silent"})),
        ("c", Decoded(problems={"audio": "zero bytes", "video": "zero bytes"})),
    ]
    write_shard(tmp_path / "shard-00000.arrow", "key", rows)
    write_shard(tmp_path / "shard-00001.arrow", "key", list(read_rows(tmp_path / "shard-00000.arrow")))
    assert (tmp_path / "shard-00000.arrow").read_bytes() == (tmp_path / "shard-00001.arrow").read_bytes()
    assert read_key(tmp_path / "shard-00001.arrow") == "key"


# ------------------------------------------------------------------ cluster


def test_a_dask_cluster_writes_the_same_bytes(
    clip_folder: Path, whole: Path, tmp_path: Path, dangerous: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler and two worker processes; at the end these are killed at a clip, replaced, and the clip left out."""
    from distributed import LocalCluster

    monkeypatch.setenv("AMR_TEST_KILLER", "c09")  # the workers' environment is that of their start
    monkeypatch.setenv("AMR_TEST_ONCE", "")
    config = {"class_path": "amr.datamodules.Clips", "init_args": {"csv": str(clip_folder / "clips.csv")}}
    config["init_args"] |= {"decode": {"fps": 5}, "prepare_workers": 2}  # type: ignore[operator]
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": config}))
    arguments = ["prepare", "--config", str(tmp_path / "data.yaml"), "--data.init_args.store"]
    assert main([*arguments, str(tmp_path / "local")]) == 0
    with LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, worker_dashboard_address=None
    ) as cluster:
        assert main([*arguments, str(tmp_path / "dask"), "--scheduler", cluster.scheduler_address]) == 0
        assert contents(tmp_path / "dask") == contents(tmp_path / "local")
        assert len(contents(tmp_path / "local")) == 1
        with cluster.get_client() as client:  # smaller shards, so that both workers have some
            small: Any = {"root": clip_folder, "workers": 0, "shard_size": 4}
            small["executor"] = client.get_executor(pure=False)
            prepare(listing(clip_folder), tmp_path / "small", OPTIONS, **small)
            assert contents(tmp_path / "small") == contents(whole)
            dangerous("c09")
            prepare(listing(clip_folder), tmp_path / "deadly", OPTIONS, **small)
            killed = {"audio": "killed the worker", "video": "killed the worker"}
            assert ClipStore(tmp_path / "deadly").problems == {"c09": killed}
            kept = {name: content for name, content in contents(whole).items() if name != "shard-00002.arrow"}
            assert kept.items() <= contents(tmp_path / "deadly").items()


def test_page_shows_names_as_text(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    write_clip(tmp_path / "good.mp4")
    clips = [Clip(n, "a", s, {"video": Path(f"{n}.mp4")}) for n, s in (("good", "train"), (evil, "test"))]
    report: PrepareReport = prepare(clips, tmp_path / "store", OPTIONS, root=tmp_path, workers=0)
    page = (tmp_path / "store/report.html").read_text()
    assert report.ok == 0  # neither has sound
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "default-src 'none'" in page


def test_span() -> None:
    assert [span(s) for s in (0.4, 89, 91, 5340, 5401, 86400 * 2 + 300)] == [
        "0 s",
        "89 s",
        "2 min",
        "89 min",
        "1 h 30 min",
        "48 h 05 min",
    ]


def test_the_lock_lets_one_at_a_time_work(clip_folder: Path, whole: Path, tmp_path: Path) -> None:
    reports: list[PrepareReport] = []

    def work() -> None:
        reports.append(prepare(listing(clip_folder), tmp_path, OPTIONS, root=clip_folder, workers=0, shard_size=4))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert sorted(report.decoded for report in reports) == [0, 23]
    assert contents(tmp_path) == contents(whole)


def test_csv_of_problems_is_whole(tmp_path: Path) -> None:
    write_csv(tmp_path / "clips.csv", [{"id": "a,b", "file": "x.mp4", "label": "l", "split": "train"}])
    prepare(listing(tmp_path), tmp_path / "s", OPTIONS, root=tmp_path, workers=0)
    assert (tmp_path / "s/report.csv").read_bytes().splitlines()[1] == b'"a,b",audio,file missing'


def test_a_script_without_a_guard_is_told(clip_folder: Path, tmp_path: Path) -> None:
    """Its worker imports it again, which would wait for the store's lock, which its parent holds."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from amr.datamodules.store.media import Clip, DecodeOptions\n"
        "from amr.datamodules.store.prepare import prepare\n"
        f"clips = [Clip(str(i), 'a', 'train', {{'audio': Path('media/c00.mp4')}}) for i in range(2)]\n"
        f"prepare(clips, Path({str(tmp_path / 's')!r}), DecodeOptions(), root=Path({str(clip_folder)!r}), workers=1)\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert str(script) in last
    assert last.endswith("put its commands under if __name__ == '__main__':")


def test_slurm_workers_are_single_threaded() -> None:
    example = Path(__file__).parents[3] / "examples/dask_slurm.py"
    command = [sys.executable, str(example), "--dry-run", "--cores", "4", "--partition", "cpu"]
    script = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "#SBATCH --cpus-per-task=4" in script
    assert "#SBATCH -p cpu" in script
    assert "--nthreads 1" in script
    assert "--nworkers 4" in script
