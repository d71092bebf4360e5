"""Base class of all methods: a few hooks into one training step.

A method overrides the hooks it needs; the classifier finds out which. Training only: evaluation sees the bare model.
"Step" is one micro-batch; "steps" are all micro-batches that led to one step of the main optimizer. In the order in
which they are called:

| hook | called | sees | may change | for |
|---|---|---|---|---|
| `wrap_head(head)` | once, when the run is built | the head | the head, in evaluation too | MMCosine |
| `setup(model)` | once, after `wrap_head` | the model | own parameters and buffers; refuses what does not fit | all |
| `restore_state(state)` | on resuming | what `checkpoint_state` gave | own state | AMR, G-Blend |
| `select(epoch, scores)` | once per epoch, before its first batch is loaded | per-clip scores of an eval-mode pass \
over the training clips | the epoch's clips: weights, numbers of copies, or copies with masked modalities; only one \
method may | Data Remixing, SMV |
| `on_epoch_start(state)` | once per epoch, also if resumed within | model, epoch, metrics, `state.encodings(split)` \
| own state, parameters | |
| `turns(epoch)` | before each step of the main optimizer | the epoch | which encoders move, one step per turn | |
| `on_encodings(encodings, present)` | each step | encodings with graph | what the head sees | modality dropout |
| `on_fused(fused)` | each step | penultimate features | what the classifier sees | dropout |
| `main_loss(step)` | each step | the step | **replaces** the cross-entropy; only one method may | GGE, G-Blend |
| `losses(step)` | each step | the step, with the new main loss | adds terms to the loss | UMT, PMR |
| `objectives(step)` | each step | the step, with encodings cut off from the encoders | adds terms; their gradients \
by the encoders are handed to `on_gradients` | MMPareto |
| `on_gradients(steps)` | after the backward pass | gradients: unscaled, averaged over ranks, not yet clipped; \
`steps[-1].apart` | `.grad` of any parameter | OGM, AGM, MMPareto, AMR |
| `after_step(steps)` | after the main optimizer's step | clean, detached encodings | head parameters, by an optimizer \
of its own | AMR |
| `on_epoch_end(state)` | end of an epoch, after validation | model, epoch, metrics, `state.encodings(split)` \
| own state, parameters | G-Blend, Re-learning |
| `report()` | after `on_epoch_end` | | scalars to log as `train/<method>/<key>` | all |
| `checkpoint_state()` | when a checkpoint is written | | state beyond parameters and buffers | AMR, G-Blend |

**Alternating steps.** A method whose modalities take the main optimizer's steps in turn overrides `turns`. In each turn
the batch is encoded and all losses are taken again; only the turn's encoders, the head and the methods' own parameters
move (`Step.turn` names the turn's modalities; the other encodings are detached, and the other encoders have no
gradient, so neither momentum nor weight decay moves them). Clipping and `on_gradients` act in each turn, `after_step`
once, after the last. The trainer's `global_step`, schedules, metrics and logs count the batch once. The cost is a
forward pass of every encoder per turn, and batch norm's running statistics see the batch that often. Accumulated
micro-batches are refused.

**Passes between batches.** What `select` and the hooks of an epoch ask of the clips (`scores`, `state.encodings`) is
computed by one pass in eval mode, when it is first asked, without augmentation where the data set has it off, and
costs a forward pass of the encoders over the split. A pass changes neither random states nor running statistics; its
values are equal on all ranks, and the same for any number of them. The clips that `select` chose are in the checkpoint,
so a run that is resumed within the epoch trains on the same. An epoch of other clips may have another number of
batches: `global_step` counts the actual batches, and a schedule per step was made for those without a choice.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from amr.attribution import at_least_float32
from amr.datamodules.selected import Copies
from amr.fusion.base import Fusion
from amr.model import FusionModel, complete_masks, complete_rows
from amr.model.encoded import Encoded
from amr.model.objective import Objective
from amr.model.passes import Scores
from amr.regularizers.shared import EpochMeans
from amr.utils.errors import UserError, listed
from amr.utils.names.ranges import Choices, Range
from amr.utils.names.recorded import Recorded


@dataclass(frozen=True)
class Step:
    """One micro-batch, as the hooks see it.

    Attributes:
        model: The model in training.
        inputs: Input of each modality, (B, ...); empty once detached.
        id: The clips' names, B of them.
        encodings: Clean encodings, (B, D_m) or (B, T, D_m), before any `on_encodings`.
        logits: Logits of the training pass, (B, C).
        loss: The main loss, a scalar: the cross-entropy or, from `losses` on, what `main_loss` replaced it by.
        label: Class indices, (B,); of several labels per clip, (B, C) of 0 and 1.
        present: Boolean (B,) of the modalities that some clips lack.
        epoch: Epoch, from 0.
        lr_factor: The main learning rate over the configured one (over a cycle's peak): where the main schedule is.
        seed: For random numbers that must be the same on all ranks; a function of (seed, epoch, batch).
        run_seed: The run's seed, for random numbers that must not depend on how an epoch is cut into batches.
        lr: The main learning rate, of the first parameter group.
        micro_batches: Number of micro-batches in one step; the trainer divides every loss by it.
        loss_scale: Factor of the loss in 16-mixed, which keeps small gradients from vanishing; 1 elsewhere.
        label_smoothing: Label smoothing of the main cross-entropy.
        objective: The main loss of other logits; None for the cross-entropy.
        turn: Modalities whose encoders move in this turn; None unless a method alternates (`turns`).
        done: Fraction of the epoch's batches that are over, in [0, 1).
        apart: By `<method>/<key>` of an objective and by modality, the objective's gradient by the encoder's trained
            parameters, flat, (P_m,): unscaled, summed over the micro-batches up to this one and, in `on_gradients`,
            averaged over ranks. An encoder that the objective does not reach, or that is frozen, is not in it.
    """

    model: FusionModel
    inputs: Mapping[str, Tensor]
    id: Sequence[str]
    encodings: dict[str, Tensor]
    logits: Tensor
    loss: Tensor
    label: Tensor
    present: Mapping[str, Tensor] | None
    epoch: int
    lr_factor: float
    seed: int
    run_seed: int = 0
    lr: float = 0.0
    micro_batches: int = 1
    loss_scale: float = 1.0
    label_smoothing: float = 0.0
    objective: Objective | None = None
    turn: tuple[str, ...] | None = None
    done: float = 0.0
    apart: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def cross_entropy(self, logits: Tensor, reduction: str = "mean") -> Tensor:
        """The main loss of other logits, (B, C): a scalar, or (B,) with reduction `none`."""
        if self.objective is not None:
            return self.objective.loss(logits, self.label, reduction)
        return F.cross_entropy(logits, self.label, label_smoothing=self.label_smoothing, reduction=reduction)

    def detached(self) -> "Step":
        """The same step without its graph and inputs."""
        encodings = {name: e.detach() for name, e in self.encodings.items()}
        return replace(self, inputs={}, encodings=encodings, logits=self.logits.detach(), loss=self.loss.detach())

    def has(self, names: Sequence[str]) -> Tensor:
        """Boolean (M, B): which clips have each of the M named modalities."""
        return complete_masks(names, self.present, self.label)

    def complete(self) -> tuple[dict[str, Tensor], Tensor]:
        """Encodings, of at least single precision, and labels of the clips that have every modality; perhaps none."""
        rows = complete_rows(self.encodings, self.present)
        encodings = {name: at_least_float32(e if rows is None else e[rows]) for name, e in self.encodings.items()}
        return encodings, self.label if rows is None else self.label[rows]


class EpochState(dict[str, Tensor]):
    """State that the hooks of an epoch see: the metrics logged so far, by name, and more.

    Args:
        metrics: The metrics; at an epoch's end with those of its validation.
        model: The model in training.
        epoch: Epoch, from 0.
        encode: Encodes at most so many clips of a split (None: all); None where there is no data.
    """

    def __init__(
        self,
        metrics: Mapping[str, Tensor],
        model: FusionModel,
        epoch: int,
        encode: Callable[[str, int | None], Encoded] | None = None,
    ) -> None:
        super().__init__(metrics)
        self.model, self.epoch = model, epoch
        self._encode, self._encodings = encode, dict[tuple[str, int | None], Encoded]()

    def encodings(self, split: Literal["train", "val"], most: int | None = None) -> Encoded:
        """Encodings and labels of the split's clips that have every modality, on the CPU, without augmentation.

        They are computed when they are first asked for, by one pass in eval mode, and then kept for all methods that
        ask in the same hook. They are equal on all ranks.

        Args:
            split: `train` or `val`.
            most: Number of clips to encode, at most, taken evenly from the data set; None for all.

        Raises:
            UserError: If the run has no such clips, or a loader whose clips cannot be asked for one by one.
        """
        if self._encode is None:
            raise UserError(f"model: no {split} clips can be encoded outside of training")
        if (split, most) not in self._encodings:
            self._encodings[split, most] = self._encode(split, most)
        return self._encodings[split, most]


class Regularizer(Recorded, nn.Module):
    """A training method; the module's table says when each hook is called and what it may change.

    A method keeps no reference to the model and never logs; what it wants logged, it gives in `report`. Its own
    parameters, if it makes any, are trained by the main optimizer. A base class of methods, which has no `name`, is
    declared with `class Base(Regularizer, abstract=True)`.

    Raises:
        UserError: When a subclass is declared without `name`, or with an `on_...` method that is not a hook.
    """

    name: ClassVar[str]
    """Short name, as in the configuration and checkpoints."""
    title: ClassVar[str] = ""
    """Name for people, in tables and plots; `name` if empty."""
    suffix: ClassVar[bool] = False
    """Whether the title follows those of the other methods with "w/": it adds to any method, as AMR does."""
    order: ClassVar[int] = 50
    """Methods run in ascending order within each hook."""
    conflicts: ClassVar[frozenset[str]] = frozenset()
    """Names of methods that cannot be combined with this one, beyond those that override `main_loss` or `turns` too."""
    min_modalities: ClassVar[int] = 1
    """Fewest modalities with which the method is defined."""
    several_labels: ClassVar[bool] = False
    """Whether it is defined for several labels per clip and regression: its losses are `Step.cross_entropy` alone."""
    scales_gradients: ClassVar[bool] = False
    """Whether its effect is the size of gradients, which Adam and its like cancel."""
    signal: ClassVar[str] = ""
    """Quantity that the method measures in training, in a few words; `nothing` if it measures none."""
    reads: ClassVar[frozenset[str]] = frozenset({"on_epoch_start", "on_epoch_end"})
    """Hooks by which, with its default options, it changes nothing but its own state."""
    ranges: ClassVar[Mapping[str, Range | Choices]] = {}
    """Ranges of its main options, over which `amr benchmark --tune` tries values; empty if nothing is to be tuned."""

    def __init_subclass__(cls, abstract: bool = False) -> None:
        super().__init_subclass__()
        if not abstract and not getattr(cls, "name", ""):
            raise UserError(f'{cls.__name__}: a method needs a name, such as name = "{cls.__name__.lower()}"')
        hooks = [key for key in vars(Regularizer) if key.startswith("on_")]
        for key in dir(cls):
            if key.startswith("on_") and key not in hooks:
                raise UserError(f"{cls.__name__}.{key}: no hook has that name; must be one of {', '.join(hooks)}")

    @classmethod
    def overrides(cls, hook: str) -> bool:
        """Whether the method has a hook of its own."""
        return getattr(cls, hook) is not getattr(Regularizer, hook)

    def check(self, key: str, value: object, ok: bool, allowed: str) -> None:
        """Raises `UserError`, naming the argument and what is allowed, unless it is ok and no infinite number."""
        if not ok or (isinstance(value, float) and not math.isfinite(value)):
            raise UserError(f"model.{self.name}.{key}={value!r}: must be {allowed}")

    def check_choice(self, key: str, value: object, allowed: Any) -> None:
        """Raises `UserError` unless the argument is one of a `Literal`'s."""
        self.check(key, value, value in get_args(allowed), f"one of {', '.join(get_args(allowed))}")

    def check_names(
        self, key: str, given: Mapping[str, object] | None, needed: Sequence[str], what: str = "the model's modalities "
    ) -> None:
        """Raises `UserError` unless an argument is None or has exactly the needed names."""
        if given is not None and set(given) != set(needed):
            raise UserError(f"model.{self.name}.{key}: names {listed(given)}; must be exactly {what}{listed(needed)}")

    def needs_decay(self) -> bool:
        """Whether the method disturbs the model for as long as the main rate has not decayed."""
        return False

    def wrap_head(self, head: Fusion) -> Fusion:
        """The head to use in place of `head`, in training and evaluation."""
        return head

    def setup(self, model: FusionModel) -> None:
        """Makes what depends on the model (parameters, buffers, metrics).

        Raises:
            UserError: If the method cannot work with this model.
        """

    def select(self, epoch: int, scores: Scores) -> Tensor | Copies | None:
        """The clips that an epoch trains on; it must be equal on all ranks.

        Args:
            epoch: Epoch, from 0.
            scores: Values from a pass over the training clips; no pass is made unless something is asked.

        Returns:
            Weights (N,), float, of which N clips are drawn with replacement; or how often each clip is trained, (N,)
            int64; or `Copies`; None for every clip once, as without the method.
        """
        return None

    def on_epoch_start(self, state: EpochState) -> None:
        """Acts before an epoch's first step; gradients are off."""

    def turns(self, epoch: int) -> Sequence[Sequence[str]]:
        """The modalities whose encoders move, for each turn of a batch; empty for one step of all."""
        return ()

    def on_encodings(self, encodings: dict[str, Tensor], present: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Changes the encodings, (B, ..., D_m) each, before the head sees them."""
        return encodings

    def on_fused(self, fused: Tensor) -> Tensor:
        """Changes the penultimate features, (B, D), before the classifier sees them."""
        return fused

    def main_loss(self, step: Step) -> Tensor | None:
        """A scalar to train on in place of `step.loss`; None leaves that as it is."""
        return None

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Scalar terms to add to the main loss, by name."""
        return {}

    def objectives(self, step: Step) -> dict[str, Tensor]:
        """Scalar terms, by name, of `step.encodings` alone, whose gradients for the encoders are passed separately.

        They train the method's own parameters and the head like any other term. Their gradients for the encoders
        are in `steps[-1].apart` of `on_gradients` instead. The names must be equal on all ranks.
        """
        return {}

    def on_gradients(self, steps: Sequence[Step]) -> None:
        """Changes the parameters' gradients."""

    def after_step(self, steps: Sequence[Step]) -> None:
        """Acts after the main optimizer's step on the micro-batches that led to it."""

    def on_epoch_end(self, state: EpochState) -> None:
        """Acts on the epoch's metrics, after validation; gradients are off."""

    def report(self) -> dict[str, float]:
        """Scalars to log each epoch, equal on all ranks: by default the means of the method's `EpochMeans`."""
        means = [module.named() for module in self.children() if isinstance(module, EpochMeans)]
        return {key: value for each in means for key, value in each.items()}

    def checkpoint_state(self) -> dict[str, object]:
        """State beyond parameters and buffers, of plain types and tensors only."""
        return {}

    def restore_state(self, state: Mapping[str, object]) -> None:
        """Takes what `checkpoint_state` gave; called before the first step."""
