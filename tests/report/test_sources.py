"""What `amr compare` reads besides run folders: results.parquet, W&B's offline runs, Lightning's CSVLogger."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import wandb
import yaml

from amr.report import (
    Run,
    compare,
    find_runs,
    read_results,
    read_run,
    read_runs,
    summarise,
    table_text,
    write_results,
)
from amr.report.foreign import in_order
from amr.report.wandb_records import Record, read_record
from amr.utils.errors import UserError
from tests.report.runs import EVIL, epoch, results, table_of, write_run

FACTS = {"method": "umt+amr", "title": "UMT w/ AMR", "dataset": "CREMA-D", "seed": 3, "fusion": "FiLM"}
FACTS |= {"modalities": ["audio", "video"], "labels": ["a", "b"], "num_classes": 2}
CONFIG = {"model": {"amr": {"weight": 0.5}}, "trainer": {"default_root_dir": "runs/r"}, "seed_everything": 3}
ROWS = [*epoch(0, 0.4), *epoch(1, 0.6, 0.7), *epoch(2, 0.5, float("nan")), *results(0.55, 0.45)]


def log(folder: Path, config: dict[str, Any], rows: list[dict[str, Any]], **options: Any) -> Path:
    """A real offline run, finished; returns its folder."""
    settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True)
    folder.mkdir(parents=True, exist_ok=True)
    summary = options.pop("summary", {})
    with wandb.init(mode="offline", dir=folder, config=config, settings=settings, **options) as run:
        for row in rows:
            run.log(row)
        run.summary.update(summary)
        path = Path(run.dir).parent
    (file,) = path.glob("*.wandb")
    sizes = [0]
    while sizes[-1] < 500 or len(set(sizes[-5:])) > 1:  # another process writes it, a moment after the run's end
        assert len(sizes) < 600
        time.sleep(0.05)
        sizes.append(file.stat().st_size)
    return path


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """Crash reports, too, stay here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("WANDB_SILENT", "true")
        yield


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What amr's run records: facts and configuration (larger than a block of the file), epochs and test."""
    rows = [{"epoch": number} | values for number, values in ROWS]
    folder = tmp_path_factory.mktemp("recorded")
    return log(folder, FACTS | CONFIG | {"notes": "x" * 100_000}, rows, project="amr", name="r", id="abc")


def one_line_about(error: pytest.ExceptionInfo[UserError], file: Path) -> bool:
    return str(file) in str(error.value) and "must be" in str(error.value) and "\n" not in str(error.value)


# ---- W&B


def test_a_wandb_run_equals_the_run_folder(recorded: Path, tmp_path: Path) -> None:
    facts = {key: value for key, value in FACTS.items() if key != "num_classes"}
    folder = read_run(write_run(tmp_path / "r", ROWS, config=CONFIG | {"notes": "x" * 100_000}, **facts))  # type: ignore[arg-type]
    run = read_run(recorded)
    assert run == dataclasses.replace(folder, path=recorded)
    assert run.best_epoch == 1
    assert run.test["test/dominance/audio"] == 0.45
    assert run.settings["model.amr.weight"] == "0.5"
    assert run.settings["trainer.default_root_dir"] == "runs/<run>"


@pytest.mark.parametrize("form", ["{run}", "{wandb}", "{above}", "{wandb}/offline-run-*", "{wandb}/latest-run"])
def test_where_wandb_runs_are_looked_for(recorded: Path, form: str) -> None:
    path = form.format(run=recorded, wandb=recorded.parent, above=recorded.parent.parent)
    assert find_runs([path, recorded]) == [recorded]


