"""`--tune N`: the same number of candidates for every row, over the ranges that its methods' classes declare."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from amr.cli.benchmark.plan import Cell, Row
from amr.utils.errors import UserError
from amr.utils.names.ranges import Choices, Range, Value, radical_inverse

BASES = (2, 3, 5, 7, 11, 13, 17, 19)  # one per option of a row; primes, so that options vary apart
ENOUGH = 64  # draws per trial, after which a few choices are taken to be used up


def candidates(
    rows: Sequence[Row], cells: Sequence[Cell], trials: int, given: Iterable[str] = ()
) -> dict[str, list[tuple[str, ...]]]:
    """Further arguments of `amr fit` for each trial of each row that is trained.

    The first trial is the row as it stands. The others spread evenly over the ranges and are the same for any larger
    number. A row whose methods declare none, or have fewer values, has fewer.

    Args:
        rows: The rows.
        cells: A cell of each row, whose configuration says which methods it has.
        trials: Trials per row, at least 2.
        given: Keys that the command sets for every cell.

    Raises:
        UserError: The number is too small, nothing could be tuned, or the command sets what would be.
    """
    if trials < 2:
        raise UserError(f"--tune={trials}: must be at least 2, for the first trial is the row as it stands")
    configs, fixed = {cell.row.name: cell.config for cell in cells}, set(given)
    lists: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        if row.ensemble:
            continue
        ranges = ranges_of(configs[row.name])
        if both := sorted(fixed & set(ranges)):
            raise UserError(f"--{both[0]}: must not be given with --tune, which tries values of it in row {row.name}")
        lists[row.name] = drawn(ranges, configs[row.name], trials, row.name)
    if all(len(each) == 1 for each in lists.values()):
        raise UserError(f"--tune={trials}: no row has an option with a range; must be left out")
    return lists


def ranges_of(config: Mapping[str, Any]) -> dict[str, Range | Choices]:
    """The ranges of a cell's methods, by key such as `model.umt.features_weight`."""
    from amr.regularizers.slots import method_slots

    model = config["model"]
    present = {name: kind for name, kind in method_slots().items() if model.get(name) is not None}
    return {f"model.{name}.{option}": span for name, kind in present.items() for option, span in kind.ranges.items()}


def drawn(
    ranges: Mapping[str, Range | Choices], config: Mapping[str, Any], trials: int, name: str
) -> list[tuple[str, ...]]:
    """The row as it stands, and other values.

    Args:
        ranges: Range of each key.
        config: The row's configuration.
        trials: Number of candidates, at most.
        name: The row's, for messages.

    Raises:
        UserError: A range is a fraction of the run's epochs, and their number is not known.
    """
    if not ranges:
        return [()]
    epochs = config["trainer"].get("max_epochs") or 0
    if epochs < 1 and any(isinstance(span, Range) and span.scale == "epochs" for span in ranges.values()):
        raise UserError(f"{name}: trainer.max_epochs={epochs or None}: must be a positive number with --tune")
    seen: list[tuple[Value, ...]] = [tuple(_value(config, key) for key in ranges)]
    found: list[tuple[str, ...]] = [()]
    for number in range(1, ENOUGH * trials):
        if len(found) == trials:
            break
        spans = zip(ranges.values(), BASES, strict=False)
        values = tuple(span.at(radical_inverse(number, base), epochs) for span, base in spans)
        if values not in seen:
            seen.append(values)
            found.append(tuple(f"--{key}={_text(value)}" for key, value in zip(ranges, values, strict=True)))
    return found


def _value(config: Mapping[str, Any], key: str) -> Any:
    """An option's value in a configuration, where a method is a class with its arguments, or they alone."""
    _, method, option = key.split(".")
    section = config["model"][method]
    return section.get("init_args", section).get(option)


def _text(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)
