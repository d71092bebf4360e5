"""Reads the folder that `amr analyze` leaves (docs/multiviz/files.md)."""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from amr.report.site.pack import quantised
from amr.utils.errors import UserError
from amr.utils.readers import bad, read_arrays, read_object, read_table, reading

P = ParamSpec("P")
T = TypeVar("T")

VERSION = 1  # of the folder
KEPT = (  # of summary.json: what the page shows. Paths stay at home: a site is for others to read.
    *(
        "title",
        "method",
        "dataset",
        "split",
        "task",
        "modalities",
        "labels",
        "clips",
        "lacking",
        "explained",
        "accuracy",
        "mAP",
    ),
    *("ECE", "calibration", "dominance", "dominance_by_class", "history", "robust", "emap", "sparse", "errors"),
    *("methods", "baselines", "stages", "notes"),
)
KINDS = {  # by a key that only their atoms' coordinates have, the first that fits
    **{"word": "text", "part": "text", "column": "table", "channel": "series", "frame": "frames", "top": "image"},
    **{"segment": "image", "bin": "image", "low_hz": "spectrogram", "start_s": "wave"},
}
MAPS = ("U", "D", "R", "C", "RC")
ALLOWED = "a folder as `amr analyze` leaves it"
LATEST = 1e7  # seconds; a window that ends later is none


