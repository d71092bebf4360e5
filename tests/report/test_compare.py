"""`amr compare` on made-up run folders whose numbers are known."""

from __future__ import annotations

import argparse
import base64
import hashlib
import inspect
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from amr.cli import compare as command
from amr.regularizers import AMR
from amr.report import (
    choose_source,
    compare,
    find_runs,
    incomplete,
    plot_curves,
    plot_summary,
    read_run,
    summarise,
    table_markdown,
)
from amr.report.page import SCRIPT
from amr.report.parts.settings import AMR_DEFAULTS, differing_settings, settings_cells
from amr.utils import files
from amr.utils.errors import UserError
from tests.processes import dead_process
from tests.report.runs import EVIL, Reader, epoch, page_of, results, table_of, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three seeds of two methods and a unimodal run, none tested."""
    for seed, (acc, audio) in enumerate([(0.80, 0.7), (0.83, 0.66), (0.85, 0.69)]):
        write_run(tmp_path / f"naive-{seed}", [*epoch(0, 0.5), *epoch(1, acc, audio)], seed=seed)
        write_run(tmp_path / f"amr-{seed}", [*epoch(0, acc - 0.01, 0.5), *epoch(1, 0.6)], seed=seed, method="amr")
    write_run(tmp_path / "audio-0", epoch(0, 0.7, 1.0), method="audio", modalities=["audio"])
    return tmp_path


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of words: drawing is what takes the time."""
    monkeypatch.setattr("amr.report.page.plot_curves", lambda *_: [])


# ---- reading


def test_sparse_rows_become_epochs(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r", [*epoch(0, 0.4), *epoch(1, 0.6, 0.7)]))
    assert run.epochs[1] == {
        "val/acc": 0.6,
        "val/mAP": pytest.approx(0.55),
        "val/loss": 0.4,
        "val/dominance/audio": 0.7,
        "val/dominance/video": pytest.approx(0.3),
        "train/loss": 0.5,
    }
    assert (run.method, run.seed, run.modalities, run.missing) == ("naive", 0, ("audio", "video"), None)


def test_best_epoch_is_the_first_with_the_highest_accuracy(tmp_path: Path) -> None:
    rows = [*epoch(0, 0.4), *epoch(1, 0.6, 0.1), *epoch(2, 0.6, 0.9), *epoch(3, float("nan"))]
    run = read_run(write_run(tmp_path / "r", rows))
    assert run.best_epoch == 1
    assert run.numbers("val")["dominance/audio"] == 0.1


def test_a_resumed_run_replaces_what_was_abandoned(tmp_path: Path) -> None:
    first = [*epoch(0, 0.1), *epoch(1, 0.2), *epoch(2, 0.9), *epoch(3, 0.95), *results(0.99)]
    run = read_run(write_run(tmp_path / "r", first, [*epoch(2, 0.3), (3, {"lr-SGD": 0.1})]))
    assert {e: values["val/acc"] for e, values in run.epochs.items()} == {0: 0.1, 1: 0.2, 2: 0.3}
    assert run.test == {}, "those weights are gone"


def test_versions_are_ordered_by_number(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r", *[epoch(0, n / 100) for n in range(11)]))
    assert run.epochs[0]["val/acc"] == 0.10


def test_validating_or_testing_later_does_not_touch_the_epochs(tmp_path: Path) -> None:
    fit = [*epoch(0, 0.1), *epoch(1, 0.2)]
    run = read_run(write_run(tmp_path / "r", fit, [(0, {"val/acc": 0.9})], results(0.15)))
    assert {e: values["val/acc"] for e, values in run.epochs.items()} == {0: 0.1, 1: 0.2}
    assert run.test["test/acc"] == 0.15


def test_settings_are_flat_and_without_the_run_itself(tmp_path: Path) -> None:
    config = {
        "model": {
            "amr": {"weight": 0.5, "ratio": [1, 2]},
            "ogm": None,
            "umt": {"init_args": {"teachers": {"audio": "runs/audio-s3/checkpoints/best.ckpt"}}},
        },
        "data": {"root": "clips/r"},
        "trainer": {"default_root_dir": "runs/r", "callbacks": [{"name": "r"}]},
        "ckpt_path": "runs/r/checkpoints/last.ckpt",
    }
    run = read_run(write_run(tmp_path / "r", epoch(0, 0.5), config=config, seed=3))
    assert run.settings == {
        "model.amr.weight": "0.5",
        "model.amr.ratio": "[1, 2]",
        "data.root": "clips/<run>",
        "trainer.default_root_dir": "runs/<run>",
        "trainer.callbacks.0.name": "<run>",
    }


def test_paths_may_be_runs_folders_and_globs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "notes").mkdir()
    assert len(find_runs([folder])) == 7
    assert len(find_runs([folder, folder / "amr-0", f"{folder}/amr-*"])) == 7
    assert [path.name for path in find_runs([f"{folder}/amr-*"])] == ["amr-0", "amr-1", "amr-2"]
    monkeypatch.chdir(folder)
    assert [str(path) for path in find_runs(["naive-?", "naive-1/"])] == ["naive-0", "naive-1", "naive-2"]


@pytest.mark.parametrize("name", ["absent", "", "absent-*", "file"])
def test_a_path_without_runs_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"no run here; must be .*run\.json") as error:
        compare([tmp_path / name], tmp_path / "report.html")
    assert str(tmp_path / name) in str(error.value)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("run.json", "{", "run.json: not JSON"),
        ("run.json", "[]", "must be one JSON object"),
        ("run.json", '{"method": "x", "dataset": "d", "seed": "0"}', "seed='0': must be of type int"),
        ("run.json", '{"method": "x", "dataset": "d", "modalities": "audio"}', "modalities='audio': must be a list"),
        ("run.json", '{"dataset": "d"}', "method=None: must be of type str"),
        (
            "run.json",
            '{"method": "x", "dataset": "d", "title": 1, "modalities": ["a"]}',
            "title=1: must be of type str | None",
        ),
        ("run.json", "[" * 100000, "run.json: not JSON"),
        ("config.yaml", "a: &x [{b: *x}]", "in a circle"),
        ("config.yaml", "a: [", "config.yaml: not YAML"),
        ("metrics/version_0/metrics.csv", "step\n1\n", "no column 'epoch'"),
        ("metrics/version_0/metrics.csv", "epoch,val/acc\n0,x\n", "line 2, column val/acc='x': must be a number"),
        ("metrics/version_0/metrics.csv", "epoch,val/acc\nnan,1\n", "line 2, column epoch"),
        ("per_class.csv", "class,acc\na,1\n", "no column 'split'"),
        ("per_class.csv", "split,class,acc\nval,people, marching,1\n", "line 2: more cells than the header"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, file: str, text: str, message: str) -> None:
    run = write_run(tmp_path / "r", epoch(0, 0.5))
    (run / file).write_text(text)
    with pytest.raises(UserError) as error:
        read_run(run)
    assert message in str(error.value)
    assert str(run / file) in str(error.value)
    assert "\n" not in str(error.value)


