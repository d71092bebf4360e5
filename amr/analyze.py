"""`amr analyze`: every analysis of a checkpoint, on chosen clips of a split, to a folder; resumes where it stopped.

The folder holds plan.json (what is analysed), encodings.pt (so that the clips are encoded once), a parquet file an
analysis, images/ with a picture a clip, and summary.md. An analysis, and within U and C a clip, is the unit of work:
its file is whole or not there.
"""

import argparse
import functools
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from amr.datamodules.work import Progress
from amr.errors import UserError
from amr.files import replacing, write_bytes, write_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from amr.datamodules import ClipDataModule
    from amr.model import FusionModel
    from amr.multiviz.atoms import Atoms
    from amr.multiviz.faithfulness import Explain

STAGES = ("unimodal", "crossmodal", "representation", "prediction", "errors", "trust")
TRUST_CLIPS = 4  # each is explained some fifteen times
EXTREMES = 10  # clips a unit and end
PREDICTION_CLIPS = 2000  # training clips that the sparse classifiers are fitted to
JOINT = {"audio": (4, 4), "video": (2, 2, 2)}  # coarser atoms, for methods with a coefficient for each pair
Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--ckpt", type=Path, required=True, help="a checkpoint of a run")
    parser.add_argument("--data", type=Path, help="a configuration with a `data` section (the run's own config.yaml)")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="whose clips (test)")
    parser.add_argument("--clips", type=int, default=50, help="clips that U and C explain (50)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; one that is there goes on")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="which analyses (all)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of clips and of sampled methods (0)")
    parser.add_argument("--samples", type=int, default=256, help="masks a repeat of LIME, SHAP and DIME (256)")


def run(options: argparse.Namespace) -> int:
    """Runs the stages that are not done yet.

    Args:
        options: The arguments.

    Returns:
        Exit status.

    Raises:
        UserError: For anything that the user can mend.
    """
    if options.clips < 2:
        raise UserError(f"--clips={options.clips}: at least 2 are needed, for EMAP pairs them")
    analysis = Analysis.open(options)
    for stage in STAGES:
        if stage in options.stages:
            getattr(analysis, stage)()
    analysis.summary()
    print(f"{analysis.out}: {(analysis.out / 'summary.md').relative_to(analysis.out)} says what was found")
    return 0


@dataclass
class Split:
    """A split's clips as the head sees them.

    Attributes:
        ids: Of the clips that have every modality.
        labels: (N,) int64.
        encodings: (N, ...) a modality.
        index: Position of each in the split's dataset.
    """

    ids: list[str]
    labels: "Tensor"
    encodings: "dict[str, Tensor]"
    index: list[int]