def checked(method: Callable[P, T]) -> Callable[P, T]:
    """Wraps a method of `Source`, so that content of a wrong shape gives an error that names the folder."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        source: Any = args[0]
        with reading(source.folder, ALLOWED), np.errstate(over="raise"):  # a number that no float32 holds
            return method(*args, **kwargs)

    return wrapped


class Source:
    """An analysis.

    Args:
        folder: Folder that `amr analyze --out` named.
        root: Folder of the clips' files, which the user has named. None: the one that the analysis names, if it lies
            within the analysis; another one is not looked into.
        links: Whether links below the root that lead out of it are followed.

    Raises:
        UserError: It is not there, unfinished, or of another version.
    """

    def __init__(self, folder: Path, root: Path | None = None, *, links: bool = False) -> None:
        self.folder, self.root, self.links = folder, root, links
        if not (folder / "summary.json").is_file():
            there = "its analysis is not finished: repeat `amr analyze`" if (folder / "plan.json").is_file() else ""
            raise UserError(f"{folder}: no summary.json; {there or 'name a folder that `amr analyze` wrote'}")
        self.summary: dict[str, Any] = self._json("summary.json")
        if (version := self.summary.get("version")) != VERSION:
            raise UserError(f"{folder / 'summary.json'}: version {version}; this amr reads {VERSION}")
        self._take(self.summary)

    @checked
    def _take(self, summary: Mapping[str, Any]) -> None:
        self.labels = _names("labels", summary["labels"])
        self.modalities = _names("modalities", summary["modalities"])
        for key in ("title", "split"):
            if not isinstance(summary[key], str):
                raise TypeError(f"{key}: {summary[key]!r}")
        named, here = summary.get("root"), self.folder.resolve()
        if self.root is None and isinstance(named, str) and Path(named).resolve().is_relative_to(here):
            self.root = Path(named)
        self._known = frozenset(self.labels)
        self.several = summary.get("task") == "labels"  # per clip; an older analysis has one
        self.rows = {row["id"]: row for row in self.table("predictions")}
        for row in self.rows.values():
            self._check_row(row)

    def _check_row(self, row: Mapping[str, Any]) -> None:
        if not isinstance(row["id"], str) or not re.fullmatch(r"[\w-]{1,200}", row["slug"]):
            raise bad(self.folder / "predictions.parquet", f"the slug {row['slug']!r} is no file name")
        truth = row["labels"] if self.several else [row["label"]]
        if not {*truth, row["predicted"]} <= self._known:
            raise ValueError(f"clip {row['id']!r}: the label {row['label']!r} or {row['predicted']!r} is unknown")
        times = [row[key] for key in ("start", "end") if row[key] is not None]
        if not all(isinstance(time, float) and 0 <= time <= LATEST for time in times) or sorted(times) != times:
            raise ValueError(f"clip {row['id']!r}: the window {times}")
        for modality in self.modalities:
            name = row.get(f"file_{modality}")
            if name is not None and (not isinstance(name, str) or "\0" in name):
                raise TypeError(f"clip {row['id']!r}: the file {name!r}")

    @property
    def unconfirmed(self) -> str | None:
        """The clips' folder that the analysis names, where it is not looked into."""
        named = self.summary.get("root")
        return named if self.root is None and isinstance(named, str) else None

    def path(self, name: str) -> Path:
        """A file of the analysis; a link that leads out of its folder is refused."""
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise bad(path, "a link that leads out of the analysis")
        return path

    def _json(self, name: str) -> Any:
        return read_object(self.path(name))

    def table(self, name: str) -> list[dict[str, Any]]:
        """A parquet file's rows; none if the stage did not run."""
        path = self.path(f"{name}.parquet")
        return read_table(path, "a table as `amr analyze` writes it") if path.exists() else []

    @functools.cached_property
    def checkpoint(self) -> str:
        """The checkpoint's SHA-256: what names of units belong to."""
        with reading(self.folder / "plan.json", ALLOWED):
            return str(self._json("plan.json")["checkpoint"])

    @functools.cached_property
    def extremes(self) -> list[str]:
        """Slugs of the clips at the ends of units that have maps of them."""
        return sorted(path.stem for path in (self.folder / "extremes").glob("*.npz"))

    @functools.cached_property
    def shown(self) -> list[str]:
        """Ids of the clips whose media are shown: explained ones and those at the ends of units."""
        ends = set(self.extremes)
        return [id for id, row in self.rows.items() if row["explained"] or row["slug"] in ends]

    @checked
    def kinds(self) -> dict[str, str]:
        """How each modality's input is looked at: text, table, series, frames, image, spectrogram, wave or vector."""
        found = {}
        for modality, atoms in self._json("atoms.json").items():
            keys = set(atoms["fine"]["coordinates"][0])
            found[modality] = next((kind for key, kind in KINDS.items() if key in keys), "vector")
        return found

    @checked
    def pictured(self) -> tuple[str, int] | None:
        """The modality that a clip's thumbnail is of, and how many frames lie side by side in its picture."""
        kinds = self.kinds()
        for kind in ("frames", "image", "spectrogram"):
            for modality in self.modalities:
                if kinds[modality] == kind:
                    grid = self._json("atoms.json")[modality]["fine"]["grid"]
                    return modality, grid[0] if kind == "frames" else 1
        return None

    @checked
    def thumbs(self) -> dict[str, tuple[bytes | None, str]]:
        """A JPEG, or None, and a text of each clip, by id; nothing where the analysis was made without."""
        found = {}
        for row in self.table("thumbs"):
            jpeg, text = row["jpeg"], row["text"]
            if not isinstance(row["id"], str) or not isinstance(jpeg, bytes | None) or not isinstance(text, str | None):
                raise TypeError(f"thumbs.parquet: the row of {row['id']!r}")
            found[row["id"]] = (jpeg if jpeg and jpeg.startswith(b"\xff\xd8") else None, text or "")
        return found

    @checked
    def run(self) -> dict[str, Any]:
        """Content of the overview."""
        simulation = {row["stage"]: row for row in self.table("simulation")}
        drop = ("seed", "accuracy", "shuffled")
        return {
            **{key: self.summary.get(key) for key in KEPT},
            "checkpoint": self.checkpoint,
            "confusion": None if self.several else np.asarray(self.summary["confusion"], np.int32),
            "kinds": self.kinds(),
            "atoms": self._json("atoms.json"),
            "trust": self.table("trust"),
            "path": self.table("prediction"),
            "simulation": [{k: v for k, v in row.items() if k not in drop} for row in simulation.values()],
            "selection": self.table("selection"),
            "error_units": self.table("error_units"),
        }

    @checked
    def columns(self, ids: Iterable[str]) -> dict[str, Any]:
        """A column each of what is known of clips, in their order; -1 or NaN for those that this analysis lacks."""
        place = {label: i for i, label in enumerate(self.labels)}
        rows = [self.rows.get(id) for id in ids]
        shares = [[_number(row and row[f"share_{m}"]) for m in self.modalities] for row in rows]
        kinds = [_error(row) for row in rows]
        names = sorted({kind for kind in kinds if kind})
        return {
            "predicted": np.array([place[row["predicted"]] if row else -1 for row in rows], np.int32),
            "confidence": np.array([_number(row and row["confidence"]) for row in rows], np.float32),
            "shares": np.array(shares, np.float32).reshape(len(rows), len(self.modalities)),
            "error": np.array([names.index(kind) if kind else -1 for kind in kinds], np.int32),
            "errors": names,
            "explained": np.array([bool(row and row["explained"]) for row in rows]),
            "top": [[place[c] for c in row["top_classes"]] if row else [] for row in rows],
            "top_p": [[round(float(p), 4) for p in row["top_probabilities"]] if row else [] for row in rows],
        }

    @checked
    def units(self) -> dict[str, Any]:
        """Units of the sparse classifier, with their coefficients and extreme clips."""
        place = {label: i for i, label in enumerate(self.labels)}
        coefficients: dict[int, list[list[float]]] = defaultdict(list)
        for row in self.table("units"):
            coefficients[row["unit"]].append([place[row["class"]], row["coefficient"]])
        ends: dict[int, dict[str, list[list[Any]]]] = defaultdict(lambda: {"most": [], "least": []})
        for row in self.table("representation"):
            if row["unit"] in coefficients or not coefficients:
                ends[row["unit"]][row["end"]].append([row["rank"], row["id"], row["value"]])
        order = sorted(
            coefficients or ends, key=lambda u: -max((abs(c) for _, c in coefficients.get(u, [])), default=0)
        )
        return {
            "units": [
                {
                    "unit": unit,
                    "coefficients": coefficients.get(unit, []),
                    **{end: [clip[1:] for clip in sorted(clips)] for end, clips in ends[unit].items()},
                }
                for unit in order
            ],
            "mapped": self.extremes,
        }

    def clip(self, path: Path) -> dict[str, Any]:
        """All that an archive of clips/ or extremes/ holds, as the page reads it."""
        arrays = read_arrays(path)
        with reading(path, "an archive as `amr analyze` writes it"):
            return self._clip(arrays)

    def _clip(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {"id": str(arrays["id"]), "label": int(arrays["label"]), "modalities": {}}
        if self.several:
            found["labels"] = arrays["labels"].tolist()
        for modality in self.modalities:
            start, stop = arrays[f"window/{modality}"].tolist()
            found["modalities"][modality] = {
                "picture": arrays[f"picture/{modality}"],
                "range": arrays[f"range/{modality}"].tolist(),
                "unit": str(arrays[f"unit/{modality}"]),
                "fine": arrays[f"fine/{modality}"].astype(np.uint16),
                "coarse": arrays[f"coarse/{modality}"].astype(np.uint16),
                "window": [start, stop] if np.isfinite([start, stop]).all() else None,
                **_shown(arrays, modality),
            }
        for stage in MAPS:
            found[stage] = _maps(arrays, stage)
        for name in ("predicted", "classes", "units"):
            if name in arrays:
                found[name] = arrays[name].tolist()
        for name in (
            "logits",
            "activations",
            "shapley",
            "shapley_half",
            "pairs",
            "pairs_half",
            "intershap",
            "additive",
            "interaction",
        ):
            if name in arrays:
                found[name] = arrays[name].astype(np.float32)
        if "P/units" in arrays:
            found["P"] = {
                "units": arrays["P/units"].tolist(),
                "contributions": arrays["P/contributions"].astype(np.float32),
                "intercepts": arrays["P/intercepts"].astype(np.float32),
            }
        return found

    def media(self, id: str) -> tuple[dict[str, Path], str | None]:
        """The media file of each modality that has one, and why it cannot be shown."""
        row = self.rows[id]
        names = {m: row[f"file_{m}"] for m in self.modalities if row.get(f"file_{m}")}
        if row.get("problem"):
            return {}, str(row["problem"])
        if not names or self.summary.get("root") is None:
            return {}, "the data do not say which file it comes from"
        if self.root is None:
            return {}, "the clips' folder was not named (amr site --root)"
        for name in names.values():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                return {}, f"{name} leads out of the clips' folder"
            path = self.root / name
            if not (self.links or path.resolve().is_relative_to(self.root.resolve())):
                return {}, f"{name} is a link that leads out of the clips' folder"
            if not path.is_file():
                return {}, f"{name} is gone"
        return {m: self.root / name for m, name in names.items()}, None


def _maps(arrays: Mapping[str, NDArray[Any]], stage: str) -> dict[str, Any]:
    """{modality or pair: {method: {"v": values, "h" or "e": their spread, "why": reason of a map that is all zeros}}}.

    "h" is half a 95 % interval; where that is not known, "e" is a standard error.
    """
    found: dict[str, Any] = defaultdict(dict)
    for name, values in arrays.items():
        kind, _, rest = name.partition("/")
        where, _, method = rest.rpartition("/")
        if kind == stage:
            one = {"v": quantised(values)}
            if (half := arrays.get(f"{stage}_half/{rest}")) is not None:
                one["h"] = quantised(half)
            elif (error := arrays.get(f"{stage}_error/{rest}")) is not None:
                one["e"] = quantised(error)
            if (why := arrays.get(f"{stage}_reason/{rest}")) is not None:
                one["why"] = str(why)
            found[where][method] = one
    return dict(found)


def _shown(arrays: Mapping[str, NDArray[Any]], modality: str) -> dict[str, Any]:
    """Texts and curves of an input whose atoms are words, columns or stretches of time."""
    found: dict[str, Any] = {}
    for name in ("text_fine", "text_coarse", "value"):
        if (texts := arrays.get(f"{name}/{modality}")) is not None:
            if texts.dtype.kind != "U" or texts.ndim != 1:
                raise TypeError(f"{name}/{modality}: must be texts (A,)")
            found[name] = texts.tolist()
    if (series := arrays.get(f"series/{modality}")) is not None:
        if series.ndim != 2 or series.dtype.kind != "f":
            raise TypeError(f"series/{modality}: must be numbers (steps, channels)")
        found["series"] = series.astype(np.float32)
    return found


def _names(key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{key}: {str(value)[:60]!r} is no list of names")
    return value


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _error(row: Mapping[str, Any] | None) -> str | None:
    if row is None or row["error_kind"] is None:
        return None
    return f"{row['error_kind']} {row['error_modality'] or ''}".strip()
