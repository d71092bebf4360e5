"""Limits the classes that a file of unknown origin (a checkpoint, a run's folder) may build by name.

jsonargparse imports whatever a configuration names, and a constructor is code. So the names are checked as text, before
anything is imported; then each must be a class of the base class that its place expects; and while the configuration is
parsed and built, jsonargparse itself refuses every other import.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from amr.utils.errors import UserError

TRUST = "a package whose classes the checkpoint and its run may name, too; may be given several times"
OURS = "amr"
MOST = 10_000
"""Values that a section may have; the largest of ours has some hundred."""
DEEPEST = 40


@dataclass(frozen=True)
class Place:
    """Where a configuration may name a class.

    Attributes:
        base: Import path of the class that it must be a subclass of.
        others: Import paths, or prefixes of them, that are allowed beside `amr` and what the user trusts.
    """

    base: str
    others: tuple[str, ...] = ()


ENCODER = Place("amr.encoders.base.Encoder")
FUSION = Place("amr.fusion.base.Fusion")
METHOD = Place("amr.regularizers.base.Regularizer")
DATA = Place("pytorch_lightning.LightningDataModule")
OPTIMIZER = Place("torch.optim.Optimizer", ("torch.optim",))
SCHEDULER = Place(
    "torch.optim.lr_scheduler.LRScheduler", ("torch.optim.lr_scheduler", "pytorch_lightning.cli.ReduceLROnPlateau")
)
# Of Lightning's, those that take no function to call; the loggers write files and send nothing.
CALLBACK = Place(
    "pytorch_lightning.Callback",
    tuple(
        f"pytorch_lightning.callbacks.{name}"
        for name in (
            *("DeviceStatsMonitor", "EarlyStopping", "GradientAccumulationScheduler", "LearningRateFinder"),
            *("LearningRateMonitor", "ModelCheckpoint", "ModelSummary", "RichModelSummary", "RichProgressBar"),
            *("StochasticWeightAveraging", "TQDMProgressBar", "Timer"),
        )
    ),
)
LOGGER = Place(
    "pytorch_lightning.loggers.Logger",
    ("pytorch_lightning.loggers.CSVLogger", "pytorch_lightning.loggers.TensorBoardLogger"),
)
STRATEGY = Place(
    "pytorch_lightning.strategies.Strategy",
    ("pytorch_lightning.strategies.DDPStrategy", "pytorch_lightning.strategies.SingleDeviceStrategy"),
)
PLACES: dict[tuple[str, ...], Place] = {
    ("data",): DATA,
    ("model", "encoders", "*"): ENCODER,
    ("model", "fusion"): FUSION,
    ("model", "fusion", "init_args", "heads", "*"): FUSION,
    ("model", "optimizer"): OPTIMIZER,
    ("model", "lr_scheduler"): SCHEDULER,
    ("model", "extra", "*"): METHOD,
    ("model", "*"): METHOD,
    ("trainer", "callbacks"): CALLBACK,
    ("trainer", "callbacks", "*"): CALLBACK,
    ("trainer", "logger"): LOGGER,
    ("trainer", "logger", "*"): LOGGER,
    ("trainer", "strategy"): STRATEGY,
}
"""Each place where a configuration of ours names a class, `*` for any key; elsewhere no other than `amr`'s may stand.

The first that fits counts."""
WORDS = {("model", "*"), ("trainer", "strategy")}
"""Places where a text without a dot is something else than a class."""

_trusted: ContextVar[tuple[str, ...]] = ContextVar("trusted", default=())


@contextmanager
def trusting(prefixes: Sequence[str]) -> Iterator[None]:
    """Within the block, classes under these import paths may be built, too: what the user says by `--trust`.

    Raises:
        UserError: One of them is not an import path.
    """
    for prefix in prefixes:
        if not _is_path(prefix):
            raise UserError(f"--trust={prefix!r}: must be the import path of a package or a class, such as mypackage")
    token = _trusted.set((*_trusted.get(), *prefixes))
    try:
        yield
    finally:
        _trusted.reset(token)


def take_trust(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes every `--trust PREFIX` out of a command's arguments.

    It is no key of the configuration: a file could set that.

    Returns:
        The other arguments, and the prefixes.
    """
    others: list[str] = []
    prefixes: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--trust":
            prefixes.append(next(left, ""))
        elif argument.startswith("--trust="):
            prefixes.append(argument.partition("=")[2])
        else:
            others.append(argument)
    return others, prefixes


def packages(section: Any) -> set[str]:
    """The top-level packages of all classes that a configuration names and a stranger's may not name."""
    return {
        name.partition(".")[0]
        for _, name, place in _named(section)
        if isinstance(name, str) and _is_path(name) and not _under(name, (OURS, *(place.others if place else ())))
    }


