"""Batches as loaders give them, and the one form in which everything else takes them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from amr.model.task import Task
from amr.utils.errors import UserError

ALLOWED = '{"inputs": {modality: (B, ...)}, "label": (B,)} or (inputs, label)'


class Batch(TypedDict):
    """Clips: `inputs` (B, ...) of each modality, `label` (B,) int64, the clips' names, and who lacks what."""

    inputs: dict[str, Any]
    label: Tensor
    id: list[str]
    present: NotRequired[dict[str, Tensor]]


class Ids:
    """The clips' names in a step's output, as in a list, which it is equal to.

    Lightning walks through every sequence in a step's output to detach what is in it: name by name, a quarter of the
    time of a step of a tiny model. It leaves an object that is not a sequence alone.

    Args:
        names: Names of the clips.
    """

    __slots__ = ("names",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, place: Any) -> Any:
        return self.names[place]

    def __eq__(self, other: object) -> bool:
        return list(self.names) == (list(other) if isinstance(other, Ids | list) else other)

    def __repr__(self) -> str:
        return repr(self.names)


class StepOutput(TypedDict):
    """Outputs of a step for callbacks: the loss and, detached, encodings (B, ...), logits (B, C), labels (B,), ids."""

    loss: Tensor
    encodings: dict[str, Tensor]
    logits: Tensor
    label: Tensor
    id: Ids
    present: Mapping[str, Tensor] | None


def about(batch: Batch) -> dict[str, Any]:
    """Labels, ids and who lacks what."""
    return {"label": batch["label"], "id": batch["id"], "present": batch.get("present")}


def step_output(batch: Batch, loss: Tensor, logits: Tensor, encodings: dict[str, Tensor]) -> StepOutput:
    """Output of a step on a batch."""
    facts: Any = {**about(batch), "id": Ids(batch["id"])}
    return {"loss": loss, "encodings": encodings, "logits": logits, **facts}  # type: ignore[typeddict-item]


def as_batch(
    batch: Any,
    modalities: Sequence[str],
    place: tuple[int, int] = (0, 0),
    num_classes: int | None = None,
    task: Task = "classes",
) -> Batch:
    """A batch in the form of `Batch`.

    Args:
        batch: `{"inputs": inputs, "label": label}`, with `id` and `present` or without; `(inputs, label)`; or, as a
            `TensorDataset` gives them, one tensor of each modality and the label, `(x1, ..., xM, label)`. `inputs` are
            a mapping by modality, a sequence in the order of the modalities, or a tensor if there is one modality.
            `label` holds integers, (B,). Further keys are kept.
        modalities: The model's.
        place: Rank and number of the batch in its epoch, by which clips without `id` are named.
        num_classes: Labels are below it, which is checked on the CPU only: a GPU would have to wait. None: any.
        task: `classes`; `labels`: `label` holds 0 and 1, (B, C); `regression`: numbers, (B,) or (B, 1).

    Raises:
        UserError: It is none of these, or could be two of them.
    """
    if isinstance(batch, Mapping):
        if lacking := [key for key in ("inputs", "label") if key not in batch]:
            raise UserError(f"batch: it has no {lacking[0]!r}, only {_listed(batch)}; must be {ALLOWED}")
        inputs, label, rest = batch["inputs"], batch["label"], dict(batch)
    else:
        inputs, label = _pair(batch, modalities)
        rest = {}
    if task == "regression":
        label = _numbers(label)
    else:
        label = _label(label, num_classes) if task == "classes" else _labels(label, num_classes)
    inputs = _inputs(inputs, modalities, label)
    return {**rest, "inputs": inputs, "label": label, "id": _names(rest, label, place), **_present(rest, label)}  # type: ignore[typeddict-item]


def inputs_of(batch: Any, modalities: Sequence[str]) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """Inputs, and who lacks what, of a batch or of inputs alone.

    Args:
        batch: As for `as_batch`, with or without label; or the inputs by modality, or in the order of the modalities.
        modalities: The model's.

    Raises:
        UserError: It is none of these.
    """
    alone = isinstance(batch, Tensor) and len(modalities) == 1
    if isinstance(batch, Mapping):
        alone = "inputs" not in batch or "inputs" in modalities
        if not alone and "label" not in batch:
            batch = {**batch, "label": None}
    elif isinstance(batch, Sequence) and len(batch) == len(modalities):
        alone = all(isinstance(x, Tensor) for x in batch)
    if alone:
        batch = {"inputs": batch, "label": None}
    if isinstance(batch, Mapping) and batch["label"] is None:
        inputs = batch["inputs"]
        first = inputs if isinstance(inputs, Tensor) else next(iter(_values(inputs)), None)
        batch = {**batch, "label": torch.zeros(len(first) if isinstance(first, Tensor) else 1, dtype=torch.int64)}
    whole = as_batch(batch, modalities, task=_task(batch))
    return whole["inputs"], whole.get("present")


def _task(batch: Any) -> Task:
    """Task, inferred from the form of a batch's label."""
    label = (
        batch["label"] if isinstance(batch, Mapping) else batch[-1] if isinstance(batch, Sequence) and batch else None
    )
    if isinstance(label, Tensor) and label.is_floating_point() and label.shape[1:] in ((), (1,)):
        return "regression"
    return "labels" if isinstance(label, Tensor) and label.ndim == 2 else "classes"


def _values(inputs: Any) -> Any:
    return inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, Sequence) else ()


