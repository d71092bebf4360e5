"""Each row's trial that validation chose: in the record, in the table's text, and on the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HEAD = ("Row", "Chosen", "Validation accuracy, %", "Trials")
AS_IT_STANDS = "as it stands"


@dataclass(frozen=True)
class Chosen:
    """The choice.

    Attributes:
        seed: The trials' seed.
        rows: Per row, `candidates`, their `val/acc` (None of a trial that failed), and the number `chosen`.
        trials: Number of trials that each row should have.
    """

    seed: int
    rows: Mapping[str, Mapping[str, Any]]
    trials: int

    @property
    def title(self) -> str:
        """Heading of the section."""
        return "Chosen by validation"

    @property
    def caption(self) -> str:
        """How it was chosen, in a few sentences."""
        untuned = [name for name, row in self.rows.items() if len(row["candidates"]) == 1]
        alone = f" Nothing to tune, so without further trials: {', '.join(untuned)}." if untuned else ""
        return (
            f"{self.trials} trials per row, each with seed {self.seed} alone; the one whose best epoch has the highest "
            f"validation accuracy is trained with all seeds, of equals the first.{alone}"
        )

    def body(self) -> list[list[str]]:
        """A line per row that was tuned."""
        lines = []
        for name, row in self.rows.items():
            if (count := len(row["candidates"])) == 1:
                continue
            accuracy = row["val/acc"][row["chosen"]]
            arguments = " ".join(a.removeprefix("--") for a in row["candidates"][row["chosen"]]) or AS_IT_STANDS
            failed = sum(value is None for value in row["val/acc"])
            number = str(count) if count == self.trials else f"{count} (no further values)"
            lines.append(
                [
                    name,
                    arguments,
                    "" if accuracy is None else f"{100 * accuracy:.1f}",
                    f"{number}, {failed} failed" if failed else number,
                ]
            )
        return lines

    def text(self) -> str:
        """The section in Markdown."""
        lines = [f"{self.title}. {self.caption}", "", f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
        return "\n".join([*lines, *(f"| {' | '.join(line)} |" for line in self.body())])

    def facts(self) -> dict[str, Any]:
        """The same for the grid's record."""
        return {"seed": self.seed, "trials": self.trials, "rows": dict(self.rows)}
