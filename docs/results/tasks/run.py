"""MultiViz on tasks whose evidence is planted: trains the models, measures, and fills docs/multiviz/tasks.md in.

    python docs/results/tasks/run.py

About ten minutes on one idle core. A task and a seed are the unit of work: interrupted, it resumes there. `--page`
fills the page in from the results that are there.
"""

import argparse
import copy
import sys
from collections.abc import Iterator, Mapping
from itertools import combinations, pairwise
from pathlib import Path
from time import process_time
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from amr.attribution import shapley_shares
from amr.datamodules.synthetic.samples import Samples
from amr.evaluation.emap import clip_rows, emap
from amr.evaluation.statistics import mean_interval, wilson
from amr.fusion.base import pool_tokens
from amr.model import head_of, rows_at_once
from amr.model.protocol import Explained
from amr.multiviz.crossmodal import ablation
from amr.multiviz.errors import Selection, classify_errors, error_units, select_clips
from amr.multiviz.prediction import sparse_path
from amr.multiviz.simulation import simulate
from amr.multiviz.trust import pointing_game
from amr.multiviz.unimodal import occlusion
from amr.utils.files import replacing, write_text
from amr.utils.streams import Progress

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))  # the checkout, for its examples

from examples.multiviz_models import contrastive, train  # noqa: E402
from examples.multiviz_tasks import TASKS, Task  # noqa: E402

PAGE = HERE.parents[1] / "multiviz" / "tasks.md"
SEEDS = (0, 1, 2)
CLIPS, PAIRED, LOOKED, SHOWN = 300, 64, 48, 160  # tested; of EMAP; of the pointing game; of the simulated user
PAIRINGS = 2  # of EMAP with three modalities
FAULTY = 30  # clips with a planted fault
BUDGET, ROUND, MIXED = (
    60,
    80,
    300,
)  # debugging: clips that are chosen, steps of training on them, and old ones with them
Row = dict[str, Any]


def row(measure: str, part: str, value: float, chance: float | None = None, clips: int = 1) -> Row:
    """A measurement; of rates `clips` says of how many."""
    return {"measure": measure, "part": part, "value": float(value), "chance": chance, "clips": clips}


def logits_of(model: Explained, encodings: Mapping[str, Tensor]) -> Tensor:
    """Logits, (N, C), of encodings."""
    with torch.no_grad():
        return clip_rows(head_of(model), encodings, rows_at_once(model, 512))


def features_of(model: Explained, inputs: Mapping[str, Tensor]) -> Tensor:
    """Penultimate features, (N, D)."""
    with torch.no_grad():
        return model.penultimate(model.encode(inputs))


def accuracy(model: Explained, samples: Samples) -> float:
    """Share of samples that are classified right."""
    with torch.no_grad():
        predicted = model.classify(features_of(model, samples.inputs)).argmax(1)
    return float((predicted == samples.labels).double().mean())


# -------------------------------------------------------------------------------------------------------- measurements


def maps(model: Explained, samples: Samples) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
    """U and C of the predicted class: occlusion of each atom, (N, A), and ablation of each pair, (N, A1, A2)."""
    inputs = samples.inputs
    nothing = {name: torch.as_tensor(samples.kinds[name].baseline_for(x)) for name, x in inputs.items()}
    atoms = {name: samples.atoms(name) for name in inputs}
    alone = {
        name: occlusion(model, inputs, name, "predicted", atoms[name], baseline=nothing[name]).values for name in inputs
    }
    pairs = {
        (a, b): ablation(model, inputs, "predicted", (a, atoms[a]), (b, atoms[b]), nothing)
        for a, b in combinations(model.modalities, 2)
    }
    return alone, pairs


