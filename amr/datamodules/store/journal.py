"""Records the clips that a worker process began; if it dies, they are suspected."""

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from amr.utils.streams import note
from amr.utils.work import Task

_FUTILE = 3  # deaths of a group's workers that no clip explains


def log_clip(log: Any, sign: str, id: str) -> None:
    """Note that a clip was begun (+) or is written (-)."""
    log.write(f"{sign}{json.dumps(id)}\n")
    log.flush()  # to the system, which outlives the process


def _begun(journal: Path) -> Counter[str]:
    """How often each clip was begun and not finished: workers died at it."""
    balance: Counter[str] = Counter()
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else ():
        with suppress(ValueError):  # a line that a full disk has cut
            balance[json.loads(line[1:])] += 1 if line[0] == "+" else -1
    return +balance


def killers_of(journal: Path) -> set[str]:
    """Clips at which two workers have died."""
    return {id for id, count in _begun(journal).items() if count >= 2}


class Deaths:
    """Decides whether to retry a group whose worker died: as long as clips explain the deaths."""

    def __init__(self) -> None:
        self.total = 0
        self._of: Counter[Path] = Counter()

    def again(self, task: Task) -> bool:
        """To be called after each death."""
        path: Path = task[0]
        self.total += 1
        self._of[path] += 1
        unexplained = self._of[path] - _begun(path.with_suffix(".journal")).total()
        if unexplained >= _FUTILE:
            note(f"{path.name}: {unexplained} worker processes died, and not at a clip")
            return False
        note(f"{path.name}: its worker process died; trying again")
        return True
