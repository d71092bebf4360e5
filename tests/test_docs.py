"""Every command and example in the documents runs as it stands there, on small stand-ins for the data.

A page is one story: its blocks run in order in a folder of their own, which looks like a checkout. bash takes the `sh`
blocks apart (variables, loops, continued lines), with commands that only note their arguments; `_RUN` then runs those
in this process. Nothing slips through: an unknown command or language fails the page.
"""

import ast
import csv
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from amr.cli import main
from amr.cli.benchmark.plan import read_grid
from amr.datamodules import ClipDataModule
from amr.datamodules.store.media import MODALITIES
from amr.utils.parser import OneLineParser
from tests.conftest import REPOSITORY
from tests.datamodules.conftest import write_clip, write_csv

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
NAMES = {path: path.relative_to(REPOSITORY).as_posix() for path in PAGES}

SMALL_ENCODERS = (  # in a ResNet's place; tests/encoders/test_model_configs.py has those
    '--model.encoders {"audio":{"class_path":"amr.encoders.SmallCNN"},'
    '"video":{"class_path":"amr.encoders.SmallFrameCNN","init_args":{"in_channels":3}}}'
)
LIMITS = [  # added to a command that matches, so that it takes a second; its own arguments stay
    (
        r"fit .*",
        "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 2 --trainer.accelerator cpu"
        " --trainer.devices 1 --trainer.strategy auto --trainer.precision 32-true --trainer.enable_progress_bar false"
        " --model.compile_encoders false --data.init_args.num_workers 0 --data.init_args.batch_size 2",
    ),
    (r"(fit|test) (?!.*--wandb).*", "--wandb disabled"),
    (r"ensemble (?!.*--wandb).*", "--wandb disabled"),
    (r"fit .*resnet18.*", f"--data.init_args.video.size 32 --data.init_args.audio.seconds 0.3 {SMALL_ENCODERS}"),
    (r"(fit|benchmark) .*(configs/data/|--config )synthetic.*", "--data.init_args.clips 60"),
    (r"(fit|prepare) .*--config (configs/data|synthetic).*", "--data.init_args.prepare_workers 0"),
    (r"prepare --data .*", "--data.prepare_workers 0"),
    (r"test .*", "--trainer.limit_test_batches 2"),
    (r"predict .*", "--trainer.limit_predict_batches 2"),
    (r"analyze .*--model .*", "--clips 2 --samples 8"),
    (
        r"analyze (?!.*--model ).*",
        "--clips 2 --samples 8 --ckpt SMALL",
    ),  # of a small model; a page's own may be a ResNet
    (r"export .*", "--ckpt SMALL"),
    (r"benchmark .*", "--dry_run --seeds 0"),
    (r"benchmark (?!.*--tune ).*", "--only naive"),
]

PARSED = {  # what is only parsed, by a pattern of the command, and why
    r"amr demo.*": "minutes; CI has its parts: fit, compare",
    r"amr fit \.\.\. (--model\.fusion \S+ )?--config configs/methods/\w+\.yaml": "tests/test_methods.py trains each",
    r"amr site .*with-amr.*": "a second analysis; tests/report/site/test_grid.py makes two",
    r"amr fit .*--model\.encoders\.\w+\.weights (MViT|WAV2VEC2|ViT).*": "downloads weights; tests/encoders",
    r"amr prepare .*--scheduler .*": "needs a Dask cluster; tests/datamodules/store/test_prepare_faults.py has one",
    r"torchrun .*": "several processes; tests/test_scaling.py has them",
    r"(srun|sbatch|dask) .*": "a cluster's own command",
    r"wandb .*": "needs an account",
    r"amr fit .*--wandb online.*": "needs an account; tests/callbacks/test_content.py has what it sends",
    r"pip install .*": "the network",
    r"make .*": "installs, or is the tests themselves",
    r"python (-m benchmarks\.|docs/).*": "minutes; tests/test_speed.py has the benchmarks' parts",
    r"script .*": "hours",
}

