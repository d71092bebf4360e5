"""A folder as `amr analyze` leaves it (docs/multiviz/files.md), made of numbers that look like a model's but are none.

For tests and benchmarks of the site, which need thousands of clips and awkward names.
"""

import hashlib
import io
import json
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from amr.datamodules.synthetic.synthesis import write_mp4

LABELS = ("b", "d", "f", "m", "p", "s", "v", "z")
METHODS = ("gradient_input", "integrated_gradients", "occlusion", "lime", "kernel_shap")
PAIRS = (("ablation", "fine"), ("second_order", "fine"), ("joint_shap", "coarse"))
FINE, COARSE = {"audio": (8, 8), "video": (4, 4, 4)}, {"audio": (4, 4), "video": (2, 2, 2)}
SECONDS, HEIGHT, WIDTH = 0.64, 42, 64  # of the input; of a frame
STAGES = ("U", "U+C", "+R_local", "+R_global", "+P")


def write_analysis(
    folder: Path,
    clips: int = 40,
    explained: int = 6,
    *,
    seed: int = 0,
    labels: Sequence[str] = LABELS,
    ids: Sequence[str] = (),
    title: str = "naive",
    lean: float = 0.75,
    units: int = 24,
) -> Path:
    """Writes the folder, with a media file a clip that is explained.

    Args:
        folder: Where; made.
        clips: Of the split.
        explained: The first of them.
        seed: Of everything.
        labels: Class names.
        ids: Of the first clips; the others are numbered.
        title: The run's.
        lean: Mean share of audio.
        units: In use by the sparse classifier.
    """
    rng = np.random.default_rng(seed)
    names = [*ids, *(f"clip{i:05d}" for i in range(len(ids), clips))]
    n_classes = len(labels)
    truth = rng.integers(n_classes, size=clips)
    logits = rng.normal(size=(clips, n_classes)) + 2.6 * np.eye(n_classes)[truth] * rng.random((clips, 1)) * 1.6
    odds = np.exp(logits - logits.max(1, keepdims=True))
    odds /= odds.sum(1, keepdims=True)
    predicted = odds.argmax(1)
    share = np.clip(rng.beta(12 * lean, 12 * (1 - lean), clips), 0.01, 0.99)
    kinds = [
        None if p == t else ("perception", "interaction", "prediction")[i % 3]
        for i, (p, t) in enumerate(zip(predicted, truth, strict=True))
    ]
    blamed = [("audio", "video")[i % 2] if kind == "perception" else None for i, kind in enumerate(kinds)]
    slugs = [_slug(name) for name in names]
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / "root"
    root.mkdir(exist_ok=True)
    order = np.argsort(-odds, 1)[:, :5]
    rows = [
        {
            "id": name,
            "slug": slugs[i],
            "label": labels[truth[i]],
            "predicted": labels[predicted[i]],
            "correct": bool(truth[i] == predicted[i]),
            "confidence": float(odds[i].max()),
            "top_classes": [labels[c] for c in order[i]],
            "top_probabilities": odds[i, order[i]].tolist(),
            "share_audio": float(share[i]),
            "share_video": float(1 - share[i]),
            "error_kind": kinds[i],
            "error_modality": blamed[i],
            "explained": i < explained,
            "file_audio": f"{i}.mp4",
            "file_video": f"{i}.mp4",
            "start": None,
            "end": None,
            "problem": None,
        }
        for i, name in enumerate(names)
    ]
    _table(folder / "predictions.parquet", rows)
    # One in three is without, as an analysis of before has none.
    pictures = [
        {"id": name, "jpeg": _jpeg(i) if i % 3 else None, "text": f"words of {i}"} for i, name in enumerate(names)
    ]
    _table(folder / "thumbs.parquet", pictures)
    write = _Clips(folder, rng, labels, units)
    mapped = range(min(explained, clips))
    for i in mapped:
        write_mp4(root / f"{i}.mp4", *_media(i), fps=Fraction(25), rate=16000)
        write.clip(names[i], slugs[i], int(truth[i]), int(predicted[i]), logits[i])
    write.tables(names, slugs, truth, explained)
    history = [
        {
            "epoch": e,
            "train/acc": 0.15 + 0.7 * (1 - 0.7**e),
            "val/acc": 0.14 + 0.6 * (1 - 0.72**e),
            "val/dominance/audio": lean + (0.5 - lean) * 0.6**e,
            "val/dominance/video": 1 - lean - (0.5 - lean) * 0.6**e,
        }
        for e in range(12)
    ]
    confusion = np.zeros((n_classes, n_classes), int)
    np.add.at(confusion, (truth, predicted), 1)
    right = truth == predicted
    kinds_of_error = [f"{k} {b or ''}".strip() for k, b in zip(kinds, blamed, strict=True) if k]
    summary = {
        "version": 1,
        "title": title,
        "method": title,
        "dataset": "made up",
        "split": "test",
        "modalities": ["audio", "video"],
        "labels": list(labels),
        "checkpoint": "best.ckpt",
        "root": str(root.resolve()),
        "clips": clips,
        "lacking": 3,
        "explained": explained,
        "accuracy": float(right.mean()),
        "mAP": float(right.mean()) + 0.02,
        "ECE": 0.061,
        "calibration": _calibration(odds.max(1), right),
        "dominance": {"audio": float(share.mean()), "video": float(1 - share.mean())},
        "dominance_by_class": {
            label: {
                "clips": int((truth == c).sum()),
                "accuracy": float(right[truth == c].mean()) if (truth == c).any() else None,
                "audio": float(np.clip(lean + rng.normal() * 0.05, 0, 1)),
                "video": 0.0,
            }
            for c, label in enumerate(labels)
        },
        "confusion": confusion.tolist(),
        "history": history,
        "robust": {
            "test/robust/missing/audio": 0.31,
            "test/robust/missing/video": 0.62,
            "test/robust/perceptual_score/audio": 0.52,
            "test/robust/perceptual_score/video": 0.13,
            "test/robust/worst_modality": 0.31,
            "test/robust/conflict/audio": 0.71,
            "test/robust/conflict_rest/audio": 0.2,
            "test/robust/conflict_neither/audio": 0.09,
            "test/robust/conflict/video": 0.19,
            "test/robust/conflict_rest/video": 0.72,
            "test/robust/conflict_neither/video": 0.09,
            "test/robust/conflict_neither": 0.09,
            "test/robust/outcome_redundant": 0.4,
            "test/robust/outcome_unique/audio": 0.25,
            "test/robust/outcome_unique/video": 0.06,
            "test/robust/outcome_synergistic": 0.08,
            "test/robust/outcome_lost": 0.07,
            "test/robust/outcome_lost/audio": 0.02,
            "test/robust/outcome_lost/video": 0.04,
            "test/robust/outcome_lost/audio+video": 0.01,
            "test/robust/outcome_neither": 0.14,
        },
        "emap": {"clips": explained, "accuracy": 0.83, "additive_accuracy": 0.8, "agreement": 0.9},
        "sparse": {"lambda": 0.01, "units": units, "accuracy": 0.78, "agreement": 0.9, "clips": 700},
        "errors": {kind: kinds_of_error.count(kind) for kind in sorted(set(kinds_of_error))},
        "methods": _methods(),
        "stages": ["clips", "representation", "prediction", "errors", "trust", "simulation"],
        "notes": ["guided_backprop left out for audio: the network has no ReLU"],
    }
    for values in summary["dominance_by_class"].values():  # type: ignore[attr-defined]
        values["video"] = 1 - values["audio"]
    (folder / "atoms.json").write_text(
        json.dumps({m: {k: _atoms(m, g[m]) for k, g in (("fine", FINE), ("coarse", COARSE))} for m in FINE})
    )
    (folder / "plan.json").write_text(json.dumps({"checkpoint": f"{seed:064x}", "clips": explained, "title": title}))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def _jpeg(i: int) -> bytes:
    """A grey picture."""
    buffer = io.BytesIO()
    Image.new("L", (WIDTH, HEIGHT), 40 + i % 200).save(buffer, "JPEG")
    return buffer.getvalue()


