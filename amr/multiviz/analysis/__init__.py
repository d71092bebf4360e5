"""`amr analyze`: every analysis of a checkpoint, on chosen clips of a split, to a folder; resumes where it stopped.

docs/multiviz/files.md says what the folder holds. A file is whole or not there, and is the unit of work: a stage's
table, or, where a stage goes clip by clip, the clip's archive.
"""

import argparse
from contextlib import nullcontext
from pathlib import Path

from amr.utils.errors import UserError
from amr.utils.files import locked, sweep
from amr.utils.trust import TRUST, only_trusted, trusting

STAGES = {
    "prediction": (),
    "representation": ("prediction",),
    "errors": (),
    "clips": ("prediction",),
    "trust": ("prediction", "clips"),
    "simulation": ("prediction", "representation"),
    "selection": (),
}
"""The stages in their order, with those that each needs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--ckpt", type=Path, required=True, help="a checkpoint of a run")
    parser.add_argument("--data", type=Path, help="a configuration with a `data` section (the run's own config.yaml)")
    parser.add_argument("--trust", action="append", default=[], metavar="PREFIX", help=TRUST)
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="whose clips (test)")
    parser.add_argument("--clips", type=int, default=50, help="clips that are explained (50)")
    parser.add_argument("--classes", type=int, default=3, help="classes that each clip is explained for (3)")
    parser.add_argument("--units", type=int, default=8, help="penultimate units that each clip is explained for (8)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; one that is there goes on")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="which, and what they need")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of clips and of sampled methods (0)")
    parser.add_argument("--samples", type=int, default=160, help="masks a repeat of LIME, SHAP and DIME (160)")


def run(options: argparse.Namespace) -> int:
    """Runs the stages that are not done yet.

    Args:
        options: The arguments.

    Returns:
        Exit status.

    Raises:
        UserError: For anything that the user can mend.
    """
    for key, least, why in (
        ("clips", 2, ", for EMAP pairs them"),
        ("classes", 1, ""),
        ("units", 0, ""),
        ("samples", 1, ""),
    ):
        if getattr(options, key) < least:
            raise UserError(f"--{key}={getattr(options, key)}: at least {least} are needed{why}")
    from amr.multiviz.analysis import stages, summary
    from amr.multiviz.analysis.analysis import Analysis
    from amr.report.site import write_site

    with locked(options.out, "choose another --out"):
        sweep(options.out)
        # A configuration that the user names is as if typed; the run's own may be a stranger's.
        with trusting(options.trust), nullcontext() if options.data else only_trusted():
            analysis = Analysis.open(options)
        for stage in STAGES:
            if any(stage == wanted or stage in STAGES[wanted] for wanted in options.stages):
                getattr(stages, stage)(analysis)
        summary.write(analysis)
        root = analysis.data.root  # of the data that were analysed
        write_site([analysis.out], analysis.out / "site", [root] if root.is_dir() else [], follow_links=True)
    print(f"{analysis.out}: done; docs/multiviz/files.md says what each file holds")
    print(f"{analysis.out / 'site' / 'index.html'}: open it in a browser")
    return 0