def test_a_foreign_wandb_run(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"epoch": 0, "val": {"acc": 0.3, "mAP": float("nan")}, "train/loss": 2, "lr": 0.1, "val/kind": "x"},
        {"epoch": 1.0, "val/acc": 0.5},
        {"epoch": 1.5, "val/acc": 0.9},
        {"val/acc": 0.8, "test/mAP": 0.4},
    ]
    config = {"seed_everything": 5, "method": {"name": 1}, "lr": 0.1, EVIL: EVIL}
    path = log(tmp_path, config, rows, project="pets", name="mine", group="ours", summary={"test/acc": 0.45})
    run = read_run(path)
    assert (run.method, run.title, run.dataset, run.fusion) == ("mine", "mine", "pets", "\N{EN DASH}")
    assert (run.seed, run.modalities, run.labels) == (5, ("all",), ())
    assert run.epochs == {0: {"val/acc": 0.3, "val/mAP": math.nan, "train/loss": 2}, 1: {"val/acc": 0.5}}
    assert run.test == {"test/acc": 0.45, "test/mAP": 0.4}
    assert run.settings == {"lr": "0.1", EVIL: EVIL}
    assert run.notes == ("rows of its history without a whole number as epoch are left out",)
    naive = read_run(write_run(tmp_path / "n", epoch(0, 0.5), results(0.5), method="naive", dataset="pets"))
    assert [row.method for row in summarise([run, naive])] == ["naive", "mine"], "not a unimodal run"
    assert "all dominance" not in table_text([run])


def test_names_and_modalities_of_a_foreign_wandb_run(tmp_path: Path) -> None:
    rows = [{"epoch": 0, "val/acc": 0.5, "val/dominance/text": 0.4, "val/dominance/sound": 0.6}]
    run = read_run(log(tmp_path, {"seed": True}, rows, project="pets", group="ours"))
    assert (run.method, run.seed, run.modalities) == ("ours", None, ("sound", "text"))


def test_starts_of_one_wandb_run_are_one_run(tmp_path: Path) -> None:
    first = [{"epoch": n, "val/acc": n / 10, "train/loss": 1.0} for n in range(4)]
    again = [{"epoch": n, "val/acc": n / 100, "train/loss": 1.0} for n in (2, 3)]
    a = log(tmp_path, {"method": "umt", "seed": 1}, [*first, {"epoch": 3, "test/acc": 0.9}], project="d", id="same")
    b = tmp_path / "wandb" / a.name.replace("offline-run-2", "offline-run-3")  # later, whatever the clock says
    shutil.copytree(log(tmp_path / "later", {"seed": 2}, again, project="d", id="same"), b)
    assert find_runs([tmp_path]) == find_runs([b]) == [a]
    run = read_run(b)
    assert {e: values["val/acc"] for e, values in run.epochs.items()} == {0: 0, 1: 0.1, 2: 0.02, 3: 0.03}
    assert (run.test, run.seed, run.method) == ({}, 2, "umt"), "those weights are gone"


def start(first: int, last: int, tested: int | None = None, **config: Any) -> Record:
    """What a start that trained the epochs `first` to `last` recorded; none if `last` is before `first`."""
    rows = [{"epoch": number, "train/loss": 1.0, "val/acc": 0.1} for number in range(first, last + 1)]
    return Record(config=config, history=rows + ([] if tested is None else [{"epoch": tested, "test/acc": 0.5}]))


def test_starts_are_ordered_by_what_resumed_what() -> None:
    """The order given is that of local times, which a clock that was set back, or summer time, makes wrong."""
    first, second, third = start(0, 3), start(3, 5), start(6, 9)
    for given in itertools.permutations([first, second, third]):
        assert in_order(given) == [first, second, third]
    again = start(2, 9)  # later, from an earlier checkpoint
    assert in_order([first, second, again]) == [first, second, again]
    test = start(1, 0, tested=9)
    assert in_order([test, third, second, first]) == [first, second, third, test]
    begun = Record()
    assert in_order([begun, first]) == [begun, first]
    numbered = [start(0, 3, start=0), start(5, 9, start=2), start(2, 4, start=1)]
    assert in_order([*numbered, begun]) == [begun, numbered[0], numbered[2], numbered[1]]


def test_a_clock_that_was_set_back_loses_no_epochs(tmp_path: Path) -> None:
    first = [{"epoch": n, "val/acc": n / 10, "train/loss": 1.0} for n in range(3)]
    again = [{"epoch": n, "val/acc": n / 10, "train/loss": 1.0} for n in (3, 4)]
    a = log(tmp_path, {"method": "umt", "seed": 1}, first, project="d", id="same")
    b = tmp_path / "wandb" / a.name.replace("offline-run-2", "offline-run-1")  # a thousand years before
    shutil.copytree(log(tmp_path / "later", {"seed": 1}, again, project="d", id="same"), b)
    assert sorted(read_run(a).epochs) == [0, 1, 2, 3, 4]