class Analysis:
    """A checkpoint, its data and the folder of results.

    Args:
        options: The command's.
        model: The checkpoint's.
        data: Its data.
    """

    def __init__(self, options: argparse.Namespace, model: "FusionModel", data: "ClipDataModule") -> None:
        from amr.datamodules.base import stable_order

        self.out: Path = options.out
        self.model, self.data = model, data
        self.split: Literal["train", "val", "test"] = options.split
        self.seed: int = options.seed
        self.samples: int = options.samples
        self.device = next(model.parameters()).device
        self.test = self._encode(self.split, None)
        count = min(options.clips, len(self.test.ids))
        if count < 2:
            raise UserError(f"--split={self.split}: {count} clips have every modality; at least 2 are needed")
        place = {id: i for i, id in enumerate(self.test.ids)}
        self.chosen = [place[id] for id in sorted(stable_order(place, self.seed)[:count])]
        self.atoms = {m: data.atoms(m) for m in model.modalities}
        self.coarse = {m: data.atoms(m, JOINT.get(m)) for m in model.modalities}
        logits = self._head(self.test)
        self.predicted = logits.argmax(1).cpu()

    @classmethod
    def open(cls, options: argparse.Namespace) -> "Analysis":
        """Builds everything, and refuses a folder with another analysis."""
        import torch

        from amr.load import load_model

        model = load_model(options.ckpt).to("cuda" if torch.cuda.is_available() else "cpu")
        section = _data_section(options)
        plan = {
            "checkpoint": hashlib.sha256(options.ckpt.read_bytes()).hexdigest(),
            "data": section,
            **{key: getattr(options, key) for key in ("split", "clips", "seed", "samples")},
        }
        path = options.out / "plan.json"
        if path.is_file():
            there = json.loads(path.read_text())
            if differing := [key for key in plan if plan[key] != there.get(key)]:
                raise UserError(
                    f"--out={options.out}: it holds an analysis of another {', '.join(differing)}; name another folder"
                )
        data = _datamodule(section)
        lacking = [m for m in model.modalities if m not in data.modalities]
        if lacking:
            has = ", ".join(map(repr, data.modalities))
            raise UserError(f"--data: the model has the modality {lacking[0]!r}, data.modalities has {has}")
        data.prepare_data()
        data.setup()
        write_text(path, json.dumps(plan, indent=1) + "\n")
        return cls(options, model, data)

    # ---------------------------------------------------------------------------------------------------- the stages

    def unimodal(self) -> None:
        """U: every method, on each modality of each chosen clip; and a picture of it."""

        def explain(position: int) -> list[Row]:
            inputs, rows, maps = self._inputs(position), [], {}
            for modality, atoms in self.atoms.items():
                maps[modality] = [
                    one(self.model, inputs, self.seed) for one in self._methods(modality, "predicted").values()
                ]
                for one in maps[modality]:
                    rows += self._atom_rows(position, modality, one.method, one, atoms)
            self._draw(position, inputs, maps)
            return rows

        self._by_clip("unimodal", explain)

    def trust(self) -> None:
        """How far each of U's methods can be believed on this model, from a few clips."""
        from amr.multiviz.faithfulness import trust

        path = self.out / "trust.parquet"
        if path.is_file():
            return
        few = self.chosen[:TRUST_CLIPS]
        inputs = {m: x[: len(few)] for m, x in self.inputs.items()}
        target = self.predicted[few].to(self.device)
        todo = [(m, name, one) for m in self.atoms for name, one in self._methods(m, target).items()]
        progress, rows = Progress("trust", len(todo), "maps"), []
        for modality, name, one in todo:
            found = trust(self.model, inputs, modality, target, one, seed=self.seed)
            rows.append(
                {"modality": modality, "method": name, **found.summary(), "warnings": "; ".join(found.warnings)}
            )
            progress.advance(1)
        _write(path, rows)

    def crossmodal(self) -> None:
        """C: EMAP, DIME, Shapley values of the modalities, and pairs of atoms by every method."""
        from amr.multiviz import crossmodal as c

        if len(self.model.modalities) < 2:
            print("crossmodal: one modality has nothing to interact with", file=sys.stderr)
            return
        encodings = {m: e[self.chosen].to(self.device) for m, e in self.test.encodings.items()}
        chosen = [self.test.ids[i] for i in self.chosen]
        table = self.out / "modalities.parquet"
        if not table.is_file():
            projected = c.emap(self.model, encodings, seed=self.seed).cpu()
            additive, rest = (
                part.cpu() for part in c.contributions(self.model, encodings, "predicted", seed=self.seed)
            )
            shapley = c.modality_shapley(self.model, encodings, "mean", "predicted").cpu()
            pairs = c.interaction_index(self.model, encodings, "mean", "predicted").cpu()
            _write(
                table,
                [
                    {
                        "id": id,
                        "label": self.data.labels[int(self.test.labels[i])],
                        "predicted": self.data.labels[int(self.predicted[i])],
                        "emap_predicted": self.data.labels[int(projected[n].argmax())],
                        "additive": float(additive[n]),
                        "interaction": float(rest[n]),
                        **{f"shapley_{m}": float(shapley[n, k]) for k, m in enumerate(self.model.modalities)},
                        **{
                            f"pair_{self.model.modalities[a]}_{self.model.modalities[b]}": float(pairs[n, a, b])
                            for a, b in combinations(range(len(self.model.modalities)), 2)
                        },
                    }
                    for n, (id, i) in enumerate(zip(chosen, self.chosen, strict=True))
                ],
            )
        place = {position: n for n, position in enumerate(self.chosen)}

        def explain(position: int) -> list[Row]:
            rows: list[Row] = []
            inputs = self._inputs(position)
            for modality in self.model.modalities:
                part = c.dime(
                    self.model,
                    {modality: self.inputs[modality]},
                    encodings,
                    "predicted",
                    (modality, self.coarse[modality]),
                    clips=[place[position]],
                    samples=max(self.samples, len(self.coarse[modality]) + 2),
                    repeats=2,
                    seed=self.seed,
                )
                for kind, estimate in (("dime_unimodal", part.unimodal), ("dime_multimodal", part.multimodal)):
                    rows += self._atom_rows(position, modality, kind, estimate, self.coarse[modality])
            for first, second in combinations(self.model.modalities, 2):
                fine = ((first, self.atoms[first]), (second, self.atoms[second]))
                coarse = ((first, self.coarse[first]), (second, self.coarse[second]))
                maps: list[tuple[str, Tensor, Tensor | None, Mapping[str, Atoms]]] = [
                    ("ablation", c.ablation(self.model, inputs, "predicted", *fine), None, self.atoms),
                    ("second_order", c.second_order(self.model, inputs, "predicted", *fine), None, self.atoms),
                ]
                needed = 2 + (1 + len(coarse[0][1])) * (1 + len(coarse[1][1]))
                sampled: Any = {"samples": max(self.samples, 2 * needed), "repeats": 2, "seed": self.seed}
                for name, method in (("joint_lime", c.joint_lime), ("joint_shap", c.joint_shap)):
                    found = method(self.model, inputs, "predicted", *coarse, **sampled)
                    maps.append((name, found.pairs.values, found.pairs.error, self.coarse))
                for kind, values, error, atoms in maps:
                    rows += self._pair_rows(position, first, second, kind, values, error, atoms)
            return rows

        self._by_clip("crossmodal", explain)

    def representation(self) -> None:
        """R: the clips of the split that activate each penultimate unit most and least."""
        from amr.multiviz.representation import extreme_clips

        path = self.out / "representation.parquet"
        if path.is_file():
            return
        found = extreme_clips(self._batches(self.split, "representation"), self.model, k=EXTREMES)
        rows = [
            {"unit": unit, "end": end, "rank": rank, "id": id, "value": value, "label": self.data.labels[label]}
            for end, clips in (("most", found.most), ("least", found.least))
            for unit, ids, values, labels in zip(
                found.units, clips.ids, clips.values.tolist(), clips.labels.tolist(), strict=True
            )
            for rank, (id, value, label) in enumerate(zip(ids, values, labels, strict=True))
        ]
        _write(path, rows)

    def prediction(self) -> None:
        """P: the path of sparse classifiers, fitted to training clips, and the sparsest good one's units."""
        import torch

        from amr.multiviz.prediction import sparse_path, top_units

        if (self.out / "units.parquet").is_file():
            return
        train = self._encode("train", PREDICTION_CLIPS)
        held_out = (self._head(self.test, penultimate=True), self.test.labels)
        features = self._head(train, penultimate=True)
        classes = self.data.num_classes
        top = sparse_path(features, train.labels, lambdas=1, num_classes=classes).lambdas  # where the path begins
        lambdas = top * torch.logspace(0, -1.5, 12, dtype=top.dtype)  # beyond, all units are in use and steps are slow
        path = sparse_path(features, train.labels, lambdas=lambdas, held_out=held_out, num_classes=classes, tol=1e-3)
        _write(
            self.out / "prediction.parquet",
            [
                {"lambda": lam, "units": units, "accuracy": accuracy, "kkt_residual": residual}
                for lam, units, accuracy, residual in zip(
                    path.lambdas.tolist(),
                    path.nonzeros.tolist(),
                    path.accuracy.tolist(),
                    path.residuals.tolist(),
                    strict=True,
                )
            ],
        )
        best = path.sparsest()
        _write(
            self.out / "units.parquet",
            [
                {"class": label, "unit": unit, "coefficient": coefficient, "lambda": float(path.lambdas[best])}
                for label, units in zip(self.data.labels, top_units(path, best, 20), strict=True)
                for unit, coefficient in units
            ],
        )

    def errors(self) -> None:
        """Wrong predictions of the split, sorted by what repairs them, and the units that are active on them."""
        from amr.multiviz.errors import classify_errors, error_units

        path = self.out / "errors.parquet"
        if path.is_file():
            return
        encodings = {m: e.to(self.device) for m, e in self.test.encodings.items()}
        found = classify_errors(self.model, encodings, self.test.labels.to(self.device), seed=self.seed)
        columns = ["kind", "modality", "interaction_confidence", "prediction_confidence", "references"]
        columns += [f"perception_{m}_confidence" for m in self.model.modalities]
        values = zip(
            found.kinds,
            found.modalities,
            found.interaction.tolist(),
            found.prediction.tolist(),
            found.references.tolist(),
            *found.perception.T.tolist(),
            strict=True,
        )
        clips = map(self._clip, found.clips.tolist())
        rows = [{**clip, **dict(zip(columns, row, strict=True))} for clip, row in zip(clips, values, strict=True)]
        wrong = self.predicted != self.test.labels
        try:
            units = error_units(self._head(self.test, penultimate=True), wrong, seed=self.seed)
        except UserError as error:  # too few errors to learn from
            print(f"left out: {error}", file=sys.stderr)
        else:
            kept = zip(units.units.tolist(), units.weights.tolist(), strict=True)
            _write(
                self.out / "error_units.parquet",
                [{"unit": unit, "weight": weight, "held_out_auc": units.auc} for unit, weight in kept],
            )
        _write(path, rows)

    def summary(self) -> None:
        """Writes summary.md from the files that are there."""
        lines = [f"# {self.data.name}, {self.split}: {len(self.test.ids)} clips that have every modality", ""]
        accuracy = float((self.predicted == self.test.labels).double().mean())
        lines += [f"Accuracy {100 * accuracy:.1f} %. U and C explain {len(self.chosen)} clips.", ""]
        if rows := _read(self.out / "modalities.parquet"):
            modalities = self.model.modalities
            agree = sum(row["emap_predicted"] == row["predicted"] for row in rows)
            right = sum(row["predicted"] == row["label"] for row in rows)
            additive = sum(row["emap_predicted"] == row["label"] for row in rows)
            lines += ["## Modalities and their interaction", ""]
            lines += [
                f"Of the {len(rows)} clips the model gets {right} right, and its additive part (EMAP) {additive}; they"
                f" predict the same class for {agree}.",
                "",
            ]
            lines += ["| modality | mean Shapley value (logit) |", "|---|---:|"]
            lines += [f"| {m} | {sum(row[f'shapley_{m}'] for row in rows) / len(rows):.2f} |" for m in modalities]
            lines += [""]
        if rows := _read(self.out / "prediction.parquet"):
            best = max(row["accuracy"] for row in rows)
            few = min((row for row in rows if row["accuracy"] >= best - 0.01), key=lambda row: int(row["units"]))
            lines += ["## Sparse classifiers of the penultimate units", ""]
            lines += [
                f"The best has {100 * best:.1f} %; within a point of that, the sparsest uses {few['units']} units.",
                "",
            ]
        if rows := _read(self.out / "errors.parquet"):
            lines += ["## Errors", "", "| kind | clips |", "|---|---:|"]
            kinds = Counter(f"{row['kind']} {row['modality'] or ''}".strip() for row in rows)
            lines += [f"| {kind} | {count} |" for kind, count in kinds.most_common()] + [""]
        if rows := _read(self.out / "trust.parquet"):
            lines += ["## How far the maps can be believed", ""]
            lines += ["| modality | method | insertion gain | deletion gain | infidelity | warnings |"]
            lines += ["|---|---|---:|---:|---:|---|"]
            lines += [
                f"| {row['modality']} | {row['method']} | {row['insertion_gain']:.2f} | {row['deletion_gain']:.2f} |"
                f" {row['infidelity']:.2f} | {row['warnings']} |"
                for row in rows
            ]
        write_text(self.out / "summary.md", "\n".join(lines).rstrip() + "\n")

    # ------------------------------------------------------------------------------------------------------ the clips

    @functools.cached_property
    def inputs(self) -> "dict[str, Tensor]":
        """Inputs of the chosen clips, (clips, ...) a modality."""
        from torch.utils.data import default_collate

        dataset = self.data.clips_of(self.split)
        batch = default_collate([dataset[self.test.index[i]]["inputs"] for i in self.chosen])
        return {m: batch[m].to(self.device) for m in self.model.modalities}

    def _inputs(self, position: int) -> "dict[str, Tensor]":
        """One chosen clip's, as a batch."""
        n = self.chosen.index(position)
        return {m: x[n : n + 1] for m, x in self.inputs.items()}

    def _encode(self, split: Literal["train", "val", "test"], most: int | None) -> Split:
        """A split's clips, or `most` of them, encoded once: from the file if it is there."""
        import torch

        from amr.model import complete_rows
        from amr.multiviz.base import undisturbed

        path = self.out / f"encodings-{split}.pt"
        if path.is_file():
            return Split(**torch.load(path, weights_only=True))
        dataset = self.data.clips_of(split)
        ids: list[str] = []
        labels, encodings = [], []
        with undisturbed(self.model), torch.no_grad():
            for batch in self._batches(split, "encode", most):
                rows = complete_rows(self.model.modalities, batch.get("present"))
                keep = range(len(batch["id"])) if rows is None else rows.nonzero().flatten().tolist()
                inputs = {m: batch["inputs"][m][keep].to(self.device) for m in self.model.modalities}
                encodings.append({m: e.cpu() for m, e in self.model.encode(inputs).items()})
                labels.append(batch["label"][keep])
                ids += [batch["id"][i] for i in keep]
        place = {clip.id: i for i, clip in enumerate(dataset.clips)}
        index = [place[id] for id in ids]
        found = Split(
            ids, torch.cat(labels), {m: torch.cat([e[m] for e in encodings]) for m in self.model.modalities}, index
        )
        with replacing(path) as file:
            torch.save(vars(found), file)
        return found

    def _batches(self, split: Literal["train", "val", "test"], title: str, most: int | None = None) -> Iterator[Any]:
        """A split's batches without augmentation, or those of `most` of its clips, with progress."""
        from torch.utils.data import DataLoader, Subset

        from amr.datamodules.base import stable_order

        dataset = self.data.clips_of(split)
        kept = set(stable_order((clip.id for clip in dataset.clips), self.seed)[:most])
        order = [i for i, clip in enumerate(dataset.clips) if clip.id in kept]
        progress = Progress(f"{title} {split}", len(order), "clips")
        part: Any = Subset(dataset, order)
        for batch in DataLoader(part, self.data.batch_size, num_workers=self.data.num_workers):
            yield batch
            progress.advance(len(batch["id"]))

    def _head(self, split: Split, penultimate: bool = False) -> "Tensor":
        """Logits, or penultimate features, of a split, (N, ...), on the CPU."""
        import torch

        from amr.multiviz.base import undisturbed

        function = self.model.penultimate if penultimate else self.model.head
        parts = []
        with undisturbed(self.model), torch.no_grad():
            for start in range(0, len(split.ids), 1024):
                part = {m: e[start : start + 1024].to(self.device) for m, e in split.encodings.items()}
                parts.append(function(part).cpu())
        return torch.cat(parts)

    # -------------------------------------------------------------------------------------------------------- results

    def _by_clip(self, name: str, explain: Callable[[int], list[Row]]) -> None:
        """Explains the chosen clips that are not done yet, then joins their files into one."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if (self.out / f"{name}.parquet").is_file():
            return
        parts = {i: self.out / "parts" / f"{name}-{_slug(self.test.ids[i])}.parquet" for i in self.chosen}
        todo = [position for position, part in parts.items() if not part.is_file()]
        progress = Progress(name, len(todo), "clips")
        for position in todo:
            _write(parts[position], explain(position))
            progress.advance(1)
        whole = pa.concat_tables([pq.read_table(part) for part in parts.values()])
        _write(self.out / f"{name}.parquet", whole)
        for part in parts.values():
            part.unlink()
        if not any(parts[self.chosen[0]].parent.iterdir()):
            parts[self.chosen[0]].parent.rmdir()

    def _methods(self, modality: str, target: Any) -> "dict[str, Explain]":
        """U's methods that fit the network, by name."""
        from amr.multiviz import unimodal as u

        atoms, others = self.atoms[modality], self.inputs[modality]
        masks: Any = {"samples": max(self.samples, 2 * len(atoms) + 2), "repeats": 2}
        methods: dict[str, Explain] = {
            "gradient": lambda model, x, _: u.gradient(model, x, modality, target, atoms),
            "gradient_input": lambda model, x, _: u.gradient_input(model, x, modality, target, atoms),
            "integrated_gradients": lambda model, x, _: u.integrated_gradients(model, x, modality, target, atoms),
            "gradient_shap": lambda model, x, seed: u.gradient_shap(
                model, x, modality, target, atoms, baselines=others, seed=seed
            ),
            "guided_backprop": lambda model, x, _: u.guided_backprop(model, x, modality, target, atoms),
            "grad_cam": lambda model, x, _: u.grad_cam(
                model, x, modality, target, atoms, layer=_last_convolution(model.encoders[modality])
            ),
            "occlusion": lambda model, x, _: u.occlusion(model, x, modality, target, atoms),
            "lime": lambda model, x, seed: u.lime(model, x, modality, target, atoms, seed=seed, **masks),
            "kernel_shap": lambda model, x, seed: u.kernel_shap(model, x, modality, target, atoms, seed=seed, **masks),
        }
        return {name: one for name, one in methods.items() if name not in self._unfit[modality]}

    @functools.cached_property
    def _unfit(self) -> dict[str, set[str]]:
        """Methods that do not fit each modality's network, which they say by a UserError."""
        from amr.multiviz import unimodal as u

        unfit: dict[str, set[str]] = {}
        first = {m: x[:1] for m, x in self.inputs.items()}
        for modality, encoder in self.model.encoders.items():
            unfit[modality] = set()
            attempts: dict[str, Callable[..., Any]] = {
                "guided_backprop": u.guided_backprop,
                "grad_cam": functools.partial(u.grad_cam, layer=_last_convolution(encoder)),
            }
            for name, method in attempts.items():
                try:
                    method(self.model, first, modality, 0, self.atoms[modality])
                except UserError as error:
                    print(f"left out for {modality}: {error}", file=sys.stderr)
                    unfit[modality].add(name)
        return unfit

    def _clip(self, position: int) -> Row:
        """What every row says of its clip."""
        label, predicted = int(self.test.labels[position]), int(self.predicted[position])
        return {
            "id": self.test.ids[position],
            "label": self.data.labels[label],
            "predicted": self.data.labels[predicted],
        }

    def _atom_rows(self, position: int, modality: str, method: str, found: Any, atoms: "Atoms") -> list[Row]:
        """A row an atom of one modality; `found` has values (1, A) and errors, or None."""
        clip, values = self._clip(position), found.values[0].cpu().tolist()
        errors = [None] * len(values) if found.error is None else found.error[0].cpu().tolist()
        return [
            {**clip, "method": method, "modality": modality, "atom": a, "value": value, "error": error, "where": where}
            for a, (value, error, where) in enumerate(
                zip(values, errors, map(json.dumps, atoms.coordinates), strict=True)
            )
        ]

    def _pair_rows(
        self,
        position: int,
        first: str,
        second: str,
        method: str,
        values: "Tensor",
        error: "Tensor | None",
        atoms: "Mapping[str, Atoms]",
    ) -> list[Row]:
        """A row a pair of atoms of two modalities; values (1, A1, A2)."""
        clip, reason, rows = self._clip(position), getattr(values, "reason", ""), []
        places = [[json.dumps(where) for where in atoms[m].coordinates] for m in (first, second)]
        table = values[0].cpu().tolist()
        errors = None if error is None else error[0].cpu().tolist()
        for a, line in enumerate(table):
            for b, value in enumerate(line):
                row = {**clip, "method": method, "first": first, "first_atom": a, "second": second, "second_atom": b}
                row |= {"value": value, "error": None if errors is None else errors[a][b], "reason": reason}
                rows.append({**row, "first_where": places[0][a], "second_where": places[1][b]})
        return rows

    def _draw(self, position: int, inputs: "Mapping[str, Tensor]", maps: Mapping[str, Sequence[Any]]) -> None:
        """A picture of a clip: each modality's input beside every method's map of it."""
        from amr.multiviz.figures import draw_maps

        clip = self._clip(position)
        pictures = {m: self.data.picture(m, inputs[m][0].cpu(), self.atoms[m]) for m in maps}
        title = f"{clip['id']}: {clip['label']}, taken for {clip['predicted']}"
        png = draw_maps(
            title, pictures, {m: [(i.method, i.values[0].cpu()) for i in found] for m, found in maps.items()}
        )
        write_bytes(self.out / "images" / f"{_slug(clip['id'])}.png", png)