# ---- table


def test_rows_are_means_over_seeds(folder: Path) -> None:
    rows = summarise(read_run(path) for path in find_runs([folder]))
    assert [(row.method, row.seeds) for row in rows] == [("audio", (0,)), ("naive", (0, 1, 2)), ("amr", (0, 1, 2))]
    unimodal, naive, _ = rows
    accuracy, audio = np.array([0.80, 0.83, 0.85]), np.array([0.7, 0.66, 0.69])
    assert naive.accuracy is not None
    assert naive.mean_ap is not None
    assert naive.accuracy.mean == pytest.approx(accuracy.mean())
    assert naive.accuracy.sd == pytest.approx(accuracy.std(ddof=1))
    assert naive.mean_ap.mean == pytest.approx((accuracy - 0.05).mean())
    assert naive.dominance["audio"].mean == pytest.approx(audio.mean())
    assert naive.dominance["video"].sd == pytest.approx(audio.std(ddof=1))
    assert unimodal.dominance == {}
    lines = [re.sub(r" +\|", " |", line) for line in table_markdown(rows).splitlines()]
    dash, change = "\N{EN DASH}", "-1.0 [-1.0, -1.0]"
    names = "Method | mAP | Accuracy | audio dominance | video dominance | mAP vs naive | Accuracy vs naive | Seeds"
    assert [re.sub(r"\| +", "| ", line) for line in [lines[0], *lines[2:]]] == [
        f"| {names} |",
        f"| audio | 65.0 | 70.0 | {dash} | {dash} | {dash} | {dash} | 0 (n=1) |",
        f"| naive | 77.7 ± 2.5 | 82.7 ± 2.5 | 68.3 ± 2.1 | 31.7 ± 2.1 | {dash} | {dash} | 0, 1, 2 (n=3) |",
        f"| amr | 76.7 ± 2.5 | 81.7 ± 2.5 | 50.0 ± 0.0 | 50.0 ± 0.0 | {change} | {change} | 0, 1, 2 (n=3) |",
    ]
    assert len({len(line) for line in table_markdown(rows).splitlines()}) == 1, "columns line up"


