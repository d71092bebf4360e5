"""Summary of the whole split, and the maps of all clips as tables."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from amr.attribution import Score, attributed_rows, equal_by_construction
from amr.evaluation.metrics import attribution
from amr.evaluation.runs import Run, read_folder
from amr.evaluation.use import calibration
from amr.multiviz.analysis.analysis import Analysis
from amr.multiviz.analysis.methods import METHODS
from amr.multiviz.analysis.plan import STAGES
from amr.utils.arrays import Arrays, Row, is_whole, read_table, slug, write_table
from amr.utils.errors import UserError
from amr.utils.files import write_text
from amr.utils.metrics import label_metrics, split_metrics
from amr.utils.readers import read_arrays

VERSION = 1
TOP = 5  # classes that predictions.parquet names
DONE = {
    "prediction": "sparse.npz",
    "representation": "representation.parquet",
    "errors": "errors.parquet",
    "trust": "trust.parquet",
    "simulation": "simulation.parquet",
    "selection": "selection.parquet",
}


def write(analysis: Analysis) -> None:
    """Writes atoms.json, predictions.parquet, the tables of maps, and, last, summary.json."""
    out = analysis.out
    kinds = {"fine": analysis.fine, "coarse": analysis.coarse}
    atoms = {
        m: {
            k: {
                "grid": a[m].grid,
                "coordinates": a[m].coordinates,
                **({"names": a[m].names} if a[m].names else {}),
            }
            for k, a in kinds.items()
        }
        for m in analysis.model.modalities
    }
    write_text(out / "atoms.json", json.dumps(atoms) + "\n")
    score: Score = "logit" if analysis.several else "probability"
    shares = attribution(analysis.model, analysis.clips, score=score).float()  # zeros where nothing is attributed
    predictions = _predictions(analysis, shares)
    write_table(out / "predictions.parquet", predictions)
    archives = [analysis.archive(position) for position in analysis.chosen]
    explained = all(path.is_file() for path in archives)
    tables = ("unimodal", *(("crossmodal", "modalities") if len(analysis.model.modalities) > 1 else ()))
    if explained and not all(is_whole(out / f"{name}.parquet") for name in tables):
        _tables(analysis, archives)
    found = _summary(analysis, shares, predictions, explained)
    write_text(out / "summary.json", json.dumps(_plain(found), indent=1, allow_nan=False) + "\n")


def _predictions(analysis: Analysis, shares: Tensor) -> Any:
    import pyarrow as pa

    data, labels = analysis.data, analysis.data.labels
    top = analysis.probabilities.topk(min(TOP, data.num_classes), dim=1)
    errors = {row["id"]: row for row in _errors(analysis)}
    listing = data.clips_of(analysis.split).clips
    attributed = attributed_rows(shares)
    rows = []
    for i, id in enumerate(analysis.clips.ids):
        clip = data.locate(listing[analysis.index[i]])
        names = [labels[c] for c in top.indices[i].tolist()]
        error = errors.get(id, {})
        row: Row = {
            "id": id,
            "slug": slug(id),
            "label": analysis.label_of(i),
            **({"labels": [labels[c] for c in analysis.truths(i)]} if analysis.several else {}),
            "predicted": labels[int(analysis.predicted[i])],
            "correct": bool(analysis.right[i]),
            "confidence": float(top.values[i, 0]),
            "top_classes": names,
            "top_probabilities": top.values[i].tolist(),
        }
        for m, modality in enumerate(analysis.model.modalities):
            row[f"share_{modality}"] = float(shares[i, m]) if attributed[i] else None
        row |= {"error_kind": error.get("kind"), "error_modality": error.get("modality")}
        row["explained"] = analysis.archive(i).is_file()
        files = {m: clip.files.get(m) for m in analysis.model.modalities}
        row |= {f"file_{m}": None if file is None else str(file) for m, file in files.items()}
        row |= {
            "start": clip.start,
            "end": clip.end,
            "problem": _problem(data.root, {m: f for m, f in files.items() if m in data.filed}),
        }
        rows.append(row)
    table = pa.Table.from_pylist(rows)
    texts = {"error_kind", "error_modality", "problem", *(f"file_{m}" for m in analysis.model.modalities)}
    kinds: dict[str, Any] = dict.fromkeys(texts, pa.string()) | {"start": pa.float64(), "end": pa.float64()}
    kinds |= {f"share_{m}": pa.float64() for m in analysis.model.modalities}
    return table.cast(pa.schema([pa.field(f.name, kinds.get(f.name, f.type)) for f in table.schema]))


def _errors(analysis: Analysis) -> list[Row]:
    """Wrong predictions; none if the stage was not asked for."""
    path = analysis.out / DONE["errors"]
    return read_table(path) if path.is_file() else []


def _problem(root: Path | None, files: dict[str, Path | None]) -> str | None:
    """Why a clip's media cannot be shown."""
    said = []
    for modality, file in files.items():
        if file is None:
            said.append(f"{modality}: no file is known")
        elif root is None or not (root / file).is_file():
            said.append(f"{modality}: the file {file} is gone")
    return "; ".join(said) or None


