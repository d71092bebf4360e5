"""`amr analyze`: every analysis of a checkpoint, on chosen clips of a split, to a folder, and its site."""

import argparse
from pathlib import Path

from amr.cli.keys.check import data_argument
from amr.cli.parser import add_checkpoint, given_checkpoint
from amr.multiviz.analysis.plan import STAGES
from amr.utils.errors import UserError
from amr.utils.files import locked, run_folder
from amr.utils.names.modules import is_module
from amr.utils.readers import read_object


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_checkpoint(parser)
    about = "instead of a run: a model of your own, by its module and name; a function is called"
    parser.add_argument("--model", metavar="MODULE:NAME", help=about)
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="whose clips (test)")
    parser.add_argument("--clips", type=int, default=50, help="clips that are explained (50)")
    parser.add_argument("--classes", type=int, default=3, help="classes that each clip is explained for (3)")
    parser.add_argument("--units", type=int, default=8, help="penultimate units that each clip is explained for (8)")
    about = "folder for the results (analysis, in the run's folder); an interrupted one is completed"
    parser.add_argument("--out", type=Path, help=about)
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
    checkpoint = _given(options)
    from amr.multiviz.analysis.whole import analyze

    folder = options.out or _beside(checkpoint)
    keys = ("data", "split", "clips", "classes", "units", "stages", "seed", "samples", "trust")
    with locked(folder, "choose another --out"):
        out = analyze(checkpoint, folder, **{key: getattr(options, key) for key in keys})
        add_site(out)
    print(f"{out}: done; the page multiviz/files of the documentation says what each file holds")
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


def _beside(checkpoint: Path | str) -> Path:
    """Where an analysis goes that is given no folder: into that of its run.

    Raises:
        UserError: The checkpoint is not in a run's folder.
    """
    if isinstance(checkpoint, Path) and ((run := run_folder(checkpoint)) / "run.json").is_file():
        return run / "analysis"
    raise UserError("--out: must be given, such as analysis: there is no run's folder that it could go into")


def _given(options: argparse.Namespace) -> Path | str:
    """The checkpoint, or the name of a model in the user's own module; the data are looked for, too."""
    own = options.data is not None and is_module(options.data)
    if options.model is None:
        if not (options.run or options.ckpt):
            raise UserError(
                "--ckpt: must be given, such as runs/amr; or --model my_module:make for a model of your own"
            )
        return given_checkpoint(argparse.Namespace(**{**vars(options), "data": None if own else options.data}))
    if options.run or options.ckpt:
        raise UserError(f"--model={options.model}: must not be given together with a run; name one of them")
    if not is_module(options.model):
        raise UserError(f"--model={options.model}: must be a module and a name in it, such as my_module:make")
    if options.data is None:
        raise UserError("--data: must be given with --model, such as my_module:data")
    if not own:
        data_argument(options.data)
    model: str = options.model
    return model