@pytest.mark.usefixtures("without_plots")
def test_test_results_are_used_only_if_every_run_has_them(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [*epoch(0, 0.9), *results(0.6)])
    b = write_run(tmp_path / "b", epoch(0, 0.8), method="amr")
    write_run(tmp_path / "c", method="umt")  # has no numbers, so no say
    text = compare([tmp_path], tmp_path / "report.html")
    assert {method: cells[2] for method, cells in table_of(text).items()} == {"naive": "90.0", "amr": "80.0"}
    assert "validation split" in text
    assert "highest val/acc" in text
    assert "1 of 2 runs have test results" in text

    write_run(tmp_path / "d", epoch(0, 0.8), results(0.55, 0.3), method="agm")
    (b / "metrics/version_0/metrics.csv").write_text("epoch,val/acc,test/acc,test/mAP\n0,0.8,,\n0,,0.5,0.4\n")
    assert choose_source([read_run(a), read_run(b)]) == "test"
    text = compare([tmp_path], tmp_path / "report.html")
    table = table_of(text)
    assert {method: cells[2] for method, cells in table.items()} == {"naive": "60.0", "amr": "50.0", "agm": "55.0"}
    assert table["agm"][3:5] == ["30.0", "70.0"]
    assert "from the test split" in text
    assert "highest val/acc" not in text


@pytest.mark.usefixtures("without_plots")
def test_incomplete_runs_are_named_with_the_reason(tmp_path: Path) -> None:
    write_run(tmp_path / "done", epoch(0, 0.9))
    write_run(tmp_path / "new", seed=1)
    write_run(tmp_path / "begun", [(0, {"train/loss": 3.0})], seed=2)
    write_run(tmp_path / "tested", results(0.5), seed=3)
    text = compare([tmp_path], tmp_path / "report.html")
    reasons = {run.path.name: reason for run, reason in incomplete(map(read_run, find_runs([tmp_path])))}
    assert reasons == {
        "new": "no metrics file yet",
        "begun": "no validated epoch yet",
        "tested": "no validated epoch yet",
    }
    page = Reader((tmp_path / "report.html").read_text()).text
    for name, reason in reasons.items():
        assert f"{tmp_path / name}: {reason}." in text
        assert f"{tmp_path / name}: {reason}." in page
    assert table_of(text)["naive"][-1] == "0 (n=1)"


def test_nothing_finished_yet_is_still_a_page(tmp_path: Path) -> None:
    write_run(tmp_path / "new")
    text = compare([tmp_path / "new"], tmp_path / "report.html", tmp_path / "p.png")
    assert text.startswith("No run has a validated epoch yet.")
    assert "no metrics file yet" in Reader((tmp_path / "report.html").read_text()).text


@pytest.mark.usefixtures("without_plots")
def test_what_would_mislead_is_said(tmp_path: Path) -> None:
    def config(weight: float) -> dict[str, Any]:
        return {"model": {"amr": {"weight": weight}}, "trainer": {"max_epochs": 3}}

    write_run(tmp_path / "a", epoch(0, 0.5), method="amr", config=config(0.5))
    write_run(tmp_path / "b", [*epoch(0, 0.6), *epoch(2, 0.7)], method="amr", config=config(1.0), labels=["b", "a"])
    text = compare([tmp_path], tmp_path / "report.html")
    assert "amr: seed 0 is there more than once" in text
    assert "amr: its runs differ in more than the seed: model.amr.weight." in text
    assert "class lists differ" in text
    assert f"{tmp_path / 'a'}: 1 of 3 epochs so far" in text
    assert f"{tmp_path / 'b'}: " not in text


