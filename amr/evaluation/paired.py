"""Two single runs compared clip by clip, from the predictions that they stored. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from amr.evaluation.runs import OUTCOMES, Run
from amr.utils.readers import read_table, reading

RESAMPLES = 10_000
STORED = (OUTCOMES, "predictions.parquet")  # what `amr test` leaves, and `amr predict`
_ALLOWED = "a table as amr test writes it"
_EQUAL = 1e-5  # metrics are kept in float32

Outcomes = dict[str, tuple[str, bool]]
"""Label of each clip, by id, and whether the prediction is right."""


@dataclass(frozen=True)
class ClipDifference:
    """Difference of two runs' accuracies over the same clips, with a bootstrap interval.

    Attributes:
        mean: The first run's accuracy minus the second's, a fraction.
        low: Lower end of the 95 % interval.
        high: Upper end.
        clips: How many.
        gained: Clips that only the first run has right.
        lost: Clips that only the second run has right.
    """

    mean: float
    low: float
    high: float
    clips: int
    gained: int
    lost: int

    def __str__(self) -> str:
        mean, low, high = (round(100 * value, 1) + 0.0 for value in (self.mean, self.low, self.high))  # no "-0.0"
        return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def stored_outcomes(run: Run) -> tuple[Outcomes | None, str]:
    """A run's outcomes by clip, and what is wrong with its file, if something is.

    A file counts only if its accuracy is the run's own on the test split: it may be of other clips, or of weights from
    before the run was resumed.

    Args:
        run: A run's folder that was tested.

    Returns:
        The outcomes, or None where there is no such file; a sentence's end, or an empty text.

    Raises:
        UserError: The file cannot be read.
    """
    accuracy, said = run.test.get("test/acc"), ""
    for name in STORED:
        file = Path(run.path) / name
        if accuracy is None or not file.is_file():
            continue
        outcomes = _read(file)
        share = sum(right for _, right in outcomes.values()) / len(outcomes) if outcomes else float("nan")
        if abs(share - accuracy) <= _EQUAL:
            return outcomes, ""
        if name == OUTCOMES:
            said = f"{name} has an accuracy of {100 * share:.1f} %, not the {100 * accuracy:.1f} % of its last test"
    return None, said


def clip_difference(first: Outcomes, second: Outcomes) -> ClipDifference | None:
    """The difference of accuracies, with a percentile interval of the paired bootstrap over clips (Efron 1979).

    A resample draws N clips with replacement. Only how many of them the first run alone has right, the second alone,
    and both or neither, matters, so the three counts are drawn at once, from a multinomial distribution.

    Args:
        first: Outcomes of the first run.
        second: Outcomes of the second.

    Returns:
        The difference; None where the runs were not tested on the same clips with the same labels.
    """
    import numpy as np

    if not first or first.keys() != second.keys() or any(first[id][0] != second[id][0] for id in first):
        return None
    clips = len(first)
    gained = sum(right and not second[id][1] for id, (_, right) in first.items())
    lost = sum(second[id][1] and not right for id, (_, right) in first.items())
    parts = [gained / clips, lost / clips, (clips - gained - lost) / clips]
    drawn = np.random.default_rng(0).multinomial(clips, parts, RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / clips, [0.025, 0.975])
    return ClipDifference((gained - lost) / clips, float(low), float(high), clips, gained, lost)


def _read(file: Path) -> Outcomes:
    needed = ("id", "label", "prediction")
    with reading(file, _ALLOWED):
        rows = read_table(file, _ALLOWED, needed, needed)
        # Of several labels per clip, which are lists, a clip is not right or wrong.
        return {r["id"]: (r["label"], r["label"] == r["prediction"]) for r in rows if isinstance(r["label"], str)}