def _summary(analysis: Analysis, shares: Tensor, predictions: Any, explained: bool) -> Row:
    data, labels, truth, several = analysis.data, analysis.data.labels, analysis.truth, analysis.several
    run = _run(analysis)
    if several:
        scores = label_metrics(data.num_classes, "")(analysis.probabilities, analysis.clips.labels.long())
    else:
        scores = split_metrics(data.num_classes, "")(analysis.logits, truth)
    error, bins = calibration(analysis.probabilities, truth)
    confusion = None
    if not analysis.undefined("confusion", "no confusion matrix"):
        confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
        np.add.at(confusion, (truth.numpy(), analysis.predicted.numpy()), 1)
    attributed, right = attributed_rows(shares), analysis.right
    by_class: Row = {}
    for c, label in enumerate(labels):
        own = analysis.predicted == c if several else truth == c  # a share is of the likeliest label
        if bool(own.any()):
            clips = {"clips": int(own.sum()), "accuracy": float(right[own].double().mean())}
            by_class[label] = {**clips, **_mean_shares(analysis, shares[own & attributed])}
    stages = [s for s in STAGES if (s in DONE and (analysis.out / DONE[s]).is_file()) or (s == "clips" and explained)]
    return {
        "version": VERSION,
        "title": run.title if run else analysis.checkpoint.stem,
        "method": run.method if run else None,
        "task": "labels" if several else "classes",
        "dataset": data.name,
        "split": analysis.split,
        "modalities": list(analysis.model.modalities),
        "labels": labels,
        "checkpoint": str(analysis.checkpoint),
        "root": None if data.root is None else str(data.root.resolve()),
        "clips": len(analysis.clips.ids),
        "lacking": analysis.clips.lacking,
        "explained": sum(predictions.column("explained").to_pylist()),
        "accuracy": float(scores["acc"]),
        "mAP": float(scores["mAP"]),
        "ECE": error,
        "calibration": bins,
        "dominance": _mean_shares(analysis, shares[attributed]),
        "dominance_by_class": by_class,
        "confusion": None if confusion is None else confusion.tolist(),
        "history": [{"epoch": epoch, **values} for epoch, values in run.epochs.items()] if run else [],
        "robust": {k: v for k, v in run.test.items() if k.startswith("test/robust/")} if run else {},
        "emap": _emap(analysis) if len(analysis.model.modalities) > 1 else None,
        "sparse": _sparse(analysis),
        "errors": dict(
            Counter(" ".join(filter(None, (row["kind"], row["modality"]))) for row in _errors(analysis)).most_common()
        ),
        "baselines": {m: analysis.data.baseline(m, x)[1] for m, x in analysis.others.items()},
        "methods": _methods(analysis, explained),
        "stages": stages,
        "notes": [*analysis.notes.values(), *filter(None, [equal_by_construction(shares)])],
    }


def _mean_shares(analysis: Analysis, shares: Tensor) -> Row:
    means = shares.double().mean(0).tolist() if len(shares) else [None] * len(analysis.model.modalities)
    return dict(zip(analysis.model.modalities, means, strict=True))


def _run(analysis: Analysis) -> Run | None:
    """The run that the checkpoint lies in."""
    folder = analysis.checkpoint.parent.parent
    if not (folder / "run.json").is_file():
        return None
    try:
        return read_folder(folder)
    except UserError as error:
        analysis.note("history", f"the run's own record cannot be read: {error}")
        return None


def _emap(analysis: Analysis) -> Row:
    chosen, said = analysis.chosen, analysis.predicted[analysis.chosen]
    additive = analysis.projected.argmax(1)
    means = {"accuracy": analysis.is_right(said, chosen), "additive_accuracy": analysis.is_right(additive, chosen)}
    means["agreement"] = said == additive
    return {"clips": len(analysis.chosen), **{name: float(x.double().mean()) for name, x in means.items()}}


def _sparse(analysis: Analysis) -> Row | None:
    sparse = analysis.sparse
    if sparse is None:
        return None
    return {
        "lambda": float(sparse["lambda"]),
        "units": int((sparse["coefficients"] != 0).any(0).sum()),
        "accuracy": float(sparse["accuracy"]),
        "agreement": float(sparse["agree"].mean()),
        "clips": int(sparse["clips"]),
    }


def _methods(analysis: Analysis, explained: bool) -> list[Row]:
    """The methods that have maps."""
    if not explained:
        return []
    there = {(name.split("/")[0], name.split("/")[-1]) for name in read_arrays(analysis.archive(analysis.chosen[0]))}
    there |= {("R", method) for stage, method in there if stage == "RC"}
    if ("P", "units") in there:
        there.add(("P", "sparse"))
    return [method._asdict() for method in METHODS if (method.stage, method.method) in there]


