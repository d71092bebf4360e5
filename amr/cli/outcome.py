"""Ends a command: its exit status, and one line for a user's mistake or Ctrl-C."""

import signal
import sys
from collections.abc import Callable, Sequence

from amr.utils.errors import Stopped, UserError

RESUMES = ("prepare", "analyze", "benchmark", "site", "demo")  # the same command continues from what is on the disk
INTERRUPTED = 128 + signal.SIGINT


def exit_status(run: Callable[[], int], arguments: Sequence[str], *, alone: bool = False) -> int:
    """Runs a command.

    Args:
        run: The command, with its arguments filled in.
        arguments: The command's name and arguments, for the line that says how to continue.
        alone: Whether the process is the command's own, so that a second Ctrl-C may end it without a traceback.

    Returns:
        What the command returns; 2 after a user's mistake, which is printed as one line; 128 plus its number after a
        signal that training heeds (143 for SIGTERM, 138 for SIGUSR1); 130 after Ctrl-C in any command.
    """
    try:
        return run()
    except KeyboardInterrupt:
        return _interrupted(arguments, alone=alone)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):  # Lightning exits by it, with status 1
            raise
        return _interrupted(arguments, alone=alone)
    except UserError as error:
        print(f"amr: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Stopped as stopped:  # which `amr.cli.fit.run` has told
        return stopped.status


def _interrupted(arguments: Sequence[str], *, alone: bool) -> int:
    """Says how to continue after Ctrl-C. A second Ctrl-C then ends a process that is `alone`, without a traceback."""
    if alone:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = arguments[0] if arguments else "amr"
    hint = "the same command resumes" if command in RESUMES else "nothing is half written; repeat the command"
    print(f"\namr: {command} was interrupted; {hint}", file=sys.stderr, flush=True)
    return INTERRUPTED
