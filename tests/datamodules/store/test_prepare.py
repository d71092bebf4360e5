import csv
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from amr.datamodules import Clips
from amr.datamodules.store.media import KEPT, Clip, Decoded, DecodeOptions, decode
from amr.datamodules.store.prepare import prepare
from amr.datamodules.store.report import PrepareReport, count_reasons
from amr.datamodules.store.shards import ClipStore, read_problems, read_rows, write_shard
from amr.utils.errors import UserError
from amr.utils.work import run_tasks
from tests.datamodules.conftest import write_clip

OPTIONS = DecodeOptions(fps=5)


def listing(folder: Path) -> list[Clip]:
    return Clips(folder / "clips.csv").clips


def run(root: Path, store: Path, clips: list[Clip] | None = None, options: DecodeOptions = OPTIONS) -> PrepareReport:
    return prepare(clips or listing(root), store, options, root=root, workers=0, shard_size=4)


def stamps(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(store.glob("*.arrow"))}


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.glob("*.arrow"))}


def test_store_returns_what_was_decoded(clip_folder: Path, tmp_path: Path) -> None:
    report = run(clip_folder, tmp_path / "store")
    assert (report.total, report.ok, report.decoded) == (23, 23, 23)
    store = pickle.loads(pickle.dumps(ClipStore(tmp_path / "store")))  # noqa: S301  # as a loader's worker gets it
    assert len(store) == 23
    for clip in listing(clip_folder)[::5]:
        decoded, data = decode(clip, clip_folder, OPTIONS), store.get(clip.id)
        np.testing.assert_array_equal(data["audio"], decoded.waveform)
        assert [bytes(frame) for frame in data["video"]] == decoded.frames


def test_what_was_lost_of_a_kept_clip_is_stored(tmp_path: Path) -> None:
    wave, note = np.ones(4, np.int16), f"{KEPT}: 0.04 of 4.00 s lost"
    clips = [
        ("a", Decoded(wave, [b"x"], notes={"audio": note})),
        ("b", Decoded(wave, [b"x"], still=True, notes={"video": note})),
        ("c", Decoded(wave, None, {"video": "no frames"}, notes={"audio": note})),
        ("d", Decoded(wave, [b"x"])),
    ]
    write_shard(tmp_path / "shard-00000.arrow", "key", clips)
    for (_, before), (_, after) in zip(clips, read_rows(tmp_path / "shard-00000.arrow"), strict=True):
        assert (before.problems, before.still, before.notes) == (after.problems, after.still, after.notes)
    problems = ClipStore(tmp_path).problems
    assert problems["b"] == {"video": f"still frames: {note}"}
    assert count_reasons(problems.values()) == {
        ("audio", KEPT): 2,
        ("video", "still frames"): 1,
        ("video", "no frames"): 1,
    }


def test_rerun_decodes_nothing(clip_folder: Path, tmp_path: Path) -> None:
    run(clip_folder, tmp_path)
    before = stamps(tmp_path)
    assert len(before) == 6
    report = run(clip_folder, tmp_path, listing(clip_folder)[::-1])  # nor does another order of the listing
    assert (report.total, report.ok, report.decoded) == (23, 23, 0)
    assert stamps(tmp_path) == before


def test_labels_and_splits_are_not_stored(clip_folder: Path, tmp_path: Path) -> None:
    run(clip_folder, tmp_path)
    other = [Clip(c.id, "other", "test", c.files) for c in listing(clip_folder)]
    assert run(clip_folder, tmp_path, other).decoded == 0


def test_only_what_changed_is_decoded(clip_folder: Path, tmp_path: Path) -> None:
    run(clip_folder, tmp_path)
    before = stamps(tmp_path)
    clips = listing(clip_folder)
    clips[5] = Clip(clips[5].id, "a", "train", clips[5].files, 0.1, 0.3)
    assert run(clip_folder, tmp_path, clips).decoded == 4
    assert [name for name, stamp in stamps(tmp_path).items() if stamp != before[name]] == ["shard-00001.arrow"]
    assert run(clip_folder, tmp_path, clips[:8]).decoded == 0
    assert len(stamps(tmp_path)) == 2  # shards that no clip needs are gone
    assert run(clip_folder, tmp_path, clips[:8], DecodeOptions(fps=4)).decoded == 8


def test_options_name_another_store(clip_folder: Path) -> None:
    stores = [Clips(clip_folder / "clips.csv", decode=DecodeOptions(fps=f)).store for f in (None, 4, 5, 5)]
    assert stores[2] == stores[3]
    assert len(set(stores)) == 3
    assert stores[0].parent == Path("stores")


def test_problems_are_counted_and_reported(tmp_path: Path) -> None:
    write_clip(tmp_path / "good.mp4")
    write_clip(tmp_path / "mute.mp4", audio=False)
    (tmp_path / "empty.mp4").touch()
    names = ("good", "mute", "empty", "gone")
    clips = [Clip(n, "a", "train", {m: Path(f"{n}.mp4") for m in ("audio", "video")}) for n in names]
    store = tmp_path / "store"
    report = run(tmp_path, store, clips)
    assert (report.total, report.ok) == (4, 1)
    assert report.reasons[("audio", "no audio stream")] == 1
    assert "1 of 4 clips are sound" in str(report)
    assert "audio zero bytes: 1" in str(report)
    rows = list(csv.reader((store / "report.csv").read_text().splitlines()))
    assert rows[0] == ["id", "modality", "reason"]
    assert ["mute", "audio", "no audio stream"] in rows
    assert len(rows) == 1 + 5
    assert ClipStore(store).get("mute").keys() == {"video"}
    write_clip(tmp_path / "gone.mp4")
    assert run(tmp_path, store, clips).decoded == 0
    report = prepare(clips, store, OPTIONS, root=tmp_path, workers=0, shard_size=4, recheck=True)
    assert (report.ok, report.decoded) == (2, 4)


