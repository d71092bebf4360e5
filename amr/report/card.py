"""The model card of a run: card.md in its folder, written by `fit`, brought up to date by `test`.

Its headings are those of Mitchell et al. 2019, "Model Cards for Model Reporting". It says what the run's files say and
nothing else: what was not measured is listed as that.
"""

import html
import platform
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amr.evaluation.runs import SHARES, Run, Source, read_folder
from amr.report.parts.beside import around, link, report_near, sites_near
from amr.utils.files import write_text
from amr.utils.names.version import __version__
from amr.utils.readers import printable, read_object, reading
from amr.utils.resume import told

if TYPE_CHECKING:
    from amr.evaluation.table import Row

NAME = "card.md"
MOST = 40  # rows of the table by class
SHOWN = (
    "acc",
    *(f"acc_missing_{stand_in}" for stand_in in ("zeros", "mean", "other")),
    *(f"worst_missing_{stand_in}" for stand_in in ("zeros", "mean", "other")),
    "perceptual",
    *("conflict", "conflict_neither"),
    *(f"outcome_{kind}" for kind in ("redundant", "unique", "synergistic", "lost", "neither")),
    "auc",
    "ece",
)
SOURCES: tuple[Source, ...] = ("val", "test")
SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}


def versions() -> dict[str, str]:
    """Versions of the packages that decide a run's numbers."""
    packages = ("torch", "pytorch-lightning", "torchvision", "torchaudio", "av")
    return {"amr": __version__, "python": platform.python_version(), **{name: version(name) for name in packages}}


def write_card(folder: Path) -> None:
    """Writes card.md from run.json, config.yaml, metrics/, per_class.csv and, if there, robustness.parquet.

    Args:
        folder: The run's folder.

    Raises:
        UserError: One of the files cannot be read, or the card cannot be written.
    """
    run = read_folder(folder)
    facts = read_object(folder / "run.json")
    with reading(folder / "run.json", "facts as amr fit writes them"):
        text = _text(folder, run, facts)
    write_text(folder / NAME, text)


def _text(folder: Path, run: Run, facts: Mapping[str, Any]) -> str:
    # One that is older than the last training is of other weights, and so are test metrics, which are dropped then.
    robustness = _read_robustness(folder / "robustness.parquet") if "test/acc" in run.test else []
    sections = {
        "Model details": _details(run, facts),
        "Intended use": _use(run),
        "Factors": _factors(run),
        "Metrics": _metrics(run, robustness),
        "Evaluation data": _data(run, facts, ("val", "test")),
        "Training data": _data(run, facts, ("train",)),
        "Quantitative analyses": _numbers(run, robustness),
        "Ethical considerations": "Not assessed: the run's files say nothing about who is in the clips, how they came "
        "to be there, or what harm a wrong class does. The data set's own documentation and terms apply.",
        "Caveats and recommendations": _caveats(run, facts, robustness),
    }
    text = "\n\n".join(f"## {title}\n\n{content}" for title, content in sections.items())
    return f"# Model card: {_escape(run.title)} on {_escape(run.dataset)}\n\n{text}\n"


def _details(run: Run, facts: Mapping[str, Any]) -> str:
    settings = run.settings
    methods = [name for name in run.method.split("+") if f"model.{name}.class_path" in settings or _under(run, name)]
    rows: list[Sequence[str]] = [
        ("method", f"{run.title} ({run.method})"),
        *((f"model.{name}.{key}", value) for name in methods for key, value in _under(run, name).items()),
        ("modalities", ", ".join(run.modalities)),
        *((f"encoder of {m}", settings.get(f"model.encoders.{m}.class_path", "")) for m in run.modalities),
        ("fusion", run.fusion),
        ("classes", str(len(run.labels))),
        ("seed", str(run.seed)),
        ("optimizer", _class(settings, "model.optimizer")),
        ("schedule", _class(settings, "model.lr_scheduler") or "constant rate"),
        ("epochs", f"{len(run.epochs)} of {settings.get('trainer.max_epochs', 'unlimited')}"),
        *(("resumed", told(start).removeprefix("resumed ")) for start in facts.get("resumed") or []),
        ("trained on", str(facts.get("device", ""))),
        ("commit", str(facts.get("git", ""))),
        ("versions", ", ".join(f"{name} {number}" for name, number in facts.get("versions", {}).items())),
    ]
    config = shlex.quote(str(run.path / "config.yaml"))
    again = f"amr fit --config {config} --name {run.path.resolve().name}-again --ckpt_path null"
    return (
        f"{_table(('', ''), [row for row in rows if row[1]])}\n\nEvery setting: [config.yaml](config.yaml). To train "
        f"it again, where it was trained:\n\n```sh\n{again}\n```{_beside(run.path)}"
    )


