"""`amr site`: a static site from one analysis, or from two side by side; `amr agreement`: of people who named units."""

import argparse
import shlex
import sys
from pathlib import Path

from amr.utils.errors import UserError
from amr.utils.readers import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `site`."""
    parser.add_argument("analyses", nargs="+", type=Path, metavar="DIR", help="one or two folders of `amr analyze`")
    parser.add_argument("--out", type=Path, required=True, help="the site's folder; one that is there goes on")
    about = "the clips' folder, whose media are shown; one for each analysis if they differ"
    parser.add_argument("--root", type=Path, action="append", default=[], metavar="DIR", help=about)


def run(options: argparse.Namespace) -> int:
    """Writes a site.

    Args:
        options: The arguments.

    Returns:
        Exit status.

    Raises:
        UserError: For anything that the user can mend.
    """
    from amr.report.site import write_site

    if len(options.analyses) > 2:
        raise UserError(f"{len(options.analyses)} analyses; a site shows one, or two side by side")
    sources = write_site(options.analyses, options.out, options.root)
    for source in sources:
        if source.unconfirmed is not None:
            where = shlex.quote(printable(source.unconfirmed))
            text = f"{source.folder}: shown without film and sound; if its clips lie in {where}, add --root {where}"
            print(text, file=sys.stderr)
    print(f"{options.out / 'index.html'}: open it in a browser")
    return 0


def add_agreement_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `agreement`."""
    parser.add_argument("exports", nargs=2, type=Path, metavar="JSON", help="names of units, exported by the site")


def run_agreement(options: argparse.Namespace) -> int:
    """Prints how far two people agree who named units of the same checkpoint.

    Args:
        options: The arguments.

    Returns:
        Exit status.

    Raises:
        UserError: A file is not an export, they are of different checkpoints, or nothing can be compared.
    """
    from amr.report.site.agreement import agreement

    print(agreement(*options.exports))
    return 0