def test_any_executor_and_a_process_pool_yield_the_same(clip_folder: Path, tmp_path: Path) -> None:
    run(clip_folder, tmp_path / "here")
    clips = listing(clip_folder)
    with ThreadPoolExecutor(3) as pool:
        prepare(clips, tmp_path / "threads", OPTIONS, root=clip_folder, workers=0, shard_size=4, executor=pool)
    prepare(clips, tmp_path / "processes", OPTIONS, root=clip_folder, workers=2, shard_size=4)
    assert contents(tmp_path / "here") == contents(tmp_path / "threads") == contents(tmp_path / "processes")


def test_killed_run_is_carried_on(clip_folder: Path, tmp_path: Path) -> None:
    run(clip_folder, tmp_path / "whole")
    store = tmp_path / "killed"
    code = (
        "import pickle, sys, time\n"
        "import amr.datamodules.store.prepare as p\n"
        "write = p.write_shard\n"
        "p.write_shard = lambda *args: (write(*args), time.sleep(0.3))  # leaves time to be killed\n"
        "clips, store, options, root = pickle.load(sys.stdin.buffer)\n"
        "p.prepare(clips, store, options, root=root, workers=0, shard_size=4)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    with process.stdin as pipe:
        pickle.dump((listing(clip_folder), store, OPTIONS, clip_folder), pipe)
    deadline = time.monotonic() + 60
    while len(stamps(store)) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = stamps(store)
    assert 2 <= len(before) < 6
    (store / ".shard-00005.arrow.1.tmp").write_bytes(b"half")
    assert run(clip_folder, store).decoded == 23 - 4 * len(before)
    assert {name: stamps(store)[name] for name in before} == before
    assert contents(store) == contents(tmp_path / "whole")
    assert not [path for path in store.iterdir() if path.suffix in (".tmp", ".journal")]


def test_ctrl_c_leaves_a_store_that_resumes(tmp_path: Path) -> None:
    """A terminal's, which the workers get too: one line, status 130, no traceback, no half file."""
    write_clip(tmp_path / "a.mp4", seconds=0.4)
    rows = "".join(f"{i:03d},a,train,a.mp4\n" for i in range(250))
    (tmp_path / "clips.csv").write_text(f"id,label,split,file\n{rows}")
    arguments = ["--data", "amr.datamodules.Clips", "--data.csv", str(tmp_path / "clips.csv")]
    command = [sys.executable, "-c", "import sys, amr.cli; sys.exit(amr.cli.main())", "prepare", *arguments]
    store = tmp_path / "store"
    command += ["--data.store", str(store), "--data.prepare_workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(store.glob("shard-*.arrow")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "amr: prepare was interrupted; the same command resumes"
    assert "Traceback" not in said
    assert "KeyboardInterrupt" not in said
    assert not list(store.glob(".shard-*"))
    before = stamps(store)
    assert 0 < len(before) < 4
    report = Clips(tmp_path / "clips.csv", store=store, prepare_workers=0).prepare()
    assert (report.ok, report.decoded) == (250, 250 - sum(len(read_problems(store / name)) for name in before))
    assert {name: stamps(store)[name] for name in before} == before


def test_dead_worker_is_explained() -> None:
    with pytest.raises(UserError, match=r"worker process was killed.*run the same command again"):
        list(run_tasks(os._exit, [(1,), (1,)], workers=2))


def test_workers_do_not_outlive_a_killed_run() -> None:
    code = (
        "import os, time\n"
        "from amr.utils.work import run_tasks\n"
        "if __name__ == '__main__':\n"
        "    for pid in run_tasks(os.getpid, [()] * 2, workers=2): print(pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as pipe:
        worker = int(pipe.readline())
        process.kill()
        process.wait()
    deadline = time.monotonic() + 30
    while _runs(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_broken_shard_is_named(clip_folder: Path, tmp_path: Path) -> None:
    run(clip_folder, tmp_path)
    shard = tmp_path / "shard-00002.arrow"
    shard.write_bytes(shard.read_bytes()[:500])
    with pytest.raises(UserError, match=r"shard-00002.arrow: unreadable shard.*run prepare again"):
        ClipStore(tmp_path)
    assert run(clip_folder, tmp_path).decoded == 4
    assert len(ClipStore(tmp_path)) == 23


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prepared clips here; run prepare first"):
        ClipStore(tmp_path)


def test_store_that_is_a_file(clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(UserError, match="cannot write the store"):
        run(clip_folder, tmp_path / "store")


def test_other_peoples_files_in_the_store_stay(clip_folder: Path, tmp_path: Path) -> None:
    names = ("shard-00000.tar", "shard-00007.arrow", "shard-x.arrow")
    for name in names:
        (tmp_path / name).write_text("not ours")
    (tmp_path / "shard-dir").mkdir()
    Clips(clip_folder / "clips.csv", store=tmp_path, prepare_workers=0).prepare()
    assert all((tmp_path / name).read_text() == "not ours" for name in names)
    assert (tmp_path / "shard-dir").is_dir()
