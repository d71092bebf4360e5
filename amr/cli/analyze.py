"""`amr analyze`: every analysis of a checkpoint, on chosen clips of a split, to a folder, and its site."""

import argparse
from pathlib import Path

from amr.cli.parser import add_checkpoint, given_checkpoint
from amr.multiviz.analysis.plan import STAGES
from amr.utils.files import locked
from amr.utils.readers import read_object


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_checkpoint(parser)
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="whose clips (test)")
    parser.add_argument("--clips", type=int, default=50, help="clips that are explained (50)")
    parser.add_argument("--classes", type=int, default=3, help="classes that each clip is explained for (3)")
    parser.add_argument("--units", type=int, default=8, help="penultimate units that each clip is explained for (8)")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the results; an interrupted one is completed"
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="which, and what they need")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of clips and of sampled methods (0)")
    parser.add_argument("--samples", type=int, default=160, help="masks a repeat of LIME, SHAP and DIME (160)")


def run(options: argparse.Namespace) -> int:
    """Runs the stages that are not done yet, and writes the site.

    Args:
        options: The arguments.

    Returns:
        Exit status.

    Raises:
        UserError: For anything that the user can mend.
    """
    checkpoint = given_checkpoint(options)
    from amr.multiviz.analysis.whole import analyze

    keys = ("data", "split", "clips", "classes", "units", "stages", "seed", "samples", "trust")
    with locked(options.out, "choose another --out"):
        out = analyze(checkpoint, options.out, **{key: getattr(options, key) for key in keys})
        add_site(out)
    print(f"{out}: done; docs/multiviz/files.md says what each file holds")
    print(f"{out / 'site' / 'index.html'}: open it in a browser")
    return 0


def add_site(analysis: Path) -> None:
    """Writes an analysis's site into its folder.

    Args:
        analysis: The folder; this process has written its summary, so that the data's folder in it is to be trusted.
    """
    from amr.report.site import write_site

    root = read_object(analysis / "summary.json")["root"]  # None: there are no media files
    write_site([analysis], analysis / "site", [Path(root)] if root and Path(root).is_dir() else [], follow_links=True)
