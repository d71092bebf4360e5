"""`amr completion bash|zsh|fish`: a script for the shell, which asks `amr` itself for the words."""

import argparse
import os
from collections.abc import Sequence

from amr.cli.keys import CONFIGURED, catalogue
from amr.cli.keys.schema import Key, read
from amr.utils.names.configs import shipped

_BASH = """\
_amr() {
  local words cur=${COMP_WORDS[COMP_CWORD]}
  words=$(AMR_COMPLETE=1 amr "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  [ ${#COMPREPLY[@]} -gt 0 ] || compopt -o default
}
complete -F _amr amr
"""
_ZSH = """\
#compdef amr
_amr() {
  local -a found
  found=(${(f)"$(AMR_COMPLETE=1 amr "${(@)words[2,CURRENT]}" 2>/dev/null)"})
  if (( $#found )); then compadd -- $found; else _files; fi
}
compdef _amr amr
"""
_FISH = """\
function __amr_words
  set -l words (commandline -opc) (commandline -ct)
  env AMR_COMPLETE=1 amr $words[2..-1] 2>/dev/null
end
complete -c amr -a '(__amr_words)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
ASKED = "AMR_COMPLETE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.add_argument("shell", choices=SCRIPTS, help="whose script to print; bash: source <(amr completion bash)")


def run(options: argparse.Namespace) -> int:
    """Prints the script."""
    print(SCRIPTS[options.shell], end="")
    return 0


def asked() -> bool:
    """Whether a shell asks for words, not a user for a command."""
    return os.environ.get(ASKED) == "1"


def words(typed: Sequence[str], commands: dict[str, list[str]]) -> list[str]:
    """Words that may complete the last word typed.

    Args:
        typed: The words after `amr`, the last one not finished, perhaps empty.
        commands: Each command's own options.

    Returns:
        Commands, options, names of configurations, classes or choices that begin like it; empty where a file is due.
    """
    *before, last = typed or [""]
    if not before:
        return [command for command in sorted(commands) if command.startswith(last)]
    command, previous = before[0], before[-1]
    keys = read()["keys"] if command in CONFIGURED else {}
    if previous in ("--config", "-c") and command in CONFIGURED:
        return _like(last, _names())
    if command == "configs" and previous == "copy":
        return _like(last, _names())
    if command == "methods":
        return _like(last, list(catalogue.read()))
    if command == "completion":
        return _like(last, SCRIPTS)
    if previous.startswith("--") and (key := keys.get(previous[2:])) is not None and not last.startswith("--"):
        return _like(last, _values(key))
    if not last.startswith("-"):
        return []
    options = [*commands.get(command, []), *(f"--{key}" for key in keys), *(["--config"] if keys else [])]
    return _like(last, [*options, *_nested(before, last)])


def _names() -> list[str]:
    """Names of shipped configurations, the short one where it is unique."""
    shorts = [full.partition("/")[2] for full in shipped()]
    return [full if shorts.count(short) > 1 else short for full, short in zip(shipped(), shorts, strict=True)]


def _values(key: Key) -> list[str]:
    choices = [*key.get("classes", []), *key["type"].split(" | ")]
    if key["type"] == "bool":
        choices = ["true", "false"]
    return [
        choice for choice in choices if choice and not choice[0].isupper() and choice not in ("str", "int", "float")
    ]


def _nested(before: Sequence[str], last: str) -> list[str]:
    """Keys of the class that a slot holds, such as `--model.amr.weight` or, after `--data CLASS`, its own."""
    schema = read()
    found = []
    for slot, key in schema["keys"].items():
        if not key.get("classes") or key.get("nested") or not last.startswith(f"--{slot}."):
            continue
        given = {word for word in before if word in key["classes"]}
        for path in given or set(key["classes"]):
            found += [f"--{slot}.{name}" for name in schema["classes"][path]["keys"]]
    return sorted(set(found))


def _like(start: str, known: Sequence[str] | dict[str, str]) -> list[str]:
    return sorted({word for word in known if word.startswith(start)})