def _last_convolution(encoder: "nn.Module") -> "nn.Module":
    """What Grad-CAM looks at, as its authors do; without one the encoder itself, which it refuses."""
    from torch.nn import Conv1d, Conv2d, Conv3d

    layers: list[nn.Module] = [module for module in encoder.modules() if isinstance(module, Conv1d | Conv2d | Conv3d)]
    return layers[-1] if layers else encoder


def _data_section(options: argparse.Namespace) -> Any:
    """The `data` section of the configuration given, or of the run's own."""
    import yaml

    path = options.data or options.ckpt.parent.parent / "config.yaml"
    if not path.is_file():
        hint = "" if options.data else "; the checkpoint does not lie in a run's folder, so name its data with --data"
        raise UserError(f"{path}: no such file{hint}")
    content = yaml.safe_load(path.read_text())
    if not isinstance(content, dict) or "data" not in content:
        raise UserError(f"{path}: it has no `data` section")
    return content["data"]


def _datamodule(section: Any) -> "ClipDataModule":
    from amr.datamodules import ClipDataModule
    from amr.parser import OneLineParser

    parser = OneLineParser(prog="amr analyze")
    parser.add_subclass_arguments(ClipDataModule, "data", required=True)
    datamodule: ClipDataModule = parser.instantiate_classes(parser.parse_object({"data": section})).data
    return datamodule


def _write(path: Path, rows: Any) -> None:
    """A parquet file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def _read(path: Path) -> list[Row]:
    """A parquet file's rows; none if it is not there."""
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist() if path.is_file() else []


def _slug(id: str) -> str:
    """A file name for a clip; its digest keeps names apart that only differ in characters which files cannot have."""
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in id)
    return safe if safe == id and len(id) < 100 else f"{safe[:80]}-{hashlib.sha256(id.encode()).hexdigest()[:8]}"