def _slug(id: str) -> str:
    return id if re.fullmatch(r"[\w-]+", id) else "odd-" + hashlib.sha256(id.encode()).hexdigest()[:8]


class _Clips:
    def __init__(self, folder: Path, rng: np.random.Generator, labels: Sequence[str], units: int) -> None:
        self.folder, self.rng, self.labels = folder, rng, labels
        self.units = np.sort(rng.choice(128, units, replace=False))
        self.coefficients = rng.normal(size=(len(labels), units)) * (rng.random((len(labels), units)) < 0.3)

    def clip(self, id: str, slug: str, label: int, predicted: int, logits: NDArray[Any]) -> None:
        classes = list(dict.fromkeys([predicted, label, *np.argsort(-logits).tolist()]))[: min(4, len(self.labels))]
        k, rng = len(classes), self.rng
        arrays = {
            "id": np.array(id),
            "classes": np.array(classes),
            "label": np.array(label),
            "predicted": np.array(predicted),
            "logits": logits.astype(np.float32),
            **self._pictures(label),
        }
        for m, grid in FINE.items():
            for method in METHODS:
                arrays[f"U/{m}/{method}"] = np.stack([_blob(grid, rng) for _ in classes])
            for method in ("lime", "kernel_shap"):
                arrays[f"U_error/{m}/{method}"] = (
                    np.abs(rng.normal(size=arrays[f"U/{m}/{method}"].shape)).astype(np.float32) * 0.02
                )
            arrays[f"U_half/{m}/kernel_shap"] = 2 * arrays[f"U_error/{m}/kernel_shap"]
            for part in ("dime_unimodal", "dime_multimodal"):
                arrays[f"D/{m}/{part}"] = np.stack([_blob(COARSE[m], rng) for _ in classes])
                arrays[f"D_error/{m}/{part}"] = (
                    np.abs(rng.normal(size=arrays[f"D/{m}/{part}"].shape)).astype(np.float32) * 0.02
                )
        for method, atoms in PAIRS:
            grids = FINE if atoms == "fine" else COARSE
            a, b = (np.stack([_blob(grids[m], rng) for _ in classes]) for m in FINE)
            pairs = a[:, :, None] * b[:, None, :] + 0.02 * rng.normal(size=(k, a.shape[1], b.shape[1]))
            if method == "second_order":
                pairs = pairs * 0
                arrays["C_reason/audio/video/second_order"] = np.array(
                    "the head is piecewise linear: its mixed second derivative is 0"
                )
            arrays[f"C/audio/video/{method}"] = pairs.astype(np.float32)
        arrays["shapley"] = rng.normal(size=(k, 2)).astype(np.float32) + 1
        arrays["shapley_half"] = np.abs(rng.normal(size=(k, 2))).astype(np.float32) * 0.2
        arrays["pairs_half"] = np.abs(rng.normal(size=(k, 2, 2))).astype(np.float32) * 0.1
        arrays["pairs"] = rng.normal(size=(k, 2, 2)).astype(np.float32) * 0.3
        arrays["intershap"] = rng.uniform(size=k).astype(np.float32)
        arrays["additive"], arrays["interaction"] = rng.normal(size=(2, k)).astype(np.float32)
        used = self.units[: min(6, len(self.units))]
        arrays |= self._local(used)
        for method in ("ablation",):
            a, b = (np.stack([_blob(COARSE[m], rng) for _ in used]) for m in FINE)
            arrays[f"RC/audio/video/{method}"] = (a[:, :, None] * b[:, None]).astype(np.float32)
        arrays["P/units"] = self.units
        arrays["P/contributions"] = (self.coefficients[classes] * rng.normal(size=len(self.units))).astype(np.float32)
        arrays["P/intercepts"] = rng.normal(size=k).astype(np.float32) * 0.2
        self._save("clips", slug, arrays)

    def tables(self, ids: list[str], slugs: list[str], truth: NDArray[Any], explained: int) -> None:
        rng = self.rng
        order = [
            (c, u)
            for c in range(len(self.labels))
            for u in np.argsort(-np.abs(self.coefficients[c]))
            if self.coefficients[c, u]
        ]
        _table(
            self.folder / "units.parquet",
            [
                {
                    "class": self.labels[c],
                    "unit": int(self.units[u]),
                    "coefficient": float(self.coefficients[c, u]),
                    "lambda": 0.01,
                }
                for c, u in order
            ],
        )
        ends: list[dict[str, Any]] = []
        extreme: dict[int, list[int]] = {}
        few = min(10, len(ids))
        for unit in self.units.tolist():
            chosen = rng.permutation(min(len(ids), max(20, explained)))[: 2 * few]
            for end, part in (("most", chosen[:few]), ("least", chosen[-few:])):
                for rank, i in enumerate(part.tolist()):
                    value = (3 - 0.2 * rank) * (1 if end == "most" else -1)
                    ends.append(
                        {
                            "unit": unit,
                            "end": end,
                            "rank": rank,
                            "id": ids[i],
                            "value": value,
                            "label": self.labels[truth[i]],
                        }
                    )
                    if rank < 4:
                        extreme.setdefault(i, []).append(unit)
        _table(self.folder / "representation.parquet", ends)
        for i, units in extreme.items():
            arrays = {
                "id": np.array(ids[i]),
                "label": np.array(truth[i]),
                **self._pictures(int(truth[i])),
                **self._local(np.array(units)),
            }
            self._save("extremes", slugs[i], arrays)
        _table(
            self.folder / "prediction.parquet",
            [
                {"lambda": 0.1 * 0.7**s, "units": int(1.7**s), "accuracy": 0.85 - 0.6 * 0.7**s, "kkt_residual": 1e-4}
                for s in range(10)
            ],
        )
        _table(
            self.folder / "simulation.parquet",
            [
                {
                    "stage": stage,
                    "seed": seed,
                    "accuracy": 0.4 + 0.08 * s,
                    "shuffled": 0.3,
                    "mean": 0.4 + 0.08 * s,
                    "low": 0.34 + 0.08 * s,
                    "high": 0.46 + 0.08 * s,
                    "gain": 0.1 + 0.08 * s,
                    "gain_low": 0.02 + 0.08 * s,
                    "gain_high": 0.18 + 0.08 * s,
                    "alpha": 0.6,
                    "clips": 50,
                    "classes": len(self.labels),
                }
                for s, stage in enumerate(STAGES)
                for seed in range(5)
            ],
        )
        _table(
            self.folder / "selection.parquet",
            [
                {
                    "by": by,
                    "budget": 20,
                    "seed": seed,
                    "accuracy": 0.7 + 0.02 * b + 0.005 * seed,
                    "errors_found": 0.2 + 0.1 * b,
                }
                for b, by in enumerate(("none", "random", "entropy", "errors"))
                for seed in range(3)
            ],
        )
        _table(
            self.folder / "error_units.parquet",
            [{"unit": u, "weight": 0.3, "held_out_auc": 0.71} for u in self.units[:5].tolist()],
        )
        _table(
            self.folder / "trust.parquet",
            [_trust("U", m, modality=mod) for mod in FINE for m in METHODS]
            + [_trust("D", "dime", modality=mod) for mod in FINE]
            + [_trust("C", m, first="audio", second="video") for m, _ in PAIRS]
            + [_trust("R", m, modality=mod) for mod in FINE for m in METHODS[:2]]
            + [_pair("U", m) for m in METHODS]
            + [_trust("P", "sparse")],
        )

    def _local(self, units: NDArray[Any]) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {
            "units": units,
            "activations": self.rng.normal(size=len(units)).astype(np.float32),
        }
        for m, grid in FINE.items():
            for method in METHODS[:2]:
                found[f"R/{m}/{method}"] = np.stack([_blob(grid, self.rng) for _ in units])
        return found

    def _pictures(self, label: int) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        for m, picture in (("audio", _spectrogram(label, self.rng)), ("video", _faces(label, self.rng))):
            found[f"picture/{m}"] = picture
            found[f"range/{m}"] = np.array([-2.0, 3.0] if m == "audio" else [0, 1], np.float32)
            found[f"unit/{m}"] = np.array("0.64 s, 0 Hz at the bottom" if m == "audio" else "frames 2, 6, 10, 14 of 16")
            found[f"window/{m}"] = np.array([0.0, SECONDS])
            for kind, grid in (("fine", FINE[m]), ("coarse", COARSE[m])):
                found[f"{kind}/{m}"] = _labels(m, grid, picture.shape[:2])
        return found

    def _save(self, part: str, slug: str, arrays: dict[str, NDArray[Any]]) -> None:
        (self.folder / part).mkdir(exist_ok=True)
        np.savez_compressed(self.folder / part / f"{slug}.npz", **arrays)  # type: ignore[arg-type]