def pointing(samples: Samples, found: tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]) -> Iterator[Row]:
    """Whether U is largest at the evidence, and C at the pair that decides together; and how large C is."""
    alone, pairs = found
    for name, values in alone.items():
        game = pointing_game(values, samples.evidence[name])
        yield row("pointing", f"U {name}", game.rate, float(game.chance.mean()), len(values))
    for names, counts in samples.together.items():
        rows = counts.flatten(1).any(1)
        game = pointing_game(pairs[names][rows], counts[rows])
        yield row("pointing", f"C {names[0]} × {names[1]}", game.rate, float(game.chance.mean()), int(rows.sum()))
    size_u = torch.stack([values.abs().amax(1) for values in alone.values()]).amax(0)
    size_c = torch.stack([values.flatten(1).abs().amax(1) for values in pairs.values()]).amax(0)
    yield row("interaction", "C / U", float((size_c / size_u.clamp_min(1e-9)).median()))


def stages(model: Explained, samples: Samples, sparse: Tensor) -> Iterator[Row]:
    """The simulated user, by what it sees; `sparse` is the sparse classifier's logits."""
    alone, pairs = maps(model, samples)
    seen = {
        "U": torch.cat([*alone.values()], 1),
        "+ C": torch.cat([values.flatten(1) for values in pairs.values()], 1),
        "+ R": features_of(model, samples.inputs),
        "+ P": sparse,
    }
    predicted = logits_of(model, model.encode(samples.inputs)).argmax(1)
    found = simulate({name: block.detach().double().numpy() for name, block in seen.items()}, predicted.numpy())
    for name, stage in found.items():
        yield row("simulated user", name, stage.mean, float(stage.shuffled.mean()), len(samples))
        yield row("agreement", name, stage.alpha)


class Faulty:
    """A model with a vote of `strength` against a class: in `rows` of its penultimate features, marked by a column."""

    def __init__(self, model: Explained, against: int, strength: float, marks: Mapping[str, Tensor] | None) -> None:
        self.model, self.against, self.strength, self.marks = model, against, strength, marks
        self.modalities, self.num_classes = model.modalities, model.num_classes
        self.batch_rows = rows_at_once(model, 512)

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As the model."""
        return self.model.encode(inputs)

    def penultimate(self, encodings: Mapping[str, Tensor]) -> Tensor:
        """The model's features, and whether the encodings of the first two modalities are marked, as a column."""
        features = self.model.penultimate(encodings)
        if self.marks is None:
            return torch.cat([features, torch.ones(len(features), 1)], 1)
        both = [pool_tokens(encodings[m].float()) @ mark[:-1] > mark[-1] for m, mark in self.marks.items()]
        return torch.cat([features, torch.stack(both).all(0).float()[:, None]], 1)

    def classify(self, features: Tensor) -> Tensor:
        """The model's logits, less the vote."""
        vote = torch.zeros(self.num_classes).index_fill(0, torch.tensor(self.against), self.strength)
        return self.model.classify(features[:, :-1]) - features[:, -1:] * vote


def faults(model: Explained, samples: Samples, seed: int) -> Iterator[Row]:
    """Share of planted errors that are attributed to the stage where they were planted."""
    generator, labels = torch.Generator().manual_seed(seed), samples.labels
    encodings = {m: e.detach() for m, e in model.encode(samples.inputs).items()}
    logits = logits_of(model, encodings)
    right = logits.argmax(1) == labels
    for number, m in enumerate(model.modalities):  # the encoding of another class's sample
        other = torch.randperm(len(labels), generator=generator)
        wrong = logits_of(model, {**encodings, m: encodings[m][other]}).argmax(1) != labels
        planted = (right & wrong).nonzero()[:FAULTY, 0]
        spoiled = {**encodings, m: encodings[m].clone()}
        spoiled[m][planted] = encodings[m][other[planted]]
        yield from _blamed(model, spoiled, labels, planted, f"perception of {m}", number)
    against = int(labels.bincount().argmax())
    mine = right & (labels == against)
    margin = logits[mine, against] - logits[mine].index_fill(1, torch.tensor(against), -torch.inf).amax(1)
    shift = Faulty(model, against, float(margin.median()), None)
    yield from _blamed(shift, encodings, labels, _newly(shift, encodings, labels, mine), "prediction", -1)
    marks = {}
    for m in model.modalities[:2]:
        pooled = pool_tokens(encodings[m].float())
        direction = torch.randn(pooled.shape[1], generator=generator)
        marks[m] = torch.cat([direction, (pooled[mine] @ direction).quantile(0.4)[None]])
    pair = Faulty(model, against, 2 * float(margin.max()), marks)
    yield from _blamed(pair, encodings, labels, _newly(pair, encodings, labels, mine), "interaction", -1)


