"""The command line. Heavy imports are inside the commands, so that `--help` answers at once."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from amr import __version__
from amr.errors import Stopped, UserError
from amr.streams import discard_stdout, prepare_streams, problem_of_stdout

RUN_COMMANDS = {
    "fit": "train a model; its run goes to runs/<name>",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure a checkpoint on the test split",
    "predict": "write a checkpoint's predictions and shares to a parquet file",
}
RESUMES = ("prepare", "analyze", "benchmark", "site", "demo")  # the same command continues from what is on the disk
INTERRUPTED = 128 + signal.SIGINT


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
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        return _interrupted(arguments, alone=alone)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):  # Lightning exits by it, with status 1
            raise
        return _interrupted(arguments, alone=alone)
    except UserError as error:
        print(f"amr: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Stopped as stopped:  # which `amr.runs.run` has told
        return stopped.status


def _interrupted(arguments: list[str], *, alone: bool) -> int:
    """Says how to continue after Ctrl-C. A second Ctrl-C then ends a process that is `alone`, without a traceback."""
    if alone:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = arguments[0] if arguments else "amr"
    hint = "the same command resumes" if command in RESUMES else "nothing is half written; repeat the command"
    print(f"\namr: {command} was interrupted; {hint}", file=sys.stderr, flush=True)
    return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see {self.prog} --help")


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in RUN_COMMANDS:
        from amr.runs import run

        run(arguments)
        return 0
    if arguments and arguments[0] == "prepare":  # its parser needs the datamodules, which are slow to import
        from amr.runs import prepare

        prepare(arguments[1:])
        return 0
    if arguments and arguments[0] == "benchmark":  # it takes arguments of `fit`, too
        from amr.benchmark import run as benchmark

        return benchmark(arguments[1:])

    parser = _Parser(prog="amr", description=__import__("amr").__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
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
            from amr.compare import run as compare

            return compare(options)
        case "analyze":
            from amr.analyze import run as analyze

            return analyze(options)
        case "export":
            from amr.export import run as export

            return export(options)
        case "site":
            from amr.site import run as site

            return site(options)
        case "agreement":
            from amr.site import run_agreement

            return run_agreement(options)
        case "dashboard":
            from amr.dashboard import run as dashboard

            return dashboard(options)
        case _:
            from amr.demo import run as demo_run

            return demo_run(options)


def _add_compare(commands: "argparse._SubParsersAction[_Parser]") -> None:
    from amr.compare import add_arguments

    add_arguments(commands.add_parser("compare", help="a table and a page from finished runs"))


def _add_analyze(commands: "argparse._SubParsersAction[_Parser]") -> None:
    from amr.analyze import add_arguments

    add_arguments(commands.add_parser("analyze", help="explain a checkpoint: the four MultiViz stages, to a folder"))


def _add_export(commands: "argparse._SubParsersAction[_Parser]") -> None:
    from amr.export import add_arguments

    add_arguments(commands.add_parser("export", help="a checkpoint's model as ONNX and as a torch.export program"))


def _add_site(commands: "argparse._SubParsersAction[_Parser]") -> None:
    from amr.site import add_agreement_arguments, add_arguments

    add_arguments(commands.add_parser("site", help="a page to look at one analysis, or two side by side"))
    text = "how far two people agree who named a model's units on that page"
    add_agreement_arguments(commands.add_parser("agreement", help=text))


def _add_dashboard(commands: "argparse._SubParsersAction[_Parser]") -> None:
    from amr.dashboard import add_arguments

    add_arguments(commands.add_parser("dashboard", help="a W&B workspace and report over a project's runs"))