def check(section: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` unless every class that a configuration names may be built; see the module's text.

    Args:
        section: The configuration: `model`, `data`, `trainer`, or some of them.
        where: Beginning of the message: the file.
    """
    for modality in _modalities(section):
        if not isinstance(modality, str) or not modality.isidentifier():
            shown = repr(str(modality)[:100])
            raise UserError(f"{where}: model.encoders: {shown} cannot name a modality; use letters, digits and _")
    for key in ("model", "trainer"):
        if not isinstance(section.get(key, {}), Mapping):
            raise UserError(f"{where}: {key} is not a mapping")
    names = _named(section, where)
    for key, name, place in names:
        _check_name(name, f"{where}: {key}", place)
    for key, name, place in names:
        _check_class(name, f"{where}: {key}", place)


@contextmanager
def only_trusted() -> Iterator[None]:
    """Within the block, jsonargparse imports nothing but what a checked configuration may name."""
    from jsonargparse import _common, set_parsing_settings  # its settings are global, and no call puts them back

    before = _common.parsing_settings["import_path_verdicts"]
    others = {prefix for place in PLACES.values() for prefix in place.others}
    others |= {_defined(prefix) for prefix in others}
    try:
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=sorted({OURS, *others, *_trusted.get()}))
    except ValueError as error:
        raise UserError(f"--trust: {error}") from error
    try:
        yield
    finally:
        _common.parsing_settings["import_path_verdicts"] = before


def _named(section: Any, where: str = "") -> list[tuple[str, Any, Place | None]]:
    """Every key at which a configuration names a class, with the name and the place; in the section's order."""
    found: list[tuple[str, Any, Place | None]] = []
    left: list[tuple[tuple[str, ...], Any]] = [((), section)]
    count = 0
    while left:
        keys, value = left.pop()
        count += 1
        if count > MOST or len(keys) > DEEPEST:
            what = f"nested more than {DEEPEST} deep" if len(keys) > DEEPEST else f"of more than {MOST} values"
            raise UserError(f"{where}: its configuration is {what}; is it one of amr's?")
        pattern, place = _place(keys)
        if keys[-1:] == ("class_path",):
            found.append((".".join(keys), value, _place(keys[:-1])[1]))
        elif isinstance(value, str) and place and ("." in value or pattern not in WORDS):
            found.append((".".join(keys), value, place))
        elif isinstance(value, Mapping):
            for key in ("init_args", "dict_kwargs"):
                if not isinstance(value.get(key) or {}, Mapping):  # a text would be the path of a further file
                    raise UserError(f"{where}: {'.'.join((*keys, key))} is not a mapping")
            # jsonargparse takes `a.b: c` for `a: {b: c}`.
            left += reversed([((*keys, *str(key).split(".")), item) for key, item in value.items()])
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            left += reversed([((*keys, str(i)), item) for i, item in enumerate(value)])
    return found


def _place(keys: tuple[str, ...]) -> tuple[tuple[str, ...], Place | None]:
    """The first pattern that fits, and its place."""
    for pattern, place in PLACES.items():
        if len(pattern) == len(keys) and all(p in ("*", key) for p, key in zip(pattern, keys, strict=True)):
            return pattern, place
    return (), None


def _check_name(name: Any, where: str, place: Place | None) -> None:
    if not isinstance(name, str) or not _is_path(name) or "." not in name:
        shown = repr(name) if isinstance(name, str) else f"a value of type {type(name).__name__}"
        raise UserError(f"{where}={shown[:200]}: must be a class's whole import path, such as amr.encoders.SmallCNN")
    others = place.others if place else ()
    if not _under(name, (OURS, *others, *_trusted.get())):
        raise _refused(name, where)


def _check_class(name: str, where: str, place: Place | None) -> None:
    """Imports a name that `_check_name` has passed, and refuses what is not a class of the place's base."""
    found = _imported(name)
    if found is None:
        raise UserError(f"{where}: there is no {name}")
    if not isinstance(found, type):
        raise UserError(f"{where}: {name} is not a class; a file may name classes only")
    defined = f"{found.__module__}.{found.__qualname__}"
    if not _under(defined, (OURS, *(place.others if place else ()), *_trusted.get())) and not (
        place and any(_imported(other) is found for other in place.others)  # `torch.optim.SGD` and the like
    ):
        raise _refused(defined, f"{where}: {name}")
    if place and not issubclass(found, base := _imported(place.base)):
        raise UserError(f"{where}: {name} is not a subclass of {base.__module__}.{base.__name__}")


def _imported(name: str) -> Any:
    """An attribute of a module, or None: no other way leads on, such as through another module that it imports."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute, None)
    except ImportError:
        return None


def _defined(name: str) -> str:
    """Where the class that a path names is defined; the path itself if it names a package."""
    found = _imported(name)
    return f"{found.__module__}.{found.__qualname__}" if isinstance(found, type) else name


def _refused(name: str, where: str) -> UserError:
    package = name.partition(".")[0]
    return UserError(
        f"{where}: {name} may not be built for a file's sake. If you trust its code, say so: "
        f"--trust {package}, in Python load_model(path, trust=({package!r},))"
    )


def _under(name: str, prefixes: Collection[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _is_path(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name) is not None


def _modalities(section: Mapping[str, Any]) -> list[Any]:
    model = section.get("model")
    encoders = model.get("encoders") if isinstance(model, Mapping) else None
    return list(encoders) if isinstance(encoders, Mapping) else []
