"""The arguments of `fit`, `validate`, `test` and `predict` before torch is there: help, checks, runs and names."""

from collections.abc import Sequence

from amr.cli.keys.check import check
from amr.cli.keys.help import text
from amr.utils.errors import UserError
from amr.utils.names.places import checkpoint_of

CHECKPOINT = ("--ckpt_path", "--ckpt")


def asked_help(command: str, arguments: Sequence[str]) -> str | None:
    """The help that the arguments ask for: `--help`, `--help all` or `--help CLASS`; None if they ask for none."""
    for position, argument in enumerate(arguments):
        if argument in ("-h", "--help"):
            topic = arguments[position + 1] if position + 1 < len(arguments) else None
            return text(command, topic if topic and not topic.startswith("-") else None)
        if argument.startswith("--help="):
            return text(command, argument.partition("=")[2])
    return None


def prepared(command: str, arguments: Sequence[str]) -> list[str]:
    """The arguments as Lightning's parser takes them, checked.

    A run's folder in front, or for `--ckpt`, stands for its checkpoint; a configuration's name for its file.

    Raises:
        UserError: A mistake that can be found without building anything.
    """
    given = list(arguments)
    if given and not given[0].startswith("-"):
        if command == "fit":
            raise UserError(
                f"{given[0]}: fit takes options only; to resume a run, give its --name and --ckpt_path last"
            )
        given[:1] = ["--ckpt_path", given[0]]
    result: list[str] = []
    previous = ""
    for argument in given:
        option, has_value, value = argument.partition("=")
        if option == "--ckpt":
            option = "--ckpt_path"
        if option == "--ckpt_path" and has_value:
            result.append(f"--ckpt_path={_place(command, value)}")
        elif previous in CHECKPOINT:
            result.append(_place(command, argument))
        else:
            result.append(option if option == "--ckpt_path" else argument)
        previous = argument if not has_value else ""
    return check(result)


def _place(command: str, value: str) -> str:
    """The checkpoint that a value means; `last` and other words of `fit` as they are."""
    if command == "fit" and value in ("last", "null"):
        return value
    return str(checkpoint_of(value, "--ckpt_path"))