@pytest.mark.usefixtures("without_plots")
def test_amrs_settings_are_one_line_per_value(tmp_path: Path) -> None:
    def config(weight: float, **model: Any) -> dict[str, Any]:
        amr = {"class_path": "amr.AMR", "init_args": {"weight": weight, "lr": 0.1, "ratio": {"audio": 1, "video": 2}}}
        return {"model": {"amr": amr, "task": "classes", **model}}

    write_run(tmp_path / "naive", epoch(0, 0.5), config={"model": {"task": "classes"}})
    write_run(tmp_path / "amr", epoch(0, 0.5), method="amr", config=config(0.5))
    write_run(tmp_path / "umt", epoch(0, 0.5), method="umt+amr", config=config(2.0, umt={"weight": 3}))
    page = page_of([tmp_path / name for name in ("naive", "amr", "umt")], tmp_path / "report.html")
    settings = page.partition("What differs between the runs</h2>")[2].partition("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in settings.split("<tr>")[2:]]
    plain = [[re.sub(r"<[^>]+>", "", cell) for cell in row] for row in rows]
    ratio = "ratio.audio=1, ratio.video=2"
    assert plain == [
        ["model.amr", f"{ratio}, weight=0.5, lr=0.1", "amr"],
        ["model.amr", f"{ratio}, weight=2.0, lr=0.1", "umt+amr"],
        ["model.umt.weight", "3", "umt+amr"],
    ]


def test_amrs_defaults_are_left_out(tmp_path: Path) -> None:
    """The page's list of them is that of the class, which it does not import."""
    given = inspect.signature(AMR).parameters
    defaults = {name: each.default for name, each in given.items() if each.default is not None}
    assert {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in defaults.items()
        if name not in ("weight", "lr")
    } == AMR_DEFAULTS
    others: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {"level": "sample", "guard": True},
        "c": {"class_path": "mine.AMR"},
    }
    for name, changes in others.items():
        amr = {"class_path": "amr.AMR", **defaults, **changes}
        write_run(tmp_path / name, epoch(0, 0.5), method=f"{name}+amr", config={"model": {"amr": amr}})
    caption, body = settings_cells(summarise([read_run(tmp_path / name) for name in "abc"]))
    assert "what is not AMR's default" in caption
    shown = {line[2]: line[1] for line in body if line[0] == "model.amr"}
    assert shown["a+amr"] == "ratio=equal, weight=1.0, lr=0.1"
    assert shown["b+amr"] == "ratio=equal, weight=1.0, lr=0.1, guard=true, level=sample"
    assert "class_path=mine.AMR" in shown["c+amr"]
    assert "momentum=0.0" in shown["c+amr"]  # another class has defaults of its own


def test_a_fixed_seed_is_no_difference(tmp_path: Path) -> None:
    """`robustness.seed: 0` of runs with seeds 0, 1 and 2; a seed that does change is one."""
    for seed in range(3):
        config = {"robustness": {"seed": 0}, "data": {"split_seed": 7 * seed}}
        write_run(tmp_path / str(seed), epoch(0, 0.5), seed=seed, config=config)
    assert differing_settings([read_run(tmp_path / str(seed)) for seed in range(3)]) == ["data.split_seed"]


def test_three_modalities_two_datasets_and_a_gap(tmp_path: Path) -> None:
    three = {"val/dominance/text": 0.2, "val/acc": 0.5}
    write_run(tmp_path / "a", epoch(0, 0.5, 0.5, **three), modalities=["audio", "video", "text"], dataset="mosi")
    gap = [(0, {"val/acc": 0.7, "train/loss": 1.0})]
    write_run(tmp_path / "b", gap, seed=1, fusion="FiLM")
    write_run(tmp_path / "c", epoch(0, 0.9), seed=2, fusion="FiLM")
    write_run(tmp_path / "d", epoch(0, 0.9), seed=2, fusion=None)
    runs = [read_run(path) for path in find_runs([tmp_path])]
    lines = [re.split(r" *\| *", line)[1:-1] for line in table_markdown(summarise(runs)).splitlines()]
    head = "Dataset,Fusion,Method,mAP,Accuracy,audio dominance,video dominance,text dominance,Seeds"
    dash = "\N{EN DASH}"
    assert lines[0] == head.split(",")
    assert lines[2:] == [
        ["grid-letters", "FiLM", "naive", "85.0 (n=1)", "80.0 ± 14.1", "50.0 (n=1)", "50.0 (n=1)", dash, "1, 2 (n=2)"],
        ["grid-letters", dash, "naive", "85.0", "90.0", "50.0", "50.0", dash, "2 (n=1)"],
        ["mosi", "Concat", "naive", "45.0", "50.0", "50.0", "50.0", "20.0", "0 (n=1)"],
    ]
    titles = [(plot.dataset, plot.title) for plot in plot_curves(runs)]
    assert [t for d, t in titles if d == "mosi" and t.startswith("Dom")] == [
        f"Dominance of {m}, validation (%)" for m in ("audio", "video", "text")
    ]
    assert [t for d, t in titles if d != "mosi" and t.startswith("Dom")] == ["Dominance of audio, validation (%)"]
    page = page_of([run.path for run in runs], tmp_path / "report.html")
    assert "Training on mosi" in Reader(page).text


