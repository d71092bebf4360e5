"""Cost of a method: rows that pass the head and the encoders, counted while a tiny model is trained."""

import functools
import inspect
import logging
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from amr.classifier import FusionClassifier
from amr.encoders import SmallCNN
from amr.fusion import Concat, Fusion, Late, Shared, Sum
from amr.model import FusionModel
from amr.regularizers import Composite, Regularizer
from amr.utils.errors import UserError

FUSIONS: tuple[Any, ...] = (functools.partial(Concat, hidden=4), Concat, Sum, Late, Shared)
"""Ordered from general to special; a method's cost is counted with the first fusion that it accepts."""
EARLY = {"start_epoch": 0, "every": 1, "boosting_epochs": 2}
"""Options with which a method acts in the second epoch."""
TEACHER = "teacher"


class Cost(NamedTuple):
    """Forward rows per clip that is trained on, and per epoch.

    Attributes:
        head: Rows of the head per clip.
        encoders: Rows of each encoder per clip that it sees.
        teachers: Rows of each teacher's encoder per clip.
        train: Further rows of each encoder per epoch, in passes over the training clips, per clip of them.
        val: The same of the validation clips, beside validation itself.
        heads: Rows of the head in these passes, per clip.
    """

    head: float
    encoders: float
    teachers: float
    train: float
    val: float
    heads: float


class Counted(SmallCNN):
    """Adds the rows of its calls to `counts`, where that is not None; the first number of a clip tells its split."""

    counts: ClassVar[Counter[str] | None] = None
    within: ClassVar[bool] = False  # a training step
    absent: ClassVar[frozenset[str]] = frozenset()  # no clip of the batch has them; a made-up row stands in

    def __init__(self, role: str, size: int = 4) -> None:
        super().__init__(1, 2, size)
        self.role = role

    def forward(self, x: Tensor) -> Tensor:
        """Encodes, and counts."""
        if Counted.counts is not None and not (Counted.within and self.role in Counted.absent):
            split = "val" if bool(x[0, 0, 0, 0] > 0) else "train"
            Counted.counts[self.role if self.role == TEACHER or Counted.within else split] += len(x)
        return super().forward(x)


def _counting(kind: type[Fusion]) -> type[Fusion]:
    """The head's class, which counts the rows that are fused, or taken apart into modalities at once."""

    def note(rows: int) -> None:
        if Counted.counts is not None:
            Counted.counts["head" if Counted.within else "heads"] += rows

    def seen() -> int:
        counts = Counted.counts or Counter[str]()
        return counts["head"] + counts["heads"]

    class Counting(kind):  # type: ignore[misc, valid-type]
        def fuse(self, encodings: Any) -> Any:
            note(len(next(iter(encodings.values()))))
            return super().fuse(encodings)

        def unimodal_logits(self, encodings: Any) -> Any:
            before = seen()
            logits = super().unimodal_logits(encodings)
            if seen() == before:
                note(len(next(iter(encodings.values()))))
            return logits

    return Counting


def made(kind: type[Regularizer], names: Sequence[str], encoders: Mapping[str, Any] | None = None) -> Regularizer:
    """A method that acts from the second epoch on at the latest, with its own defaults otherwise.

    Args:
        kind: The method.
        names: The modalities.
        encoders: The teachers' encoders; None for encoders whose rows are counted.
    """
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {key: value for key, value in EARLY.items() if key in parameters}
    options |= {key: [1] for key, parameter in parameters.items() if isinstance(parameter.default, tuple)}  # epochs
    if "teachers" in parameters:
        taught = encoders or {name: Counted(TEACHER) for name in names}
        heads = {name: Concat({name: taught[name].out_dim}, 2) for name in names}
        options["teachers"] = {name: FusionModel({name: taught[name]}, heads[name]) for name in names}
    if "dominant" in parameters:
        options["dominant"] = names[0]
    return kind(**options)


def fits(kind: type[Regularizer], head: Any, encoders: Mapping[str, Any] | None = None) -> bool:
    """Whether the method takes a model of this head and, if given, of these encoders."""
    given = encoders or {name: Counted(name) for name in ("m0", "m1")}
    try:
        methods = Composite([made(kind, [*given], encoders)])
        fused = head({name: encoder.out_dim for name, encoder in given.items()}, 2)
        methods.setup(FusionModel(given, methods.wrap_head(fused)))
    except UserError:
        return False
    return True


def _clips(split: float, modalities: int, clips: int) -> Any:
    """A data set of clips whose first number is `split`."""
    x = torch.randn(clips, modalities, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    x[:, :, 0, 0, 0] = split
    inputs = [{f"m{m}": each[m] for m in range(modalities)} for each in x]
    return [{"inputs": each, "label": n % 2, "id": f"clip{n}"} for n, each in enumerate(inputs)]


def rows(kind: type[Regularizer], modalities: int, clips: int, *, val: bool = True) -> Cost:
    """Trains two epochs of one batch, and counts the second.

    Args:
        kind: A method of `amr.regularizers.slots`.
        modalities: Number of modalities M.
        clips: Clips in the batch, and in each split.
        val: Whether there are validation clips.

    Raises:
        UserError: The method refuses the run.
    """
    names = [f"m{number}" for number in range(modalities)]
    fusion = next(fusion for fusion in FUSIONS if fits(kind, fusion))
    pl.seed_everything(0, verbose=False)
    options: dict[str, Any] = {kind.name: made(kind, names)}
    model = FusionClassifier({name: Counted(name) for name in names}, fusion, num_classes=2, **options)
    head = model.model.head
    head.__class__ = _counting(type(head))
    step, trained = model.optimizer_step, [0, 0]

    def counted_step(*args: Any, **options: Any) -> None:
        Counted.within = True
        try:
            step(*args, **options)
        finally:
            Counted.within = False

    class Second(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, _: Any) -> None:
            Counted.counts = counts if trainer.current_epoch == 1 else None

        def on_validation_start(self, *_: Any) -> None:
            Counted.counts = None

        def on_validation_end(self, trainer: pl.Trainer, _: Any) -> None:
            self.on_train_epoch_start(trainer, _)

        def on_train_batch_start(self, trainer: pl.Trainer, _: Any, batch: Any, *__: Any) -> None:
            if trainer.current_epoch == 1:
                present = batch.get("present") or {}
                Counted.absent = frozenset(name for name, has in present.items() if not has.any())
                trained[0] += len(batch["label"])
                trained[1] += len(batch["label"]) * modalities - sum(int((~has).sum()) for has in present.values())

    counts: Counter[str] = Counter()
    model.optimizer_step = counted_step  # type: ignore[method-assign]
    loaders = [DataLoader(_clips(split, modalities, clips), batch_size=clips) for split in (0.0, 1.0)]
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[Second()],
        )
        try:
            trainer.fit(model, loaders[0], loaders[1] if val else None)
        finally:
            Counted.counts = None
    encoders = sum(count for role, count in counts.items() if role in model.model.encoders)
    per_clip = modalities * clips
    return Cost(
        counts["head"] / trained[0],
        encoders / trained[1],
        counts[TEACHER] / per_clip,
        counts["train"] / per_clip,
        counts["val"] / per_clip,
        counts["heads"] / clips,
    )