def _plain(value: Any) -> Any:
    """The value with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ------------------------------------------------------------------------------------------------------------- tables


def _tables(analysis: Analysis, archives: list[Path]) -> None:
    """unimodal.parquet, crossmodal.parquet and modalities.parquet of the clips' archives."""
    labels, names = analysis.data.labels, analysis.model.modalities
    single, double = _Long(), _Long()
    rows: list[Row] = []
    for n, path in enumerate(archives):
        arrays = read_arrays(path)
        id, classes = str(arrays["id"]), [labels[k] for k in arrays["classes"].tolist()]
        for name, values in arrays.items():
            stage, _, rest = name.partition("/")
            where = rest.split("/")
            of_unit = stage in ("R", "RC")
            targets: Iterable[Any] = arrays["units"].tolist() if of_unit else classes
            error = arrays.get(f"{stage}_error/{rest}")
            if stage in ("U", "D", "R") and len(where) == 2:
                for k, target in enumerate(targets):
                    text = {"id": id, "class": None if of_unit else target, "stage": stage}
                    text |= {"modality": where[0], "method": where[1], "atoms": "coarse" if stage == "D" else "fine"}
                    spread = {"error": error, "half": arrays.get(f"{stage}_half/{rest}")}
                    of_target = {kind: None if some is None else some[k] for kind, some in spread.items()}
                    single.add(text, target if of_unit else None, values[k], **of_target)
            elif stage in ("C", "RC"):
                coarse = values.shape[1:] == tuple(len(analysis.coarse[m]) for m in where[:2])
                for k, target in enumerate(targets):
                    text = {"id": id, "class": None if of_unit else target, "first": where[0], "second": where[1]}
                    text |= {"method": where[2], "atoms": "coarse" if coarse else "fine"}
                    of_target = {"error": None if error is None else error[k]}
                    double.add(text, target if of_unit else None, values[k], **of_target)
        if "shapley" in arrays:
            rows.append(_modality_row(analysis, n, arrays, id))
    write_table(analysis.out / "unimodal.parquet", single.table(("atom",)))
    if len(names) > 1:
        write_table(analysis.out / "crossmodal.parquet", double.table(("first_atom", "second_atom")))
        write_table(analysis.out / "modalities.parquet", rows)


def _modality_row(analysis: Analysis, n: int, arrays: Arrays, id: str) -> Row:
    labels, names = analysis.data.labels, analysis.model.modalities
    return {
        "id": id,
        "label": analysis.label_of(analysis.chosen[n]),
        "predicted": labels[int(arrays["predicted"])],
        "emap_predicted": labels[int(analysis.projected[n].argmax())],
        "additive": float(arrays["additive"][0]),
        "interaction": float(arrays["interaction"][0]),
        "intershap": float(arrays["intershap"][0]) if "intershap" in arrays else None,  # older maps have none
        **{f"shapley{of}_{m}": _at(arrays, f"shapley{of}", k) for of in ("", "_half") for k, m in enumerate(names)},
        **{
            f"pair{of}_{first}_{second}": _at(arrays, f"pairs{of}", a, b)
            for of in ("", "_half")
            for a, first in enumerate(names)
            for b, second in enumerate(names)
            if a < b
        },
    }


def _at(arrays: Arrays, name: str, *place: int) -> float | None:
    """A number of the predicted class; None for an older archive that lacks it."""
    return float(arrays[name][(0, *place)]) if name in arrays else None


class _Long:
    """A table with one row per value, built from whole maps: text columns are constant within a map."""

    def __init__(self) -> None:
        self.texts: list[Row] = []
        self.units: list[int | None] = []
        self.values: list[NDArray[Any]] = []
        self.spread: dict[str, list[NDArray[Any]]] = {}

    def add(self, text: Row, unit: int | None, values: NDArray[Any], **spread: NDArray[Any] | None) -> None:
        """One map, with the known spread of its values."""
        self.texts.append(text)
        self.units.append(unit)
        self.values.append(values)
        for name, some in spread.items():
            there = np.full(values.shape, np.nan, dtype=values.dtype) if some is None else some
            self.spread.setdefault(name, []).append(there)

    def table(self, axes: tuple[str, ...]) -> Any:
        """All maps; `axes` name their dimensions."""
        import pyarrow as pa

        sizes = [v.size for v in self.values]
        columns: dict[str, Any] = {}
        for name in self.texts[0] if self.texts else ():
            words = list(dict.fromkeys(text[name] for text in self.texts if text[name] is not None))
            code = {word: k for k, word in enumerate(words)} | {None: -1}
            codes = np.repeat([code[text[name]] for text in self.texts], sizes).astype(np.int32)
            indices = pa.array(codes, mask=codes < 0)
            columns[name] = pa.DictionaryArray.from_arrays(indices, pa.array(words, pa.string()))
            if name == "class":
                units = np.repeat([-1 if unit is None else unit for unit in self.units], sizes)
                columns["unit"] = pa.array(units, mask=units < 0)
        places = [np.indices(v.shape).reshape(v.ndim, -1) for v in self.values]
        for axis, name in enumerate(axes):
            columns[name] = np.concatenate([p[axis] for p in places]).astype(np.int32)
        columns["value"] = np.concatenate([v.ravel() for v in self.values])
        for name, parts in self.spread.items():
            spread = np.concatenate([part.ravel() for part in parts])
            columns[name] = pa.array(spread, mask=np.isnan(spread))
        return pa.table(columns)
