"""Report of `prepare`: counts, and the table of problems."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from amr.datamodules.store.media import KEPT, MODALITIES, STILL, Clip, without_details
from amr.utils.files import atomically


@dataclass
class PrepareReport:
    """Report of `prepare`.

    Attributes:
        total: Clips in the listing.
        ok: Clips without any problem.
        empty: Clips without any data.
        decoded: Clips decoded by this run; the others lay in finished shards.
        reasons: Number of clips by (modality, reason), the reason without its details.
        bytes: Size of the store's shards.
        seconds: Seconds that decoding took; 0: nothing was to be done.
        deaths: Worker processes that died at it.
    """

    total: int = 0
    ok: int = 0
    empty: int = 0
    decoded: int = 0
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes: int = 0
    seconds: float = 0.0
    deaths: int = 0

    def add(self, problems: Mapping[str, Mapping[str, str]]) -> None:
        """Count a shard's clips."""
        self.total += len(problems)
        self.ok += sum(not p for p in problems.values())
        self.empty += sum(
            all(without_details(p.get(m, STILL)) not in (STILL, KEPT) for m in MODALITIES) for p in problems.values()
        )
        self.reasons += count_reasons(problems.values())

    def __str__(self) -> str:
        text = f"{self.ok} of {self.total} clips are sound"
        return f"{text}; {describe_reasons(self.reasons)}" if self.reasons else text


def count_reasons(problems: Iterable[Mapping[str, str]]) -> Counter[tuple[str, str]]:
    """Number of clips by (modality, reason without details)."""
    return Counter((m, without_details(reason)) for clip in problems for m, reason in clip.items())


def describe_reasons(reasons: Counter[tuple[str, str]]) -> str:
    """One line, the most frequent reason first."""
    return ", ".join(f"{modality} {reason}: {n}" for (modality, reason), n in reasons.most_common())


def write_problems(store: Path, clips: Iterable[tuple[Clip, Mapping[str, str]]]) -> None:
    """Write `report.csv` in the store: id, modality, reason; a row per problem.

    Args:
        store: Its folder.
        clips: Each with its reasons by modality.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", "modality", "reason"])
    for clip, problems in clips:
        writer.writerows([clip.id, modality, reason] for modality, reason in problems.items())
    with atomically(store / "report.csv") as file:
        file.write(text.getvalue().encode())
