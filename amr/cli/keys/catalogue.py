"""The table of all methods, as data: what `amr methods` prints without torch, and docs/methods/README.md shows.

`python -m amr.cli.keys.catalogue` makes `catalogue.json` from the classes, a count (`amr.cli.keys.costs`) and a line of
each page, and puts the table into the page; tests compare both with the code.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

FILE = Path(__file__).with_name("catalogue.json")
PAGES = Path(__file__).parents[3] / "docs/methods"
BEGIN, END = "<!-- written by python -m amr.cli.keys.catalogue -->", "<!-- end -->"
ACTS = {
    "wrap_head": "head",
    "select": "sampler",
    "on_epoch_start": "encoders' weights",
    "turns": "steps",
    "on_encodings": "encodings",
    "on_fused": "features",
    "main_loss": "loss (replaced)",
    "losses": "loss",
    "objectives": "loss",
    "on_gradients": "gradients",
    "after_step": "head's weights",
}
"""What a method changes by each hook."""
HEADINGS = ("method", "measures", "acts on", "head", "encoders", "passes", "needs", "excludes", "released code")
PLACES = ("head", "encoders", "teachers", "train", "val", "heads")
CASES = ((2, 4), (2, 8), (3, 4))
"""Numbers of modalities and of clips in a batch with which rows are counted."""


class Method(TypedDict):
    """One method.

    Attributes:
        title: Its name for people.
        path: Its class.
        page: Its page in docs/methods.
        about: Its effect, in a sentence.
        measures: Quantity that it measures in training.
        acts_on: Things that it changes.
        rows: Forward rows per clip for each of `CASES`, by place: see `amr.cli.keys.costs.Cost`.
        needs: Requirements on the model, the data and the run.
        modalities: Fewest modalities.
        several_labels: Whether it is defined for several labels per clip.
        excludes: Methods that it cannot be combined with.
        ranges: Ranges that `amr benchmark --tune` tries, as text, by option.
        released: Difference of the released code from the paper, in a sentence.
        citation: The paper.
    """

    title: str
    path: str
    page: str
    about: str
    measures: str
    acts_on: list[str]
    rows: dict[str, list[float]]
    needs: list[str]
    modalities: int
    several_labels: bool
    excludes: list[str]
    ranges: dict[str, str]
    released: str
    citation: str


@cache
def read() -> dict[str, Method]:
    """The methods by the name of their option, as this version has them."""
    methods: dict[str, Method] = json.loads(FILE.read_text(encoding="utf-8"))
    return methods


def build(cases: Sequence[tuple[int, int]] = CASES) -> dict[str, Method]:
    """The methods of the code and the pages as they are; imports everything and trains tiny models.

    Args:
        cases: Numbers of modalities and clips to count with.
    """
    from amr.cli.keys import costs, needs
    from amr.regularizers.slots import method_slots

    slots = method_slots()
    excluded = needs.excluded(slots)
    methods: dict[str, Method] = {}
    for name, kind in slots.items():
        counts = [costs.rows(kind, *case) for case in cases]
        page = page_of(name)
        text = page.read_text(encoding="utf-8")
        methods[name] = {
            "title": kind.title or kind.name,
            "path": f"amr.regularizers.{kind.__name__}",
            "page": page.name,
            "about": _one_line((kind.__doc__ or "").partition("\n\n")[0]),
            "measures": kind.signal,
            "acts_on": acts_on(kind),
            "rows": {place: [round(getattr(count, place), 4) for count in counts] for place in PLACES},
            "needs": needs.of(kind),
            "modalities": kind.min_modalities,
            "several_labels": kind.several_labels,
            "excludes": excluded[name],
            "ranges": {option: str(span) for option, span in kind.ranges.items()},
            "released": paragraph(text, "Released code, in short."),
            "citation": paragraph(text, "Citation.").partition(" Checked:")[0],
        }
    return methods


def acts_on(kind: Any) -> list[str]:
    """What a class changes, according to its hooks; hooks that only read are left out."""
    return list(dict.fromkeys(what for hook, what in ACTS.items() if kind.overrides(hook) and hook not in kind.reads))


def page_of(name: str) -> Path:
    """The page of a method: its own, or that of a related method that mentions its configuration."""
    own = PAGES / f"{name}.md"
    told = (p for p in sorted(PAGES.glob("*.md")) if f"configs/methods/{name}.yaml" in p.read_text(encoding="utf-8"))
    return own if own.is_file() else next(told)


def paragraph(text: str, title: str) -> str:
    """A page's paragraph of a bold title, on one line.

    Raises:
        ValueError: The page has none.
    """
    found = re.search(rf"^\*\*{re.escape(title)}\*\*(.+?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"no paragraph **{title}**")
    return _one_line(found[1])


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def count_text(method: Method, place: str) -> str:
    """Rows per clip: with two modalities, and with three where that differs; B is the batch size."""
    few, many, three = method["rows"][place]
    (_, small), (_, large) = CASES[:2]
    if slope := (many - few) / (large - small):
        return f"{few - slope * small:g} + {slope:g} B; {three:g} with B = {CASES[2][1]}"
    return f"{few:g}" if three == few else f"{few:g}; {three:g}"


def cells(name: str, method: Method) -> list[str]:
    """A method's line of the table, as text."""
    encoders = count_text(method, "encoders") + (" + 1 of teachers" if any(method["rows"]["teachers"]) else "")
    passes = [f"{split} {count_text(method, split)}" for split in ("train", "val") if any(method["rows"][split])]
    passes += [f"head {count_text(method, 'heads')}"] if any(method["rows"]["heads"]) else []
    needs = [*([f"≥ {method['modalities']} modalities"] if method["modalities"] > 1 else []), *method["needs"]]
    return [
        name,
        method["measures"],
        ", ".join(method["acts_on"]),
        count_text(method, "head"),
        encoders,
        ", ".join(passes),
        "; ".join(needs),
        ", ".join(method["excludes"]),
        method["released"],
    ]


def markdown(methods: Mapping[str, Method]) -> str:
    """The table as the page has it."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|" + "---|" * len(HEADINGS)]
    for name, method in methods.items():
        _, *others = cells(name, method)
        lines.append(" | ".join([f"| [{name}]({method['page']})", *others]) + " |")
    return "\n".join(lines)


def with_table(page: str, table: str) -> str:
    """A page with the table between its markers."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    made = build()
    content = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    FILE.write_text(content, encoding="utf-8")
    page = PAGES / "README.md"
    page.write_text(with_table(page.read_text(encoding="utf-8"), markdown(made)), encoding="utf-8")
    sys.stdout.write(f"{FILE}: {len(made)} methods\n")