def made_up(names: Sequence[str]) -> bool:
    """Whether clips have the names of their places in the epoch, which are other clips in every epoch."""
    return bool(names) and re.fullmatch(r"r\d+-b\d{6}-\d{5}", names[0]) is not None


def _pair(batch: Any, modalities: Sequence[str]) -> tuple[Any, Any]:
    if not isinstance(batch, Sequence) or isinstance(batch, str):
        raise UserError(f"batch: it is {_kind(batch)}; must be {ALLOWED}")
    count, tensors = len(modalities), all(isinstance(part, Tensor) for part in batch)
    if tensors and len(batch) == count + 1:
        *inputs, label = batch
        if count > 1 and any(_is_label(x) for x in inputs):
            raise UserError(f"batch: {_kinds(batch)} leave open which is the label; give the inputs by name, {ALLOWED}")
        return inputs, label
    if len(batch) == 2 and not isinstance(batch[0], Tensor):
        return batch[0], batch[1]
    raise UserError(
        f"batch: {_kinds(batch)}, but the model has {count} modalities, {', '.join(modalities)}; must be {ALLOWED}"
    )


def _inputs(inputs: Any, modalities: Sequence[str], label: Tensor) -> dict[str, Any]:
    if isinstance(inputs, Tensor) and len(modalities) == 1:
        inputs = [inputs]
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        if len(inputs) != len(modalities):
            raise UserError(
                f"batch: inputs are {len(inputs)}; must be {len(modalities)}, one of each modality in the order "
                f"{', '.join(modalities)}, or a mapping by modality"
            )
        inputs = dict(zip(modalities, inputs, strict=True))
    if not isinstance(inputs, Mapping):
        raise UserError(f"batch: inputs are {_kind(inputs)}; must be a mapping by modality")
    if lacking := [name for name in modalities if name not in inputs]:
        raise UserError(f"batch: no input for the modality {lacking[0]!r}; it has {_listed(inputs)}")
    for name in modalities:
        x = inputs[name]
        if isinstance(x, Tensor) and (x.ndim < 1 or len(x) != len(label)):
            raise UserError(f"batch: inputs.{name} is {_kind(x)}; must have as many rows as the label, {len(label)}")
    return inputs if isinstance(inputs, dict) else dict(inputs)


def _label(label: Any, num_classes: int | None) -> Tensor:
    if not isinstance(label, Tensor) or not _is_label(label) or not len(label):
        several = isinstance(label, Tensor) and label.ndim == 2
        hint = "; of several labels per clip (model.task=labels) it is (B, C)" if several else ""
        raise UserError(f"batch: label is {_kind(label)}; must be class indices, (B,) int64, with B at least 1{hint}")
    if num_classes is not None and label.device.type == "cpu":
        low, high = (int(end) for end in label.aminmax())
        if low < 0 or high >= num_classes:
            raise UserError(f"batch: label is {low if low < 0 else high}; must be at least 0 and below {num_classes}")
    return label.long()


def _labels(label: Any, num_labels: int | None) -> Tensor:
    given = label if isinstance(label, Tensor) else torch.empty(0)
    if given.ndim != 2 or not len(given) or given.is_complex() or num_labels not in (None, given.shape[1]):
        shape = f"(B, {num_labels or 'C'})"
        raise UserError(f"batch: label is {_kind(label)}; must be 0 and 1, {shape}, for model.task=labels")
    if given.device.type == "cpu" and not bool(((given == 0) | (given == 1)).all()):
        raise UserError("batch: label has other values than 0 and 1; must be 0 and 1, for model.task=labels")
    return given.float()


def _numbers(label: Any) -> Tensor:
    given = label if isinstance(label, Tensor) else torch.empty(0)
    if not len(given) or given.shape[1:] not in ((), (1,)) or given.is_complex():
        raise UserError(f"batch: label is {_kind(label)}; must be numbers, (B,), for model.task=regression")
    if given.device.type == "cpu" and not bool(given.isfinite().all()):
        raise UserError("batch: label has a number that is not finite; must be finite, for model.task=regression")
    return given.reshape(-1, 1).float()


def _is_label(x: Tensor) -> bool:
    return x.ndim == 1 and not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _names(rest: Mapping[str, Any], label: Tensor, place: tuple[int, int]) -> list[str]:
    if rest.get("id") is None:
        return [f"r{place[0]}-b{place[1]:06d}-{row:05d}" for row in range(len(label))]
    names = rest["id"].tolist() if isinstance(rest["id"], Tensor) else rest["id"]
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) != len(label):
        raise UserError(f"batch: id is {_kind(rest['id'])}; must be a name of each of the {len(label)} clips")
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else [str(n) for n in names]


def _present(rest: Mapping[str, Any], label: Tensor) -> dict[str, Any]:
    present = rest.get("present")
    if present is None:
        return {}
    if not isinstance(present, Mapping):
        raise UserError(f"batch: present is {_kind(present)}; must be a mapping by modality")
    for name, mask in present.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != label.shape[:1]:
            raise UserError(f"batch: present.{name} is {_kind(mask)}; must be bool, ({len(label)},)")
    return {"present": present}


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _kinds(values: Sequence[Any]) -> str:
    shown = [_kind(value) for value in values[:5]]
    return f"a {type(values).__name__} of {len(values)} ({', '.join(shown)}{', ...' if len(values) > 5 else ''})"


def _listed(names: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, list(names)[:10])) or "nothing"