GIVEN = """
from pathlib import Path
import torch
from amr.load import load_model
from amr.datamodules.atoms import spectrogram_atoms, video_atoms
model = load_model("runs/naive/checkpoints/best.ckpt")
torch.manual_seed(0)
inputs = {"audio": torch.randn(24, 1, 16, 32), "video": torch.randn(24, 2, 1, 16, 16)}
encodings = {name: e.detach() for name, e in model.encode(inputs).items()}
labels = predicted = torch.arange(24) % 4
audio_atoms = spectrogram_atoms((1, 16, 32), 2, 3, seconds=0.5, hz=(0, 8000))
video_atoms = video_atoms((2, 1, 16, 16), (2, 2), 1)
"""  # what a page's Python blocks may take for granted
GIVEN_ON = {
    "README.md": "",  # its example needs nothing
    "docs/synthetic.md": """
from amr.datamodules import Synthetic
data = Synthetic("made", task="synergistic", clips=60)
""",
}

RUNS_ON = {"docs/wandb.md": ("runs/naive", "runs/table1/naive-s0")}  # that are there before a page's first command


@dataclass
class Block:
    """A fenced block."""

    language: str
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    found, text = [], page.read_text()
    for match in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match[2], textwrap.dedent(match[3]), line))
    return found


def inline_commands(page: Path) -> list[str]:
    """Code within a sentence that is a whole command: it has an option."""
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    return [code for code in found if re.match(r"(amr|train\.py) .*--\w", code)]


# ------------------------------------------------------------------------------------------------------- the stand-ins


@dataclass
class World:
    """What the pages' commands find.

    Attributes:
        folder: To be linked into each page's folder: data sets, a trained run, an analysis.
        tiny: The arguments of a small data set and model.
    """

    folder: Path
    tiny: list[str]

    @property
    def checkpoint(self) -> Path:
        """Of a small model on small clips."""
        return self.folder / "runs/fused/checkpoints/best.ckpt"

    def data(self) -> ClipDataModule:
        """The small clips, prepared."""
        parser = OneLineParser()
        parser.add_argument("--config", action="config")
        parser.add_subclass_arguments(ClipDataModule, "data")
        module = parser.instantiate_classes(parser.parse_args(self.dots("prepare"))).data
        assert isinstance(module, ClipDataModule)
        module.prepare_data()
        module.setup()
        return module

    def dots(self, command: str) -> list[str]:
        """What `...` stands for after a command."""
        match command:
            case "fit":
                return self.tiny
            case "prepare":
                return ["--config", str(self.folder / "prepare.yaml"), *self.tiny[2:]]
            case _:
                return ["--ckpt_path", str(self.checkpoint)]