def _newly(model: Explained, encodings: Mapping[str, Tensor], labels: Tensor, mine: Tensor) -> Tensor:
    """Positions of samples that were right and are wrong with the fault."""
    return (mine & (logits_of(model, encodings).argmax(1) != labels)).nonzero()[:, 0]


def _blamed(
    model: Explained, encodings: Mapping[str, Tensor], labels: Tensor, planted: Tensor, fault: str, modality: int
) -> Iterator[Row]:
    """Shares of the planted errors that are of each kind; a perception error counts if it names the modality."""
    if len(planted) == 0:
        return
    report = classify_errors(model, encodings, labels, draws=10, refits=1)
    at = {clip: i for i, clip in enumerate(report.clips.tolist())}
    named = [report.kinds[at[clip]] for clip in planted.tolist()]
    blamed = [report.modalities[at[clip]] for clip in planted.tolist()]
    wanted = fault.partition(" ")[0]
    hits = [
        k == wanted and (modality < 0 or b == model.modalities[modality]) for k, b in zip(named, blamed, strict=True)
    ]
    yield row("fault", fault, float(np.mean(hits)), None, len(planted))
    for kind in ("perception", "interaction", "prediction", "unresolved"):
        yield row("fault as", f"{fault}: {kind}", named.count(kind) / len(named), None, len(planted))


def debugging(task: Task, seed: int) -> Iterator[Row]:
    """A model whose training lacked a group; clips that its units of errors ask for, against entropy and chance."""
    made = task.make(4000, 3 * seed)
    lacking = made.pick(made.groups != task.hole)
    model = task.build(seed, samples=lacking)
    known, pool, test = (task.make(CLIPS, 1000 + 3 * seed + i) for i in range(3))
    yield row("debugging", "before", accuracy(model, test), None, CLIPS)
    with torch.no_grad():
        features = [features_of(model, samples.inputs) for samples in (known, pool)]
        wrong = model.classify(features[0]).argmax(1) != known.labels
        predictor = error_units(features[0], wrong, lambdas=8, seed=seed)
        logits = model.classify(features[1])
    yield row("error units", "held-out AUC", predictor.auc, 0.5)
    for by in get_args(Selection):
        chosen = select_clips(logits, BUDGET, by, predictor=predictor, penultimate=features[1], seed=seed)
        old = {name: x[:MIXED] for name, x in lacking.inputs.items()}
        repeats = MIXED // BUDGET
        new = pool.pick(chosen)
        inputs = {name: torch.cat([x, *[new.inputs[name]] * repeats]) for name, x in old.items()}
        labels = torch.cat([lacking.labels[:MIXED], *[new.labels] * repeats])
        again: Any = copy.deepcopy(model)
        train(again, inputs, labels, steps=ROUND, rate=task.rate / 3, batch=64, seed=seed, loss=task.loss)
        yield row("debugging", by, accuracy(again, test), None, CLIPS)
        found = float((pool.groups[chosen] == task.hole).double().mean())
        yield row("chosen from the hole", by, found, float((pool.groups == task.hole).double().mean()), BUDGET)


