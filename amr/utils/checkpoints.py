"""Checkpoint files: written whole or not at all, with a checksum; refused by name where they are damaged or not ours.

A file is a zip archive with a pickle and the tensors' bytes. Anyone may have written it, so its size bounds what it may
make: nothing in it is executed, unpacked or grown.
"""

import pickletools
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from amr.utils.errors import UserError
from amr.utils.files import replacing, sweep
from amr.utils.names.places import checkpoint_of
from amr.utils.streams import note

CHECKSUM = "checksum"
"""Key of a checkpoint's checksum, beside "state_dict"."""
PICKLE_BYTES = 64 * 2**20
"""Largest size of everything in a checkpoint that is not a tensor; ours have some 10 KB."""
MOST_VALUES = 1_000_000
DEEPEST = 100
GLOBALS = {
    *("collections OrderedDict", "torch Size", "torch device", "builtins set", "builtins complex", "_codecs encode"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"),
}
"""Names that a checkpoint's pickle may contain besides dtypes and storages; none can make an object of any size."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, and renames; adds a checksum of the tensors, and verifies it when it reads.

    Lightning's own goes through the system's temporary folder, which is often another file system: a kill in the middle
    of the copy leaves half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Saves a checkpoint at a local path.

        Raises:
            UserError: If it cannot be written, as on a full disk; the one that was there stays.
        """
        target = Path(path)
        sweep(target.parent, target.name)  # they are large
        with replacing(target) as file:
            torch.save({**checkpoint, CHECKSUM: checksum(checkpoint)}, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads a checkpoint of ours to the CPU, from where Lightning takes it to its device.

        Raises:
            UserError: As `read_checkpoint`'s.
        """
        content: dict[str, Any] = _copied(read_checkpoint(Path(path)))  # training goes on when the file is replaced
        return content


def checksum(content: Mapping[str, Any]) -> str:
    """A checksum of all tensors in a checkpoint, with their places, types and shapes: eight hexadecimal digits."""
    total = 0
    for place, tensor in _tensors(content):
        flat: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(flat, zlib.crc32(f"{place} {tensor.dtype} {tuple(tensor.shape)}".encode(), total))
    return f"{total:08x}"


def read_checkpoint(path: Path, where: str = "", *, verify: bool = True) -> dict[str, Any]:
    """A checkpoint's content; its tensors are views of the file, on the CPU. Nothing in it is executed.

    Args:
        path: The file.
        where: Beginning of the message.
        verify: Whether to compare the checksum, which reads the whole file.

    Raises:
        UserError: It is not there, is not a whole checkpoint of amr's, is damaged, or a field of it is not what amr
            writes.
    """
    if not path.is_file():
        raise UserError(f"{where}{path} does not exist")
    try:
        _check_archive(path)
        content: Any = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # zipfile, pickletools and torch raise a dozen kinds
        raise UserError(f"{where}{path} is not a checkpoint, or not a whole one") from error
    if not isinstance(content, dict) or "amr" not in content:
        raise UserError(f"{where}{path} was not written by amr")
    try:
        _check_fields(content)
        _check_tensors(content, path.stat().st_size)
    except ValueError as error:
        raise UserError(f"{where}{path}: {error}; it is not as amr writes it") from error
    if verify:
        if CHECKSUM not in content:  # as amr once wrote them, and as a Trainer without our plugin does
            note(f"{path}: it has no checksum of amr's; only its archive's are compared")
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise UserError(f"{where}{path} is damaged, at its entry {damaged}; use another checkpoint")
        elif content[CHECKSUM] != checksum(content):
            raise UserError(f"{where}{path} is damaged: its tensors have another checksum; use another checkpoint")
    return content


def check_checkpoint(path: Path, where: str = "") -> None:
    """Raises `UserError` unless the file looks like a whole checkpoint of amr's; its tensors' bytes are not read.

    Args:
        path: The file.
        where: Beginning of the message.
    """
    read_checkpoint(path, where, verify=False)


def unimodal_accuracy(path: Path, modality: str, num_classes: int, where: str = "") -> float:
    """Best validation accuracy, in (0, 1], of the run that wrote a checkpoint of one modality, up to that checkpoint.

    `BestCheckpoint` keeps it in every checkpoint of its run; that of `best.ckpt` is the accuracy of its weights.

    Args:
        path: A checkpoint, or its run's folder; `~` is the home folder.
        modality: The one modality that the model must have.
        num_classes: The number of classes that it must have.
        where: Beginning of the message.

    Raises:
        UserError: If it is not such a checkpoint, or holds no validation accuracy above 0.
    """
    path = checkpoint_of(path, where.removesuffix("="))
    content = read_checkpoint(path, where)
    facts = content["amr"]
    if facts["modalities"] != [modality]:
        theirs = ", ".join(map(repr, facts["modalities"]))
        raise UserError(f"{where}{path} is a model of {theirs}; must be one of {modality!r} alone")
    if facts["num_classes"] != num_classes:
        raise UserError(f"{where}{path} has {facts['num_classes']} classes; must have the data's {num_classes}")
    scores = [
        state["best_model_score"]
        for state in content.get("callbacks", {}).values()
        if isinstance(state, Mapping) and state.get("monitor") == "val/acc" and "best_model_score" in state
    ]
    score = scores[0] if scores else None
    accuracy = float(score) if isinstance(score, float | int) or (isinstance(score, Tensor) and score.ndim == 0) else 0
    if not 0 < accuracy <= 1:
        raise UserError(
            f"{where}{path} holds no validation accuracy above 0; must be a checkpoint of a run that validated, with "
            "best.monitor=val/acc"
        )
    return accuracy


def check_same_architecture(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raises `UserError`, naming the first difference, unless both state dicts have the same keys and shapes."""

    def some(keys: Iterable[str]) -> str:
        keys = sorted(keys)
        return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")

    if missing := own.keys() - saved.keys():
        raise UserError(f"checkpoint: of another architecture, it lacks {some(missing)}")
    if unknown := saved.keys() - own.keys():
        raise UserError(f"checkpoint: of another architecture, it has {some(unknown)}, which this model lacks")
    for key, value in own.items():
        if value.shape != saved[key].shape:
            raise UserError(
                f"checkpoint: of another architecture, {key} has shape {tuple(saved[key].shape)}, "
                f"this model's has {tuple(value.shape)}"
            )


def restore_weights(checkpoint: dict[str, Any], now: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """Completes a checkpoint's weights for a classifier that is to take them, and returns its `amr` entry.

    State of methods that only one of the two has does not bind: training may resume with another method.

    Args:
        checkpoint: The checkpoint, whose `state_dict` is replaced.
        now: The classifier's state, which stays where the checkpoint has none.

    Raises:
        UserError: A parameter of the model is missing, unknown or of another shape, or amr did not write it.
    """
    saved: dict[str, Tensor] = checkpoint["state_dict"]
    check_same_architecture(
        {key: value for key, value in now.items() if key.startswith("model.")},
        {key: value for key, value in saved.items() if key.startswith("model.")},
    )
    if checkpoint.get("amr") is None:
        raise UserError("checkpoint: it was not written by amr (no 'amr' entry)")
    both = {key: saved[key] for key in now if key in saved}
    check_same_architecture({key: now[key] for key in both}, both)
    checkpoint["state_dict"] = {**now, **both}
    state: Mapping[str, Any] = checkpoint["amr"]
    return state


# ------------------------------------------------------------------------------------------------------ what is refused


def _check_archive(path: Path) -> None:
    """Raises an exception unless the file is an archive without compression, and its pickle whole and harmless."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise ValueError("compressed or encrypted")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("larger inside than outside")
        (pickled,) = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if pickled.file_size > PICKLE_BYTES:
            raise ValueError("a pickle without bounds")
        code = archive.read(pickled)  # compares its CRC
    for opcode, argument, _ in pickletools.genops(code):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            known = module == "torch" and (name.endswith("Storage") or isinstance(vars(torch).get(name), torch.dtype))
            if not known and argument not in GLOBALS:
                raise ValueError(f"it names {argument}")
        elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            raise ValueError(opcode.name)


def _check_fields(content: Mapping[str, Any]) -> None:
    """Raises `ValueError`, naming the field, unless those that are read without Lightning have their types."""
    facts = content["amr"]
    if not isinstance(facts, Mapping):
        raise ValueError("its `amr` entry is no mapping")
    modalities, classes = facts.get("modalities"), facts.get("num_classes")
    if not isinstance(modalities, list) or not modalities:
        raise ValueError("its `amr.modalities` is no list of names")
    for name in modalities:
        if not isinstance(name, str) or not name.isidentifier() or len(name) > 100:
            raise ValueError(f"its `amr.modalities`: {str(name)[:100]!r} cannot name a modality")
    if type(classes) is not int or not 1 <= classes < 2**31:
        raise ValueError("its `amr.num_classes` is no number of classes")
    for field, value, allowed in (
        ("amr.model", facts.get("model"), Mapping | None),
        ("amr.methods", facts.get("methods", {}), Mapping),
        ("amr.seed", facts.get("seed", 0), int),
        ("state_dict", content.get("state_dict"), Mapping),
        ("callbacks", content.get("callbacks", {}), Mapping),
        ("optimizer_states", content.get("optimizer_states", []), list),
        ("lr_schedulers", content.get("lr_schedulers", []), list),
        ("loops", content.get("loops", {}), Mapping),
        (CHECKSUM, content.get(CHECKSUM, ""), str),
    ):
        if not isinstance(value, allowed):
            raise ValueError(f"its `{field}` is of type {type(value).__name__}")
    for key, value in content["state_dict"].items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError("its `state_dict` holds something else than tensors")


def _check_tensors(content: Mapping[str, Any], size: int) -> None:
    """Raises `ValueError` unless all tensors together are about as large as the file, which a view need not be."""
    total = 0
    for place, tensor in _tensors(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"its tensor {place[:200]} is of a kind that amr does not write")
        total += tensor.numel() * tensor.element_size()
        if total > 4 * size:  # shared storages are counted each time
            raise ValueError(f"its tensors are larger than the file, at {place[:200]}")


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Each tensor in nested mappings and sequences with its place, without the checksum's entry.

    Raises:
        ValueError: There are too many values, they are nested too deeply, or a key is not a text or number.
    """
    left: list[tuple[str, int, Any]] = [("", 0, content)]
    count = 0
    while left:
        place, depth, value = left.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            raise ValueError("its values are too many, or nested too deeply")
        if isinstance(value, Tensor):
            yield place, value
        elif isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str | int | float | bool | None) or (isinstance(key, int) and abs(key) >> 64):
                    raise ValueError(f"a key in it is of type {type(key).__name__}")
            left += reversed([(f"{place}/{key}", depth + 1, item) for key, item in value.items()])
        elif isinstance(value, list | tuple):
            left += reversed([(f"{place}/{i}", depth + 1, item) for i, item in enumerate(value)])


def _copied(value: Any) -> Any:
    """The same with copies of the tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return type(value)((key, _copied(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    return value