def test_markdown_cells_cannot_break_the_table(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r", epoch(0, 0.5), method="a|b\n<i>\x1b[31m"))
    line = table_markdown(summarise([run])).splitlines()[2]
    assert "a\\|b\N{REPLACEMENT CHARACTER}\\<i>" in line
    assert "\x1b" not in line


# ---- figures


def test_curves_are_means_with_the_seeds_range(folder: Path) -> None:
    write_run(folder / "naive-3", [*epoch(0, 0.9), *epoch(1, 0.9), *epoch(2, 0.99)], seed=3)
    plots = {plot.title: plot for plot in plot_curves(read_run(path) for path in find_runs([folder]))}
    axes = plots["Validation accuracy (%)"].figure.axes[0]
    naive = axes.get_lines()[1]
    assert np.asarray(naive.get_xdata()).tolist() == [0, 1], "only the epochs that all seeds have"
    expected = [100 * np.mean([0.5, 0.5, 0.5, 0.9]), 100 * np.mean([0.80, 0.83, 0.85, 0.9])]
    np.testing.assert_allclose(np.asarray(naive.get_ydata()), expected)
    band = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose((np.min(band, axis=0)[1], np.max(band, axis=0)[1]), (50, 90))
    assert len(axes.get_lines()) == 3
    assert "naive 84.5" in plots["Validation accuracy (%)"].alt
    shares = plots["Dominance of audio, validation (%)"].figure.axes[0].get_lines()
    assert len(shares) == 3, "naive, amr and the line of equal shares; no unimodal run"
    np.testing.assert_allclose(np.asarray(shares[-1].get_ydata()), 50)
    assert "amr 50.0, " in plots["Accuracy by dominance of audio, validation"].alt


def test_lines_differ_in_more_than_colour(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / f"m{n}", epoch(0, 0.5), method=f"m{n}")) for n in range(8)]
    lines = plot_curves(runs)[0].figure.axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 8
    assert len({line.get_marker() for line in lines}) == 8


