"""Times of a grid: how long it took, and will take."""

from collections.abc import Mapping, Sequence
from statistics import fmean


def time_left(
    seconds: Mapping[str, Sequence[float]], waiting: Sequence[str], running: Sequence[tuple[str, float]], jobs: int
) -> float | None:
    """Seconds that a grid will take from now on; None before a cell is finished.

    Args:
        seconds: Seconds that finished cells took, by kind.
        waiting: The kinds of the cells that have not begun.
        running: Kind and seconds so far of those that have.
        jobs: How many run at once.
    """
    known = [value for values in seconds.values() for value in values]
    if not known:
        return None
    mean = {kind: fmean(seconds.get(kind) or known) for kind in {*waiting, *(kind for kind, _ in running)}}
    left = [*(mean[kind] for kind in waiting), *(max(mean[kind] - so_far, 0.0) for kind, so_far in running)]
    return max(sum(left) / jobs, max(left, default=0.0))


def busy_seconds(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of (begin, end): time in which anything ran."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(end - max(begin, until), 0.0)
        until = max(until, end)
    return total


def duration(seconds: float) -> str:
    """A duration in words, coarser for longer times."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