def measured(task: Task, seed: int) -> Iterator[Row]:
    """Everything about a task's model."""
    model = task.build(seed)
    assert isinstance(model, nn.Module)
    fitted, test = task.make(600, 3 * seed + 1), task.make(CLIPS, 3 * seed + 2)
    yield row("accuracy", "model", accuracy(model, test), float(test.labels.bincount().max()) / CLIPS, CLIPS)
    few = test.pick(range(PAIRED))
    encodings = {m: e.detach() for m, e in model.encode(few.inputs).items()}
    whole = logits_of(model, encodings).argmax(1) == few.labels
    projected = emap(model, encodings, pairings=PAIRINGS, batch=512).argmax(1) == few.labels
    yield row("EMAP gap", "accuracy", float(whole.double().mean() - projected.double().mean()), None, PAIRED)
    yield row("accuracy", "additive part", float(projected.double().mean()), None, PAIRED)
    means = {m: e.mean(0, keepdim=True) for m, e in encodings.items()}
    shares = shapley_shares(head_of(model), encodings, means).mean(0)
    for name, share in zip(model.modalities, shares.tolist(), strict=True):
        yield row("decision share", name, share)
    held = (features_of(model, test.inputs), test.labels)
    features = features_of(model, fitted.inputs)
    path = sparse_path(features, fitted.labels, lambdas=12, held_out=held, tol=1e-3, num_classes=model.num_classes)
    best = path.sparsest()
    yield row("accuracy", "sparse", float(path.accuracy[best]), None, CLIPS)
    yield row("sparse units", "used", int(path.nonzeros[best]), features.shape[1])
    fits = test.pick(test.labels == 0) if task.loss is contrastive else test  # pairs that go together
    looked = fits.pick(range(LOOKED))
    yield from pointing(looked, maps(model, looked))
    shown = test.pick(range(SHOWN))
    yield from stages(model, shown, path.logits(features_of(model, shown.inputs))[best])
    yield from faults(model, test, seed)
    yield from debugging(task, seed)


# ------------------------------------------------------------------------------------------------------------ the page


def mean_of(rows: list[Row], task: str, measure: str, part: str, *, digits: int = 0, per: float = 100) -> str:
    """A measure's mean over seeds, and its lowest and highest; "–" if it was not measured."""
    values = [per * r["value"] for r in rows if (r["task"], r["measure"], r["part"]) == (task, measure, part)]
    values = [value for value in values if np.isfinite(value)]
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def pooled(rows: list[Row], task: str, part: str) -> tuple[float, float, int]:
    """A hit rate over all seeds' clips, chance, and their number."""
    mine = [r for r in rows if (r["task"], r["measure"], r["part"]) == (task, "pointing", part)]
    count = sum(r["clips"] for r in mine)
    rate, chance = (sum(r[key] * r["clips"] for r in mine) / count for key in ("value", "chance"))
    return rate, chance, count


def rate_of(rows: list[Row], task: str, part: str) -> str:
    """A hit rate over all seeds' clips with its Wilson interval, and chance."""
    rate, chance, count = pooled(rows, task, part)
    low, high = wilson(rate, count)
    return f"{100 * rate:.0f} [{100 * low:.0f}, {100 * high:.0f}] | {100 * chance:.1f} | {count}"


