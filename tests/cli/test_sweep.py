"""Table 1's sweep files: what W&B's agents would run is the paper's grid, and the real parser takes it."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from jsonargparse import Namespace

from amr.cli import main
from amr.cli.fit import AmrCLI
from tests.conftest import REPOSITORY
from tests.report.wandb_files import flushed_records

pytestmark = pytest.mark.filterwarnings("ignore")
SWEEPS = REPOSITORY / "configs/sweeps"
METHODS = {
    *("naive", "dropout", "modality_dropout", "umt", "ogm", "ogm_ge", "gradient_blending", "gge", "pmr", "agm"),
    *("mmpareto", "mmcosine"),
}
AMR = yaml.safe_load((REPOSITORY / "configs/methods/amr.yaml").read_text())["model"]["amr"]


class ParseOnly(AmrCLI):
    """The command line up to where it would build something."""

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@pytest.fixture(scope="module")
def parser() -> Any:
    return ParseOnly(
        ["fit", "--config", str(REPOSITORY / "tests/conf/tiny.yaml"), "--data.init_args.root", "clips"]
    ).parser


def agents() -> Any:
    """What W&B's agents do with a sweep file; takes seconds to import, which a process without these tests need not."""
    from wandb.sdk.launch.sweeps import utils

    return utils


def load(name: str) -> dict[str, Any]:
    sweep: dict[str, Any] | None = agents().load_sweep_config(str(SWEEPS / f"{name}.yaml"))
    assert sweep is not None
    return sweep


def commands(name: str) -> list[list[str]]:
    """What the agents' shell would see, by wandb's own functions."""
    sweep = load(name)
    names, values = zip(*((key, entry["values"]) for key, entry in sweep["parameters"].items()), strict=True)
    rendered = []
    for cell in itertools.product(*values):
        arguments = agents().create_sweep_command_args(
            {"args": {key: {"value": value} for key, value in zip(names, cell, strict=True)}}
        )["args"]
        macros = {"${env}": ["env"], "${interpreter}": ["python"], "${program}": [sweep["program"]]}
        parts: list[str] = agents().create_sweep_command(list(sweep["command"]))
        rendered.append([word for part in parts for word in {**macros, "${args}": arguments}.get(part, [part])])
    return rendered


def parse(parser: Any, command: list[str]) -> Namespace:
    assert command[:4] == ["env", "python", "train.py", "fit"]
    options: Namespace = parser.parse_args(command[3:]).fit
    return options


def method_of(command: list[str]) -> str:
    """By the last method file that is named."""
    files = [Path(word).stem for word in command if "configs/methods/" in word and word.endswith(".yaml")]
    return files[-1] if files else "naive"


@pytest.mark.parametrize("name", ["table1", "table1-umt", "table1-teachers"])
def test_the_file_is_a_grid_sweep(name: str) -> None:
    sweep = load(name)
    assert sweep.keys() == {"name", "project", "program", "method", "command", "parameters"}
    assert (sweep["name"], sweep["method"]) == (name, "grid")
    assert (REPOSITORY / sweep["program"]).is_file()
    assert "--wandb=online" in sweep["command"]
    for entry in sweep["parameters"].values():
        assert entry.keys() == {"values"}
        assert len(set(entry["values"])) == len(entry["values"])


def test_the_table_has_every_cell_once_and_the_parser_takes_it(parser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("CREMA_D", "clips")
    cells = []
    for number, command in enumerate([*commands("table1"), *commands("table1-umt")]):
        method = method_of(command)
        with_amr = "--model.amr=null" not in command
        seed = int(re.findall(r"seed_everything[=:] *(\d)", " ".join(command))[0])
        # Parsing takes a second: each method, with and without AMR, at one of the seeds in turn; UMT's at all.
        if method == "umt" or seed == number // 3 % 3:
            options = parse(parser, command)
            assert options.seed_everything == seed
            assert options.wandb == "online"
            assert options.data.init_args.root == "clips"
            given = {slot for slot in METHODS & vars(options.model).keys() if options.model[slot] is not None}
            assert given == {method} - {"naive"}
            amr = options.model.amr
            assert (amr is not None) == with_amr
            if with_amr:
                assert {key: amr.init_args[key] for key in AMR} == AMR
            if method == "umt":
                teachers = options.model.umt.init_args.teachers
                assert teachers == {
                    m: f"runs/table1/crema_d-{m}-s{seed}/checkpoints/best.ckpt" for m in ("audio", "video")
                }
        cells.append((method, with_amr, seed))
    assert sorted(cells) == sorted(itertools.product(METHODS, (False, True), (0, 1, 2)))


def test_the_teachers_are_the_unimodal_halves_of_the_model(parser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    model = yaml.safe_load((REPOSITORY / "configs/model/resnet18.yaml").read_text())["model"]["encoders"]
    cells = []
    for command in commands("table1-teachers"):
        options = parse(parser, command)
        ((modality, encoder),) = options.model.encoders.items()
        assert encoder.class_path == model[modality]["class_path"]
        assert model[modality]["init_args"].items() <= vars(encoder.init_args).items()
        assert options.data.init_args.modalities == [modality]
        assert options.data.init_args.root == "CREMA_D"  # the variable is not set: refused as a folder, by its name
        assert str(options.runs_dir) == "runs/table1"
        cells.append((modality, options.seed_everything))
    assert sorted(cells) == sorted(itertools.product(("audio", "video"), (0, 1, 2)))


def test_under_an_agent_only_online(tiny: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc12345")
    for mode in ([], ["--wandb", "disabled"]):
        assert main(["fit", *tiny, "--runs_dir", str(tmp_path), *mode]) == 2
        assert "must be online under a sweep's agent (WANDB_SWEEP_ID is set)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_a_key_online_is_refused(tiny: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    assert main(["fit", *tiny, "--runs_dir", str(tmp_path), "--wandb", "online"]) == 2
    assert "amr: --wandb: No API key configured. Use `wandb login` to log in.\n" in capsys.readouterr().err


@pytest.fixture
def fresh_wandb() -> Iterator[None]:
    """W&B reads its environment once a process."""
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.usefixtures("fresh_wandb")
def test_a_cell_records_itself_as_the_agents_run(tiny: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    """With the agent's environment, but W&B's own switch to offline, so that the record stays here."""
    cell = {"config": "{}", "model.amr": "null", "seed_everything": 1}
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(
        "wandb_version: 1\n\n" + yaml.safe_dump({key: {"value": value} for key, value in cell.items()})
    )
    given = {"args": {key: {"value": value} for key, value in cell.items()}}
    arguments = agents().create_sweep_command_args(given)["args"]
    agent = {"WANDB_SWEEP_ID": "abc12345", "WANDB_RUN_ID": "cell0001", "WANDB_SWEEP_PARAM_PATH": str(parameters)}
    for key, value in {**agent, "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(key, value)
    assert main(["fit", *tiny, "--runs_dir", str(tmp_path / "runs"), "--wandb=online", *arguments]) == 0
    run = tmp_path / "runs/synthetic-naive-s1"
    assert json.loads((run / "run.json").read_text())["wandb_id"] == "cell0001"  # where `test` will go on
    records = flushed_records(run)
    record = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    assert (record.run_id, record.sweep_id, record.run_group) == ("cell0001", "abc12345", "synthetic/Concat/naive")
    config = {c.key: json.loads(c.value_json) for r in records for c in [*r.config.update, *r.run.config.update]}
    assert (config["method"], config["seed"], config["model.amr"]) == ("naive", 1, "null")
