"""The command line: finds the command, and reports every mistake in one line. Heavy imports are inside commands."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from amr.cli.imports import quick_imports
from amr.cli.keys import RUN_COMMANDS
from amr.cli.outcome import exit_status
from amr.cli.parser import Parser
from amr.utils.errors import UserError
from amr.utils.names.configs import did_you_mean
from amr.utils.names.version import __version__
from amr.utils.streams import discard_stdout, plain_warnings, prepare_streams, problem_of_stdout


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        help: One line for `amr --help`.
        module: Module with its `run`, which takes parsed options if there is `add_arguments`, else the arguments.
        run: Name of that function.
        arguments: Name of the function that adds its arguments to a parser; empty if it parses by itself.
    """

    help: str
    module: str
    run: str = "run"
    arguments: str = "add_arguments"


COMMANDS = {
    "fit": Command("train a model; its run goes to runs/<name>", "amr.cli.fit", arguments=""),
    "validate": Command("measure a run or a checkpoint on the validation split", "amr.cli.fit", arguments=""),
    "test": Command("measure a run or a checkpoint on the test split", "amr.cli.fit", arguments=""),
    "predict": Command("write predictions and shares to a parquet file", "amr.cli.fit", arguments=""),
    "prepare": Command("decode a dataset's clips into its store; resumes", "amr.cli.runs.commands", "run_prepare", ""),
    "benchmark": Command(
        "train and test methods x seeds, plain and with AMR; resumes", "amr.cli.benchmark.command", arguments=""
    ),
    "ensemble": Command("a run out of unimodal runs, without training, and its test", "amr.cli.benchmark.ensemble"),
    "compare": Command("a table and a page from finished runs", "amr.cli.compare"),
    "analyze": Command("explain a checkpoint: the four MultiViz stages, to a folder; resumes", "amr.cli.analyze"),
    "export": Command("a checkpoint's model as ONNX and as a torch.export program", "amr.cli.export"),
    "site": Command("a page to look at one analysis, or two side by side", "amr.cli.site"),
    "agreement": Command(
        "how far two people agree who named a model's units on that page",
        "amr.cli.site",
        "run_agreement",
        "add_agreement_arguments",
    ),
    "dashboard": Command("a W&B workspace and report over a project's runs", "amr.cli.dashboard"),
    "demo": Command("synthetic clips, naive fusion and fusion with AMR, the table and the page", "amr.cli.demo"),
    "methods": Command("all methods: what each acts on, costs and needs; or one's options", "amr.cli.methods"),
    "configs": Command("list the configurations that come with amr, or copy one", "amr.cli.configs"),
    "completion": Command("a completion script for bash, zsh or fish", "amr.cli.keys.completion"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: The command and its arguments; those of the process if None.

    Returns:
        Exit status: 0; 2 after a user's mistake, which is printed as one line; 128 plus its number after a signal that
        training heeds (143 for SIGTERM, 138 for SIGUSR1); 130 after Ctrl-C in any command.
    """
    if args is not None:
        return _run(list(args), alone=False)
    with suppress(OSError):  # the current folder may be gone
        # For a method of the user's own beside the configuration. Last, so that it hides no package.
        sys.path.append(str(Path.cwd()))
    prepare_streams()
    plain_warnings()
    try:
        status = _run(sys.argv[1:], alone=True)
        problem = problem_of_stdout()
    except OSError as error:
        if (problem := problem_of_stdout(error)) is None:
            raise
    if problem is None:
        return status
    discard_stdout()
    hint = "it must be writable until the command ends, as a file or /dev/null is"
    print(f"amr: stdout: {problem}; {hint}", file=sys.stderr)
    return 2


def _run(arguments: list[str], *, alone: bool) -> int:
    """Runs one command; gives its exit status. A process that is `alone` has nothing to do but this."""
    return exit_status(lambda: _dispatch(arguments), arguments, alone=alone)


def _dispatch(arguments: list[str]) -> int:
    from amr.cli.keys import completion

    if completion.asked():
        print("\n".join(completion.words(arguments, {name: _options(name, arguments) for name in COMMANDS})))
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"{name}: no such command{did_you_mean(name, COMMANDS)}; must be one of {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    if name in RUN_COMMANDS:
        from amr.cli.keys import arguments as keys

        if (shown := keys.asked_help(name, rest)) is not None:
            print(shown)
            return 0
        rest = [name, *keys.prepared(name, rest)]
    elif name == "prepare" and not {"-h", "--help"} & set(rest):
        from amr.cli.keys.check import check

        rest = check(rest, command=name)
    if not command.arguments:
        run = _loaded(command.module, command.run)
        status: int | None = run(rest)
        return status or 0
    options = _parser(name).parse_args(rest)
    status = _loaded(command.module, command.run)(options)
    return status or 0


def _loaded(module: str, name: str) -> Callable[..., Any]:
    with quick_imports():
        return cast(Callable[..., Any], getattr(import_module(module), name))


def _parser(name: str) -> Parser:
    command = COMMANDS[name]
    parser = Parser(prog=f"amr {name}", description=f"{command.help[0].upper()}{command.help[1:]}.")
    _loaded(command.module, command.arguments)(parser)
    return parser


def _options(name: str, typed: list[str]) -> list[str]:
    """A command's own options, where it is the one that is typed."""
    if not typed or typed[0] != name or not COMMANDS[name].arguments:
        return []
    return [option for option in _parser(name)._option_string_actions if option.startswith("--")]


def _overview() -> str:
    lines = ["usage: amr COMMAND [ARGUMENT]...", "", str(import_module("amr").__doc__).partition("\n")[0], ""]
    lines += [f"  {name:<12}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [*lines, "", "`amr COMMAND --help` has a command's arguments. `amr --version` prints the version."]
    )