def _beside(folder: Path) -> str:
    """Links to the report that the run is in and to sites that explain it, as far as they lie near."""
    report = report_near(around(folder))
    files = [("Report", report)] if report else []
    files += [("Site", page) for page in sites_near([folder, folder.resolve().parent.parent])]
    links = [f"[{name}]({href})" for name, file in files if (href := link(file, folder))]
    return f"\n\nBeside it: {', '.join(links)}." if links else ""


def _use(run: Run) -> str:
    labels = ", ".join(map(_escape, run.labels[:MOST]))
    more = f" and {len(run.labels) - MOST} more" if len(run.labels) > MOST else ""
    return (
        f"To give a clip that has {_and(run.modalities)} one of {len(run.labels)} classes: {labels}{more}. It gives "
        "one of them to any clip, whatever the clip shows. It was tried on this data set's clips alone; any other use "
        "is untested."
    )


def _factors(run: Run) -> str:
    told = "by class and by modality" if run.per_class else "by modality"
    return (
        f"Numbers are given {told}. Other groups (of speakers, places, recording devices, ...) are not in the run's "
        "files and were not told apart."
    )


def _metrics(run: Run, robustness: "Sequence[Row]") -> str:
    lines = [
        "- acc: share of clips whose most probable class is right.",
        "- mAP: mean over classes of the average precision of their probabilities.",
    ]
    if len(run.modalities) > 1:
        lines.append(
            "- dominance: a modality's mean share in the attribution of the predicted class, which says what the "
            "decision is computed from."
        )
    if robustness:
        lines += [
            "- acc\\_missing: accuracy where a modality's encoding is replaced by zeros, by the training clips' mean, "
            "or by another clip's; worst\\_missing: the lowest of them.",
            "- perceptual: part of the accuracy that goes when a modality is shuffled between clips.",
            "- conflict: how often the output is the class of this modality's clip, where the other modalities come "
            "from a clip of another class; conflict\\_neither: it is neither clip's.",
            "- outcome: part of the clips that are right together and with several modalities alone (redundant), with "
            "one alone (unique), with none (synergistic); wrong together and right with some alone (lost), or with "
            "none (neither).",
            "- auc: area under accuracy against the severity of a modality's corruptions, from 0 to 5, over 5.",
            "- ece: expected calibration error.",
        ]
    return "\n".join(lines)


def _data(run: Run, facts: Mapping[str, Any], splits: Iterable[str]) -> str:
    clips = facts.get("clips")
    if clips is None:
        return (
            f"{_escape(run.dataset)}. How many clips, and which were left out, is not on record: another data module."
        )
    counts = ", ".join(f"{clips.get(split, 0):,} {SPLIT_NAMES[split]} clips" for split in splits)
    parts = [
        f"{_escape(run.dataset)}: {counts}, of {facts['listed']:,} listed in all.",
        f"Splits: {_escape(facts['split'])}.",
    ]
    if skipped := facts.get("skipped"):
        reasons = ", ".join(f"{_escape(reason)}: {count:,}" for reason, count in skipped.items())
        parts.append(f"Left out of all splits, by what was wrong (a clip may have several): {reasons}.")
    return " ".join(parts)


def _numbers(run: Run, robustness: "Sequence[Row]") -> str:
    found = {SPLIT_NAMES[split]: run.numbers(split) for split in SOURCES}
    found = {split: numbers for split, numbers in found.items() if numbers}
    names = ["acc", "mAP", "loss", *(f"{kind}/{m}" for kind in SHARES for m in run.modalities)]
    rows = [
        (name, *(f"{numbers[name]:.4f}" if name in numbers else "" for numbers in found.values()))
        for name in names
        if any(name in numbers for numbers in found.values())
    ]
    parts = [_table(("", *found), rows) if rows else "Nothing was measured yet."]
    if "validation" in found:
        chosen = run.settings.get("best.monitor", "val/acc")
        parts.append(f"Validation: epoch {run.best_epoch}, the first with the highest accuracy.")
        parts.append(f"best.ckpt was chosen by {chosen}.")
    if "test" in found:
        parts.append("Test: of the checkpoint that `amr test` was last given.")
    if by_class := run.per_class.get("test") or run.per_class.get("val"):
        split = "test" if run.per_class.get("test") else "validation, at the end of training"
        columns = list(next(iter(by_class.values())))
        worst = sorted(by_class.items(), key=lambda item: item[1].get("acc", 0.0))
        shown = worst[:MOST]
        cells = [(name, *(_cell(column, values.get(column)) for column in columns)) for name, values in shown]
        more = f", the {MOST} with the lowest accuracy of {len(worst)}" if len(worst) > MOST else ""
        parts.append(f"By class ({split}{more}):\n\n{_table(('class', *columns), cells)}")
    if robustness:
        cells = [
            (
                row.measure,
                row.modality,
                row.corruption,
                *(f"{number:.4f}" for number in (row.value, row.low, row.high)),
                str(row.clips),
            )
            for row in robustness
        ]
        head = ("measure", "modality", "corruption", "value", "low", "high", "clips")
        parts.append(
            "Robustness, on the test split, with 95 % intervals over clips (`mean`: over a modality's corruptions); "
            f"every measure is in robustness.parquet:\n\n{_table(head, cells)}"
        )
    return "\n\n".join(parts)