@pytest.fixture(scope="module")
def world(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    clips = itertools.cycle(write_clip(folder / f"media/{i}.mp4", hz=300 + 200 * i) for i in range(4))
    # PATH: CREMA-D and VGGSound in one folder.
    for actor, emotion in itertools.product(range(1001, 1005), ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")):
        for name in (f"AudioWAV/{actor}_DFA_{emotion}_XX.wav", f"VideoFlash/{actor}_DFA_{emotion}_XX.flv"):
            _copy(next(clips), folder / "PATH" / name)
    rows = [(f"{i:011d}", 30, f"sound {i % 3}, loud", "test" if i % 4 == 0 else "train") for i in range(24)]
    for video, start, *_ in rows:
        _copy(next(clips), folder / f"PATH/{video}_{start:06d}.mp4")
    with (folder / "PATH/vggsound.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    # GRID: 128 x 128, of which the configuration crops the mouth.
    (folder / "grid").mkdir()
    (folder / "stores").mkdir()
    face = np.random.default_rng(0).integers(0, 255, (17, 128, 128, 3), dtype=np.uint8)
    from amr.datamodules.synthetic.synthesis import write_mp4

    write_mp4(folder / "grid/clip.mp4", face, np.sin(np.arange(11000) / 5).astype(np.float32))
    for path in (folder / "grid/letters.csv", folder / "clips.csv"):
        of = "clip.mp4" if path.parent.name == "grid" else "media/0.mp4"
        splits = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
        write_csv(path, [{"id": f"c{i}", "file": of, "label": "abc"[i % 3], "split": s} for i, s in enumerate(splits)])
    # Runs that a page speaks of without having made them.
    common = ["--runs_dir", str(folder / "runs"), "--wandb", "disabled", "--trainer.max_epochs", "1"]
    assert main(["fit", *tiny, *common, "--name", "fused"]) == 0
    for name, encoder in (("audio", "SmallCNN"), ("video", "SmallFrameCNN")):
        sizes = {"width": 4, "out_dim": 8} | ({"frames": 2} if name == "video" else {})
        model = {"model": {"encoders": {name: {"class_path": f"amr.encoders.{encoder}", "init_args": sizes}}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(model))
        data = [*tiny[2:], "--data.init_args.modalities", f"[{name}]"]
        shared = yaml.safe_load((REPOSITORY / "tests/conf/tiny.yaml").read_text())
        (folder / "data.yaml").write_text(yaml.safe_dump({key: shared[key] for key in ("data", "trainer")}))
        files = ["--config", str(folder / "data.yaml"), "--config", str(folder / f"{name}.yaml")]
        assert main(["fit", *files, *data, *common, "--name", name]) == 0
    (folder / "prepare.yaml").write_text(yaml.safe_dump({"data": shared["data"]}))
    return World(folder, tiny)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.hardlink_to(source)


@dataclass
class Story:
    """A page's folder and what has happened in it.

    Attributes:
        folder: Where the page's commands run.
        world: The stand-ins.
        page: Its path in the repository.
        names: Those of its Python blocks.
        variables: The shell's, as lines that set them.
    """

    folder: Path
    world: World
    page: str = ""
    names: dict[str, Any] = field(default_factory=dict)
    variables: list[str] = field(default_factory=list)

    def begin(self) -> None:
        for name in ("configs", "examples", "benchmarks", "tests", "train.py", "Makefile", "pyproject.toml"):
            (self.folder / name).symlink_to(REPOSITORY / name)
        for name in ("PATH", "clips.csv", "stores"):  # what one page has decoded serves the next
            (self.folder / name).symlink_to(self.world.folder / name)
        _copy(self.world.folder / "media/0.mp4", self.folder / "media/0.mp4")  # no clip may lie outside its root
        for name in "AB":  # what two people have exported from the site
            export = {"format": "amr-concepts-1", "checkpoint": "", "names": {"1": "plosive", "2": f"name {name}"}}
            (self.folder / f"{name}.json").write_text(json.dumps(export))
        shared = self.folder.parent / "shared/data"
        shared.mkdir(parents=True)
        (shared / "grid").symlink_to(self.world.folder / "grid")
        for script in (REPOSITORY / "docs").rglob("*"):  # copies: they write beside themselves
            if script.suffix not in (".sh", ".py", ".yaml"):
                continue
            target = self.folder / script.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(script, target)
        (self.folder / ".venv/bin").mkdir(parents=True)
        (self.folder / ".venv/bin/activate").touch()

    def recorded(self, script: str, *, system: bool = False) -> list[list[str]]:
        """The commands that bash would run, in order."""
        bin, record = self.folder / ".bin", self.folder / ".record"
        bin.mkdir(exist_ok=True)
        note = f'#!/bin/bash\nprintf "%s\\0" "$(($# + 1))" "${{0##*/}}" "$@" >> {shlex.quote(str(record))}\n'
        for name in _RUN:
            (bin / name).write_text(note)
            (bin / name).chmod(0o755)
        record.write_text("")
        path = f"{bin}:/usr/bin:/bin" if system else str(bin)
        environment = {"PATH": path, "HOME": str(self.folder)}
        shell = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", f"{script}\nwait"],
            cwd=self.folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert shell.returncode == 0, f"{script}\n{shell.stderr}"
        words = iter(record.read_text().split("\0")[:-1])
        return [[next(words) for _ in range(int(count))] for count in words]

    def shell(self, text: str) -> None:
        commands = self.recorded("\n".join([*self.variables, _scripts_noted(text)]))
        self.variables += re.findall(r"^(?:export )?\w+=.*$", text, re.MULTILINE)
        assert commands, f"nothing is run by {text!r}"
        for command in commands:
            self.command(command)

    def command(self, command: list[str]) -> None:
        line = shlex.join(command).replace("'", "")
        reason = next((why for pattern, why in PARSED.items() if re.fullmatch(pattern, line)), None)
        _RUN[command[0]](self, command[1:], reason is not None)

    def python(self, text: str) -> None:
        first = text.splitlines()[0]
        if re.fullmatch(r"# \w+\.py", first):
            (self.folder / first.removeprefix("# ")).write_text(text)
            return
        tree = ast.parse(re.sub(r"\bsamples=\d+", "samples=200", text))
        if "get_state_dict" in text:  # downloads weights
            tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        elif not self.names and (given := GIVEN_ON.get(self.page, GIVEN)):
            self.trained("runs/naive")
            self.names["data"] = self.world.data()
            exec(given, self.names)  # noqa: S102
        exec(compile(tree, "example", "exec"), self.names)  # noqa: S102

    def yaml(self, text: str) -> None:
        first = text.splitlines()[0]
        name = first.removeprefix("# ") if first.startswith("# ") else "block.yaml"
        (self.folder / name).write_text(text)
        if "data" not in yaml.safe_load(text):  # those are used by the page's commands
            amr(self, ["fit", "...", "--config", name, "--name", name.removesuffix(".yaml")], False)

    def trained(self, run: str) -> None:
        """Puts the stand-in's run where the page expects one."""
        if not (self.folder / run).exists():
            alone = run.removeprefix("runs/")
            shutil.copytree(self.world.folder / "runs" / (alone if alone in MODALITIES else "fused"), self.folder / run)
            (self.folder / run / "wandb/offline-run-1").mkdir(parents=True)


def _scripts_noted(text: str) -> str:
    """A script's path becomes a command that is noted."""
    return re.sub(r"^(?:bash )?((?:docs|benchmarks)/[\w./-]+\.sh)", r"script \1", text, flags=re.MULTILINE)


# -------------------------------------------------------------------------------------------------- what commands do


def _without_run(arguments: list[str]) -> list[str]:
    """The arguments of `analyze` or `export` without the run, for another is given instead."""
    at = arguments.index("--ckpt") if "--ckpt" in arguments else None
    return arguments[1:] if at is None else [*arguments[:at], *arguments[at + 2 :]]


def amr(story: Story, arguments: list[str], parse_only: bool) -> None:
    command, *rest = arguments
    rest = [word for argument in rest for word in (story.world.dots(command) if argument == "..." else [argument])]
    line = " ".join([command, *rest])
    for run in re.findall(r"\bruns/[\w+-]+(?=/checkpoints|[ ,}]|$)", line):
        story.trained(run)
    if not parse_only:
        added = " ".join(more for pattern, more in LIMITS if re.fullmatch(pattern, line))
        limits = added.replace("SMALL", str(story.world.checkpoint)).split()
        if "SMALL" in added:
            rest = _without_run(rest)
        if command == "fit" and "--name" not in rest:  # of two on a page, both are run
            limits += ["--name", f"run{len(list(Path('runs').glob('run*')))}"]
        assert main([command, *rest, *limits]) == 0, shlex.join(["amr", *arguments])
    elif command in ("fit", "validate", "test", "predict", "prepare"):
        with pytest.raises(SystemExit) as end:
            main([command, *rest, "--print_config"])
        assert end.value.code in (0, None)
    else:
        with pytest.MonkeyPatch.context() as patch:
            place = "benchmark.command" if command == "benchmark" else command
            patch.setattr(f"amr.cli.{place}.run", lambda options: 0)
            assert main([command, *rest]) == 0


def torchrun(story: Story, arguments: list[str], parse_only: bool) -> None:
    assert parse_only
    amr(story, arguments[arguments.index("train.py") + 1 :], True)


def make(_: Story, arguments: list[str], parse_only: bool) -> None:
    assert parse_only
    subprocess.run(["/usr/bin/make", "-n", *arguments], cwd=REPOSITORY, check=True, capture_output=True)


def python(_: Story, arguments: list[str], parse_only: bool) -> None:
    assert parse_only
    file = f"{arguments[1].replace('.', '/')}.py" if arguments[0] == "-m" else arguments[0]
    ast.parse((REPOSITORY / file).read_text())


def wandb(story: Story, arguments: list[str], parse_only: bool) -> None:
    from wandb.cli.cli import cli

    assert parse_only
    cli.commands[arguments[0]].make_context(arguments[0], list(arguments[1:]), resilient_parsing=False)
    if arguments[0] == "sweep":
        assert yaml.safe_load((story.folder / arguments[1]).read_text())["command"]


def dask(_: Story, arguments: list[str], parse_only: bool) -> None:
    from distributed.cli.dask_scheduler import main as scheduler
    from distributed.cli.dask_worker import main as worker

    assert parse_only
    {"scheduler": scheduler, "worker": worker}[arguments[0]].make_context(arguments[0], list(arguments[1:]))


def srun(story: Story, arguments: list[str], parse_only: bool) -> None:
    assert parse_only
    start = next(i for i, argument in enumerate(arguments) if argument in _RUN)
    _RUN[arguments[start]](story, arguments[start + 1 :], True)


def pip(_: Story, arguments: list[str], parse_only: bool) -> None:
    import tomllib

    assert parse_only
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert arguments[0] == "install"
    for name in re.findall(r"amr\[([\w,]+)\]", arguments[1]):
        assert set(name.split(",")) <= set(extras)


def script(story: Story, arguments: list[str], parse_only: bool) -> None:
    """Runs a study's script with commands that only note their arguments; each kind of them is then parsed."""
    assert parse_only
    kinds: dict[str, list[str]] = {}
    for command in story.recorded(shlex.join(["bash", *arguments]), system=True):
        kinds.setdefault(re.sub(r"\d+", "0", shlex.join(command)), command)
    for command in kinds.values():
        if command[:2] == ["amr", "benchmark"]:
            _, rows = read_grid(Path(command[command.index("--config") + 1]))
            assert main([*command[1:], "--dry_run", "--seeds", "0", "--only", rows[0].name]) == 0
        else:
            _RUN[command[0]](story, command[1:], True)


_RUN: Mapping[str, Callable[[Story, list[str], bool], None]] = {
    "amr": amr,
    "make": make,
    "python": python,
    "torchrun": torchrun,
    "wandb": wandb,
    "dask": dask,
    "srun": srun,
    "pip": pip,
    "script": script,
}


# ------------------------------------------------------------------------------------------------------------ the tests


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_files_named_in_text_exist(page: Path) -> None:
    for path in re.findall(r"\b(?:configs|benchmarks|docs|tests|examples)/[\w./-]*\w\.\w+", page.read_text()):
        assert any((folder / path).exists() for folder in (REPOSITORY, page.parent)), path


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_every_fence_belongs_to_a_block(page: Path) -> None:
    assert len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)) == 2 * len(blocks_of(page))


@pytest.fixture
def story(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    folder = tmp_path / "checkout"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(torch, "compile", lambda module, **kwargs: module)
    told = Story(folder, world)
    told.begin()
    before = set(sys.modules)
    yield told
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(folder) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page) or inline_commands(page)], ids=NAMES.get)
def test_commands(page: Path, story: Story) -> None:
    story.page = NAMES[page]
    for run in RUNS_ON.get(story.page, ()):
        story.trained(run)
    for block in blocks_of(page):
        match block.language:
            case "sh":
                story.shell(block.text)
            case "python":
                story.python(block.text)
            case "yaml":
                story.yaml(block.text)
            case "text":  # what a command prints
                pass
            case _:
                pytest.fail(f"{page}:{block.line}: {block.language or 'no language'}; known are sh, python, yaml, text")
    for line in inline_commands(page):
        for command in story.recorded(line.replace("train.py", "amr")):
            if "--help" not in command:
                amr(story, command[1:], True)
