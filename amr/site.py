"""`amr site`: a static site from one analysis, or from two side by side; `amr agreement`: of people who named units."""

import argparse
import json
import unicodedata
from pathlib import Path
from typing import Any

from amr.errors import UserError

FORMAT = "amr-concepts-1"  # of the page's export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `site`."""
    parser.add_argument("analyses", nargs="+", type=Path, metavar="DIR", help="one or two folders of `amr analyze`")
    parser.add_argument("--out", type=Path, required=True, help="the site's folder; one that is there goes on")


def run(options: argparse.Namespace) -> int:
    """Writes a site.

    Args:
        options: The arguments.

    Returns:
        Exit status.

    Raises:
        UserError: For anything that the user can mend.
    """
    from amr.multiviz.site import write_site

    if len(options.analyses) > 2:
        raise UserError(f"{len(options.analyses)} analyses; a site shows one, or two side by side")
    write_site(options.analyses, options.out)
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
    names = sorted({*one.values(), *other.values()})
    table = [[names.index(given[unit]) for unit in both] for given in (one, other)]
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
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path}: it is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("names"), dict):
        raise UserError(f"{path}: it is no export of the site (format {FORMAT!r})")
    names = {}
    for unit, name in content["names"].items():
        if not unit.isdecimal() or not isinstance(name, str):
            raise UserError(f"{path}: names must map units' numbers to text; got {unit!r}: {name!r}")
        if plain := " ".join(unicodedata.normalize("NFC", name).casefold().split()):
            names[int(unit)] = plain
    return str(content.get("checkpoint")), names
