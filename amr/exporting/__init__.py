"""A checkpoint's model for programs that do not have amr, as ONNX and as a torch.export program.

DIR/ gets model.onnx, model.pt2, preprocessing.json (what the inputs are and how they are made), README.md (how to use
them), and the run's card.md where there is one.
"""

import hashlib
import inspect
import json
import logging
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from amr.exporting.inputs import model_and_inputs
from amr.exporting.readme import CARD, FILES, readme
from amr.utils.errors import UserError
from amr.utils.files import locked, run_folder, sweep, write_bytes, write_text
from amr.utils.names.places import checkpoint_of
from amr.utils.names.version import __version__
from amr.utils.readers import read_object

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

    from amr.model import FusionModel, HasModel
    from amr.model.loaders import Data

FORMATS = {"onnx": ("onnx",), "torch": ("torch",), "both": ("onnx", "torch")}
RECORD = "preprocessing.json"
TOLERANCE = 1e-4
CHECKED = (1, 5)  # batch sizes
LARGEST_CARD = 2**20
LARGEST = 2**31  # bytes; a protobuf, as an ONNX file is, holds no more


def export(
    checkpoint: "str | Path | FusionModel | HasModel",
    out: str | Path,
    *,
    format: Literal["onnx", "torch", "both"] = "both",
    encodings: bool = False,
    data: "str | Path | Data | None" = None,
    trust: Sequence[str] = (),
) -> list[str]:
    """Exports a checkpoint's model, with a description of its inputs and how to use it.

    Args:
        checkpoint: A run's folder, or a checkpoint of it, or a model.
        out: Folder for the files; those that are there are replaced.
        format: Formats to write.
        encodings: Whether to give each modality's encoding out, too.
        data: A configuration with a `data` section, by its file or name, or a class; None for the run's own data. Or a
            data module, or loaders by split, of which a batch says what the inputs are.
        trust: Import paths of packages or classes, besides those of amr and its kin, that the run's files may name.

    Returns:
        Names of the files with the model.

    Raises:
        UserError: For anything that the user can mend, and a model that cannot be exported.
    """
    if isinstance(checkpoint, str | Path):
        checkpoint = checkpoint_of(checkpoint)
    out = Path(out)
    if format not in FORMATS:
        raise UserError(f"format={format}: must be one of {', '.join(FORMATS)}")
    formats = FORMATS[format]
    if "onnx" in formats:
        _require_onnx()  # before the slow part
    with locked(out, "choose another --out", beside=True):
        return _export(checkpoint, out, formats, encodings, data, trust)


def _export(
    checkpoint: "Path | FusionModel | HasModel",
    out: Path,
    formats: Sequence[str],
    encodings: bool,
    data: "str | Path | Data | None",
    trust: Sequence[str],
) -> list[str]:
    import torch

    model, inputs, labels = model_and_inputs(checkpoint, data, trust)
    with torch.random.fork_rng(devices=[]):
        examples = {name: torch.randn(2, *described["shape"]) for name, described in inputs.items()}
    folder = run_folder(checkpoint) if isinstance(checkpoint, Path) else None
    if folder is not None and labels is None:
        labels = _labels(folder / "run.json")  # before the slow part
    card = [] if folder is None else _card(folder)
    for name in (*FILES.values(), CARD, RECORD, "README.md"):
        sweep(out, name)
    stale = _stale(out, [*(FILES[name] for name in formats), *card])
    models = export_model(model, examples, out, formats, encodings=encodings)
    if folder is not None:
        for name in card:
            write_bytes(out / name, (folder / name).read_bytes())
    for path in stale:
        path.unlink()
    described = {
        "amr": __version__,
        "checkpoint": checkpoint.name if isinstance(checkpoint, Path) else type(checkpoint).__name__,
        "files": {name: _digest(out / name) for name in [*models, *card]},
        "inputs": {
            name: {**rest, "shape": ["batch", *rest["shape"]], "axes": ["batch", *rest["axes"]]}
            for name, rest in inputs.items()
        },
        "outputs": _outputs(model, examples, encodings),
        "labels": labels,
    }
    write_text(out / RECORD, json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "README.md", readme(described))
    return list(models)


