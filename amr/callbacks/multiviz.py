"""Explanations while a model learns: maps of a few validation clips, and how much the modalities interact."""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from torch import Tensor

from amr.callbacks.tables import log_table, wandb_loggers
from amr.classifier import FusionClassifier
from amr.datamodules import ListedClips
from amr.model.batches import as_batch
from amr.model.encoded import Collected
from amr.model.task import check_classes
from amr.utils.errors import UserError
from amr.utils.streams import note

Stage = Literal["unimodal", "crossmodal", "prediction"]
EMAP_CLIPS = 64  # 4,096 head rows
SPARSE_CLIPS = 512


class MultiVizCallback(pl.Callback):
    """Logs explanations after validation (stages: Liang et al. 2023).

    - crossmodal: `val/multiviz/emap_gap` (accuracy that interactions are worth, Hessel & Lee 2020) and
      `val/multiviz/interaction` (mean absolute part of the predicted class's logit that no modality has alone).
    - prediction: `val/multiviz/units`, the units that the sparsest classifier within a point of the best one uses, and
      for W&B `val/multiviz/sparse`, a table of the most important ones of each class.
    - unimodal, for W&B: a picture per clip, `val/multiviz/maps`, with integrated gradients and occlusion over the
    inputs.

    It takes the encodings that validation has made anyway, runs on the first process alone, and leaves training as it
    is, to the bit. The work is done in pieces, in the order above; when the time is used up the rest is left out, and
    a line says what.

    Args:
        stages: Which.
        every_n_epochs: How often.
        clips: Clips that get a picture: the first of the validation split.
        budget: Share of the time since the last explanations that these may take, in (0, 1]; the piece that is under
            way is finished, so that the first one is always logged.

    Raises:
        UserError: An option has a value that is not allowed, or the data module makes no pictures.
    """

    clock = staticmethod(time.monotonic)

    def __init__(
        self,
        stages: Sequence[Stage] = get_args(Stage),
        every_n_epochs: int = 5,
        clips: int = 4,
        budget: float = 0.05,
    ) -> None:
        if not stages or not set(stages) <= set(get_args(Stage)):
            raise UserError(f"stages={list(stages)}: must be at least one of {', '.join(get_args(Stage))}")
        for key, value in (("every_n_epochs", every_n_epochs), ("clips", clips)):
            if value < 1:
                raise UserError(f"{key}={value}: must be 1 or more")
        if not 0 < budget <= 1:
            raise UserError(f"budget={budget}: must be above 0, up to 1")
        self.stages, self.every_n_epochs, self.clips, self.budget = tuple(stages), every_n_epochs, clips, budget
        self._started = 0.0
        self._inputs: list[dict[str, Tensor]] = []
        self._collected = Collected()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        assert isinstance(pl_module, FusionClassifier)
        check_classes(pl_module.model, "MultiVizCallback")
        if "unimodal" in self.stages and not isinstance(trainer.datamodule, ListedClips):  # type: ignore[attr-defined]
            raise UserError("MultiVizCallback: the stage unimodal needs one of amr's data modules, for its pictures")
        self._started = self.clock()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the last clips."""
        self._inputs, self._collected = [], Collected()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first clips that have every modality."""
        if not self._due(trainer) or len(self._collected.ids) >= SPARSE_CLIPS:
            return
        rows = self._collected.add(outputs)
        missing = self.clips - sum(len(next(iter(part.values()))) for part in self._inputs)
        if missing > 0 and len(rows):
            few = rows[:missing]
            names = list(outputs["encodings"])
            inputs = as_batch(batch, names)["inputs"]
            self._inputs.append({m: inputs[m][few.to(inputs[m].device)].clone() for m in names})

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Explains and logs, as long as there is time."""
        if not self._due(trainer) or not self._collected.ids:
            return
        assert isinstance(pl_module, FusionClassifier)
        started = self.clock()
        allowed = self.budget * (started - self._started)
        pictures: list[tuple[str, Any]] = []
        pieces = list(self._pieces(trainer, pl_module, pictures))
        for done, (_, piece) in enumerate(pieces):
            if done and self.clock() - started > allowed:
                rest = ", ".join(dict.fromkeys(name for name, _ in pieces[done:]))
                note(f"MultiViz: {allowed:.1f} s are used up; left out at epoch {trainer.current_epoch}: {rest}")
                break
            piece()
        for logger in wandb_loggers(trainer) if pictures else []:
            captions, images = zip(*pictures, strict=True)
            logger.log_image("val/multiviz/maps", list(images), step=trainer.global_step, caption=list(captions))
        self._started = self.clock()

    def _due(self, trainer: pl.Trainer) -> bool:
        return (
            trainer.is_global_zero
            and not trainer.sanity_checking
            and trainer.state.fn == "fit"
            and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        )

    def _pieces(
        self, trainer: pl.Trainer, module: FusionClassifier, pictures: list[tuple[str, Any]]
    ) -> Iterator[tuple[str, Callable[[], None]]]:
        """Name and work, the cheapest first."""
        clips = self._collected.joined()
        encodings, labels = clips.encodings, clips.labels
        if "crossmodal" in self.stages and len(encodings) > 1 and len(labels) > 1:
            few = {m: e[:EMAP_CLIPS] for m, e in encodings.items()}
            yield "crossmodal", partial(self._interaction, trainer, module, few, labels[:EMAP_CLIPS])
        if "prediction" in self.stages and bool((labels != labels[0]).any()):
            yield "prediction", partial(self._units, trainer, module, encodings, labels)
        if "unimodal" in self.stages and wandb_loggers(trainer):  # nobody else takes pictures
            inputs = {m: torch.cat([part[m] for part in self._inputs]) for m in module.model.modalities}
            for n in range(len(next(iter(inputs.values())))):
                one = {m: x[n : n + 1] for m, x in inputs.items()}
                yield "unimodal", partial(self._picture, trainer, module, one, n, pictures)

    def _interaction(
        self, trainer: pl.Trainer, module: FusionClassifier, encodings: dict[str, Tensor], labels: Tensor
    ) -> None:
        from amr.multiviz.crossmodal import contributions, emap_gap

        _, rest = contributions(module.model, encodings, "predicted")
        gap = emap_gap(module.model, encodings, labels)
        self._log(trainer, {"emap_gap": gap, "interaction": float(rest.abs().mean())})

    def _units(
        self, trainer: pl.Trainer, module: FusionClassifier, encodings: dict[str, Tensor], labels: Tensor
    ) -> None:
        from amr.attribution import undisturbed
        from amr.multiviz.prediction import sparse_path, top_units

        with undisturbed(module.model), torch.no_grad():
            features = module.model.penultimate(encodings)
        classes = module.model.num_classes
        top = sparse_path(features, labels, lambdas=1, num_classes=classes).lambdas
        lambdas = top * torch.logspace(0, -1.5, 8, dtype=top.dtype, device=top.device)
        path = sparse_path(features, labels, lambdas=lambdas, num_classes=classes, tol=1e-2)
        best = path.sparsest()
        self._log(trainer, {"units": float(path.nonzeros[best])})
        rows = [[c, unit, value] for c, units in enumerate(top_units(path, best, 5)) for unit, value in units]
        for logger in wandb_loggers(trainer):
            log_table(logger, "val/multiviz/sparse", ["class", "unit", "coefficient"], rows, trainer.global_step)

    def _picture(
        self,
        trainer: pl.Trainer,
        module: FusionClassifier,
        inputs: dict[str, Tensor],
        n: int,
        pictures: list[tuple[str, Any]],
    ) -> None:
        """Draws one clip."""
        clips, data = self._collected.joined(), trainer.datamodule  # type: ignore[attr-defined]
        title = f"{clips.ids[n]}: {data.labels[int(clips.labels[n])]}, epoch {trainer.current_epoch}"
        pictures.append(draw_clip(trainer, module, inputs, title))

    def _log(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        found = {f"val/multiviz/{key}": value for key, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics({**found, "epoch": trainer.current_epoch}, step=trainer.global_step)


def draw_clip(trainer: pl.Trainer, module: FusionClassifier, inputs: dict[str, Tensor], title: str) -> tuple[str, Any]:
    """A clip's inputs with integrated gradients and occlusion of the predicted class over them.

    Args:
        trainer: Its data module, one of amr's, makes the pictures.
        module: The model.
        inputs: Input of each modality, (1, ...).
        title: Title above the picture.

    Returns:
        The title, and the picture as PIL has it.
    """
    from PIL import Image

    from amr.multiviz.figures import draw_maps
    from amr.multiviz.unimodal import integrated_gradients, occlusion

    data: ListedClips = trainer.datamodule  # type: ignore[attr-defined]
    shown, maps = {}, {}
    for modality in module.model.modalities:
        atoms = data.atoms(modality)
        arguments: Any = (module.model, inputs, modality, "predicted", atoms)
        found = [integrated_gradients(*arguments), occlusion(*arguments)]
        maps[modality] = [(one.method, one.values[0].cpu()) for one in found]
        shown[modality] = data.picture(modality, inputs[modality][0].cpu(), atoms)
    return title, Image.open(io.BytesIO(draw_maps(title, shown, maps)))