def test_matplotlib_is_left_as_it_was(folder: Path, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    compare([folder], tmp_path / "report.html", tmp_path / "p.png")
    assert dict(matplotlib.rcParams) == before
    slow = "('matplotlib', 'torch', 'numpy', 'scipy', 'pyarrow', 'wandb', 'google.protobuf')"
    code = f"import sys, amr.report; sys.exit(any(m in sys.modules for m in {slow}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_picture_is_a_png_of_the_size_that_readmes_want(folder: Path, tmp_path: Path) -> None:
    compare([folder], tmp_path / "report.html", tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (1200, 450)
    assert len(plot_summary(read_run(path) for path in find_runs([folder])).axes) == 2


# ---- page


def test_the_page_loads_nothing_and_runs_its_one_script_alone(folder: Path, tmp_path: Path) -> None:
    page = page_of(find_runs([folder]), tmp_path / "report.html")
    reader = Reader(page)
    policies = [attrs["content"] or "" for _, attrs in reader.tags if "http-equiv" in attrs]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; ")
    known = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert policies[0].endswith(f"; script-src 'sha256-{known}'")
    assert re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL) == [SCRIPT]
    assert {tag for tag, _ in reader.tags}.isdisjoint({"link", "iframe", "object", "form"})
    images = reader.images()
    assert len(images) == 5
    for text in [page, *images]:
        assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert all("<script" not in image and "<svg" in image for image in images)
    assert all(attrs["alt"] for tag, attrs in reader.tags if tag == "img")
    assert all(tag != "table" or reader.tags[n + 1][0] == "caption" for n, (tag, _) in enumerate(reader.tags))
    assert all(attrs.get("scope") for tag, attrs in reader.tags if tag == "th")


def test_the_same_runs_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "report.html", tmp_path / "p.png"
    compare([folder], out, picture)
    first = out.read_bytes(), picture.read_bytes()
    compare([folder], out, picture)
    assert (out.read_bytes(), picture.read_bytes()) == first
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["p.png", "report.html"]


def test_names_are_shown_as_text(tmp_path: Path) -> None:
    name = EVIL.replace("/", "")
    run = write_run(
        tmp_path / name,
        epoch(0, 0.5),
        method=f"{EVIL}$x_1$",
        title=f"{EVIL}$x_1$",
        dataset=f"d'\"{EVIL}",
        fusion=EVIL,
        labels=[EVIL],
        config={EVIL: EVIL},
    )
    write_run(tmp_path / "b", epoch(0, 0.5), method="_naive", fusion=EVIL, config={EVIL: "</style><script>"})
    write_run(tmp_path / f"new{name}", method="\N{CJK UNIFIED IDEOGRAPH-4E2D}")
    (run / "per_class.csv").write_text(f'split,class,clips,acc\nval,"{EVIL}",3,0.5\n')
    compare([tmp_path], tmp_path / "report.html", tmp_path / "p.png")
    reader = Reader((tmp_path / "report.html").read_text())
    assert all("onerror" not in attrs for _, attrs in reader.tags)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert reader.text.count(EVIL) >= 8
    for image in reader.images():
        assert not re.search(r"<img", re.sub(r"<!--.*?-->", "", image, flags=re.DOTALL))


@pytest.mark.usefixtures("without_plots")
def test_the_page_has_classes_settings_runs_and_the_command(tmp_path: Path) -> None:
    for seed, acc in enumerate([0.25, 0.75]):
        run = write_run(tmp_path / f"a{seed}", epoch(0, 0.5), seed=seed, config={"lr": 0.1, "same": 1})
        lines = ["split,class,clips,acc,AP,dominance/audio,dominance/video", f"val,bin,{40 + seed},{acc},,0.4,0.6"]
        (run / "per_class.csv").write_text("\n".join([*lines, "test,bin,9,0.1,0.1,0.1,0.9"]))
    other = write_run(tmp_path / "b", epoch(0, 0.5), method="amr", config={"lr": 0.2, "same": 1})
    (other / "per_class.csv").write_text("split,class,acc\ntest,bin,0.1\n")
    compare([f"{tmp_path}/*"], tmp_path / "report.html")
    text = " ".join(Reader((tmp_path / "report.html").read_text()).text.split())
    sd = 100 * np.std([0.25, 0.75], ddof=1)
    assert f"bin40 to 4150.0 ± {sd:.1f}\N{EN DASH}40.0 ± 0.060.0 ± 0.0" in text
    assert "per_class.csv has no rows of the validation split: amr." in text
    assert "lr0.1naivelr0.2amr" in text
    assert "same1" not in text
    assert f"amr compare '{tmp_path}/*' --out {tmp_path / 'report.html'}" in text
    assert "3 in the table" in text
    assert "Gradient x input" in text


# ---- command


def parse(*arguments: str | Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_the_command_prints_the_table_and_where_the_page_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = folder / "new" / "report.html", folder / "p.png"
    assert command.run(parse(folder, "--out", out, "--picture", picture)) == 0
    printed = capsys.readouterr().out
    assert list(table_of(printed)) == ["audio", "naive", "amr"]
    assert str(out) in printed
    assert str(picture) in printed
    assert out.is_file()
    assert picture.is_file()


@pytest.mark.parametrize("option", ["--out", "--picture"])
def test_only_a_page_or_a_picture_is_overwritten(folder: Path, option: str) -> None:
    victim = folder / "naive-0" / "run.json"
    before = victim.read_text()
    with pytest.raises(UserError, match=r"run\.json: .*must be a name ending in \.(html|png)"):
        command.run(parse(folder, "--out", folder / "r.html", option, victim))
    assert victim.read_text() == before
    assert not (folder / "r.html").exists()


@pytest.mark.usefixtures("without_plots")
def test_a_place_that_cannot_be_written_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json.x\.html: .*; must be a writable place"):
        compare([folder], folder / "naive-0" / "run.json" / "x.html")


@pytest.mark.usefixtures("without_plots")
def test_what_a_dead_process_left_of_the_page_is_swept(folder: Path, tmp_path: Path) -> None:
    number = dead_process()
    for name in ("report.html", "other.html"):
        (tmp_path / f".{name}.{files._host()}.{number}.tmp").touch()
    compare([folder], tmp_path / "report.html")
    assert [path.name for path in tmp_path.glob(".*.tmp")] == [f".other.html.{files._host()}.{number}.tmp"]