def test_a_run_folder_wins_over_what_lies_in_it(recorded: Path, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs" / "a", epoch(0, 0.5))
    shutil.copytree(recorded.parent, folder / "wandb", symlinks=True)
    csv = folder / "metrics" / "version_0" / "metrics.csv"
    paths = [tmp_path, folder, folder / "wandb", folder / "wandb" / recorded.name, folder / "metrics", csv, csv.parent]
    for path in paths:
        assert find_runs([path]) == [folder]
    assert [run.method for run in read_runs(paths)] == ["naive"]


def test_a_killed_wandb_run_is_read_as_far_as_it_goes(recorded: Path, tmp_path: Path) -> None:
    (file,) = recorded.glob("*.wandb")
    data = file.read_bytes()
    whole = read_record(file)
    assert whole.complete
    assert len(data) > 3 * 32768
    lengths = set()
    cut = tmp_path / "offline-run-1-x" / "run-x.wandb"
    cut.parent.mkdir()
    for size in [0, 3, 7, 10, 32767, 32768, 32770, 65536, *range(100_000, len(data) - 1, 37)]:
        cut.write_bytes(data[:size])
        record = read_record(cut)
        assert record.history == whole.history[: len(record.history)]
        assert not record.complete
        lengths.add(len(record.history))
    assert len(lengths) == len(whole.history) + 1, "every number of rows was there"
    run = read_run(cut.parent)
    assert run.notes == ("its W&B record has no end (still running, or killed): read as far as it goes",)
    assert run.notes[0] in table_text([run])


def test_a_damaged_wandb_file_is_named_in_one_line(recorded: Path, tmp_path: Path) -> None:
    (file,) = recorded.glob("*.wandb")
    data = file.read_bytes()
    whole = read_record(file)
    bad = tmp_path / "offline-run-1-x" / "run-x.wandb"
    bad.parent.mkdir()
    refused = 0
    for position in [*range(40), *range(40, len(data), 211), *range(len(data) - 40, len(data))]:
        bad.write_bytes(data[:position] + bytes([data[position] ^ 0x5A]) + data[position + 1 :])
        with suppress(UserError):
            record = read_record(bad)  # accepted: a length that leads beyond the end, as in a file that was cut off
            assert not record.complete
            assert record.history == whole.history[: len(record.history)]
            continue
        refused += 1
    assert refused > 500
    for content in (b"text", b"\x00" * 70000, data[7:], data[:7] + data[7 + 32768 :], data[:7] + b"\xff" * 40000):
        bad.write_bytes(content)
        with pytest.raises(UserError) as told:
            compare([bad.parent], tmp_path / "r.html")
        assert one_line_about(told, bad)


# ---- Lightning's CSVLogger


@pytest.mark.parametrize("form", ["{0}", "{0}/metrics.csv", "{0}/..", "{0}/../version_*"])
def test_lightnings_csv_logger(tmp_path: Path, form: str) -> None:
    from pytorch_lightning.loggers import CSVLogger

    logger = CSVLogger(tmp_path / "pets", name="mine")
    logger.log_hyperparams({"seed": 4, "lr": 0.1, "dtype": complex(1, 2)})
    for step, (number, values) in enumerate([*epoch(0, 0.5, 0.7), *epoch(1, 0.6, None)]):
        logger.log_metrics({"epoch": number, **values}, step)
    logger.save()
    (run,) = read_runs([form.format(logger.log_dir)])
    assert (run.method, run.dataset, run.seed, run.modalities) == ("mine", "pets", 4, ("audio", "video"))
    assert (run.best_epoch, run.epochs[0]["val/dominance/audio"], run.epochs[1]["train/loss"]) == (1, 0.7, 0.5)
    assert run.settings["lr"] == "0.1"
    assert run.path.resolve() == Path(logger.log_dir)


def test_a_csv_without_hparams_or_shares(tmp_path: Path) -> None:
    file = tmp_path / "pets" / "mine" / "metrics.csv"
    file.parent.mkdir(parents=True)
    file.write_text("epoch,val/acc\n0,0.5\n")
    (run,) = read_runs([file])
    assert (run.method, run.dataset, run.seed, run.modalities) == ("mine", "pets", None, ("all",))
    (file.parent / "hparams.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"hparams\.yaml: not YAML"):
        read_run(file.parent)
    file.write_text("step\n1\n")
    with pytest.raises(UserError) as error:
        read_run(file.parent)
    assert one_line_about(error, file)


# ---- results.parquet


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """What a benchmark leaves: runs/ with tested runs, one unimodal, and one that has only begun."""
    for seed in (0, 1):
        for method in ("naive", "amr"):
            info: dict[str, Any] = {"method": method, "seed": seed, "title": f"{EVIL} {method}"}
            run = write_run(tmp_path / "b" / "runs" / f"{method}-{seed}", ROWS, **info)
            (run / "per_class.csv").write_text(f'split,class,clips,acc\ntest,"z{EVIL}",3,0.5\ntest,a,4,nan\n')
    write_run(tmp_path / "b" / "runs" / "audio", epoch(0, 0.7, 1.0), results(0.7), method="audio", modalities=["audio"])
    write_run(tmp_path / "b" / "runs" / "new", method="umt", fusion=None)
    return tmp_path / "b"


def test_what_was_written_is_read(bench: Path) -> None:
    runs = [*read_runs([bench]), dataclasses.replace(read_run(bench / "runs" / "new"), seed=None, notes=("a", "b"))]
    assert len(runs) == 7
    assert any(math.isnan(value) for run in runs for row in run.epochs.values() for value in row.values())
    file = bench / "results.parquet"
    write_results(runs, file)
    first = file.read_bytes()
    back = read_results(file)
    assert back == runs
    assert [list(run.per_class.get("test", {})) for run in back] == [list(r.per_class.get("test", {})) for r in runs]
    write_results(read_runs([bench]) + runs[6:], file)
    assert file.read_bytes() == first
    assert table_text(back) == table_text(runs)
    write_results([], file)
    assert read_results(file) == []


def test_columns_of_the_parquet_file(bench: Path) -> None:
    write_results(read_runs([bench]), bench / "results.parquet")
    rows = {Path(row["run"]).name: row for row in pq.read_table(bench / "results.parquet").to_pylist()}
    row = rows["amr-1"]
    flat = {key: row[key] for key in ("dataset", "fusion", "method", "title", "seed", "modalities", "labels")}
    assert flat == {
        **{"dataset": "grid-letters", "fusion": "Concat", "method": "amr", "title": f"{EVIL} amr", "seed": 1},
        **{"modalities": ["audio", "video"], "labels": ["a", "b"]},
    }
    assert (row["split"], row["accuracy"], row["mAP"], row["best_epoch"], row["epochs"]) == ("test", 0.55, 0.55, 1, 3)
    assert (row["dominance_audio"], row["dominance_video"]) == (0.45, 0.55)
    assert row["run"] == str(bench / "runs" / "amr-1")
    assert json.loads(row["curves"])["1"]["val/acc"] == 0.6
    assert (rows["audio"]["accuracy"], rows["audio"]["dominance_audio"]) == (0.7, None)
    assert {rows["new"][key] for key in ("split", "accuracy", "mAP", "best_epoch", "dominance_audio")} == {None}
    schema = pq.read_schema(bench / "results.parquet")
    assert (schema.field("seed").type, schema.field("accuracy").type) == (pa.int64(), pa.float64())


def test_untested_runs_have_validations_numbers(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [*epoch(0, 0.4), *epoch(1, 0.6, 0.7)], results(0.1))
    write_run(tmp_path / "b", epoch(0, 0.5), method="amr")
    write_results(read_runs([tmp_path]), tmp_path / "r.parquet")
    columns = pq.read_table(tmp_path / "r.parquet").to_pydict()
    assert (columns["split"], columns["accuracy"]) == (["val", "val"], [0.6, 0.5])
    assert columns["dominance_audio"] == [0.7, 0.5]


def test_compare_reads_a_benchmark_its_results_and_both(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amr.report.page.plot_curves", lambda *_: [])
    file = bench / "results.parquet"
    write_results(read_runs([bench]), file)
    text = compare([bench], tmp_path / "r.html")
    assert len(table_of(text)) == 3
    assert compare([file], tmp_path / "r.html") == text
    assert compare([file, bench, f"{bench}/*.parquet"], tmp_path / "r.html") == text, "nothing counts twice"
    write_run(tmp_path / "c", ROWS, method="umt")
    assert len(table_of(compare([file, tmp_path / "c"], tmp_path / "r.html"))) == 4


def test_a_file_that_went_through_pandas(bench: Path) -> None:
    """Which makes whole numbers with a gap floats, and may leave out what compare can do without."""
    runs = [dataclasses.replace(run, seed=None if run.method == "umt" else run.seed) for run in read_runs([bench])]
    file = bench / "results.parquet"
    write_results(runs, file)
    table = pq.read_table(file)
    seeds = [math.nan if seed is None else float(seed) for seed in table["seed"].to_pylist()]
    table = table.set_column(table.column_names.index("seed"), "seed", pa.array(seeds, from_pandas=False))
    pq.write_table(table.drop_columns(["notes", "accuracy"]).append_column("mine", pa.array(range(6))), file)
    assert read_results(file) == runs


def change(column: str, value: Any) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        table = pq.read_table(file)
        index = table.column_names.index(column)
        pq.write_table(table.set_column(index, column, pa.array([value] * len(table))), file)

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(b"PAR1 text"), "cannot be read"),
        (lambda file: file.write_bytes(b""), "cannot be read"),
        (lambda file: file.write_bytes(file.read_bytes()[:-30]), "cannot be read"),
        (
            lambda file: file.write_bytes(file.read_bytes()[:200] + bytes(300) + file.read_bytes()[500:]),
            "cannot be read",
        ),
        (lambda file: pq.write_table(pa.table({"id": [1]}), file), "no column 'dataset'"),
        (change("method", 3), "row 0, method=3: must be of type str"),
        (change("seed", 0.5), "row 0, seed=0.5: must be of type int | None"),
        (change("modalities", "audio"), "row 0, modalities='audio': must be a list of names"),
        (change("modalities", None), "row 0, modalities=[]: must be a list of names"),
        (change("run", None), "row 0, run=None: must be"),
        (change("curves", None), "row 0, curves='None': must be JSON"),
        (change("curves", "{"), "row 0, curves='{': must be JSON"),
        (change("curves", "[" * 10000), "row 0, curves='[[["),
        (change("curves", '{"a": {}}'), "row 0, curves="),
        (change("curves", '{"0": {"val/acc": "x"}}'), "row 0, curves="),
        (change("test", '{"test/acc": null}'), "row 0, test="),
        (change("per_class", '{"test": [1]}'), "row 0, per_class="),
        (change("settings", '{"a": 1}'), "row 0, settings="),
    ],
)
def test_a_bad_parquet_file_is_named_in_one_line(bench: Path, damage: Callable[[Path], Any], message: str) -> None:
    file = bench / "results.parquet"
    write_results(read_runs([bench]), file)
    damage(file)
    with pytest.raises(UserError) as error:
        compare([file], bench / "r.html")
    assert message in str(error.value)
    assert one_line_about(error, file)


def test_results_go_only_to_a_parquet_file(bench: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json: not a file to write; must be a name ending in \.parquet"):
        write_results(read_runs([bench]), bench / "runs" / "new" / "run.json")
    with pytest.raises(UserError, match=r"no\.parquet: cannot be read \(No such file"):
        read_results(bench / "no.parquet")
    with pytest.raises(UserError, match=r"no\.parquet: no run here; must be .*results\.parquet"):
        find_runs([bench / "no.parquet"])


def test_equal_numbers_elsewhere_are_another_run(bench: Path, tmp_path: Path) -> None:
    """Only the same folder's run is a double: two runs may well agree in every number."""
    shutil.copytree(bench / "runs" / "amr-0", tmp_path / "copy")
    runs: list[Run] = read_runs([bench / "runs" / "amr-0", tmp_path / "copy"])
    assert len(runs) == 2
    assert yaml.safe_load((tmp_path / "copy" / "config.yaml").read_text()) == {"seed_everything": 0}
