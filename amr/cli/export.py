"""`amr export`: a checkpoint's model as ONNX and as a torch.export program."""

import argparse
from pathlib import Path

from amr.cli.parser import add_checkpoint, given_checkpoint
from amr.exporting import FORMATS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_checkpoint(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files; those there are replaced")
    parser.add_argument("--format", choices=list(FORMATS), default="both", help="what to write (both)")
    parser.add_argument("--encodings", action="store_true", help="give each modality's encoding out, too")


def run(options: argparse.Namespace) -> int:
    """Exports a checkpoint.

    Args:
        options: The arguments.

    Returns:
        Exit status.

    Raises:
        UserError: For anything that the user can mend, and a model that cannot be exported.
    """
    checkpoint = given_checkpoint(options)
    from amr.exporting import export

    keys = ("format", "encodings", "data", "trust")
    models = export(checkpoint, options.out, **{key: getattr(options, key) for key in keys})
    print(f"{options.out}: {', '.join(models)}; README.md says how to use {'it' if len(models) == 1 else 'them'}")
    return 0
