"""The LightningModule for naive fusion, unimodal models and every method, alone or combined."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, Unpack

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import SGD, Optimizer
from torchmetrics import Metric, MetricCollection

from amr.attribution import Score, attribution_shares
from amr.encoders.base import Encoder
from amr.encoders.speed import CompileMode, speed_up
from amr.fusion.base import FusionFactory
from amr.fusion.concat import Concat
from amr.model import FusionModel, model_section
from amr.model.batches import Batch, StepOutput, about, as_batch, step_output
from amr.model.objective import Extra, Objective, Task
from amr.model.passes import reseed
from amr.regularizers import Composite, EpochState, Regularizer, Step
from amr.regularizers.composite import backward_loss, wrapping_section
from amr.regularizers.epochs.clips import EpochClips, encode_split
from amr.regularizers.slots import Slots, methods_of, with_slots
from amr.regularizers.slots import method_slots as method_slots
from amr.utils.checkpoints import restore_weights
from amr.utils.distributed import check_trainer
from amr.utils.errors import UserError
from amr.utils.metrics import WeightedMean
from amr.utils.optimizers.groups import ParameterGroups
from amr.utils.optimizers.main import MainOptimizer, follow_run, trained_parameters
from amr.utils.resume import adopt, starts

SPLITS = ("train", "val", "test")


class FusionClassifier(pl.LightningModule):
    """Trains and evaluates a `FusionModel`, with any combination of methods.

    Optimization is Lightning's automatic one, so every Trainer flag works; methods act through hooks around it, and AMR
    steps its own optimizer right after the main step. A unimodal model is the same class with one encoder.

    Everything random in a training step is a function of (seed, epoch, batch, rank), so a run that was killed and
    resumed ends with the weights of an uninterrupted one.

    Args:
        encoders: Encoder of each modality, by name; the order is the order of shares.
        fusion: A fusion class with its options.
        num_classes: Number of classes C.
        optimizer: Main optimizer, given all parameters that are not frozen.
        lr_scheduler: Main schedule, stepped once every `scheduler_interval`: `amr.Cosine` or `amr.Steps`, which follow
            the run's length, or one of torch's; None for a constant rate.
        scheduler_interval: Whether the schedule counts epochs or steps.
        label_smoothing: Label smoothing of the main cross-entropy, in [0, 1).
        task: One class per clip, `classes`; several `labels`: binary cross-entropy, the mean over labels; or a number,
            `regression`, of one output: mean squared error.
        class_weights: Weight of each class's clips, or of each label, in the main loss; see `Objective`.
        metrics: Further metrics: `f1` and `uar`, unweighted means over classes, and top-k accuracy.
        compile_encoders: Whether, or in which mode, to compile the encoders; checkpoints are those of any other run.
        channels_last: Whether the encoders' convolutions work on the channels-last layout.
        param_groups: Settings of the optimizer for the parameters of the model whose names match a regular expression,
            such as `{"encoders.video": {"lr": 1e-4}}`. The first that matches wins. `lr: 0` freezes.
        extra: Further methods, of the user's own.
        **slots: The built-in methods, an option each; see `amr.regularizers.slots.Slots`.

    Raises:
        UserError: If a method cannot work with these encoders or another method.
    """

    @with_slots
    def __init__(
        self,
        encoders: dict[str, Encoder],
        fusion: FusionFactory = Concat,
        num_classes: int = 2,
        optimizer: OptimizerCallable = lambda params: SGD(params, lr=1e-2, momentum=0.9, weight_decay=1e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        label_smoothing: float = 0.0,
        task: Task = "classes",
        class_weights: list[float] | None = None,
        metrics: list[Extra] | None = None,
        compile_encoders: bool | CompileMode = False,
        channels_last: bool = False,
        param_groups: dict[str, dict[str, Any]] | None = None,
        extra: list[Regularizer] | None = None,
        **slots: Unpack[Slots],
    ) -> None:
        super().__init__()
        if not encoders:
            raise UserError("model.encoders: must have at least one modality")
        self.objective = Objective(task, num_classes, label_smoothing, class_weights, metrics or ())
        given = methods_of(slots)
        self.regularizers = Composite([*given.values(), *(extra or [])])
        self.regularizers.check(task, weighted=class_weights is not None)
        head = fusion({name: encoder.out_dim for name, encoder in encoders.items()}, num_classes)
        self.fusion_name = type(head).__name__
        section = model_section(encoders, head)
        self.model = FusionModel(encoders, self.regularizers.wrap_head(head))
        self.model.section, self.model.task = section | wrapping_section({**given, "extra": extra}), task
        groups = ParameterGroups(param_groups)
        self.model.frozen = groups.apply(self.model)
        self.regularizers.setup(self.model)
        speed_up(self.model.encoders.values(), channels_last=channels_last, compiled=compile_encoders)
        self.main_optimizer = MainOptimizer(optimizer, lr_scheduler, scheduler_interval, groups)
        # ModuleDict keys end in "/" because "train" is a method of every module.
        self.metrics = torch.nn.ModuleDict({f"{s}/": self.objective.metrics(f"{s}/") for s in SPLITS})
        self.losses = torch.nn.ModuleDict({f"{s}/": WeightedMean() for s in SPLITS})
        self.config: dict[str, Any] | None = None  # the model section of the configuration; see amr.load
        self.settings: dict[str, Any] | None = None  # of the whole configuration; see amr.utils.resume
        self.resumed: list[dict[str, Any]] = []  # starts with other settings; see amr.utils.resume
        self._recipe: dict[str, Any] | None = None
        self.losses_of_step: list[tuple[Tensor, list[str]]] = []
        """Loss and ids of each micro-batch since the last optimizer step."""
        self._steps: list[Step] = []
        self._turn: tuple[str, ...] | None = None
        self._last_turn = True
        self._seed = torch.initial_seed()  # a checkpoint brings its own
        self._started: int | None = None  # epoch whose start the methods have been told
        self._clips = EpochClips()
        self._terms: dict[str, WeightedMean] = {}  # parts of the training loss, by what they are logged as
        self._logged: set[str] = set()  # what Lightning knows of in the epoch of a split

    @property
    def method(self) -> str:
        """Name of the method: `naive`, `modality_dropout+amr`, ...; of a unimodal model `m` or `m+dropout`."""
        first, *more = self.model.modalities
        return self.regularizers.name if more else "+".join([first, *self.regularizers.methods])

    @property
    def title(self) -> str:
        """The method for people: `Naive fusion`, `UMT w/ AMR`, `Audio`, `Audio + Dropout`."""
        modalities = self.model.modalities
        if len(modalities) > 1:
            return self.regularizers.title
        return " + ".join([modalities[0].capitalize(), *(method.title or method.name for method in self.regularizers)])

    def forward(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits, (B, C)."""
        logits: Tensor = self.model(inputs, present)
        return logits

    def shares(self, batch: Any, *, score: Score = "probability", ig_steps: int | None = None) -> Tensor:
        """Share of each modality in the predictions, (B, M); see `FusionModel.shares`."""
        return self.model.shares(batch, score=score, ig_steps=ig_steps)

    def _batch(self, batch: Any, batch_idx: int) -> Batch:
        place = self.global_rank, batch_idx
        return as_batch(batch, self.model.modalities, place, self.model.head.num_classes, self.model.task)

    # ---------------------------------------------------------------- training

    def setup(self, stage: str) -> None:
        """Refuses, by name, settings under which the methods would be wrong."""
        check_trainer(self.trainer)

    def on_train_start(self) -> None:
        """Drops steps that an interrupted fit left, and tells the schedule how long the run is."""
        follow_run(self.trainer)
        self._steps.clear()
        self.losses_of_step.clear()
        self._turn, self._last_turn = None, True
        self._start_logging("train")
        self._started = self._started if self.trainer.ckpt_path else None  # a fit that starts again
        self._clips.restart(resumed=bool(self.trainer.ckpt_path))
        self._clips.choose(self, self.model, self.regularizers, self._seed)

    def on_train_epoch_start(self) -> None:
        """Installs the clips that a method chooses for the epoch."""
        self._clips.choose(self, self.model, self.regularizers, self._seed)
        self._start_logging("train")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes the step's randomness a function of (seed, epoch, batch, rank); an epoch's first starts the epoch."""
        reseed(hash((self._seed, self.current_epoch, batch_idx, self.global_rank)) & (2**63 - 1), self.device)
        if self._started != self.current_epoch:  # Lightning leaves its own hook out on resuming after a last batch
            self._started = self.current_epoch
            self._start_epoch()

    def _start_epoch(self) -> None:
        alternating, accumulated = self.regularizers.overriding("turns"), self.trainer.accumulate_grad_batches
        if alternating and accumulated != 1:
            raise UserError(
                f"trainer.accumulate_grad_batches={accumulated}: must be 1 with {alternating[0].name}, which takes "
                "several optimizer steps per batch"
            )
        self.regularizers.on_epoch_start(self._epoch_state())

    def _epoch_state(self) -> EpochState:
        metrics, epoch = self.trainer.callback_metrics, self.current_epoch
        return EpochState(metrics, self.model, epoch, functools.partial(encode_split, self, self.model))

    def training_step(self, batch: Any, batch_idx: int) -> StepOutput:
        """Cross-entropy plus the methods' losses on a batch, in any of the forms of `as_batch`."""
        batch = self._batch(batch, batch_idx)
        present = batch.get("present")
        clean = self.model.encode(batch["inputs"], present)
        if self._turn is not None:
            clean = {name: e if name in self._turn else e.detach() for name, e in clean.items()}
        seen = self.regularizers.on_encodings(clean, present)
        logits = self.model.head.classify(self.regularizers.on_fused(self.model.penultimate(seen)))
        loss = self.objective.loss(logits, batch["label"])
        step = Step(
            model=self.model,
            inputs=batch["inputs"],
            id=batch["id"],
            encodings=clean,
            logits=logits,
            loss=loss,
            label=batch["label"],
            present=present,
            epoch=self.current_epoch,
            lr_factor=self.main_optimizer.factor(self.trainer.optimizers[0]),
            seed=hash((self._seed, self.current_epoch, batch_idx)) & (2**63 - 1),
            run_seed=self._seed,
            lr=self.trainer.optimizers[0].param_groups[0]["lr"],
            micro_batches=self.trainer.accumulate_grad_batches,
            loss_scale=self._scale(),
            label_smoothing=self.objective.label_smoothing,
            objective=self.objective,
            turn=self._turn,
            done=batch_idx / float(self.trainer.num_training_batches),
        )
        loss, terms, step = self.regularizers.train_on(step, self._steps[-1].apart if self._steps else {})
        self.losses_of_step.append((loss.detach(), batch["id"]))
        if self.regularizers.needs_steps:
            self._steps.append(step)
        output = step_output(batch, loss, step.logits, step.encodings)
        if self._last_turn:
            self._record("train", output)
            for name, term in terms.items():
                mean = self._terms.setdefault(f"train/loss/{name}", WeightedMean(sync_on_compute=False)).to(term.device)
                mean.update(term, len(logits))
                self._log_once(f"train/loss/{name}", mean)
        return {**output, "loss": backward_loss(loss, step)}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Methods change gradients here: unscaled, averaged over ranks, not yet clipped."""
        if self._turn is not None:
            for name, encoder in self.model.encoders.items():
                if name not in self._turn:
                    encoder.zero_grad()  # to None: neither momentum nor weight decay moves it
        self.regularizers.on_gradients(self._steps)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """The main optimizer's step, or one per turn of a method that alternates, then the methods' own."""
        scale = self._scale()
        turns = self.regularizers.turns(epoch)
        for number, self._turn in enumerate(turns, 1):
            self._last_turn = number == len(turns)
            scale = self._scale()
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            steps, self._steps = self._steps, []
            self.losses_of_step.clear()
        self._turn = None
        if self._scale() < scale:  # gradients overflowed, and the main step was not taken
            return
        self.regularizers.after_step(steps)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The main optimizer over all parameters, the methods' own included, that are not frozen, and its schedule."""
        optimizer, scheduler, self._recipe = self.main_optimizer.make(self.trained_parameters())
        self.main_optimizer.warn(optimizer, self.regularizers.scaling, self.regularizers.needing_decay)
        return self.main_optimizer.lightning(optimizer, scheduler, self.trainer)

    def on_train_epoch_end(self) -> None:
        """Passes the epoch's metrics, including validation's, to the methods, and logs what they report."""
        self.regularizers.on_epoch_end(self._epoch_state())
        self.log_dict({f"train/{key}": value for key, value in self.regularizers.report().items()})

    def trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Parameters that the main optimizer trains, by name, with the model's first."""
        return trained_parameters(model=self.model, regularizers=self.regularizers)

    def _scale(self) -> float:
        """Factor of the loss in 16-mixed; 1 elsewhere."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return float(scaler.get_scale()) if scaler else 1.0

    # -------------------------------------------------------------- evaluation

    def on_validation_epoch_start(self) -> None:
        """Starts the log of the split's epoch."""
        self._start_logging("val")

    def on_validation_end(self) -> None:
        """Makes the next training step log again: within an epoch, Lightning may have kept the metrics' values."""
        self._start_logging("train")

    def on_test_epoch_start(self) -> None:
        """Starts the log of the split's epoch."""
        self._start_logging("test")

    def validation_step(self, batch: Any, batch_idx: int) -> StepOutput:
        """Loss and metrics of the bare model."""
        return self._evaluate("val", self._batch(batch, batch_idx))

    def test_step(self, batch: Any, batch_idx: int) -> StepOutput:
        """Loss and metrics of the bare model."""
        return self._evaluate("test", self._batch(batch, batch_idx))

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Ids, labels (B,), logits (B, C), shares (B, M), and who lacks what."""
        batch = self._batch(batch, batch_idx)
        encodings = self.model.encode(batch["inputs"], batch.get("present"))
        shares = attribution_shares(self.model.head, encodings, score=self.model.score_of("probability"))
        return {**about(batch), "logits": self.model.head(encodings), "shares": shares}

    def _evaluate(self, split: str, batch: Batch) -> StepOutput:
        encodings = self.model.encode(batch["inputs"], batch.get("present"))
        logits = self.model.head(encodings)
        loss = self.objective.loss(logits, batch["label"], smooth=False)
        return self._record(split, step_output(batch, loss, logits, encodings))

    def _record(self, split: str, output: StepOutput) -> StepOutput:
        metrics, mean_loss = self.metrics[f"{split}/"], self.losses[f"{split}/"]
        assert isinstance(metrics, MetricCollection)
        assert isinstance(mean_loss, WeightedMean)
        metrics.update(self.objective.scores(output["logits"].detach()), self.objective.target(output["label"]))
        mean_loss.update(output["loss"].detach(), len(output["logits"]))
        self._log_once(f"{split}/loss", mean_loss, prog_bar=split != "test")
        for name, metric in metrics.items(copy_state=False):
            self._log_once(name, metric, prog_bar=split != "test")
        return output

    def _start_logging(self, split: str) -> None:
        self._logged = {name for name in self._logged if not name.startswith(f"{split}/")}

    def _log_once(self, name: str, metric: Metric, *, prog_bar: bool = False) -> None:
        """Registers a metric for Lightning, which computes and resets it at the end of the epoch, once per epoch."""
        if name not in self._logged:
            self._logged.add(name)
            self.log(name, metric, on_step=False, on_epoch=True, prog_bar=prog_bar, metric_attribute=name)

    # -------------------------------------------------------------- checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the methods' state (AMR's optimizer) and the seed of the steps' randomness."""
        checkpoint["amr"] = {
            **self.model.facts(),
            "model": self.config,
            "seed": self._seed,
            "started": self._started,
            "clips": self._clips.state(),
            "methods": self.regularizers.checkpoint_state(),
            "recipe": self._recipe,
            "settings": self.settings,
            "resumed": self.resumed,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses another architecture's checkpoint, and restores what `on_save_checkpoint` added.

        Where training resumes, the optimizer's settings are this run's, not the checkpoint's: see `amr.utils.resume`.

        Raises:
            UserError: If a parameter of the model is missing, unknown or of another shape, or if training is to resume
                with another optimizer or schedule.
        """
        state = restore_weights(checkpoint, self.state_dict())
        training = self._trainer is None or self._trainer.state.fn == TrainerFn.FITTING
        try:
            self._seed, self._started = state["seed"], state.get("started")
            if training:
                self.regularizers.restore_state(state["methods"])
                self._clips.restore(state.get("clips"))
                if "optimizer_states" in checkpoint:
                    adopt(checkpoint, *self.main_optimizer.make(self.trained_parameters()))
                self.resumed = starts(checkpoint, self.settings)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"checkpoint: its state is not as amr writes it ({error!r})") from error
