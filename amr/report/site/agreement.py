"""How far people agree who named a model's units on the site."""

import re
import unicodedata
from pathlib import Path

from amr.utils.errors import UserError
from amr.utils.readers import read_json

NAMES = 2000  # of an export; alpha takes a table of all names by all units
FORMAT = "amr-concepts-1"  # of the page's export


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
        UserError: A file is not an export, they are of different checkpoints, or nothing can be compared.
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
        raise UserError(f"{path}: {len(content['names']):,} names; must be at most {NAMES:,}")
    names = {}
    for unit, name in content["names"].items():
        if not re.fullmatch(r"[0-9]{1,9}", unit) or not isinstance(name, str):
            raise UserError(f"{path}: names must map units' numbers to text; got {unit[:40]!r}: {str(name)[:40]!r}")
        if plain := " ".join(unicodedata.normalize("NFC", name).casefold().split()):
            names[int(unit)] = plain
    return str(content.get("checkpoint")), names
