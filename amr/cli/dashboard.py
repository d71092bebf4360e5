"""`amr dashboard`: a W&B workspace and report over a project's runs."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--entity", help="W&B user or team (your default one)")
    parser.add_argument("--project", default="amr", help="W&B project (amr)")
    parser.add_argument("--dataset", help="show this dataset's runs only, by the name in their config (all)")
    parser.add_argument("--modalities", nargs="+", metavar="NAME", help="of the models (audio video)")
    parser.add_argument("--out", type=Path, help="write the specification to this JSON file, and send nothing")


def run(options: argparse.Namespace) -> int:
    """Saves the workspace and the report in W&B, or writes their specification where there is no account.

    Args:
        options: Options that `add_arguments` defines.

    Returns:
        Exit status.

    Raises:
        UserError: If the extra is missing, the file cannot be written, or W&B refuses.
    """
    from amr.report.dashboard import dashboard

    keys = ("entity", "dataset", "modalities", "out")
    print(dashboard(options.project, **{key: getattr(options, key) for key in keys}))
    return 0
