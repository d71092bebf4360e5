"""`amr site`: a static site from one analysis, or from two side by side; `amr agreement`: of people who named units."""

import argparse
import re
import shlex
import sys
import unicodedata
from pathlib import Path

from amr.utils.errors import UserError
from amr.utils.readers import printable, read_json

NAMES = 2000  # of an export; alpha takes a table of all names by all units
FORMAT = "amr-concepts-1"  # of the page's export


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
        UserError: A file is no export, they are of different checkpoints, or nothing can be compared.
    """
    print(agreement(*options.exports))
    return 0


def agreement(first: Path, second: Path) -> str:
    """Krippendorff's alpha of the names that two people gave, in words.

    Units are the items, people the raters, names the values, nominal: two names are one or they are not. Names are
    compared without case, accents' encoding and surplus spaces. Units that only one of them named do not count.

    Args:
        first: One's export.
        second: The other's.

    Returns:
        Lines to print.

    Raises:
        UserError: A file is no export, they are of different checkpoints, or nothing can be compared.
    """
    from amr.multiviz.simulation import krippendorff_alpha

    (checkpoint, one), (other_checkpoint, other) = _read(first), _read(second)
    if checkpoint != other_checkpoint:
        raise UserError(f"{second}: it names units of another checkpoint than {first}")
    both = sorted(set(one) & set(other))
    if not both:
        raise UserError(f"{first}, {second}: no unit has a name in both ({len(one)} and {len(other)} have one)")
    code = {name: number for number, name in enumerate(sorted({*one.values(), *other.values()}))}
    table = [[code[given[unit]] for unit in both] for given in (one, other)]
    same = sum(one[unit] == other[unit] for unit in both)
    lines = [f"{len(one)} and {len(other)} units named, {len(both)} of them by both; {same} of these alike"]
    if len({*table[0], *table[1]}) == 1:
        lines.append("alpha: undefined, for all have one name")
    else:
        lines.append(f"alpha (Krippendorff, nominal): {krippendorff_alpha(table, 'nominal'):.3f}")
    lines += [f"  unit {unit}: {one[unit]!r} / {other[unit]!r}" for unit in both if one[unit] != other[unit]]
    return "\n".join(lines)


def _read(path: Path) -> tuple[str, dict[int, str]]:
    """An export's checkpoint, and its names as they are compared."""
    content = read_json(path)  # by whoever named the units
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("names"), dict):
        raise UserError(f"{path}: it is no export of the site (format {FORMAT!r})")
    if len(content["names"]) > NAMES:
        raise UserError(f"{path}: {len(content['names']):,} names; allowed are {NAMES:,}")
    names = {}
    for unit, name in content["names"].items():
        if not re.fullmatch(r"[0-9]{1,9}", unit) or not isinstance(name, str):
            raise UserError(f"{path}: names must map units' numbers to text; got {unit[:40]!r}: {str(name)[:40]!r}")
        if plain := " ".join(unicodedata.normalize("NFC", name).casefold().split()):
            names[int(unit)] = plain
    return str(content.get("checkpoint")), names