def _caveats(run: Run, facts: Mapping[str, Any], robustness: "Sequence[Row]") -> str:
    lines = []
    if "test/acc" not in run.test:
        lines.append("It was not tested: no number here is of the test split (`amr test` adds them).")
    if run.best_epoch is None:
        lines.append("It was not validated: no epoch was chosen by held-out clips.")
    if len(run.modalities) > 1 and not robustness:
        lines.append(
            "What it loses when a modality is missing or goes wrong was not measured (`amr test --robustness.test "
            "true` does)."
        )
    lines.append(f"One run, of seed {run.seed}: how much its numbers vary from seed to seed is not known from it.")
    if facts.get("resumed"):
        lines.append("It was not trained with these settings from the start: see `resumed` above.")
    clips = facts.get("clips", {})
    if empty := [SPLIT_NAMES[split] for split in SPLIT_NAMES if clips.get(split) == 0]:
        lines.append(f"There were no {_and(empty)} clips.")
    for split, by_class in run.per_class.items():
        if unseen := sorted(set(run.labels) - set(by_class)):
            shown = ", ".join(map(_escape, unseen[:5])) + (" and others" if len(unseen) > 5 else "")
            lines.append(f"{len(unseen)} of the classes have no {SPLIT_NAMES.get(split, split)} clip: {shown}.")
    missing = run.settings.get("data.init_args.missing")
    if missing == "skip":
        lines.append("Clips that lack a modality, or could not be decoded, are in no number.")
    elif missing == "keep":
        lines.append(
            "Clips that lack a modality are in the accuracy, with zeros for its encoding, and in no dominance."
        )
    lines.append("No other data set, and no shift of the recording conditions beyond what is listed above, was tried.")
    return "\n".join(f"- {line}" for line in lines)


def _read_robustness(path: Path) -> "list[Row]":
    """Rows of `SHOWN`, without those of single severities and corruptions."""
    if not path.is_file():
        return []
    from amr.evaluation.table import read_rows

    of_all = [row for row in read_rows(path) if row.severity is None and row.corruption in ("", "mean")]
    return sorted((row for row in of_all if row.measure in SHOWN), key=lambda row: SHOWN.index(row.measure))


def _under(run: Run, method: str) -> dict[str, str]:
    """A method's settings."""
    prefix = f"model.{method}."
    found = {key.removeprefix(prefix): value for key, value in run.settings.items() if key.startswith(prefix)}
    return {key.removeprefix("init_args."): value for key, value in found.items() if key != "class_path"}


def _class(settings: Mapping[str, str], key: str) -> str:
    """A class with its arguments, as in `torch.optim.SGD(lr=0.1)`."""
    prefix = f"{key}.init_args."
    arguments = ", ".join(f"{k.removeprefix(prefix)}={v}" for k, v in settings.items() if k.startswith(prefix))
    return f"{settings[f'{key}.class_path']}({arguments})" if f"{key}.class_path" in settings else ""


def _cell(column: str, value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if column == "clips" else f"{value:.4f}"


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(map(_escape, names[:-1])), *map(_escape, names[-1:]))))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell if cell == '---' else _escape(cell) for cell in line)} |" for line in lines)


def _escape(text: str) -> str:
    """Text of the user's (labels, paths) that neither Markdown nor HTML takes for theirs."""
    return re.sub(r"([\\`*_{}\[\]()#!|~$^])", r"\\\1", html.escape(printable(text), quote=False))