def _table(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def _blob(grid: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """A smooth bump for the class, one against it, and noise, (A,)."""
    places = np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"), -1)
    total = 0.04 * rng.normal(size=grid)
    for sign in (1.0, -0.6):
        middle = rng.random(len(grid)) * np.array(grid)
        total = total + sign * np.exp(-((places - middle) ** 2 / (np.array(grid) / 5) ** 2).sum(-1))
    return total.ravel().astype(np.float32) * 0.5


def _labels(modality: str, grid: tuple[int, ...], shape: tuple[int, ...]) -> NDArray[Any]:
    """The atom at each pixel of a picture: low frequencies at the bottom; frames side by side."""
    if modality == "audio":
        rows = (np.arange(shape[0]) * grid[0] // shape[0])[::-1]
        return rows[:, None] * grid[1] + (np.arange(shape[1]) * grid[1] // shape[1])
    frames, width = FINE["video"][0], shape[1] // FINE["video"][0]
    x = np.arange(shape[1])
    frame, column = x // width * grid[0] // frames, x % width * grid[2] // width
    return (frame * grid[1] + (np.arange(shape[0]) * grid[1] // shape[0])[:, None]) * grid[2] + column


def _atoms(modality: str, grid: tuple[int, ...]) -> dict[str, Any]:
    where: list[dict[str, float]] = []
    for index in np.ndindex(*grid):
        if modality == "audio":
            low, high = (8000 * ((index[0] + d) / grid[0]) ** 1.6 for d in (0, 1))
            where.append(
                {
                    "start_s": index[1] * SECONDS / grid[1],
                    "end_s": (index[1] + 1) * SECONDS / grid[1],
                    "low_hz": low,
                    "high_hz": high,
                }
            )
        else:
            frames = 16 // grid[0]
            tops, lefts = HEIGHT / grid[1], WIDTH / grid[2]
            where.append(
                {
                    "frame": index[0] * frames,
                    "end_frame": (index[0] + 1) * frames,
                    "top": index[1] * tops,
                    "bottom": (index[1] + 1) * tops,
                    "left": index[2] * lefts,
                    "right": (index[2] + 1) * lefts,
                }
            )
    return {"grid": list(grid), "coordinates": where}


def _spectrogram(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    time, bins = np.arange(65) / 64, np.arange(64)[::-1, None]
    pitch = 5 + label * 0.3 + 1.5 * np.sin(3 * time + label)
    voice = sum(np.exp(-((bins - h * pitch) ** 2) / 2.5) / h**0.6 for h in range(1, 12))
    formants = np.exp(-((bins - 14 - 2 * label) ** 2) / 60) + 0.7 * np.exp(-((bins - 36 + label) ** 2) / 80)
    loud = np.clip(np.sin(np.pi * time) ** 0.7, 0, 1)
    picture: NDArray[np.uint8] = np.clip(
        255 * (0.12 + 0.75 * voice * (0.25 + formants) * loud + 0.05 * rng.normal(size=(64, 65))), 0, 255
    ).astype(np.uint8)
    return picture


def _faces(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Something like a mouth that opens, four frames side by side."""
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    frames = []
    for t in range(4):
        opening = 0.08 + 0.1 * t * (1 + label % 3) / 2
        skin = 170 - 40 * (x**2 + 0.5 * y**2)
        lips = np.exp(-(((x / 0.62) ** 2 + (y / (opening + 0.22)) ** 2) ** 4))
        hole = np.exp(-(((x / 0.5) ** 2 + (y / opening) ** 2) ** 3))
        frames.append(skin - 45 * lips - 75 * hole + 4 * rng.normal(size=x.shape))
    picture: NDArray[np.uint8] = np.clip(np.concatenate(frames, 1), 0, 255).astype(np.uint8)
    return picture


def _media(index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    rng = np.random.default_rng(index)
    frames = np.stack(
        [
            np.clip(np.kron(_faces(index, rng)[:, 64 * (i // 4) : 64 * (i // 4 + 1)], np.ones((2, 2))), 0, 255)
            for i in range(16)
        ]
    )
    t = np.arange(round(SECONDS * 16000)) / 16000
    wave = (
        sum(np.sin(2 * np.pi * h * (120 + 12 * index) * t) / h for h in range(1, 8)) * np.sin(np.pi * t / SECONDS) * 0.2
    )
    return np.repeat(frames[..., None], 3, -1).astype(np.uint8), wave.astype(np.float32)


def _calibration(confidence: NDArray[Any], right: NDArray[Any]) -> list[dict[str, Any]]:
    edges, found = np.linspace(0, 1, 16), []
    for low, high in pairwise(edges):
        within = (confidence > low) & (confidence <= high)
        some = bool(within.any())
        found.append(
            {
                "low": low,
                "high": high,
                "clips": int(within.sum()),
                "confidence": float(confidence[within].mean()) if some else None,
                "accuracy": float(right[within].mean()) if some else None,
            }
        )
    return found


def _methods() -> list[dict[str, Any]]:
    titles = {
        "gradient_input": "Gradient × input",
        "integrated_gradients": "Integrated gradients",
        "occlusion": "Occlusion",
        "lime": "LIME",
        "kernel_shap": "KernelSHAP",
    }
    about, caution = (
        "How the score moves when the atom is replaced by the baseline.",
        "Redundant atoms hide one another, and both get 0.",
    )
    row = {"signed": True, "unit": "logit", "about": about, "caution": caution}
    return [
        *({"stage": "U", "method": m, "title": titles[m], "atoms": "fine", **row} for m in METHODS),
        {"stage": "D", "method": "dime_unimodal", "title": "DIME, additive part", "atoms": "coarse", **row},
        {"stage": "D", "method": "dime_multimodal", "title": "DIME, interaction", "atoms": "coarse", **row},
        *({"stage": "C", "method": m, "title": m.replace("_", " ").capitalize(), "atoms": a, **row} for m, a in PAIRS),
        *(
            {"stage": "R", "method": m, "title": titles[m], "atoms": "fine", **row, "unit": "activation"}
            for m in METHODS[:2]
        ),
        {"stage": "R", "method": "ablation", "title": "Ablation", "atoms": "coarse", **row, "unit": "activation"},
        {"stage": "P", "method": "sparse", "title": "Sparse classifier", "atoms": None, **row},
    ]


def _pair(stage: str, method: str) -> dict[str, Any]:
    """A row that has nothing but the synergy of two modalities' maps."""
    row = _trust(stage, method, first="audio", second="video")
    alone = {"score": None, "low": None, "high": None, "score_name": None, "insertion_gain": None, "stability": None}
    return {**row, **alone, "warnings": []}


def _trust(
    stage: str, method: str, modality: str | None = None, first: str | None = None, second: str | None = None
) -> dict[str, Any]:
    score = 0.2 + 0.1 * (len(method) % 7)
    row: dict[str, Any] = {"stage": stage, "method": method, "modality": modality, "first": first, "second": second}
    row |= {
        "atoms": None if stage == "P" else "fine",
        "score": score,
        "low": score - 0.15,
        "high": min(1.0, score + 0.12),
        "score_name": "sensitivity-n: correlation of sums of the map with what happens if those atoms are replaced",
        "clips": 4,
    }
    for key in (
        "insertion_gain",
        "deletion_gain",
        "infidelity",
        "max_sensitivity",
        "stability",
        "top_overlap",
        "randomised_head",
        "randomised_encoder",
        "randomised_model",
    ):
        row[key] = 0.3 if stage == "U" else None
    names = ("synergy", "synergy_low", "synergy_high", "synergy_top", "synergy_random", "synergy_whole")
    gain = 0.1 * (len(method) % 5) - 0.15
    values = (gain, gain - 0.12, gain + 0.2, gain + 0.1, 0.1, 0.3)
    row |= {name: value if first else None for name, value in zip(names, values, strict=True)}
    row["synergy_clips"] = 24 if first else None
    row["warnings"] = ["The map hardly changes when the encoder is randomised."] if method == "gradient_input" else []
    return row
