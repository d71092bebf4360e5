"""The command line. Heavy imports are inside the commands, so that `--help` answers at once."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from amr import __version__
from amr.cli.outcome import exit_status
from amr.cli.parser import Parser
from amr.utils.streams import discard_stdout, prepare_streams, problem_of_stdout

RUN_COMMANDS = {
    "fit": "train a model; its run goes to runs/<name>",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure a checkpoint on the test split",
    "predict": "write a checkpoint's predictions and shares to a parquet file",
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
    prepare_streams()
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
    if arguments and arguments[0] in RUN_COMMANDS:
        from amr.cli.fit import run

        run(arguments)
        return 0
    if arguments and arguments[0] == "prepare":  # its parser needs the datamodules, which are slow to import
        from amr.cli.fit import prepare

        prepare(arguments[1:])
        return 0
    if arguments and arguments[0] == "benchmark":  # it takes arguments of `fit`, too
        from amr.cli.benchmark.command import run as benchmark

        return benchmark(arguments[1:])

    parser = Parser(prog="amr", description=__import__("amr").__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, text in RUN_COMMANDS.items():
        commands.add_parser(name, help=text)
    commands.add_parser("prepare", help="decode a dataset's clips into its store; resumes where it stopped")
    commands.add_parser("benchmark", help="train and test methods x seeds, plain and with AMR; resumes")
    _add_compare(commands)
    _add_analyze(commands)
    _add_export(commands)
    _add_site(commands)
    _add_dashboard(commands)
    demo = commands.add_parser("demo", help="synthetic clips, naive fusion and fusion with AMR, the table and the page")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything it makes (demo)")
    demo.add_argument("--picture", type=Path, help="also write the curves to this PNG")
    options = parser.parse_args(arguments)
    match options.command:
        case "compare":
            from amr.cli.compare import run as compare

            return compare(options)
        case "analyze":
            from amr.cli.analyze import run as analyze

            return analyze(options)
        case "export":
            from amr.cli.export import run as export

            return export(options)
        case "site":
            from amr.cli.site import run as site

            return site(options)
        case "agreement":
            from amr.cli.site import run_agreement

            return run_agreement(options)
        case "dashboard":
            from amr.cli.dashboard import run as dashboard

            return dashboard(options)
        case _:
            from amr.cli.demo import run as demo_run

            return demo_run(options)


def _add_compare(commands: "argparse._SubParsersAction[Parser]") -> None:
    from amr.cli.compare import add_arguments

    add_arguments(commands.add_parser("compare", help="a table and a page from finished runs"))


def _add_analyze(commands: "argparse._SubParsersAction[Parser]") -> None:
    from amr.cli.analyze import add_arguments

    add_arguments(commands.add_parser("analyze", help="explain a checkpoint: the four MultiViz stages, to a folder"))


def _add_export(commands: "argparse._SubParsersAction[Parser]") -> None:
    from amr.cli.export import add_arguments

    add_arguments(commands.add_parser("export", help="a checkpoint's model as ONNX and as a torch.export program"))


def _add_site(commands: "argparse._SubParsersAction[Parser]") -> None:
    from amr.cli.site import add_agreement_arguments, add_arguments

    add_arguments(commands.add_parser("site", help="a page to look at one analysis, or two side by side"))
    text = "how far two people agree who named a model's units on that page"
    add_agreement_arguments(commands.add_parser("agreement", help=text))


def _add_dashboard(commands: "argparse._SubParsersAction[Parser]") -> None:
    from amr.cli.dashboard import add_arguments

    add_arguments(commands.add_parser("dashboard", help="a W&B workspace and report over a project's runs"))