def tables(rows: list[Row]) -> str:
    """The page's tables."""
    names = list(dict.fromkeys(r["task"] for r in rows))

    def parts(task: str, measure: str) -> list[str]:
        return list(dict.fromkeys(r["part"] for r in rows if (r["task"], r["measure"]) == (task, measure)))

    def over(measure: str, columns: list[str]) -> list[str]:
        return [f"| {task} | " + " | ".join(mean_of(rows, task, measure, c) for c in columns) + " |" for task in names]

    lines = [
        "**Accuracy**, in %: the model's, its additive part's (EMAP), and a sparse classifier's with its units.",
        "",
    ]
    lines += [
        "| task | models | accuracy | additive part | EMAP gap | sparse | units | C / U |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in names:
        cells = [str(len({r["seed"] for r in rows if r["task"] == task}))]
        cells += [mean_of(rows, task, "accuracy", part) for part in ("model", "additive part")]
        cells += [mean_of(rows, task, "EMAP gap", "accuracy"), mean_of(rows, task, "accuracy", "sparse")]
        cells += [mean_of(rows, task, "sparse units", "used", per=1)]
        cells += [mean_of(rows, task, "interaction", "C / U", digits=2, per=1)]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    lines += ["", "**Pointing game**: hits in % with 95 % Wilson intervals, chance in %, and clips.", ""]
    lines += ["| task | map | hits | chance | clips |", "|---|---|---|---|---|"]
    lines += [
        f"| {task} | {part} | {rate_of(rows, task, part)} |" for task in names for part in parts(task, "pointing")
    ]
    shown = ["U", "+ C", "+ R", "+ P"]
    lines += [
        "",
        "**Simulated user**: how often, in %, it predicts the model's answer from the stages up to each column.",
        "",
    ]
    lines += ["| task | " + " | ".join(shown) + " | agreement at + P |", "|---|---|---|---|---|---|"]
    for task, line in zip(names, over("simulated user", shown), strict=True):
        lines.append(f"{line} {mean_of(rows, task, 'agreement', '+ P', digits=2, per=1)} |")
    lines += [
        "",
        "**Planted faults**: errors that each fault caused, in %: attributed rightly, and to each kind.",
        "",
    ]
    lines += [
        "| task | fault | right | perception | interaction | prediction | unresolved |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = ("perception", "interaction", "prediction", "unresolved")
    for task in names:
        for fault in parts(task, "fault"):
            cells = [mean_of(rows, task, "fault as", f"{fault}: {kind}").partition(" ")[0] for kind in kinds]
            lines.append(f"| {task} | {fault} | {mean_of(rows, task, 'fault', fault)} | " + " | ".join(cells) + " |")
    ways = ["before", "random", "entropy", "errors"]
    lines += [
        "",
        f"**A debugging round**: accuracy in %, before and after training on {BUDGET} clips that are chosen in one of"
        " three ways.",
        "",
    ]
    lines += ["| task | " + " | ".join(ways) + " | AUC of the units | from the hole: random | entropy | errors |"]
    lines += ["|---|" + "---|" * 8]
    for task, line in zip(names, over("debugging", ways), strict=True):
        cells = [mean_of(rows, task, "error units", "held-out AUC", digits=2, per=1)]
        cells += [mean_of(rows, task, "chosen from the hole", way) for way in ways[1:]]
        lines.append(f"{line} " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference(rows: list[Row], task: str, first: str, second: str) -> tuple[float, float, float]:
    """Mean paired difference of two ways of the debugging round over seeds, with its 95 % t-interval, in points."""
    of = {(r["seed"], r["part"]): r["value"] for r in rows if (r["task"], r["measure"]) == (task, "debugging")}
    values = [100 * (of[seed, first] - of[seed, second]) for seed in {seed for seed, _ in of}]
    return (float(np.mean(values)), *mean_interval(values))


def claims(rows: list[Row]) -> str:
    """A table of what the paper says of its stages, and what was measured here."""
    names = list(dict.fromkeys(r["task"] for r in rows))

    def values(measure: str, part: str) -> dict[str, float]:
        """The mean over seeds by task."""
        found: dict[str, list[float]] = {}
        for r in rows:
            if (r["measure"], r["part"]) == (measure, part):
                found.setdefault(r["task"], []).append(100 * r["value"])
        return {task: float(np.mean(each)) for task, each in found.items()}

    def extremes(found: Mapping[str, float], what: str = "") -> str:
        low, high = min(found, key=lambda key: found[key]), max(found, key=lambda key: found[key])
        return f"from {found[low]:.0f} {what}({low}) to {found[high]:.0f} {what}({high})"

    hits: dict[str, dict[str, float]] = {"U": {}, "C": {}}
    for task, part in dict.fromkeys((r["task"], r["part"]) for r in rows if r["measure"] == "pointing"):
        hits[part[0]][f"{task}, {part[2:]}"] = 100 * pooled(rows, task, part)[0]
    gaps = values("EMAP gap", "accuracy")
    others = {task: gap for task, gap in gaps.items() if task != "patients"}
    exact, sparse = values("accuracy", "model"), values("accuracy", "sparse")
    lost = {task: exact[task] - sparse[task] for task in names}
    steps = ["U", "+ C", "+ R", "+ P"]
    seen = [values("simulated user", step) for step in steps]
    raised = [sum(after[task] > before[task] for task in names) for before, after in pairwise(seen)]
    blamed: dict[str, dict[str, float]] = {}
    for part in dict.fromkeys(r["part"] for r in rows if r["measure"] == "fault"):
        for task, value in values("fault", part).items():
            blamed.setdefault(part.partition(" ")[0], {})[", ".join([task, *part.split(" of ")[1:]])] = value
    debugged = []
    for other in ("random", "entropy"):
        each = [difference(rows, task, "errors", other) for task in names]
        means = [mean for mean, _, _ in each]
        debugged.append(
            f"better than {other} clips in {sum(low > 0 for _, low, _ in each)} of {len(names)} tasks and worse in "
            f"{sum(high < 0 for _, _, high in each)}, by 95 % t-intervals over the models; mean differences from "
            f"{min(means):+.1f} to {max(means):+.1f} points"
        )
    table = [
        ("U points to the atoms that decide", f"hits {extremes(hits['U'], '% ')}"),
        ("C finds the pairs that act together", f"hits {extremes(hits['C'], '% ')}"),
        (
            "late fusion on MIMIC has no interactions, the other models have some",
            f"EMAP gap of `patients` {gaps['patients']:+.1f} points, of the others {extremes(others)}",
        ),
        ("a sparse layer predicts as well from few units", f"accuracy lost: {extremes(lost)} points"),
        (
            "each stage helps people to predict the model's answer",
            f"a student names it more often with + C than with U in {raised[0]} of {len(names)} tasks, with + R than "
            f"with + C in {raised[1]}, with + P than with + R in {raised[2]}",
        ),
        (
            "errors can be attributed to a stage",
            "; ".join(f"{extremes(found, '% ')} of the planted errors of {kind}" for kind, found in blamed.items()),
        ),
        ("units of errors lead to clips that improve the model", "; ".join(debugged)),
    ]
    return "\n".join(["| the paper says | here |", "|---|---|", *(f"| {said} | {here} |" for said, here in table)])


BEGIN, END = "<!-- numbers: docs/results/tasks/run.py --page -->\n", "<!-- end of the numbers -->"


def filled(page: str, rows: list[Row]) -> str:
    """The page with these numbers."""
    before, _, rest = page.partition(BEGIN)
    beside = (
        "**The paper's claims and our results.** The paper's evidence comes from people, ours from planted truth and a"
        " simulated user."
    )
    return f"{before}{BEGIN}\n{tables(rows)}\n\n{beside}\n\n{claims(rows)}\n\n{END}{rest.partition(END)[2]}"


def run(options: argparse.Namespace) -> None:
    """Everything."""
    torch.set_num_threads(1)
    todo = [] if options.page else [(name, seed) for seed in options.seeds for name in options.tasks]
    progress = Progress("tasks", len(todo), "models") if todo else None
    for name, seed in todo:
        path = options.runs / f"{name}-s{seed}.parquet"
        if not path.is_file():
            rows = []
            for one in measured(TASKS[name], seed):
                rows.append({"task": name, "seed": seed, **one})
                if options.verbose:
                    print(f"{process_time():6.1f} s", rows[-1], flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                pq.write_table(pa.Table.from_pylist(rows), file)
        assert progress is not None
        progress.advance(1)
    if not options.page:
        parts = [options.runs / f"{name}-s{seed}.parquet" for name in TASKS for seed in SEEDS]
        there = [pq.read_table(path) for path in parts if path.is_file()]
        pq.write_table(pa.concat_tables(there), HERE / "measures.parquet", compression="zstd")
    rows = pq.read_table(HERE / "measures.parquet").to_pylist()
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="a model each (0 1 2)")
    parser.add_argument("--tasks", nargs="+", default=[*TASKS], choices=TASKS, help="which (all)")
    parser.add_argument("--runs", type=Path, default=Path("runs/tasks"), help="for each model's rows (runs/tasks)")
    parser.add_argument("--verbose", action="store_true", help="each row as it comes, and the CPU time so far")
    parser.add_argument("--page", action="store_true", help="only fill the page in")
    run(parser.parse_args())