def _card(folder: Path) -> list[str]:
    """The card's name, in a list, if a run has one.

    Raises:
        UserError: It is not one to copy.
    """
    path = folder / CARD
    if not path.is_file():
        return []
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path}: it is a link out of the run's folder, whose file would be copied; remove it")
    if path.stat().st_size > LARGEST_CARD:
        raise UserError(f"{path}: no model card is larger than {LARGEST_CARD} bytes; remove it")
    return [CARD]


def _stale(out: Path, fresh: Collection[str]) -> list[Path]:
    """Files of an earlier export that this one does not write: left there, they would be taken for the new model's.

    Raises:
        UserError: Such a file is not as an earlier export into the folder recorded it, so it is not ours to remove.
    """
    try:
        recorded = dict(read_object(out / RECORD)["files"])
    except (ValueError, KeyError, TypeError):  # none, or not an export's
        recorded = {}
    stale = [out / name for name in (*FILES.values(), CARD) if name not in fresh and (out / name).is_file()]
    for path in stale:
        if recorded.get(path.name) != _digest(path):
            raise UserError(
                f"--out={out}: {path.name} is there, which this export does not write and no earlier one recorded; "
                "move it away, or name another folder"
            )
    return stale


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def export_model(
    model: "FusionModel",
    examples: "Mapping[str, Tensor]",
    out: Path,
    formats: Sequence[str] = ("onnx", "torch"),
    *,
    encodings: bool = False,
) -> list[str]:
    """Writes a model, each input and output named, the batch of any size, every modality there.

    What is written gives `logits` and `probabilities`, (B, C), and with `encodings` an `encoding_<modality>` each. It
    is compared with the model, at batch sizes 1 and 5, before anything is written: the torch.export program always, the
    ONNX file where onnxruntime is installed.

    Args:
        model: The model; it is exported in eval mode, on its own device and in its own type.
        examples: An input of each modality, (2, ...) or more; only its shape and type count.
        out: The folder.
        formats: `onnx`, `torch`.
        encodings: Whether to give encodings out.

    Returns:
        Names of the files.

    Raises:
        UserError: A part of the model, which the message names, cannot be exported; a package is not installed; the
            folder cannot be written.
    """
    import torch

    from amr.attribution import evaluating

    if "onnx" in formats:
        _require_onnx()
        size = sum(p.numel() * p.element_size() for p in model.state_dict().values())
        if size >= LARGEST:
            raise UserError(
                f"--format=onnx: the model has {size / 2**30:.1f} GiB, an ONNX file at most 2; must be torch"
            )
    with evaluating(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about its own deprecations
        module = _module(model, encodings)
        program = _program(module, model, examples)
        fresh = {b: {m: torch.randn_like(x[:1].expand(b, *x.shape[1:])) for m, x in examples.items()} for b in CHECKED}
        expected = {b: module(**inputs) for b, inputs in fresh.items()}
        for batch, inputs in fresh.items():
            _compare(f"the exported program at batch size {batch}", program.module()(**inputs), expected[batch])
        data: dict[str, bytes] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name in formats:
                path = Path(folder) / FILES[name]
                if name == "torch":
                    torch.export.save(program, path)
                else:
                    _save_onnx(program, list(examples), list(expected[CHECKED[0]]), path)
                    _check_onnx(path, fresh, expected)
                data[FILES[name]] = path.read_bytes()
    for file, content in data.items():
        write_bytes(out / file, content)
    return list(data)


def _module(model: "FusionModel", encodings: bool) -> Any:
    """The model with one argument per modality and a dictionary of outputs."""
    from torch import Tensor, nn

    several = model.task == "labels"

    class Exported(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
            encoded = self.model.encode(inputs)
            logits = self.model.head(encoded)
            more = {f"encoding_{name}": e for name, e in encoded.items()} if encodings else {}
            return {"logits": logits, "probabilities": logits.sigmoid() if several else logits.softmax(1), **more}

    module = Exported()
    # torch.export reads the arguments' names off the signature, and loses its way in one dictionary of all.
    names = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in model.modalities]
    bound = module.forward
    forward: Any = lambda **inputs: bound(**inputs)  # noqa: E731  # a bound method takes no attributes
    forward.__signature__ = inspect.Signature(names)
    module.forward = forward  # type: ignore[method-assign]
    return module.eval()


def _program(module: Any, model: "FusionModel", examples: "Mapping[str, Tensor]") -> "ExportedProgram":
    import torch

    batch = torch.export.Dim("batch")
    try:
        return torch.export.export(
            module, (), dict(examples), dynamic_shapes={name: {0: batch} for name in examples}, strict=False
        )
    except Exception as error:  # torch raises whatever comes up while it traces
        raise UserError(f"{_culprit(model, examples)} cannot be exported: {_first_line(error)}") from error


def _culprit(model: "FusionModel", examples: "Mapping[str, Tensor]") -> str:
    """The part that torch.export cannot export, in the configuration's words."""
    import torch

    batch = torch.export.Dim("batch")
    for name, encoder in model.encoders.items():
        try:
            torch.export.export(encoder, (examples[name],), dynamic_shapes=({0: batch},), strict=False)
        except Exception:  # this is the question
            return f"model.encoders.{name}={type(encoder).__name__}"
    return f"model.fusion={type(model.head).__name__}"


def _save_onnx(program: "ExportedProgram", inputs: list[str], outputs: list[str], path: Path) -> None:
    import torch

    for name in ("torch.onnx", "onnxscript"):  # which tell how they went about it
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        onnx = torch.onnx.export(
            program, dynamo=True, input_names=inputs, output_names=outputs, external_data=False, verbose=False
        )
    except Exception as error:
        raise UserError(f"--format=onnx: no ONNX for this model: {_first_line(error)}; must be torch") from error
    assert onnx is not None
    for value in [*onnx.model.graph.inputs, *onnx.model.graph.outputs]:  # the exporter numbers it
        assert value.shape is not None
        value.shape = type(value.shape)(["batch", *value.shape[1:]])
    onnx.save(path, external_data=False)


def _check_onnx(
    path: Path, inputs: "Mapping[int, Mapping[str, Tensor]]", expected: "Mapping[int, Mapping[str, Tensor]]"
) -> None:
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        return
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for batch, given in inputs.items():
        values = session.run(names, {name: x.cpu().numpy() for name, x in given.items()})
        found = {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}
        _compare(f"--format=onnx: onnxruntime at batch size {batch}", found, expected[batch])


def _compare(what: str, found: "Mapping[str, Tensor]", expected: "Mapping[str, Tensor]") -> None:
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        if (
            found[name].shape != value.shape
            or not float((found[name].cpu() - value.cpu()).abs().max()) <= TOLERANCE * scale
        ):
            raise UserError(f"{what}: {name} is not what the model gives, to within {TOLERANCE}; nothing was written")


def _outputs(model: "FusionModel", examples: "Mapping[str, Tensor]", encodings: bool) -> dict[str, Any]:
    import torch

    classes, rule = model.head.num_classes, "softmax" if model.task == "classes" else "sigmoid"
    outputs: dict[str, Any] = {
        "logits": {"shape": ["batch", classes]},
        "probabilities": {"shape": ["batch", classes], "is": f"{rule} of the logits"},
    }
    if encodings:
        with torch.no_grad():
            encoded = model.encode(examples)
        outputs |= {f"encoding_{name}": {"shape": ["batch", *e.shape[1:]]} for name, e in encoded.items()}
    return outputs


def _labels(file: Path) -> list[str] | None:
    """The classes, from run.json; None if it is not there.

    Raises:
        UserError: It cannot be read.
    """
    if not file.is_file():
        return None
    labels: list[str] | None = read_object(file).get("labels")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise UserError(f"{file}: labels={str(labels)[:60]!r}: must be a list of names")
    return labels


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--format: ONNX needs {error.name}, which is not installed: pip install 'amr-fusion[export]'; "
            "or --format torch"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
